"""Check 6: claims of a token in access rules."""

from __future__ import annotations

from examples.demo import layout as at
from examples.demo.harness import Demo
from examples.demo.issuer import user_claims
from examples.demo.model import Check
from examples.demo.plain import bearer, call

NAME = "claims of a token decide"
INTENT = "DELETE on reviews is for tokens whose groups hold admin, and only when web brings them."
_DENIED = "403 RBAC: access denied"


def run(demo: Demo, check: Check) -> None:
    web = demo.egress("web", at.EGRESS_REVIEWS)
    cases = (
        ("admin", ["readers", "admin"], "200"),
        ("admin alone", "admin", "200"),
        ("readers", ["readers"], _DENIED),
        ("look-alike", ["administrators", "admin "], _DENIED),
        ("no groups", None, _DENIED),
    )
    for name, groups, expected in cases:
        token = demo.users.sign(user_claims(groups=groups))
        answer = call(web, "/reviews/7", method="DELETE", headers=bearer(token))
        check.expect(name, f"web: DELETE, groups {groups}", expected=expected, got=answer.short)
    check.expect(
        "no token",
        "web: DELETE, no token",
        expected=_DENIED,
        got=call(web, "/reviews/7", method="DELETE").short,
    )
    stolen = demo.users.sign(user_claims(groups=["admin"]))
    answer = call(
        demo.egress("intruder", at.EGRESS_REVIEWS), "/reviews/7", method="DELETE", headers=bearer(stolen)
    )
    check.expect("stolen", "intruder: DELETE with an admin's token", expected=_DENIED, got=answer.short)
