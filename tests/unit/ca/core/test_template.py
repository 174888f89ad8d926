"""The DER template makes what `CertificateBuilder` makes, byte for byte up to the order of extensions."""

from __future__ import annotations

import datetime as dt

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from ca.core.csr import ProvenKey
from ca.core.lint import IssuerFacts, LeafSpec, check_leaf_certificate
from ca.core.signer import KeySigner
from ca.core.template import (
    EXTENDED_KEY_USAGE,
    LEAF_CONSTRAINTS,
    LeafTemplate,
    assemble,
    integer,
    key_usage,
    tlv,
)
from mesh.spiffe import SpiffeId, TrustDomain
from mesh.x509.certs import KeyKind, key_identifier, key_info, public_key_bits, read_certificate, spki_der
from tests.fakes.ca_factory import NOW, make_hierarchy, new_key

SUBJECT_KEYS = {
    KeyKind.P256: new_key(),
    KeyKind.P384: ec.generate_private_key(ec.SECP384R1()),
    KeyKind.P521: ec.generate_private_key(ec.SECP521R1()),
    KeyKind.RSA: rsa.generate_private_key(65537, 2048),
    KeyKind.ED25519: ed25519.Ed25519PrivateKey.generate(),
}
ISSUERS = {
    "P-256": make_hierarchy(),
    "P-384": make_hierarchy(issuing_key=ec.generate_private_key(ec.SECP384R1())),
    "RSA": make_hierarchy(issuing_key=rsa.generate_private_key(65537, 2048)),
}
SECONDS = st.integers(0, 4_102_444_800).map(lambda s: dt.datetime.fromtimestamp(s, dt.UTC))  # to 2100
NAMES = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?", fullmatch=True)
IDENTITIES = st.builds(
    SpiffeId.for_service_account,
    st.sampled_from([TrustDomain("cluster.local"), TrustDomain("t" * 200)]),
    NAMES,
    NAMES,
)


def both(hierarchy, key, identity, serial, not_before, not_after):
    """The same leaf by the template and by the library's builder."""
    issuing = read_certificate(hierarchy.issuing_der)
    signer = KeySigner(hierarchy.issuing_key)
    ski = key_identifier(public_key_bits(key.public_key()))
    template = LeafTemplate(
        issuer_name=issuing.subject, issuer_ski=issuing.ski, signature_algorithm=signer.algorithm
    )
    kind = key_info(key.public_key()).kind
    tbs = template.tbs(
        template.shape(identity, kind),
        serial_number=serial,
        not_before=not_before,
        not_after=not_after,
        spki=spki_der(key.public_key()),
        ski=ski,
    )
    built = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(issuing.certificate.subject)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(not_before)
        .not_valid_after(not_after)
        .add_extension(key_usage(kind), critical=True)
        .add_extension(EXTENDED_KEY_USAGE, critical=False)
        .add_extension(LEAF_CONSTRAINTS, critical=True)
        .add_extension(x509.AuthorityKeyIdentifier(issuing.ski, None, None), critical=False)
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(identity))]), critical=True
        )
        .add_extension(x509.SubjectKeyIdentifier(ski), critical=False)
        .sign(
            hierarchy.issuing_key,
            hashes.SHA384() if signer.algorithm.endswith(b"\x03\x03") else hashes.SHA256(),
        )
    )
    return assemble(tbs, signer.algorithm, signer.sign(tbs)), tbs, built


@pytest.mark.parametrize("kind", SUBJECT_KEYS, ids=str)
@pytest.mark.parametrize("issuer", ISSUERS)
def test_equal_to_the_builder_field_for_field(kind, issuer):
    h = ISSUERS[issuer]
    key = SUBJECT_KEYS[kind]
    identity = h.spiffe_id("/ns/demo/sa/web")
    der, tbs, built = both(h, key, identity, 12345678901234567890, NOW, NOW + dt.timedelta(days=1))
    made = x509.load_der_x509_certificate(der)
    made.verify_directly_issued_by(x509.load_der_x509_certificate(h.issuing_der))
    assert [(e.oid, e.critical, e.value) for e in made.extensions] == [
        (e.oid, e.critical, e.value) for e in built.extensions
    ]
    for field in [
        "version",
        "serial_number",
        "issuer",
        "subject",
        "not_valid_before_utc",
        "not_valid_after_utc",
        "signature_algorithm_oid",
        "signature_algorithm_parameters",
    ]:
        if "parameters" in field:
            assert type(getattr(made, field)) is type(getattr(built, field))
        else:
            assert getattr(made, field) == getattr(built, field), field
    assert made.public_key() == built.public_key()
    assert tbs == built.tbs_certificate_bytes


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(list(SUBJECT_KEYS)),
    st.sampled_from(list(ISSUERS)),
    IDENTITIES,
    st.integers(1, (1 << 159) - 1),
    st.tuples(SECONDS, SECONDS).filter(lambda t: t[0] < t[1]),
)
def test_law_equal_to_the_builder_for_all_identities_times_and_serials(kind, issuer, identity, serial, times):
    h = ISSUERS[issuer]
    der, tbs, built = both(h, SUBJECT_KEYS[kind], identity, serial, *times)
    assert tbs == built.tbs_certificate_bytes
    issuing = read_certificate(h.issuing_der)
    public = SUBJECT_KEYS[kind].public_key()
    spec = LeafSpec(
        identity, ProvenKey(spki_der(public), kind, key_identifier(public_key_bits(public))), serial, *times
    )
    facts = IssuerFacts(
        name=issuing.subject,
        ski=issuing.ski,
        algorithm=KeySigner(h.issuing_key).algorithm,
        not_after=times[1],
    )
    assert check_leaf_certificate(der, spec, facts).spiffe_id() == identity


@settings(deadline=None)
@given(st.integers(0, 1 << 160), st.binary(max_size=70_000))
def test_law_der_lengths_and_integers_are_minimal(number, body):
    encoded = integer(number)
    assert int.from_bytes(encoded[2:], "big") == number
    assert len(encoded) == 3 or encoded[2] != 0 or encoded[3] >= 0x80
    element = tlv(0x04, body)
    size = 1 if len(body) < 0x80 else 1 + (len(body).bit_length() + 7) // 8
    assert len(element) == 1 + size + len(body)
