"""Unary gRPC calls over TLS, generated cheaply, so that the server is what gets measured.

Connections and streams as `h2load -c 4 -m 8` has them: each connection keeps a number of calls in flight.
It speaks just enough HTTP/2 (RFC 9113): literal headers without indexing, as clients send credentials; one
DATA frame a call; it looks at the trailers of each answer. What a call sends is made once.
"""

from __future__ import annotations

import selectors
import socket
import ssl
import struct
import time
from collections.abc import Sequence

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST, _SETTINGS, _PING, _GOAWAY, _WINDOW, _CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
_ACK, _END_STREAM, _END_HEADERS = 1, 1, 4
_BIG_WINDOW = (1 << 31) - 1
_STATUS_OK = b"\x0bgrpc-status\x010"  # a literal name and value, not Huffman coded


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def _length(value: int) -> bytes:
    """HPACK integer with a prefix of 7 bits (RFC 7541 5.1)."""
    if value < 127:
        return bytes((value,))
    rest, out = value - 127, bytearray((127,))
    while rest >= 128:
        out.append(rest % 128 + 128)
        rest //= 128
    return bytes((*out, rest))


def _literal(name: str, value: str) -> bytes:
    """HPACK literal without indexing, new name (RFC 7541 6.2.2)."""
    n, v = name.encode(), value.encode()
    return b"\x00" + _length(len(n)) + n + _length(len(v)) + v


class Call:
    """What one call sends, beside the number of its stream."""

    def __init__(
        self, authority: str, method: str, headers: Sequence[tuple[str, str]], message: bytes
    ) -> None:
        block = b"".join(
            _literal(name, value)
            for name, value in (
                (":method", "POST"),
                (":scheme", "https"),
                (":path", method),
                (":authority", authority),
                ("te", "trailers"),
                ("content-type", "application/grpc"),
                *headers,
            )
        )
        body = b"\x00" + struct.pack(">I", len(message)) + message
        self._headers = struct.pack(">I", len(block))[1:] + bytes((_HEADERS, _END_HEADERS))
        self._block = block + struct.pack(">I", len(body))[1:] + bytes((_DATA, _END_STREAM))
        self._body = body

    def frames(self, stream: int) -> bytes:
        """The call on a stream of this number."""
        number = struct.pack(">I", stream)
        return b"".join((self._headers, number, self._block, number, self._body))


class Connection:
    """One connection with a fixed number of calls in flight.

    Attributes:
        done: calls that were answered with status OK.
        answer: the newest whole response message.
    """

    def __init__(self, port: int, context: ssl.SSLContext, calls: Sequence[Call], streams: int) -> None:
        raw = socket.create_connection(("127.0.0.1", port), 10)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = context.wrap_socket(raw, server_hostname="localhost")
        if self.sock.selected_alpn_protocol() != "h2":
            raise RuntimeError("the server does not speak HTTP/2")
        window = _frame(_WINDOW, 0, 0, struct.pack(">I", _BIG_WINDOW - 65535))
        # No table for compressed headers, so that trailers come as literals.
        settings = struct.pack(">HIHI", 1, 0, 4, _BIG_WINDOW)
        self.sock.sendall(_PREFACE + _frame(_SETTINGS, 0, 0, settings) + window)
        self._calls, self._streams = calls, streams
        self._next, self._turn = 1, 0
        self._buffer = bytearray()
        self.in_flight = self.done = 0
        self.answer = b""

    def fill(self) -> None:
        """Start calls until as many as wanted are in flight."""
        out = []
        while self.in_flight < self._streams:
            out.append(self._calls[self._turn % len(self._calls)].frames(self._next))
            self._turn += 1
            self._next += 2
            self.in_flight += 1
        if out:
            self.sock.sendall(b"".join(out))

    def pump(self) -> None:
        """Read what has arrived.

        Raises:
            RuntimeError: a call was answered with another status than OK, or the connection ended.
        """
        data = self.sock.recv(1 << 18)
        if not data:
            raise RuntimeError("the server closed the connection")
        buffer, at = self._buffer, 0
        buffer += data
        while len(buffer) - at >= 9:
            end = at + 9 + int.from_bytes(buffer[at : at + 3], "big")
            if end > len(buffer):
                break
            self._frame(buffer[at + 3], buffer[at + 4], buffer, at + 9, end)
            at = end
        del buffer[:at]

    def _frame(self, kind: int, flags: int, buffer: bytearray, start: int, end: int) -> None:
        if kind == _DATA:
            self.answer = bytes(buffer[start + 5 : end])
        elif kind == _HEADERS:
            if flags & _END_STREAM:
                if _STATUS_OK not in buffer[start:end]:
                    raise RuntimeError(f"a call was refused: {bytes(buffer[start:end])!r}")
                self.done += 1
                self.in_flight -= 1
        elif kind == _SETTINGS and not flags & _ACK:
            self.sock.sendall(_frame(_SETTINGS, _ACK, 0, b""))
        elif kind == _PING and not flags & _ACK:
            self.sock.sendall(_frame(_PING, _ACK, 0, bytes(buffer[start:end])))
        elif kind in {_RST, _GOAWAY, _CONTINUATION}:
            raise RuntimeError(f"frame {kind}: {bytes(buffer[start:end])!r}")


class Load:
    """Calls on several connections, kept in flight from one thread."""

    def __init__(
        self, port: int, roots_pem: str, calls: Sequence[Call], *, connections: int = 4, streams: int = 8
    ) -> None:
        context = ssl.create_default_context(cadata=roots_pem)
        context.set_alpn_protocols(["h2"])
        share = [calls[n::connections] for n in range(connections)]
        self.connections = [Connection(port, context, part, streams) for part in share]

    def run(self, seconds: float) -> int:
        """Keep calling for a time, then let what is in flight end; the number of calls that were answered.

        Raises:
            RuntimeError: a call failed.
            TimeoutError: no answer for 10 s.
        """
        before, until = self._done(), time.perf_counter() + seconds
        with selectors.DefaultSelector() as selector:
            for connection in self.connections:
                selector.register(connection.sock, selectors.EVENT_READ, connection)
                connection.fill()
            while any(connection.in_flight for connection in self.connections):
                ready = selector.select(timeout=10)
                if not ready:
                    raise TimeoutError("no answer for 10 s")
                for key, _ in ready:
                    self._serve(key.data, refill=time.perf_counter() < until)
        return self._done() - before

    @staticmethod
    def _serve(connection: Connection, *, refill: bool) -> None:
        connection.pump()
        while connection.sock.pending():  # decrypted already: the selector does not see it
            connection.pump()
        if refill:
            connection.fill()

    def _done(self) -> int:
        return sum(connection.done for connection in self.connections)

    def close(self) -> None:
        """Close every connection."""
        for connection in self.connections:
            connection.sock.close()
