"""Key sets: what is kept, what is dropped and why, and that the bytes are Envoy's."""

from __future__ import annotations

import base64
import json
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from mesh.policy.jwks import MAX_BYTES, JwksError, encode_public_key, parse_key_set

RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
WEAK = rsa.generate_private_key(public_exponent=65537, key_size=1024)
EC = {
    name: ec.generate_private_key(curve)
    for name, curve in (("P-256", ec.SECP256R1()), ("P-384", ec.SECP384R1()), ("P-521", ec.SECP521R1()))
}
K1 = ec.generate_private_key(ec.SECP256K1())
ED = ed25519.Ed25519PrivateKey.generate()


def rsa_jwk(**changed: object) -> dict[str, Any]:
    return json.loads(RSAAlgorithm.to_jwk(RSA.public_key())) | {"kid": "r"} | changed


def ec_jwk(curve: str = "P-256", **changed: object) -> dict[str, Any]:
    return json.loads(ECAlgorithm.to_jwk(EC[curve].public_key())) | {"kid": curve} | changed


def keys_of(*keys: object) -> list[dict[str, str]]:
    return json.loads(parse_key_set(json.dumps({"keys": list(keys)})).json)["keys"]


def number(value: int) -> str:
    raw = value.to_bytes((value.bit_length() + 7) // 8, "big")
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def test_keeps_rsa_and_the_three_curves_with_public_members_only() -> None:
    found = keys_of(
        json.loads(RSAAlgorithm.to_jwk(RSA))
        | {"kid": "r", "alg": "PS512", "use": "sig", "x5c": ["x"], "junk": {}},
        *(ec_jwk(curve) for curve in EC),
    )
    members = {frozenset(key) for key in found}
    assert members == {frozenset(("kty", "kid", "alg", "n", "e")), frozenset(("kty", "kid", "crv", "x", "y"))}
    assert {key.get("crv") for key in found} == {None, "P-256", "P-384", "P-521"}


def test_a_token_verifies_with_the_re_encoded_key() -> None:
    (key,) = keys_of(json.loads(RSAAlgorithm.to_jwk(RSA)) | {"kid": "r"})
    token = jwt.encode({"iss": "i"}, RSA, algorithm="RS256", headers={"kid": "r"})
    assert jwt.decode(token, jwt.PyJWK(key).key, algorithms=["RS256"]) == {"iss": "i"}


def test_standard_base64_is_rewritten_as_base64url_without_padding() -> None:
    for _ in range(50):
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048).public_key().public_numbers().n
        raw = base64.b64encode(key.to_bytes(256, "big")).decode()
        if "+" in raw or "/" in raw:
            break
    (found,) = keys_of(rsa_jwk(n=raw))
    assert found["n"] == raw.replace("+", "-").replace("/", "_").rstrip("=")


def test_a_short_coordinate_keeps_its_length() -> None:
    (found,) = keys_of(ec_jwk("P-521"))
    assert len(base64.urlsafe_b64decode(found["x"] + "==")) == 66


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        pytest.param("text", "not an object", id="text"),
        pytest.param({}, "key type", id="no-kty"),
        pytest.param({"kty": ["RSA"]}, "key type", id="kty-list"),
        pytest.param({"kty": "oct", "k": "c2VjcmV0"}, "key type", id="oct"),
        pytest.param(json.loads(OKPAlgorithm.to_jwk(ED.public_key())), "key type", id="OKP"),
        pytest.param({"kty": "XYZ"}, "key type", id="unknown-kty"),
        pytest.param(rsa_jwk(use="enc"), "not for signatures", id="use-enc"),
        pytest.param(rsa_jwk(key_ops=["encrypt"]), "not for signatures", id="key-ops"),
        pytest.param(rsa_jwk(key_ops="verify"), "not for signatures", id="key-ops-text"),
        pytest.param(rsa_jwk(alg="RSA-OAEP"), "not supported", id="alg-unknown"),
        pytest.param(rsa_jwk(alg="ES256"), "malformed", id="alg-of-another-type"),
        pytest.param(rsa_jwk(alg="HS256"), "malformed", id="alg-symmetric"),
        pytest.param(rsa_jwk(alg=["RS256"]), "alg is not text", id="alg-list"),
        pytest.param(ec_jwk(alg="ES384"), "algorithm does not fit", id="alg-of-another-curve"),
        pytest.param(rsa_jwk(kid=5), "kid", id="kid-number"),
        pytest.param(rsa_jwk(kid="a\nb"), "kid", id="kid-line"),
        pytest.param(rsa_jwk(kid="x" * 1025), "kid", id="kid-long"),
        pytest.param(json.loads(RSAAlgorithm.to_jwk(WEAK.public_key())), "1024 bits", id="rsa-1024"),
        pytest.param(rsa_jwk(n=number((1 << 2047) + 2)), "even", id="even-modulus"),
        pytest.param(rsa_jwk(n=number((1 << 9000) + 1)), "9001 bits", id="rsa-9001"),
        pytest.param(rsa_jwk(e=number((1 << 64) + 1)), "exponent", id="long-exponent"),
        pytest.param(rsa_jwk(e=number(2)), "malformed", id="even-exponent"),
        pytest.param(rsa_jwk(n="@@"), "", id="not-base64"),
        pytest.param(rsa_jwk(n=None), "malformed", id="null-modulus"),
        pytest.param(ec_jwk(x="AAAA"), "malformed", id="short-x"),
        pytest.param(ec_jwk(x=ec_jwk()["y"]), "malformed", id="not-on-curve"),
        pytest.param(json.loads(ECAlgorithm.to_jwk(K1.public_key())), "curve", id="secp256k1"),
        pytest.param(ec_jwk(crv="P-1"), "malformed", id="unknown-curve"),
    ],
)
def test_drops_one_key_and_keeps_the_rest(key: object, reason: str) -> None:
    found = parse_key_set(json.dumps({"keys": [key, ec_jwk()]}))
    assert json.loads(found.json)["keys"] == [
        {name: ec_jwk()[name] for name in ("kty", "kid", "crv", "x", "y")},
    ]
    (dropped,) = found.dropped
    assert dropped.startswith("keys[0]: ")
    assert reason in dropped
    with pytest.raises(JwksError, match="no usable key") as caught:
        parse_key_set(json.dumps({"keys": [key]}))
    assert str(caught.value.code) == "jwks_no_usable_key"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "jwks_not_json"),
        (b"\xff\xfe\xff", "jwks_not_json"),
        ("[" * 100_000, "jwks_not_json"),
        ('{"keys": [{"kty": ' + "9" * 5000 + "}]}", "jwks_not_json"),
        ("{}", "jwks_shape"),
        ("[]", "jwks_shape"),
        ('{"keys": {}}', "jwks_shape"),
        ('{"keys": []}', "jwks_no_usable_key"),
        (json.dumps({"keys": [{}] * 101}), "jwks_too_large"),
        (" " * (MAX_BYTES + 1), "jwks_too_large"),
    ],
    ids=["empty", "bytes", "deep", "big-number", "object", "list", "keys-object", "no-keys", "many", "large"],
)
def test_refuses_a_whole_set(text: str | bytes, code: str) -> None:
    with pytest.raises(JwksError) as caught:
        parse_key_set(text)
    assert str(caught.value.code) == code
    assert "9999" not in str(caught.value)


def test_private_members_are_noticed_and_never_passed_on() -> None:
    found = parse_key_set(json.dumps({"keys": [json.loads(RSAAlgorithm.to_jwk(RSA))]}))
    assert found.had_private
    assert set(json.loads(found.json)["keys"][0]) == {"kty", "n", "e"}
    assert not parse_key_set(json.dumps({"keys": [rsa_jwk()]})).had_private


def test_duplicate_kids_stay_and_equal_keys_count_once() -> None:
    assert len(keys_of(ec_jwk(kid="a"), ec_jwk("P-384", kid="a"))) == 2
    assert len(keys_of(ec_jwk(), ec_jwk())) == 1


@given(st.permutations([rsa_jwk(), ec_jwk(), ec_jwk("P-384")]), st.integers(0, 4), st.booleans())
def test_bytes_are_stable(keys: list[dict[str, Any]], indent: int, reverse: bool) -> None:
    shuffled = [dict(sorted(key.items(), reverse=reverse)) for key in keys]
    text = json.dumps({"keys": shuffled}, indent=indent)
    expected = parse_key_set(json.dumps({"keys": [rsa_jwk(), ec_jwk(), ec_jwk("P-384")]})).json
    assert parse_key_set(text).json == expected
    assert parse_key_set(expected).json == expected
    assert parse_key_set(text.encode()).json == expected


def test_a_public_key_becomes_a_set() -> None:
    text = encode_public_key(EC["P-256"].public_key(), kid="fallback")
    (key,) = json.loads(text)["keys"]
    assert key["kid"] == "fallback"
    assert parse_key_set(text).json == text
    assert "kid" not in json.loads(encode_public_key(RSA.public_key()))["keys"][0]
