"""Scopes, age, inheritance; what is remembered between calls."""

from __future__ import annotations

import dataclasses

import pytest

from mesh.policy.effective import AuthzPolicy, JwtPolicy, MtlsMode
from mesh.policy.policyset import PolicySet
from mesh.policy.resolve import resolve, resolve_transport
from mesh.spiffe import TrustDomain
from tests.fakes.policy_objects import (
    FALLBACK,
    MESH,
    ROOT,
    authz,
    effective,
    parsed,
    peer_auth,
    policy_set,
    request_auth,
    workload,
)

HTTPBIN = {"matchLabels": {"app": "httpbin"}}


def mode(name: str) -> dict[str, dict[str, str]]:
    return {"mtls": {"mode": name}}


def test_nothing_at_all_is_permissive_and_open() -> None:
    found = effective()
    assert found.transport.mode is MtlsMode.PERMISSIVE
    assert found.jwt == JwtPolicy()
    assert found.authz == AuthzPolicy()
    assert found.findings == ()


@pytest.mark.parametrize(
    ("objects", "expected"),
    [
        pytest.param([peer_auth(mode("STRICT"), namespace=ROOT)], MtlsMode.STRICT, id="mesh"),
        pytest.param(
            [peer_auth(mode("STRICT"), namespace=ROOT), peer_auth(mode("DISABLE"))],
            MtlsMode.DISABLE,
            id="namespace",
        ),
        pytest.param(
            [peer_auth(mode("STRICT")), peer_auth({"selector": HTTPBIN} | mode("DISABLE"), name="w")],
            MtlsMode.DISABLE,
            id="workload",
        ),
        pytest.param([peer_auth(mode("STRICT"), namespace="bar")], MtlsMode.PERMISSIVE, id="other-namespace"),
        pytest.param(
            [peer_auth({"selector": {"matchLabels": {"app": "x"}}} | mode("STRICT"))],
            MtlsMode.PERMISSIVE,
            id="other-labels",
        ),
        pytest.param(
            [peer_auth({"selector": HTTPBIN} | mode("STRICT"), namespace=ROOT)],
            MtlsMode.PERMISSIVE,
            id="root-selector-is-not-mesh-wide",
        ),
        pytest.param(
            [
                peer_auth(mode("STRICT"), namespace=ROOT),
                peer_auth({}),
                peer_auth({"selector": HTTPBIN}, name="w"),
            ],
            MtlsMode.STRICT,
            id="P-06-unset-inherits-twice",
        ),
        pytest.param([peer_auth(mode("UNSET"))], MtlsMode.PERMISSIVE, id="unset-everywhere"),
    ],
)
def test_narrowest_scope_that_is_set_decides(objects: list[dict[str, object]], expected: MtlsMode) -> None:
    assert effective(*objects).transport.mode is expected


def test_port_level_unset_inherits_and_undeclared_ports_count() -> None:
    found = effective(
        peer_auth(mode("STRICT")),
        peer_auth(
            {
                "selector": HTTPBIN,
                "portLevelMtls": {"8080": {"mode": "UNSET"}, "9000": {"mode": "DISABLE"}},
            },
            name="w",
        ),
    )
    assert dict(found.transport.ports) == {8080: MtlsMode.STRICT, 9000: MtlsMode.DISABLE}
    assert found.transport.for_port(7) is MtlsMode.STRICT


def test_oldest_wins_in_each_scope_and_the_loser_is_told() -> None:
    young = peer_auth(mode("DISABLE"), name="a", creationTimestamp="2026-01-02T00:00:00Z")
    old = peer_auth(mode("STRICT"), name="b", creationTimestamp="2026-01-01T00:00:00Z")
    for objects in ((young, old), (old, young)):
        found = effective(*objects)
        assert found.transport.mode is MtlsMode.STRICT
        (finding,) = found.findings
        assert str(finding.code) == "policy_not_oldest"
        assert finding.ref.name == "a"
        assert "PeerAuthentication foo/b is older" in finding.message


def test_age_ties_go_by_name_and_objects_without_age_are_youngest_by_position() -> None:
    when = "2026-01-01T00:00:00Z"
    tie = [peer_auth(mode("DISABLE"), name="b", creationTimestamp=when)]
    tie.append(peer_auth(mode("STRICT"), name="a", creationTimestamp=when))
    assert effective(*tie).transport.mode is MtlsMode.STRICT
    mixed = [peer_auth(mode("DISABLE"), name="a"), *tie]
    assert effective(*mixed).transport.mode is MtlsMode.STRICT
    first, second = peer_auth(mode("STRICT"), name="z"), peer_auth(mode("DISABLE"), name="a")
    assert effective(first, second).transport.mode is MtlsMode.STRICT
    assert effective(second, first).transport.mode is MtlsMode.DISABLE


def test_workload_objects_do_not_merge() -> None:
    found = effective(
        peer_auth({"selector": HTTPBIN, "portLevelMtls": {"8080": {"mode": "STRICT"}}}, name="a"),
        peer_auth({"selector": HTTPBIN, "portLevelMtls": {"9000": {"mode": "STRICT"}}}, name="b"),
    )
    assert dict(found.transport.ports) == {8080: MtlsMode.STRICT}
    assert [str(f.code) for f in found.findings] == ["policy_not_oldest"]


def test_a_selector_in_the_root_namespace_holds_there_and_says_so() -> None:
    pod = workload(namespace=ROOT)
    found = effective(peer_auth({"selector": HTTPBIN} | mode("STRICT"), namespace=ROOT), pod=pod)
    assert found.transport.mode is MtlsMode.STRICT
    (finding,) = found.findings
    assert str(finding.code) == "policy_root_selector"
    assert "its own namespace only (mesh-system)" in finding.message


def test_mesh_object_is_the_namespace_object_in_the_root_namespace() -> None:
    found = effective(peer_auth(mode("STRICT"), namespace=ROOT), pod=workload(namespace=ROOT))
    assert found.transport.mode is MtlsMode.STRICT
    assert found.findings == ()


# --- tokens --------------------------------------------------------------------------------------


def rule(**changed: object) -> dict[str, object]:
    return {"issuer": "https://i1.example", "jwksUri": "https://i1.example/jwks"} | changed


def test_request_authentications_of_all_scopes_count_together() -> None:
    found = effective(
        request_auth({"jwtRules": [rule(issuer="mesh")]}, namespace=ROOT),
        request_auth({"selector": HTTPBIN, "jwtRules": [rule(issuer="label")]}, namespace=ROOT, name="l"),
        request_auth({"jwtRules": [rule(issuer="space"), rule(issuer="space", audiences=["a"])]}),
        request_auth({"selector": HTTPBIN, "jwtRules": [rule(issuer="pod")]}, name="w"),
        request_auth({"jwtRules": [rule(issuer="other")]}, namespace="bar"),
        request_auth({"selector": {"matchLabels": {"app": "x"}}, "jwtRules": [rule(issuer="no")]}, name="x"),
        request_auth(
            {"targetRefs": [{"kind": "Gateway", "name": "g"}], "jwtRules": [rule(issuer="gw")]}, name="g"
        ),
    )
    assert sorted(p.issuer for p in found.jwt.providers) == ["label", "mesh", "pod", "space", "space"]
    (region,) = found.jwt.regions
    assert region.paths == ()
    assert region.providers == tuple(p.key for p in found.jwt.providers)
    assert region.allow_missing
    assert not region.allow_failed


def test_provider_keys_are_stable_and_equal_rules_are_one_provider() -> None:
    one = effective(request_auth({"jwtRules": [rule()]}), request_auth({"jwtRules": [rule()]}, name="q"))
    (provider,) = one.jwt.providers
    rotated = effective(request_auth({"jwtRules": [rule()]}), key_sets={"https://i1.example/jwks": "K1b"})
    assert rotated.jwt.providers[0].key == provider.key
    assert rotated.jwt.providers[0].jwks == "K1b"
    for changed in (
        {"audiences": ["x"]},
        {"fromParams": ["t"]},
        {"jwksUri": "https://other.example/jwks"},
        {"forwardOriginalToken": True},
        {"issuer": "https://i1.example/"},
    ):
        other = effective(request_auth({"jwtRules": [rule(**changed)]}))
        assert other.jwt.providers[0].key != provider.key, changed


def test_two_uris_of_one_issuer_do_not_share_keys() -> None:
    found = effective(
        request_auth({"jwtRules": [rule(), rule(jwksUri="https://i2.example/jwks")]}),
    )
    assert sorted(p.jwks for p in found.jwt.providers) == ["K1", "K2"]


def test_no_rules_means_tokens_are_not_looked_at() -> None:
    assert effective(request_auth({"jwtRules": []})).jwt == JwtPolicy()


# --- access --------------------------------------------------------------------------------------


def test_authorization_policies_of_all_scopes_count_together() -> None:
    found = effective(
        authz({}, namespace=ROOT),
        authz({"selector": HTTPBIN}, namespace=ROOT, name="label"),
        authz({}, name="space"),
        authz({"selector": HTTPBIN}, name="pod"),
        authz({}, namespace="bar"),
        authz({"selector": {"matchLabels": {"app": "httpbin", "v": "2"}}}, name="both"),
        authz({"targetRefs": [{"kind": "Gateway", "name": "g"}]}, name="gw"),
    )
    assert [rule.key for rule in found.authz.http.allow or ()] == [
        "ns[foo]-policy[pod]-rule[0]",
        "ns[foo]-policy[space]-rule[0]",
        "ns[mesh-system]-policy[label]-rule[0]",
        "ns[mesh-system]-policy[p]-rule[0]",
    ]


def test_actions_and_dry_run_are_kept_apart() -> None:
    everything = [{}]
    dry = {"istio.io/dry-run": "true"}
    found = effective(
        authz({"action": "AUDIT", "rules": everything}, name="audit"),
        authz({"action": "DENY", "rules": everything}, name="deny"),
        authz({"action": "DENY", "rules": everything}, name="dry-deny", annotations=dry),
        authz({"rules": everything}, name="dry-allow", annotations=dry),
        authz({"rules": everything}, name="not-dry", annotations={"istio.io/dry-run": "false"}),
    ).authz.http
    assert [r.key for r in found.audit] == ["ns[foo]-policy[audit]-rule[0]"]
    assert [r.key for r in found.deny] == ["ns[foo]-policy[deny]-rule[0]"]
    assert [r.key for r in found.dry_run_deny] == ["ns[foo]-policy[dry-deny]-rule[0]"]
    assert [r.key for r in found.dry_run_allow or ()] == ["ns[foo]-policy[dry-allow]-rule[0]"]
    assert [r.key for r in found.allow or ()] == ["ns[foo]-policy[not-dry]-rule[0]"]


def test_a_dry_run_allow_does_not_close_the_workload() -> None:
    found = effective(authz({}, annotations={"istio.io/dry-run": "true"})).authz
    assert found.http.allow is None
    assert found.tcp.allow is None
    assert found.http.dry_run_allow is not None


# --- the set -------------------------------------------------------------------------------------


def test_two_objects_of_one_name_are_an_error_and_the_older_counts() -> None:
    policies = policy_set(peer_auth(mode("STRICT")), peer_auth(mode("DISABLE")), authz({}))
    (finding,) = policies.findings
    assert str(finding.code) == "policy_duplicate_object"
    assert "PeerAuthentication foo/p exists already" in finding.message
    assert len(policies.policies) == 2
    assert resolve_transport(policies, "foo", {}, MESH).mode is MtlsMode.STRICT


def test_equal_work_gives_the_same_objects() -> None:
    policies = policy_set(
        peer_auth(mode("STRICT")),
        request_auth({"jwtRules": [rule()]}),
        authz({"rules": [{}]}),
        authz({}, name="q"),
    )

    def once(which: PolicySet = policies):
        return resolve(which, workload(), MESH, key_sets={}, fallback_jwks=FALLBACK)

    first, second = once(), once()
    assert first.authz is second.authz
    assert first.jwt is second.jwt
    assert first.transport is second.transport
    changed = parsed(authz({"action": "DENY", "rules": [{}]}, name="q"))
    kept = [policy for policy in policies.policies if policy.meta.ref.name != "q"]
    after = once(PolicySet([*kept, changed], previous=policies))
    assert first.authz.http.allow is not None
    assert after.authz.http.allow is not None
    assert after.authz.http.allow[0] is first.authz.http.allow[0]
    assert [r.key for r in after.authz.http.deny] == ["ns[foo]-policy[q]-rule[0]"]


def test_memory_of_a_set_is_bounded_and_trust_domains_are_part_of_the_key() -> None:
    policies = policy_set(
        authz({"rules": [{"from": [{"source": {"principals": ["cluster.local/ns/a/sa/b"]}}]}]})
    )
    here = resolve(policies, workload(), MESH, key_sets={}, fallback_jwks=FALLBACK)
    there = dataclasses.replace(MESH, trust_domain=TrustDomain("other.example"))
    assert resolve(policies, workload(), there, key_sets={}, fallback_jwks=FALLBACK).authz != here.authz
    for number in range(5000):
        policies.remember(("test", number), lambda: "x")
    again = resolve(policies, workload(), MESH, key_sets={}, fallback_jwks=FALLBACK)
    assert again.authz == here.authz
