"""Check 1: the good path."""

from __future__ import annotations

from examples.demo import layout as at
from examples.demo import xfcc
from examples.demo.harness import Demo
from examples.demo.model import Check
from examples.demo.plain import call
from examples.demo.tls import attempt, client_context

NAME = "web -> reviews over mutual TLS"
INTENT = (
    "The applications speak plain HTTP to their own proxy; between the proxies it is mutual TLS, and the"
    " server's proxy tells its application who called (x-forwarded-client-cert, XFCC)."
)

_FORGED = f"By=spiffe://x;URI={at.spiffe_id('admin')}"


def run(demo: Demo, check: Check) -> None:
    front = demo.layout.proxy("web")
    answer = call(front)
    reviews = answer.json.get("upstream") or {}
    ratings = reviews.get("upstream") or {}
    services = ", ".join(str(hop.get("service")) for hop in (answer.json, reviews, ratings))
    check.expect(
        "chain",
        "GET / at web, which asks reviews, which asks ratings",
        expected="200 web, reviews, ratings",
        got=f"{answer.status} {services}",
        evidence=f"curl http://{front[0]}:{front[1]}/",
    )
    for server, client, seen in (("reviews", "web", reviews), ("ratings", "reviews", ratings)):
        values = seen.get("xfcc", [])
        check.expect(
            f"{server} saw",
            f"who called {server}, as its proxy says (XFCC)",
            expected=at.spiffe_id(client),
            got=xfcc.peers(values),
            evidence=f"{len(xfcc.elements(values))} element: {', '.join(values)[:160]}",
        )
    egress = demo.egress("web", at.EGRESS_REVIEWS)
    forged = call(egress, "/reviews/2", headers={"x-forwarded-client-cert": _FORGED})
    check.expect(
        "forged header, by proxy",
        "the same with a forged XFCC header by the application",
        expected=f"200, {at.spiffe_id('web')}",
        got=f"{forged.status}, {xfcc.peers(forged.json.get('xfcc', []))}",
    )
    _direct(demo, check)


def _direct(demo: Demo, check: Check) -> None:
    """Past web's own proxy, straight to reviews' proxy, with web's certificate."""
    identity = demo.watches["web"].current
    outcome = attempt(
        demo.layout.proxy("reviews"),
        client_context(identity),
        "/reviews/2",
        headers={"x-forwarded-client-cert": _FORGED},
    )
    check.expect(
        "forged header, direct",
        "the same past web's own proxy, straight to reviews' proxy",
        expected=f"200, {at.spiffe_id('web')}",
        got=f"{outcome.status}, {xfcc.peers(outcome.json.get('xfcc', []))}",
    )
    serials = {entry.serial for entry in demo.watches["reviews"].history}
    known = outcome.server_serial in serials
    check.judge(
        "server's certificate",
        "the certificate that reviews' proxy showed",
        expected=f"{at.spiffe_id('reviews')}, a serial of the Workload API",
        got=f"{outcome.server_id}, {'that serial' if known else 'an unknown serial'}",
        ok=outcome.server_id == at.spiffe_id("reviews") and known,
        evidence=f"{outcome.version}, serial {outcome.server_serial}; client's serial"
        f" {identity.serial if identity else '-'}",
    )
