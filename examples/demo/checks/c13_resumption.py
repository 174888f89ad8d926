"""Check 13: TLS session resumption."""

from __future__ import annotations

import ssl

from examples.demo import layout as at
from examples.demo.forge import outsider
from examples.demo.harness import Demo
from examples.demo.model import Check
from examples.demo.server import TlsServer
from examples.demo.svid import Identity
from examples.demo.tls import TLS12, TLS13, Outcome, attempt, client_context, version_name

NAME = "a resumed TLS session gets the same answer"
INTENT = (
    "On a resumed session a proxy does not see the peer's certificate, and a DENY by identity would not"
    " match. The client offers the session of its first connection at the second: a DENY stays a DENY."
)
_DENIED = "403 RBAC: access denied"


def run(demo: Demo, check: Check) -> None:
    for version in (TLS12, TLS13):
        _client_can(check, version)
        web, reviews = demo.layout.proxy("web"), demo.layout.proxy("reviews")
        cases: tuple[tuple[str, str, tuple[str, int], str, str], ...] = (
            ("DENY", "intruder", web, "/private", _DENIED),
            ("twin: not denied", "reviews", web, "/private", "200"),
            ("ALLOW", "web", reviews, "/reviews/2", "200"),
            ("no ALLOW", "intruder", reviews, "/reviews/2", _DENIED),
        )
        for name, client, target, path, expected in cases:
            outcomes = _twice(demo.watches[client].current, target, path, version)
            server = "web" if target == web else "reviews"
            check.expect(
                f"{name}, {version_name(version)}",
                f"{client}: GET {path} at {server}, full handshake; again, offering the session"
                f" ({version_name(version)})",
                expected=f"{expected}; {expected}",
                got=f"{outcomes[0].short}; {outcomes[1].short}",
                evidence=f"session offered: {'yes' if outcomes[0].session else 'the server gave none'};"
                f" resumed: {'yes' if outcomes[1].reused else 'no, a full handshake'}",
            )


def _client_can(check: Check, version: ssl.TLSVersion) -> None:
    """Proof that the client of these rows does resume where a server lets it."""
    identity = outsider().issue(at.spiffe_id("anybody"))
    with TlsServer(("127.0.0.1", 0), identity) as server:
        first, second = _twice(None, server.address, "/", version)
    check.expect(
        f"client, {version_name(version)}",
        f"the same client at a server that resumes ({version_name(version)})",
        expected="200, resumed",
        got=f"{second.short}, {'resumed' if second.reused else 'not resumed'}",
        evidence=f"first connection: {'resumed' if first.reused else 'full handshake'}",
    )


def _twice(
    identity: Identity | None, target: tuple[str, int], path: str, version: ssl.TLSVersion
) -> tuple[Outcome, Outcome]:
    context = client_context(identity, version=version)
    first = attempt(target, context, path)
    return first, attempt(target, context, path, session=first.session)
