"""The CSR API over gRPC and TLS: `/istio.v1.auth.IstioCertificateService/CreateCertificate`.

Two ports, because gRPC for Python cannot ask for a client certificate without requiring it: one for
callers with a token, and an optional one that requires a certificate (a token may come along).

A thread per request is the fastest way to serve here, but a thread that waits for a message that never
comes is lost to everybody (F-29). So the method is served as if its request were a stream: the headers
arrive first, the caller is authenticated and limited on them, and only then, and not for long, a thread
waits for the message. A peer without a credential can hold no thread.
"""

from __future__ import annotations

import datetime as dt
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, Final, NoReturn, Protocol

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from ca.authn import Presented
from ca.limits import LimitCode, LimitError
from ca.pool import RequestPool
from ca.requests import CertificateRequest, RequestCode, RequestError, RequestHead
from ca.service import IssuanceService
from ca.serving import ServingCertificate
from mesh._proto import istio_ca_pb2
from mesh.clock import Clock
from mesh.errors import Category, Code, MeshError
from mesh.obs import logs

METHOD: Final = "/istio.v1.auth.IstioCertificateService/CreateCertificate"
MAX_MESSAGE_BYTES: Final = 64 << 10
MAX_METADATA_BYTES: Final = 16 << 10
SERVER_TIME_KEY: Final = "gatehouse-server-time-ms"
_HANDSHAKE_MS = 10_000
_WATCH_SECONDS = 0.25

_log = logs.logger(__name__)

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
"""The one place where a category becomes a gRPC status."""


class TransportCode(Code):
    """Why the server did not start."""

    LISTEN = "grpc_listen"


class TransportError(MeshError):
    """The server cannot serve."""


class CertificateHandler(grpc.GenericRpcHandler):
    """Turns calls into requests and results or refusals into answers.

    Args:
        pool: runs the calls; it knows how long one stood in line.
    """

    def __init__(
        self,
        service: IssuanceService,
        clock: Clock,
        *,
        watch: Watch,
        pool: RequestPool,
        queue_wait: dt.timedelta,
        observe_queue: Callable[[float], None],
        certificates: bool,
    ) -> None:
        self._service = service
        self._clock = clock
        self._watch = watch
        self._waited = pool.waited
        self._queue_wait = queue_wait.total_seconds()
        self._observe_queue = observe_queue
        self._certificates = certificates
        self._handler: grpc.RpcMethodHandler[Any, Any] = grpc.stream_unary_rpc_method_handler(self._create)

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Called when the headers of a call are there; a thread is found later."""
        if handler_call_details.method != METHOD:
            return None
        return self._handler

    def _create(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        head = self._head(context)
        try:
            self._check_wait(head, self._waited(), active=context.is_active())
            issued = self._service.issue(head, partial(self._read, messages, context), self._clock.now())
        except MeshError as e:
            self._abort(context, e)
        except Exception:  # noqa: BLE001 - the edge: whatever it is, the caller gets INTERNAL
            _log.exception("issuing failed")
            self._abort(context, _FAULT)
        context.set_trailing_metadata(((SERVER_TIME_KEY, self._time()),))
        response = istio_ca_pb2.IstioCertificateResponse(cert_chain=issued.chain())
        return response.SerializeToString()

    def _head(self, context: grpc.ServicerContext) -> RequestHead:
        authorization: list[str] = []
        clusters: list[str] = []
        for name, value in context.invocation_metadata():
            if name == "authorization":
                authorization.append(str(value))
            elif name == "clusterid":
                clusters.append(str(value))
        certificates = peer_certificates(context.auth_context()) if self._certificates else ()
        return RequestHead(Presented(authorization, certificates), clusters, context.peer())

    def _check_wait(self, head: RequestHead, waited: float, *, active: bool) -> None:
        """No work for a caller that has given up, or will have."""
        self._observe_queue(waited)
        error: MeshError
        if not active:
            error = RequestError(RequestCode.GONE, "the call was cancelled", category=Category.UNAVAILABLE)
        elif waited > self._queue_wait:
            retry_after = dt.timedelta(seconds=self._queue_wait)
            error = LimitError(LimitCode.QUEUE, "the authority is busy; try again later", retry_after)
        else:
            return
        self._service.refuse(error, None, peer=head.peer)
        raise error

    def _read(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> CertificateRequest:
        with self._watch.guard(context.cancel):
            try:
                message = next(messages, None)
            except grpc.RpcError as e:
                raise RequestError(
                    RequestCode.LATE,
                    "the request did not arrive in time; send it with the call",
                    category=Category.UNAVAILABLE,
                    private="cancelled, or the message did not arrive in time",
                ) from e
        if message is None:
            raise RequestError(RequestCode.MALFORMED, "the call ended without a request message")
        return parse_request(message)

    def _time(self) -> str:
        return str(int(self._clock.now().timestamp() * 1000))

    def _abort(self, context: grpc.ServicerContext, error: MeshError) -> NoReturn:
        context.set_trailing_metadata(((SERVER_TIME_KEY, self._time()), *refusal_metadata(error)))
        context.abort(STATUS[error.category], public_text(error))


_FAULT = RequestError(RequestCode.INTERNAL, "internal error; try again later", category=Category.INTERNAL)


def peer_certificates(facts: Mapping[str, Any]) -> tuple[bytes, ...]:
    """The client certificate chain, leaf first; empty on a port that asks for none.

    gRPC gives the leaf by itself, and a chain that may or may not repeat it.
    """
    leaf = tuple(facts.get("x509_pem_cert", ()))
    chain = b"".join(facts.get("x509_pem_cert_chain", ()))
    for block in leaf:
        chain = chain.replace(block, b"")
    return (*leaf, chain) if chain.strip() else leaf


def public_text(error: MeshError) -> str:
    """What the caller is told: nothing about a fault of ours."""
    return _FAULT.public if error.category is Category.INTERNAL else error.public


def refusal_metadata(error: MeshError) -> tuple[tuple[str, str | bytes], ...]:
    """Trailing metadata of a refusal: the reason code, and when to come back.

    An unauthenticated caller learns no reason.
    """
    metadata: list[tuple[str, str | bytes]] = []
    status = status_pb2.Status(code=STATUS[error.category].value[0], message=public_text(error))
    if error.category not in {Category.UNAUTHENTICATED, Category.INTERNAL}:
        _add(status, error_details_pb2.ErrorInfo(reason=str(error.code), domain="gatehouse.dev"))
    if isinstance(error, LimitError):
        delay = duration_pb2.Duration()
        delay.FromTimedelta(error.retry_after)
        _add(status, error_details_pb2.RetryInfo(retry_delay=delay))
        milliseconds = int(error.retry_after.total_seconds() * 1000)
        metadata.append(("grpc-retry-pushback-ms", str(milliseconds)))
    if status.details:
        metadata.append(("grpc-status-details-bin", status.SerializeToString()))
    return tuple(metadata)


def _add(status: status_pb2.Status, detail: Any) -> None:
    packed = any_pb2.Any()
    packed.Pack(detail)
    status.details.append(packed)


_NO_METADATA: Final[Mapping[str, Any]] = MappingProxyType({})


def parse_request(message: bytes) -> CertificateRequest:
    """Decode the request message.

    Raises:
        RequestError: not an IstioCertificateRequest, or nested too deeply (F-08).
    """
    try:
        request = istio_ca_pb2.IstioCertificateRequest.FromString(message)
    except DecodeError as e:
        raise RequestError(
            RequestCode.MALFORMED, "the request is no istio.v1.auth.IstioCertificateRequest message"
        ) from e
    metadata: Mapping[str, Any] = _NO_METADATA
    if request.HasField("metadata"):
        metadata = {name: _plain(value) for name, value in request.metadata.fields.items()}
    return CertificateRequest(request.csr, request.validity_duration, metadata)


def _plain(value: Any) -> Any:
    """A value of a Struct; of lists and objects only that they are."""
    match value.WhichOneof("kind"):
        case "string_value":
            return value.string_value
        case "number_value":
            return value.number_value
        case "bool_value":
            return value.bool_value
        case "list_value":
            return ["..."]
        case "struct_value":
            return {"...": "..."}
        case _:
            return None


class Watch:
    """Cancels calls that keep a thread waiting for too long; one thread watches all of them.

    Args:
        also: called with the time of `time.monotonic` a few times a second.
    """

    def __init__(self, limit: dt.timedelta, also: Callable[[float], None] = lambda _: None) -> None:
        self._limit = limit.total_seconds()
        self._also = also
        self._waiting: dict[int, tuple[float, Callable[[], object]]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="grpc-watch", daemon=True)

    def start(self) -> None:
        """Start watching."""
        self._thread.start()

    def stop(self) -> None:
        """Stop watching; calls that still wait are cancelled."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self.sweep(float("inf"))

    def guard(self, cancel: Callable[[], object]) -> AbstractContextManager[None]:
        """Have `cancel` called unless the block ends in time."""
        return _Guard(self._waiting, self._limit, cancel)

    def sweep(self, now: float) -> None:
        """Cancel what waits beyond its time."""
        for deadline, cancel in list(self._waiting.values()):
            if now >= deadline:
                cancel()

    def _run(self) -> None:
        while not self._stop.wait(_WATCH_SECONDS):
            now = time.monotonic()
            self.sweep(now)
            self._also(now)


class _Guard:
    """An entry among the calls that wait. A class and no generator: one is made for each request."""

    __slots__ = ("_entry", "_waiting")

    def __init__(
        self,
        waiting: dict[int, tuple[float, Callable[[], object]]],
        limit: float,
        cancel: Callable[[], object],
    ) -> None:
        self._waiting = waiting
        self._entry = (time.monotonic() + limit, cancel)

    def __enter__(self) -> None:
        self._waiting[threading.get_ident()] = self._entry  # a thread waits for one message at a time

    def __exit__(self, *_: object) -> None:
        self._waiting.pop(threading.get_ident(), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """Bounds of the transport.

    Attributes:
        tokens: address of the port without client certificates.
        mtls: address of the port that requires one; None for none.
        share_ports: other processes serve the same ports (SO_REUSEPORT).
        queue: calls in progress and waiting, beyond which gRPC refuses.
    """

    tokens: str
    mtls: str | None = None
    share_ports: bool = False
    threads: int = 32
    queue: int = 1024
    streams_per_connection: int = 100
    connection_age: dt.timedelta = dt.timedelta(minutes=30)
    drain: dt.timedelta = dt.timedelta(seconds=10)

    def channel_arguments(self) -> list[tuple[str, int]]:
        """GRPC's names for them."""
        return [
            ("grpc.so_reuseport", int(self.share_ports)),
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_metadata_size", MAX_METADATA_BYTES),
            ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
            ("grpc.max_concurrent_streams", self.streams_per_connection),
            ("grpc.max_connection_age_ms", int(self.connection_age.total_seconds() * 1000)),
            ("grpc.max_connection_age_grace_ms", int(self.drain.total_seconds() * 1000)),
            ("grpc.max_connection_idle_ms", 300_000),
            ("grpc.server_handshake_timeout_ms", _HANDSHAKE_MS),
            # Notice dead peers; close on peers that ping more often than every 10 s (F-29).
            ("grpc.keepalive_time_ms", 60_000),
            ("grpc.keepalive_timeout_ms", 20_000),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            ("grpc.http2.max_ping_strikes", 2),
        ]


class CertificateSource(Protocol):
    """Where the serving certificate comes from, e.g. `ca.serving.Serving`."""

    @property
    def current(self) -> ServingCertificate:
        """The certificate in force."""
        ...


class GrpcServer:
    """The server with its ports.

    Raises:
        TransportError: a port cannot be bound.
    """

    def __init__(
        self,
        handler: CertificateHandler,
        watch: Watch,
        pool: RequestPool,
        serving: CertificateSource,
        options: ServerOptions,
    ) -> None:
        self._watch = watch
        self._options = options
        self._pool = pool
        self._server = grpc.server(
            pool,  # type: ignore[arg-type] # it has what the server uses: submit
            handlers=[handler],
            options=options.channel_arguments(),
            maximum_concurrent_rpcs=options.queue + options.threads,
        )
        self.port = self._bind(options.tokens, serving, require_client=False)
        self.mtls_port = self._bind(options.mtls, serving, require_client=True) if options.mtls else 0

    def start(self) -> None:
        """Serve."""
        self._watch.start()
        self._server.start()

    def stop(self) -> None:
        """Refuse new calls, let those in flight end for `drain`, then cancel them. May be called again."""
        self._server.stop(self._options.drain.total_seconds()).wait()
        self._watch.stop()
        self._pool.shutdown(wait=True)

    def drain(self) -> None:
        """Refuse new calls from now on; returns at once."""
        self._server.stop(self._options.drain.total_seconds())

    def _bind(self, address: str, serving: CertificateSource, *, require_client: bool) -> int:
        credentials = _credentials(serving, require_client=require_client)
        try:
            port = self._server.add_secure_port(address, credentials)
        except RuntimeError as e:
            port, reason = 0, str(e)[:200]
        else:
            reason = "no port"
        if port == 0:
            raise TransportError(
                TransportCode.LISTEN,
                f"cannot listen on {address}; is the port in use, or the address not of this machine?",
                category=Category.FAILED_PRECONDITION,
                private=f"cannot listen on {address}: {reason}",
            )
        return port


def _credentials(serving: CertificateSource, *, require_client: bool) -> grpc.ServerCredentials:
    """Credentials that follow the serving certificate: gRPC asks at each handshake."""
    held = [serving.current]

    def configuration(certificate: ServingCertificate) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration(
            [(certificate.key_pem, certificate.chain_pem)],
            root_certificates=certificate.roots_pem if require_client else None,
        )

    def changed() -> grpc.ServerCertificateConfiguration | None:
        current = serving.current
        if current is held[0]:
            return None
        held[0] = current
        return configuration(current)

    return grpc.dynamic_ssl_server_credentials(
        configuration(held[0]),
        changed,  # type: ignore[arg-type] # None means no change; the stub does not know
        require_client_authentication=require_client,
    )
