"""Building predicates without redundant levels, and deciding what is known of them beforehand."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from mesh.policy.predicates import (
    NEVER,
    AllOf,
    Always,
    AnyOf,
    DestinationPort,
    MatchKind,
    Not,
    PeerNamespace,
    PeerServiceAccount,
    PeerTrustDomain,
    PeerUri,
    Predicate,
    StringMatch,
)

ALWAYS: Final = Always()
IDENTITY: Final = (PeerUri, PeerNamespace, PeerServiceAccount, PeerTrustDomain)
"""Leaves that are decided by the certificate of the peer alone."""


def string_match(pattern: str, *, ignore_case: bool = False) -> StringMatch:
    """`abc` exact, `abc*` prefix, `*abc` suffix, `*` present; any other star is literal (policy a.5)."""
    if pattern == "*":
        return StringMatch(MatchKind.PRESENT)
    if pattern.startswith("*"):
        return StringMatch(MatchKind.SUFFIX, pattern[1:], ignore_case)
    if pattern.endswith("*"):
        return StringMatch(MatchKind.PREFIX, pattern[:-1], ignore_case)
    return StringMatch(MatchKind.EXACT, pattern, ignore_case)


def all_of(parts: Iterable[Predicate]) -> Predicate:
    """AND; of nothing = Always."""
    parts = tuple(parts)
    if len(parts) == 1:  # by far the most frequent, and hashing a large part is dear
        return parts[0]
    flat: dict[Predicate, None] = {}
    for part in parts:
        if isinstance(part, AllOf):
            flat.update(dict.fromkeys(part.parts))
        elif part == NEVER:
            return NEVER
        elif not isinstance(part, Always):
            flat[part] = None
    if not flat:
        return ALWAYS
    return next(iter(flat)) if len(flat) == 1 else AllOf(tuple(flat))


def any_of(parts: Iterable[Predicate]) -> Predicate:
    """OR; of nothing = NEVER. Equal parts count once, their order stays."""
    parts = tuple(parts)
    if len(parts) == 1:
        return parts[0]
    flat: dict[Predicate, None] = {}
    for part in parts:
        if isinstance(part, Always):
            return ALWAYS
        if isinstance(part, AnyOf):
            flat.update(dict.fromkeys(part.parts))
        else:
            flat[part] = None
    return next(iter(flat)) if len(flat) == 1 else AnyOf(tuple(flat))


def is_identity(predicate: Predicate) -> bool:
    """True for an identity, or an OR of identities, with nothing else and no NOT."""
    if isinstance(predicate, AnyOf):
        return bool(predicate.parts) and all(isinstance(part, IDENTITY) for part in predicate.parts)
    return isinstance(predicate, IDENTITY)


def decide(predicate: Predicate, leaf: Callable[[Predicate], bool | None]) -> bool | None:
    """Three-valued truth of a predicate.

    Args:
        predicate: the whole.
        leaf: what is known of a leaf; None = unknown.
    """
    match predicate:
        case Always():
            return True
        case Not(part):
            known = decide(part, leaf)
            return None if known is None else not known
        case AllOf(parts):
            results = {decide(part, leaf) for part in parts}
            return False if False in results else (None if None in results else True)
        case AnyOf(parts):
            results = {decide(part, leaf) for part in parts}
            return True if True in results else (None if None in results else False)
        case _:
            return leaf(predicate)


def on_port(predicate: Predicate, port: int) -> bool | None:
    """What a permission is on one port; None = it depends on more than the port."""
    return decide(predicate, lambda leaf: leaf.port == port if isinstance(leaf, DestinationPort) else None)


def on_plaintext(predicate: Predicate) -> bool | None:
    """What a principal is for a caller without a certificate; None = it depends on other things."""
    return decide(predicate, lambda leaf: False if isinstance(leaf, IDENTITY) else None)


def mentions_identity(predicate: Predicate) -> bool:
    """True when an identity occurs anywhere."""
    match predicate:
        case Not(part):
            return mentions_identity(part)
        case AllOf(parts) | AnyOf(parts):
            return any(mentions_identity(part) for part in parts)
        case _:
            return isinstance(predicate, IDENTITY)
