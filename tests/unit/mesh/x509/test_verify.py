"""SVID validation: rows X-01 to X-16 as a validator, X-20 to X-34."""

from __future__ import annotations

import datetime as dt

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from ca.core.hierarchy import Parent, make_intermediate
from mesh.errors import Category
from mesh.spiffe import TrustDomain
from mesh.x509.certs import read_certificate
from mesh.x509.verify import (
    MAX_CHAIN,
    SvidCode,
    SvidError,
    check_authority,
    verify_svid,
    verify_svid_with_bundles,
)
from tests.fakes.ca_factory import DAY, NOW, TRUST_DOMAIN, make_hierarchy, new_key, usage

H = make_hierarchy()
FOREIGN = make_hierarchy()
EVIL = make_hierarchy(TrustDomain("cluster.local.evil"))
NAME = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "web")])


def verify(leaf, roots=H.roots, now=NOW, **kw):
    return verify_svid(leaf.chain, roots, now, trust_domain=kw.pop("trust_domain", TRUST_DOMAIN), **kw)


def refused(leaf, **kw):
    with pytest.raises(SvidError) as e:
        verify(leaf, **kw)
    assert e.value.category is Category.UNAUTHENTICATED
    return e.value


def test_a_good_svid_verifies():
    leaf = H.leaf()
    svid = verify(leaf, expected_id=H.spiffe_id("/ns/demo/sa/web"))
    assert str(svid.spiffe_id) == "spiffe://cluster.local/ns/demo/sa/web"
    assert svid.path_der == (leaf.der, H.issuing_der, H.root_der)
    assert svid.path_not_after == leaf.certificate.not_valid_after_utc
    assert svid.serial == f"{leaf.certificate.serial_number:x}"


@pytest.mark.parametrize(
    "leaf",
    [
        pytest.param(H.leaf(dns=("web.demo",)), id="X-03-dns-name-beside"),
        pytest.param(H.leaf(ca=None), id="X-06-no-basic-constraints"),
        pytest.param(H.leaf(subject=NAME, san_critical=False), id="X-05-san-not-critical-with-a-subject"),
        pytest.param(H.leaf(eku=None), id="X-11-no-eku"),
        pytest.param(H.leaf(key_usage=usage("digital_signature", "key_agreement")), id="X-10-key-agreement"),
        pytest.param(H.leaf("/any/path"), id="X-04-any-path"),
        pytest.param(H.leaf(uris=("SPIFFE://Cluster.Local/ns/demo/sa/web",)), id="T-01-any-case"),
    ],
)
def test_also_accepted(leaf):
    assert verify(leaf).spiffe_id.trust_domain == TRUST_DOMAIN


CASES = [
    pytest.param(H.two_uri_leaf(), SvidCode.URI_SAN, "2 URI SANs", id="X-02-two-uris"),
    pytest.param(H.leaf(uris=()), SvidCode.URI_SAN, "0 URI SANs", id="X-01-no-san"),
    pytest.param(H.leaf(uris=(), dns=("web",)), SvidCode.URI_SAN, "0 URI SANs", id="X-01-dns-only"),
    pytest.param(H.leaf(uris=("https://x/y",)), SvidCode.SPIFFE_ID, "must start with", id="X-33-scheme"),
    pytest.param(H.leaf(uris=("spiffe://td/a/../b",)), SvidCode.SPIFFE_ID, "segment", id="X-33-path"),
    pytest.param(
        H.leaf(uris=("spiffe://cluster.local",)), SvidCode.NO_PATH, "has no path", id="X-04-no-path"
    ),
    pytest.param(
        H.leaf(san_critical=False), SvidCode.SAN_NOT_CRITICAL, "not critical", id="X-05-not-critical"
    ),
    pytest.param(H.leaf(ca=True), SvidCode.CA_LEAF, "CA certificate", id="X-06-X-32-ca-true"),
    pytest.param(H.leaf(key_usage=None), SvidCode.KEY_USAGE, "no critical keyUsage", id="X-07-absent"),
    pytest.param(H.leaf(key_usage_critical=False), SvidCode.KEY_USAGE, "no critical", id="X-07-not-critical"),
    pytest.param(
        H.leaf(key_usage=usage("key_encipherment")), SvidCode.KEY_USAGE, "lacks digitalSignature", id="X-08"
    ),
    pytest.param(
        H.leaf(key_usage=usage("digital_signature", "key_cert_sign")),
        SvidCode.CA_LEAF,
        "keyCertSign",
        id="X-10-X-32-cert-sign",
    ),
    pytest.param(
        H.leaf(key_usage=usage("digital_signature", "crl_sign")),
        SvidCode.CA_LEAF,
        "cRLSign",
        id="X-10-crl-sign",
    ),
    pytest.param(
        H.leaf(eku=(ExtendedKeyUsageOID.SERVER_AUTH,)),
        SvidCode.EXTENDED_KEY_USAGE,
        "serverAuth and clientAuth",
        id="X-11-X-34-only-server",
    ),
    pytest.param(
        H.leaf(eku=(ExtendedKeyUsageOID.CLIENT_AUTH,)),
        SvidCode.EXTENDED_KEY_USAGE,
        "serverAuth and clientAuth",
        id="X-11-only-client",
    ),
    pytest.param(
        H.leaf(extra=[(x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), b"\x05\x00"), True)]),
        SvidCode.CRITICAL_EXTENSION,
        "1.2.3",
        id="X-30-unknown-critical-extension",
    ),
    pytest.param(H.expired_leaf(), SvidCode.EXPIRED, "expired at", id="X-34-expired"),
    pytest.param(
        H.leaf(not_before=NOW + DAY, not_after=NOW + 2 * DAY),
        SvidCode.NOT_YET_VALID,
        "starts at",
        id="X-34-not-yet-valid",
    ),
    pytest.param(H.self_signed_leaf(), SvidCode.UNTRUSTED, "no valid path", id="X-34-self-signed"),
    pytest.param(FOREIGN.leaf(), SvidCode.UNTRUSTED, "no valid path", id="X-34-foreign-anchor"),
    pytest.param(EVIL.leaf(), SvidCode.TRUST_DOMAIN, "trust domain without a bundle", id="X-31-other-domain"),
    pytest.param(
        EVIL.leaf(uris=("spiffe://cluster.local/ns/demo/sa/web",)),
        SvidCode.UNTRUSTED,
        "no valid path",
        id="X-31-our-id-signed-by-the-other-domain",
    ),
]


@pytest.mark.parametrize(("leaf", "code", "words"), CASES)
def test_refused(leaf, code, words):
    error = refused(leaf)
    assert error.code is code
    assert words in error.public


def test_x31_an_anchor_of_another_domain_with_the_same_name_and_key_identifier_does_not_count():
    """X-34: second-domain anchor with the same subject."""
    root = x509.load_der_x509_certificate(H.root_der)
    key = new_key()
    twin = x509.CertificateBuilder(
        issuer_name=root.subject,
        subject_name=root.subject,
        public_key=key.public_key(),
        serial_number=root.serial_number,
        not_valid_before=root.not_valid_before_utc.replace(tzinfo=None),
        not_valid_after=root.not_valid_after_utc.replace(tzinfo=None),
        extensions=list(root.extensions),
    ).sign(key, hashes.SHA256())
    assert refused(H.leaf(), roots=(twin.public_bytes(Encoding.DER),)).code is SvidCode.UNTRUSTED


def test_x31_each_domain_is_anchored_by_its_own_bundle():
    bundles = {TRUST_DOMAIN: H.roots, EVIL.trust_domain: EVIL.roots}
    assert (
        verify_svid_with_bundles(EVIL.leaf().chain, bundles, NOW).spiffe_id.trust_domain == EVIL.trust_domain
    )
    forged = EVIL.leaf(uris=("spiffe://cluster.local/ns/demo/sa/web",))
    with pytest.raises(SvidError, match="no valid path") as e:
        verify_svid_with_bundles(forged.chain, bundles, NOW)
    assert e.value.code is SvidCode.UNTRUSTED


def test_x24_a_signing_certificate_does_not_authenticate():
    with pytest.raises(SvidError, match="CA certificate") as e:
        verify_svid((H.issuing_der,), H.roots, NOW, trust_domain=TRUST_DOMAIN)
    assert e.value.code is SvidCode.CA_LEAF


def test_f58_another_identity_or_key_than_expected():
    leaf = H.leaf()
    error = refused(leaf, expected_id=H.spiffe_id("/ns/demo/sa/reviews"))
    assert (error.code, "expected was" in error.public) == (SvidCode.UNEXPECTED_ID, True)
    error = refused(leaf, public_key=read_certificate(H.leaf().der).spki)
    assert (error.code, "another public key" in error.public) == (SvidCode.PUBLIC_KEY, True)
    assert verify(leaf, public_key=read_certificate(leaf.der).spki)


def test_x12_the_chain_is_bounded_and_leaf_first():
    leaf = H.leaf()
    with pytest.raises(SvidError, match="has 0 certificates") as e:
        verify_svid((), H.roots, NOW, trust_domain=TRUST_DOMAIN)
    assert e.value.code is SvidCode.CHAIN_LENGTH
    with pytest.raises(SvidError, match="allowed are 1 to 8"):
        verify_svid((leaf.der,) * (MAX_CHAIN + 1), H.roots, NOW, trust_domain=TRUST_DOMAIN)
    with pytest.raises(SvidError, match="CA certificate"):
        verify_svid((H.issuing_der, leaf.der), H.roots, NOW, trust_domain=TRUST_DOMAIN)
    # the root in the chain is not needed and does no harm
    assert verify_svid((*leaf.chain, H.root_der), H.roots, NOW, trust_domain=TRUST_DOMAIN)


def test_the_intermediate_must_be_there_and_readable():
    leaf = H.leaf()
    with pytest.raises(SvidError, match="no valid path"):
        verify_svid((leaf.der,), H.roots, NOW, trust_domain=TRUST_DOMAIN)
    with pytest.raises(SvidError, match="intermediate: certificate cannot be parsed") as e:
        verify_svid((leaf.der, b"junk"), H.roots, NOW, trust_domain=TRUST_DOMAIN)
    assert e.value.code is SvidCode.MALFORMED


@pytest.mark.parametrize(("roots", "words"), [((), "has 0 roots"), (H.roots * 65, "has 65 roots")])
def test_an_empty_or_endless_bundle_anchors_nothing(roots, words):
    error = refused(H.leaf(), roots=roots)
    assert error.code is SvidCode.NO_ROOTS
    assert words in error.public


def test_x20_a_root_must_be_a_ca():
    error = refused(H.leaf(), roots=(H.leaf().der,))
    assert error.code is SvidCode.SIGNING_CERT


def _intermediate(**changes):
    """An intermediate that is signed by the root but breaks a rule."""
    return H.leaf(
        **{
            "signed_by": _root_parent(),
            "ca": True,
            "key_usage": usage("key_cert_sign"),
            "eku": None,
            "subject": NAME,
            **changes,
        }
    )


def _root_parent():
    return Parent(x509.load_der_x509_certificate(H.root_der), H.root_key)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        pytest.param({"ca": False}, "not a CA", id="X-20-ca-false"),
        pytest.param({"ca": None}, "not a CA", id="X-20-no-basic-constraints"),
        pytest.param({"key_usage": usage("digital_signature")}, "lacks keyCertSign", id="X-20-no-cert-sign"),
        pytest.param({"key_usage": None}, "lacks keyCertSign", id="X-20-no-key-usage"),
        pytest.param({}, "which has a path", id="X-23-path-in-a-signing-id"),
    ],
)
def test_signing_certificates_keep_their_rules(changes, words):
    bad = _intermediate(**changes)
    parent = Parent(bad.certificate, bad.key)
    leaf = H.leaf(signed_by=parent)
    with pytest.raises(SvidError) as e:
        verify_svid((leaf.der, bad.der), H.roots, NOW, trust_domain=TRUST_DOMAIN)
    assert e.value.code is SvidCode.SIGNING_CERT
    assert words in e.value.public


def test_x25_path_length_zero_signs_no_further_authority():
    key = new_key()
    parent = Parent(x509.load_der_x509_certificate(H.issuing_der), H.issuing_key)
    below = make_intermediate(TRUST_DOMAIN, key, parent, NOW, DAY)
    leaf = H.leaf(signed_by=Parent(x509.load_der_x509_certificate(below), key))
    with pytest.raises(SvidError, match="no valid path") as e:
        verify_svid((leaf.der, below, H.issuing_der), H.roots, NOW, trust_domain=TRUST_DOMAIN)
    assert e.value.code is SvidCode.UNTRUSTED


def test_x30_an_expired_intermediate_breaks_the_path():
    h = make_hierarchy(issuing_lifetime=dt.timedelta(hours=1))
    assert verify(h.leaf(), roots=h.roots)
    error = refused(h.leaf(), roots=h.roots, now=NOW + dt.timedelta(hours=2))
    assert error.code is SvidCode.UNTRUSTED


def test_root_without_key_identifiers_is_accepted():
    """What openssl makes without extensions for them: no AKI, no SKI."""
    key = new_key()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "bare")])
    root = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(NOW - DAY)
        .not_valid_after(NOW + 10 * DAY)
        .add_extension(x509.BasicConstraints(True, None), True)
        .add_extension(usage("key_cert_sign"), True)
        .sign(key, hashes.SHA256())
    )
    der = root.public_bytes(Encoding.DER)
    check_authority(read_certificate(der))
    leaf = H.leaf(signed_by=Parent(root, key))
    assert verify_svid((leaf.der,), (der,), NOW, trust_domain=TRUST_DOMAIN).path_der == (leaf.der, der)


LEAF = H.leaf()


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(LEAF.der) - 1), st.integers(0, 255))
def test_law_no_changed_byte_verifies(at, value):
    der = bytearray(LEAF.der)
    if der[at] == value:
        return
    der[at] = value
    with pytest.raises(SvidError):
        verify_svid((bytes(der), *LEAF.intermediates), H.roots, NOW, trust_domain=TRUST_DOMAIN)
