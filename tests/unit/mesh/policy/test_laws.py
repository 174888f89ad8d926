"""Laws of access rules, checked over random policies and requests with the reference evaluator."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.policy import algebra
from mesh.policy.effective import EffectivePolicy
from mesh.policy.predicates import AllOf, Always, AnyOf, DestinationPort, Not, Predicate
from mesh.policy.resolve import identity_only_peers
from mesh.spiffe import TrustDomain
from tests.fakes.policy_eval import Answer, Call, Token, compare, evaluate, holds
from tests.fakes.policy_objects import authz, effective, request_auth, workload

ISSUER = request_auth({"jwtRules": [{"issuer": "i", "jwksUri": "https://i1.example/jwks"}]}, name="issuer")
POD = workload(http=(80,), tcp=(90,))


def some(*values: str) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(values), min_size=1, max_size=2, unique=True)


def fields(**values: st.SearchStrategy[list[str]]) -> st.SearchStrategy[dict[str, Any]]:
    both = values | {f"not{name[0].upper()}{name[1:]}": value for name, value in values.items()}
    return st.fixed_dictionaries({}, optional=both).filter(bool)


SOURCES = fields(
    principals=some("cluster.local/ns/a/sa/x", "*/ns/b/sa/x", "*", "cluster.local/ns/a/*"),
    namespaces=some("a", "b*", "*"),
    ipBlocks=some("10.0.0.1", "10.0.0.0/8"),
    requestPrincipals=some("*", "i/alice", "*/bob"),
)
OPERATIONS = fields(
    paths=some("/a", "/b*", "/{*}"),
    methods=some("GET", "POST"),
    ports=some("80", "90"),
    hosts=some("H", "*.x"),
)
CONDITIONS = st.sampled_from(
    [
        {"key": "request.headers[h]", "values": ["v"]},
        {"key": "request.auth.claims[g]", "notValues": ["w"]},
        {"key": "source.namespace", "notValues": ["a"]},
        {"key": "connection.sni", "values": ["s*"]},
    ]
)
RULES = st.fixed_dictionaries(
    {},
    optional={
        "from": st.lists(st.fixed_dictionaries({"source": SOURCES}), min_size=1, max_size=2),
        "to": st.lists(st.fixed_dictionaries({"operation": OPERATIONS}), min_size=1, max_size=2),
        "when": st.lists(CONDITIONS, min_size=1, max_size=2),
    },
)
POLICIES = st.lists(
    st.fixed_dictionaries(
        {
            "action": st.sampled_from(["ALLOW", "DENY", "AUDIT"]),
            "rules": st.lists(RULES, min_size=1, max_size=3),
        }
    ),
    max_size=4,
)
CALLS = st.builds(
    Call,
    peer=st.sampled_from([None, *(f"spiffe://cluster.local/ns/{n}/sa/{s}" for n in "ab" for s in "xy")]),
    port=st.sampled_from([80, 90, 91]),
    http=st.booleans(),
    method=st.sampled_from(["GET", "POST"]),
    path=st.sampled_from(["/a", "/b/c", "/"]),
    host=st.sampled_from(["h", "H:80", "y.x"]),
    headers=st.sampled_from([{}, {"h": ("v",)}, {"h": ("w", "v")}]),
    token=st.sampled_from(
        [None, *(Token(claims={"iss": "i", "sub": s, "g": ["w"]}) for s in ("alice", "bob"))]
    ),
    source_ip=st.sampled_from(["10.0.0.1", "10.9.9.9", "192.0.2.1"]),
    sni=st.sampled_from(["", "s1"]),
)


def resolved(specs: list[dict[str, Any]], **annotations: str) -> EffectivePolicy:
    objects = [authz(spec, name=f"p{index}", annotations=annotations) for index, spec in enumerate(specs)]
    return effective(ISSUER, *objects, pod=POD)


def passes(policy: EffectivePolicy, call: Call) -> bool:
    return evaluate(policy, call).answer is Answer.OK


@given(POLICIES, st.randoms(use_true_random=False))
def test_order_of_objects_and_of_keys_changes_nothing(specs: list[dict[str, Any]], random: Any) -> None:
    objects = [authz(spec, name=f"p{index}") for index, spec in enumerate(specs)]
    shuffled = [dict(sorted(o.items(), reverse=True)) for o in [ISSUER, *copy.deepcopy(objects)]]
    random.shuffle(shuffled)
    one, other = effective(ISSUER, *objects, pod=POD), effective(*shuffled, pod=POD)
    assert (one.transport, one.jwt, one.authz) == (other.transport, other.jwt, other.authz)


@given(POLICIES, st.lists(RULES, min_size=1, max_size=2), st.lists(CALLS, min_size=5, max_size=20))
@settings(max_examples=200)
def test_adding_a_deny_never_allows_more(
    specs: list[dict[str, Any]], rules: list[dict[str, Any]], calls: list[Call]
) -> None:
    before, after = resolved(specs), resolved([*specs, {"action": "DENY", "rules": rules}])
    for call in calls:
        assert passes(before, call) or not passes(after, call)


@given(POLICIES, RULES, st.lists(CALLS, min_size=5, max_size=20))
@settings(max_examples=200)
def test_adding_a_rule_to_an_allow_policy_never_denies_more(
    specs: list[dict[str, Any]], rule: dict[str, Any], calls: list[Call]
) -> None:
    allow = {"action": "ALLOW", "rules": [{"from": [{"source": {"namespaces": ["a"]}}]}]}
    before = resolved([*specs, allow])
    after = resolved([*specs, {"action": "ALLOW", "rules": [*allow["rules"], rule]}])
    for call in calls:
        assert passes(after, call) or not passes(before, call)


@given(POLICIES, POLICIES, st.lists(CALLS, min_size=5, max_size=20))
def test_dry_run_and_audit_change_no_verdict(
    specs: list[dict[str, Any]], dry: list[dict[str, Any]], calls: list[Call]
) -> None:
    objects = [authz(spec, name=f"p{index}") for index, spec in enumerate(specs)]
    extra = [
        authz(
            spec,
            name=f"extra{index}",
            annotations={} if spec["action"] == "AUDIT" else {"istio.io/dry-run": "true"},
        )
        for index, spec in enumerate(dry)
    ]
    before, after = effective(ISSUER, *objects, pod=POD), effective(ISSUER, *objects, *extra, pod=POD)
    for call in calls:
        assert evaluate(before, call).answer is evaluate(after, call).answer
        assert evaluate(before, call).rule == evaluate(after, call).rule


@given(RULES, st.lists(CALLS, min_size=5, max_size=20))
def test_connections_fail_closed(rule: dict[str, Any], calls: list[Call]) -> None:
    """What a DENY rule refuses as a request it refuses as a connection; what ALLOW lets in likewise."""
    deny = resolved([{"action": "DENY", "rules": [rule]}]).authz
    allow = resolved([{"action": "ALLOW", "rules": [rule]}]).authz
    for call in calls:
        if not call.http:
            continue
        claims = call.token.claims if call.token else None

        def matches(rules: Any, call: Call = call, claims: Any = claims) -> bool:
            return any(holds(r.principal, call, claims) and holds(r.permission, call, claims) for r in rules)

        assert matches(deny.tcp.deny) or not matches(deny.http.deny)
        assert matches(allow.http.allow) or not matches(allow.tcp.allow)


@given(POLICIES, st.lists(CALLS, min_size=5, max_size=20))
def test_peers_of_a_handshake_agree_with_the_rules(specs: list[dict[str, Any]], calls: list[Call]) -> None:
    tcp = resolved(specs).authz.tcp
    for call in calls:
        found = identity_only_peers(tcp, call.port, (TrustDomain("cluster.local"),))
        if found is None or call.peer is None or call.http:
            continue
        assert any(compare(m, call.peer) for m in found) == passes(resolved(specs), call)


LEAVES = st.sampled_from([DestinationPort(80), DestinationPort(90), Always()])
PREDICATES: st.SearchStrategy[Predicate] = st.recursive(
    LEAVES,
    lambda inner: (
        st.builds(Not, inner)
        | st.builds(lambda parts: AllOf(tuple(parts)), st.lists(inner, min_size=1, max_size=3))
        | st.builds(lambda parts: AnyOf(tuple(parts)), st.lists(inner, max_size=3))
    ),
    max_leaves=12,
)


@given(st.lists(PREDICATES, max_size=4), st.sampled_from([80, 90, 91]))
def test_simplification_and_partial_decision_agree_with_evaluation(parts: list[Predicate], port: int) -> None:
    call = Call(port=port)
    for combined, plain in ((algebra.all_of(parts), all), (algebra.any_of(parts), any)):
        expected = plain(holds(part, call) for part in parts)
        assert holds(combined, call) == expected
        assert algebra.on_port(combined, port) is expected
