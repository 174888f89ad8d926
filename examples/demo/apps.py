"""The four services of the scenario: plain HTTP, no TLS, no idea of identities.

`python -m examples.demo.apps --name reviews --bind 127.0.10.2:19080 ...` serves one of them. Only the
standard library is used: these are the applications that Gatehouse is for, they know nothing of it.

Every answer is JSON and says what the application saw: method, path, and the headers that its proxy
added. Paths below `/-/` are the demo's own window, asked directly and never through a proxy.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socketserver
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

GREETING = b"5.7.0-ratings-db ready\n"
_TIMEOUT = 5.0


class Seen:
    """What reached the application; the demo reads it as proof that a refused call never did."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.paths: dict[str, int] = {}
        self.opened = 0
        self.spoken = 0

    def path(self, path: str) -> None:
        with self._lock:
            if len(self.paths) < 1000 or path in self.paths:
                self.paths[path] = self.paths.get(path, 0) + 1

    def connection(self) -> None:
        """The database was reached."""
        with self._lock:
            self.opened += 1

    def spoke(self) -> None:
        """The peer of a connection said something: it got through for good."""
        with self._lock:
            self.spoken += 1

    def view(self) -> dict[str, Any]:
        with self._lock:
            return {"paths": dict(self.paths), "opened": self.opened, "silent": self.opened - self.spoken}


class App(ThreadingHTTPServer):
    """One HTTP service."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], name: str, upstream: str, seen: Seen) -> None:
        super().__init__(address, Handler)
        self.name = name
        self.upstream = upstream
        self.seen = seen


class Handler(BaseHTTPRequestHandler):
    """Answers every method; `GET /<service>/1` also asks the service behind this one."""

    protocol_version = "HTTP/1.1"
    server: App
    disable_nagle_algorithm = True

    def _answer(self) -> None:
        if self.path.startswith("/-/"):
            self._send(200, self.server.seen.view())
            return
        self.server.seen.path(self.path)
        length = int(self.headers.get("content-length") or 0)
        if length:
            self.rfile.read(length)
        reply: dict[str, Any] = {
            "service": self.server.name,
            "method": self.command,
            "path": self.path,
            "xfcc": self.headers.get_all("x-forwarded-client-cert") or [],
            "authorization": "authorization" in self.headers,
        }
        if self.server.upstream and (self.path == "/" or self.path.endswith("/1")):
            reply["upstream"] = self._ask_upstream()
        self._send(200, reply)

    do_GET = do_POST = do_DELETE = do_PUT = do_HEAD = _answer

    def _ask_upstream(self) -> Any:
        try:
            with urllib.request.urlopen(self.server.upstream, timeout=_TIMEOUT) as answer:
                return json.load(answer)
        except OSError as error:
            return {"error": str(error), "status": getattr(error, "code", None)}

    def _send(self, status: int, reply: dict[str, Any]) -> None:
        body = json.dumps(reply).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the standard library's name
        """Say nothing: the load would fill the log."""


class Database(socketserver.ThreadingTCPServer):
    """A TCP service whose server speaks first, like MySQL or SMTP."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], seen: Seen) -> None:
        super().__init__(address, Greeter)
        self.seen = seen


class Greeter(socketserver.StreamRequestHandler):
    """Greets, then echoes lines."""

    server: Database
    timeout = _TIMEOUT

    def handle(self) -> None:
        self.server.seen.connection()
        with contextlib.suppress(OSError):
            self.wfile.write(GREETING)
            for index, line in enumerate(self.rfile):
                if index == 0:
                    self.server.seen.spoke()
                self.wfile.write(b"+" + line)


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


def main() -> None:
    """Serve until a signal ends the process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", required=True)
    parser.add_argument("--bind", required=True, type=_address)
    parser.add_argument("--upstream", default="", help="URL that `/` and `.../1` ask in turn")
    parser.add_argument("--database", type=_address, help="also serve the greeting protocol here")
    args = parser.parse_args()
    seen = Seen()
    if args.database:
        database = Database(args.database, seen)
        threading.Thread(target=database.serve_forever, daemon=True).start()
    App(args.bind, args.name, args.upstream, seen).serve_forever()


if __name__ == "__main__":
    main()
