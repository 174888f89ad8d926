"""What all kinds share, and PeerAuthentication: positions, exact fields, all errors at once."""

from __future__ import annotations

import datetime as dt

import pytest

from mesh.policy.effective import MtlsMode, ObjectRef, Severity
from mesh.policy.model import AuthorizationPolicy, PeerAuthentication, Selector
from mesh.policy.parse import PolicyError, is_policy, parse_policy
from mesh.yamldoc import load_documents
from tests.fakes.policy_objects import authz, errors, parsed, peer_auth, policy_object, request_auth, warnings

GOOD = {"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication"}


@pytest.mark.parametrize("version", ["v1", "v1beta1"])
@pytest.mark.parametrize("kind", ["PeerAuthentication", "RequestAuthentication", "AuthorizationPolicy"])
def test_accepts_both_versions_of_every_kind(kind: str, version: str) -> None:
    result = parse_policy(policy_object(kind, {}, version=version))
    assert result.findings == ()
    assert result.unwrap().meta.ref == ObjectRef(kind, "foo", "p")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"apiVersion": "security.istio.io/v1"}, True),
        ({"apiVersion": "security.istio.io/v1alpha1", "kind": "X"}, True),
        ({"apiVersion": "v1"}, False),
        ({"apiVersion": 1}, False),
        ({}, False),
        ([], False),
        (None, False),
    ],
)
def test_knows_the_api_group(data: object, expected: bool) -> None:
    assert is_policy(data) is expected


@pytest.mark.parametrize(
    ("data", "code", "field", "fragment"),
    [
        ({}, "policy_missing_field", "(document)", "apiVersion is missing"),
        (GOOD | {"kind": "PeerAuthn"}, "policy_unknown_kind", "kind", "did you mean 'PeerAuthentication'?"),
        (GOOD | {"kind": 7}, "policy_unknown_kind", "kind", "found 7, allowed are"),
        (GOOD | {"apiVersion": "security.istio.io/v2"}, "policy_unknown_kind", "apiVersion", "v1beta1"),
        (GOOD, "policy_missing_field", "metadata", "name and namespace"),
        (GOOD | {"metadata": []}, "policy_missing_field", "metadata", "name and namespace"),
        (GOOD | {"metadata": {"name": "p"}}, "policy_missing_field", "metadata.namespace", "is missing"),
        (GOOD | {"metadata": {"namespace": "p"}}, "policy_missing_field", "metadata.name", "is missing"),
        (peer_auth({}, name="Pol"), "policy_bad_value", "metadata.name", "a-z 0-9"),
        (peer_auth({}, name=True), "policy_wrong_type", "metadata.name", "the boolean True"),
        (peer_auth({}, namespace="a.b"), "policy_bad_value", "metadata.namespace", "at most 63"),
        (peer_auth({}) | {"sepc": {}}, "policy_unknown_field", "sepc", "did you mean 'spec'?"),
        (peer_auth({}) | {"spec": None}, "policy_wrong_type", "spec", "found null, allowed is a mapping"),
        (peer_auth({}) | {"spec": [1]}, "policy_wrong_type", "spec", "found a list"),
        (
            peer_auth({}, creationTimestamp="yesterday"),
            "policy_bad_value",
            "metadata.creationTimestamp",
            "2026-",
        ),
        (peer_auth({}, creationTimestamp=5), "policy_wrong_type", "metadata.creationTimestamp", "number 5"),
        (
            peer_auth({}, creationTimestamp="2026-01-01T00:00:00"),
            "policy_bad_value",
            "metadata.creationTimestamp",
            "allowed is a time",
        ),
        (peer_auth({}, annotations=[1]), "policy_wrong_type", "metadata.annotations", "a mapping"),
        (
            authz({}, annotations={"istio.io/dry-run": True}),
            "policy_wrong_type",
            'metadata.annotations["istio.io/dry-run"]',
            "put it in quotes",
        ),
        (
            authz({}, annotations={"istio.io/dry-run": "yes"}),
            "policy_bad_value",
            'metadata.annotations["istio.io/dry-run"]',
            "allowed are true, false",
        ),
        (
            peer_auth({}, annotations={"istio.io/dry-run": "true"}),
            "policy_unsupported",
            'metadata.annotations["istio.io/dry-run"]',
            "cannot be tried out",
        ),
    ],
)
def test_refuses_a_broken_envelope(data: dict[str, object], code: str, field: str, fragment: str) -> None:
    result = parse_policy(data)
    assert result.policy is None
    finding = next(f for f in result.findings if (str(f.code), f.field) == (code, field))
    assert finding.severity is Severity.ERROR
    assert fragment in finding.message


def test_reads_age_generation_and_ignores_other_metadata() -> None:
    policy = parsed(
        peer_auth({}, generation=4, creationTimestamp="2026-01-02T03:04:05Z", uid="x", managedFields=[])
        | {"status": {"conditions": []}}
    )
    assert policy.meta.ref.generation == 4
    assert policy.meta.created == dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
    assert parsed(peer_auth({}, creationTimestamp=None)).meta.created is None


def test_a_missing_spec_is_an_empty_one() -> None:
    policy = parsed(authz())
    assert isinstance(policy, AuthorizationPolicy)
    assert policy.rules == ()


def test_names_file_and_line_of_every_error() -> None:
    text = """\
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata:
  name: p
  namespace: foo
spec:
  mtls:
    mode: Strict
  selectr: {}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: q, namespace: foo}
spec:
  rules:
  - from:
    - source:
        principals:
        - spiffe://cluster.local/ns/a/sa/b
"""
    first, second = load_documents(text, "p.yaml")
    result = parse_policy(first.data, source="p.yaml", line_of=first.line_of)
    assert [(f.place, f.field) for f in result.findings] == [
        ("p.yaml:9", "spec.selectr"),
        ("p.yaml:8", "spec.mtls.mode"),
    ]
    assert (
        "allowed are UNSET, DISABLE, PERMISSIVE, STRICT; did you mean 'STRICT'?" in result.findings[1].message
    )
    assert result.findings[0].ref.source == "p.yaml:1"
    result = parse_policy(second.data, source="p.yaml", line_of=second.line_of)
    (finding,) = result.findings
    assert finding.field == "spec.rules[0].from[0].source.principals[0]"
    assert str(finding).startswith("p.yaml:19: AuthorizationPolicy foo/q: spec.rules[0].from[0]")
    with pytest.raises(PolicyError, match="write it without spiffe://") as caught:
        result.unwrap()
    assert str(caught.value.code) == "policy_bad_principal"
    assert caught.value.findings == result.findings


def test_a_source_without_lines_still_names_the_file() -> None:
    result = parse_policy(peer_auth({"mtls": 1}), source="p.json")
    assert result.findings[0].place == "p.json"
    assert str(result.findings[0]).startswith("p.json: PeerAuthentication foo/p: spec.mtls: ")
    (finding,) = parse_policy(peer_auth({"mtls": 1})).findings
    assert str(finding).startswith("PeerAuthentication foo/p: spec.mtls: found the number 1")


def test_the_number_of_findings_is_bounded_and_keeps_an_error() -> None:
    rules = [{"to": [{"operation": {"methods": [f"get{i}" for i in range(300)], "x": ["y"]}}]}]
    result = parse_policy(authz({"rules": [*rules, {"y": 1}]}))
    assert len(result.findings) <= 101
    assert result.policy is None
    only_late = [{"to": [{"operation": {"methods": [f"get{i}" for i in range(300)]}}]}, {"y": 1}]
    late = parse_policy(authz({"rules": only_late}))
    assert late.policy is None
    assert errors(late) == [("policy_unknown_field", "spec.rules[1].y")]


# --- selector and targetRefs ---------------------------------------------------------------------


def test_selector_labels_are_sorted_and_an_empty_selector_selects_everything() -> None:
    policy = parsed(authz("selector: {matchLabels: {b: '2', a: '1'}}"))
    assert policy.meta.selector == Selector((("a", "1"), ("b", "2")))
    assert policy.meta.selector.matches({"a": "1", "b": "2", "c": "3"})
    assert not policy.meta.selector.matches({"a": "1"})
    assert parsed(authz("selector: {}")).meta.selector is None
    assert parsed(authz("selector: {matchLabels: {}}")).meta.selector is None


@pytest.mark.parametrize(
    ("spec", "code", "field"),
    [
        ("selector: ", "policy_wrong_type", "spec.selector"),
        ("selector: {matchLabel: {a: b}}", "policy_unknown_field", "spec.selector.matchLabel"),
        ("selector: {matchExpressions: []}", "policy_unknown_field", "spec.selector.matchExpressions"),
        ("selector: {matchLabels: [a]}", "policy_wrong_type", "spec.selector.matchLabels"),
        ("selector: {matchLabels: {a: 1}}", "policy_wrong_type", "spec.selector.matchLabels.a"),
        ("selector: {matchLabels: {a: 'b*'}}", "policy_bad_value", "spec.selector.matchLabels.a"),
        ("selector: {matchLabels: {'a b': c}}", "policy_bad_value", 'spec.selector.matchLabels["a b"]'),
        ("selector: {matchLabels: {1: c}}", "policy_wrong_type", "spec.selector.matchLabels"),
        (
            {"selector": {"matchLabels": {f"l{i}": "x" for i in range(33)}}},
            "policy_too_many",
            "spec.selector.matchLabels",
        ),
    ],
)
@pytest.mark.parametrize("kind", ["PeerAuthentication", "RequestAuthentication", "AuthorizationPolicy"])
def test_refuses_a_selector(kind: str, spec: str, code: str, field: str) -> None:
    assert (code, field) in errors(parse_policy(policy_object(kind, spec)))


@pytest.mark.parametrize("make", [authz, request_auth])
def test_target_refs_are_accepted_never_apply_and_say_so(make) -> None:
    for spec in (
        "targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: g}]",
        "targetRef: {group: '', kind: Service, name: s, namespace: foo}",
    ):
        result = parse_policy(make(spec))
        assert result.unwrap().meta.gateway_only
        assert [code for code, _ in warnings(result)] == ["policy_target_refs_ignored"]


@pytest.mark.parametrize(
    ("spec", "code", "field"),
    [
        (
            "{selector: {matchLabels: {a: b}}, targetRefs: [{kind: G, name: n}]}",
            "policy_conflict",
            "spec.targetRefs",
        ),
        (
            "{targetRef: {kind: G, name: n}, targetRefs: [{kind: G, name: n}]}",
            "policy_conflict",
            "spec.targetRef",
        ),
        ("targetRefs: []", "policy_empty_value", "spec.targetRefs"),
        ("targetRefs: [{kind: G}]", "policy_missing_field", "spec.targetRefs[0]"),
        ("targetRefs: [{kind: G, name: n, port: 1}]", "policy_unknown_field", "spec.targetRefs[0].port"),
    ],
)
def test_refuses_target_refs(spec: str, code: str, field: str) -> None:
    assert (code, field) in errors(parse_policy(authz(spec)))


# --- PeerAuthentication --------------------------------------------------------------------------


def test_reads_a_peer_authentication() -> None:
    policy = parsed(
        peer_auth(
            "{selector: {matchLabels: {app: x}}, mtls: {mode: STRICT},"
            " portLevelMtls: {'9000': {mode: DISABLE}, '80': {}, '81': {mode: UNSET}}}"
        )
    )
    assert isinstance(policy, PeerAuthentication)
    assert policy.mode is MtlsMode.STRICT
    assert policy.ports == ((80, MtlsMode.UNSET), (81, MtlsMode.UNSET), (9000, MtlsMode.DISABLE))
    assert parsed(peer_auth("mtls: {}")).mode is MtlsMode.UNSET


@pytest.mark.parametrize(
    ("spec", "code", "field", "fragment"),
    [
        pytest.param(
            "portLevelMtls: {'80': {mode: STRICT}}",
            "policy_needs_selector",
            "spec.portLevelMtls",
            "needs a selector",
            id="P-07",
        ),
        (
            "{selector: {}, portLevelMtls: {'80': {}}}",
            "policy_needs_selector",
            "spec.portLevelMtls",
            "selector",
        ),
        ("mtls: {mode: strict}", "policy_bad_value", "spec.mtls.mode", "did you mean 'STRICT'?"),
        ("mtls: {mode: }", "policy_wrong_type", "spec.mtls.mode", "write a value or remove the field"),
        ("mTLS: {mode: STRICT}", "policy_unknown_field", "spec.mTLS", "did you mean 'mtls'?"),
        ("{mtls: , mode: STRICT}", "policy_unknown_field", "spec.mode", "allowed here: selector, mtls"),
        ("targetRefs: []", "policy_unknown_field", "spec.targetRefs", "allowed here"),
        ("portLevelMtls: {'0': {}}", "policy_bad_port", "spec.portLevelMtls.0", "1 to 65535"),
        ("portLevelMtls: {'65536': {}}", "policy_bad_port", "spec.portLevelMtls.65536", "1 to 65535"),
        ("portLevelMtls: {http: {}}", "policy_bad_port", "spec.portLevelMtls.http", 'found "http"'),
        ("portLevelMtls: [80]", "policy_wrong_type", "spec.portLevelMtls", "a mapping"),
        (
            {"portLevelMtls": {str(i): {} for i in range(1, 258)}},
            "policy_too_many",
            "spec.portLevelMtls",
            "at most 256",
        ),
    ],
)
def test_refuses_a_peer_authentication(spec: str, code: str, field: str, fragment: str) -> None:
    result = parse_policy(peer_auth(spec))
    assert result.policy is None
    finding = next(f for f in result.findings if (str(f.code), f.field) == (code, field))
    assert fragment in finding.message
