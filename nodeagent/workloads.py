"""One workload as the agent runs it: its cache, its socket and its rotator, started and stopped together."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass
from pathlib import Path

from mesh.clock import Clock
from mesh.envoy.resources import ResourceSet
from mesh.errors import MeshError
from mesh.obs.logs import logger
from mesh.spiffe import SpiffeId
from mesh.topology import Workload
from nodeagent.cache import WorkloadCache
from nodeagent.config import RotationSettings
from nodeagent.core.rotation import Rotation
from nodeagent.core.subscriptions import SessionEvents
from nodeagent.core.trust import TrustBook, WorkloadFact
from nodeagent.metrics import AgentMetrics
from nodeagent.rotator import Rotator, Signer
from nodeagent.sockets import WorkloadSocket
from nodeagent.tokens import TokenSource

_log = logger("nodeagent.workloads")


def socket_directory(namespace: str, name: str) -> str:
    """Name of a workload's socket directory; `_` is in neither part, so it is unambiguous."""
    return f"{namespace}_{name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What all workloads of an agent share.

    Attributes:
        trust: the bundle of the node; None lets each workload have what came with its certificate.
    """

    sockets: Path
    signer: Signer
    clock: Clock
    metrics: AgentMetrics
    events: SessionEvents
    rotation: RotationSettings
    rng: random.Random
    trust: TrustBook | None = None


class RunningWorkload:
    """A workload that is served.

    Args:
        workload: as it is now; labels and ports may change while it runs.
        spiffe_id: its identity; a changed identity is another workload.
        token_file: its token, a file or memory.
        shared: what it shares with the others.
        directory: of its socket; default is one of its own below `shared.sockets`.
    """

    def __init__(
        self,
        workload: Workload,
        spiffe_id: SpiffeId,
        token_file: TokenSource,
        shared: Surroundings,
        *,
        directory: Path | None = None,
    ) -> None:
        self.workload = workload
        self.spiffe_id = spiffe_id
        self.token_file = token_file
        self.problem: MeshError | None = None
        self.stopped = False
        self.revision = 0
        self._shared = shared
        name = f"{workload.namespace}/{workload.name}"
        self.name = name
        self.cache = WorkloadCache(name)
        self._own_directory = directory is None
        self.directory = directory or shared.sockets / socket_directory(workload.namespace, workload.name)
        self.socket = WorkloadSocket(
            self.directory,
            self.cache,
            clock=shared.clock,
            events=shared.events,
        )
        rotation = Rotation(rng=shared.rng, ratio=shared.rotation.ratio, jitter=shared.rotation.jitter)
        self.rotator = Rotator(
            spiffe_id=spiffe_id,
            token_file=token_file,
            signer=shared.signer,
            publish=self.cache.publish_identity,
            metrics=shared.metrics,
            clock=shared.clock,
            validity=shared.rotation.lifetime,
            rotation=rotation,
            trust=shared.trust,
        )
        self.rotator.trust.subscribe(self.rotator.take_roots)
        self._task: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()

    def same(
        self,
        workload: Workload,
        spiffe_id: SpiffeId,
        token_file: TokenSource,
        directory: Path | None = None,
    ) -> bool:
        """True when this entry can go on: uid, name, identity, token source and place are the same (d.4)."""
        return (
            self.workload.uid == workload.uid
            and self.workload.name == workload.name
            and self.spiffe_id == spiffe_id
            and self.token_file == token_file
            and directory in {None, self.directory}
        )

    def configure(self, workload: Workload, config: ResourceSet) -> None:
        """Publish a configuration."""
        self.workload = workload
        self.cache.publish_config(config)
        self.revision += 1

    def begin(self, tasks: asyncio.TaskGroup) -> None:
        """Start to obtain certificates, in a task that the group owns."""
        self._task = tasks.create_task(self.rotator.run(), name=f"rotator {self.name}")

    def fact(self) -> WorkloadFact:
        """What it has acknowledged of the bundle, and how old its certificate is."""
        snapshot = self.cache.snapshot
        identity = snapshot.identity
        verdict, look_at = self.cache.receivers.verdict(snapshot, time.monotonic())
        return WorkloadFact(
            name=self.name,
            bundle=identity.bundle,
            epoch=identity.svid.epoch if identity.svid is not None else None,
            verdict=verdict,
            look_at=look_at,
        )

    async def listen(self) -> None:
        """Serve the socket, or note why that is not possible; may be called again to retry."""
        async with self._starting:  # the agent's check and a call of the kubelet may come together
            try:
                if self.stopped or (self.problem is None and self.socket.intact()):
                    return
                await self.socket.stop()
                await self.socket.start()
                self.cache.reachable()
            except MeshError as error:
                if self.problem is None:
                    _log.error("a workload's socket cannot be served", workload=self.name, error=error)
                self.problem = error
            else:
                self.problem = None

    async def stop(self, *, remove: bool) -> None:
        """Stop renewing and serving.

        Args:
            remove: the workload is gone for good: its key, socket and directory go too.
        """
        self.rotator.trust.unsubscribe(self.rotator.take_roots)
        if self._task is not None:
            self._task.cancel()
        async with self._starting:
            self.stopped = True
            # A directory that the kubelet gave is emptied by the CSI driver, when the kubelet says so.
            await self.socket.stop(remove=remove and self._own_directory)
        if remove:
            self.cache.close()
