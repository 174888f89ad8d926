"""gRPC client of the CSR API, `istio.v1.auth.IstioCertificateService/CreateCertificate` (b.1), and of the
Sync API beside it, `gatehouse.trust.v1.TrustService/Sync` (docs/adr/0014).

One channel serves the whole agent. The CA root file is read again at every attempt and the channel is
made anew when it changed or when the authority could not be reached, so a rotated root (G-14) or a moved
authority needs no restart. The workload's token is read again at every attempt (G-13) and is never kept.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import grpc

from mesh._proto import istio_ca_pb2, istio_ca_pb2_grpc, trust_pb2
from mesh.errors import Category, Code, MeshError
from mesh.x509.pem import PemError, decode_certificates
from nodeagent.core.rotation import Priority
from nodeagent.core.svid import MAX_REPLY_CHARS
from nodeagent.core.trust import Standing
from nodeagent.slots import PrioritySlots
from nodeagent.tokens import MAX_TOKEN_BYTES, MemoryToken, TokenSource

MAX_IN_FLIGHT: Final = 8
DEADLINE: Final = 10.0
MAX_ROOT_FILE_BYTES: Final = 1 << 20
SERVER_TIME_KEY: Final = "gatehouse-server-time-ms"
"""Trailer with the authority's time: milliseconds since the epoch."""

GENERATION_KEY: Final = "gatehouse-bundle-generation"
"""Trailer: generation of the bundle in the reply."""
EPOCH_KEY: Final = "gatehouse-issuer-epoch"
"""Trailer: epoch of the root that signed."""
SYNC_METHOD: Final = "/gatehouse.trust.v1.TrustService/Sync"

_NUMBER = re.compile(r"[0-9]{1,15}")
_MILLISECONDS = re.compile(r"[0-9]{1,14}")  # until the year 5138
_TOKEN = re.compile(rb"[\x21-\x7e]+")
_OPTIONS: Final = (
    ("grpc.max_receive_message_length", 2 * MAX_REPLY_CHARS),
    ("grpc.max_metadata_size", 16 * 1024),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.enable_retries", 0),  # the rotator retries, with a policy of its own
)


class CaCode(Code):
    """Why a certificate could not be had from the authority."""

    ROOT_FILE = "ca_root_file"
    TOKEN_FILE = "ca_token_file"  # noqa: S105 - a reason code
    UNREACHABLE = "ca_unreachable"
    UNTRUSTED = "ca_untrusted"
    DEADLINE = "ca_deadline"
    UNAUTHENTICATED = "ca_unauthenticated"
    DENIED = "ca_denied"
    INVALID = "ca_invalid_request"
    NOT_FOUND = "ca_not_found"
    OVERLOADED = "ca_overloaded"
    PRECONDITION = "ca_failed_precondition"
    INTERNAL = "ca_internal"


class CaError(MeshError):
    """The authority gave no certificate, or could not be asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaReply:
    """A reply as received; nothing of it has been checked.

    Attributes:
        cert_chain: PEM texts, leaf first, root bundle last.
        server_time: the authority's time from the trailer, None when it sent none.
        roots_der: the roots that the connection was verified with.
        generation: of the bundle, from the trailer; 0 when the authority sent none that can be read.
        epoch: of the root that signed; likewise.
    """

    cert_chain: tuple[str, ...]
    server_time: dt.datetime | None
    roots_der: tuple[bytes, ...] = field(repr=False)
    generation: int = 0
    epoch: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncReply:
    """What the authority tells of its bundle; nothing of it has been checked.

    Attributes:
        roots_pem: one certificate each.
        poll_after: seconds until it wants to be asked again.
        renew_within: seconds over which certificates of earlier epochs are to be renewed; 0 = when due.
        roots_der: the roots that the connection was verified with.
    """

    roots_pem: tuple[str, ...]
    generation: int
    epoch: int
    poll_after: float
    renew_within: float
    roots_der: tuple[bytes, ...] = field(repr=False)


class _Dial:
    """A channel and the roots it trusts; closed when it is retired and the last call has ended."""

    def __init__(self, channel: grpc.aio.Channel, roots_pem: bytes, roots_der: tuple[bytes, ...]) -> None:
        self.channel = channel
        self.roots_pem = roots_pem
        self.roots_der = roots_der
        self.calls = 0
        self.retired = False
        stub = istio_ca_pb2_grpc.IstioCertificateServiceStub
        self.create = stub(channel).CreateCertificate  # type: ignore[no-untyped-call]  # generated code
        self.sync: grpc.aio.UnaryUnaryMultiCallable[trust_pb2.SyncRequest, trust_pb2.SyncResponse] = (
            channel.unary_unary(
                SYNC_METHOD,
                request_serializer=trust_pb2.SyncRequest.SerializeToString,
                response_deserializer=trust_pb2.SyncResponse.FromString,
            )
        )

    async def close_if_idle(self) -> None:
        if self.retired and self.calls == 0:
            await self.channel.close()


class CaClient:
    """Asks the authority for certificates.

    Args:
        address: `host:port` of the authority.
        root_file: PEM certificates that verify the authority's serving certificate.
        server_name: name that this certificate must have; default is the host of `address`.
        deadline: seconds for one call.
        max_in_flight: calls at once, over all workloads of this agent.
    """

    def __init__(
        self,
        *,
        address: str,
        root_file: Path,
        server_name: str = "",
        deadline: float = DEADLINE,
        max_in_flight: int = MAX_IN_FLIGHT,
    ) -> None:
        self._address = address
        self._root_file = root_file
        self._server_name = server_name
        self._deadline = deadline
        self._slots = PrioritySlots(max_in_flight)
        self._dial: _Dial | None = None

    @property
    def waiting(self) -> int:
        """Requests that wait for a slot."""
        return self._slots.waiting

    async def sign(
        self,
        *,
        csr_pem: str,
        token_file: TokenSource,
        priority: Priority,
        validity: dt.timedelta | None = None,
    ) -> CaReply:
        """Send a CSR with the workload's token.

        A token that is refused is read once more and tried once more: it may have been replaced in
        the very moment.

        Args:
            csr_pem: one CERTIFICATE REQUEST block.
            token_file: a file or a token in memory, read at every attempt.
            priority: order among the requests that wait for a slot.
            validity: lifetime to ask for; None = the authority's default.

        Raises:
            CaError: with a category that says whether trying again can help.
            TokenError: no token has come yet.
        """
        request = istio_ca_pb2.IstioCertificateRequest(
            csr=csr_pem, validity_duration=0 if validity is None else int(validity.total_seconds())
        )
        async with self._slots.hold(priority):
            try:
                return await self._call(request, _read_token(token_file))
            except CaError as error:
                if error.code is not CaCode.UNAUTHENTICATED:
                    raise
            return await self._call(request, _read_token(token_file))

    async def sync(self, standing: Standing, *, token_file: TokenSource) -> SyncReply:
        """Report how this node stands, and hear of the bundle. Waits for no slot: it is one small call.

        Args:
            standing: of the workloads.
            token_file: the agent's own token, read anew.

        Raises:
            CaError: with a category that says whether trying again can help.
            TokenError: no token has come yet.
        """
        request = trust_pb2.SyncRequest(
            bundle_digest=standing.digest,
            bundle_generation=standing.generation,
            workloads=standing.workloads,
            pending=standing.pending,
            refused=standing.refused,
            waiting_for=standing.waiting_for,
            issuer_epoch=standing.epoch,
            outdated=standing.outdated,
        )
        token = _read_token(token_file)
        async with self._channel() as dial:
            try:
                response = await dial.sync(
                    request, metadata=(("authorization", f"Bearer {token}"),), timeout=self._deadline
                )
            except grpc.aio.AioRpcError as error:
                if error.code() in _REDIAL:
                    await self._retire(dial)
                raise _refusal(error, self._address, _SYNC_ADVICE) from error
            return SyncReply(
                roots_pem=tuple(response.roots),
                generation=response.bundle_generation,
                epoch=response.issuer_epoch,
                poll_after=response.poll_after_ms / 1000,
                renew_within=float(response.renew_within_s),
                roots_der=dial.roots_der,
            )

    async def close(self) -> None:
        """Close the channel; calls in flight end with an error."""
        dial, self._dial = self._dial, None
        if dial is not None:
            await dial.channel.close()

    async def _call(self, request: istio_ca_pb2.IstioCertificateRequest, token: str) -> CaReply:
        async with self._channel() as dial:
            call = dial.create(
                request, metadata=(("authorization", f"Bearer {token}"),), timeout=self._deadline
            )
            try:
                response = await call
                trailers = await call.trailing_metadata()
            except grpc.aio.AioRpcError as error:
                if error.code() in _REDIAL:
                    await self._retire(dial)
                raise _refusal(error, self._address) from error
            return CaReply(
                cert_chain=tuple(response.cert_chain),
                server_time=_server_time(trailers),
                roots_der=dial.roots_der,
                generation=_number(trailers, GENERATION_KEY),
                epoch=_number(trailers, EPOCH_KEY),
            )

    @asynccontextmanager
    async def _channel(self) -> AsyncIterator[_Dial]:
        dial = await self._current()
        dial.calls += 1
        try:
            yield dial
        finally:
            dial.calls -= 1
            await dial.close_if_idle()

    async def _current(self) -> _Dial:
        roots_pem = _read_bounded(self._root_file, MAX_ROOT_FILE_BYTES, CaCode.ROOT_FILE, "CA root file")
        if self._dial is not None and self._dial.roots_pem != roots_pem:
            await self._retire(self._dial)
        if self._dial is None:
            try:
                roots_der = decode_certificates(roots_pem.decode("ascii"))
            except (PemError, UnicodeDecodeError) as error:
                raise CaError(
                    CaCode.ROOT_FILE,
                    f"CA root file {self._root_file} is not a PEM file of certificates: {error}",
                    category=Category.UNAVAILABLE,
                ) from error
            self._dial = _Dial(self._open(roots_pem), roots_pem, roots_der)
        return self._dial

    def _open(self, roots_pem: bytes) -> grpc.aio.Channel:
        options: list[tuple[str, int | str]] = list(_OPTIONS)
        if self._server_name:
            options.append(("grpc.ssl_target_name_override", self._server_name))
        credentials = grpc.ssl_channel_credentials(root_certificates=roots_pem)
        return grpc.aio.secure_channel(self._address, credentials, options=options)

    async def _retire(self, dial: _Dial) -> None:
        if self._dial is dial:
            self._dial = None
        dial.retired = True
        await dial.close_if_idle()


def _read_bounded(path: Path, limit: int, code: CaCode, what: str) -> bytes:
    # Local files of a few kilobytes, on tmpfs: reading them in the loop costs less than a thread.
    try:
        with path.open("rb") as stream:
            data = stream.read(limit + 1)
    except OSError as error:
        raise CaError(
            code, f"{what} {path} cannot be read: {error.strerror}", category=Category.UNAVAILABLE
        ) from error
    if len(data) > limit:
        raise CaError(code, f"{what} {path} is longer than {limit} bytes", category=Category.UNAVAILABLE)
    return data


def _read_token(source: TokenSource) -> str:
    if isinstance(source, MemoryToken):
        return source.read()
    path = source
    data = _read_bounded(path, MAX_TOKEN_BYTES, CaCode.TOKEN_FILE, "token file").strip()
    if not _TOKEN.fullmatch(data):
        state = "is empty" if not data else "holds something that is not one token of printable ASCII"
        raise CaError(CaCode.TOKEN_FILE, f"token file {path} {state}", category=Category.UNAVAILABLE)
    return data.decode("ascii")


def _server_time(trailers: object) -> dt.datetime | None:
    """The authority's time from the trailing metadata; anything else reads as none."""
    if not isinstance(trailers, (tuple, list, grpc.aio.Metadata)):
        return None
    for key, value in trailers:
        if key == SERVER_TIME_KEY and isinstance(value, str) and _MILLISECONDS.fullmatch(value):
            return dt.datetime.fromtimestamp(int(value) / 1000, dt.UTC)
    return None


def _number(trailers: object, name: str) -> int:
    """A number from the trailing metadata; 0 for anything but digits, or a name that comes twice."""
    if not isinstance(trailers, (tuple, list, grpc.aio.Metadata)):
        return 0
    found = [value for key, value in trailers if key == name]
    if len(found) != 1 or not isinstance(found[0], str) or not _NUMBER.fullmatch(found[0]):
        return 0
    return int(found[0])


_REDIAL: Final = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED})
_STATUS: Final = {
    grpc.StatusCode.UNAUTHENTICATED: (CaCode.UNAUTHENTICATED, Category.UNAUTHENTICATED),
    grpc.StatusCode.PERMISSION_DENIED: (CaCode.DENIED, Category.PERMISSION_DENIED),
    grpc.StatusCode.INVALID_ARGUMENT: (CaCode.INVALID, Category.INVALID_ARGUMENT),
    grpc.StatusCode.OUT_OF_RANGE: (CaCode.INVALID, Category.INVALID_ARGUMENT),
    grpc.StatusCode.NOT_FOUND: (CaCode.NOT_FOUND, Category.NOT_FOUND),
    grpc.StatusCode.RESOURCE_EXHAUSTED: (CaCode.OVERLOADED, Category.RESOURCE_EXHAUSTED),
    grpc.StatusCode.FAILED_PRECONDITION: (CaCode.PRECONDITION, Category.FAILED_PRECONDITION),
    grpc.StatusCode.UNIMPLEMENTED: (CaCode.PRECONDITION, Category.FAILED_PRECONDITION),
    grpc.StatusCode.DEADLINE_EXCEEDED: (CaCode.DEADLINE, Category.UNAVAILABLE),
    grpc.StatusCode.UNAVAILABLE: (CaCode.UNREACHABLE, Category.UNAVAILABLE),
}
_ADVICE: Final = {
    CaCode.UNAUTHENTICATED: "check that the token is fresh and of the audience that the authority wants",
    CaCode.DENIED: "the authority knows the workload and will not sign for it",
    CaCode.INVALID: "the authority does not accept the request; its log says which rule",
    CaCode.NOT_FOUND: "the workload is not known to the authority (deleted?)",
    CaCode.OVERLOADED: "the authority sheds load; the agent tries again by itself",
    CaCode.PRECONDITION: "the address is not a certificate authority of ours, or it is not set up",
    CaCode.DEADLINE: "no answer in time; the agent tries again by itself",
    CaCode.UNREACHABLE: "not reachable; the agent tries again by itself",
    CaCode.UNTRUSTED: "its serving certificate does not verify with the CA root file, which is read again"
    " at each attempt",
    CaCode.INTERNAL: "a fault of the authority; the agent tries again by itself",
}

_SYNC_ADVICE: Final = {
    **_ADVICE,
    CaCode.DENIED: "this service account may not ask for the trust bundle; name it in cluster.agents of the"
    " authority",
    CaCode.PRECONDITION: "it does not tell the trust bundle by itself; certificates bring it still",
}


def _refusal(error: grpc.aio.AioRpcError, address: str, advice: Mapping[CaCode, str] = _ADVICE) -> CaError:
    code, category = _STATUS.get(error.code(), (CaCode.INTERNAL, Category.INTERNAL))
    details = (error.details() or "")[:500]
    if code is CaCode.UNREACHABLE and ("CERTIFICATE_VERIFY_FAILED" in details or "Peer name" in details):
        code = CaCode.UNTRUSTED
    return CaError(
        code,
        f"authority {address}: {advice[code]}",
        category=category,
        private=f"authority {address}: {error.code().name}: {details}",
    )
