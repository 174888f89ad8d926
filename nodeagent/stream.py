"""What the servicers share: admission of streams, the loop of a discovery stream, status codes."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final

import grpc
import grpc.aio

from mesh.errors import Category, Code, MeshError
from nodeagent.cache import CacheClosed, Watch, WorkloadCache
from nodeagent.core.session import DeltaSession, Service, SotwSession
from nodeagent.core.subscriptions import Response, SessionEvents, SessionLimits, SilentEvents

Context = grpc.aio.ServicerContext[Any, Any]

STATUS: Final = {
    Category.INVALID_ARGUMENT: grpc.StatusCode.INVALID_ARGUMENT,
    Category.UNAUTHENTICATED: grpc.StatusCode.UNAUTHENTICATED,
    Category.PERMISSION_DENIED: grpc.StatusCode.PERMISSION_DENIED,
    Category.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Category.RESOURCE_EXHAUSTED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Category.FAILED_PRECONDITION: grpc.StatusCode.FAILED_PRECONDITION,
    Category.UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    Category.INTERNAL: grpc.StatusCode.INTERNAL,
}
"""The one place where the agent's sockets pick a gRPC status."""

_NONCE_BYTES = 9


class StreamCode(Code):
    """Why a call on a workload's socket was refused."""

    TOO_MANY_STREAMS = "socket_too_many_streams"
    STOPPING = "socket_stopping"


class ClientGoneError(Exception):
    """The client left while a message was being written to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamLimits:
    """Bounds of one socket.

    Attributes:
        streams: calls open at once (F-73); one Envoy on ADS needs one.
        session: bounds of one discovery stream.
    """

    streams: int = 100
    session: SessionLimits = field(default_factory=SessionLimits)


class Streams:
    """The open calls of one socket: who they serve, how many they are, and their end.

    Args:
        cache: the workload's snapshot.
        events: told what happens.
        limits: bounds.
    """

    def __init__(
        self,
        cache: WorkloadCache,
        *,
        events: SessionEvents | None = None,
        limits: StreamLimits = StreamLimits(),
    ) -> None:
        self.cache = cache
        self.events: SessionEvents = events if events is not None else SilentEvents()
        self.limits = limits
        self.watch: Watch = cache.watch()
        self.open = 0

    def close(self) -> None:
        """End all streams with UNAVAILABLE, so that clients come back to whoever listens next."""
        self.watch.close()

    def call(self, service: str, context: Context) -> Call:
        """Run one call: count it, report it, and turn a MeshError into its gRPC status."""
        return Call(self, service, context)


class Call:
    """`async with` around one call; see `Streams.call`."""

    __slots__ = ("_context", "_service", "_streams")

    def __init__(self, streams: Streams, service: str, context: Context) -> None:
        self._streams = streams
        self._service = service
        self._context = context

    async def __aenter__(self) -> None:
        streams = self._streams
        workload = streams.cache.workload_id
        if streams.open >= streams.limits.streams:
            streams.events.on_stream_close(workload, self._service, StreamCode.TOO_MANY_STREAMS)
            await self._context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"this socket serves {streams.limits.streams} streams at once; close some, then try again"
                f" [{StreamCode.TOO_MANY_STREAMS}]",
            )
        streams.open += 1
        streams.events.on_stream_open(workload, self._service)

    async def __aexit__(
        self, _: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        """True for a client that left: nobody needs to hear of it."""
        reason = "internal"
        try:
            match error:
                case None | ClientGoneError() | asyncio.CancelledError():
                    reason = "client"
                case CacheClosed():
                    reason = StreamCode.STOPPING
                    await self._context.abort(
                        grpc.StatusCode.UNAVAILABLE, f"the agent is stopping; try again [{reason}]"
                    )
                case MeshError():
                    reason = error.code
                    await self._context.abort(STATUS[error.category], str(error))
                case _:
                    pass  # gRPC reports it, and ends the call with UNKNOWN
        finally:
            self._streams.open -= 1
            self._streams.events.on_stream_close(self._streams.cache.workload_id, self._service, reason)
        return isinstance(error, ClientGoneError)


def new_nonce() -> str:
    """An unpredictable nonce (S-02)."""
    return secrets.token_urlsafe(_NONCE_BYTES)


def sotw_session(streams: Streams, service: Service) -> SotwSession:
    """A session of a new stream in the state-of-the-world form."""
    return SotwSession(
        workload=streams.cache.workload_id,
        service=service,
        snapshot=streams.cache.snapshot,
        new_nonce=new_nonce,
        status=streams.cache.status_book,
        events=streams.events,
        limits=streams.limits.session,
    )


def delta_session(streams: Streams, service: Service) -> DeltaSession:
    """A session of a new stream in the incremental form."""
    return DeltaSession(
        workload=streams.cache.workload_id,
        service=service,
        snapshot=streams.cache.snapshot,
        new_nonce=new_nonce,
        status=streams.cache.status_book,
        events=streams.events,
        limits=streams.limits.session,
    )


async def send(context: Context, message: bytes) -> None:
    """Write one message.

    Raises:
        ClientGoneError: the client left. gRPC then cancels the call, but a write may notice it first.
    """
    try:
        await context.write(message)
    except grpc.aio.BaseError as error:
        raise ClientGoneError from error


def run_discovery(
    streams: Streams,
    context: Context,
    session: SotwSession | DeltaSession,
    service: Service,
) -> Coroutine[Any, Any, None]:
    """Serve one discovery stream until the client leaves or the socket stops.

    Requests are read only when the answers to the last one are written: a client that does not read
    cannot make us queue. Snapshots that pass while a write waits are skipped; the newest counts.
    """
    return _Discovery(streams, context, session).run(streams.call(service.value, context))


class _Discovery:
    """One discovery stream.

    Requests are read by the call's own task. Snapshots are pushed by another, which lives only while
    there is something to push: a node has a hundred streams that are silent nearly all of the time.
    """

    __slots__ = ("_context", "_failure", "_pusher", "_reader", "_session", "_streams", "_turn")

    def __init__(self, streams: Streams, context: Context, session: SotwSession | DeltaSession) -> None:
        self._streams = streams
        self._context = context
        self._session = session
        self._turn = asyncio.Lock()  # one writer, and responses leave in the order of their nonces
        self._reader: asyncio.Task[Any] | None = None
        self._pusher: asyncio.Task[None] | None = None
        self._failure: Exception | None = None

    async def run(self, call: Call) -> None:
        """Until the client leaves. One coroutine for all of it: each one more is kept for each open stream.

        Raises:
            CacheClosed: the socket stops.
            MeshError: the client's request is refused.
            ClientGoneError: the client left during a write.
        """
        async with call:
            if self._streams.watch.closed:
                raise CacheClosed
            self._reader = asyncio.current_task()
            self._streams.watch.attach(self._wake)
            self._streams.cache.receivers.open(self._session, proxy=True)
            on_request: Callable[[Any], list[Response]] = self._session.on_request
            try:
                self._wake()  # what was published since the session was made must not be missed
                while (request := await self._context.read()) is not grpc.aio.EOF:
                    async with self._turn:
                        for response in on_request(request):
                            await send(self._context, response.encode())
            except asyncio.CancelledError:
                # Either the client left, or the pusher has failed.
                if self._failure is None or (self._reader is not None and self._reader.uncancel()):
                    raise
                raise self._failure from None
            finally:
                self._streams.watch.detach(self._wake)
                self._streams.cache.receiver_closed(self._session)
                if self._pusher is not None:
                    self._pusher.cancel()

    def _wake(self) -> None:
        if self._streams.watch.closed:
            self._fail(CacheClosed())
        elif self._pusher is None and self._behind():
            loop = asyncio.get_running_loop()
            self._pusher = loop.create_task(self._push(loop.time()))

    def _behind(self) -> bool:
        return self._streams.watch.snapshot.revision > self._session.revision

    async def _push(self, since: float) -> None:
        streams, wrote = self._streams, False
        try:
            while self._behind():
                async with self._turn:
                    for response in self._session.on_snapshot(streams.watch.snapshot):
                        await send(self._context, response.encode())
                        wrote = True
            if wrote:
                seconds = asyncio.get_running_loop().time() - since
                streams.events.on_pushed(streams.cache.workload_id, seconds)
        except Exception as error:  # noqa: BLE001 - whatever it is, it ends the stream by the reader's way
            self._fail(error)
        finally:
            self._pusher = None

    def _fail(self, error: Exception) -> None:
        """End the stream with that error."""
        if self._failure is None and self._reader is not None:
            self._failure = error
            self._reader.cancel()
