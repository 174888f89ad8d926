"""HTTPS for the fake API server: connections, scripted faults, chunked watch streams."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import ssl
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from tests.fakes.kube_answers import Request
from tests.fakes.kube_pki import serving_pair
from tests.fakes.kube_store import ApiError

if TYPE_CHECKING:
    from tests.fakes.kube_api import FakeKube


@dataclass
class Fault:
    """What happens to matching requests instead of an answer; made by the methods of `FakeKube`."""

    kind: str  # status, cut, silence, garbage
    times: int
    method: str = ""
    path: str = ""
    watch: bool | None = None
    status: int = 500
    reason: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    def matches(self, request: Request) -> bool:
        return (
            self.times > 0
            and (not self.method or self.method == request.method)
            and (not self.path or re.fullmatch(self.path, request.path) is not None)
            and (self.watch is None or self.watch == request.watch)
        )


class Slow:
    """A body that trickles, or that is cut before its end."""

    def __init__(self, body: bytes, *, cut: bool) -> None:
        self.body, self.cut = body, cut


class KubeServer(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 256

    def __init__(self, kube: FakeKube, port: int = 0) -> None:
        self.kube = kube
        self.connections: set[socket.socket] = set()
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with tempfile.NamedTemporaryFile("w", suffix=".pem") as pair:
            pair.write("\n".join(serving_pair()))
            pair.flush()
            self.context.load_cert_chain(pair.name)
        super().__init__(("127.0.0.1", port), _Handler)

    def finish_request(self, request: Any, client_address: Any) -> None:
        try:
            # The handshake belongs to the thread of the connection: a silent client stops nobody else.
            request.settimeout(10)
            secure = self.context.wrap_socket(request, server_side=True)
            secure.settimeout(None)
        except OSError:
            return
        self.connections.add(secure)
        try:
            super().finish_request(secure, client_address)
        finally:
            self.connections.discard(secure)
            secure.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are part of the tests."""

    def cut_all(self) -> None:
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: KubeServer

    def log_message(self, *args: Any) -> None:
        """The tests look at `requests`."""

    def _serve(self) -> None:
        kube = self.server.kube
        url = urlsplit(self.path)
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {k.lower(): v for k, v in self.headers.items()}
        body = json.loads(data) if data else None
        request = Request(self.command, url.path, dict(parse_qsl(url.query)), body, headers)
        kube.requests.append(request)
        fault = kube.take_fault(request)
        if fault is not None and self._play(kube, fault):
            return
        try:
            if request.watch and self.command == "GET":
                self._stream(kube.watch(request))
            else:
                self._send(*kube.answer(request))
        except ApiError as e:
            self._send(e.status, e.body())

    def _play(self, kube: FakeKube, fault: Fault) -> bool:
        if fault.kind == "silence":
            kube.released.wait(60)
        if fault.kind in {"silence", "cut"}:
            self._cut()
        elif fault.kind == "garbage":
            self._send(200, fault.body)
        else:
            error = ApiError(fault.status, fault.reason, f"scripted {fault.status}")
            self._send(fault.status, error.body(), fault.headers)
        return True

    def _cut(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def _send(self, status: int, body: Any, headers: Mapping[str, str] | None = None) -> None:
        slow = body if isinstance(body, Slow) else None
        if slow is not None:
            data = slow.body
        else:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if self.server.kube.close_after_answer:
            self.send_header("Connection", "close")
        self.end_headers()
        if slow is None:
            self.wfile.write(data)
        elif slow.cut:
            self.wfile.write(data[: len(data) // 2])
            self._cut()
        else:
            for at in range(len(data)):
                self.server.kube.trickle.wait(0.02)
                self.wfile.write(data[at : at + 1])

    def _stream(self, lines: Iterator[bytes | None]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        if self.server.kube.close_after_answer:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.flush()
        with contextlib.closing(lines):  # type: ignore[type-var]  # a generator, typed as an iterator
            for line in lines:
                if line is None:
                    self._cut()
                    return
                self.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
        self.wfile.write(b"0\r\n\r\n")

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve
