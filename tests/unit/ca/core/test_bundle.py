"""Bundle documents: rows B-01 to B-05, B-09, B-10."""

from __future__ import annotations

import base64
import json

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from ca.core.bundle import Bundle, BundleCode, BundleError, decode_bundle, decode_bundle_map, encode_bundle
from mesh.spiffe import TrustDomain
from tests.fakes.ca_factory import TRUST_DOMAIN, make_hierarchy

H = make_hierarchy()
ROOT_B64 = base64.b64encode(H.root_der).decode()
JWT_KEY = {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA", "kid": "k1", "use": "jwt-svid"}


def bundle(*roots, **kw):
    return Bundle(trust_domain=TRUST_DOMAIN, roots_der=roots or H.roots, **kw)


def doc(*keys, **fields):
    return json.dumps({"keys": list(keys), **fields}).encode()


def entry(**change):
    good = {"kty": "EC", "use": "x509-svid", "x5c": [ROOT_B64], "crv": "P-256", "x": "", "y": ""}
    return {k: v for k, v in {**good, **change}.items() if v is not None}


def test_b01_b02_the_document():
    document = json.loads(encode_bundle(bundle(sequence=7, refresh_hint=60)))
    assert (document["spiffe_sequence"], document["spiffe_refresh_hint"]) == (7, 60)
    (key,) = document["keys"]
    assert key["use"] == "x509-svid"
    assert "kid" not in key
    assert key["x5c"] == [ROOT_B64]
    numbers = H.root_key.public_key().public_numbers()
    assert base64.urlsafe_b64decode(key["x"] + "=") == numbers.x.to_bytes(32, "big")
    assert (key["kty"], key["crv"]) == ("EC", "P-256")


@pytest.mark.parametrize(
    ("key", "kty"),
    [(ec.generate_private_key(ec.SECP384R1()), "EC"), (rsa.generate_private_key(65537, 2048), "RSA")],
    ids=["P-384", "RSA"],
)
def test_round_trip(key, kty):
    h = make_hierarchy(root_key=key)
    held = bundle(h.root_der, H.root_der, sequence=1, jwt_keys={"k1": JWT_KEY})
    data = encode_bundle(held)
    assert json.loads(data)["keys"][0]["kty"] == kty
    assert decode_bundle(data, TRUST_DOMAIN) == held
    assert encode_bundle(decode_bundle(data, TRUST_DOMAIN)) == data, "the encoding is stable"


def test_optional_numbers_may_be_absent():
    data = encode_bundle(bundle(refresh_hint=None))
    assert set(json.loads(data)) == {"keys"}
    read = decode_bundle(data, TRUST_DOMAIN)
    assert (read.sequence, read.refresh_hint) == (None, None)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        pytest.param(H.leaf().der, "not a CA certificate", id="leaf"),
        pytest.param(b"junk", "not a CA certificate", id="junk"),
    ],
)
def test_b02_only_authorities_are_published(bad, words):
    with pytest.raises(BundleError, match=words) as e:
        encode_bundle(bundle(bad))
    assert e.value.code is BundleCode.CERTIFICATE


def test_a_root_with_a_key_that_has_no_jwk_is_refused():
    from tests.fakes.ca_factory import new_key, usage

    key = ec.generate_private_key(ec.SECP256K1())
    leaf = H.leaf(key=key, ca=True, key_usage=usage("key_cert_sign"), uris=())
    assert new_key()
    with pytest.raises(BundleError, match="secp256k1; use an EC or RSA root"):
        encode_bundle(bundle(leaf.der))


@pytest.mark.parametrize(
    ("keys", "roots", "ignored"),
    [
        pytest.param([entry(x5c=[ROOT_B64, "further"])], 1, 0, id="B-02-first-x5c-counts"),
        pytest.param([entry(x5c=None)], 0, 1, id="B-02-no-x5c"),
        pytest.param([entry(x5c=[])], 0, 1, id="B-02-empty-x5c"),
        pytest.param([entry(use="sig")], 0, 1, id="B-03-unknown-use"),
        pytest.param([entry(use="X509-SVID")], 0, 1, id="B-03-use-case"),
        pytest.param([entry(use=None)], 0, 1, id="B-03-no-use"),
        pytest.param([entry(kty="OKP")], 0, 1, id="B-03-unknown-kty"),
        pytest.param([{**JWT_KEY, "kid": ""}], 0, 1, id="B-02-jwt-without-kid"),
        pytest.param([], 0, 0, id="B-04-empty-keys-revoke-all"),
        pytest.param([entry(), entry()], 1, 0, id="same-root-twice"),
    ],
)
def test_b02_to_b04_what_a_reader_takes(keys, roots, ignored):
    read = decode_bundle(doc(*keys), TRUST_DOMAIN)
    assert (len(read.roots_der), read.ignored) == (roots, ignored)


@pytest.mark.parametrize(
    ("data", "code", "words"),
    [
        pytest.param(b"{", BundleCode.SYNTAX, "not JSON", id="syntax"),
        pytest.param(b"[" * 100_000, BundleCode.SYNTAX, "not JSON", id="deep"),
        pytest.param(b"\xff{}", BundleCode.SYNTAX, "not JSON", id="not-utf-8"),
        pytest.param(b"[]", BundleCode.SYNTAX, "JSON object", id="list"),
        pytest.param(b"{}", BundleCode.FIELD, "keys must be a list", id="B-01-no-keys"),
        pytest.param(b'{"keys": {}}', BundleCode.FIELD, "keys must be a list", id="B-01-keys-object"),
        pytest.param(
            b'{"keys": [], "keys": []}', BundleCode.DUPLICATE, "'keys' occurs twice", id="duplicate"
        ),
        pytest.param(doc("x"), BundleCode.FIELD, "keys[0] must be an object", id="key-text"),
        pytest.param(doc(entry(x5c="x")), BundleCode.FIELD, "keys[0].x5c must be a list", id="x5c-text"),
        pytest.param(doc(entry(x5c=[1])), BundleCode.FIELD, "keys[0].x5c must be", id="x5c-number"),
        pytest.param(doc(entry(x5c=["?"])), BundleCode.FIELD, "x5c[0] is not base64", id="x5c-not-base64"),
        pytest.param(
            doc(entry(x5c=["AAAA"])), BundleCode.CERTIFICATE, "not a CA", id="x5c-not-a-certificate"
        ),
        pytest.param(
            doc(spiffe_sequence=-1), BundleCode.FIELD, "spiffe_sequence must be", id="B-01-negative"
        ),
        pytest.param(doc(spiffe_sequence=True), BundleCode.FIELD, "must be an integer", id="B-01-bool"),
        pytest.param(
            doc(spiffe_refresh_hint="5"), BundleCode.FIELD, "refresh_hint must be", id="B-01-hint-text"
        ),
        pytest.param(doc(JWT_KEY, JWT_KEY), BundleCode.DUPLICATE, "kid is not unique", id="B-02-kid-twice"),
        pytest.param(doc(*[{}] * 257), BundleCode.TOO_LARGE, "more than 256", id="too-many-keys"),
        pytest.param(b" " * ((1 << 20) + 1), BundleCode.TOO_LARGE, "allowed are", id="too-large"),
    ],
)
def test_refused(data, code, words):
    with pytest.raises(BundleError) as e:
        decode_bundle(data, TRUST_DOMAIN)
    assert e.value.code is code
    assert words in e.value.public


def test_b09_an_older_sequence_is_refused():
    data = encode_bundle(bundle(sequence=4))
    assert decode_bundle(data, TRUST_DOMAIN, held_sequence=4).sequence == 4
    with pytest.raises(BundleError, match="is older than 5") as e:
        decode_bundle(data, TRUST_DOMAIN, held_sequence=5)
    assert e.value.code is BundleCode.STALE


def test_b05_b10_a_map_keeps_the_domains_apart():
    other = make_hierarchy(TrustDomain("other"))
    text = json.dumps(
        {
            "trust_domains": {
                "cluster.local": json.loads(encode_bundle(bundle())),
                "other": json.loads(
                    encode_bundle(Bundle(trust_domain=other.trust_domain, roots_der=other.roots))
                ),
            }
        }
    )
    read = decode_bundle_map(text.encode())
    assert read[TRUST_DOMAIN].roots_der == H.roots
    assert read[other.trust_domain].roots_der == other.roots


@pytest.mark.parametrize(
    ("data", "code", "words"),
    [
        pytest.param(
            b'{"trust_domains": {"a": {"keys": []}, "a": {"keys": []}}}',
            BundleCode.DUPLICATE,
            "'a' occurs",
            id="B-10",
        ),
        pytest.param(b'{"keys": []}', BundleCode.FIELD, "trust_domains must be", id="not-a-map"),
        pytest.param(
            b'{"trust_domains": {"A": {"keys": []}}}', BundleCode.FIELD, "trust domain 'A'", id="T-02"
        ),
        pytest.param(
            b'{"trust_domains": {"a": {}}}', BundleCode.FIELD, "trust_domains.a.keys", id="B-01-no-keys"
        ),
        pytest.param(
            json.dumps({"trust_domains": {f"d{i}": {"keys": []} for i in range(257)}}).encode(),
            BundleCode.TOO_LARGE,
            "256",
            id="too-many",
        ),
    ],
)
def test_a_bad_map_is_refused(data, code, words):
    with pytest.raises(BundleError) as e:
        decode_bundle_map(data)
    assert e.value.code is code
    assert words in e.value.public


@settings(deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda c: (
            st.lists(c) | st.dictionaries(st.sampled_from(["keys", "use", "kty", "x5c", "kid", "a"]), c)
        ),
        max_leaves=20,
    )
)
def test_law_any_json_decodes_or_raises_bundle_error(value):
    try:
        decode_bundle(json.dumps({"keys": [value]}).encode(), TRUST_DOMAIN)
        decode_bundle(json.dumps(value).encode(), TRUST_DOMAIN)
    except BundleError:
        return
