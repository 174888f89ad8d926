"""Check 7: a TCP port whose server speaks first."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable

from examples.demo import layout as at
from examples.demo.apps import GREETING
from examples.demo.harness import Demo
from examples.demo.model import Check, DemoError
from examples.demo.plain import greet, read_greeting
from examples.demo.processes import wait_for
from examples.demo.tls import TLS12, TLS13, alert_of, client_context

NAME = "ratings' database is for ratings only (TCP)"
INTENT = (
    "The server speaks first, so deciding on the first byte of the client would be too late: the greeting"
    " would be out. Every other peer is closed before it sees a byte, and the database sees no connection."
)
_TIMEOUT = 5.0
_NOTHING = "0 bytes, closed"
_WAITING = "0 bytes, still waiting"


def run(demo: Demo, check: Check) -> None:
    before = _silent(demo)
    by_proxy = {
        name: _by_proxy(demo.egress(name, at.EGRESS_DATABASE)) for name in ("intruder", "reviews", "ratings")
    }
    refused: tuple[tuple[str, str, Callable[[], bytes]], ...] = (
        ("intruder", "intruder by its proxy", by_proxy["intruder"]),
        ("reviews", "reviews by its proxy: a good peer, but not ratings", by_proxy["reviews"]),
        ("web, TLS 1.2", "web's certificate, direct, TLS 1.2", _direct(demo, "web", TLS12)),
        ("web, TLS 1.3", "web's certificate, direct, TLS 1.3", _direct(demo, "web", TLS13)),
        ("no certificate", "TLS without a certificate", _direct(demo, None, TLS13)),
        ("plaintext", "plaintext, talking at once", lambda: _talk(demo, b"SELECT 1\n")),
    )
    for name, tried, attempt in refused:
        got, reason = _outcome(attempt)
        check.expect(name, tried, expected=_NOTHING, got=got, evidence=reason)
    got, reason = _outcome(lambda: _talk(demo, b""))
    check.expect(
        "plaintext, silent", "plaintext, saying nothing", expected=_WAITING, got=got, evidence=reason
    )
    check.expect(
        "database",
        "connections of these that reached the database",
        expected="0",
        got=str(_leaked(demo, before)),
    )
    greeting = f"{len(GREETING)} bytes: {GREETING.decode().strip()}"
    for name, tried, attempt in (
        ("twin: ratings", "ratings by its proxy", by_proxy["ratings"]),
        ("twin: ratings, TLS 1.2", "ratings' certificate, direct, TLS 1.2", _direct(demo, "ratings", TLS12)),
        ("twin: ratings, TLS 1.3", "ratings' certificate, direct, TLS 1.3", _direct(demo, "ratings", TLS13)),
    ):
        got, reason = _outcome(attempt)
        check.expect(name, tried, expected=greeting, got=got, evidence=reason)


def _by_proxy(target: tuple[str, int]) -> Callable[[], bytes]:
    return lambda: read_greeting(target)


def _direct(demo: Demo, workload: str | None, version: ssl.TLSVersion) -> Callable[[], bytes]:
    def attempt() -> bytes:
        identity = demo.watches[workload].current if workload else None
        context = client_context(identity, version=version, alpn=("istio",))
        with (
            socket.create_connection(demo.layout.database(), _TIMEOUT) as raw,
            context.wrap_socket(raw) as tls,
        ):
            return greet(tls)

    return attempt


def _talk(demo: Demo, words: bytes) -> bytes:
    """Plaintext; a client without words gives up soon, and longer than any greeting would take."""
    with socket.create_connection(demo.layout.database(), _TIMEOUT) as connection:
        if words:
            connection.sendall(words)
        else:
            connection.settimeout(_QUIET_SECONDS)
        return connection.recv(200)


_QUIET_SECONDS = 0.5


def _outcome(attempt: Callable[[], bytes]) -> tuple[str, str]:
    """What came, and how the connection ended."""
    try:
        data = attempt()
    except TimeoutError:
        return (
            _WAITING,
            f"not a byte in {_QUIET_SECONDS} s: the proxy waits for a handshake (15 s, then it closes)",
        )
    except OSError as error:
        return _NOTHING, alert_of(error)
    return (f"{len(data)} bytes: {data.decode().strip()}", "") if data else (_NOTHING, "closed")


def _silent(demo: Demo) -> int:
    """Connections of the database whose peer never spoke: the load's peers do, refused ones cannot."""
    return min(int(demo.seen("ratings")["silent"]) for _ in range(5))


def _leaked(demo: Demo, before: int) -> int:
    """Connections that reached the database and stayed silent, beside the load's fleeting ones."""
    try:
        wait_for("no silent connection", lambda: _silent(demo) <= before, seconds=1)
    except DemoError:
        return _silent(demo) - before
    return 0
