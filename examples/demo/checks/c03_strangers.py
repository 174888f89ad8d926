"""Check 3: certificates that must not get through the handshake."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, replace

from examples.demo import layout as at
from examples.demo.forge import Signer, insider, outsider
from examples.demo.harness import Demo
from examples.demo.model import Check
from examples.demo.svid import Identity
from examples.demo.tls import TLS12, TLS13, Outcome, attempt, client_context

NAME = "strangers are refused in the handshake"
INTENT = (
    "Clients of TLS 1.2 and 1.3 dial reviews' proxy. The insider signs with the demo authority's own key, so"
    " that nothing but the name or the dates can be the reason of a refusal."
)
_HOUR = dt.timedelta(hours=1)
_PATH = "/health?stranger"


@dataclass(frozen=True, slots=True)
class Stranger:
    """A client, and the alert that it should get (`alert12` where TLS 1.2 has no such alert)."""

    name: str
    tried: str
    identity: Identity | None
    alert: str
    alert12: str = ""


_REASONS = {
    "without a certificate": "ssl.fail_verify_no_cert",
    "by chain or dates": "ssl.fail_verify_error",
    "by name": "ssl.fail_verify_san",
}


def run(demo: Demo, check: Check) -> None:
    own = insider(demo.layout.state)
    before = _refusals(demo)
    for stranger in _strangers(own):
        outcomes = _both(demo, stranger.identity)
        alerts = (stranger.alert12 or stranger.alert, stranger.alert)
        check.judge(
            stranger.name,
            stranger.tried,
            expected=f"refused: {_texts(alerts)}",
            got=f"refused: {_texts(tuple(outcome.refusal for outcome in outcomes))}"
            if all(outcome.in_handshake for outcome in outcomes)
            else _texts(tuple(outcome.short for outcome in outcomes)),
            ok=all(_refused(outcome, alert) for outcome, alert in zip(outcomes, alerts, strict=True)),
        )
    counted = {reason: count - before[reason] for reason, count in _refusals(demo).items()}
    check.expect(
        "reasons",
        "why, as reviews' proxy counted them",
        expected="2 without a certificate, 6 by chain or dates, 4 by name",
        got=", ".join(f"{count} {reason}" for reason, count in counted.items()),
        evidence=", ".join(_REASONS.values()),
    )
    check.expect(
        "application",
        "requests of all these that reached the application",
        expected="0",
        got=str(demo.seen("reviews")["paths"].get(_PATH, 0)),
    )
    twins = (
        ("twin: web's own", "web's own certificate", demo.watches["web"].current),
        ("twin: insider", "the insider's, with the right name and dates", own.issue(at.spiffe_id("web"))),
    )
    for name, tried, identity in twins:
        outcomes = _both(demo, identity)
        got = _texts(tuple(outcome.short for outcome in outcomes))
        check.expect(name, tried, expected=_texts(("200", "200")), got=got)


def _strangers(own: Signer) -> tuple[Stranger, ...]:
    """One for each reason to refuse a certificate."""
    web = at.spiffe_id("web")
    foreign, evil = (web.replace("cluster.local", name) for name in ("other.example", "cluster.local.evil"))
    past, future = own.issue(web, start=-2 * _HOUR, end=-_HOUR), own.issue(web, start=_HOUR, end=2 * _HOUR)
    return (
        Stranger(
            "no certificate",
            "no client certificate",
            None,
            "certificate_required",
            alert12="handshake_failure",
        ),
        Stranger("other CA", "web's name, certified by another CA", outsider().issue(web), "unknown_ca"),
        Stranger(
            "other trust domain", f"the right CA, but {foreign}", own.issue(foreign), "certificate_unknown"
        ),
        Stranger(
            "look-alike trust domain", f"the right CA, but {evil}", own.issue(evil), "certificate_unknown"
        ),
        Stranger("expired", "the right CA and name, ended an hour ago", past, "certificate_expired"),
        Stranger("not yet valid", "the right CA and name, begins in an hour", future, "certificate_expired"),
    )


def _refusals(demo: Demo) -> dict[str, int]:
    """Handshakes that reviews' proxy refused so far, by its own reasons."""
    return {reason: demo.stat("reviews", name) for reason, name in _REASONS.items()}


def _refused(outcome: Outcome, alert: str) -> bool:
    """With the alert; or with a bare reset, which can overtake it on a busy machine: see `reasons` then."""
    return outcome.in_handshake and outcome.refusal in {alert, "reset", "closed"}


def _both(demo: Demo, identity: Identity | None) -> tuple[Outcome, Outcome]:
    """The same attempt with TLS 1.2 and 1.3; an attacker does not verify the server."""
    attacker = replace(identity, roots_pem=b"") if identity is not None else None
    first, second = (
        attempt(
            demo.layout.proxy("reviews"),
            client_context(attacker, version=version),
            _PATH,
            wait_for_alert=True,
        )
        for version in (TLS12, TLS13)
    )
    return first, second


def _texts(pair: tuple[str, ...]) -> str:
    first, second = pair
    return f"{first} (TLS 1.2, 1.3)" if first == second else f"{first} (1.2), {second} (1.3)"
