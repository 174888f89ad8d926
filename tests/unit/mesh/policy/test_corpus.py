"""The rows of the policy corpus that are decided before Envoy, against the reference evaluator."""

from __future__ import annotations

import pytest

from mesh.policy.effective import JwtHeader, MtlsMode
from mesh.policy.parse import parse_policy
from tests.fakes.policy_corpus import (
    ECHO,
    FIELD_ROWS,
    I1,
    JWKS1,
    RA1,
    RA2,
    ROWS,
    STRICT,
    allow,
    deny,
    what,
    when,
    who,
)
from tests.fakes.policy_eval import Answer, Call, evaluate
from tests.fakes.policy_objects import authz, effective, errors, peer_auth, policy_set, request_auth


@pytest.mark.parametrize(
    ("objects", "call", "answer"),
    [
        pytest.param(objects, call, answer, id=f"{row}-{index}-{answer.value}")
        for row, objects, calls in (*ROWS, *FIELD_ROWS)
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
