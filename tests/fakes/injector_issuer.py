"""A web server that answers as a test says: the issuer whose key set is fetched."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec

from tests.fakes.injector_pki import Root

Reply = Callable[[BaseHTTPRequestHandler], None]


def key_set(kid: str = "k1") -> str:
    """A fresh JWKS of one EC key."""
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    jwk: dict[str, Any] = jwt.algorithms.ECAlgorithm.to_jwk(key, as_dict=True)
    return json.dumps({"keys": [jwk | {"kid": kid, "use": "sig", "alg": "ES256"}]})


def sends(body: str | bytes, status: int = 200, **headers: str) -> Reply:
    data = body.encode() if isinstance(body, str) else body

    def reply(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    return reply


class Issuer:
    """HTTPS (or HTTP) on loopback.

    Args:
        pages: path to what is sent; may be changed at any time.
    """

    def __init__(self, directory: Path, pages: dict[str, Reply], *, tls: bool = True) -> None:
        self.root = Root()
        self.pages = pages
        self.asked: list[str] = []
        self.released = threading.Event()
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.asked.append(self.path)
                issuer.pages.get(self.path, sends("", 404))(self)

            def log_message(self, *args: Any) -> None:
                """Tests say what went wrong."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

            def handle_error(self, *args: Any) -> None:
                """Peers hang up in these tests."""

        self._server = Server(("127.0.0.1", 0), Handler)
        if tls:
            issued = self.root.issue(("idp.example",))
            pair = directory / "issuer.pem"
            pair.write_bytes(issued.key_pem + issued.chain_pem)
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(pair)
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> Issuer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
