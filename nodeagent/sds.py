"""Secret discovery for clients that want secrets alone: by stream, by delta and by single fetch."""

from __future__ import annotations

from typing import Final

import grpc
from envoy.service.discovery.v3 import discovery_pb2
from envoy.service.secret.v3 import sds_pb2  # noqa: F401 - registers the service for reflection

from mesh.errors import Category, Code, MeshError
from nodeagent.core.session import Service
from nodeagent.stream import Context, Streams, delta_session, run_discovery, sotw_session

SERVICE_NAME: Final = "envoy.service.secret.v3.SecretDiscoveryService"


class FetchCode(Code):
    """Why a fetch was refused."""

    NOT_YET = "sds_not_yet"


class FetchError(MeshError):
    """A single fetch that cannot be answered."""


class SecretDiscovery:
    """Servicer of `SecretDiscoveryService` for one workload."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams

    async def stream(self, _requests: object, context: Context) -> None:
        """StreamSecrets."""
        session = sotw_session(self._streams, Service.SDS)
        await run_discovery(self._streams, context, session, Service.SDS)

    async def delta(self, _requests: object, context: Context) -> None:
        """DeltaSecrets."""
        session = delta_session(self._streams, Service.SDS)
        await run_discovery(self._streams, context, session, Service.SDS)

    async def fetch(self, request: discovery_pb2.DiscoveryRequest, context: Context) -> bytes:
        """FetchSecrets: what of the asked names exists now, in one response."""
        async with self._streams.call(Service.SDS.value, context):
            response = sotw_session(self._streams, Service.SDS).fetch(request)
            if not response.resources and not len(self._streams.cache.snapshot.secrets):
                raise FetchError(
                    FetchCode.NOT_YET,
                    "no secret yet: the first certificate has not come; try again",
                    category=Category.UNAVAILABLE,
                )
            return response.encode()
        raise AssertionError("unreachable: the call ends by return or by raising")

    def handler(self) -> grpc.GenericRpcHandler:
        """For `grpc.aio.Server.add_generic_rpc_handlers`; responses are bytes already."""
        return grpc.method_handlers_generic_handler(
            SERVICE_NAME,
            {
                "StreamSecrets": grpc.stream_stream_rpc_method_handler(
                    self.stream, discovery_pb2.DiscoveryRequest.FromString, None
                ),
                "DeltaSecrets": grpc.stream_stream_rpc_method_handler(
                    self.delta, discovery_pb2.DeltaDiscoveryRequest.FromString, None
                ),
                "FetchSecrets": grpc.unary_unary_rpc_method_handler(
                    self.fetch, discovery_pb2.DiscoveryRequest.FromString, None
                ),
            },
        )
