"""Check 4: who may call whom."""

from __future__ import annotations

from examples.demo import layout as at
from examples.demo.harness import Demo
from examples.demo.model import Check
from examples.demo.plain import call
from examples.demo.tls import attempt, client_context

NAME = "access by identity"
INTENT = (
    "reviews lets web read (AuthorizationPolicy reviews-callers); intruder has an identity, but no"
    " permission."
)
_DENIED = "403 RBAC: access denied"


def run(demo: Demo, check: Check) -> None:
    web = demo.egress("web", at.EGRESS_REVIEWS)
    intruder = demo.egress("intruder", at.EGRESS_REVIEWS)
    check.expect("web GET", "web: GET reviews", expected="200", got=call(web, "/reviews/2").short)
    check.expect(
        "intruder GET", "intruder: GET reviews", expected=_DENIED, got=call(intruder, "/reviews/2").short
    )
    check.expect(
        "web POST",
        "web: POST reviews",
        expected=_DENIED,
        got=call(web, "/reviews/2", method="POST", body=b"{}").short,
    )
    identity = demo.watches["intruder"].current
    direct = attempt(demo.layout.proxy("reviews"), client_context(identity), "/reviews/2")
    check.expect(
        "intruder, direct",
        "intruder's certificate, past its own proxy",
        expected=_DENIED,
        got=direct.short,
        evidence=f"{direct.version}, serial {identity.serial if identity else '-'}: the handshake is good,"
        " the request is not",
    )
    ratings = demo.egress("intruder", at.EGRESS_RATINGS)
    check.expect(
        "intruder, ratings", "intruder: GET ratings", expected=_DENIED, got=call(ratings, "/ratings/2").short
    )
    check.expect(
        "twin: reviews, ratings",
        "reviews: GET ratings",
        expected="200",
        got=call(demo.egress("reviews", at.EGRESS_RATINGS), "/ratings/2").short,
    )
    check.expect(
        "twin: intruder, web",
        "intruder: GET web, which is open to all",
        expected="200",
        got=call(demo.egress("intruder", at.EGRESS_WEB), "/welcome").short,
    )
