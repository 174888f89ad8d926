"""Just enough HTTP: handlers are functions from a request to a response, services call each other by JSON."""

from __future__ import annotations

import http.client
import itertools
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

PORT = 9080
_MAX_BODY = 65_536  # bytes
_IDLE_SECONDS = 60
# What a request is about travels on: who is signed in, the token, and the names of the trace.
_PASSED_ON = ("authorization", "end-user", "traceparent", "tracestate", "user-agent", "x-request-id")


@dataclass(frozen=True, slots=True)
class Request:
    """A request; header names are in lower case."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes = b""

    def passed_on(self) -> dict[str, str]:
        """The headers for the calls that this request causes."""
        return {name: self.headers[name] for name in _PASSED_ON if name in self.headers}


@dataclass(frozen=True, slots=True)
class Response:
    """A response; `body` is text of `kind`."""

    body: str = ""
    status: int = 200
    kind: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)


Handler = Callable[[Request], Response]


def as_json(value: Any, status: int = 200) -> Response:
    """A JSON response."""
    return Response(json.dumps(value), status)


def fetch(url: str, headers: Mapping[str, str], *, timeout: float) -> Any:
    """The JSON that a GET of `url` gives within `timeout` seconds per step.

    Raises:
        OSError: no answer, an answer other than 200, or one that is not JSON.
    """
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=timeout)
    try:
        connection.request("GET", parts.path, headers=dict(headers))
        response = connection.getresponse()
        body = response.read()
        if response.status != 200:
            raise OSError(f"{url}: {response.status} {body[:200].decode(errors='replace')}")
        return json.loads(body)
    except (http.client.HTTPException, ValueError) as error:
        raise OSError(f"{url}: {error}") from error
    finally:
        connection.close()


def serve(name: str, routes: Mapping[tuple[str, str], Handler], port: int) -> None:
    """Serve until SIGTERM, and a little longer.

    `routes` maps (method, path) to a handler; a path that ends in `/` takes everything below it. Every
    service also has /health, and /headers: what arrived, as JSON, with what the sidecar says of the caller.
    """
    checks = itertools.count(1)
    table = {
        ("GET", "/health"): lambda _: as_json({"status": f"{name} is healthy", "checks": next(checks)}),
        ("GET", "/headers"): lambda request: as_json({"headers": dict(request.headers)}),
        **routes,
    }

    class Server(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = _IDLE_SECONDS

        def do_GET(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            self._answer()

        def _answer(self) -> None:
            path, _, query = self.path.partition("?")
            length = self.headers.get("content-length", "0")
            if not length.isdecimal() or int(length) > _MAX_BODY:
                self.close_connection = True
                self._write(as_json({"error": f"a body has at most {_MAX_BODY} bytes"}, 413))
                return
            headers = {key.lower(): value for key, value in self.headers.items()}
            request = Request(self.command, path, query, headers, self.rfile.read(int(length)))
            self._write(_find(table, request)(request))

        def _write(self, response: Response) -> None:
            body = response.body.encode()
            self.send_response(response.status)
            self.send_header("content-type", f"{response.kind}; charset=utf-8")
            self.send_header("content-length", str(len(body)))
            for key, value in response.headers.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base class's name
            if self.path != "/health":
                sys.stdout.write(f"{name}: {format % args}\n")

    class Listener(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

    listener = Listener(("", port), Server)
    stop_late(listener.shutdown)
    sys.stdout.write(f"{name}: listening on {listener.server_address[1]}\n")
    listener.serve_forever(poll_interval=0.1)


def stop_late(stop: Callable[[], None]) -> None:
    """Call `stop` some seconds after SIGTERM, as a well-behaved service does.

    When a pod is deleted, its callers hear of it after the pod does: one that closes its port at once
    loses requests, in any mesh and in none. `LINGER_SECONDS` says how long; default 3.
    """
    seconds = float(os.environ.get("LINGER_SECONDS", "3"))

    def linger() -> None:
        time.sleep(seconds)
        stop()

    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=linger, daemon=True).start())


def _find(table: Mapping[tuple[str, str], Handler], request: Request) -> Handler:
    exact = table.get((request.method, request.path))
    if exact:
        return exact
    for (method, path), handler in table.items():
        if method == request.method and path.endswith("/") and path != "/" and request.path.startswith(path):
            return handler
    return lambda _: as_json({"error": f"no {request.method} {request.path} here"}, 404)
