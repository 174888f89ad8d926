"""A workload's socket with a channel to it, for tests of the servicers."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from envoy.service.discovery.v3 import ads_pb2_grpc
from envoy.service.discovery.v3 import discovery_pb2 as d
from envoy.service.secret.v3 import sds_pb2_grpc

from mesh.clock import Clock
from nodeagent.cache import WorkloadCache
from nodeagent.core.subscriptions import SessionLimits
from nodeagent.sockets import SocketOptions, WorkloadSocket, prepare_base
from nodeagent.stream import StreamLimits
from tests.fakes.agent_events import RecordedEvents

DEADLINE = 40.0


@dataclass
class Served:
    cache: WorkloadCache
    socket: WorkloadSocket
    channel: grpc.aio.Channel
    events: RecordedEvents

    @property
    def sds(self) -> Any:
        return sds_pb2_grpc.SecretDiscoveryServiceStub(self.channel)

    @property
    def ads(self) -> Any:
        return ads_pb2_grpc.AggregatedDiscoveryServiceStub(self.channel)

    def workload_api(self, method: str, *, streams: bool = True) -> Callable[..., Any]:
        """A call by name, in raw bytes."""
        kind = self.channel.unary_stream if streams else self.channel.unary_unary
        return kind(f"/SpiffeWorkloadAPI/{method}")


@asynccontextmanager
async def served(
    *,
    streams: int = 100,
    names: int = 5000,
    clock: Clock | None = None,
    grace: float = 0.5,
) -> AsyncIterator[Served]:
    with tempfile.TemporaryDirectory(prefix="gh-", dir="/tmp") as base:
        prepare_base(Path(base))
        events = RecordedEvents()
        cache = WorkloadCache("demo/web")
        limits = StreamLimits(streams=streams, session=SessionLimits(names=names))
        options = SocketOptions(limits=limits, grace_seconds=grace)
        socket = WorkloadSocket(Path(base, "w"), cache, clock=clock, events=events, options=options)
        await socket.start()
        async with grpc.aio.insecure_channel(f"unix:{socket.path}") as channel:
            try:
                yield Served(cache, socket, channel, events)
            finally:
                await socket.stop()


async def read(call: Any) -> Any:
    """The next message, or EOF; fails instead of hanging."""
    async with asyncio.timeout(DEADLINE):
        return await call.read()


async def ended(call: Any) -> tuple[grpc.StatusCode, str]:
    """Status of a call that must end now, whatever it sends before."""
    async with asyncio.timeout(DEADLINE):
        return await call.code(), await call.details()


async def until(what: str, condition: Callable[[], bool]) -> None:
    """Let the loop run until the condition holds."""
    try:
        async with asyncio.timeout(DEADLINE):
            while not condition():  # noqa: ASYNC110 - what is waited for has no event
                await asyncio.sleep(0.001)
    except TimeoutError:
        pytest.fail(f"never: {what}")


def ask(
    *names: str, nonce: str = "", type_url: str = "", nack: str = "", node_bytes: int = 0
) -> d.DiscoveryRequest:
    request = d.DiscoveryRequest(resource_names=names, response_nonce=nonce, type_url=type_url)
    if nack:
        request.error_detail.message = nack
    if node_bytes:
        request.node.id = "n"
        request.node.metadata["padding"] = "x" * node_bytes
    return request


def ask_delta(*names: str, nonce: str = "", type_url: str = "") -> d.DeltaDiscoveryRequest:
    return d.DeltaDiscoveryRequest(resource_names_subscribe=names, response_nonce=nonce, type_url=type_url)
