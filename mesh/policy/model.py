"""The modern policy kinds as frozen values: what a parsed and accepted object says.

Nothing here knows how a rule is checked; patterns are kept as their author wrote them
(`abc*` prefix, `*abc` suffix, `*` present, else exact) and are given a meaning in `compile`.
"""

from __future__ import annotations

import datetime as dt
import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from mesh.policy.effective import JwtHeader, MtlsMode, ObjectRef
from mesh.policy.oidc import discovery_address

GROUP: Final = "security.istio.io"
API_VERSIONS: Final = (f"{GROUP}/v1", f"{GROUP}/v1beta1")
PEER_AUTHENTICATION: Final = "PeerAuthentication"
REQUEST_AUTHENTICATION: Final = "RequestAuthentication"
AUTHORIZATION_POLICY: Final = "AuthorizationPolicy"
KINDS: Final = (PEER_AUTHENTICATION, REQUEST_AUTHENTICATION, AUTHORIZATION_POLICY)


@dataclass(frozen=True, slots=True)
class Selector:
    """Workload labels that must all be present with these values.

    Attributes:
        labels: pairs (key, value), sorted, at least one.
    """

    labels: tuple[tuple[str, str], ...]

    def matches(self, labels: Mapping[str, str]) -> bool:
        """True when a workload with `labels` is selected."""
        return all(labels.get(key) == value for key, value in self.labels)


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyMeta:
    """What all kinds share.

    Attributes:
        created: None when the object did not come from an API server; then its position decides
            about age.
        selector: None = every workload of the scope.
        gateway_only: has `targetRefs`: it concerns gateways and waypoints, never a sidecar.
    """

    ref: ObjectRef
    created: dt.datetime | None = None
    selector: Selector | None = None
    gateway_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerAuthentication:
    """Transport mode of workloads; `ports` by workload (container) port."""

    meta: PolicyMeta
    mode: MtlsMode = MtlsMode.UNSET
    ports: tuple[tuple[int, MtlsMode], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class JwtRule:
    """One issuer that is trusted.

    Attributes:
        issuer: compared with `iss` byte for byte; empty when only `jwks_uri` was given, and then
            not compared.
        jwks: canonical JSON of an inline key set, or empty.
        jwks_uri: where the key set is; empty with an empty `jwks` = found by OIDC discovery.
        timeout_seconds: of fetching the key set.
    """

    issuer: str = ""
    audiences: tuple[str, ...] = ()
    jwks_uri: str = ""
    jwks: str = ""
    from_headers: tuple[JwtHeader, ...] = ()
    from_params: tuple[str, ...] = ()
    from_cookies: tuple[str, ...] = ()
    output_payload_header: str = ""
    claim_headers: tuple[tuple[str, str], ...] = ()
    forward: bool = False
    timeout_seconds: float = 5.0
    space_delimited_claims: tuple[str, ...] = ("scope", "permission")

    @property
    def keys_address(self) -> str:
        """The address by which the key set is known; empty when it is inline, or cannot be anywhere."""
        return "" if self.jwks else self.jwks_uri or discovery_address(self.issuer)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestAuthentication:
    """Issuers whose tokens are validated."""

    meta: PolicyMeta
    rules: tuple[JwtRule, ...] = ()


class Action(enum.Enum):
    """What a matching rule does. CUSTOM is refused by the parser: there is no provider for it."""

    ALLOW = "ALLOW"
    DENY = "DENY"
    AUDIT = "AUDIT"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Who is calling: fields are ANDed, values of a field ORed, `not_x` is NOT(OR).

    Attributes:
        service_accounts: `<namespace>/<name>`; the parser fills in the policy's own namespace.
        ip_blocks: CIDR blocks in canonical form; the address of the TCP peer.
        remote_ip_blocks: the same for the address from X-Forwarded-For.
    """

    principals: tuple[str, ...] = ()
    not_principals: tuple[str, ...] = ()
    request_principals: tuple[str, ...] = ()
    not_request_principals: tuple[str, ...] = ()
    namespaces: tuple[str, ...] = ()
    not_namespaces: tuple[str, ...] = ()
    service_accounts: tuple[str, ...] = ()
    not_service_accounts: tuple[str, ...] = ()
    trust_domains: tuple[str, ...] = ()
    not_trust_domains: tuple[str, ...] = ()
    ip_blocks: tuple[str, ...] = ()
    not_ip_blocks: tuple[str, ...] = ()
    remote_ip_blocks: tuple[str, ...] = ()
    not_remote_ip_blocks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """What is asked: fields are ANDed, values of a field ORed, `not_x` is NOT(OR).

    Attributes:
        ports: decimal workload port numbers, as text.
        paths: patterns, or templates when they hold `{*}` or `{**}`.
    """

    hosts: tuple[str, ...] = ()
    not_hosts: tuple[str, ...] = ()
    ports: tuple[str, ...] = ()
    not_ports: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    not_methods: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    not_paths: tuple[str, ...] = ()


class ConditionKind(enum.Enum):
    """Attribute of a `when` condition; the value is the key, or its part before `[`."""

    REQUEST_HEADER = "request.headers"
    SOURCE_IP = "source.ip"
    REMOTE_IP = "remote.ip"
    SOURCE_NAMESPACE = "source.namespace"
    SOURCE_PRINCIPAL = "source.principal"
    SOURCE_SERVICE_ACCOUNT = "source.serviceAccount"
    SOURCE_TRUST_DOMAIN = "source.trustDomain"
    REQUEST_PRINCIPAL = "request.auth.principal"
    REQUEST_AUDIENCES = "request.auth.audiences"
    REQUEST_PRESENTER = "request.auth.presenter"
    REQUEST_CLAIMS = "request.auth.claims"
    DESTINATION_IP = "destination.ip"
    DESTINATION_PORT = "destination.port"
    CONNECTION_SNI = "connection.sni"
    ENVOY_FILTER = "experimental.envoy.filters"


@dataclass(frozen=True, slots=True)
class ConditionKey:
    """A parsed key of a condition.

    Attributes:
        path: header name (lower case), claim path, or (filter name, key); else empty.
    """

    kind: ConditionKind
    path: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Condition:
    """One `when` entry: OR(values) AND NOT(OR(not_values))."""

    key: ConditionKey
    values: tuple[str, ...] = ()
    not_values: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AuthzRule:
    """OR(sources) AND OR(operations) AND AND(conditions); an empty tuple matches everything."""

    sources: tuple[Source, ...] = ()
    operations: tuple[Operation, ...] = ()
    conditions: tuple[Condition, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorizationPolicy:
    """Access rules.

    Attributes:
        rules: empty with ALLOW = nothing is allowed; never empty with DENY or AUDIT.
        dry_run: only reported (annotation `istio.io/dry-run`).
    """

    meta: PolicyMeta
    action: Action = Action.ALLOW
    rules: tuple[AuthzRule, ...] = ()
    dry_run: bool = False


Policy = PeerAuthentication | RequestAuthentication | AuthorizationPolicy
