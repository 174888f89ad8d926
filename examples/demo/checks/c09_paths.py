"""Check 9: other ways to write a path."""

from __future__ import annotations

from examples.demo import layout as at
from examples.demo.harness import Demo
from examples.demo.model import Check
from examples.demo.plain import call
from examples.demo.tls import attempt, client_context

NAME = "path tricks do not get past a DENY on /admin"
INTENT = (
    "web may GET anything on reviews but /admin (DENY reviews-no-admin). Each path is sent byte for byte, by"
    " web's proxy and past it, straight to reviews' proxy."
)
_DENIED = "403 RBAC: access denied"

TRICKS = (
    "/admin",
    "/admin?x=1",
    "//admin",
    "/%2fadmin",
    "/a/../admin",
    "/%61dmin",
    "/./admin",
    "/a/%2e%2e/admin",
    "/a%2f..%2fadmin",
    "/a\\..\\admin",
    "/%5Cadmin",
    "/a/..//admin",
)
OTHERS = ("/public", "//public", "/ADMIN", "/administrator", "/admin/", "/a//../admin/x", "/%252fadmin")
"""Not /admin, however they are normalised: here other rules would have to speak."""


def run(demo: Demo, check: Check) -> None:
    for path in TRICKS:
        _row(demo, check, path, _DENIED)
    reached = demo.seen("reviews")["paths"]
    check.expect(
        "application",
        "requests for /admin that reached the application",
        expected="0",
        got=str(sum(count for seen, count in reached.items() if seen.partition("?")[0] == "/admin")),
    )
    for path in OTHERS:
        _row(demo, check, path, "200", name=f"twin: {path}")


def _row(demo: Demo, check: Check, path: str, expected: str, name: str = "") -> None:
    by_proxy = call(demo.egress("web", at.EGRESS_REVIEWS), path)
    direct = attempt(demo.layout.proxy("reviews"), client_context(demo.watches["web"].current), path)
    same = by_proxy.short == direct.short
    got = by_proxy.short if same else f"{by_proxy.short}; direct: {direct.short}"
    forwarded = by_proxy.json.get("path")
    check.expect(
        name or path,
        f"GET {path}",
        expected=expected,
        got=got,
        evidence=f"the application saw {forwarded}" if forwarded and forwarded != path else "",
    )
