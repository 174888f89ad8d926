"""Aggregated discovery: every type on one stream, the secrets too (D10b)."""

from __future__ import annotations

from typing import Final

import grpc
from envoy.service.discovery.v3 import (
    ads_pb2,  # noqa: F401 - registers the service for reflection
    discovery_pb2,
)

from nodeagent.core.session import Service
from nodeagent.stream import Context, Streams, delta_session, run_discovery, sotw_session

SERVICE_NAME: Final = "envoy.service.discovery.v3.AggregatedDiscoveryService"


class AggregatedDiscovery:
    """Servicer of `AggregatedDiscoveryService` for one workload."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams

    async def stream(self, _requests: object, context: Context) -> None:
        """StreamAggregatedResources."""
        session = sotw_session(self._streams, Service.ADS)
        await run_discovery(self._streams, context, session, Service.ADS)

    async def delta(self, _requests: object, context: Context) -> None:
        """DeltaAggregatedResources."""
        session = delta_session(self._streams, Service.ADS)
        await run_discovery(self._streams, context, session, Service.ADS)

    def handler(self) -> grpc.GenericRpcHandler:
        """For `grpc.aio.Server.add_generic_rpc_handlers`; responses are bytes already."""
        return grpc.method_handlers_generic_handler(
            SERVICE_NAME,
            {
                "StreamAggregatedResources": grpc.stream_stream_rpc_method_handler(
                    self.stream, discovery_pb2.DiscoveryRequest.FromString, None
                ),
                "DeltaAggregatedResources": grpc.stream_stream_rpc_method_handler(
                    self.delta, discovery_pb2.DeltaDiscoveryRequest.FromString, None
                ),
            },
        )
