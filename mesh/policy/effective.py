"""What applies to one workload after resolution: the only policy types that rendering sees."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from mesh.errors import Code
from mesh.policy.predicates import Predicate, StringMatch


class MtlsMode(enum.Enum):
    """Transport mode of a port on the server side; UNSET inherits and never leaves the resolver."""

    UNSET = "UNSET"
    DISABLE = "DISABLE"
    PERMISSIVE = "PERMISSIVE"
    STRICT = "STRICT"


@dataclass(frozen=True, slots=True)
class ObjectRef:
    """Where a decision comes from, for reports: the object, and the place where it was written.

    Attributes:
        source: `file:line` in file mode, empty when the object came from an API server.
    """

    kind: str
    namespace: str
    name: str
    generation: int = 0
    source: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}"


class Severity(enum.Enum):
    """Whether an object was refused, or merely does something its author may not expect."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Finding:
    """One remark about a policy object: nothing is ever ignored in silence.

    Attributes:
        field: path in the object, e.g. `spec.rules[0].from[1].source.principals[0]`.
        message: one sentence: what was found, what is allowed, what to do.
        place: `file:line` of the field, where it is known; `ref.source` is that of the object.
    """

    code: Code
    severity: Severity
    ref: ObjectRef
    field: str
    message: str
    place: str = ""

    def __str__(self) -> str:
        place = self.place or self.ref.source
        head = f"{place}: {self.ref}" if place else str(self.ref)
        return f"{head}: {self.field}: {self.message} [{self.code}]"


@dataclass(frozen=True, slots=True)
class TransportPolicy:
    """Mutual TLS modes of a workload's ports (workload port numbers)."""

    mode: MtlsMode = MtlsMode.PERMISSIVE
    ports: Mapping[int, MtlsMode] = field(default_factory=dict)

    def for_port(self, number: int) -> MtlsMode:
        """Mode of a port, declared or not; never UNSET."""
        return self.ports.get(number, self.mode)


@dataclass(frozen=True, slots=True)
class JwtHeader:
    """Where a token may be: header name and the exact prefix before the token."""

    name: str
    prefix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class JwtProvider:
    """One issuer as one RequestAuthentication rule sees it.

    Attributes:
        key: unique among the workload's providers and stable (part of resource bytes).
        jwks: JSON of the key set, re-encoded, public members only; never empty (D14: the fallback
            is a throw-away key, so that tokens fail closed with 401).
        from_headers, from_params, from_cookies: all empty = `Authorization: Bearer `, then
            `access_token`.
        claim_headers: pairs (header, claim).
    """

    key: str
    issuer: str
    audiences: tuple[str, ...] = ()
    jwks: str
    from_headers: tuple[JwtHeader, ...] = ()
    from_params: tuple[str, ...] = ()
    from_cookies: tuple[str, ...] = ()
    forward: bool = False
    output_payload_header: str = ""
    claim_headers: tuple[tuple[str, str], ...] = ()
    space_delimited_claims: tuple[str, ...] = ("scope", "permission")


@dataclass(frozen=True, slots=True, kw_only=True)
class JwtRegion:
    """Requests (by path) and the providers that count there; the first matching region decides.

    Attributes:
        paths: empty = every path.
        providers: keys of providers; empty = no validation at all in this region.
        allow_missing: a request without a token passes (modern: always; legacy: never).
        allow_failed: a request with a bad token passes without identity (legacy originIsOptional).
    """

    paths: tuple[StringMatch, ...] = ()
    providers: tuple[str, ...] = ()
    allow_missing: bool = True
    allow_failed: bool = False


@dataclass(frozen=True, slots=True)
class JwtPolicy:
    """Origin authentication of a workload; no regions = tokens are not looked at."""

    providers: tuple[JwtProvider, ...] = ()
    regions: tuple[JwtRegion, ...] = ()


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule: principal AND permission.

    Attributes:
        key: `ns[<namespace>]-policy[<name>]-rule[<index>]`, as Istio writes it into logs.
    """

    key: str
    principal: Predicate
    permission: Predicate
    ref: ObjectRef


@dataclass(frozen=True, slots=True)
class RuleSets:
    """Rules by action, in evaluation order audit, deny, allow.

    Attributes:
        allow: None = no ALLOW policy selects the workload, everything not denied passes; an empty
            tuple = default deny.
        dry_run_allow: like `allow`, but only reported.
    """

    audit: tuple[Rule, ...] = ()
    deny: tuple[Rule, ...] = ()
    allow: tuple[Rule, ...] | None = None
    dry_run_deny: tuple[Rule, ...] = ()
    dry_run_allow: tuple[Rule, ...] | None = None


@dataclass(frozen=True, slots=True)
class AuthzPolicy:
    """Access rules of a workload, as they hold for requests and for bare connections.

    `tcp` already has what cannot be checked without HTTP dropped (ALLOW) or widened (DENY).
    """

    http: RuleSets = RuleSets()
    tcp: RuleSets = RuleSets()


@dataclass(frozen=True, slots=True)
class EffectivePolicy:
    """Everything that policy says about one workload."""

    transport: TransportPolicy = TransportPolicy()
    jwt: JwtPolicy = JwtPolicy()
    authz: AuthzPolicy = AuthzPolicy()
    findings: tuple[Finding, ...] = ()
