"""An authority for agent tests: the real `ca.core` behind the agent's `Signer`, or behind gRPC and TLS.

What may go wrong is said by the test: `fail_with` makes the next calls fail, `forge` changes replies.
"""

from __future__ import annotations

import datetime as dt
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from ca.core.authority import Authority
from ca.core.csr import prove
from ca.core.profile import Profile
from mesh._proto import istio_ca_pb2, trust_pb2
from mesh.clock import Clock
from mesh.spiffe import SpiffeId
from nodeagent.ca_client import SERVER_TIME_KEY, CaError, CaReply
from nodeagent.core.rotation import Priority
from tests.fakes.ca_factory import Hierarchy, key_pem, make_hierarchy, new_key


class NodeagentCa:
    """Issues certificates for whoever asks, with the code of the real authority.

    Args:
        identity: that every token proves.
        lifetime: of leaves; seconds are allowed.
        hierarchy: its certificates; default is a new one, made a hundred days ago.
    """

    def __init__(
        self,
        clock: Clock,
        identity: SpiffeId,
        *,
        lifetime: dt.timedelta = dt.timedelta(hours=24),
        hierarchy: Hierarchy | None = None,
    ) -> None:
        self.clock = clock
        self.identity = identity
        self.hierarchy = hierarchy or make_hierarchy(now=clock.now() - dt.timedelta(days=100))
        self.trusted = self.hierarchy.roots  # what the "TLS connection" was verified with
        self.profile = Profile(
            default_lifetime=lifetime,
            min_lifetime=min(lifetime, dt.timedelta(minutes=5)),
            allow_short_lifetimes=True,
        )
        self.fail_with: CaError | None = None
        self.forge: Callable[[list[str]], list[str]] = list
        self.skew = dt.timedelta(0)
        self.generation = 0  # of the bundle, and
        self.epoch = 0  # of the root that signs: what replies say
        self.granted: tuple[str, ...] = ()  # DNS names that the identity may ask for
        self.forge_names: tuple[str, ...] | None = None  # DNS names to issue instead
        self.csrs: list[str] = []
        self.tokens: list[str] = []
        self.priorities: list[Priority] = []
        self._made: tuple[Hierarchy, Authority] | None = None
        self.in_flight = 0
        self.most_in_flight = 0

    def issue(self, csr_pem: str, requested_seconds: int = 0) -> list[str]:
        """The reply of the real code."""
        authority = self._authority()
        key = prove(csr_pem, self.identity, self.profile, self.granted)
        if self.forge_names is not None:
            key = key._replace(dns=self.forge_names)
        issued = authority.sign(
            authority.prepare(key, self.identity, requested_seconds, self.clock.now() + self.skew)
        )
        return [issued.leaf_pem, *issued.intermediates_pem, "".join(issued.roots_pem)]

    def _authority(self) -> Authority:
        """Of the current hierarchy; making one costs more than signing with it."""
        if self._made is None or self._made[0] is not self.hierarchy:
            self._made = self.hierarchy, Authority(self.hierarchy.issuer(), self.profile)
        return self._made[1]

    async def sign(
        self, *, csr_pem: str, token_file: Path, priority: Priority, validity: dt.timedelta | None = None
    ) -> CaReply:
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            self.csrs.append(csr_pem)
            self.priorities.append(priority)
            if self.fail_with is not None:
                raise self.fail_with
            chain = self.forge(self.issue(csr_pem, int(validity.total_seconds()) if validity else 0))
            return CaReply(
                cert_chain=tuple(chain),
                server_time=self.clock.now() + self.skew,
                roots_der=self.trusted,
                generation=self.generation,
                epoch=self.epoch,
            )
        finally:
            self.in_flight -= 1


def nodeagent_serving_cert(
    hierarchy: Hierarchy, now: dt.datetime, name: str = "localhost"
) -> tuple[bytes, bytes]:
    """Key and chain (PEM) of a TLS server under the hierarchy's root."""
    key = new_key()
    issuer = x509.load_der_x509_certificate(hierarchy.issuing_der)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=True)
        .sign(hierarchy.issuing_key, hashes.SHA256())
    )
    chain = certificate.public_bytes(Encoding.PEM) + issuer.public_bytes(Encoding.PEM)
    return key_pem(key).encode(), chain


class NodeagentGrpcCa:
    """The CSR API over real gRPC and TLS, answering by a script.

    Attributes:
        script: statuses for the next calls, one each; when it is empty calls succeed.
        before: awaited in each call, to hold it.
        more: trailers beside the time.
        told: what agents reported by the Sync API; `answer` is what they get.
    """

    def __init__(self, core: NodeagentCa) -> None:
        self.core = core
        self.script: list[tuple[grpc.StatusCode, str]] = []
        self.tokens: list[str] = []
        self.calls = itertools.count()
        self.before: Callable[[], object] | None = None
        self.trailer: str | None = None
        self.more: tuple[tuple[str, str], ...] = ()
        self.told: list[trust_pb2.SyncRequest] = []
        self.answer = trust_pb2.SyncResponse(roots=[core.hierarchy.roots_pem], poll_after_ms=60_000)

    async def create(
        self, request: istio_ca_pb2.IstioCertificateRequest, context: grpc.aio.ServicerContext
    ) -> istio_ca_pb2.IstioCertificateResponse:
        next(self.calls)
        metadata = dict(context.invocation_metadata() or ())
        self.tokens.append(str(metadata.get("authorization", "")))
        if self.before is not None:
            await self.before()  # type: ignore[misc]  # a coroutine function in tests
        if self.script:
            await context.abort(*self.script.pop(0))
        now = self.core.clock.now()
        value = self.trailer if self.trailer is not None else str(int(now.timestamp() * 1000))
        context.set_trailing_metadata(((SERVER_TIME_KEY, value), *self.more))
        chain = self.core.forge(self.core.issue(request.csr, request.validity_duration))
        return istio_ca_pb2.IstioCertificateResponse(cert_chain=chain)

    async def sync(
        self, request: trust_pb2.SyncRequest, context: grpc.aio.ServicerContext
    ) -> trust_pb2.SyncResponse:
        self.tokens.append(str(dict(context.invocation_metadata() or ()).get("authorization", "")))
        if self.script:
            await context.abort(*self.script.pop(0))
        self.told.append(request)
        return self.answer

    @asynccontextmanager
    async def serve(self, port: int = 0, hierarchy: Hierarchy | None = None) -> AsyncIterator[int]:
        """Listen on loopback; yields the port."""
        server = grpc.aio.server()
        handler = grpc.unary_unary_rpc_method_handler(
            self.create,
            request_deserializer=istio_ca_pb2.IstioCertificateRequest.FromString,
            response_serializer=istio_ca_pb2.IstioCertificateResponse.SerializeToString,
        )
        service = grpc.method_handlers_generic_handler(
            "istio.v1.auth.IstioCertificateService", {"CreateCertificate": handler}
        )
        syncs = grpc.unary_unary_rpc_method_handler(
            self.sync,
            request_deserializer=trust_pb2.SyncRequest.FromString,
            response_serializer=trust_pb2.SyncResponse.SerializeToString,
        )
        trust = grpc.method_handlers_generic_handler("gatehouse.trust.v1.TrustService", {"Sync": syncs})
        server.add_generic_rpc_handlers((service, trust))
        key, chain = nodeagent_serving_cert(hierarchy or self.core.hierarchy, self.core.clock.now())
        credentials = grpc.ssl_server_credentials(((key, chain),))
        bound = server.add_secure_port(f"127.0.0.1:{port}", credentials)
        await server.start()
        try:
            yield bound
        finally:
            await server.stop(0)
