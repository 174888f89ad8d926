"""Mode kubernetes: volumes that the kubelet publishes, and watches, become states of the agent.

The order at a start matters (G-08): first the sockets of all volumes that an earlier agent served, then
the CSI driver's socket, then the watches. Identity needs no API server; configuration waits for the first
complete lists, so that a restarted agent never takes away what a proxy has.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry

from mesh.errors import Category, MeshError
from mesh.kube.access import find
from mesh.kube.api import KubeApi
from mesh.kube.client import KubeClient
from mesh.kube.discovery import discover
from mesh.obs.health import Health
from mesh.obs.logs import logger
from nodeagent.config import AgentSettings
from nodeagent.core.kube_world import KubeWorld, Snapshot
from nodeagent.core.volume import target_parts
from nodeagent.csi import DriverOptions, Host, NodeDriver
from nodeagent.csi_paths import leave_finished
from nodeagent.csi_server import CsiSocket, DriverService, RegistrationService
from nodeagent.files import DirectoryState
from nodeagent.kube_watches import KubeMetrics, KubeWatches
from nodeagent.state import VolumeState, read_boot_id
from nodeagent.volumes import Held, Volumes

CONNECT_AGAIN: Final = (0.5, 1.0, 2.0, 5.0)
"""Seconds between attempts to reach the API server at the start; the last one repeats."""
SETTLE: Final = 1.0
_log = logger("nodeagent.kube_source")
Apply = Callable[[DirectoryState], None]


class KubeSource:
    """Gives states to the agent; runs the CSI driver.

    Args:
        settings: configuration, of mode kubernetes.
        host: the agent, which serves sockets.
        health: told about `cluster` and `driver`.
        registry: metrics go here.
        connect: makes a client of the API server; default is by the settings.
        boot_id: of this boot; default is the kernel's.
    """

    def __init__(
        self,
        settings: AgentSettings,
        host: Host,
        *,
        health: Health,
        registry: CollectorRegistry,
        connect: Callable[[], KubeApi] | None = None,
        boot_id: str = "",
    ) -> None:
        kube = settings.kubernetes
        self._settings = settings
        self._host = host
        self._health = health
        self._metrics = KubeMetrics(registry)
        self._connect = connect if connect is not None else self._client
        self._debounce = settings.debounce.total_seconds()
        self._pods = kube.kubelet_dir / "pods"
        self._world = KubeWorld(settings.mesh.config(), cluster_domain=kube.cluster_domain)
        self._watches: KubeWatches | None = None
        self._api: KubeApi | None = None
        self._stopped = False
        self._cluster_changed = asyncio.Event()
        self._volumes_changed = asyncio.Event()
        state = VolumeState(kube.state_dir, boot_id=boot_id or read_boot_id())
        self.volumes = Volumes(state, self._volumes_changed.set)
        options = DriverOptions(
            name=kube.driver_name, node=kube.node_name, pods=self._pods, audience=kube.audience
        )
        self.driver = NodeDriver(options, self.volumes, host)
        endpoint = kube.kubelet_dir / "plugins" / kube.driver_name / "csi.sock"
        service = DriverService(self.driver, VERSION, self._metrics.csi_called)
        self._driver_socket = CsiSocket(endpoint, service.handlers(), make_parent=True)
        self._registration_socket = CsiSocket(
            kube.kubelet_dir / "plugins_registry" / f"{kube.driver_name}-reg.sock",
            RegistrationService(kube.driver_name, endpoint, self._registered).handlers(),
        )

    async def run(self, apply: Apply) -> None:
        """Work until cancelled.

        Raises:
            MeshError: the state directory or the kubelet's directory cannot be used.
        """
        loop = asyncio.get_running_loop()
        try:
            self.volumes.restore()
            self._apply(apply)
            await self._serve_restored()
            self._health.set("driver", ok=False, detail="the kubelet has not registered it yet")
            await self._driver_socket.start()
            await self._registration_socket.start()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._follow(apply), name="states")
                await self._start_watches(loop)
        finally:
            self._stopped = True
            if self._watches is not None:
                self._watches.stop()
            self._close_client()
            await self._registration_socket.stop()
            await self._driver_socket.stop()

    # --- start --------------------------------------------------------------------------------------

    async def _serve_restored(self) -> None:
        """Wait for the sockets of known volumes; one that cannot be served does not stop the others."""
        for held in self.volumes.items():
            try:
                await self._host.serving(held.volume.uid)
            except MeshError as error:
                name = f"{held.volume.namespace}/{held.volume.pod}"
                _log.error("a known volume is not served", workload=name, error=error)

    async def _start_watches(self, loop: asyncio.AbstractEventLoop) -> None:
        attempt = 0
        while True:
            try:
                self._watches = await asyncio.to_thread(self._open_watches, loop)
            except MeshError as error:
                if error.category is Category.FAILED_PRECONDITION and attempt == 0:
                    _log.error("the cluster cannot be watched", error=error)
                self._health.set("cluster", ok=False, detail=error.public)
                await asyncio.sleep(CONNECT_AGAIN[min(attempt, len(CONNECT_AGAIN) - 1)])
                attempt += 1
                continue
            self._watches.start()
            self._cluster_changed.set()
            return

    def _open_watches(self, loop: asyncio.AbstractEventLoop) -> KubeWatches:
        """Runs on a thread, and to its end even when the agent stops meanwhile."""
        kube = self._settings.kubernetes
        if self._api is None:
            self._api = self._connect()
        try:
            capabilities = discover(self._api)
        finally:
            if self._stopped:
                self._close_client()
        return KubeWatches(
            self._api,
            capabilities,
            node=kube.node_name,
            namespace=kube.namespace,
            changed=lambda: _post(loop, self._cluster_changed),
            metrics=self._metrics,
        )

    def _close_client(self) -> None:
        if isinstance(self._api, KubeClient):
            self._api.close()

    def _client(self) -> KubeApi:
        return KubeClient(
            find(self._settings.kubernetes.kubeconfig), user_agent=f"gatehouse-nodeagent/{VERSION}"
        )

    def _registered(self, problem: str) -> None:
        self._health.set("driver", ok=not problem, detail=problem)

    # --- states -------------------------------------------------------------------------------------

    async def _follow(self, apply: Apply) -> None:
        """Volumes count at once, the cluster's changes when they have settled."""
        while True:
            await self._wait_for_change()
            self._volumes_changed.clear()
            self._cluster_changed.clear()
            self._apply(apply)

    async def _wait_for_change(self) -> None:
        loop = asyncio.get_running_loop()
        deadline: float | None = None
        while not self._volumes_changed.is_set():
            now = loop.time()
            if self._cluster_changed.is_set():
                self._cluster_changed.clear()
                deadline = deadline if deadline is not None else now + SETTLE
            elif deadline is not None:
                return
            if deadline is not None and now >= deadline:
                return
            await self._one_of(self._debounce if deadline is not None else None)

    async def _one_of(self, seconds: float | None) -> None:
        """Wait until either event is set, or for so many seconds."""
        async with asyncio.TaskGroup() as tasks:
            waits = [
                tasks.create_task(event.wait()) for event in (self._volumes_changed, self._cluster_changed)
            ]
            await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()

    def _apply(self, apply: Apply) -> None:
        held = self.volumes.items()
        volumes = tuple(item.volume for item in held)
        snapshot = (
            self._watches.snapshot(volumes)
            if self._watches is not None
            else Snapshot(volumes=volumes, complete=False)
        )
        if self._watches is not None:
            missing = ", ".join(self._watches.missing())
            self._health.set(
                "cluster", ok=not missing, detail=f"not listed yet: {missing}" if missing else ""
            )
        self._metrics.volumes.set(len(held))
        self._end_jobs(snapshot)
        state = self._world.update(snapshot)
        apply(
            DirectoryState(
                world=state.world,
                token_files={item.volume.uid: item.token for item in held},
                directories=_directories(held),
                key_sets=state.key_sets,
                findings=state.world.findings,
            )
        )

    def _end_jobs(self, snapshot: Snapshot) -> None:
        """Without native sidecars a job ends only when its proxy does: tell the proxy when it may."""
        for volume in snapshot.volumes:
            pod = snapshot.pods.get((volume.namespace, volume.pod))
            if pod is None or pod.uid != volume.pod_uid or not pod.apps_ended:
                continue
            try:
                made = leave_finished(self._pods, target_parts(volume.target, str(self._pods)))
            except OSError as error:
                _log.warning("the proxy of a finished job cannot be told", pod=pod.name, error=error)
                continue
            if made:
                _log.info("a job's containers have ended, its proxy may end", pod=pod.name, uid=pod.uid)


VERSION: Final = "0.1.0"


def _directories(held: tuple[Held, ...]) -> dict[str, Path]:
    return {item.volume.uid: item.directory for item in held}


def _post(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    """Set an event from another thread; a loop that has ended needs none."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(event.set)
