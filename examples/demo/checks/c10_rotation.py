"""Check 10: renewals under load."""

from __future__ import annotations

import contextlib

from examples.demo import layout as at
from examples.demo.harness import LEAF_SECONDS, Demo
from examples.demo.layout import WORKLOADS
from examples.demo.model import Check, DemoError
from examples.demo.processes import wait_for
from examples.demo.svid import Identity
from examples.demo.tls import attempt, client_context

NAME = "rotation under load: new serial, new key, no failed request"
INTENT = (
    f"SVIDs live {LEAF_SECONDS} s here and are renewed at half of it. Watched on the Workload API since the"
    " start, while four flows of load run and the checks above edit policies and endpoints."
)
RENEWALS = 3
_PATIENCE = 4 * LEAF_SECONDS


def run(demo: Demo, check: Check) -> None:
    demo.start_load()
    with contextlib.suppress(DemoError):  # the rows below say how many there were
        wait_for(
            "three renewals of each SVID",
            lambda: _enough(demo),
            seconds=_PATIENCE,
            every=0.1,
        )
    for name in WORKLOADS:
        renewals = _renewals(demo, name)
        history = demo.watches[name].history
        serials, keys = {e.serial for e in history}, {e.public_key for e in history}
        new = len(serials) == len(keys) == len(history)
        check.judge(
            name,
            f"renewals of {name} under load",
            expected=f"{RENEWALS} or more, each with a new serial and a new key",
            got=f"{len(renewals)}, {len(serials)} serials and {len(keys)} keys in {len(history)} SVIDs",
            ok=new and len(renewals) >= RENEWALS,
            evidence="serial/key " + ", ".join(f"{e.serial[:8]}/{e.public_key[:8]}" for e in history),
        )
    _in_use(demo, check)
    tally = demo.load.tally()
    seconds = demo.load.seconds()
    check.judge(
        "load",
        f"continuous load for {seconds:.0f} s",
        expected="0 failed",
        got=tally.short,
        ok=tally.failures == 0 and all(tally.by_flow.values()) and bool(tally.requests),
        evidence="; ".join([tally.flows, *tally.messages[:3]]),
    )


def _enough(demo: Demo) -> bool:
    counts = {name: len(_renewals(demo, name)) for name in WORKLOADS}
    told = ", ".join(f"{name} {count}" for name, count in counts.items())
    demo.report.progress(f"10  renewals so far: {told}; load: {demo.load.tally().short}")
    return all(count >= RENEWALS for count in counts.values())


def _renewals(demo: Demo, workload: str) -> list[Identity]:
    """SVIDs that came after the load had begun."""
    return demo.watches[workload].history[demo.load_from[workload] :]


def _in_use(demo: Demo, check: Check) -> None:
    """The proxies do not only have the new certificate: they show it."""
    outcome = attempt(demo.layout.proxy("reviews"), client_context(demo.watches["web"].current), "/health")
    serials = [entry.serial for entry in demo.watches["reviews"].history]
    place = serials.index(outcome.server_serial) + 1 if outcome.server_serial in serials else 0
    check.judge(
        "in use",
        "the certificate that reviews' proxy shows now",
        expected="the newest",
        got=f"number {place} of {len(serials)}" if place else f"unknown: {outcome.short}",
        # A renewal may fall between the handshake and the look at the history.
        ok=place > 1 and place >= len(serials) - 1,
        evidence=f"{at.spiffe_id('reviews')}, serial {outcome.server_serial}",
    )
