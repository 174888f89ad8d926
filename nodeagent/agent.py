"""The node agent: follows its directory, or the cluster, and keeps every workload of it served.

One supervisor task reconciles what runs with what the directory says; rotators are tasks of their own.
A fault of one workload (a socket that cannot be bound, a rule that cannot be rendered) is reported and
tried again, and never stops the others.
"""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Final, Protocol

from prometheus_client import CollectorRegistry

from mesh.clock import Clock, SystemClock
from mesh.errors import Category, MeshError
from mesh.obs.health import Health
from mesh.obs.logs import logger
from mesh.obs.metrics import show_process
from mesh.policy.effective import Finding, Severity
from mesh.spiffe import SpiffeId, TrustDomain
from nodeagent.ca_client import CaClient
from nodeagent.compiler import Compiler
from nodeagent.config import AgentSettings, Mode, ServiceScope
from nodeagent.core.services import Scope
from nodeagent.core.trust import TrustBook, standing
from nodeagent.core.volume import VolumeCode, VolumeError
from nodeagent.events import AgentEvents
from nodeagent.file_pages import FilePages
from nodeagent.files import DirectoryState, FileSource
from nodeagent.http import HttpServer
from nodeagent.metrics import AgentMetrics
from nodeagent.secure_pages import SecurePages
from nodeagent.sockets import prepare_base, sweep_orphans
from nodeagent.status import AgentView, pages
from nodeagent.trust import TrustSync
from nodeagent.workloads import RunningWorkload, Surroundings, socket_directory

CHECK_EVERY: Final = 5.0
SERVE_WITHIN: Final = 10.0
"""Seconds that the kubelet's calls wait for a socket; it calls again by itself."""
_log = logger("nodeagent.agent")


class Source(Protocol):
    """Where workloads, services and policies come from."""

    async def run(self, apply: Callable[[DirectoryState], None]) -> None:
        """Give each new state to `apply`, until cancelled."""
        ...


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
        show_process(self.metrics.registry)
        self._of_files = settings.mode is Mode.FILES
        parts = ("directory", "sockets", "identities") if self._of_files else ("cluster", "driver")
        self.health = Health(*parts)
        self.findings: tuple[Finding, ...] = ()
        self.running: dict[str, RunningWorkload] = {}
        self.revision = 0
        self._source: Source = self._make_source()
        kube = settings.kubernetes
        everything = kube.services is ServiceScope.ALL
        self._compiler = Compiler(
            self.metrics, captured=Scope(other_namespaces=everything, limit=kube.service_limit)
        )
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
            events=AgentEvents(self.metrics, self._secret_accepted),
            rotation=settings.rotation,
            rng=random.SystemRandom(),
            trust=TrustBook() if settings.ca.token_file is not None else None,
        )
        self.trust = self._trust_sync()
        self._state: DirectoryState | None = None
        self._changed = asyncio.Event()
        self._admitted = asyncio.Condition()
        routes = pages(self._view, self.health, self.metrics)
        self.secure_pages = SecurePages(
            settings.metrics_tls, routes, self._ca, clock=self.clock, rng=random.SystemRandom()
        )
        if self.secure_pages.server is not None:
            routes = {path: routes[path] for path in ("/livez", "/readyz")}
        self.http = HttpServer(settings.listen, routes)

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set, then end all streams and return.

        Raises:
            MeshError: the socket directory cannot be used.
            OSError: the health address cannot be used.
        """
        if self._of_files:
            prepare_base(self.settings.sockets)
        await self.http.start()
        _log.info("node agent started", listen=self.http.address, mode=self.settings.mode.value)
        try:
            async with asyncio.TaskGroup() as tasks:
                own = [
                    tasks.create_task(self._source.run(self._apply), name="source"),
                    tasks.create_task(self._reconcile_for_ever(tasks), name="reconcile"),
                    tasks.create_task(self.secure_pages.run(), name="secure pages"),
                ]
                if self.trust is not None:
                    own.append(tasks.create_task(self.trust.run(), name="trust"))
                await stop.wait()
                _log.info("node agent stops")
                for task in own:
                    task.cancel()
                await self._stop_all()
        finally:
            await self.http.stop()
            await self._ca.close()

    def _make_source(self) -> Source:
        if self._of_files:
            directory = self.settings.directory or Path()
            return FileSource(directory, debounce=self.settings.debounce.total_seconds())
        from nodeagent.kube_source import KubeSource  # not needed, and not loaded, in file mode

        return KubeSource(self.settings, self, health=self.health, registry=self.metrics.registry)

    def _trust_sync(self) -> TrustSync | None:
        token_file, book = self.settings.ca.token_file, self._shared.trust
        if token_file is None or book is None:
            return None
        return TrustSync(
            self._ca,
            token_file,
            book,
            standing=lambda: (
                standing((e.fact() for e in self.running.values()), book) if self.revision else None
            ),
            renew_within=self._renew_within,
            metrics=self.metrics,
        )

    def _renew_within(self, epoch: int, seconds: float) -> None:
        for entry in self.running.values():
            entry.rotator.renew_within(epoch, seconds)

    def _secret_accepted(self) -> None:
        if self.trust is not None:
            self.trust.acknowledged()

    def _apply(self, state: DirectoryState) -> None:
        self._state = state
        self._changed.set()

    # --- what the CSI driver needs: see `nodeagent.csi.Host` -----------------------------------------

    async def serving(self, uid: str) -> None:
        """Return when the workload's socket is served.

        Raises:
            MeshError: it cannot be served, or not soon; the kubelet will call again.
        """
        await self._wait_until(
            lambda: uid in self.running and not self.running[uid].stopped, "its socket is not served yet"
        )
        entry = self.running[uid]
        await entry.listen()
        if entry.problem is not None:
            raise _not_ready(entry.problem.public) from entry.problem

    async def released(self, uid: str) -> None:
        """Return when the workload is no longer served.

        Raises:
            MeshError: not soon.
        """
        await self._wait_until(lambda: uid not in self.running, "its socket is still being closed")

    def fresh_token(self, uid: str) -> None:
        """A new token has come: an attempt that failed is worth another try."""
        entry = self.running.get(uid)
        if entry is not None and entry.rotator.status().failures:
            entry.rotator.wake()

    async def _wait_until(self, condition: Callable[[], bool], otherwise: str) -> None:
        try:
            async with asyncio.timeout(SERVE_WITHIN), self._admitted:
                await self._admitted.wait_for(condition)
        except TimeoutError:
            raise _not_ready(otherwise) from None

    # --- reconcile --------------------------------------------------------------------------------

    async def _reconcile_for_ever(self, tasks: asyncio.TaskGroup) -> None:
        swept, file_pages = False, FilePages()
        loop = asyncio.get_running_loop()
        checked = loop.time()
        while True:
            try:
                # Not `wait_for`: in Python 3.11 it may swallow a cancellation.
                async with asyncio.timeout(CHECK_EVERY):
                    await self._changed.wait()
            except TimeoutError:
                await self._check()
                checked = loop.time()
                file_pages.idle(checked)
                continue
            self._changed.clear()
            state = self._state
            if state is None:
                continue
            if not swept and self._of_files:
                names = {
                    socket_directory(spec.workload.namespace, spec.workload.name)
                    for spec in state.world.workloads
                }
                sweep_orphans(self.settings.sockets, names)
            await self._reconcile(state, tasks)
            # In a cluster each pod is a change, and a check looks at all of them: a hundred pods that come
            # at once would be looked at ten thousand times.
            if self._of_files or loop.time() - checked >= CHECK_EVERY:
                await self._check()
                checked = loop.time()
            if not swept:
                swept = True
                # What is loaded now lives as long as the process: keep the collector away from it.
                gc.collect()
                gc.freeze()

    async def _reconcile(self, state: DirectoryState, tasks: asyncio.TaskGroup) -> None:
        await self._admit(state, tasks)
        with self.metrics.compile_seconds.time():
            compiled = self._compiler.compile(state.world, state.key_sets)
        findings = [*state.findings, *compiled.findings]
        for spec in state.world.workloads:
            found = self.running[spec.workload.uid]
            config = compiled.configs.get(spec.workload.uid)
            if config is not None and (spec.workload.uid in compiled.rendered or found.revision == 0):
                found.configure(spec.workload, config)
        self.revision += 1
        if self.trust is not None:
            self.trust.workloads_changed()
        self._report(tuple(findings), state)

    async def _admit(self, state: DirectoryState, tasks: asyncio.TaskGroup) -> None:
        """Serve every workload of the state, and no other; their configuration comes after."""
        wanted = {spec.workload.uid: spec.workload for spec in state.world.workloads}
        identities = {
            uid: _identity(state.world.mesh.trust_domain, workload.namespace, workload.service_account)
            for uid, workload in wanted.items()
        }
        for uid, entry in list(self.running.items()):
            gone = uid not in wanted
            if gone or not entry.same(
                wanted[uid], identities[uid], state.token_files[uid], state.directories.get(uid)
            ):
                await entry.stop(remove=True)
                del self.running[uid]
                self._forget(entry)
        for uid, workload in wanted.items():
            found = self.running.get(uid)
            if found is None:
                found = RunningWorkload(
                    workload,
                    identities[uid],
                    state.token_files[uid],
                    self._shared,
                    directory=state.directories.get(uid),
                )
                await found.listen()
                self.running[uid] = found
                found.begin(tasks)
        async with self._admitted:
            self._admitted.notify_all()

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
        if self._of_files:
            self.health.set("directory", ok=True)
        # A cluster changes all the time: what was applied is worth a line when people look for it.
        say = _log.info if self._of_files else _log.debug
        say(
            "directory applied" if self._of_files else "cluster applied",
            revision=self.revision,
            workloads=len(state.world.workloads),
            services=len(state.world.services) + len(state.world.known_services),
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
        if not self._of_files:
            self.update_identities()
            return  # one pod's trouble must not hold up the agents of a cluster; metrics and status tell
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
        if self.trust is not None:
            self.trust.refresh()
        if self._of_files:
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
            trust=self.trust,
        )

    async def _stop_all(self) -> None:
        entries = list(self.running.values())
        async with asyncio.TaskGroup() as tasks:
            for entry in entries:
                tasks.create_task(entry.stop(remove=False))


@lru_cache(maxsize=512)
def _identity(trust_domain: TrustDomain, namespace: str, account: str) -> SpiffeId:
    """Remembered: each change asks for those of all workloads again."""
    return SpiffeId.for_service_account(trust_domain, namespace, account)


def _not_ready(message: str) -> MeshError:
    return VolumeError(VolumeCode.NOT_READY, message, category=Category.UNAVAILABLE)
