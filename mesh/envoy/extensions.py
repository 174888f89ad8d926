"""HTTP policy as four ECDS resources, which every HTTP chain of the workload names.

A change of policy then reaches open connections in about a millisecond and closes none. "No policy"
is a filter without rules, so that the listener never changes when a first policy appears.

The parts are cached: the bytes of each rule by the rule, and each resource by the policy object it
came from. A workload whose policy is the same object as another's shares the resource.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any, Final

from envoy.config.core.v3 import extension_pb2
from envoy.config.rbac.v3 import rbac_pb2
from envoy.extensions.filters.http.rbac.v3 import rbac_pb2 as http_rbac_pb2
from envoy.extensions.filters.network.rbac.v3 import rbac_pb2 as network_rbac_pb2

from mesh.envoy import messages as m
from mesh.envoy.authn import jwt_authn
from mesh.envoy.cache import Context, RenderCache
from mesh.envoy.rbac import never_policy, policy
from mesh.envoy.resources import EXTENSION_CONFIG, Resource
from mesh.policy.effective import EffectivePolicy, Rule, RuleSets
from mesh.spiffe import TrustDomain

JWT: Final = "jwt"
AUDIT: Final = "authz-audit"
DENY: Final = "authz-deny"
ALLOW: Final = "authz-allow"
HTTP_FILTERS: Final = (JWT, AUDIT, DENY, ALLOW)
"""Names of the resources and of the filters, in the order in which the filters run."""

FILTER_TYPES: Final = {
    JWT: "type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication",
    AUDIT: "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC",
    DENY: "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC",
    ALLOW: "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC",
}

DEFAULT_DENY: Final = "default-deny"
"""Key of the policy that never matches, where an ALLOW set exists and is empty."""

DRY_RUN_DENY: Final = "istio_dry_run_deny_"
DRY_RUN_ALLOW: Final = "istio_dry_run_allow_"

_NETWORK_RBAC: Final = "envoy.filters.network.rbac"


def http_policy(policies: EffectivePolicy, context: Context) -> list[Resource]:
    """The four resources of a workload, in `HTTP_FILTERS` order."""
    jwt = context.cache.by_value(
        ("jwt", policies.jwt, context.mesh),
        lambda: _resource(JWT, jwt_authn(policies.jwt, context.mesh)),
    )
    rules = context.cache.by_identity(
        ("http-rules", context.mesh),
        policies.authz.http,
        lambda: [
            _resource(name, http_rbac_pb2.RBAC(**config))
            for name, config in _configs(policies.authz.http, context, http=True)
        ],
    )
    return [jwt, *rules]


def network_policy(rules: RuleSets, context: Context, stat_prefix: str) -> list[tuple[str, Any]]:
    """Names and configurations of the network RBAC filters of a TCP chain: audit, deny, allow.

    Only those with content: the chain is replaced as a whole when rules change.
    """
    once = network_rbac_pb2.RBAC.ONE_TIME_ON_FIRST_BYTE
    return [
        (
            f"{_NETWORK_RBAC}.{name}",
            network_rbac_pb2.RBAC(stat_prefix=stat_prefix, enforcement_type=once, **config),
        )
        for name, config in _configs(rules, context, http=False)
        if config
    ]


def _resource(name: str, config: Any) -> Resource:
    extension = extension_pb2.TypedExtensionConfig(name=name, typed_config=m.pack(config))
    return Resource.of(EXTENSION_CONFIG, name, m.encode(extension))


def _configs(rules: RuleSets, context: Context, *, http: bool) -> list[tuple[str, dict[str, Any]]]:
    """Fields of the three filters; an empty dict = the filter does nothing."""
    action = rbac_pb2.RBAC

    def build(kind: Any, chosen: tuple[Rule, ...]) -> Any:
        return _rbac(kind, chosen, context, http=http)

    audit: dict[str, Any] = {}
    if rules.audit:
        audit["rules"] = build(action.LOG, rules.audit)
    deny: dict[str, Any] = {}
    if rules.deny:
        deny["rules"] = build(action.DENY, rules.deny)
    if rules.dry_run_deny:
        deny["shadow_rules"] = build(action.DENY, rules.dry_run_deny)
        deny["shadow_rules_stat_prefix"] = DRY_RUN_DENY
    allow: dict[str, Any] = {}
    if rules.allow is not None:
        allow["rules"] = build(action.ALLOW, rules.allow)
    if rules.dry_run_allow is not None:
        allow["shadow_rules"] = build(action.ALLOW, rules.dry_run_allow)
        allow["shadow_rules_stat_prefix"] = DRY_RUN_ALLOW
    return [(AUDIT, audit), (DENY, deny), (ALLOW, allow)]


def _rbac(action: Any, rules: tuple[Rule, ...], context: Context, *, http: bool) -> Any:
    """`rbac.v3.RBAC` from the cached bytes of each rule: concatenated messages merge (protobuf).

    Raises:
        RenderError: when two rules have one key: the map would silently lose the first.
    """
    counts = Counter(rule.key for rule in rules)
    for key, count in counts.items():
        if count > 1:
            raise m.RenderError(m.RenderCode.DUPLICATE_RULE, f"{count} rules have the key {key!r}")
    if not rules and action == rbac_pb2.RBAC.ALLOW:
        return rbac_pb2.RBAC(action=action, policies={DEFAULT_DENY: never_policy()})
    trust_domains = context.mesh.trust_domains
    kind = ("rule", trust_domains, http)
    parts = [
        context.cache.by_identity(kind, rule, partial(_rule, rule, trust_domains, http, context.cache))
        for rule in rules
    ]
    found = rbac_pb2.RBAC.FromString(b"".join(parts))
    found.action = action
    return found


def _rule(rule: Rule, trust_domains: tuple[TrustDomain, ...], http: bool, cache: RenderCache) -> bytes:
    """Bytes of one rule; an equal rule may have been compiled again since."""

    def build() -> bytes:
        compiled = policy(rule.principal, rule.permission, trust_domains, http=http)
        return m.encode(rbac_pb2.RBAC(policies={rule.key: compiled}))

    key = ("rule-value", rule.key, rule.principal, rule.permission, trust_domains, http)
    return cache.by_value(key, build)
