"""TCP ports that only ask who is calling: those identities can be demanded in the TLS handshake.

Network RBAC decides on the first byte of the client, after a server that speaks first has already sent
its greeting. Where rules ask for identities alone, the same answer can be given earlier (design D9a).
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

from mesh.policy.algebra import decide, on_port
from mesh.policy.effective import Rule, RuleSets
from mesh.policy.predicates import (
    AnyOf,
    MatchKind,
    PeerNamespace,
    PeerServiceAccount,
    PeerTrustDomain,
    PeerUri,
    Predicate,
    StringMatch,
)
from mesh.spiffe import SCHEME, TrustDomain


def identity_only_peers(
    rules: RuleSets, port: int, trust_domains: tuple[TrustDomain, ...]
) -> tuple[StringMatch, ...] | None:
    """URI matchers for the TLS context of a TCP port, or None when identities alone do not decide.

    Args:
        rules: of connections (`AuthzPolicy.tcp`).
        port: workload port.
        trust_domains: those that TLS accepts. Matchers in a TLS context replace the list of trust
            domains there, so that each matcher returned lies within one of them.

    Returns:
        EXACT and PREFIX matchers, any of which lets a peer in. An empty tuple means that nobody may
        connect: the caller must write a matcher that never holds, since an empty list in a TLS context
        lets everybody in.
    """
    if rules.allow is None:
        return None
    matches: dict[StringMatch, None] = {}
    for rule in rules.allow:
        applies = on_port(rule.permission, port)
        if applies is False:
            continue
        found = _matchers(rule.principal, trust_domains)
        if applies is None or found is None:
            return None
        matches.update(dict.fromkeys(found))
    allowed = tuple(sorted(matches, key=lambda match: (match.kind.value, match.value)))
    for rule in rules.deny:
        if on_port(rule.permission, port) is False:
            continue
        remaining = _without(allowed, rule, port)
        if remaining is None:
            return None
        allowed = remaining
    return allowed


def _matchers(principal: Predicate, trust_domains: tuple[TrustDomain, ...]) -> list[StringMatch] | None:
    """URI matchers of identities; None for what is more than identities, or is no exact or prefix."""
    roots = [f"{SCHEME}{td.name}/" for td in trust_domains]
    match principal:
        case AnyOf(parts):
            found: list[StringMatch] = []
            for part in parts:
                matchers = _matchers(part, trust_domains)
                if matchers is None:
                    return None
                found += matchers
            return found
        case PeerServiceAccount(namespace, name):
            return _each(MatchKind.EXACT, (f"{root}ns/{namespace}/sa/{name}" for root in roots))
        case PeerNamespace(StringMatch(MatchKind.EXACT, value)) if "/" not in value:
            return _each(MatchKind.PREFIX, (f"{root}ns/{value}/" for root in roots))
        case PeerTrustDomain(StringMatch(MatchKind.EXACT, value)):
            return _each(MatchKind.PREFIX, (root for root in roots if root == f"{SCHEME}{value}/"))
        case PeerUri(StringMatch(MatchKind.PRESENT)):
            return _each(MatchKind.PREFIX, roots)
        case PeerUri(StringMatch(MatchKind.EXACT, value)):
            return _each(MatchKind.EXACT, (value for root in roots if value.startswith(root)))
        case PeerUri(StringMatch(MatchKind.PREFIX, value)):
            # `spiffe://clus` reaches over the name of a trust domain: all of that domain, and no other.
            inside = [value for root in roots if value.startswith(root)]
            return _each(MatchKind.PREFIX, inside or [root for root in roots if root.startswith(value)])
        case _:
            return None


def _each(kind: MatchKind, values: Iterable[str]) -> list[StringMatch]:
    return [StringMatch(kind, value) for value in values]


def _without(allowed: tuple[StringMatch, ...], rule: Rule, port: int) -> tuple[StringMatch, ...] | None:
    """What is left of exact identities after a DENY; None when that depends on more than identities."""
    if not allowed:
        return allowed
    if on_port(rule.permission, port) is None or any(m.kind is not MatchKind.EXACT for m in allowed):
        return None
    remaining = []
    for match in allowed:
        denied = decide(rule.principal, functools.partial(_holds, match.value))
        if denied is None:
            return None
        if not denied:
            remaining.append(match)
    return tuple(remaining)


def _holds(uri: str, leaf: Predicate) -> bool | None:
    """Whether an identity leaf holds for a URI; None for leaves about other things."""
    domain, _, path = uri.removeprefix(SCHEME).partition("/")
    parts = path.split("/")
    match leaf:
        case PeerUri(match):
            return _compare(match, uri)
        case PeerTrustDomain(match):
            return _compare(match, domain)
        case PeerNamespace(match):
            return len(parts) > 1 and parts[0] == "ns" and _compare(match, parts[1])
        case PeerServiceAccount(namespace, name):
            return path == f"ns/{namespace}/sa/{name}"
        case _:
            return None


def _compare(match: StringMatch, text: str) -> bool:
    match match.kind:
        case MatchKind.EXACT:
            return text == match.value
        case MatchKind.PREFIX:
            return text.startswith(match.value)
        case MatchKind.SUFFIX:
            return text.endswith(match.value)
        case MatchKind.PRESENT:
            return bool(text)
