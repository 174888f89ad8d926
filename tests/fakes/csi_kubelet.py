"""What a kubelet asks of a CSI driver, with the fields as a real one (1.20) fills them."""

from __future__ import annotations

import json
from pathlib import Path

import grpc
import grpc.aio

from mesh._proto import csi_pb2 as csi
from mesh._proto import csi_pb2_grpc, pluginregistration_pb2, pluginregistration_pb2_grpc
from nodeagent.core.volume import PublishRequest

CSI_UID = "0b0f2d5e-0d5c-4b5e-9a35-0c9f8f2f6a10"
CSI_TOKENS = "csi.storage.k8s.io/serviceAccount.tokens"


def csi_tokens(token: str = "tok-1", audience: str = "istio-ca") -> str:
    """The value of the tokens' key."""
    return json.dumps({audience: {"token": token, "expirationTimestamp": "2030-01-01T00:00:00Z"}})


def csi_context(**changed: str) -> dict[str, str]:
    """The volume context of a pod `demo/web`; keys without their prefix, an empty value drops one."""
    facts = {
        "pod.name": "web",
        "pod.namespace": "demo",
        "pod.uid": CSI_UID,
        "serviceAccount.name": "web",
        "ephemeral": "true",
        "serviceAccount.tokens": csi_tokens(),
        **{key.replace("__", "."): value for key, value in changed.items()},
    }
    return {f"csi.storage.k8s.io/{key}": value for key, value in facts.items() if value}


def csi_target(pods: Path | str, uid: str = CSI_UID, name: str = "gatehouse") -> str:
    """Where a kubelet wants the volume."""
    return f"{pods}/{uid}/volumes/kubernetes.io~csi/{name}/mount"


def csi_make_parent(target: str) -> None:
    """What a kubelet does before it asks: everything but the last directory."""
    Path(target).parent.mkdir(parents=True, exist_ok=True)


def csi_request(
    target: str,
    context: dict[str, str] | None = None,
    *,
    volume_id: str = "csi-1",
    is_mount: bool = True,
    readonly: bool = True,
    secrets: dict[str, str] | None = None,
) -> PublishRequest:
    return PublishRequest(
        volume_id=volume_id,
        target_path=target,
        is_mount=is_mount,
        readonly=readonly,
        context=csi_context() if context is None else context,
        secrets=secrets or {},
    )


def csi_message(request: PublishRequest) -> csi.NodePublishVolumeRequest:
    """The same on the wire."""
    return csi.NodePublishVolumeRequest(
        volume_id=request.volume_id,
        target_path=request.target_path,
        readonly=request.readonly,
        volume_context=request.context,
        secrets=request.secrets,
        volume_capability=csi.VolumeCapability(
            access_mode=csi.VolumeCapability.AccessMode(mode=1),
            **(
                {"mount": csi.VolumeCapability.MountVolume()}
                if request.is_mount
                else {"block": csi.VolumeCapability.BlockVolume()}
            ),
        ),
    )


class CsiKubelet:
    """Calls a driver through its sockets.

    Args:
        directory: the kubelet's root directory.
        driver: name of the driver.
    """

    def __init__(self, directory: Path, driver: str = "csi.gatehouse.dev") -> None:
        self.pods = directory / "pods"
        self.registry = directory / "plugins_registry"
        self.driver = driver
        self.pods.mkdir(parents=True)
        self.registry.mkdir()

    async def register(self, *, accept: bool = True) -> Path:
        """Do what the plugin watcher does with a new socket; returns the driver's socket."""
        path = self.registry / f"{self.driver}-reg.sock"
        async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
            stub = pluginregistration_pb2_grpc.RegistrationStub(channel)  # type: ignore[no-untyped-call]  # generated
            info = await stub.GetInfo(pluginregistration_pb2.InfoRequest(), wait_for_ready=True, timeout=30)
            assert (info.type, info.name, list(info.supported_versions)) == (
                "CSIPlugin",
                self.driver,
                ["1.0.0"],
            )
            status = pluginregistration_pb2.RegistrationStatus(
                plugin_registered=accept, error="" if accept else "version is not supported"
            )
            await stub.NotifyRegistrationStatus(status, timeout=30)
        return Path(info.endpoint)

    def endpoint(self) -> Path:
        return self.pods.parent / "plugins" / self.driver / "csi.sock"

    async def publish(self, request: PublishRequest) -> str:
        """The status of a NodePublishVolume: `OK`, or code and text."""
        csi_make_parent(request.target_path)
        return await self._call("NodePublishVolume", csi_message(request))

    async def unpublish(self, volume_id: str, target: str) -> str:
        """The status of a NodeUnpublishVolume."""
        request = csi.NodeUnpublishVolumeRequest(volume_id=volume_id, target_path=target)
        return await self._call("NodeUnpublishVolume", request)

    async def _call(self, method: str, request: object) -> str:
        async with grpc.aio.insecure_channel(f"unix:{self.endpoint()}") as channel:
            stub = csi_pb2_grpc.NodeStub(channel)  # type: ignore[no-untyped-call]  # generated
            try:
                await getattr(stub, method)(request, timeout=10)
            except grpc.aio.AioRpcError as error:
                return f"{error.code().name}: {error.details()}"
        return "OK"
