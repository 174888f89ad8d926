"""A TLS server with any certificate: an impostor, and a server that resumes sessions."""

from __future__ import annotations

import contextlib
import os
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

from examples.demo.svid import Identity
from examples.demo.tls import in_memory

_BODY = b'{"service": "impostor"}'


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-length", str(len(_BODY)))
        self.end_headers()
        self.wfile.write(_BODY)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the standard library's name
        """Say nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], context: ssl.SSLContext) -> None:
        super().__init__(address, _Handler)
        self._context = context

    def get_request(self) -> tuple[ssl.SSLSocket, object]:
        connection, peer = self.socket.accept()
        # The handshake happens at the first read, in the connection's own thread.
        return self._context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False), peer

    def handle_error(self, request: object, client_address: object) -> None:
        """A peer that refuses this server is what it is here for."""


class TlsServer:
    """Runs while the context is open.

    Args:
        address: where to listen; port 0 lets the system choose.
        identity: the certificate to show.
    """

    def __init__(self, address: tuple[str, int], identity: Identity) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with in_memory(identity.chain_pem + identity.key_pem) as path:
            context.load_cert_chain(path)
        self._server = _Server(address, context)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        host, port = self._server.server_address[:2]
        return os.fsdecode(host) if isinstance(host, bytes) else str(host), int(port)

    def __enter__(self) -> TlsServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.ExitStack() as stack:
            stack.callback(self._server.server_close)
            self._server.shutdown()
            self._thread.join(5)
