"""HTTP: `/bundle`, `/livez`, `/readyz` and `/metrics`. Everything here is public and read-only."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Callable
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from flask import Flask, Response, request
from prometheus_client import CollectorRegistry

from ca.bundle_document import Document
from mesh.obs.health import Health, Report
from mesh.obs.metrics import exposition

_TEXT: Final = "text/plain; charset=utf-8"
_MAX_PLAIN_CONNECTIONS = 32
_PLAIN_TIMEOUT_SECONDS = 10


def create_app(
    *,
    health: Health,
    registry: CollectorRegistry,
    refresh: Callable[[], None],
    bundle: Callable[[], Document | None] | None,
) -> Flask:
    """The application.

    Args:
        refresh: called before metrics are shown, to bring gauges up to date.
        bundle: the document to publish; None leaves `/bundle` out.
    """
    app = Flask("ca", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = 0  # nothing here reads a body

    def get(path: str, view: Callable[[], Response]) -> None:
        app.add_url_rule(
            path, view_func=view, endpoint=path, methods=["GET"], provide_automatic_options=False
        )

    get("/livez", lambda: _report(health.live()))
    get("/readyz", lambda: _report(health.ready()))

    def metrics() -> Response:
        refresh()
        body, content_type = exposition(registry)
        return Response(body, content_type=content_type)

    get("/metrics", metrics)
    if bundle is not None:
        get("/bundle", lambda: _bundle(bundle()))

    @app.after_request
    def harden(response: Response) -> Response:
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers.setdefault("Cache-Control", "no-store")
        return response

    return app


def _report(report: Report) -> Response:
    return Response(report.text(), status=200 if report.ok else 503, content_type=_TEXT)


def _bundle(document: Document | None) -> Response:
    """The SPIFFE bundle document (SPIFFE Trust Domain and Bundle, 5.2; row B-06)."""
    if document is None:
        return Response("the bundle is not known yet; try again\n", status=503, content_type=_TEXT)
    response = Response(document.body, content_type="application/json")
    response.set_etag(document.etag)
    response.headers["Cache-Control"] = "no-cache"
    response.make_conditional(request)
    return response


class _QuietHandler(WSGIRequestHandler):
    timeout = _PLAIN_TIMEOUT_SECONDS

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is the library's
        """Probes and scrapes are not news."""


class _PlainServer(socketserver.ThreadingMixIn, WSGIServer):
    """A thread for each connection, up to a bound; beyond it connections are closed at once."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._places = threading.BoundedSemaphore(_MAX_PLAIN_CONNECTIONS)
        super().__init__(*args, **kwargs)

    def server_bind(self) -> None:
        # `WSGIServer` would look the host name up, which may take seconds.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "ca", self.server_address[1]
        self.setup_environ()

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


class _SharedPlainServer(_PlainServer):
    allow_reuse_port = True


class PlainServer:
    """`app` over HTTP without TLS, for probes and scrapers.

    Raises:
        OSError: the address cannot be bound.
    """

    def __init__(self, app: Flask, host: str, port: int, *, share_port: bool) -> None:
        kind = _SharedPlainServer if share_port else _PlainServer
        self._server = make_server(host, port, app, server_class=kind, handler_class=_QuietHandler)
        self.port: int = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, name="plain-http", daemon=True)

    def start(self) -> None:
        """Serve."""
        self._thread.start()

    def stop(self) -> None:
        """Stop serving."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()
