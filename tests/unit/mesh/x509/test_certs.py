"""Certificate fields as values."""

from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.x509.certs import (
    CLIENT_AUTH,
    MAX_CERTIFICATE_BYTES,
    SERVER_AUTH,
    CertCode,
    CertError,
    KeyKind,
    key_identifier,
    key_info,
    public_key_bits,
    read_certificate,
    spki_der,
)
from tests.fakes.ca_factory import NOW, TRUST_DOMAIN, make_hierarchy

H = make_hierarchy()
LEAF = H.leaf()


@pytest.mark.parametrize(
    ("key", "kind", "name"),
    [
        pytest.param(ec.generate_private_key(ec.SECP256R1()), KeyKind.P256, "P-256", id="P-256"),
        pytest.param(ec.generate_private_key(ec.SECP384R1()), KeyKind.P384, "P-384", id="P-384"),
        pytest.param(ec.generate_private_key(ec.SECP521R1()), KeyKind.P521, "P-521", id="P-521"),
        pytest.param(
            ec.generate_private_key(ec.SECP256K1()), KeyKind.OTHER, "secp256k1", id="secp256k1-is-not-P-256"
        ),
        pytest.param(rsa.generate_private_key(65537, 2048), KeyKind.RSA, "RSA-2048", id="RSA"),
        pytest.param(ed25519.Ed25519PrivateKey.generate(), KeyKind.ED25519, "Ed25519", id="Ed25519"),
        pytest.param(ed448.Ed448PrivateKey.generate(), KeyKind.OTHER, "Ed448", id="Ed448"),
        pytest.param(dsa.generate_private_key(1024), KeyKind.OTHER, "DSA", id="DSA"),
    ],
)
def test_key_kinds_go_by_name(key, kind, name):
    info = key_info(key.public_key())
    assert (info.kind, info.name) == (kind, name)


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP384R1()),
        rsa.generate_private_key(65537, 2048),
        ed25519.Ed25519PrivateKey.generate(),
    ],
)
def test_key_bits_are_those_of_the_spki(key):
    assert spki_der(key.public_key()).endswith(public_key_bits(key.public_key()))
    assert len(key_identifier(public_key_bits(key.public_key()))) == 20


def test_key_bits_of_a_useless_key_are_refused():
    with pytest.raises(CertError, match="Ed448 has no use here") as e:
        public_key_bits(ed448.Ed448PrivateKey.generate().public_key())
    assert e.value.code is CertCode.KEY_TYPE


def test_leaf_fields():
    c = read_certificate(LEAF.der)
    assert c.uris == ("spiffe://cluster.local/ns/demo/sa/web",)
    assert c.spiffe_id() == H.spiffe_id("/ns/demo/sa/web")
    assert (c.other_sans, c.san_critical, c.subject_empty, c.self_issued) == (0, True, True, False)
    assert (c.ca, c.ca_critical, c.path_length) == (False, True, None)
    assert c.eku == {SERVER_AUTH, CLIENT_AUTH}
    assert c.ski == key_identifier(public_key_bits(LEAF.key.public_key()))
    assert c.aki == read_certificate(H.issuing_der).ski
    assert c.serial == f"{LEAF.certificate.serial_number:x}"
    assert c.not_after > NOW
    assert c.der == LEAF.der
    assert c.unknown_critical == ()


def test_the_same_bytes_are_parsed_once():
    der = make_hierarchy().roots[0]
    assert read_certificate(der) is read_certificate(bytes(bytearray(der)))


def test_root_fields():
    c = read_certificate(H.root_der)
    assert (c.ca, c.path_length, c.self_issued, c.eku) == (True, None, True, None)
    assert c.spiffe_id() == TRUST_DOMAIN.id


def test_bare_certificate_has_no_extension_fields():
    c = read_certificate(H.leaf(uris=(), ca=None, key_usage=None, eku=None).der)
    assert (c.uris, c.ca, c.key_usage, c.eku, c.san_critical) == ((), None, None, None, False)
    assert c.spiffe_id() is None


@pytest.mark.parametrize("uris", [("https://x",), ("spiffe://a/b", "spiffe://a/c")])
def test_no_spiffe_id_when_there_is_not_exactly_one(uris):
    assert read_certificate(H.leaf(uris=uris).der).spiffe_id() is None


def test_unknown_critical_extensions_are_listed():
    odd = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
    assert read_certificate(H.leaf(extra=[(odd, True)]).der).unknown_critical == ("1.2.3.4",)
    assert read_certificate(H.leaf(extra=[(odd, False)]).der).unknown_critical == ()


@pytest.mark.parametrize(
    ("der", "code", "words"),
    [
        pytest.param(b"", CertCode.MALFORMED, "cannot be parsed", id="empty"),
        pytest.param(LEAF.der[:-5], CertCode.MALFORMED, "cannot be parsed", id="truncated"),
        pytest.param(LEAF.der + b"x", CertCode.MALFORMED, "cannot be parsed", id="trailing-byte"),
        pytest.param(
            bytes(MAX_CERTIFICATE_BYTES + 1), CertCode.TOO_LARGE, "allowed are 65536", id="too-large"
        ),
        pytest.param(
            LEAF.der.replace(b"spiffe", b"spiff\xe9"), CertCode.MALFORMED, "cannot be", id="non-ascii-uri"
        ),
        pytest.param(
            LEAF.der.replace(bytes.fromhex("2a8648ce3d030107"), bytes.fromhex("2a8648ce3d030177")),
            CertCode.KEY_TYPE,
            "unknown type",
            id="unknown-curve",
        ),
    ],
)
def test_unreadable(der, code, words):
    with pytest.raises(CertError) as e:
        read_certificate(der)
    assert e.value.code is code
    assert words in e.value.public


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(LEAF.der) - 1), st.integers(0, 255))
def test_law_a_changed_byte_reads_or_raises_cert_error(at, value):
    der = bytearray(LEAF.der)
    der[at] = value
    try:
        read_certificate(bytes(der))
    except CertError:
        return
