"""The authority with real keys, real sockets and real TLS, inside the test process."""

from __future__ import annotations

import contextlib
import datetime as dt
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from ca import config as configuration
from ca.runtime import Runtime
from mesh._proto import istio_ca_pb2, istio_ca_pb2_grpc
from tests.fakes import ca_tokens
from tests.fakes.ca_factory import new_key

Metadata = Sequence[tuple[str, str]]


def make_csr(key: ec.EllipticCurvePrivateKey, *uris: str) -> str:
    """A PKCS#10 request with an empty subject."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    if uris:
        san = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(u) for u in uris])
        builder = builder.add_extension(san, critical=True)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


@dataclass(frozen=True)
class Answer:
    """What a call came back with."""

    code: grpc.StatusCode
    text: str = ""
    chain: tuple[str, ...] = ()
    trailers: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return self.code is grpc.StatusCode.OK

    @property
    def leaf(self) -> x509.Certificate:
        return x509.load_pem_x509_certificate(self.chain[0].encode())

    @property
    def reason(self) -> str:
        """Code in google.rpc.ErrorInfo; empty when there is none."""
        return self._detail(error_details_pb2.ErrorInfo()).reason

    @property
    def retry_seconds(self) -> float:
        """Delay in google.rpc.RetryInfo."""
        found: dt.timedelta = self._detail(error_details_pb2.RetryInfo()).retry_delay.ToTimedelta()
        return found.total_seconds()

    def _detail(self, kind: Any) -> Any:
        status = status_pb2.Status.FromString(self.trailers.get("grpc-status-details-bin", b""))
        for detail in status.details:
            packed = any_pb2.Any.FromString(detail.SerializeToString())
            if packed.Unpack(kind):
                return kind
        return kind


def bearer(token: str) -> tuple[str, str]:
    return ("authorization", f"Bearer {token}")


class Client:
    """Speaks the CSR API on one channel."""

    def __init__(
        self, port: int, roots: bytes, *, key: bytes | None = None, chain: bytes | None = None
    ) -> None:
        credentials = grpc.ssl_channel_credentials(roots, key, chain)
        # A channel of its own: gRPC shares connections between equal channels of a process.
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
        self.channel = grpc.secure_channel(f"localhost:{port}", credentials, options)
        self._stub = istio_ca_pb2_grpc.IstioCertificateServiceStub(self.channel)

    def create(self, headers: Metadata, csr: str, *, timeout: float = 30, **fields: Any) -> Answer:
        request = istio_ca_pb2.IstioCertificateRequest(csr=csr, **fields)
        try:
            response, call = self._stub.CreateCertificate.with_call(
                request, metadata=headers, timeout=timeout
            )
        except grpc.RpcError as e:
            return answer_of(e)
        return Answer(
            grpc.StatusCode.OK, chain=tuple(response.cert_chain), trailers=dict(call.trailing_metadata())
        )

    def raw(self, method: str, message: bytes, metadata: Metadata, *, timeout: float = 10) -> Answer:
        """Any bytes to any method."""
        try:
            self.channel.unary_unary(method)(message, metadata=metadata, timeout=timeout)
        except grpc.RpcError as e:
            return answer_of(e)
        return Answer(grpc.StatusCode.OK)

    def close(self) -> None:
        self.channel.close()


def answer_of(error: Any) -> Answer:
    return Answer(error.code(), error.details(), trailers=dict(error.trailing_metadata() or ()))


class Lines(logging.Handler):
    """Collects what the audit trail says."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(dict(getattr(record, "gatehouse_fields", {})))


@contextlib.contextmanager
def audit_lines() -> Iterator[list[dict[str, Any]]]:
    """The fields of every audit line written inside the block."""
    logger, lines = logging.getLogger("ca.audit"), Lines()
    level, propagate = logger.level, logger.propagate
    logger.addHandler(lines)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield lines.found
    finally:
        logger.removeHandler(lines)
        logger.setLevel(level)
        logger.propagate = propagate


class RunningCa:
    """A started `Runtime` and clients for it."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.roots = (runtime.config.state_dir / "root-cert.pem").read_bytes()
        self._clients: list[Client] = []

    def client(self, **credentials: Any) -> Client:
        """A client of the token port, or of the mTLS port when it has a certificate."""
        port = self.runtime.grpc.mtls_port if credentials else self.runtime.grpc.port
        client = Client(port, self.roots, **credentials)
        self._clients.append(client)
        return client

    def token(self, **changes: Any) -> tuple[str, str]:
        """Header with a good token; see `ca_tokens.claims`."""
        return bearer(ca_tokens.token(self.runtime.clock.now(), **changes))

    def csr(self) -> str:
        return make_csr(new_key())

    def close(self) -> None:
        for client in self._clients:
            client.close()
        self.runtime.stop()


def settings(directory: Path, **overrides: object) -> dict[str, object]:
    """Settings for loopback, every port chosen by the system."""
    (directory / "jwks.json").write_bytes(ca_tokens.jwks())
    return {
        "state_dir": str(directory / "state"),
        "token.issuer": ca_tokens.ISSUER,
        "token.audiences": ca_tokens.AUDIENCE,
        "token.jwks_file": str(directory / "jwks.json"),
        "listen.grpc": "127.0.0.1:0",
        "listen.mtls": "127.0.0.1:0",
        "listen.http": "127.0.0.1:0",
        "listen.plain": "127.0.0.1:0",
        "limits.caller_in_flight": 16,
        "reload_interval": "100ms",
        "drain": "2s",
        **{name.replace("__", "."): value for name, value in overrides.items()},
    }


def load(directory: Path, **overrides: object) -> configuration.CaConfig:
    """A configuration with these settings."""
    return configuration.load(None, {}, settings(directory, **overrides))


@contextlib.contextmanager
def running_ca(directory: Path, **overrides: object) -> Iterator[RunningCa]:
    """An authority that serves until the block ends."""
    running = RunningCa(Runtime(load(directory, **overrides)))
    running.runtime.start()
    try:
        yield running
    finally:
        running.close()
