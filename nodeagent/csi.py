"""The CSI node driver: what publish and unpublish do, free of gRPC (design b.5; rules R1 and R2).

A new pod may be refused with a reason, which the kubelet writes into an event of the pod. A pod that was
published once is never refused again: a final answer to a republish could make the kubelet delete the
directory that the running pod has mounted. The certificate is not waited for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from mesh.errors import Category, MeshError
from mesh.obs.logs import logger
from nodeagent.core.volume import (
    PublishRequest,
    Volume,
    VolumeCode,
    VolumeError,
    check_volume_id,
    parse_publish,
    target_parts,
    token_of,
)
from nodeagent.csi_paths import check_place, clear_target, has_marker
from nodeagent.volumes import Volumes

AUDIENCE: Final = "istio-ca"
_log = logger("nodeagent.csi")


class Host(Protocol):
    """What the driver needs from the agent."""

    async def serving(self, uid: str) -> None:
        """Return when the workload's socket is served.

        Raises:
            MeshError: it cannot be served, or not soon.
        """
        ...

    async def released(self, uid: str) -> None:
        """Return when the workload is no longer served.

        Raises:
            MeshError: not soon.
        """
        ...

    def fresh_token(self, uid: str) -> None:
        """A new token has come."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverOptions:
    """How the driver works.

    Attributes:
        name: of the CSIDriver object.
        node: name of this node.
        pods: the kubelet's directory of pods, the same path as the kubelet's.
        audience: of the tokens that the authority takes.
    """

    name: str
    node: str
    pods: Path
    audience: str = AUDIENCE


class NodeDriver:
    """Publishes and unpublishes volumes.

    Args:
        options: names and paths.
        volumes: what is published.
        host: serves the sockets.
    """

    def __init__(self, options: DriverOptions, volumes: Volumes, host: Host) -> None:
        self.options = options
        self._volumes = volumes
        self._host = host
        self._locks: dict[str, asyncio.Lock] = {}

    async def publish(self, request: PublishRequest) -> None:
        """Serve a volume, or take a fresh token for one that is served. Idempotent.

        Raises:
            MeshError: with category UNAVAILABLE whenever the pod may be running already.
        """
        async with self._lock(request.volume_id):
            running = self._was_published(request)
            try:
                await self._publish(request)
            except Exception as error:
                refusal = error if isinstance(error, MeshError) else _unexpected(error)
                if running and refusal.category is not Category.UNAVAILABLE:
                    refusal = _softened(refusal)
                _log.warning(
                    "a volume was not published",
                    republish=running,
                    error=refusal,
                    **_pod_of(request.context),
                )
                if refusal is error:
                    raise
                raise refusal from error

    async def unpublish(self, volume_id: str, target_path: str) -> None:
        """Stop serving a volume and remove its files. Unknown volumes and missing files are fine (F-80).

        Raises:
            MeshError: arguments that make no sense, or the file system refuses.
        """
        check_volume_id(volume_id)
        parts = target_parts(target_path, str(self.options.pods))
        async with self._lock(volume_id):
            held = self._volumes.drop(volume_id)
            if held is not None:
                await self._host.released(held.volume.uid)
            other = self._volumes.at(target_path)
            if other is not None:
                _log.warning("unpublish of a directory that another volume has", path=target_path)
                return
            try:
                clear_target(self.options.pods, parts)
            except OSError as error:
                raise VolumeError(
                    VolumeCode.TARGET,
                    f"target_path: cannot be cleared: {error.strerror}",
                    category=Category.UNAVAILABLE,
                ) from error
            if held is not None:
                _log.info("volume unpublished", **_facts(held.volume))
        self._locks.pop(volume_id, None)

    async def _publish(self, request: PublishRequest) -> None:
        pods = str(self.options.pods)
        volume = parse_publish(request, pods=pods)
        token = token_of(request, self.options.audience)
        check_place(self.options.pods, target_parts(volume.target, pods))
        before = self._volumes.get(volume.volume_id)
        held = self._volumes.put(volume, token)
        if before is not held:
            _log.info("volume published", **_facts(volume))
        await self._host.serving(volume.uid)
        self._host.fresh_token(volume.uid)

    def _was_published(self, request: PublishRequest) -> bool:
        """True when a pod may have this directory mounted, whatever the agent remembers."""
        if self._volumes.get(request.volume_id) is not None:
            return True
        try:
            target_parts(request.target_path, str(self.options.pods))
        except VolumeError:
            return False
        return has_marker(Path(request.target_path))

    def _lock(self, volume_id: str) -> asyncio.Lock:
        return self._locks.setdefault(volume_id, asyncio.Lock())


def _softened(error: MeshError) -> MeshError:
    return VolumeError(
        VolumeCode(error.code) if isinstance(error.code, VolumeCode) else VolumeCode.NOT_READY,
        f"the volume stays as it is: {error.public}",
        category=Category.UNAVAILABLE,
        private=error.private,
    )


def _unexpected(error: Exception) -> MeshError:
    # Never the text of the exception: it may quote the request, which holds tokens.
    return VolumeError(
        VolumeCode.UNEXPECTED,
        f"a fault of the node agent ({type(error).__name__}); see its log",
        category=Category.UNAVAILABLE,
    )


def _facts(volume: Volume) -> dict[str, str]:
    return {"pod": f"{volume.namespace}/{volume.pod}", "uid": volume.pod_uid, "volume": volume.name}


def _pod_of(context: Mapping[str, str]) -> dict[str, str]:
    """The pod's name for the log, from fields that hold no token."""
    prefix = "csi.storage.k8s.io/pod."
    return {key: context.get(prefix + key, "")[:256] for key in ("namespace", "name", "uid")}
