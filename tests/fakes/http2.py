"""One HTTP/2 request on an open connection: just enough of RFC 9113 and 7541 to be answered by a proxy."""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from typing import Final

_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST, _SETTINGS, _GOAWAY = 0, 1, 3, 4, 7
_END_STREAM, _END_HEADERS, _ACK = 1, 4, 1
_INDEXED_STATUS: Final = {8: 200, 9: 204, 10: 206, 11: 304, 12: 400, 13: 404, 14: 500}
# RFC 7541 appendix B, digits only: all that a status consists of.
_DIGITS: Final = {
    "00000": "0", "00001": "1", "00010": "2", "011001": "3", "011010": "4", "011011": "5", "011100": "6",
    "011101": "7", "011110": "8", "011111": "9",
}  # fmt: skip


def request(
    connection: socket.socket,
    target: str = "/",
    *,
    method: str = "GET",
    headers: Sequence[tuple[str, str]] = (),
    host: str = "server",
) -> tuple[int, str]:
    """Status and body of the answer.

    Raises:
        ConnectionError: the connection or the stream was ended without one.
    """
    pseudo = ((":method", method), (":scheme", "http"), (":path", target), (":authority", host))
    block = b"".join(_field(name.lower(), value) for name, value in (*pseudo, *headers))
    connection.sendall(
        _PREFACE + _frame(_SETTINGS, 0, 0, b"") + _frame(_HEADERS, _END_STREAM | _END_HEADERS, 1, block)
    )
    status, body = 0, b""
    while True:
        kind, flags, payload = _read(connection)
        if kind == _SETTINGS and not flags & _ACK:
            connection.sendall(_frame(_SETTINGS, _ACK, 0, b""))
        elif kind == _HEADERS and not status:
            status = _status(payload)
        elif kind == _DATA:
            body += payload
        elif kind in {_RST, _GOAWAY}:
            raise ConnectionError(f"frame {kind}: {payload!r}")
        if kind in {_HEADERS, _DATA} and flags & _END_STREAM:
            return status, body.decode()


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def _read(connection: socket.socket) -> tuple[int, int, bytes]:
    head = _exactly(connection, 9)
    return head[3], head[4], _exactly(connection, int.from_bytes(head[:3], "big"))


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            raise ConnectionError("the connection was ended")
        data += part
    return data


def _field(name: str, value: str) -> bytes:
    """A literal without indexing (RFC 7541 6.2.2)."""
    return b"\x00" + _text(name) + _text(value)


def _text(value: str) -> bytes:
    data = value.encode("latin-1")
    if len(data) < 127:
        return bytes((len(data),)) + data
    rest, size = len(data) - 127, b"\x7f"
    while rest >= 128:
        size += bytes((rest % 128 | 128,))
        rest //= 128
    return size + bytes((rest,)) + data


def _status(block: bytes) -> int:
    """The first field of an answer is `:status`."""
    while block[0] & 0xE0 == 0x20:  # the size of the dynamic table
        block = block[1:]
    if block[0] & 0x80:
        return _INDEXED_STATUS[block[0] & 0x7F]
    size, data = block[1] & 0x7F, block[2:]
    if not block[1] & 0x80:
        return int(data[:size])
    bits = "".join(f"{byte:08b}" for byte in data[:size])
    digits = ""
    while len(digits) < 3:
        code = next(code for code in _DIGITS if bits.startswith(code))
        digits, bits = digits + _DIGITS[code], bits[len(code) :]
    return int(digits)
