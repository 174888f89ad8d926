"""The rows of the policy corpus that are decided before Envoy, against the reference evaluator."""

from __future__ import annotations

import dataclasses

import pytest

from mesh.policy.effective import JwtHeader, MtlsMode
from mesh.policy.parse import parse_policy
from tests.fakes.policy_eval import Answer, Call, Token, evaluate
from tests.fakes.policy_objects import (
    ROOT,
    authz,
    effective,
    errors,
    peer_auth,
    policy_set,
    request_auth,
    workload,
)

BAR = "spiffe://cluster.local/ns/bar/sa/sleep"
FOO = "spiffe://cluster.local/ns/foo/sa/sleep"
I1, I2 = "https://i1.example", "https://i2.example"
JWKS1, JWKS2 = f"{I1}/jwks", f"{I2}/jwks"
T1 = Token(claims={"iss": I1, "sub": "alice", "groups": ["dev"], "scope": "read write"})
T1_BAD = dataclasses.replace(T1, good=False)
T2 = Token(claims={"iss": I2, "sub": "bob"})
RA1 = request_auth({"jwtRules": [{"issuer": I1, "jwksUri": JWKS1}]}, name="i1")
RA2 = request_auth({"jwtRules": [{"issuer": I2, "jwksUri": JWKS2}]}, name="i2")
OK, RESET, NO, WHO = Answer.OK, Answer.RESET, Answer.FORBIDDEN, Answer.UNAUTHENTICATED
STRICT = {"mtls": {"mode": "STRICT"}}
ECHO = workload(labels={"app": "tcp-echo"}, http=(), tcp=(9000, 9001))


def claims(**changed: object) -> Token:
    return Token(claims={"iss": I1, "sub": "alice"} | changed)


def without_sub() -> Token:
    return Token(claims={"iss": I1})


def allow(**spec: object) -> dict[str, object]:
    return authz({"rules": [spec]}, name="allow")


def deny(**spec: object) -> dict[str, object]:
    return authz({"action": "DENY", "rules": [spec]}, name="deny")


def who(**source: object) -> dict[str, object]:
    return {"from": [{"source": source}]}


def what(**operation: object) -> dict[str, object]:
    return {"to": [{"operation": operation}]}


def when(key: str, *values: str) -> dict[str, object]:
    return {"when": [{"key": key, "values": list(values)}]}


MTLS, PLAIN = Call(peer=BAR), Call()

ROWS = [
    ("P-01", [], [(PLAIN, OK), (MTLS, OK)]),
    ("P-02", [peer_auth(STRICT)], [(PLAIN, RESET), (MTLS, OK)]),
    (
        "P-03",
        [peer_auth(STRICT, namespace=ROOT), peer_auth({"mtls": {"mode": "DISABLE"}})],
        [(PLAIN, OK)],
    ),
    (
        "P-04",
        [
            peer_auth(STRICT),
            peer_auth(
                {
                    "selector": {"matchLabels": {"app": "httpbin"}},
                    "portLevelMtls": {"8080": {"mode": "DISABLE"}},
                },
                name="w",
            ),
        ],
        [(PLAIN, OK), (Call(port=9000), RESET)],
    ),
    (
        "P-05",
        [
            peer_auth(STRICT),
            peer_auth(
                {
                    "selector": {"matchLabels": {"app": "httpbin"}},
                    "portLevelMtls": {"8000": {"mode": "DISABLE"}},
                },
                name="w",
            ),
        ],
        [(PLAIN, RESET), (MTLS, OK)],
    ),
    ("P-06", [peer_auth(STRICT, namespace=ROOT), peer_auth({})], [(PLAIN, RESET), (MTLS, OK)]),
    ("P-12", [peer_auth(STRICT)], [(Call(port=9002, http=False), RESET)]),
    ("P-21", [RA1], [(PLAIN, OK), (Call(token=T1), OK), (Call(token=T1_BAD), WHO)]),
    ("P-22", [RA1], [(Call(token=T2), WHO), (Call(token=T1), OK)]),
    (
        "P-23",
        [request_auth({"jwtRules": [{"issuer": I1, "jwksUri": JWKS1, "audiences": ["a"]}]})],
        [
            (Call(token=claims(aud="b")), NO),
            (Call(token=claims()), NO),
            (Call(token=claims(aud=["x", "a"])), OK),
        ],
    ),
    ("P-24", [RA1, RA2], [(Call(token=T1), OK), (Call(token=T2), OK), (PLAIN, OK)]),
    (
        "P-30",
        [RA1, allow(**who(requestPrincipals=["*"]))],
        [(PLAIN, NO), (Call(token=T1), OK), (Call(token=without_sub()), NO)],
    ),
    (
        "P-31",
        [RA1, allow(**who(requestPrincipals=[f"{I1}/alice"]))],
        [(Call(token=T1), OK), (Call(token=claims(sub="bob")), NO)],
    ),
    (
        "P-35",
        [RA1, allow(**when("request.auth.claims[scope]", "write"))],
        [(Call(token=T1), OK), (Call(token=claims(scope="read")), NO)],
    ),
    (
        "P-36",
        [RA1, allow(**when("request.auth.claims[nested][role]", "admin"))],
        [
            (Call(token=claims(nested={"role": ["admin", "x"]})), OK),
            (Call(token=claims(nested={"role": "user"})), NO),
        ],
    ),
    ("P-41", [authz({})], [(MTLS, NO)]),
    (
        "P-42",
        [allow(**who(principals=["cluster.local/ns/bar/sa/sleep"]))],
        [(MTLS, OK), (Call(peer=FOO), NO), (PLAIN, NO)],
    ),
    (
        "P-43",
        [allow(**who(namespaces=["bar"]), **what(methods=["GET"], paths=["/info*"]))],
        [
            (Call(peer=BAR, path="/info/1"), OK),
            (Call(peer=BAR, path="/info", method="POST"), NO),
            (Call(peer=BAR, path="/x"), NO),
        ],
    ),
    (
        "P-44",
        [deny(**what(paths=["/admin"])), allow(**what(paths=["/*"]))],
        [(Call(path="/admin"), NO), (Call(path="/ok"), OK)],
    ),
    (
        "P-46",
        [deny(**what(hosts=["api.foo.example"]))],
        [
            (Call(host="API.foo.example"), NO),
            (Call(host="api.foo.example:80"), NO),
            (Call(host="api.foo.example.org"), OK),
        ],
    ),
    ("P-47", [deny(**who(notPrincipals=["*"]))], [(PLAIN, NO), (MTLS, OK)]),
    ("P-48", [allow(**who(notNamespaces=["bar"]))], [(MTLS, NO), (PLAIN, OK)]),
    (
        "P-49",
        [allow(**when("request.headers[X-R]", "a"))],
        [
            (Call(headers={"x-r": ("a",)}), OK),
            (Call(headers={"x-r": ("b",)}), NO),
            (PLAIN, NO),
            (Call(headers={"x-r": ("b", "a")}), OK),
        ],
    ),
    (
        "P-50",
        [allow(**what(paths=["/foo/{*}"]))],
        [(Call(path="/foo/a"), OK), (Call(path="/foo/a/b"), NO), (Call(path="/foo/"), NO)],
    ),
    (
        "P-51",
        [
            authz({"rules": [who(namespaces=["foo"])]}, namespace=ROOT),
            authz({"rules": [who(namespaces=["bar"])]}),
        ],
        [(MTLS, OK), (Call(peer=FOO), OK), (PLAIN, NO)],
    ),
    (
        "P-52",
        [allow(**what(ports=["9000"]))],
        [(Call(port=port, http=False), answer) for port, answer in ((9000, OK), (9001, NO), (9002, NO))],
    ),
    (
        "P-53",
        [allow(**what(methods=["GET"], ports=["9000"]))],
        [(Call(port=9000, http=False), NO), (Call(port=9000), OK)],
    ),
    (
        "P-54",
        [deny(**who(namespaces=["bar"]), **what(ports=["9001"]))],
        [
            (Call(port=9001, http=False, peer=BAR), NO),
            (Call(port=9000, http=False, peer=BAR), OK),
            (Call(port=9001, http=False, peer=FOO), OK),
        ],
    ),
    (
        "P-55",
        [
            authz(
                {"action": "DENY", "rules": [what(paths=["/x"])]},
                annotations={"istio.io/dry-run": "true"},
            )
        ],
        [(Call(path="/x"), OK)],
    ),
    (
        "CVE-2026-39350",
        [allow(**who(serviceAccounts=["bar/a.b"]))],
        [
            (Call(peer="spiffe://cluster.local/ns/bar/sa/a.b"), OK),
            (Call(peer="spiffe://cluster.local/ns/bar/sa/axb"), NO),
        ],
    ),
    (
        "CVE-2020-16844",
        [deny(**who(principals=["*/sa/sleep"]))],
        [(Call(peer=BAR, http=False), NO), (Call(peer="spiffe://cluster.local/ns/bar/sa/x", http=False), OK)],
    ),
    (
        "DENY paths blocks TCP (istio#24845)",
        [deny(**what(paths=["/admin"]))],
        [(Call(port=9000, http=False), NO), (PLAIN, OK)],
    ),
]


@pytest.mark.parametrize(
    ("objects", "call", "answer"),
    [
        pytest.param(objects, call, answer, id=f"{row}-{index}-{answer.value}")
        for row, objects, calls in ROWS
        for index, (call, answer) in enumerate(calls)
    ],
)
def test_corpus(objects: list[dict[str, object]], call: Call, answer: Answer) -> None:
    assert evaluate(effective(*objects), call).answer is answer


def test_p05_warns_that_the_port_is_not_exposed() -> None:
    found = effective(
        peer_auth(
            {"selector": {"matchLabels": {"app": "httpbin"}}, "portLevelMtls": {"8000": {"mode": "DISABLE"}}}
        )
    )
    (finding,) = found.findings
    assert (str(finding.code), finding.field) == ("policy_port_not_declared", "spec.portLevelMtls[8000]")
    assert "declares no port 8000 (it has 8080)" in finding.message


def test_p25_to_p29_reach_the_provider() -> None:
    rule = {
        "issuer": I1,
        "jwksUri": JWKS1,
        "fromHeaders": [{"name": "X-JWT", "prefix": "J "}],
        "fromParams": ["tok"],
        "fromCookies": ["c"],
        "outputPayloadToHeader": "X-P",
        "outputClaimToHeaders": [{"header": "X-Sub", "claim": "sub"}],
        "forwardOriginalToken": True,
        "spaceDelimitedClaims": ["roles", "scope"],
    }
    (provider,) = effective(request_auth({"jwtRules": [rule]})).jwt.providers
    assert provider.from_headers == (JwtHeader("x-jwt", "J "),)
    assert provider.from_params == ("tok",)
    assert provider.from_cookies == ("c",)
    assert provider.output_payload_header == "x-p"
    assert provider.claim_headers == (("x-sub", "sub"),)
    assert provider.forward
    assert provider.jwks == "K1"
    assert provider.space_delimited_claims == ("scope", "permission", "roles")


@pytest.mark.parametrize("uri", ["http://169.254.169.254/latest", "http://[::1]/k", "http://localhost/k"])
def test_p34_a_link_local_jwks_uri_is_reported_and_falls_back(uri: str) -> None:
    data = request_auth({"jwtRules": [{"issuer": I1, "jwksUri": uri}]})
    result = parse_policy(data)
    assert [str(f.code) for f in result.findings] == ["policy_jwks_uri_blocked"]
    found = effective(data)
    assert found.jwt.providers[0].jwks == '{"keys":[{"kty":"fallback"}]}'
    assert [str(f.code) for f in found.findings] == ["policy_jwks_unavailable"]


def test_p32_without_keys_tokens_fail_and_requests_without_one_pass() -> None:
    found = effective(RA1, key_sets={})
    assert found.jwt.providers[0].jwks == '{"keys":[{"kty":"fallback"}]}'
    assert found.jwt.regions[0].allow_missing
    assert "every token of this issuer is refused (401)" in found.findings[0].message


def test_keys_of_an_issuer_alone_are_those_of_its_description() -> None:
    """Policy b.2: neither jwks nor jwksUri means OIDC discovery; `iss` is still compared verbatim."""
    address = f"{I1}/.well-known/openid-configuration"
    data = request_auth({"jwtRules": [{"issuer": f"{I1}/"}]})
    found = effective(data, key_sets={address: "K1", "": "K0"})
    assert [(p.issuer, p.jwks) for p in found.jwt.providers] == [(f"{I1}/", "K1")]
    assert found.findings == ()
    without = effective(data, key_sets={"": "K0"})
    assert without.jwt.providers[0].jwks == '{"keys":[{"kty":"fallback"}]}'
    assert [str(f.code) for f in without.findings] == ["policy_jwks_unavailable"]
    assert address in without.findings[0].message


def test_an_issuer_alone_that_is_no_url_is_reported_and_falls_back() -> None:
    data = request_auth({"jwtRules": [{"issuer": "testing@secure.istio.io"}]})
    (warned,) = parse_policy(data).findings
    assert (str(warned.code), warned.field) == ("policy_jwks_unavailable", "spec.jwtRules[0].issuer")
    assert "until the rule has jwksUri or jwks" in warned.message
    found = effective(data, key_sets={"": "K0"})
    assert found.jwt.providers[0].jwks == '{"keys":[{"kty":"fallback"}]}'
    assert "the issuer is no URL that keys are found by" in found.findings[0].message


def test_an_issuer_alone_on_this_host_is_reported() -> None:
    result = parse_policy(request_auth({"jwtRules": [{"issuer": "http://169.254.169.254"}]}))
    assert [(str(f.code), f.field) for f in result.findings] == [
        ("policy_jwks_uri_blocked", "spec.jwtRules[0].issuer")
    ]


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"rules": [when("request.auth.clams[x]", "y")]}, "spec.rules[0].when[0].key"),
        ({"rules": [{"from": [{"source": {}}]}]}, "spec.rules[0].from[0].source"),
        ({"action": "DENY"}, "spec"),
    ],
)
def test_p56_is_refused_with_the_field(spec: dict[str, object], field: str) -> None:
    result = parse_policy(authz(spec))
    assert result.policy is None
    assert [found for _, found in errors(result)] == [field]


def test_p48_warns_in_permissive_and_not_in_strict() -> None:
    policy = allow(**who(notNamespaces=["bar"]))
    assert "policy_plaintext_allowed" in {str(f.code) for f in effective(policy).findings}
    assert effective(policy, peer_auth(STRICT)).findings == ()


def test_p53_p54_tcp_chain_of_an_echo_server_names_the_port() -> None:
    found = effective(allow(**what(methods=["GET"], ports=["9000"])), pod=ECHO)
    (finding,) = found.findings
    assert str(finding.code) == "policy_tcp_rule_dropped"
    assert "on TCP port 9000 the rule allows nothing" in finding.message
    assert (
        effective(
            deny(**who(namespaces=["bar"]), **what(ports=["9001"])), peer_auth(STRICT), pod=ECHO
        ).findings
        == ()
    )


def test_set_is_indexed_once() -> None:
    assert policy_set(RA1, RA2).policies != ()
    assert effective().transport.mode is MtlsMode.PERMISSIVE
