"""gRPC in front of the CSI driver, and its registration with the kubelet (b.5, b.6).

Two sockets: the driver's, in a directory of its own, and one in the kubelet's registration directory that
tells where the first one is. A request is never logged: it carries tokens.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

import grpc
import grpc.aio
from google.protobuf import wrappers_pb2

from mesh._proto import csi_pb2 as csi
from mesh._proto import pluginregistration_pb2 as registration
from mesh.errors import Category, Code, MeshError
from mesh.obs.logs import logger
from nodeagent.core.volume import PublishRequest
from nodeagent.csi import NodeDriver

VERSION: Final = "1.0.0"
"""Of the CSI specification, as the kubelet negotiates it."""
_MAX_MESSAGE: Final = 1 << 20
_STATUS: Final = {
    Category.INVALID_ARGUMENT: grpc.StatusCode.INVALID_ARGUMENT,
    Category.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Category.FAILED_PRECONDITION: grpc.StatusCode.FAILED_PRECONDITION,
    Category.RESOURCE_EXHAUSTED: grpc.StatusCode.RESOURCE_EXHAUSTED,
}
_log = logger("nodeagent.csi_server")
Request = TypeVar("Request")
Response = TypeVar("Response")
Context = Any  # grpc.aio.ServicerContext of whatever messages


class CsiServerCode(Code):
    """Why the driver cannot listen."""

    SOCKET = "csi_socket"


class CsiServerError(MeshError):
    """A socket of the driver cannot be made."""


class DriverService:
    """`csi.v1.Identity` and `csi.v1.Node`.

    Args:
        driver: does the work.
        vendor_version: of this program.
        told: each answer to `publish` and `unpublish`: `ok`, or the code of the refusal.
    """

    def __init__(self, driver: NodeDriver, vendor_version: str, told: Callable[[str, str], None]) -> None:
        self._driver = driver
        self._vendor_version = vendor_version
        self._told = told

    def handlers(self) -> tuple[grpc.GenericRpcHandler, ...]:
        """For `grpc.aio.Server.add_generic_rpc_handlers`."""
        return (
            grpc.method_handlers_generic_handler(
                "csi.v1.Identity",
                {
                    "GetPluginInfo": _unary(self.plugin_info, csi.GetPluginInfoRequest),
                    "GetPluginCapabilities": _unary(
                        self.plugin_capabilities, csi.GetPluginCapabilitiesRequest
                    ),
                    "Probe": _unary(self.probe, csi.ProbeRequest),
                },
            ),
            grpc.method_handlers_generic_handler(
                "csi.v1.Node",
                {
                    "NodePublishVolume": _unary(self.publish, csi.NodePublishVolumeRequest),
                    "NodeUnpublishVolume": _unary(self.unpublish, csi.NodeUnpublishVolumeRequest),
                    "NodeGetCapabilities": _unary(self.node_capabilities, csi.NodeGetCapabilitiesRequest),
                    "NodeGetInfo": _unary(self.node_info, csi.NodeGetInfoRequest),
                },
            ),
        )

    async def plugin_info(self, _: object, _context: Context) -> csi.GetPluginInfoResponse:
        """Name and version."""
        return csi.GetPluginInfoResponse(name=self._driver.options.name, vendor_version=self._vendor_version)

    async def plugin_capabilities(self, _: object, _context: Context) -> csi.GetPluginCapabilitiesResponse:
        """None: a node driver."""
        return csi.GetPluginCapabilitiesResponse()

    async def probe(self, _: object, _context: Context) -> csi.ProbeResponse:
        """Who answers is ready: the socket is opened after all volumes are served."""
        return csi.ProbeResponse(ready=wrappers_pb2.BoolValue(value=True))

    async def node_info(self, _: object, _context: Context) -> csi.NodeGetInfoResponse:
        """The node's name."""
        return csi.NodeGetInfoResponse(node_id=self._driver.options.node)

    async def node_capabilities(self, _: object, _context: Context) -> csi.NodeGetCapabilitiesResponse:
        """None: nothing is staged."""
        return csi.NodeGetCapabilitiesResponse()

    async def publish(
        self, request: csi.NodePublishVolumeRequest, context: Context
    ) -> csi.NodePublishVolumeResponse:
        """Publish, and republish with fresh tokens."""
        wanted = PublishRequest(
            volume_id=request.volume_id,
            target_path=request.target_path,
            is_mount=request.volume_capability.WhichOneof("access_type") == "mount",
            readonly=request.readonly,
            context=dict(request.volume_context),
            secrets=dict(request.secrets),
        )
        await self._answer("publish", self._driver.publish(wanted), context)
        return csi.NodePublishVolumeResponse()

    async def unpublish(
        self, request: csi.NodeUnpublishVolumeRequest, context: Context
    ) -> csi.NodeUnpublishVolumeResponse:
        """Unpublish; as often as it is asked for."""
        work = self._driver.unpublish(request.volume_id, request.target_path)
        await self._answer("unpublish", work, context)
        return csi.NodeUnpublishVolumeResponse()

    async def _answer(self, call: str, work: Awaitable[None], context: Context) -> None:
        try:
            await work
        except MeshError as error:
            self._told(call, str(error.code))
            await _abort(context, error)
        self._told(call, "ok")


class RegistrationService:
    """`pluginregistration.Registration`: the kubelet asks what is behind the socket it found.

    Args:
        name: driver name.
        endpoint: path of the driver's socket, as the kubelet sees it.
        told: called with the kubelet's verdict: an empty text for success, else the reason.
    """

    def __init__(self, name: str, endpoint: Path, told: Callable[[str], None]) -> None:
        self._name = name
        self._endpoint = endpoint
        self._told = told

    def handlers(self) -> tuple[grpc.GenericRpcHandler, ...]:
        """For `grpc.aio.Server.add_generic_rpc_handlers`."""
        return (
            grpc.method_handlers_generic_handler(
                "pluginregistration.Registration",
                {
                    "GetInfo": _unary(self.info, registration.InfoRequest),
                    "NotifyRegistrationStatus": _unary(self.notify, registration.RegistrationStatus),
                },
            ),
        )

    async def info(self, _: object, _context: Context) -> registration.PluginInfo:
        """What kind of plugin, and where."""
        return registration.PluginInfo(
            type="CSIPlugin", name=self._name, endpoint=str(self._endpoint), supported_versions=[VERSION]
        )

    async def notify(
        self, request: registration.RegistrationStatus, _context: Context
    ) -> registration.RegistrationStatusResponse:
        """The kubelet's verdict; after a refusal it asks again by itself."""
        if request.plugin_registered:
            _log.info("the kubelet has registered the driver", driver=self._name)
            self._told("")
        else:
            _log.error("the kubelet refused the driver", driver=self._name, detail=request.error[:500])
            self._told(request.error[:500] or "refused by the kubelet")
        return registration.RegistrationStatusResponse()


class CsiSocket:
    """One gRPC server on one Unix socket that only root may open.

    Args:
        path: of the socket.
        handlers: what it serves.
        make_parent: make the socket's directory, and the one above it, and remove the first in the end.
    """

    def __init__(
        self, path: Path, handlers: tuple[grpc.GenericRpcHandler, ...], *, make_parent: bool = False
    ) -> None:
        self.path = path
        self._handlers = handlers
        self._make_parent = make_parent
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        """Listen; replaces the socket of an earlier agent in one step.

        Raises:
            CsiServerError: the directory is missing or cannot be written.
        """
        # The kubelet's watcher does not look at names that begin with a dot.
        temporary = self.path.with_name(f".{secrets.token_hex(6)}")
        server = grpc.aio.server(options=[("grpc.max_receive_message_length", _MAX_MESSAGE)])
        server.add_generic_rpc_handlers(self._handlers)
        try:
            if self._make_parent:
                for directory in (self.path.parents[1], self.path.parent):
                    directory.mkdir(mode=0o750, exist_ok=True)
            server.add_insecure_port(f"unix:{temporary}")
            await server.start()
            temporary.chmod(0o600)
            temporary.replace(self.path)
        except (OSError, RuntimeError) as error:
            await server.stop(None)
            raise CsiServerError(
                CsiServerCode.SOCKET,
                f"{self.path}: cannot listen ({error}); the agent needs the kubelet's directory"
                " (kubernetes.kubelet_dir) under the same path as the kubelet",
                category=Category.FAILED_PRECONDITION,
            ) from error
        self._server = server

    async def stop(self, grace: float = 1.0) -> None:
        """Take the socket away, let calls in flight end."""
        server, self._server = self._server, None
        if server is not None:
            with suppress(OSError):
                self.path.unlink()
                if self._make_parent:
                    self.path.parent.rmdir()
            await server.stop(grace)


async def _abort(context: Context, error: MeshError) -> NoReturn:
    # Whatever has no status of its own is "try again": a final answer is only given on purpose.
    await context.abort(
        _STATUS.get(error.category, grpc.StatusCode.UNAVAILABLE), f"{error.public} [{error.code}]"
    )
    raise AssertionError("unreachable: abort raises")


def _unary(call: Callable[[Any, Context], Awaitable[Any]], request: Any) -> grpc.RpcMethodHandler[Any, Any]:
    return grpc.unary_unary_rpc_method_handler(
        call, request_deserializer=request.FromString, response_serializer=_serialize
    )


def _serialize(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data
