"""Check 2: plaintext and the two modes of mutual TLS."""

from __future__ import annotations

import contextlib
import socket
import time

from examples.demo import layout as at
from examples.demo import xfcc
from examples.demo.harness import Demo
from examples.demo.meshfiles import DRAIN_SECONDS
from examples.demo.model import Check
from examples.demo.plain import Answer, call
from examples.demo.processes import wait_for
from examples.demo.tls import exchange

NAME = "plaintext is refused under STRICT, and has no identity under PERMISSIVE"
INTENT = (
    "Somebody who is in no mesh dials reviews' proxy directly. Then its PeerAuthentication is edited to"
    " PERMISSIVE, and back."
)
_FILE = "mtls-reviews.yaml"
_PATIENCE = 10.0
_SLACK = 4.0
_REFUSED = "refused: reset or closed"


def run(demo: Demo, check: Check) -> None:
    target = demo.layout.proxy("reviews")
    web = demo.egress("web", at.EGRESS_REVIEWS)
    _strict(demo, check, "STRICT", call(target, "/health?strict"))
    permissive = demo.policy(_FILE).replace("STRICT", "PERMISSIVE")
    with contextlib.ExitStack() as stack:
        with demo.edited(_FILE, permissive):
            wait_for("PERMISSIVE to hold", lambda: call(target, "/health").status is not None, seconds=5)
            _permissive(demo, check)
            old = stack.enter_context(socket.create_connection(target, _PATIENCE))
            exchange(old, "GET", "/health", {})
        tightened = time.monotonic()
        wait_for("STRICT to hold again", lambda: call(target, "/health").status is None, seconds=5)
        _strict(demo, check, "STRICT again", call(target, "/health?strict"))
        check.expect(
            "STRICT, mutual TLS", "web by its proxy", expected="200", got=call(web, "/reviews/2").short
        )
        ended = _ends(old)
        check.judge(
            "old connection",
            f"an idle plaintext connection of before, {DRAIN_SECONDS} s later (drainSeconds)",
            expected="closed",
            got=ended,
            ok=ended == "closed" and time.monotonic() - tightened < DRAIN_SECONDS + _SLACK,
            evidence=f"{time.monotonic() - tightened:.1f} s after the edit",
        )


def _ends(connection: socket.socket) -> str:
    """How an idle connection ends."""
    try:
        return "closed" if not connection.recv(1) else "data"
    except ConnectionResetError:
        return "closed"
    except TimeoutError:
        return f"still open after {_PATIENCE:.0f} s"


def _permissive(demo: Demo, check: Check) -> None:
    target = demo.layout.proxy("reviews")
    open_page = call(target, "/health")
    check.expect(
        "PERMISSIVE",
        "plain GET /health, which asks for no identity, under PERMISSIVE",
        expected="200, XFCC none",
        got=f"{open_page.short}, XFCC {xfcc.peers(open_page.json.get('xfcc', []))}",
        evidence=f"{_FILE}: mtls.mode edited while running",
    )
    forged = call(target, "/health", headers={"x-forwarded-client-cert": f"URI={at.spiffe_id('web')}"})
    check.expect(
        "PERMISSIVE, forged",
        "the same with a forged XFCC header",
        expected="200, XFCC none",
        got=f"{forged.short}, XFCC {xfcc.peers(forged.json.get('xfcc', []))}",
    )
    check.expect(
        "PERMISSIVE, identity wanted",
        "plain GET /reviews/2, which is for web only",
        expected="403 RBAC: access denied",
        got=call(target, "/reviews/2").short,
    )
    check.expect(
        "PERMISSIVE, mutual TLS",
        "web by its proxy at the same time",
        expected="200",
        got=call(demo.egress("web", at.EGRESS_REVIEWS), "/reviews/2").short,
    )


def _strict(demo: Demo, check: Check, name: str, answer: Answer) -> None:
    reached = demo.seen("reviews")["paths"].get("/health?strict", 0)
    check.judge(
        name,
        f"plain GET straight to reviews' proxy, {name}",
        expected=_REFUSED,
        got=answer.short,
        ok=answer.status is None and answer.refusal in {"reset", "closed"} and reached == 0,
        evidence=f"requests of it that reached the application: {reached}",
    )
