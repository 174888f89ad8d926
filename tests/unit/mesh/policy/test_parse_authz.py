"""AuthorizationPolicy: every field, every refusal with its path, every warning."""

from __future__ import annotations

import pytest

from mesh.policy.model import (
    Action,
    AuthorizationPolicy,
    AuthzRule,
    Condition,
    ConditionKey,
    ConditionKind,
    Operation,
    Source,
)
from mesh.policy.parse import parse_policy
from tests.fakes.policy_objects import authz, errors, parsed, warnings

SOURCE = "spec.rules[0].from[0].source"
OPERATION = "spec.rules[0].to[0].operation"
WHEN = "spec.rules[0].when[0]"


def source(**fields: object) -> dict[str, object]:
    return {"rules": [{"from": [{"source": fields}]}]}


def operation(**fields: object) -> dict[str, object]:
    return {"rules": [{"to": [{"operation": fields}]}]}


def when(key: object, **fields: object) -> dict[str, object]:
    return {"rules": [{"when": [{"key": key, **(fields or {"values": ["x"]})}]}]}


def read(spec: object) -> AuthorizationPolicy:
    policy = parsed(authz(spec))
    assert isinstance(policy, AuthorizationPolicy)
    return policy


def test_reads_every_field() -> None:
    policy = read(
        """
action: DENY
rules:
- from:
  - source:
      principals: [cluster.local/ns/a/sa/b]
      notPrincipals: ["*/ns/a/sa/c"]
      requestPrincipals: ["https://i/x"]
      notRequestPrincipals: ["*"]
      namespaces: [a]
      notNamespaces: [b*]
      trustDomains: [cluster.local]
      notTrustDomains: ["*.evil"]
      ipBlocks: [10.1.2.3, 10.1.0.0/16]
      notIpBlocks: [10.1.2.3/16]
      remoteIpBlocks: ["2001:db8::/32"]
      notRemoteIpBlocks: ["2001:db8::1"]
  - source: {serviceAccounts: [a, b/c], notServiceAccounts: [d]}
  to:
  - operation:
      hosts: [a.example]
      notHosts: ["*.b.example"]
      ports: ["80", "443"]
      notPorts: ["81"]
      methods: [GET]
      notMethods: [POST]
      paths: ["/a*", "/{*}/b/{**}"]
      notPaths: ["/a/b"]
  when:
  - {key: "request.headers[X-A]", values: [v], notValues: [w]}
"""
    )
    assert policy.action is Action.DENY
    assert policy.rules == (
        AuthzRule(
            (
                Source(
                    principals=("cluster.local/ns/a/sa/b",),
                    not_principals=("*/ns/a/sa/c",),
                    request_principals=("https://i/x",),
                    not_request_principals=("*",),
                    namespaces=("a",),
                    not_namespaces=("b*",),
                    trust_domains=("cluster.local",),
                    not_trust_domains=("*.evil",),
                    ip_blocks=("10.1.2.3/32", "10.1.0.0/16"),
                    not_ip_blocks=("10.1.0.0/16",),
                    remote_ip_blocks=("2001:db8::/32",),
                    not_remote_ip_blocks=("2001:db8::1/128",),
                ),
                Source(service_accounts=("foo/a", "b/c"), not_service_accounts=("foo/d",)),
            ),
            (
                Operation(
                    hosts=("a.example",),
                    not_hosts=("*.b.example",),
                    ports=("80", "443"),
                    not_ports=("81",),
                    methods=("GET",),
                    not_methods=("POST",),
                    paths=("/a*", "/{*}/b/{**}"),
                    not_paths=("/a/b",),
                ),
            ),
            (Condition(ConditionKey(ConditionKind.REQUEST_HEADER, ("x-a",)), ("v",), ("w",)),),
        ),
    )


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("source.ip", ConditionKey(ConditionKind.SOURCE_IP)),
        ("remote.ip", ConditionKey(ConditionKind.REMOTE_IP)),
        ("destination.ip", ConditionKey(ConditionKind.DESTINATION_IP)),
        ("destination.port", ConditionKey(ConditionKind.DESTINATION_PORT)),
        ("source.namespace", ConditionKey(ConditionKind.SOURCE_NAMESPACE)),
        ("source.serviceAccount", ConditionKey(ConditionKind.SOURCE_SERVICE_ACCOUNT)),
        ("source.trustDomain", ConditionKey(ConditionKind.SOURCE_TRUST_DOMAIN)),
        ("source.principal", ConditionKey(ConditionKind.SOURCE_PRINCIPAL)),
        ("request.auth.principal", ConditionKey(ConditionKind.REQUEST_PRINCIPAL)),
        ("request.auth.audiences", ConditionKey(ConditionKind.REQUEST_AUDIENCES)),
        ("request.auth.presenter", ConditionKey(ConditionKind.REQUEST_PRESENTER)),
        ("request.auth.claims[a]", ConditionKey(ConditionKind.REQUEST_CLAIMS, ("a",))),
        ("request.auth.claims[a][b c]", ConditionKey(ConditionKind.REQUEST_CLAIMS, ("a", "b c"))),
        (
            "request.auth.claims[https://x/y.z]",
            ConditionKey(ConditionKind.REQUEST_CLAIMS, ("https://x/y.z",)),
        ),
        ("connection.sni", ConditionKey(ConditionKind.CONNECTION_SNI)),
        (
            "experimental.envoy.filters.network.mysql_proxy[db.table]",
            ConditionKey(ConditionKind.ENVOY_FILTER, ("envoy.filters.network.mysql_proxy", "db.table")),
        ),
    ],
)
def test_reads_every_condition_key(key: str, expected: ConditionKey) -> None:
    value = {
        ConditionKind.SOURCE_IP: "10.0.0.1",
        ConditionKind.REMOTE_IP: "10.0.0.1",
        ConditionKind.DESTINATION_IP: "10.0.0.1",
        ConditionKind.DESTINATION_PORT: "80",
        ConditionKind.SOURCE_PRINCIPAL: "cluster.local/ns/a/sa/b",
        ConditionKind.REQUEST_PRINCIPAL: "iss/sub",
    }.get(expected.kind, "x")
    (condition,) = read(when(key, values=[value])).rules[0].conditions
    assert condition.key == expected


def test_empty_rules_of_allow_and_an_empty_rule() -> None:
    assert read({}).rules == ()
    assert read("rules: []").rules == ()
    assert read("rules: [{}]").rules == (AuthzRule(),)
    assert read("{action: AUDIT, rules: [{}]}").action is Action.AUDIT


@pytest.mark.parametrize(
    ("spec", "code", "field", "fragment"),
    [
        pytest.param("{action: CUSTOM, provider: {name: x}, rules: [{}]}", "policy_unsupported",
         "spec.action",
                     "CUSTOM is not supported", id="CUSTOM"),
        ("{provider: {name: x}}", "policy_conflict", "spec.provider", "belongs to action CUSTOM"),
        ("action: deny", "policy_bad_value", "spec.action", "did you mean 'DENY'?"),
        ("action: DENY", "policy_needs_rules", "spec", "does nothing"),
        ("action: AUDIT", "policy_needs_rules", "spec", "rules: [{}]"),
        ("{action: DENY, rules: []}", "policy_empty_value", "spec.rules", "empty list"),
        ("rules: [{form: []}]", "policy_unknown_field", "spec.rules[0].form", "did you mean 'from'?"),
        ("rules: [{from: []}]", "policy_empty_value", "spec.rules[0].from", "empty list"),
        ("rules: [{to: []}]", "policy_empty_value", "spec.rules[0].to", "empty list"),
        ("rules: [{when: []}]", "policy_empty_value", "spec.rules[0].when", "empty list"),
        ("rules: [{from: }]", "policy_wrong_type", "spec.rules[0].from", "found null"),
        ("rules: [{from: [{}]}]", "policy_ambiguous", "spec.rules[0].from[0]", "source is missing"),
        ("rules: [{from: [{source: {}}]}]", "policy_ambiguous", SOURCE, "an empty source"),
        ("rules: [{to: [{operation: {}}]}]", "policy_ambiguous", OPERATION, "an empty operation"),
        ("rules: [{from: [{source: }]}]", "policy_wrong_type", SOURCE, "found null"),
        ("rules: [{from: [{principals: [x]}]}]", "policy_unknown_field", "spec.rules[0].from[0].principals",
         "allowed here: source"),
        (source(principal=["x"]), "policy_unknown_field",
         f"{SOURCE}.principal", "did you mean 'principals'?"),
        (source(principals=[]), "policy_empty_value", f"{SOURCE}.principals", "empty list"),
        (source(principals="x"), "policy_wrong_type", f"{SOURCE}.principals", "allowed is a list"),
        (source(principals=["a/ns/b/sa/c"] * 2), "policy_duplicate", f"{SOURCE}.principals[1]", "twice"),
        (source(principals=["spiffe://a/ns/b/sa/c"]), "policy_bad_principal", f"{SOURCE}.principals[0]",
         "write it without spiffe://"),
        (source(notPrincipals=["*/a/ns/b/sa/c"]), "policy_bad_principal", f"{SOURCE}.notPrincipals[0]",
         "stands for the trust domain only"),
        (source(requestPrincipals=["alice"]), "policy_bad_request_principal",
         f"{SOURCE}.requestPrincipals[0]",
         "<issuer>/<subject>"),
        (source(requestPrincipals=["https://i/"]), "policy_bad_request_principal",
         f"{SOURCE}.requestPrincipals[0]", "<issuer>/*"),
        (source(serviceAccounts=["a*"]), "policy_bad_service_account",
         f"{SOURCE}.serviceAccounts[0]", "wildcards"),
        (source(serviceAccounts=["A/b"]), "policy_bad_service_account",
         f"{SOURCE}.serviceAccounts[0]", "found"),
        (source(serviceAccounts=["/b"]), "policy_bad_service_account",
         f"{SOURCE}.serviceAccounts[0]", "found"),
        (source(serviceAccounts=["a"], namespaces=["b"]), "policy_conflict", SOURCE, "excludes"),
        (source(notServiceAccounts=["a"], principals=["a/ns/b/sa/c"]), "policy_conflict", SOURCE, "excludes"),
        (source(serviceAccounts=[f"a{i}" for i in range(17)]), "policy_too_many", f"{SOURCE}.serviceAccounts",
         "at most 16"),
        (source(trustDomains=["a/b"]), "policy_bad_value", f"{SOURCE}.trustDomains[0]", "the name alone"),
        *[
            (source(ipBlocks=[text]), "policy_bad_cidr", f"{SOURCE}.ipBlocks[0]", "CIDR")
            for text in ("10.0.0.0/33", "10.0.0", "10.*", "host", "fe80::1%eth0", "10.0.0.0/255.0.0.0",
             "::/129", "1")
        ],
        (operation(ports=["0"]), "policy_bad_port", f"{OPERATION}.ports[0]", "1 to 65535"),
        (operation(ports=["080"]), "policy_bad_port", f"{OPERATION}.ports[0]", "1 to 65535"),
        (operation(notPorts=["70000"]), "policy_bad_port", f"{OPERATION}.notPorts[0]", "1 to 65535"),
        (operation(ports=[80]), "policy_wrong_type", f"{OPERATION}.ports[0]", "put it in quotes"),
        *[
            (operation(paths=[text]), "policy_bad_path_template", f"{OPERATION}.paths[0]", fragment)
            for text, fragment in (
                ("{*}/a", "must start with '/'"),
                ("/a/{**}/{*}", "{**} must be the last operator"),
                ("/a{*}", "not a whole"),
                ("/{id}", "not a whole"),
                ("/{*}/a*", "cannot be mixed"),
                ("/{*}//a", "empty segment"),
                ("/{*}/a b", "cannot hold"),
                ("/" + "/".join(["{*}"] * 6), "at most 5"),
            )
        ],
        (when("request.header[a]"), "policy_bad_condition_key",
         f"{WHEN}.key", "did you mean 'request.headers[name]'?"),
        (when("destination.labels[a]"), "policy_bad_condition_key", f"{WHEN}.key", "unknown key"),
        (when("request.headers"), "policy_bad_condition_key", f"{WHEN}.key", "one [header name]"),
        (when("request.headers[:path]"), "policy_bad_condition_key", f"{WHEN}.key", "not a header name"),
        (when("request.headers[a][b]"), "policy_bad_condition_key", f"{WHEN}.key", "one [header name]"),
        (when("request.auth.claims"), "policy_bad_condition_key", f"{WHEN}.key", "[claim name] is needed"),
        (when("request.auth.claims[a"), "policy_bad_condition_key", f"{WHEN}.key", "brackets"),
        (when("request.auth.claims[a]b"), "policy_bad_condition_key", f"{WHEN}.key", "brackets"),
        (when("request.auth.claims" + "[a]" * 9), "policy_bad_condition_key", f"{WHEN}.key", "at most 8"),
        (when("source.ip[a]"), "policy_bad_condition_key", f"{WHEN}.key", "takes no brackets"),
        (when("experimental.envoy.filters"), "policy_bad_condition_key", f"{WHEN}.key", "unknown key"),
        (when("experimental.envoy.filters.a"), "policy_bad_condition_key", f"{WHEN}.key", "one [key]"),
        (when("experimental.envoy.filters..a[b]"), "policy_bad_condition_key",
         f"{WHEN}.key", "filter's name"),
        (when(5), "policy_wrong_type", f"{WHEN}.key", "number 5"),
        ({"rules": [{"when": [{"values": ["a"]}]}]}, "policy_missing_field", WHEN, "key is missing"),
        ({"rules": [{"when": [{"key": "source.ip"}]}]}, "policy_missing_field", WHEN, "values or notValues"),
        ({"rules": [{"when": [7]}]}, "policy_wrong_type", WHEN, "a mapping"),
        (when("source.ip", values=[]), "policy_empty_value", f"{WHEN}.values", "empty list"),
        (when("source.ip", values=["x"]), "policy_bad_cidr", f"{WHEN}.values[0]", "CIDR"),
        (when("destination.port", notValues=["x"]), "policy_bad_port", f"{WHEN}.notValues[0]", "1 to 65535"),
        (when("source.serviceAccount", values=["a/b/c"]), "policy_bad_service_account",
         f"{WHEN}.values[0]", "a/b/c"),
        ({"rules": [{}] * 513}, "policy_too_many", "spec.rules", "at most 512"),
        ({"rules": [{"from": [{"source": {"namespaces": ["a"]}}] * 513}]}, "policy_too_many",
         "spec.rules[0].from", "at most 512"),
        (operation(hosts=[f"h{i}" for i in range(4097)]), "policy_too_many",
         f"{OPERATION}.hosts", "at most 4096"),
        (
            {"rules": [{"to": [{"operation": {"hosts": [f"h{i}" for i in range(4000)]}}]}] * 6},
            "policy_too_many",
            "spec.rules",
            "found 24000 values",
        ),
        (operation(hosts=["x" * 2049]), "policy_too_long", f"{OPERATION}.hosts[0]", "at most 2048"),
    ],
)  # fmt: skip
def test_refuses(spec: object, code: str, field: str, fragment: str) -> None:
    result = parse_policy(authz(spec))
    assert result.policy is None
    assert (code, field) in errors(result)
    finding = next(f for f in result.findings if (str(f.code), f.field) == (code, field))
    assert fragment in finding.message


def test_a_custom_policy_gets_one_refusal() -> None:
    result = parse_policy(authz("{action: CUSTOM, provider: {name: x}, rules: [{}]}"))
    assert errors(result) == [("policy_unsupported", "spec.action")]


def test_dry_run_of_audit_is_refused() -> None:
    dry = {"istio.io/dry-run": "true"}
    result = parse_policy(authz("{action: AUDIT, rules: [{}]}", annotations=dry))
    assert errors(result) == [("policy_unsupported", "spec")]


def test_every_error_at_once() -> None:
    result = parse_policy(
        authz(
            {
                "action": "CUSTOM",
                "rules": [
                    {"from": [{"source": {"principals": ["spiffe://a"], "ipBlocks": ["x"]}}]},
                    {"to": [{"operation": {"ports": ["x"]}}], "when": [{"key": "nope", "values": ["a"]}]},
                ],
            }
        )
    )
    assert sorted(field for _, field in errors(result)) == [
        "spec.action",
        "spec.rules[0].from[0].source.ipBlocks[0]",
        "spec.rules[0].from[0].source.principals[0]",
        "spec.rules[1].to[0].operation.ports[0]",
        "spec.rules[1].when[0].key",
    ]


@pytest.mark.parametrize(
    ("spec", "code", "field"),
    [
        (operation(paths=["/a/*/b"]), "policy_literal_star", f"{OPERATION}.paths[0]"),
        (operation(paths=["*/a/*"]), "policy_literal_star", f"{OPERATION}.paths[0]"),
        (source(principals=["*/ns/a/sa/*"]), "policy_literal_star", f"{SOURCE}.principals[0]"),
        (source(principals=["cluster.local/sa/b"]), "policy_never_matches", f"{SOURCE}.principals[0]"),
        (source(namespaces=["Foo"]), "policy_never_matches", f"{SOURCE}.namespaces[0]"),
        (source(trustDomains=["Foo"]), "policy_never_matches", f"{SOURCE}.trustDomains[0]"),
        (operation(hosts=["http://a"]), "policy_never_matches", f"{OPERATION}.hosts[0]"),
        (operation(methods=["get"]), "policy_never_matches", f"{OPERATION}.methods[0]"),
        (operation(paths=["admin"]), "policy_never_matches", f"{OPERATION}.paths[0]"),
        (operation(paths=["/a?b=c"]), "policy_never_matches", f"{OPERATION}.paths[0]"),
        (operation(paths=["/a//b"]), "policy_never_matches", f"{OPERATION}.paths[0]"),
        (when("request.auth.claims[exp]"), "policy_claim_never_matches", f"{WHEN}.key"),
        (when("request.auth.claims[iat]"), "policy_claim_never_matches", f"{WHEN}.key"),
    ],
)
def test_warns(spec: dict[str, object], code: str, field: str) -> None:
    result = parse_policy(authz(spec))
    assert result.policy is not None
    assert warnings(result) == [(code, field)]


@pytest.mark.parametrize(
    "spec",
    [
        operation(paths=["*"], methods=["*"], hosts=["*"]),
        operation(paths=["*.html", "/pkg.Service/Method", "/{*}", "/{**}", "/a/{**}/b", "/{*}/"]),
        source(principals=["*", "cluster.local/ns/a/*", "*/sa/b", "*local/ns/a/sa/b"]),
        source(requestPrincipals=["*", "https://i/*", "*/alice", "a/b"]),
        source(ipBlocks=["::1", "0.0.0.0/0"], namespaces=["*", "a*", "*b"], trustDomains=["*"]),
        when("request.auth.claims[exp][x]"),
    ],
)
def test_says_nothing_about_what_is_fine(spec: dict[str, object]) -> None:
    assert parse_policy(authz(spec)).findings == ()
