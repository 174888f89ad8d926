"""The CSR API over gRPC and TLS: `/istio.v1.auth.IstioCertificateService/CreateCertificate`.

Two ports, because gRPC for Python cannot ask for a client certificate without requiring it: one for
callers with a token, and an optional one that requires a certificate (a token may come along). How a call
is read and refused: `ca.grpc_calls`. The Sync API beside it: `ca.trust_handler`.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, Final, Protocol

import grpc
from google.protobuf.message import DecodeError

from ca.core.authority import Issuer
from ca.grpc_calls import SERVER_TIME_KEY, Calls
from ca.grpc_refusals import FAULT
from ca.grpc_watch import Watch
from ca.pool import RequestPool
from ca.requests import CertificateRequest, RequestCode, RequestError
from ca.service import IssuanceService
from ca.serving import ServingCertificate
from mesh._proto import istio_ca_pb2
from mesh.errors import Category, Code, MeshError
from mesh.obs import logs

METHOD: Final = "/istio.v1.auth.IstioCertificateService/CreateCertificate"
MAX_MESSAGE_BYTES: Final = 64 << 10
MAX_METADATA_BYTES: Final = 16 << 10
GENERATION_KEY: Final = "gatehouse-bundle-generation"
"""Trailer: generation of the bundle in the answer; left out when it is 0."""
EPOCH_KEY: Final = "gatehouse-issuer-epoch"
"""Trailer: epoch of the root that signed; left out when it is 0."""
_HANDSHAKE_MS = 10_000

_log = logs.logger(__name__)


class TransportCode(Code):
    """Why the server did not start."""

    LISTEN = "grpc_listen"


class TransportError(MeshError):
    """The server cannot serve."""


class CertificateHandler(grpc.GenericRpcHandler):
    """Turns calls into requests and results or refusals into answers."""

    def __init__(self, service: IssuanceService, calls: Calls) -> None:
        self._service = service
        self._calls = calls
        self._handler: grpc.RpcMethodHandler[Any, Any] = grpc.stream_unary_rpc_method_handler(self._create)

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Called when the headers of a call are there; a thread is found later."""
        if handler_call_details.method != METHOD:
            return None
        return self._handler

    def _create(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        calls = self._calls
        head = calls.head(context)
        try:
            calls.check_wait(head, context)
            issued = self._service.issue(head, partial(self._read, messages, context), calls.clock.now())
        except MeshError as e:
            calls.abort(context, e)
        except Exception:  # noqa: BLE001 - the edge: whatever it is, the caller gets INTERNAL
            _log.exception("issuing failed")
            calls.abort(context, FAULT)
        context.set_trailing_metadata(((SERVER_TIME_KEY, calls.time()), *rotation_metadata(issued.issuer)))
        response = istio_ca_pb2.IstioCertificateResponse(cert_chain=issued.chain())
        return response.SerializeToString()

    def _read(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> CertificateRequest:
        return parse_request(self._calls.read(messages, context))


def rotation_metadata(issuer: Issuer) -> tuple[tuple[str, str], ...]:
    """Trailing metadata that says which bundle and which root a certificate came with (docs/adr/0014)."""
    if not (issuer.generation or issuer.epoch):
        return ()
    given = ((GENERATION_KEY, issuer.generation), (EPOCH_KEY, issuer.epoch))
    return tuple((name, str(number)) for name, number in given if number)


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
        handlers: Sequence[grpc.GenericRpcHandler],
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
            handlers=list(handlers),
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
