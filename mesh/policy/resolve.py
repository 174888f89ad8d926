"""(policies, workload) -> what applies to it: the one entry for the agent.

Transport: the oldest PeerAuthentication of each scope, workload over namespace over mesh; UNSET
inherits. Tokens: all RequestAuthentications together. Access: all AuthorizationPolicies together.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from mesh.meshconfig import MeshConfig
from mesh.policy.codes import PolicyCode
from mesh.policy.effective import (
    AuthzPolicy,
    EffectivePolicy,
    Finding,
    JwtPolicy,
    JwtProvider,
    JwtRegion,
    MtlsMode,
    Rule,
    RuleSets,
    Severity,
    TransportPolicy,
)
from mesh.policy.model import Action, AuthorizationPolicy, JwtRule, PeerAuthentication, RequestAuthentication
from mesh.policy.peers import identity_only_peers
from mesh.policy.policyset import PolicySet
from mesh.policy.remarks import access_findings
from mesh.topology import Workload

__all__ = ["PolicySet", "identity_only_peers", "resolve", "resolve_transport"]

DEFAULT_MODE: Final = MtlsMode.PERMISSIVE
_Entry = tuple[int, AuthorizationPolicy]
_Scopes = tuple[list[tuple[int, PeerAuthentication]], ...]


def resolve(
    policies: PolicySet,
    workload: Workload,
    mesh: MeshConfig,
    *,
    key_sets: Mapping[str, str],
    fallback_jwks: str,
) -> EffectivePolicy:
    """Everything that policy says about one workload.

    Args:
        policies: the set; reuse it between calls, it remembers what it compiled.
        workload: namespace, labels and ports count.
        mesh: root namespace and trust domains count.
        key_sets: canonical JSON (`mesh.policy.jwks`) by `JwtRule.keys_address`.
        fallback_jwks: key set whose private half nobody has, for issuers without keys: their tokens
            are refused with 401, requests without a token go on (design D14).
    """
    transport = resolve_transport(policies, workload.namespace, workload.labels, mesh)
    findings = _transport_findings(policies, workload, mesh, transport)
    jwt = _resolve_jwt(
        policies, workload, mesh, key_sets=key_sets, fallback_jwks=fallback_jwks, findings=findings
    )
    entries = policies.authz.selected(mesh.root_namespace, workload.namespace, workload.labels)
    domains = mesh.trust_domains
    selected = (domains, tuple(position for position, _ in entries))
    authz = policies.remember(("authz", *selected), lambda: _authz(policies, entries, mesh))
    ports = tuple((port.number, port.protocol) for port in workload.ports)
    findings += policies.remember(
        ("remarks", *selected, ports, transport.mode, tuple(transport.ports.items())),
        lambda: access_findings(
            [(policy, policies.compiled(policy, domains)) for _, policy in entries], workload, transport
        ),
    )
    return EffectivePolicy(transport, jwt, authz, tuple(findings))


# --- transport -----------------------------------------------------------------------------------


def resolve_transport(
    policies: PolicySet, namespace: str, labels: Mapping[str, str], mesh: MeshConfig
) -> TransportPolicy:
    """Mutual TLS modes of a workload's ports; cheap, for every endpoint of every service."""
    scopes = _scopes(policies, namespace, labels, mesh)
    oldest = tuple(scope[0] if scope else None for scope in scopes)
    key = ("transport", tuple(None if entry is None else entry[0] for entry in oldest))
    return policies.remember(key, lambda: _transport([entry[1] for entry in oldest if entry is not None]))


def _scopes(policies: PolicySet, namespace: str, labels: Mapping[str, str], mesh: MeshConfig) -> _Scopes:
    """Objects of mesh, namespace and workload, oldest first."""
    root = mesh.root_namespace
    return (
        policies.peer.unselective(root),
        policies.peer.unselective(namespace) if namespace != root else [],
        policies.peer.selective(namespace, labels),
    )


def _transport(chosen: list[PeerAuthentication]) -> TransportPolicy:
    """Widest scope first; UNSET inherits (policy b.1)."""
    mode = DEFAULT_MODE
    ports: tuple[tuple[int, MtlsMode], ...] = ()
    for policy in chosen:
        mode = mode if policy.mode is MtlsMode.UNSET else policy.mode
        ports = policy.ports  # only the workload's own object can have any
    resolved = {number: mode if unset is MtlsMode.UNSET else unset for number, unset in ports}
    return TransportPolicy(mode, MappingProxyType(resolved))


def _transport_findings(
    policies: PolicySet, workload: Workload, mesh: MeshConfig, transport: TransportPolicy
) -> list[Finding]:
    findings = []
    scopes = _scopes(policies, workload.namespace, workload.labels, mesh)
    for scope in scopes:
        findings += [
            _warning(
                PolicyCode.NOT_OLDEST,
                loser,
                "metadata.name",
                f"{scope[0][1].meta.ref} is older and concerns the same workloads: only the oldest counts,"
                " they do not merge; put the settings into one object",
            )
            for _, loser in scope[1:]
        ]
    for _, policy in scopes[2][:1]:
        if workload.namespace == mesh.root_namespace:
            findings.append(
                _warning(
                    PolicyCode.ROOT_SELECTOR,
                    policy,
                    "spec.selector",
                    f"a PeerAuthentication with a selector holds in its own namespace only"
                    f" ({workload.namespace}); remove the selector to set the mode of the whole mesh",
                )
            )
        declared = sorted(port.number for port in workload.ports)
        findings += [
            _warning(
                PolicyCode.PORT_NOT_DECLARED,
                policy,
                f"spec.portLevelMtls[{number}]",
                f"workload {workload.namespace}/{workload.name} declares no port {number}"
                f" (it has {', '.join(map(str, declared)) or 'none'}); ports are those of the container,"
                " not of the service",
            )
            for number in transport.ports
            if number not in declared
        ]
    return findings


def _warning(
    code: PolicyCode,
    policy: PeerAuthentication | RequestAuthentication,
    field: str,
    message: str,
) -> Finding:
    ref = policy.meta.ref
    return Finding(code, Severity.WARNING, ref, field, message, ref.source)


# --- tokens --------------------------------------------------------------------------------------


def _resolve_jwt(
    policies: PolicySet,
    workload: Workload,
    mesh: MeshConfig,
    *,
    key_sets: Mapping[str, str],
    fallback_jwks: str,
    findings: list[Finding],
) -> JwtPolicy:
    """All rules of all objects together: any issuer's good token passes, a bad token never (policy b.2)."""
    chosen: list[tuple[JwtRule, str]] = []
    for _, policy in policies.request.selected(mesh.root_namespace, workload.namespace, workload.labels):
        for index, rule in enumerate(policy.rules):
            address = rule.keys_address
            jwks = rule.jwks or (key_sets.get(address, "") if address else "")
            if not jwks:
                findings.append(_no_keys(policy, index, rule))
            chosen.append((rule, jwks or fallback_jwks))
    return policies.remember(("jwt", tuple(chosen)), lambda: _jwt_policy(chosen))


def _jwt_policy(chosen: list[tuple[JwtRule, str]]) -> JwtPolicy:
    providers = {_provider_key(rule): _provider(rule, jwks) for rule, jwks in chosen}
    if not providers:
        return JwtPolicy()
    keys = tuple(sorted(providers))
    return JwtPolicy(tuple(providers[key] for key in keys), (JwtRegion(providers=keys),))


def _no_keys(policy: RequestAuthentication, index: int, rule: JwtRule) -> Finding:
    if rule.jwks_uri:
        field, what = "jwksUri", f"no key set is known for {rule.jwks_uri[:200]!r}"
    else:
        where = rule.keys_address[:200]
        field, what = (
            "issuer",
            f"no key set is known for {where!r}, where the issuer says which keys it has"
            if where
            else "neither jwks nor jwksUri is given, and the issuer is no URL that keys are found by",
        )
    return _warning(
        PolicyCode.JWKS_UNAVAILABLE,
        policy,
        f"spec.jwtRules[{index}].{field}",
        f"{what}: every token of this issuer is refused (401) until there is one",
    )


def _provider(rule: JwtRule, jwks: str) -> JwtProvider:
    return JwtProvider(
        key=_provider_key(rule),
        issuer=rule.issuer,
        audiences=rule.audiences,
        jwks=jwks,
        from_headers=rule.from_headers,
        from_params=rule.from_params,
        from_cookies=rule.from_cookies,
        forward=rule.forward,
        output_payload_header=rule.output_payload_header,
        claim_headers=rule.claim_headers,
        space_delimited_claims=rule.space_delimited_claims,
    )


@functools.lru_cache(maxsize=1024)
def _provider_key(rule: JwtRule) -> str:
    """The same for equal rules, whatever object they are in; does not change when keys rotate."""
    content = [
        rule.issuer,
        sorted(rule.audiences),
        rule.jwks_uri,
        rule.jwks,
        [[header.name, header.prefix] for header in rule.from_headers],
        rule.from_params,
        rule.from_cookies,
        rule.output_payload_header,
        rule.claim_headers,
        rule.forward,
        rule.space_delimited_claims,
    ]
    return "jwt-" + hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


# --- access --------------------------------------------------------------------------------------


def _authz(policies: PolicySet, entries: list[_Entry], mesh: MeshConfig) -> AuthzPolicy:
    """Rules by action; by namespace and name of their policy, so that age does not show."""
    ordered = sorted(entries, key=lambda entry: (entry[1].meta.ref.namespace, entry[1].meta.ref.name))
    compiled = [(policy, policies.compiled(policy, mesh.trust_domains)) for _, policy in ordered]
    return AuthzPolicy(
        http=_rule_sets([(policy, found.http) for policy, found in compiled]),
        tcp=_rule_sets([(policy, found.tcp) for policy, found in compiled]),
    )


def _rule_sets(rules: list[tuple[AuthorizationPolicy, tuple[Rule, ...]]]) -> RuleSets:
    def of(action: Action, *, dry_run: bool) -> tuple[Rule, ...]:
        return tuple(
            rule
            for policy, found in rules
            if policy.action is action and policy.dry_run is dry_run
            for rule in found
        )

    # An ALLOW policy always has a rule, so that no rule means no policy: everything passes.
    return RuleSets(
        audit=of(Action.AUDIT, dry_run=False),
        deny=of(Action.DENY, dry_run=False),
        allow=of(Action.ALLOW, dry_run=False) or None,
        dry_run_deny=of(Action.DENY, dry_run=True),
        dry_run_allow=of(Action.ALLOW, dry_run=True) or None,
    )
