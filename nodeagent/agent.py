"""The node agent: watches its directory and keeps every workload of it served.

One supervisor task reconciles what runs with what the directory says; rotators are tasks of their own.
A fault of one workload (a socket that cannot be bound, a rule that cannot be rendered) is reported and
tried again, and never stops the others.
"""

from __future__ import annotations

import asyncio
import gc
import random
from contextlib import suppress
from typing import Final

from prometheus_client import CollectorRegistry

from mesh.clock import Clock, SystemClock
from mesh.obs.health import Health
from mesh.obs.logs import logger
from mesh.policy.effective import Finding, Severity
from mesh.spiffe import SpiffeId
from nodeagent.ca_client import CaClient
from nodeagent.compiler import Compiler
from nodeagent.config import AgentSettings
from nodeagent.events import AgentEvents
from nodeagent.files import DirectoryState, FileSource
from nodeagent.http import HttpServer
from nodeagent.metrics import AgentMetrics
from nodeagent.sockets import prepare_base, sweep_orphans
from nodeagent.status import AgentView, pages
from nodeagent.workloads import RunningWorkload, Surroundings, socket_directory

CHECK_EVERY: Final = 5.0
_log = logger("nodeagent.agent")


class Agent:
    """The whole program but its command line.

    Args:
        settings: configuration.
        clock: wall clock.
        registry: metrics go here.
    """

    def __init__(
        self,
        settings: AgentSettings,
        *,
        clock: Clock | None = None,
        registry: CollectorRegistry | None = None,
    ) -> None:
        self.settings = settings
        self.clock = clock if clock is not None else SystemClock()
        self.metrics = AgentMetrics(registry if registry is not None else CollectorRegistry())
        self.health = Health("directory", "sockets", "identities")
        self.findings: tuple[Finding, ...] = ()
        self.running: dict[str, RunningWorkload] = {}
        self.revision = 0
        self._source = FileSource(settings.directory, debounce=settings.debounce.total_seconds())
        self._compiler = Compiler(self.metrics)
        self._ca = CaClient(
            address=settings.ca.address,
            root_file=settings.ca.root_file,
            server_name=settings.ca.server_name,
            deadline=settings.ca.deadline.total_seconds(),
            max_in_flight=settings.ca.in_flight,
        )
        self._shared = Surroundings(
            sockets=settings.sockets,
            signer=self._ca,
            clock=self.clock,
            metrics=self.metrics,
            events=AgentEvents(self.metrics),
            rotation=settings.rotation,
            rng=random.SystemRandom(),
        )
        self._state: DirectoryState | None = None
        self._changed = asyncio.Event()
        self.http = HttpServer(settings.listen, pages(self._view, self.health, self.metrics))

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set, then end all streams and return.

        Raises:
            MeshError: the socket directory cannot be used.
            OSError: the health address cannot be used.
        """
        prepare_base(self.settings.sockets)
        await self.http.start()
        _log.info("node agent started", listen=self.http.address, directory=self.settings.directory)
        try:
            async with asyncio.TaskGroup() as tasks:
                own = [
                    tasks.create_task(self._source.run(self._apply), name="files"),
                    tasks.create_task(self._reconcile_for_ever(tasks), name="reconcile"),
                ]
                await stop.wait()
                _log.info("node agent stops")
                for task in own:
                    task.cancel()
                await self._stop_all()
        finally:
            await self.http.stop()
            await self._ca.close()

    def _apply(self, state: DirectoryState) -> None:
        self._state = state
        self._changed.set()

    # --- reconcile --------------------------------------------------------------------------------

    async def _reconcile_for_ever(self, tasks: asyncio.TaskGroup) -> None:
        swept = False
        while True:
            try:
                await asyncio.wait_for(self._changed.wait(), CHECK_EVERY)
            except TimeoutError:
                await self._check()
                continue
            self._changed.clear()
            state = self._state
            if state is None:
                continue
            if not swept:
                names = {
                    socket_directory(spec.workload.namespace, spec.workload.name)
                    for spec in state.world.workloads
                }
                sweep_orphans(self.settings.sockets, names)
            await self._reconcile(state, tasks)
            await self._check()
            if not swept:
                swept = True
                # What is loaded now lives as long as the process: keep the collector away from it.
                gc.collect()
                gc.freeze()

    async def _reconcile(self, state: DirectoryState, tasks: asyncio.TaskGroup) -> None:
        with self.metrics.compile_seconds.time():
            compiled = self._compiler.compile(state.world, state.key_sets)
        findings = [*state.findings, *compiled.findings]
        wanted = {spec.workload.uid: spec.workload for spec in state.world.workloads}
        identities = {
            uid: SpiffeId.for_service_account(
                state.world.mesh.trust_domain, workload.namespace, workload.service_account
            )
            for uid, workload in wanted.items()
        }
        for uid, entry in list(self.running.items()):
            gone = uid not in wanted
            if gone or not entry.same(wanted[uid], identities[uid], state.token_files[uid]):
                del self.running[uid]
                await entry.stop(remove=True)
                self._forget(entry)
        for uid, workload in wanted.items():
            found = self.running.get(uid)
            if found is None:
                found = RunningWorkload(workload, identities[uid], state.token_files[uid], self._shared)
                self.running[uid] = found
                found.begin(tasks)
            config = compiled.configs.get(uid)
            if config is not None and (uid in compiled.rendered or found.revision == 0):
                found.configure(workload, config)
        self.revision += 1
        self._report(tuple(findings), state)

    def _report(self, findings: tuple[Finding, ...], state: DirectoryState) -> None:
        before = set(self.findings)
        for finding in findings:
            if finding not in before:
                say = _log.warning if finding.severity is Severity.WARNING else _log.error
                say(
                    "finding",
                    code=finding.code,
                    place=finding.place or finding.ref.source,
                    object=str(finding.ref),
                    field=finding.field,
                    detail=finding.message,
                )
        cleared = len(before - set(findings))
        self.findings = findings
        for severity in Severity:
            count = sum(finding.severity is severity for finding in findings)
            self.metrics.findings.labels(severity=severity.value).set(count)
        self.metrics.workloads.set(len(self.running))
        self.health.set("directory", ok=True)
        _log.info(
            "directory applied",
            revision=self.revision,
            workloads=len(state.world.workloads),
            services=len(state.world.services),
            policies=len(state.world.policies),
            findings=len(findings),
            cleared=cleared,
        )

    def _forget(self, entry: RunningWorkload) -> None:
        for metric in (self.metrics.svid_remaining, self.metrics.svid_age):
            with suppress(KeyError):  # it never had a certificate
                metric.remove(entry.name)

    # --- upkeep -------------------------------------------------------------------------------------

    async def _check(self) -> None:
        """Sockets in place, certificates valid: say so in health and metrics."""
        for entry in list(self.running.values()):
            await entry.listen()
        broken = [e.name for e in self.running.values() if e.problem is not None]
        self.health.set(
            "sockets", ok=not broken, detail=f"cannot be served: {', '.join(broken[:10])}" if broken else ""
        )
        self.update_identities()

    def update_identities(self) -> None:
        """Refresh what health and metrics say about certificates."""
        now = self.clock.now()
        bad: list[str] = []
        for entry in self.running.values():
            status = entry.rotator.status()
            plan_end, plan_start = status.not_after, status.not_before
            if plan_end is not None and plan_start is not None:
                self.metrics.svid_remaining.labels(workload=entry.name).set((plan_end - now).total_seconds())
                self.metrics.svid_age.labels(workload=entry.name).set((now - plan_start).total_seconds())
            if status.state in {"waiting", "expired"}:
                why = f" ({status.code})" if status.code else ""
                bad.append(f"{entry.name} {status.state}{why}")
        self.health.set("identities", ok=not bad, detail="; ".join(bad[:10]))

    def _view(self) -> AgentView:
        self.update_identities()
        return AgentView(
            settings=self.settings,
            now=self.clock.now(),
            revision=self.revision,
            findings=self.findings,
            workloads=tuple(self.running.values()),
            queued=self._ca.waiting,
        )

    async def _stop_all(self) -> None:
        entries = list(self.running.values())
        async with asyncio.TaskGroup() as tasks:
            for entry in entries:
                tasks.create_task(entry.stop(remove=False))
