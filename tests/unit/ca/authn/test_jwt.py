"""The token verifier: rows F-40, F-50, F-52, and the same answers as PyJWT over hostile tokens."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from ca.authn import AuthnCode, AuthnError, Caller, Presented
from ca.authn.claims import TokenPolicy, read_claims
from ca.authn.jwt import MAX_TOKEN_BYTES, TokenAuthenticator, TokenVerifier, bearer
from ca.authn.keys import KeySet, parse_jwks
from mesh.errors import Category
from mesh.spiffe import TrustDomain
from tests.fakes.ca_tokens import AUDIENCE, ISSUER, claims, jwks, private_key, segment, sign, token

ALGORITHMS = {"k1": "RS256", "r3": "RS384", "r5": "RS512", "e1": "ES256", "e3": "ES384", "e5": "ES512"}
NOW = dt.datetime.now(dt.UTC)  # PyJWT reads the machine's clock
POLICY = TokenPolicy(
    trust_domain=TrustDomain("cluster.local"), issuer=ISSUER, audiences=frozenset({AUDIENCE})
)


class Keys:
    """Keys that stay, or that a refresh replaces."""

    def __init__(self, current: KeySet | None, after: KeySet | None = None) -> None:
        self.current = current
        self.after = after
        self.refreshed = 0

    def refresh(self, now: dt.datetime) -> bool:
        self.refreshed += 1
        if self.after is None or self.current is self.after:
            return False
        self.current = self.after
        return True


KEYS = Keys(parse_jwks(jwks(ALGORITHMS)))


def ours(text: str, keys: Keys = KEYS) -> Caller:
    caller = TokenAuthenticator(POLICY, keys).authenticate(Presented(authorization=[f"Bearer {text}"]), NOW)
    assert caller is not None
    return caller


def theirs(text: str) -> Caller:
    """The reference: PyJWT from the key set to the checked claims, then the same reading of them."""
    keyset = jwt.PyJWKSet.from_json(jwks(ALGORITHMS).decode())
    key = keyset[jwt.get_unverified_header(text)["kid"]]
    payload = jwt.decode(
        text,
        key,
        algorithms=[key.algorithm_name],
        audience=AUDIENCE,
        issuer=ISSUER,
        leeway=10,
        options={"require": ["exp", "iat", "iss", "aud", "sub"]},
    )
    return read_claims(payload, POLICY, NOW.timestamp())


@pytest.mark.parametrize(("key_id", "algorithm"), ALGORITHMS.items())
def test_good_tokens_of_every_algorithm(key_id: str, algorithm: str) -> None:
    text = token(NOW, key_id=key_id, algorithm=algorithm)
    assert ours(text) == theirs(text)
    assert ours(text).spiffe_id.service_account() == ("demo", "web")


def refused(text: str, keys: Keys = KEYS) -> AuthnError:
    with pytest.raises(AuthnError) as error:
        ours(text, keys)
    return error.value


def by_hand(header: Any, payload: Any = None, signature: bytes = b"s" * 256) -> str:
    return f"{segment(header)}.{segment(payload or claims(NOW))}.{segment(signature)}"


GOOD = token(NOW)
HEAD, PAYLOAD, SIGNATURE = GOOD.split(".")
PEM = private_key("k1").public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def hs256_with_public_key() -> str:
    """The classic confusion: the public key as the secret of a symmetric algorithm."""
    import hashlib
    import hmac

    signed = f"{segment({'alg': 'HS256', 'kid': 'k1'})}.{PAYLOAD}"
    return f"{signed}.{segment(hmac.new(PEM, signed.encode(), hashlib.sha256).digest())}"


HOSTILE = [
    ("alg none", by_hand({"alg": "none", "kid": "k1"}, signature=b""), AuthnCode.TOKEN_UNKNOWN_KEY),
    ("alg None in odd case", by_hand({"alg": "nOnE", "kid": "k1"}), AuthnCode.TOKEN_UNKNOWN_KEY),
    ("no signature", f"{HEAD}.{PAYLOAD}.", AuthnCode.TOKEN_SIGNATURE),
    ("HS256 with the public key", hs256_with_public_key(), AuthnCode.TOKEN_UNKNOWN_KEY),
    ("other algorithm of the same key", by_hand({"alg": "RS512", "kid": "k1"}), AuthnCode.TOKEN_UNKNOWN_KEY),
    ("PS256", by_hand({"alg": "PS256", "kid": "k1"}), AuthnCode.TOKEN_UNKNOWN_KEY),
    ("ES256 with an RSA key ID", by_hand({"alg": "ES256", "kid": "k1"}), AuthnCode.TOKEN_UNKNOWN_KEY),
    ("kid traversal", by_hand({"alg": "RS256", "kid": "../../../dev/null"}), AuthnCode.TOKEN_UNKNOWN_KEY),
    ("kid with a line feed", by_hand({"alg": "RS256", "kid": "k1\n"}), AuthnCode.TOKEN_UNKNOWN_KEY),
    ("kid prefix", by_hand({"alg": "RS256", "kid": "k"}), AuthnCode.TOKEN_UNKNOWN_KEY),
    ("no kid", by_hand({"alg": "RS256"}), AuthnCode.TOKEN_HEADER),
    ("kid is a list", by_hand({"alg": "RS256", "kid": ["k1"]}), AuthnCode.TOKEN_HEADER),
    ("alg is a number", by_hand({"alg": 256, "kid": "k1"}), AuthnCode.TOKEN_HEADER),
    ("jku", sign(claims(NOW), jku="https://evil.test/jwks"), AuthnCode.TOKEN_HEADER),
    ("x5u", sign(claims(NOW), x5u="https://evil.test/x"), AuthnCode.TOKEN_HEADER),
    ("x5c", sign(claims(NOW), x5c=["MII"]), AuthnCode.TOKEN_HEADER),
    ("embedded key", sign(claims(NOW), jwk={"kty": "oct"}), AuthnCode.TOKEN_HEADER),
    ("unknown crit", sign(claims(NOW), crit=["exp"], exp=1), AuthnCode.TOKEN_HEADER),
    ("compressed", sign(claims(NOW), zip="DEF"), AuthnCode.TOKEN_HEADER),
    ("header is a list", by_hand([]), AuthnCode.TOKEN_MALFORMED),
    ("header is no JSON", by_hand(b"{"), AuthnCode.TOKEN_MALFORMED),
    ("signed by another key", f"{HEAD}.{PAYLOAD}.{segment(b'x' * 256)}", AuthnCode.TOKEN_SIGNATURE),
    (
        "payload of another token",
        f"{HEAD}.{segment(claims(NOW, name='admin'))}.{SIGNATURE}",
        AuthnCode.TOKEN_SIGNATURE,
    ),
    (
        "ES256 signature too short",
        f"{segment({'alg': 'ES256', 'kid': 'e1'})}.{PAYLOAD}.{segment(b'x' * 63)}",
        AuthnCode.TOKEN_SIGNATURE,
    ),
    (
        "ES256 signature of zeros",
        f"{segment({'alg': 'ES256', 'kid': 'e1'})}.{PAYLOAD}.{segment(bytes(64))}",
        AuthnCode.TOKEN_SIGNATURE,
    ),
    ("two segments", f"{HEAD}.{PAYLOAD}", AuthnCode.TOKEN_MALFORMED),
    ("four segments", f"{GOOD}.x", AuthnCode.TOKEN_MALFORMED),
    ("five segments", "a.b.c.d.e", AuthnCode.TOKEN_MALFORMED),
    ("padding", f"{GOOD}=", AuthnCode.TOKEN_MALFORMED),
    ("space", f"{HEAD} .{PAYLOAD}.{SIGNATURE}", AuthnCode.TOKEN_MALFORMED),
    ("line feed at the end", GOOD + "\n", AuthnCode.TOKEN_MALFORMED),
    ("not ASCII", GOOD + "é", AuthnCode.TOKEN_MALFORMED),
    ("impossible length", f"{HEAD}.{PAYLOAD}.{'A' * 5}", AuthnCode.TOKEN_MALFORMED),
    ("F-52 100 KB", "a" * 100_000, AuthnCode.TOKEN_TOO_LARGE),
    ("F-52 one over", "a" * (MAX_TOKEN_BYTES + 1), AuthnCode.TOKEN_TOO_LARGE),
]


@pytest.mark.parametrize(("text", "code"), [pytest.param(t, c, id=f"F-50 {n}") for n, t, c in HOSTILE])
def test_hostile_tokens(text: str, code: AuthnCode) -> None:
    error = refused(text)
    assert error.code is code
    assert error.public == "the request is not authenticated; send one valid credential of this workload"
    assert GOOD not in error.private
    assert SIGNATURE not in error.private


def test_payload_must_be_an_object() -> None:
    text = jwt.api_jws.encode(b"[1]", private_key("k1"), "RS256", headers={"kid": "k1"})
    assert refused(text).code is AuthnCode.TOKEN_MALFORMED
    text = jwt.api_jws.encode(b"\xff", private_key("k1"), "RS256", headers={"kid": "k1"})
    assert refused(text).code is AuthnCode.TOKEN_MALFORMED


@pytest.mark.parametrize(
    ("values", "code"),
    [
        pytest.param(["Basic dXNlcjpwYXNz"], AuthnCode.HEADER_SCHEME, id="F-40 Basic"),
        pytest.param([GOOD], AuthnCode.HEADER_SCHEME, id="F-40 no scheme"),
        pytest.param(["Bearer "], AuthnCode.TOKEN_EMPTY, id="F-40 empty Bearer"),
        pytest.param(["Bearer"], AuthnCode.TOKEN_EMPTY, id="F-40 Bearer alone"),
        pytest.param([f"Bearer {GOOD}"] * 2, AuthnCode.HEADER_REPEATED, id="F-40 two headers"),
        pytest.param([""], AuthnCode.HEADER_SCHEME, id="F-40 empty header"),
    ],
)
def test_headers_that_are_no_bearer_token(values: list[str], code: AuthnCode) -> None:
    with pytest.raises(AuthnError) as error:
        bearer(values)
    assert error.value.code is code


def test_scheme_is_case_insensitive() -> None:
    assert bearer(["bEARER abc"]) == "abc"


def test_no_header_is_no_credential() -> None:
    assert TokenAuthenticator(POLICY, KEYS).authenticate(Presented(), NOW) is None


def test_a_new_key_of_the_issuer_works_at_once() -> None:
    keys = Keys(parse_jwks(jwks({"e1": "ES256"})), parse_jwks(jwks(ALGORITHMS)))
    assert ours(GOOD, keys).pod_name == "web-1"
    assert keys.refreshed == 1


def test_without_keys_nobody_is_refused_for_good() -> None:
    error = refused(GOOD, Keys(None))
    assert error.code is AuthnCode.NO_KEYS
    assert error.category is Category.UNAVAILABLE
    assert "try again later" in error.public


def test_only_headers_of_good_tokens_are_remembered() -> None:
    verifier = TokenVerifier(KEYS)
    for n in range(200):
        with pytest.raises(AuthnError):
            verifier.verify(by_hand({"alg": "RS256", "kid": "k1", "n": n}), NOW)
    assert len(verifier._headers) == 0
    for n in range(70):
        verifier.verify(sign(claims(NOW), "e1", "ES256", n=n), NOW)
    assert 0 < len(verifier._headers) <= 64


# --- agreement with PyJWT ---------------------------------------------------------------------------

# Where this verifier refuses and PyJWT may not: text outside the alphabet, which a lenient decoder
# skips; headers that bring or point to a key; JSON that only Python's parser takes (NaN).
STRICTER = {AuthnCode.TOKEN_MALFORMED, AuthnCode.TOKEN_HEADER, AuthnCode.TOKEN_TOO_LARGE}


def check_agreement(text: str) -> None:
    try:
        expected: Caller | None = theirs(text)
    except (jwt.PyJWTError, AuthnError, KeyError, ValueError, UnicodeEncodeError):
        expected = None
    try:
        found: Caller | None = ours(text)
    except AuthnError as e:
        found = None
        if e.code in STRICTER:
            return
    assert found == expected


@pytest.mark.parametrize("text", [pytest.param(t, id=n) for n, t, _ in HOSTILE] + [GOOD])
def test_agrees_with_pyjwt_on_the_corpus(text: str) -> None:
    check_agreement(text)


TOKENS = [token(NOW, key_id=k, algorithm=a) for k, a in ALGORITHMS.items()]
LETTERS = st.sampled_from("AaZz09-_.=+/ \n\x00é")


@given(st.sampled_from(TOKENS), st.data())
def test_agrees_with_pyjwt_on_mutated_text(text: str, data: st.DataObject) -> None:
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text)))
        cut = data.draw(st.integers(0, 3))
        text = text[:at] + data.draw(st.text(LETTERS, max_size=3)) + text[at + cut :]
    check_agreement(text)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
    | st.sampled_from([ISSUER, AUDIENCE, "system:serviceaccount:demo:web"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from(["iss", "aud", "exp", "iat", "nbf", "sub", "jti", "kubernetes.io"])


@given(st.sampled_from(sorted(ALGORITHMS.items())), NAMES, JSON)
def test_agrees_with_pyjwt_on_any_signed_claims(key: tuple[str, str], name: str, value: Any) -> None:
    payload = claims(NOW)
    payload[name] = value
    if name == "iss" and not isinstance(value, str):
        # PyJWT does not write such a token; its reading of one is what counts.
        text = jwt.api_jws.encode(
            json.dumps(payload).encode(), private_key(*key), key[1], headers={"kid": key[0]}
        )
    else:
        text = sign(payload, *key)
    check_agreement(text)


@given(st.dictionaries(st.sampled_from(["alg", "kid", "typ", "cty", "crit", "jku", "x"]), JSON, max_size=3))
def test_agrees_with_pyjwt_on_any_header(header: dict[str, Any]) -> None:
    check_agreement(by_hand({"alg": "RS256", "kid": "k1"} | header))
