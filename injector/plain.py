"""HTTP for probes and scrapers, plain or by TLS: a few read-only pages, no secret, bounded connections."""

from __future__ import annotations

import http.server
import socket
import socketserver
import ssl
import threading
from collections.abc import Callable, Mapping
from typing import Any, Final

from mesh.obs.health import Health

Page = Callable[[], tuple[int, str, bytes]]
"""Status, content type, body."""
Context = Callable[[], ssl.SSLContext]
"""What to serve a connection with; raises MeshError while there is nothing."""

TEXT: Final = "text/plain; charset=utf-8"
_MAX_CONNECTIONS: Final = 32
_TIMEOUT_SECONDS: Final = 10


def health_pages(health: Health) -> dict[str, Page]:
    """`/livez` and `/readyz`."""

    def page(ready: bool) -> tuple[int, str, bytes]:
        report = health.ready() if ready else health.live()
        return (200 if report.ok else 503), TEXT, report.text().encode()

    return {"/livez": lambda: page(False), "/readyz": lambda: page(True)}


class PageServer:
    """Serves `pages` on a thread of its own.

    Args:
        share_port: several processes may bind the port (SO_REUSEPORT).
        context: None serves without TLS; else it is asked at each connection.

    Raises:
        OSError: the address cannot be bound.
    """

    def __init__(
        self,
        pages: Mapping[str, Page],
        host: str,
        port: int,
        *,
        share_port: bool = False,
        context: Context | None = None,
    ) -> None:
        self._server = _Server((host, port), _handler(dict(pages)), share_port=share_port, context=context)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name="pages", daemon=True)

    def start(self) -> None:
        """Serve."""
        self._thread.start()

    def stop(self) -> None:
        """Stop serving."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()


def _handler(pages: Mapping[str, Page]) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        timeout = _TIMEOUT_SECONDS
        server_version, sys_version = "gatehouse", ""

        def do_GET(self) -> None:
            page = pages.get(self.path.partition("?")[0])
            status, kind, body = page() if page is not None else (404, TEXT, b"no such page\n")
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the library's name
            """Probes and scrapes are not news."""

    return Handler


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """A thread for each connection, up to a bound; beyond it connections are closed at once."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(
        self, address: tuple[str, int], handler: Any, *, share_port: bool, context: Context | None
    ) -> None:
        self._context = context
        self._places = threading.BoundedSemaphore(_MAX_CONNECTIONS)
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, handler, bind_and_activate=False)
        try:
            if share_port:
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            self.server_bind()
            self.server_activate()
        except BaseException:
            self.server_close()
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._places.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def finish_request(self, request: Any, client_address: Any) -> None:
        """In the connection's own thread: a slow handshake holds up nobody else."""
        if self._context is None:
            super().finish_request(request, client_address)
            return
        request.settimeout(_TIMEOUT_SECONDS)
        with self._context().wrap_socket(request, server_side=True) as secure:
            super().finish_request(secure, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A peer that went away is not news."""
