"""Raw TLS clients: they bring any certificate, or none, and say how they were refused."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import select
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from examples.demo.svid import Identity

TLS12 = ssl.TLSVersion.TLSv1_2
TLS13 = ssl.TLSVersion.TLSv1_3
MESH_ALPN = ("istio-http/1.1", "istio", "http/1.1")
_TIMEOUT = 5.0
_ALERT_WAIT = 0.25
_ALERTS = ("SSLV3_ALERT_", "TLSV1_ALERT_", "TLSV13_ALERT_")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of one attempt.

    Attributes:
        status: HTTP status; None when no answer came.
        refusal: how the peer refused: the TLS alert, `reset` or `closed`; empty when it did not.
        server_id, server_serial: of the certificate that the server proved.
        reused: the TLS session was resumed.
    """

    status: int | None = None
    body: str = ""
    refusal: str = ""
    server_id: str = ""
    server_serial: str = ""
    version: str = ""
    reused: bool = False
    session: ssl.SSLSession | None = None

    @property
    def in_handshake(self) -> bool:
        """Refused by the peer, before a single byte of an answer."""
        return self.status is None and self.refusal not in {"", "timeout", "connection refused"}

    @property
    def json(self) -> dict[str, Any]:
        """The body of an answer of the demo's applications; empty for anything else."""
        return parse_object(self.body)

    @property
    def short(self) -> str:
        """The outcome in the words that checks compare."""
        if self.status is not None:
            return f"{self.status}" if self.status == http.client.OK else f"{self.status} {self.body}".strip()
        return f"refused: {self.refusal}"


def parse_object(text: str) -> dict[str, Any]:
    """A JSON object, or an empty one when the text is something else."""
    try:
        data = json.loads(text)
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}


def version_name(version: ssl.TLSVersion) -> str:
    """`TLS 1.2` or `TLS 1.3`."""
    return {TLS12: "TLS 1.2", TLS13: "TLS 1.3"}[version]


@contextlib.contextmanager
def in_memory(data: bytes) -> Iterator[str]:
    """A path for an API that wants files, without a file: keys stay in memory."""
    fd = os.memfd_create("client", os.MFD_CLOEXEC)
    try:
        os.write(fd, data)
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


def client_context(
    identity: Identity | None,
    *,
    version: ssl.TLSVersion | None = None,
    roots_pem: bytes | None = None,
    alpn: tuple[str, ...] = MESH_ALPN,
) -> ssl.SSLContext:
    """A client's context; without roots the server is not verified (the attacker does not care)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # mesh certificates name a SPIFFE ID and no host
    roots = roots_pem or (identity.roots_pem if identity else b"")
    if roots:
        context.load_verify_locations(cadata=roots.decode())
    else:
        context.verify_mode = ssl.CERT_NONE
    if version is not None:
        context.minimum_version = context.maximum_version = version
    if identity is not None:
        with in_memory(identity.chain_pem + identity.key_pem) as path:
            context.load_cert_chain(path)
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


def alert_of(error: Exception) -> str:
    """The name of the TLS alert that an exception carries, e.g. `unknown_ca`."""
    if isinstance(error, ssl.SSLError) and error.reason:
        reason = error.reason
        for prefix in _ALERTS:
            reason = reason.removeprefix(prefix)
        return "closed" if reason == "UNEXPECTED_EOF_WHILE_READING" else reason.lower()
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, ConnectionResetError | BrokenPipeError):
        return "reset"
    if isinstance(error, TimeoutError):
        return "timeout"
    return "closed"


def server_facts(connection: ssl.SSLSocket) -> tuple[str, str]:
    """SPIFFE ID and serial number of the server's certificate; empty when it was not verified."""
    peer = connection.getpeercert() or {}
    names = peer.get("subjectAltName") or ()
    ids = [str(pair[1]) for pair in names if isinstance(pair, tuple) and pair[0] == "URI"]
    return (ids[0] if ids else "", f"{int(str(peer.get('serialNumber', '0')), 16):x}")


class TlsConnection:
    """An open TLS connection that speaks HTTP/1.1 with keep-alive."""

    def __init__(
        self,
        target: tuple[str, int],
        context: ssl.SSLContext,
        *,
        session: ssl.SSLSession | None = None,
        wait_for_alert: bool = False,
    ) -> None:
        raw = socket.create_connection(target, _TIMEOUT)
        try:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.socket = context.wrap_socket(raw, session=session)
        except BaseException:
            raw.close()
            raise
        if wait_for_alert:
            # With TLS 1.3 a client believes that it is through before the server has looked at its
            # certificate. Writing now would turn the alert into a bare reset.
            select.select([self.socket], [], [], _ALERT_WAIT)
            self._read_alert()

    def _read_alert(self) -> None:
        self.socket.setblocking(False)
        try:
            data = self.socket.recv(1)
            if data == b"":
                raise ConnectionAbortedError
        except (ssl.SSLWantReadError, BlockingIOError):
            pass  # nothing to read: the server waits for the request
        finally:
            self.socket.settimeout(_TIMEOUT)

    def request(
        self, method: str, path: str, headers: dict[str, str] | None = None, body: bytes = b""
    ) -> tuple[int, str]:
        """Send one request with the path byte for byte as given, and read the answer."""
        return exchange(self.socket, method, path, headers or {}, body)

    @property
    def local_port(self) -> int:
        """Tells one connection from another."""
        return int(self.socket.getsockname()[1])

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> TlsConnection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def exchange(
    connection: socket.socket, method: str, path: str, headers: dict[str, str], body: bytes = b""
) -> tuple[int, str]:
    """One HTTP/1.1 exchange over an open connection; the path is sent unchanged."""
    lines = [f"{method} {path} HTTP/1.1", f"host: {headers.pop('host', 'demo')}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if body or method == "POST":
        lines.append(f"content-length: {len(body)}")
    connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + body)
    answer = http.client.HTTPResponse(connection, method=method)
    try:
        answer.begin()
        return answer.status, answer.read().decode("utf-8", "replace")
    finally:
        answer.close()


def attempt(
    target: tuple[str, int],
    context: ssl.SSLContext,
    path: str = "/",
    *,
    method: str = "GET",
    headers: dict[str, str] | None = None,
    session: ssl.SSLSession | None = None,
    wait_for_alert: bool = False,
) -> Outcome:
    """Connect, ask once, close; every refusal becomes part of the outcome."""
    try:
        connection = TlsConnection(target, context, session=session, wait_for_alert=wait_for_alert)
    except (OSError, http.client.HTTPException) as error:
        return Outcome(refusal=alert_of(error))
    with connection:
        server_id, serial = server_facts(connection.socket)
        facts = Outcome(
            server_id=server_id,
            server_serial=serial,
            version=connection.socket.version() or "",
            reused=bool(connection.socket.session_reused),
        )
        try:
            status, body = connection.request(method, path, dict(headers or {}))
        except (OSError, http.client.HTTPException) as error:
            return replace(facts, refusal=alert_of(error))
        return replace(facts, status=status, body=body, session=connection.socket.session)
