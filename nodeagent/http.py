"""A very small HTTP server for health, metrics and status: GET only, one answer per connection.

A web framework would cost the agent a third of its memory for four fixed pages.
"""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mesh.obs.logs import logger
from nodeagent.config import Listen

MAX_REQUEST_BYTES: Final = 8 * 1024
MAX_CONNECTIONS: Final = 32
TIMEOUT: Final = 5.0
_TEXT: Final = "text/plain; charset=utf-8"
_REASONS: Final = {
    200: "OK",
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    500: "Internal Server Error",
    503: "Service Unavailable",
}
_log = logger("nodeagent.http")


@dataclass(frozen=True, slots=True)
class Page:
    """An answer."""

    status: int
    body: bytes
    content_type: str = _TEXT


@dataclass(frozen=True, slots=True)
class Route:
    """A page.

    Attributes:
        local: only callers on this machine may read it.
    """

    answer: Callable[[], Page]
    local: bool = False


class HttpServer:
    """Serves fixed paths.

    Args:
        listen: TCP address or Unix socket; port 0 lets the system choose.
        routes: by path, e.g. `/livez`.
        context: TLS on a TCP address; None serves without.
    """

    def __init__(
        self, listen: Listen, routes: Mapping[str, Route], *, context: ssl.SSLContext | None = None
    ) -> None:
        self._listen = listen
        self._context = context
        self._routes = routes
        self._server: asyncio.Server | None = None
        self._connections = 0

    @property
    def address(self) -> str:
        """Where it really listens."""
        if self._server is None or self._listen.path is not None:
            return str(self._listen)
        host, port = self._server.sockets[0].getsockname()[:2]
        return str(Listen(host, port))

    async def start(self) -> None:
        """Listen.

        Raises:
            OSError: the address is taken or may not be used.
        """
        if self._listen.path is not None:
            _remove_socket(self._listen.path)
            self._server = await asyncio.start_unix_server(
                self._serve, self._listen.path, limit=MAX_REQUEST_BYTES
            )
            self._listen.path.chmod(0o600)
        else:
            self._server = await asyncio.start_server(
                self._serve,
                self._listen.host,
                self._listen.port,
                limit=MAX_REQUEST_BYTES,
                ssl=self._context,
                ssl_handshake_timeout=TIMEOUT if self._context else None,
            )

    async def stop(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()
            if self._listen.path is not None:
                _remove_socket(self._listen.path)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        try:
            if self._connections > MAX_CONNECTIONS:
                return
            with suppress(TimeoutError, ConnectionError, asyncio.IncompleteReadError):
                async with asyncio.timeout(TIMEOUT):
                    page, head = await self._answer(reader, _is_local(writer))
                    writer.write(_encode(page, head=head))
                    await writer.drain()
        finally:
            self._connections -= 1
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, local: bool) -> tuple[Page, bool]:
        try:
            request = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            return Page(400, b"request too large\n"), False
        parts = request.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
        if len(parts) != 3:
            return Page(400, b"not an HTTP request\n"), False
        method, target, _ = parts
        if method not in {"GET", "HEAD"}:
            return Page(405, b"only GET and HEAD\n"), False
        return self._page(target.partition("?")[0], local), method == "HEAD"

    def _page(self, path: str, local: bool) -> Page:
        route = self._routes.get(path)
        if route is None:
            return Page(404, f"known are {' '.join(sorted(self._routes))}\n".encode())
        if route.local and not local:
            return Page(403, b"only for callers on this machine\n")
        try:
            return route.answer()
        except Exception:  # noqa: BLE001 - a page that fails must not end the agent
            _log.exception("a status page failed", path=path)
            return Page(500, b"failed; see the log\n")


def _encode(page: Page, *, head: bool) -> bytes:
    header = (
        f"HTTP/1.1 {page.status} {_REASONS[page.status]}\r\n"
        f"content-type: {page.content_type}\r\ncontent-length: {len(page.body)}\r\n"
        "cache-control: no-store\r\nx-content-type-options: nosniff\r\nconnection: close\r\n\r\n"
    )
    return header.encode("latin-1") + (b"" if head else page.body)


def _is_local(writer: asyncio.StreamWriter) -> bool:
    peer = writer.get_extra_info("peername")
    if not isinstance(peer, tuple):
        return True  # a Unix socket
    return ipaddress.ip_address(str(peer[0]).partition("%")[0]).is_loopback


def _remove_socket(path: Path) -> None:
    if path.is_socket():
        path.unlink(missing_ok=True)
