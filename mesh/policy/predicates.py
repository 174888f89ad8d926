"""The algebra that access rules are compiled into.

Both generations of policy kinds end here: a closed set of leaves, with AND, OR and NOT. Each leaf
says *what* must hold; how Envoy checks it is known only to `mesh.envoy.rbac`. All meaning (trust
domain aliases, wildcards, splitting of request principals, what is dropped on TCP) has been
decided before a predicate exists.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class MatchKind(enum.Enum):
    """How a string is compared; patterns other than these do not exist (no free regex)."""

    EXACT = "exact"
    PREFIX = "prefix"
    SUFFIX = "suffix"
    PRESENT = "present"  # any non-empty value; `value` is ""


@dataclass(frozen=True, slots=True)
class StringMatch:
    """A comparison with one string. `ignore_case` only for host and header *names* and hosts."""

    kind: MatchKind
    value: str = ""
    ignore_case: bool = False


# --- combinators -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Always:
    """True for everything."""


@dataclass(frozen=True, slots=True)
class AllOf:
    """True when every part is; an empty AllOf is not allowed (use Always)."""

    parts: tuple[Predicate, ...]


@dataclass(frozen=True, slots=True)
class AnyOf:
    """True when some part is; an empty AnyOf is never true."""

    parts: tuple[Predicate, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """True when the part is not."""

    part: Predicate


# --- who is calling (principals) ---------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PeerUri:
    """The whole SPIFFE URI of the validated client certificate (`spiffe://td/ns/x/sa/y`).

    PRESENT means: any peer with a verified SPIFFE identity. Never true on plaintext.
    """

    match: StringMatch


@dataclass(frozen=True, slots=True)
class PeerNamespace:
    """The namespace of the peer's identity, in any trust domain that TLS accepts."""

    match: StringMatch


@dataclass(frozen=True, slots=True)
class PeerServiceAccount:
    """Exactly one service account, in any trust domain that TLS accepts."""

    namespace: str
    name: str


@dataclass(frozen=True, slots=True)
class PeerTrustDomain:
    """The trust domain of the peer's identity."""

    match: StringMatch


@dataclass(frozen=True, slots=True)
class DirectSourceIp:
    """TCP peer address within a CIDR block, e.g. `10.0.0.0/8`."""

    cidr: str


@dataclass(frozen=True, slots=True)
class RemoteIp:
    """Client address as derived from X-Forwarded-For, within a CIDR block."""

    cidr: str


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim of the verified token: a string, or a list holding such a string.

    Attributes:
        path: claim name, then nested keys; `("iss",)`, `("realm", "roles")`.
    """

    path: tuple[str, ...]
    match: StringMatch


# --- what is being asked (permissions) ----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Path:
    """Normalised request path without the query."""

    match: StringMatch


@dataclass(frozen=True, slots=True)
class PathTemplate:
    """Envoy URI template with `{*}` and `{**}`."""

    template: str


@dataclass(frozen=True, slots=True)
class Method:
    """HTTP method, case-sensitive."""

    match: StringMatch


@dataclass(frozen=True, slots=True)
class Host:
    """Host header (`:authority`), with or without port, compared without regard to case."""

    match: StringMatch


@dataclass(frozen=True, slots=True)
class Header:
    """A request header; each value of a repeated header is tried."""

    name: str
    match: StringMatch


@dataclass(frozen=True, slots=True)
class DestinationPort:
    """Workload port."""

    port: int


@dataclass(frozen=True, slots=True)
class DestinationIp:
    """Destination address within a CIDR block."""

    cidr: str


@dataclass(frozen=True, slots=True)
class Sni:
    """Server name of the TLS ClientHello."""

    match: StringMatch


@dataclass(frozen=True, slots=True)
class FilterMetadata:
    """Dynamic metadata of an Envoy filter (`experimental.envoy.filters.<filter>[<key>]`)."""

    filter: str
    path: tuple[str, ...]
    match: StringMatch


Leaf = (
    PeerUri
    | PeerNamespace
    | PeerServiceAccount
    | PeerTrustDomain
    | DirectSourceIp
    | RemoteIp
    | Claim
    | Path
    | PathTemplate
    | Method
    | Host
    | Header
    | DestinationPort
    | DestinationIp
    | Sni
    | FilterMetadata
)
Predicate = Always | AllOf | AnyOf | Not | Leaf

NEVER = AnyOf(())
"""Matches nothing: `spec: {}` of an ALLOW policy, so that logs still name its owner."""
