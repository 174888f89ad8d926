"""Check 12: policies are edited while everything runs."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

from examples.demo import layout as at
from examples.demo.harness import Demo
from examples.demo.issuer import write_atomically
from examples.demo.model import Check, DemoError
from examples.demo.plain import call
from examples.demo.processes import wait_for
from examples.demo.tls import TlsConnection, client_context, exchange

NAME = "a policy is edited while running"
INTENT = (
    "policies/live.yaml denies /closed on reviews; the edit adds /open. Two connections were opened before:"
    " one straight to reviews' proxy, one by web's proxy. They obey within 1 s and are not closed. Then the"
    " file is broken."
)
_FILE = "live.yaml"
_LIMIT = 1.0
_PATIENCE = 5.0
_PUSHED = 0.5
_LAST_GOOD = "403, 200"


def run(demo: Demo, check: Check) -> None:
    text = demo.policy(_FILE)
    closing = text.replace("[/closed]", "[/closed, /open]")
    with (
        TlsConnection(demo.layout.proxy("reviews"), client_context(demo.watches["web"].current)) as direct,
        socket.create_connection(demo.egress("web", at.EGRESS_REVIEWS), _PATIENCE) as kept,
    ):
        kept_port = kept.getsockname()[1]
        ask: dict[str, Callable[[], int]] = {
            "direct": lambda: direct.request("GET", "/open")[0],
            "by web's proxy": lambda: exchange(kept, "GET", "/open", {})[0],
        }
        check.expect(
            "before",
            "GET /open on both connections",
            expected="200, 200",
            got=", ".join(str(question()) for question in ask.values()),
            evidence=f"local ports {direct.local_port} and {kept_port}",
        )
        closed = _closed_by_proxy(demo)
        _edit(demo, check, ask, name="deny", text=closing, wanted=403)
        _edit(demo, check, ask, name="allow again", text=text, wanted=200)
        check.expect(
            "not closed",
            "connections that reviews' proxy closed by itself meanwhile",
            expected="0",
            got=str(_closed_by_proxy(demo) - closed),
            evidence=f"the same two connections answered to the end (ports {direct.local_port}, {kept_port})",
        )
    _broken(demo, check, text)


def _edit(
    demo: Demo, check: Check, ask: dict[str, Callable[[], int]], *, name: str, text: str, wanted: int
) -> None:
    start = time.monotonic()
    write_atomically(demo.layout.policies / _FILE, text)
    for connection, question in ask.items():
        try:
            wait_for(f"{wanted}", _answers(question, wanted), seconds=_PATIENCE, every=0.002)
            took = time.monotonic() - start
            got = f"{wanted} in {'less' if took < _LIMIT else 'more'} than 1 s"
            evidence = f"{took * 1000:.0f} ms after the file was written"
        except (DemoError, OSError) as error:
            got, evidence = type(error).__name__, str(error)
        check.expect(
            f"{name}, {connection}",
            f"edit: {name} /open; the connection {connection}",
            expected=f"{wanted} in less than 1 s",
            got=got,
            evidence=evidence,
        )


def _answers(question: Callable[[], int], wanted: int) -> Callable[[], bool]:
    return lambda: question() == wanted


def _closed_by_proxy(demo: Demo) -> int:
    return demo.stat("reviews", "downstream_cx_destroy_local")


def _broken(demo: Demo, check: Check, text: str) -> None:
    target = demo.egress("web", at.EGRESS_REVIEWS)
    line = next(i for i, found in enumerate(text.splitlines(), start=1) if "paths:" in found)
    field = "spec.rules[0].to[0].operation.pathz"
    breaks = (
        ("unknown field", text.replace("paths: [/closed]", "pathz: [/closed, /open]"), line, field),
        ("not YAML", text.replace("paths: [/closed]", "paths: [/closed, /open"), line, ""),
    )
    for name, broken, where, what in breaks:
        with demo.edited(_FILE, broken):
            found = _finding(demo, _FILE)
            place = f"{_FILE}:{where}"
            check.judge(
                name,
                f"a broken edit: {name}",
                expected=f"reported: {place} {what}".rstrip(),
                got=f"reported: {found.get('place', '').rpartition('/')[2]} {found.get('field', '')}".rstrip()
                if found
                else "not reported",
                ok=_names(found, place, what),
                evidence=f"{found.get('message', '')} [{found.get('code', '')}]",
            )
            check.expect(
                f"{name}, last good",
                "what holds meanwhile: GET /closed, GET /open",
                expected=_LAST_GOOD,
                got=_meanwhile(target),
            )
        wait_for("the finding to go", lambda: not _findings(demo, _FILE), seconds=_PATIENCE)
    check.expect(
        "mended",
        "the file is mended: findings of it that are left",
        expected="0",
        got=str(len(_findings(demo, _FILE))),
    )


def _meanwhile(target: tuple[str, int]) -> str:
    """The answers for GET /closed and /open; the first other one, for as long as a push to a proxy takes."""
    end = time.monotonic() + _PUSHED
    while True:
        got = f"{call(target, '/closed').status}, {call(target, '/open').status}"
        if got != _LAST_GOOD or time.monotonic() > end:
            return got


def _names(found: dict[str, str], place: str, field: str) -> bool:
    """The finding says which file, which line and which field; broken YAML may end one line later."""
    file, _, line = place.rpartition(":")
    places = {f"{file}:{line}"} if field else {f"{file}:{int(line) + extra}" for extra in (0, 1)}
    return found.get("place", "").rpartition("/")[2] in places and found.get("field", "").endswith(field)


def _findings(demo: Demo, file: str) -> list[dict[str, str]]:
    return [f for f in demo.status()["findings"] if file in f["place"] and f["severity"] == "error"]


def _finding(demo: Demo, file: str) -> dict[str, str]:
    def look() -> dict[str, str] | None:
        return next(iter(_findings(demo, file)), None)

    try:
        return wait_for("the finding", look, seconds=_PATIENCE)
    except DemoError:
        return {}
