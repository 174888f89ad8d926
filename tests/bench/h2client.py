"""A client that holds many gRPC streams cheaply, so that the server is what gets measured.

It speaks just enough HTTP/2 (RFC 9113) for one bidirectional stream per Unix-socket connection:
fixed header block, one request message, then it counts messages. It answers SETTINGS and PING.
"""

from __future__ import annotations

import selectors
import socket
import struct
import time
from dataclasses import dataclass, field

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST, _SETTINGS, _PING, _GOAWAY, _WINDOW = 0, 1, 3, 4, 6, 7, 8
_ACK = 1
_STREAM = 1
_BIG_WINDOW = 1 << 30


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def _literal(name: str, value: str) -> bytes:
    """HPACK literal without indexing, new name (RFC 7541 6.2.2)."""
    n, v = name.encode(), value.encode()
    return b"\x00" + bytes((len(n),)) + n + bytes((len(v),)) + v


def grpc_message(body: bytes) -> bytes:
    """Length-prefixed, uncompressed."""
    return b"\x00" + struct.pack(">I", len(body)) + body


@dataclass(slots=True)
class Stream:
    """One connection with one open stream."""

    sock: socket.socket
    buffer: bytearray = field(default_factory=bytearray)
    data: bytearray = field(default_factory=bytearray)
    messages: int = 0
    last: bytes = b""

    @classmethod
    def open(cls, path: str, method: str, first: bytes) -> Stream:
        """Connect and send the first request message."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(path)
        headers = b"".join(
            _literal(n, v)
            for n, v in (
                (":method", "POST"),
                (":scheme", "http"),
                (":path", method),
                (":authority", "agent"),
                ("content-type", "application/grpc"),
                ("te", "trailers"),
            )
        )
        settings = struct.pack(">HI", 4, _BIG_WINDOW)  # SETTINGS_INITIAL_WINDOW_SIZE
        sock.sendall(
            _PREFACE
            + _frame(_SETTINGS, 0, 0, settings)
            + _frame(_WINDOW, 0, 0, struct.pack(">I", _BIG_WINDOW))
            + _frame(_HEADERS, 4, _STREAM, headers)
            + _frame(_DATA, 0, _STREAM, grpc_message(first))
        )
        sock.setblocking(False)
        return cls(sock)

    def send(self, body: bytes) -> None:
        """Send another request message."""
        self.sock.sendall(_frame(_DATA, 0, _STREAM, grpc_message(body)))

    def pump(self) -> None:
        """Read what has arrived and count whole messages."""
        self.buffer += self.sock.recv(1 << 16)
        buffer, at = self.buffer, 0
        while len(buffer) - at >= 9:
            size = int.from_bytes(buffer[at : at + 3], "big")
            if len(buffer) - at < 9 + size:
                break
            kind, flags = buffer[at + 3], buffer[at + 4]
            payload = bytes(buffer[at + 9 : at + 9 + size])
            at += 9 + size
            if kind == _DATA:
                self.data += payload
            elif kind == _SETTINGS and not flags & _ACK:
                self.sock.sendall(_frame(_SETTINGS, _ACK, 0, b""))
            elif kind == _PING and not flags & _ACK:
                self.sock.sendall(_frame(_PING, _ACK, 0, payload))
            elif kind in {_RST, _GOAWAY}:
                raise ConnectionError(f"server closed the stream: frame {kind} {payload!r}")
        del buffer[:at]
        self._count()

    def _count(self) -> None:
        while len(self.data) >= 5:
            size = int.from_bytes(self.data[1:5], "big")
            if len(self.data) < 5 + size:
                return
            self.last = bytes(self.data[5 : 5 + size])
            self.messages += 1
            del self.data[: 5 + size]


class Fleet:
    """Many streams read by one selector."""

    def __init__(self, streams: list[Stream]) -> None:
        self.streams = streams
        self._selector = selectors.DefaultSelector()
        for stream in streams:
            self._selector.register(stream.sock, selectors.EVENT_READ, stream)

    def wait(self, messages: int, deadline_seconds: float = 30.0) -> float:
        """Read until every stream has that many messages; returns the time of the last arrival.

        Raises:
            TimeoutError: naming how many streams are behind.
        """
        behind = {id(s) for s in self.streams if s.messages < messages}
        end = time.monotonic() + deadline_seconds
        while behind:
            ready = self._selector.select(timeout=0.5)
            for key, _ in ready:
                stream: Stream = key.data
                stream.pump()
                if stream.messages >= messages:
                    behind.discard(id(stream))
            if time.monotonic() > end:
                raise TimeoutError(f"{len(behind)} of {len(self.streams)} streams had no message {messages}")
        return time.perf_counter()

    def close(self) -> None:
        """Close every connection."""
        self._selector.close()
        for stream in self.streams:
            stream.sock.close()
