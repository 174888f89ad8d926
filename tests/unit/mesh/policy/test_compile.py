"""Rules -> predicates: the meaning of each field, the two forms, merging, remarks."""

from __future__ import annotations

import dataclasses

import pytest

from mesh.policy import algebra
from mesh.policy.compile import compile_policy
from mesh.policy.leaves import principal, request_principal, trust_domain
from mesh.policy.model import AuthorizationPolicy
from mesh.policy.predicates import (
    NEVER,
    AllOf,
    Always,
    AnyOf,
    Claim,
    DestinationIp,
    DestinationPort,
    DirectSourceIp,
    FilterMetadata,
    Header,
    Host,
    MatchKind,
    Method,
    Not,
    Path,
    PathTemplate,
    PeerNamespace,
    PeerServiceAccount,
    PeerTrustDomain,
    PeerUri,
    Predicate,
    RemoteIp,
    Sni,
    StringMatch,
)
from mesh.spiffe import TrustDomain
from tests.fakes.policy_objects import MESH, authz, effective, parsed, peer_auth, workload

LOCAL = (TrustDomain("cluster.local"),)
PROD = (TrustDomain("prod.example"), TrustDomain("old.example"))
PRESENT = StringMatch(MatchKind.PRESENT)


def exact(text: str) -> StringMatch:
    return StringMatch(MatchKind.EXACT, text)


def prefix(text: str) -> StringMatch:
    return StringMatch(MatchKind.PREFIX, text)


def suffix(text: str) -> StringMatch:
    return StringMatch(MatchKind.SUFFIX, text)


def uri(text: str) -> PeerUri:
    return PeerUri(exact(f"spiffe://{text}"))


def rules(spec: object, domains: tuple[TrustDomain, ...] = LOCAL):
    policy = parsed(authz(spec))
    assert isinstance(policy, AuthorizationPolicy)
    return compile_policy(policy, domains)


def one(spec: dict[str, object]):
    (rule,) = rules({"rules": [spec]}).http
    return rule


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a", exact("a")),
        ("a*", prefix("a")),
        ("*a", suffix("a")),
        ("*", PRESENT),
        ("a*b", exact("a*b")),
        ("*a*", suffix("a*")),
        ("**", suffix("*")),
        ("", exact("")),
    ],
)
def test_wildcards(pattern: str, expected: StringMatch) -> None:
    assert algebra.string_match(pattern) == expected


@pytest.mark.parametrize(
    ("value", "domains", "expected"),
    [
        ("cluster.local/ns/a/sa/b", LOCAL, uri("cluster.local/ns/a/sa/b")),
        (
            "cluster.local/ns/a/sa/b",
            PROD,
            AnyOf((uri("prod.example/ns/a/sa/b"), uri("old.example/ns/a/sa/b"))),
        ),
        ("old.example/ns/a/sa/b", PROD, AnyOf((uri("prod.example/ns/a/sa/b"), uri("old.example/ns/a/sa/b")))),
        ("else.example/ns/a/sa/b", PROD, uri("else.example/ns/a/sa/b")),
        ("*/ns/a/sa/b", PROD, PeerServiceAccount("a", "b")),
        ("*/ns/a/sa/*", LOCAL, PeerUri(suffix("/ns/a/sa/*"))),
        ("*/sa/b", LOCAL, PeerUri(suffix("/sa/b"))),
        ("*", LOCAL, PeerUri(PRESENT)),
        ("cluster.local/ns/a/*", LOCAL, PeerUri(prefix("spiffe://cluster.local/ns/a/"))),
        ("cluster.local/ns/a/*", PROD, PeerUri(prefix("spiffe://cluster.local/ns/a/"))),
        (
            "cluster.local/ns/a/sa/*",
            PROD,
            AnyOf(
                (
                    PeerUri(prefix("spiffe://prod.example/ns/a/sa/")),
                    PeerUri(prefix("spiffe://old.example/ns/a/sa/")),
                )
            ),
        ),
        (
            "*d.example/ns/a/sa/b",
            (*PROD, TrustDomain("x.test")),
            AnyOf((PeerUri(suffix("d.example/ns/a/sa/b")), uri("x.test/ns/a/sa/b"))),
        ),
    ],
)
def test_principals_and_trust_domain_aliases(
    value: str, domains: tuple[TrustDomain, ...], expected: Predicate
) -> None:
    assert principal(value, domains) == expected


@pytest.mark.parametrize(
    ("value", "iss", "sub"),
    [
        ("*", PRESENT, PRESENT),
        ("https://i.example/x/alice", exact("https://i.example/x"), exact("alice")),
        ("https://i.example/*", exact("https://i.example"), PRESENT),
        ("https://i.example/al*", exact("https://i.example"), prefix("al")),
        ("https://i.exa*", prefix("https://i.exa"), PRESENT),
        ("https:/*", prefix("https:/"), PRESENT),
        ("iss*", prefix("iss"), PRESENT),
        ("*/alice", PRESENT, exact("alice")),
        ("*.example/alice", suffix(".example"), exact("alice")),
        ("*lice", PRESENT, suffix("lice")),
    ],
)
def test_request_principals_split_at_the_last_slash(value: str, iss: StringMatch, sub: StringMatch) -> None:
    assert request_principal(value, LOCAL) == AllOf((Claim(("iss",), iss), Claim(("sub",), sub)))


def test_trust_domain_names_ours_when_it_says_cluster_local() -> None:
    assert trust_domain("cluster.local", LOCAL) == PeerTrustDomain(exact("cluster.local"))
    assert trust_domain("cluster.local", PROD) == AnyOf(
        (PeerTrustDomain(exact("prod.example")), PeerTrustDomain(exact("old.example")))
    )
    assert trust_domain("old.*", PROD) == PeerTrustDomain(prefix("old."))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ({"namespaces": ["a", "b*"]}, AnyOf((PeerNamespace(exact("a")), PeerNamespace(prefix("b"))))),
        ({"notNamespaces": ["a"]}, Not(PeerNamespace(exact("a")))),
        (
            {"serviceAccounts": ["x", "b/y"]},
            AnyOf((PeerServiceAccount("foo", "x"), PeerServiceAccount("b", "y"))),
        ),
        ({"trustDomains": ["*.x"]}, PeerTrustDomain(suffix(".x"))),
        (
            {"ipBlocks": ["10.0.0.0/8"], "notRemoteIpBlocks": ["1.2.3.4"]},
            AllOf((DirectSourceIp("10.0.0.0/8"), Not(RemoteIp("1.2.3.4/32")))),
        ),
    ],
)
def test_sources(source: dict[str, object], expected: Predicate) -> None:
    rule = one({"from": [{"source": source}]})
    assert rule.principal == expected
    assert rule.permission == Always()


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        ({"hosts": ["A.Example"]}, Host(StringMatch(MatchKind.EXACT, "a.example", ignore_case=True))),
        ({"hosts": ["*"]}, Host(PRESENT)),
        ({"ports": ["80", "81"]}, AnyOf((DestinationPort(80), DestinationPort(81)))),
        ({"methods": ["GET"]}, Method(exact("GET"))),
        ({"paths": ["/a*", "/{*}"]}, AnyOf((Path(prefix("/a")), PathTemplate("/{*}")))),
        (
            {"paths": ["/a"], "notPaths": ["/b", "/c"]},
            AllOf((Path(exact("/a")), Not(AnyOf((Path(exact("/b")), Path(exact("/c"))))))),
        ),
    ],
)
def test_operations(operation: dict[str, object], expected: Predicate) -> None:
    rule = one({"to": [{"operation": operation}]})
    assert rule.permission == expected
    assert rule.principal == Always()


@pytest.mark.parametrize(
    ("key", "value", "expected", "side"),
    [
        ("source.ip", "10.0.0.1", DirectSourceIp("10.0.0.1/32"), "principal"),
        ("remote.ip", "10.0.0.1", RemoteIp("10.0.0.1/32"), "principal"),
        ("source.namespace", "a", PeerNamespace(exact("a")), "principal"),
        ("source.principal", "*/ns/a/sa/b", PeerServiceAccount("a", "b"), "principal"),
        ("source.serviceAccount", "b", PeerServiceAccount("foo", "b"), "principal"),
        ("source.trustDomain", "x", PeerTrustDomain(exact("x")), "principal"),
        ("request.auth.audiences", "a", Claim(("aud",), exact("a")), "principal"),
        ("request.auth.presenter", "a", Claim(("azp",), exact("a")), "principal"),
        ("request.auth.claims[a][b]", "*", Claim(("a", "b"), PRESENT), "principal"),
        (
            "request.auth.principal",
            "i/s",
            AllOf((Claim(("iss",), exact("i")), Claim(("sub",), exact("s")))),
            "principal",
        ),
        ("request.headers[X-A]", "v*", Header("x-a", prefix("v")), "permission"),
        ("destination.ip", "10.0.0.0/8", DestinationIp("10.0.0.0/8"), "permission"),
        ("destination.port", "80", DestinationPort(80), "permission"),
        ("connection.sni", "*.x", Sni(suffix(".x")), "permission"),
        (
            "experimental.envoy.filters.network.mysql_proxy[db.t]",
            "[update]",
            FilterMetadata("envoy.filters.network.mysql_proxy", ("db.t",), exact("update")),
            "permission",
        ),
    ],
)
def test_conditions(key: str, value: str, expected: Predicate, side: str) -> None:
    rule = one({"when": [{"key": key, "values": [value]}]})
    assert getattr(rule, side) == expected
    assert getattr(rule, "permission" if side == "principal" else "principal") == Always()
    negated = one({"when": [{"key": key, "notValues": [value]}]})
    assert getattr(negated, side) == Not(expected)


def test_a_rule_is_or_from_and_or_to_and_all_of_when() -> None:
    rule = one(
        {
            "from": [{"source": {"namespaces": ["a"]}}, {"source": {"ipBlocks": ["10.0.0.0/8"]}}],
            "to": [{"operation": {"methods": ["GET"], "paths": ["/a"]}}, {"operation": {"ports": ["80"]}}],
            "when": [
                {"key": "request.auth.claims[g]", "values": ["x"]},
                {"key": "connection.sni", "values": ["s"], "notValues": ["t"]},
            ],
        }
    )
    assert rule.principal == AllOf(
        (
            AnyOf((PeerNamespace(exact("a")), DirectSourceIp("10.0.0.0/8"))),
            Claim(("g",), exact("x")),
        )
    )
    assert rule.permission == AllOf(
        (
            AnyOf((AllOf((Method(exact("GET")), Path(exact("/a")))), DestinationPort(80))),
            Sni(exact("s")),
            Not(Sni(exact("t"))),
        )
    )
    assert rule.key == "ns[foo]-policy[p]-rule[0]"


def test_allow_without_rules_is_one_rule_that_names_its_owner() -> None:
    compiled = rules({})
    for form in (compiled.http, compiled.tcp):
        (rule,) = form
        assert (rule.key, rule.principal, rule.permission) == ("ns[foo]-policy[p]-rule[0]", NEVER, NEVER)


def test_deny_everything() -> None:
    (rule,) = rules("{action: DENY, rules: [{}]}").tcp
    assert (rule.principal, rule.permission) == (Always(), Always())


# --- the form for connections --------------------------------------------------------------------


def test_allow_drops_the_whole_rule_and_the_policy_still_counts() -> None:
    compiled = rules("{rules: [{to: [{operation: {ports: ['80']}}, {operation: {methods: [GET]}}]}]}")
    (rule,) = compiled.tcp
    assert rule.permission == NEVER
    two = rules(
        {"rules": [{"to": [{"operation": {"methods": ["GET"]}}]}, {"to": [{"operation": {"ports": ["80"]}}]}]}
    )
    (rule,) = two.tcp
    assert rule.key == "ns[foo]-policy[p]-rule[1]"
    assert rule.permission == DestinationPort(80)


@pytest.mark.parametrize("action", ["DENY", "AUDIT"])
@pytest.mark.parametrize(
    ("rule", "principal_", "permission"),
    [
        ({"to": [{"operation": {"paths": ["/a"], "ports": ["80"]}}]}, Always(), DestinationPort(80)),
        ({"to": [{"operation": {"paths": ["/a"]}}]}, Always(), Always()),
        ({"to": [{"operation": {"notHosts": ["a"]}}, {"operation": {"ports": ["80"]}}]}, Always(), Always()),
        (
            {"from": [{"source": {"notRequestPrincipals": ["*"], "namespaces": ["a"]}}]},
            PeerNamespace(exact("a")),
            Always(),
        ),
        ({"when": [{"key": "request.headers[a]", "values": ["b"]}]}, Always(), Always()),
        ({"when": [{"key": "request.auth.claims[a]", "notValues": ["b"]}]}, Always(), Always()),
        ({"from": [{"source": {"remoteIpBlocks": ["10.0.0.0/8"]}}]}, RemoteIp("10.0.0.0/8"), Always()),
    ],
)
def test_deny_and_audit_widen(
    action: str, rule: dict[str, object], principal_: Predicate, permission: Predicate
) -> None:
    (found,) = rules({"action": action, "rules": [rule]}).tcp
    assert (found.principal, found.permission) == (principal_, permission)


# --- merging -------------------------------------------------------------------------------------


def test_rules_that_differ_in_identity_only_become_one() -> None:
    spec = {
        "rules": [
            {"from": [{"source": {"namespaces": [space]}}], "to": [{"operation": {"methods": [method]}}]}
            for space, method in (("a", "GET"), ("b", "GET"), ("c", "POST"), ("d", "GET"))
        ]
    }
    first, second = rules(spec).http
    assert first.key == "ns[foo]-policy[p]-rule[0]"
    assert first.principal == AnyOf(tuple(PeerNamespace(exact(s)) for s in "abd"))
    assert second.key == "ns[foo]-policy[p]-rule[2]"


def test_rules_with_more_than_identities_stay_apart() -> None:
    spec = {"rules": [{"from": [{"source": {"ipBlocks": [block]}}]} for block in ("10.0.0.1", "10.0.0.2")]}
    assert len(rules(spec).http) == 2


# --- remarks -------------------------------------------------------------------------------------


def codes(spec: object, *others: dict[str, object], **pod: object) -> list[tuple[str, str]]:
    found = effective(authz(spec), *others, pod=workload(**pod))
    return [(str(f.code), f.field) for f in found.findings]


def source(action: str, **fields: object) -> dict[str, object]:
    return {"action": action, "rules": [{"from": [{"source": fields}]}]}


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (source("ALLOW", notNamespaces=["a"]), "policy_plaintext_allowed"),
        (source("ALLOW", notPrincipals=["a/ns/b/sa/c"], ipBlocks=["10.0.0.0/8"]), "policy_plaintext_allowed"),
        (source("ALLOW", notNamespaces=["a"], namespaces=["b"]), None),
        (source("ALLOW", namespaces=["b"]), None),
        (source("ALLOW", ipBlocks=["10.0.0.0/8"]), None),
        (source("DENY", namespaces=["b"]), "policy_plaintext_not_denied"),
        (source("DENY", notNamespaces=["b"]), None),
        (source("DENY", notPrincipals=["*"]), None),
        (
            {"rules": [{"when": [{"key": "source.namespace", "notValues": ["a"]}]}]},
            "policy_plaintext_allowed",
        ),
        (
            {"action": "DENY", "rules": [{"when": [{"key": "source.principal", "values": ["*/ns/a/sa/b"]}]}]},
            "policy_plaintext_not_denied",
        ),
        (
            {
                "rules": [
                    {
                        "from": [{"source": {"notNamespaces": ["a"]}}],
                        "when": [{"key": "source.trustDomain", "values": ["*"]}],
                    }
                ]
            },
            None,
        ),
    ],
)
def test_identity_under_permissive(spec: dict[str, object], expected: str | None) -> None:
    found = [code for code, _ in codes(spec)]
    assert [c for c in found if c.startswith("policy_plaintext")] == ([expected] if expected else [])
    assert not [c for c, _ in codes(spec, peer_auth({"mtls": {"mode": "STRICT"}})) if "plaintext" in c]


def test_the_companion_deny_silences_the_plaintext_warnings() -> None:
    companion = authz(source("DENY", notPrincipals=["*"]), name="companion")
    assert codes(source("ALLOW", notNamespaces=["a"]), companion) == []
    narrow = source("DENY", notPrincipals=["*"])
    narrow["rules"][0]["to"] = [{"operation": {"ports": ["8080"]}}]
    assert codes(source("ALLOW", notNamespaces=["a"]), authz(narrow, name="narrow")) != []


def test_identity_on_a_port_without_mtls_is_said() -> None:
    off = peer_auth({"mtls": {"mode": "DISABLE"}})
    assert codes(source("ALLOW", namespaces=["a"]), off) == [
        ("policy_identity_needs_mtls", "spec.rules[0].from[0].source")
    ]


def test_remote_ip_and_foreign_trust_domains_are_said() -> None:
    assert codes(source("ALLOW", remoteIpBlocks=["10.0.0.0/8"])) == [
        ("policy_remote_ip_forgeable", "spec.rules[0].from[0].source.remoteIpBlocks")
    ]
    assert codes({"rules": [{"when": [{"key": "remote.ip", "values": ["10.0.0.0/8"]}]}]}) == [
        ("policy_remote_ip_forgeable", "spec.rules[0].when[0]")
    ]
    assert codes(
        source("ALLOW", principals=["else/ns/a/sa/b", "cluster.local/ns/a/sa/b", "*/sa/x", "*"])
    ) == [("policy_foreign_trust_domain", "spec.rules[0].from[0].source.principals")]
    assert codes({"rules": [{"when": [{"key": "source.principal", "values": ["else/ns/a/sa/b"]}]}]}) == [
        ("policy_foreign_trust_domain", "spec.rules[0].when[0]")
    ]
    prod = dataclasses.replace(MESH, trust_domain=PROD[0])
    unexpanded = authz(source("ALLOW", principals=["cluster.local/ns/a/*"]))
    (finding,) = effective(unexpanded, mesh=prod).findings
    assert "'cluster.local/ns/a/*' never matches" in finding.message
    assert effective(authz(source("ALLOW", principals=["cluster.local/ns/a/sa/b"])), mesh=prod).findings == ()


@pytest.mark.parametrize(
    ("action", "code"), [("ALLOW", "policy_tcp_rule_dropped"), ("DENY", "policy_tcp_rule_widened")]
)
def test_http_fields_on_tcp_ports_name_the_ports(action: str, code: str) -> None:
    spec = {"action": action, "rules": [{"to": [{"operation": {"paths": ["/a"], "notPorts": ["9001"]}}]}] * 2}
    found = effective(authz(spec), pod=workload(tcp=(9000, 9001), auto=(7000,)))
    (finding,) = found.findings
    assert (str(finding.code), finding.field) == (code, "spec.rules[0].to[0].operation.paths")
    assert "on TCP ports 7000, 9000" in finding.message
    assert "(and 1 more of this kind in the policy)" in finding.message
    assert codes(spec) == []


# --- the algebra ---------------------------------------------------------------------------------


def test_simplification_keeps_the_meaning() -> None:
    a, b = DestinationPort(1), DestinationPort(2)
    assert algebra.all_of([]) == Always()
    assert algebra.all_of([a, Always(), a]) == a
    assert algebra.all_of([a, AllOf((b, a))]) == AllOf((a, b))
    assert algebra.all_of([a, NEVER]) == NEVER
    assert algebra.any_of([]) == NEVER
    assert algebra.any_of([a, Always()]) == Always()
    assert algebra.any_of([AnyOf((a, b)), a]) == AnyOf((a, b))
    assert algebra.any_of([a, NEVER]) == a


def test_three_valued_decisions() -> None:
    a, b, sni = DestinationPort(1), DestinationPort(2), Sni(exact("x"))
    assert algebra.on_port(AllOf((a, sni)), 2) is False
    assert algebra.on_port(AllOf((a, sni)), 1) is None
    assert algebra.on_port(AllOf((a, Not(b))), 1) is True
    assert algebra.on_port(AnyOf((a, sni)), 1) is True
    assert algebra.on_port(AnyOf((a, sni)), 2) is None
    assert algebra.on_port(Not(sni), 2) is None
    assert algebra.on_port(NEVER, 2) is False
    assert algebra.on_plaintext(Not(PeerUri(PRESENT))) is True
    assert algebra.mentions_identity(Not(AnyOf((a, PeerUri(PRESENT)))))
    assert not algebra.mentions_identity(AllOf((a, sni)))
    assert not algebra.is_identity(NEVER)
