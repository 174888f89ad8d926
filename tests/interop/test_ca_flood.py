"""F-29 below gRPC's client: raw HTTP/2 frames over TLS against the CSR API."""

from __future__ import annotations

import concurrent.futures
import contextlib
import socket
import ssl
import struct
from collections.abc import Iterator

import pytest

from tests.fakes.ca_running import RunningCa, running_ca

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS, PING, GOAWAY, RST_STREAM = 4, 6, 7, 3
ENHANCE_YOUR_CALM = 11


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCa]:
    with running_ca(tmp_path_factory.mktemp("ca")) as running:
        yield running


def frame(kind: int, payload: bytes = b"", *, stream: int = 0, flags: int = 0) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


@contextlib.contextmanager
def raw_connection(ca: RunningCa) -> Iterator[ssl.SSLSocket]:
    context = ssl.create_default_context(cadata=ca.roots.decode())
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", ca.runtime.grpc.port), timeout=20) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as tls,
    ):
        tls.sendall(PREFACE + frame(SETTINGS))
        yield tls


def frames_until_closed(connection: ssl.SSLSocket) -> list[tuple[int, bytes]]:
    """Kind and payload of everything that comes before the peer closes; times out otherwise."""
    data = b""
    with contextlib.suppress(ConnectionError, ssl.SSLEOFError):
        while chunk := connection.recv(65536):
            data += chunk
    found = []
    while len(data) >= 9:
        length = int.from_bytes(data[:3], "big")
        found.append((data[3], data[9 : 9 + length]))
        data = data[9 + length :]
    return found


def test_f29_ping_flood_ends_the_connection(ca: RunningCa) -> None:
    with raw_connection(ca) as connection:
        with contextlib.suppress(OSError):
            for _ in range(200):
                connection.sendall(frame(PING, b"12345678") * 10)
        goaway = [payload for kind, payload in frames_until_closed(connection) if kind == GOAWAY]
    assert goaway
    assert int.from_bytes(goaway[-1][4:8], "big") == ENHANCE_YOUR_CALM
    assert ca.client().create([ca.token()], ca.csr()).ok


def test_f29_garbage_after_the_handshake(ca: RunningCa) -> None:
    with raw_connection(ca) as connection:
        connection.sendall(b"\xff" * 4096)
        frames_until_closed(connection)
    assert ca.client().create([ca.token(uid="other")], ca.csr()).ok


def test_f29_silent_connections_leave_others_alone(ca: RunningCa) -> None:
    """Connections that never finish, or never start, the handshake."""
    with contextlib.ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(socket.create_connection(("127.0.0.1", ca.runtime.grpc.port), timeout=20))
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            answers = [pool.submit(ca.client().create, [ca.token(uid=f"s{n}")], ca.csr()) for n in range(8)]
            assert all(answer.result().ok for answer in answers)


def test_f57_only_http2(ca: RunningCa) -> None:
    """A client that speaks HTTP/1.1 gets nothing, and does no harm."""
    context = ssl.create_default_context(cadata=ca.roots.decode())
    context.set_alpn_protocols(["http/1.1"])
    answer = b""
    with (
        contextlib.suppress(OSError),
        socket.create_connection(("127.0.0.1", ca.runtime.grpc.port), timeout=20) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as tls,
    ):
        tls.sendall(b"GET / HTTP/1.1\r\n\r\n")
        answer = tls.recv(4096)
    assert b"200" not in answer
    assert ca.client().create([ca.token(uid="h1")], ca.csr()).ok
