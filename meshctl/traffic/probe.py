"""What runs in the pods of `meshctl check --traffic`: a server, and clients that ask it.

    python -m meshctl.traffic.probe serve --port 8080 --answer TEXT
    python -m meshctl.traffic.probe ask --host server --port 8080 --seconds 30 --requests JSON

A client asks all its requests in rounds, until one whole round is answered as wanted or the time is over.
It prints one line of JSON, writes the same line to the container's termination message (`--report`), so that
it is read from the pod's status and nobody needs a right to logs, and ends. Standard library only.
"""

from __future__ import annotations

import argparse
import http.client
import json
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import FrameType
from typing import Any, Final

REPORT: Final = Path("/dev/termination-log")
MAX_REPORT: Final = 4096
"""Bytes of a termination message that a kubelet reads."""
CLOSED: Final = "closed"
"""The connection was made, and closed without an answer."""
_TEXT: Final = 100
_REQUEST_SECONDS: Final = 5.0
_PAUSE_SECONDS: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A GET, and what it should bring: a status with a text in the body, or an error.

    Attributes:
        name: of the request in the report.
        token: bearer token; empty for none.
        status: wanted HTTP status; 0 where an error is wanted.
        text: which the body must hold.
        error: as in `Got`.
    """

    name: str
    path: str
    token: str = ""
    status: int = 0
    text: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Got:
    """What a request brought.

    Attributes:
        status: HTTP status; 0 when there was no answer.
        text: the first characters of the body, or of the error.
        error: `name` (not found), `unreachable` (no connection), `closed` (a connection, no answer),
            `timeout`, `garbled` (no HTTP); empty when there was an answer.
    """

    name: str
    status: int = 0
    text: str = ""
    error: str = ""

    def __str__(self) -> str:
        return f"{self.status or self.error} {self.text}".strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a client has to say.

    Attributes:
        good: the last round was answered as wanted.
        rounds: how many there were; `seconds` how long they took.
    """

    good: bool
    rounds: int
    seconds: float
    got: tuple[Got, ...]

    def to_line(self) -> str:
        """One line of JSON, short enough for a termination message."""
        return json.dumps(asdict(self), separators=(",", ":"))


def meets(ask: Ask, got: Got) -> bool:
    """Whether the answer is the wanted one."""
    if ask.error:
        return got.error == ask.error
    return got.status == ask.status and ask.text in got.text


def read_report(line: str) -> Report | None:
    """The report in a line; None when it is none: the client ended in another way."""
    try:
        data = json.loads(line)
        got = tuple(Got(**{**item, "status": int(item["status"])}) for item in data["got"])
        return Report(
            good=bool(data["good"]), rounds=int(data["rounds"]), seconds=float(data["seconds"]), got=got
        )
    except (ValueError, TypeError, KeyError):
        return None


def write_requests(asks: Sequence[Ask]) -> str:
    """For `--requests`."""
    return json.dumps([asdict(ask) for ask in asks], separators=(",", ":"))


def read_requests(text: str) -> tuple[Ask, ...]:
    """What `write_requests` wrote.

    Raises:
        ValueError: it is something else.
    """
    try:
        found = tuple(Ask(**item) for item in json.loads(text))
    except TypeError as error:
        raise ValueError(str(error)) from error
    if not found:
        raise ValueError("there is no request")
    return found


def ask_until(
    asks: Sequence[Ask],
    get: Callable[[Ask], Got],
    seconds: float,
    *,
    now: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Report:
    """Rounds, until one is good as a whole or the time is over; at least one."""
    start, rounds = now(), 0
    while True:
        got = tuple(get(ask) for ask in asks)
        rounds += 1
        good = all(map(meets, asks, got))
        passed = now() - start
        if good or passed >= seconds:
            return Report(good=good, rounds=rounds, seconds=round(passed, 1), got=got)
        sleep(_PAUSE_SECONDS)


def get(host: str, port: int, ask: Ask, timeout: float = _REQUEST_SECONDS) -> Got:
    """One request on a connection of its own; what goes wrong is told by how far it came."""

    def failed(error: str, why: BaseException) -> Got:
        return Got(name=ask.name, error=error, text=_short(str(why)))

    try:
        socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        return failed("name", error)
    try:
        sock = socket.create_connection((host, port), timeout)
    except TimeoutError as error:
        return failed("timeout", error)
    except OSError as error:
        return failed("unreachable", error)
    connection = http.client.HTTPConnection(host, port, timeout=timeout)
    connection.sock = sock
    headers = {"Authorization": f"Bearer {ask.token}"} if ask.token else {}
    try:
        connection.request("GET", ask.path, headers={"Connection": "close", **headers})
        answer = connection.getresponse()
        return Got(
            name=ask.name, status=answer.status, text=_short(answer.read(1024).decode("utf-8", "replace"))
        )
    except TimeoutError as error:
        return failed("timeout", error)
    except (ConnectionError, http.client.IncompleteRead) as error:
        return failed(CLOSED, error)  # RemoteDisconnected is a ConnectionError
    except (OSError, http.client.HTTPException) as error:
        return failed("garbled", error)
    finally:
        connection.close()


class Server(ThreadingHTTPServer):
    """Answers every GET with 200 and one text, on all addresses of the pod."""

    daemon_threads = True

    def __init__(self, port: int, answer: str) -> None:
        both = socket.has_dualstack_ipv6()
        self.address_family = socket.AF_INET6 if both else socket.AF_INET
        self.body = f"{answer}\n".encode()
        super().__init__(("", port), _Handler)

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, *_: Any) -> None:
        """Nothing: a header may be a token."""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; the exit code says whether there is a report, not what is in it."""
    options = _parser().parse_args(argv)
    if options.command == "serve":
        return _serve(options.port, options.answer)
    report = ask_until(
        options.requests, lambda ask: get(options.host, options.port, ask), options.seconds
    ).to_line()
    sys.stdout.write(f"{report}\n")
    sys.stdout.flush()
    try:
        options.report.write_text(report, encoding="utf-8")
    except OSError as error:
        sys.stderr.write(f"{options.report}: {error}\n")
        return 1
    return 0


def _serve(port: int, answer: str) -> int:
    with Server(port, answer) as server:
        # Process 1 of a container has no default for TERM: without a handler it would be waited for.
        signal.signal(signal.SIGTERM, _stop)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return 0
    return 0


def _stop(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="probe", description="Server and clients of `check --traffic`.")
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve", help="answer every GET with 200")
    serve.add_argument("--port", type=int, required=True)
    serve.add_argument("--answer", required=True, help="body of every answer")
    ask = commands.add_parser("ask", help="ask until all answers are as wanted, or the time is over")
    ask.add_argument("--host", required=True)
    ask.add_argument("--port", type=int, required=True)
    ask.add_argument("--seconds", type=float, required=True)
    ask.add_argument("--requests", type=read_requests, required=True, metavar="JSON")
    ask.add_argument("--report", type=Path, default=REPORT, metavar="FILE")
    return parser


def _short(text: str) -> str:
    return " ".join(text.split())[:_TEXT]


if __name__ == "__main__":
    sys.exit(main())
