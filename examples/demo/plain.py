"""Plaintext clients: HTTP as an application speaks it to its own proxy, and bare TCP."""

from __future__ import annotations

import contextlib
import http.client
import socket
from dataclasses import dataclass
from typing import Any

from examples.demo.tls import alert_of, exchange, parse_object

_TIMEOUT = 5.0


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer, or why there was none."""

    status: int | None
    body: str
    refusal: str = ""

    @property
    def json(self) -> dict[str, Any]:
        """The body of an answer of the demo's applications; empty for anything else."""
        return parse_object(self.body)

    @property
    def short(self) -> str:
        """`200`, `403 RBAC: access denied`, `refused: reset`."""
        if self.status is None:
            return f"refused: {self.refusal}"
        return "200" if self.status == http.client.OK else f"{self.status} {self.body}".strip()


def call(
    target: tuple[str, int],
    path: str = "/",
    *,
    method: str = "GET",
    headers: dict[str, str] | None = None,
    body: bytes = b"",
) -> Answer:
    """One request on a fresh connection, the path byte for byte as given."""
    try:
        with socket.create_connection(target, _TIMEOUT) as connection:
            status, text = exchange(connection, method, path, dict(headers or {}), body)
            return Answer(status, text)
    except (OSError, http.client.HTTPException) as error:
        return Answer(None, "", alert_of(error))


def greet(connection: socket.socket) -> bytes:
    """What a server says first, before the client has said a word; empty when it closes.

    Raises:
        OSError: reset, or silent until the connection's timeout.
    """
    greeting = connection.recv(200)
    if greeting:
        # Answer, so that the server can tell us from a peer that got this far and was cut off. What came
        # has come, whatever happens now: a leaked greeting must never pass for none.
        with contextlib.suppress(OSError):
            connection.sendall(b"hello\n")
            connection.recv(200)
    return greeting


def read_greeting(target: tuple[str, int]) -> bytes:
    """Connect in plaintext and `greet`."""
    with socket.create_connection(target, _TIMEOUT) as connection:
        return greet(connection)


def bearer(token: str) -> dict[str, str]:
    """The header that carries a token."""
    return {"authorization": f"Bearer {token}"}
