"""Check 11: the authority goes away and comes back."""

from __future__ import annotations

import contextlib
import time
from typing import Any

from examples.demo.harness import LEAF_SECONDS, Demo
from examples.demo.layout import WORKLOADS
from examples.demo.model import Check, DemoError
from examples.demo.plain import call
from examples.demo.processes import wait_for
from examples.demo.tls import attempt, client_context

NAME = "the authority is killed and started again"
INTENT = "Traffic goes on with the SVIDs at hand; when the authority is back, renewals resume by themselves."


def run(demo: Demo, check: Check) -> None:
    demo.start_load()
    before = demo.load.tally()
    pid = demo.ca.pid
    killed = time.monotonic()
    demo.ca.kill()
    check.expect(
        "killed",
        "SIGKILL to the authority",
        expected="not ready",
        got="ready" if demo.ca_ready() else "not ready",
    )
    demo.report.progress("11  the authority is away; waiting for a renewal to fall due")
    failing = _first_failure(demo)
    check.judge(
        "reported",
        "a renewal that falls due meanwhile",
        expected="fails, and is reported",
        got=f"{failing['workload']}: {failing['failures']} failures" if failing else "no failure reported",
        ok=failing is not None,
        evidence=f"{failing['code']}: {failing['error']}"[:300] if failing else "",
    )
    _traffic(demo, check)
    restarted = time.monotonic()
    old = {name: len(demo.watches[name].history) for name in WORKLOADS}
    demo.ca.start()
    demo.wait_for("the authority to be ready again", demo.ca_ready, demo.ca)
    ready = time.monotonic()
    _resumed(demo, check, old, ready)
    tally = demo.load.tally().since(before)
    check.judge(
        "load",
        f"load while the authority was away ({ready - killed:.1f} s), and after",
        expected="0 failed",
        got=tally.short,
        ok=tally.failures == 0 and tally.requests > 0,
        evidence="; ".join(
            [
                f"old pid {pid}, new pid {demo.ca.pid}, up again in {ready - restarted:.1f} s",
                *tally.messages[:3],
            ]
        ),
    )


def _first_failure(demo: Demo) -> dict[str, Any] | None:
    def look() -> dict[str, Any] | None:
        return next((w for w in demo.status()["workloads"] if w["failures"] > 0), None)

    try:
        return wait_for("a renewal to fail", look, seconds=LEAF_SECONDS * 0.6, every=0.05)
    except DemoError:
        return None


def _traffic(demo: Demo, check: Check) -> None:
    check.expect(
        "traffic",
        "web -> reviews -> ratings while the authority is away",
        expected="200",
        got=call(demo.layout.proxy("web")).short,
    )
    identity = demo.watches["web"].current
    fresh = attempt(demo.layout.proxy("reviews"), client_context(identity), "/reviews/2")
    check.expect(
        "new connections",
        "a full handshake with web's SVID meanwhile",
        expected="200",
        got=fresh.short,
        evidence=f"serial {identity.serial}, ends {identity.not_after:%H:%M:%S} UTC"
        if identity is not None
        else "",
    )


def _resumed(demo: Demo, check: Check, old: dict[str, int], ready: float) -> None:
    def renewed() -> bool:
        return all(len(demo.watches[name].history) > old[name] for name in WORKLOADS)

    with contextlib.suppress(DemoError):  # the row says which were not
        wait_for("all SVIDs to be renewed again", renewed, seconds=LEAF_SECONDS, every=0.05)
    late = [name for name in WORKLOADS if len(demo.watches[name].history) <= old[name]]
    check.judge(
        "resumed",
        "the authority is started again; nobody tells the agent",
        expected="all four SVIDs renewed",
        got=f"not renewed: {', '.join(late)}" if late else "all four SVIDs renewed",
        ok=not late,
        evidence=f"{time.monotonic() - ready:.1f} s after it was ready: "
        + ", ".join(f"{n} {demo.watches[n].history[-1].serial[:8]}" for n in WORKLOADS),
    )
    states = {w["workload"]: w["state"] for w in demo.status()["workloads"]}
    check.judge(
        "healthy",
        "what the agent says of its identities",
        expected="none waiting or expired",
        got=", ".join(sorted(set(states.values()))),
        ok=not {"waiting", "expired"} & set(states.values()),
        evidence=", ".join(f"{name} {state}" for name, state in sorted(states.items())),
    )
