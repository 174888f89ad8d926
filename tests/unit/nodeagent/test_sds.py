"""SDS over a real socket: stream, delta, fetch, limits, and the end of a stream."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from envoy.extensions.transport_sockets.tls.v3 import secret_pb2
from envoy.service.discovery.v3 import discovery_pb2 as d

from mesh.envoy.resources import CLUSTER, SECRET, ResourceSet
from nodeagent.core.session import Service
from nodeagent.core.snapshot import IdentitySnapshot
from nodeagent.stream import Streams, run_discovery, sotw_session
from tests.fakes.agent_server import Served, ask, ask_delta, ended, read, served, until
from tests.fakes.agent_session import IDENTITY, secrets

pytestmark = pytest.mark.asyncio


def names(response: d.DiscoveryResponse | d.DeltaDiscoveryResponse) -> list[str]:
    if isinstance(response, d.DeltaDiscoveryResponse):
        return [r.name for r in response.resources]
    return [secret_name(any_.value) for any_ in response.resources]


def secret_name(body: bytes) -> str:
    return str(secret_pb2.Secret.FromString(body).name)


async def test_stream_late_secret_rotation_and_client_end() -> None:
    """S-05, S-06 over a socket; the end of a stream is counted."""
    async with served() as web:
        call = web.sds.StreamSecrets()
        await call.write(ask("default"))
        await until("open", lambda: web.socket.open_streams == 1)
        web.cache.publish_identity(IDENTITY, secrets())
        first = await read(call)
        assert (names(first), first.type_url) == (["default"], SECRET)
        await call.write(ask("default", nonce=first.nonce))
        web.cache.publish_identity(IDENTITY, secrets(leaf="2"))
        second = await read(call)
        assert second.version_info != first.version_info
        await call.write(ask("default", nonce=second.nonce))
        await until("accepted", lambda: len(web.events.acks) == 2)
        await call.done_writing()
        assert await read(call) == grpc.aio.EOF
        assert web.events.opened == [("demo/web", "sds")]
        assert web.events.closed == [("demo/web", "sds", "client")]
        assert web.socket.open_streams == 0


async def test_delta_stream() -> None:
    async with served() as web:
        web.cache.publish_identity(IDENTITY, secrets())
        call = web.sds.DeltaSecrets()
        await call.write(ask_delta("ROOTCA"))
        first = await read(call)
        assert (names(first), first.resources[0].version) == (
            ["ROOTCA"],
            secrets().of_type(SECRET)["ROOTCA"].version,
        )
        await call.write(ask_delta(nonce=first.nonce))
        await until("accepted", lambda: web.events.acks == [(SECRET, ("ROOTCA",))])
        call.cancel()
        await until("closed", lambda: web.socket.open_streams == 0)


async def test_fetch() -> None:
    async with served() as web:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await web.sds.FetchSecrets(ask("default"))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "not come" in str(caught.value.details())
        web.cache.publish_identity(IDENTITY, secrets())
        assert names(await web.sds.FetchSecrets(ask("default", "ROOTCA", "x"))) == ["default", "ROOTCA"]
        assert names(await web.sds.FetchSecrets(ask("nothing"))) == []
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await web.sds.FetchSecrets(ask(type_url=CLUSTER))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("request_", "code", "text"),
    [
        pytest.param(ask(type_url=CLUSTER), grpc.StatusCode.INVALID_ARGUMENT, "xds_type_url", id="F-75"),
        pytest.param(
            ask(*map(str, range(10_000))),
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "xds_too_many_names",
            id="F-72-count",
        ),
        pytest.param(
            ask("x" * 65536), grpc.StatusCode.RESOURCE_EXHAUSTED, "xds_name_too_long", id="F-72-length"
        ),
        pytest.param(
            ask(node_bytes=1 << 20), grpc.StatusCode.RESOURCE_EXHAUSTED, "larger than max", id="message-size"
        ),
    ],
)
async def test_bad_request_ends_its_stream_only(
    request_: d.DiscoveryRequest, code: grpc.StatusCode, text: str
) -> None:
    async with served() as web:
        web.cache.publish_identity(IDENTITY, secrets())
        good = web.sds.StreamSecrets()
        await good.write(ask("default"))
        first = await read(good)
        bad = web.sds.StreamSecrets()
        await bad.write(request_)
        got, details = await ended(bad)
        assert (got, text in details) == (code, True), details
        await good.write(ask("default", "ROOTCA", nonce=first.nonce))
        assert names(await read(good)) == ["ROOTCA"]


async def test_first_request_of_an_envoy_fits() -> None:
    """Its node is about 60 KiB (prototype 1)."""
    async with served() as web:
        web.cache.publish_identity(IDENTITY, secrets())
        call = web.sds.StreamSecrets()
        await call.write(ask("default", node_bytes=200_000))
        assert names(await read(call)) == ["default"]


async def test_f73_streams_of_one_socket_are_capped() -> None:
    async with served(streams=5) as web:
        calls = [web.sds.StreamSecrets() for _ in range(5)]
        for call in calls:
            await call.write(ask("default"))
        await until("open", lambda: web.socket.open_streams == 5)
        sixth = web.sds.StreamSecrets()
        code, details = await ended(sixth)
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "5 streams at once" in details
        assert ("demo/web", "sds", "socket_too_many_streams") in web.events.closed
        calls[0].cancel()
        await until("one left", lambda: web.socket.open_streams == 4)
        again = web.sds.StreamSecrets()
        web.cache.publish_identity(IDENTITY, secrets())
        await again.write(ask("default"))
        assert names(await read(again)) == ["default"]


async def test_f73_storm_of_500_streams() -> None:
    async with served(streams=20) as web:
        web.cache.publish_identity(IDENTITY, secrets())
        calls = [web.sds.StreamSecrets() for _ in range(500)]

        async def outcome(call: object) -> str:
            try:
                await call.write(ask("default"))
                return "served" if names(await read(call)) == ["default"] else "odd"
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                return "refused"

        # Those beyond the connection's own limit wait in the client: only the admitted ones answer.
        async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(outcome(call)) for call in calls]
            await until(
                "20 are served", lambda: sum(t.done() and t.result() == "served" for t in running) >= 20
            )
            assert web.socket.open_streams <= 20
            for task, call in zip(running, calls, strict=True):
                call.cancel()
                task.cancel()
        await until("all closed", lambda: web.socket.open_streams == 0)


async def test_stop_ends_streams_with_unavailable() -> None:
    async with served() as web:
        web.cache.publish_identity(IDENTITY, secrets())
        calls = [web.sds.StreamSecrets(), web.sds.DeltaSecrets()]
        await calls[0].write(ask("default"))
        await calls[1].write(ask_delta("default"))
        for call in calls:
            await read(call)
        await web.socket.stop()
        for call in calls:
            code, details = await ended(call)
            assert (code, "stopping" in details) == (grpc.StatusCode.UNAVAILABLE, True)


async def test_workload_that_goes_ends_its_streams() -> None:
    async with served() as web:
        call = web.sds.StreamSecrets()
        await call.write(ask("default"))
        await until("open", lambda: web.socket.open_streams == 1)
        web.cache.close()
        assert (await ended(call))[0] is grpc.StatusCode.UNAVAILABLE


async def test_no_snapshot_is_missed_while_a_stream_opens() -> None:
    """Published after the session was made and before its stream waits for changes."""

    class Context:
        def __init__(self) -> None:
            self.written: asyncio.Queue[bytes] = asyncio.Queue()
            self.requests = [ask("default")]

        async def read(self) -> object:
            if self.requests:
                return self.requests.pop()
            return await asyncio.Event().wait()

        async def write(self, message: bytes) -> None:
            self.written.put_nowait(message)

    async with served() as web:
        streams = Streams(web.cache)
        session = sotw_session(streams, Service.SDS)
        web.cache.publish_identity(IDENTITY, secrets())
        context = Context()
        async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
            running = tasks.create_task(run_discovery(streams, context, session, Service.SDS))
            message = d.DiscoveryResponse.FromString(await context.written.get())
            running.cancel()
        assert names(message) == ["default"]


async def test_client_that_does_not_read_is_not_queued_for() -> None:
    """Back-pressure: many rotations pass while it sleeps; it then sees few, the newest among them."""
    big = "x" * 300_000
    async with served() as web:
        call = web.sds.StreamSecrets()
        await call.write(ask("default"))
        await until("open", lambda: web.socket.open_streams == 1)
        for i in range(200):
            web.cache.publish_identity(IDENTITY, secrets(leaf=f"{i}-{big}"))
            await asyncio.sleep(0)
        web.cache.publish_identity(IDENTITY, secrets(leaf="last"))
        wanted = secrets(leaf="last").of_type(SECRET)["default"].body
        got = 0
        while (await read(call)).resources[0].value != wanted:
            got += 1
        assert got < 150


async def test_events_name_foreign_identities() -> None:
    """F-71 over a socket."""
    async with served() as web:
        web.cache.publish_identity(IDENTITY, secrets())
        call = web.sds.StreamSecrets()
        other = "spiffe://cluster.local/ns/demo/sa/other"
        await call.write(ask(other, "default"))
        assert names(await read(call)) == ["default"]
        assert web.events.unauthorised == [("demo/web", SECRET, other)]


async def test_without_any_identity_the_stream_waits() -> None:
    async with served() as web:
        web.cache.publish_identity(IdentitySnapshot(), ResourceSet())
        await _still_open(web)


async def _still_open(web: Served) -> None:
    call = web.sds.StreamSecrets()
    await call.write(ask("default"))
    await until("open", lambda: web.socket.open_streams == 1)
    web.cache.publish_identity(IDENTITY, secrets())
    assert names(await read(call)) == ["default"]


@pytest.mark.parametrize("error", [grpc.aio.InternalError, grpc.aio.UsageError], ids=["batch", "usage"])
async def test_client_that_leaves_during_a_write_is_no_failure(error: type[Exception]) -> None:
    """gRPC cancels the call of a client that left, but a write may notice it first (seen 1 in 900)."""

    class Context:
        async def read(self) -> object:
            return ask("ROOTCA")

        async def write(self, message: bytes) -> None:
            raise error

    async with served() as web:
        web.cache.publish_identity(IDENTITY, secrets())
        streams = Streams(web.cache, events=web.events)
        await run_discovery(streams, Context(), sotw_session(streams, Service.SDS), Service.SDS)
        assert web.events.closed == [("demo/web", "sds", "client")]
        assert streams.open == 0


async def test_fault_of_ours_is_reported_as_one() -> None:
    class Context:
        async def read(self) -> object:
            raise ZeroDivisionError

    async with served() as web:
        streams = Streams(web.cache, events=web.events)
        with pytest.raises(ZeroDivisionError):
            await run_discovery(streams, Context(), sotw_session(streams, Service.SDS), Service.SDS)
        assert web.events.closed == [("demo/web", "sds", "internal")]
