"""RequestAuthentication: every field and every refusal with its path."""

from __future__ import annotations

import json

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from mesh.policy.effective import JwtHeader
from mesh.policy.jwks import parse_key_set
from mesh.policy.model import JwtRule, RequestAuthentication
from mesh.policy.parse import parse_policy
from mesh.policy.values import blocked_host
from tests.fakes.policy_objects import errors, parsed, request_auth, warnings

RULE = "spec.jwtRules[0]"
KEY = ec.generate_private_key(ec.SECP256R1())
PRIVATE_JWK = json.loads(ECAlgorithm.to_jwk(KEY))
PUBLIC_JWKS = json.dumps({"keys": [json.loads(ECAlgorithm.to_jwk(KEY.public_key()))]})


def rules(**fields: object) -> dict[str, object]:
    return {"jwtRules": [{"issuer": "https://i", **fields}]}


def read(spec: dict[str, object]) -> tuple[JwtRule, ...]:
    policy = parsed(request_auth(spec))
    assert isinstance(policy, RequestAuthentication)
    return policy.rules


def test_reads_every_field() -> None:
    (rule,) = read(
        rules(
            audiences=["a", "b"],
            jwksUri="https://i/keys?x=y",
            fromHeaders=[{"name": "X-A", "prefix": "J "}, {"name": "x-b"}],
            fromParams=["t"],
            fromCookies=["c"],
            outputPayloadToHeader="X-Payload",
            outputClaimToHeaders=[{"header": "X-Sub", "claim": "a.sub"}],
            forwardOriginalToken=True,
            timeout="59s500ms",
            spaceDelimitedClaims=["scope", "roles"],
        )
    )
    assert rule == JwtRule(
        issuer="https://i",
        audiences=("a", "b"),
        jwks_uri="https://i/keys?x=y",
        from_headers=(JwtHeader("x-a", "J "), JwtHeader("x-b")),
        from_params=("t",),
        from_cookies=("c",),
        output_payload_header="x-payload",
        claim_headers=(("x-sub", "a.sub"),),
        forward=True,
        timeout_seconds=59.5,
        space_delimited_claims=("scope", "permission", "roles"),
    )


def test_defaults_and_the_same_issuer_twice() -> None:
    assert read({"jwtRules": [{"jwksUri": "https://i/keys"}]}) == (JwtRule(jwks_uri="https://i/keys"),)
    assert len(read({"jwtRules": [{"issuer": "i", "audiences": ["a"]}, {"issuer": "i"}]})) == 2
    assert read({}) == ()
    assert read({"jwtRules": []}) == ()


def test_an_inline_key_set_becomes_canonical() -> None:
    result = parse_policy(request_auth(rules(jwks=PUBLIC_JWKS)))
    assert result.findings == ()
    assert read(rules(jwks=PUBLIC_JWKS))[0].jwks == parse_key_set(PUBLIC_JWKS).json


def test_private_members_are_stripped_and_reported() -> None:
    text = json.dumps({"keys": [PRIVATE_JWK, {"kty": "oct", "k": "c2VjcmV0"}]})
    result = parse_policy(request_auth(rules(jwks=text)))
    assert [code for code, _ in warnings(result)] == ["policy_jwks_private_key", "policy_jwks_key_dropped"]
    assert not any(PRIVATE_JWK["d"] in str(f) or "c2VjcmV0" in str(f) for f in result.findings)
    assert read(rules(jwks=text))[0].jwks == parse_key_set(PUBLIC_JWKS).json


@pytest.mark.parametrize(
    ("spec", "code", "field", "fragment"),
    [
        ({"jwtRule": []}, "policy_unknown_field", "spec.jwtRule", "did you mean 'jwtRules'?"),
        ({"jwtRules": {}}, "policy_wrong_type", "spec.jwtRules", "a list"),
        ({"jwtRules": [1]}, "policy_wrong_type", RULE, "a mapping"),
        ({"jwtRules": [{"issuer": "i"}] * 65}, "policy_too_many", "spec.jwtRules", "at most 64"),
        ({"jwtRules": [{"audiences": ["a"]}]}, "policy_missing_field", RULE, "issuer or jwksUri"),
        ({"jwtRules": [{"jwks": PUBLIC_JWKS}]}, "policy_missing_field", RULE, "issuer or jwksUri"),
        (rules(issuer=""), "policy_empty_value", f"{RULE}.issuer", "empty text"),
        (rules(jwks_uri="x"), "policy_unknown_field", f"{RULE}.jwks_uri", "did you mean 'jwksUri'?"),
        (rules(jwks=PUBLIC_JWKS, jwksUri="https://i/k"), "policy_conflict",
         f"{RULE}.jwksUri", "exclude each other"),
        *[
            (rules(jwksUri=text), "policy_bad_url", f"{RULE}.jwksUri", "http:// or https://")
            for text in (
                "ftp://i/k", "//i/k", "i/k", "https://", "https:///k", "https://u:p@i/k", "https://i/k#f",
                "https://i:0/", "https://i:99999/", "https://i/ k", "https://i\\@j/", "https://[::1/",
            )
        ],
        (rules(jwks={"keys": []}), "policy_wrong_type", f"{RULE}.jwks", "text that holds"),
        (rules(jwks="{}"), "policy_bad_jwks", f"{RULE}.jwks", 'a list named "keys"'),
        (rules(jwks="nope"), "policy_bad_jwks", f"{RULE}.jwks", "not JSON"),
        (rules(jwks='{"keys":[]}'), "policy_bad_jwks", f"{RULE}.jwks", "no usable key"),
        (rules(jwks="x" * (256 * 1024 + 1)), "policy_too_long", f"{RULE}.jwks", "at most"),
        (rules(audiences=[""]), "policy_empty_value", f"{RULE}.audiences[0]", "empty text"),
        (rules(audiences=["a", "a"]), "policy_duplicate", f"{RULE}.audiences[1]", "twice"),
        (rules(fromHeaders=[{"prefix": "x"}]), "policy_missing_field",
         f"{RULE}.fromHeaders[0]", "name is missing"),
        (rules(fromHeaders=[{"name": "a b"}]), "policy_bad_header_name",
         f"{RULE}.fromHeaders[0].name", "letters"),
        (rules(fromHeaders=[{"name": 1}]), "policy_wrong_type", f"{RULE}.fromHeaders[0].name", "number 1"),
        (rules(fromHeaders=[{"name": "a", "prefix": 1}]), "policy_wrong_type",
         f"{RULE}.fromHeaders[0].prefix", "1"),
        (rules(fromHeaders=[{"name": "a"}, {"name": "A"}]), "policy_duplicate",
         f"{RULE}.fromHeaders[1]", "twice"),
        (rules(fromCookies=["a b"]), "policy_bad_value", f"{RULE}.fromCookies[0]", "name of a cookie"),
        (rules(outputPayloadToHeader=":path"), "policy_bad_header_name",
         f"{RULE}.outputPayloadToHeader", "no ':'"),
        (
            rules(outputPayloadToHeader="X-Forwarded-Client-Cert"),
            "policy_bad_header_name",
            f"{RULE}.outputPayloadToHeader",
            "set by the proxy",
        ),
        (
            rules(outputClaimToHeaders=[{"header": "host", "claim": "a"}]),
            "policy_bad_header_name",
            f"{RULE}.outputClaimToHeaders[0].header",
            "frames the message",
        ),
        (rules(outputClaimToHeaders=[{"header": "a"}]), "policy_missing_field",
         f"{RULE}.outputClaimToHeaders[0]", "claim is missing"),
        (
            rules(outputClaimToHeaders=[{"header": "a", "claim": "b"}, {"header": "A", "claim": "c"}]),
            "policy_duplicate",
            f"{RULE}.outputClaimToHeaders[1]",
            "set twice",
        ),
        (rules(forwardOriginalToken="true"), "policy_wrong_type",
         f"{RULE}.forwardOriginalToken", "true or false"),
        *[
            (rules(timeout=text), "policy_bad_value", f"{RULE}.timeout", "a duration such as 5s")
            for text in ("5", "0s", "61s", "-1s", "1d", "s")
        ],
        (rules(timeout=5), "policy_wrong_type", f"{RULE}.timeout", "put it in quotes"),
    ],
)  # fmt: skip
def test_refuses(spec: dict[str, object], code: str, field: str, fragment: str) -> None:
    result = parse_policy(request_auth(spec))
    assert result.policy is None
    assert (code, field) in errors(result)
    assert fragment in next(f.message for f in result.findings if (str(f.code), f.field) == (code, field))


@pytest.mark.parametrize(
    ("url", "blocked"),
    [
        ("http://169.254.169.254/", True),
        ("http://127.1.2.3/", True),
        ("http://[::1]/", True),
        ("http://[fe80::1]/", True),
        ("http://[::ffff:169.254.169.254]/", True),
        ("http://0.0.0.0/", True),
        ("http://224.0.0.1/", True),
        ("http://LOCALHOST/", True),
        ("http://a.localhost/", True),
        ("http://10.0.0.1/", False),
        ("https://issuer.example/", False),
    ],
)
def test_addresses_that_are_never_fetched_from(url: str, blocked: bool) -> None:
    assert blocked_host(url) is blocked
