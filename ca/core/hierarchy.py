"""The authority's own certificates: roots, issuing intermediates, and a root signed by another.

Source: X509-SVID 4 and 5 (rows X-20 to X-25), RFC 5280 4.2.1. Both carry the trust domain's SPIFFE ID,
which has no path; the intermediate has path length 0, so it signs leaves only; the root's is absent, so
that the hierarchy can grow.

The cross certificate has the name, the key and the key identifier of the next root, and the current root as
its issuer. A peer that trusts the current root only finds its way through it; one that trusts the next root
needs it not, and its verifier may ignore it.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from ca.core.profile import MAX_BACKDATE
from ca.core.signer import SigningKey
from mesh.spiffe import TrustDomain
from mesh.x509.certs import key_identifier, public_key_bits

CA_BACKDATE = MAX_BACKDATE  # no leaf starts before its issuer
_MAX_NAME = 64  # upper bound of X.520
_CA_USAGE = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)


@dataclass(frozen=True, slots=True)
class Parent:
    """Who signs: a certificate and its key."""

    certificate: x509.Certificate
    key: SigningKey


def make_root(trust_domain: TrustDomain, key: SigningKey, now: dt.datetime, lifetime: dt.timedelta) -> bytes:
    """A self-signed root as DER.

    Args:
        now: the certificate starts `CA_BACKDATE` before it and ends `lifetime` after it.
    """
    name = _name(trust_domain, "root", key)
    ski = key_identifier(public_key_bits(key.public_key()))
    builder = _builder(trust_domain, key, now, now + lifetime).subject_name(name).issuer_name(name)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    builder = builder.add_extension(x509.AuthorityKeyIdentifier(ski, None, None), critical=False)
    return builder.sign(key, _digest(key)).public_bytes(Encoding.DER)


def make_intermediate(
    trust_domain: TrustDomain, key: SigningKey, parent: Parent, now: dt.datetime, lifetime: dt.timedelta
) -> bytes:
    """An issuing intermediate as DER. It never outlives its parent."""
    not_after = min(now + lifetime, parent.certificate.not_valid_after_utc)
    parent_ski = parent.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    builder = (
        _builder(trust_domain, key, now, not_after)
        .subject_name(_name(trust_domain, "issuing", key))
        .issuer_name(parent.certificate.subject)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier(parent_ski, None, None), critical=False)
    )
    return builder.sign(parent.key, _digest(parent.key)).public_bytes(Encoding.DER)


def make_cross(root: x509.Certificate, parent: Parent, now: dt.datetime) -> bytes:
    """Another root's name and key, signed by `parent`, as DER. It ends with the first of the two.

    Args:
        root: self-signed, made by `make_root`; its key is not needed.
        now: the certificate starts `CA_BACKDATE` before it, and not before either of the two.
    """
    own = parent.certificate
    starts = (now.replace(microsecond=0) - CA_BACKDATE, root.not_valid_before_utc, own.not_valid_before_utc)
    parent_ski = own.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    builder = (
        x509.CertificateBuilder()
        .subject_name(root.subject)
        .issuer_name(own.subject)
        .public_key(root.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(max(starts))
        .not_valid_after(min(root.not_valid_after_utc, own.not_valid_after_utc))
        .add_extension(x509.AuthorityKeyIdentifier(parent_ski, None, None), critical=False)
    )
    for extension in root.extensions:
        if not isinstance(extension.value, x509.AuthorityKeyIdentifier):
            builder = builder.add_extension(extension.value, critical=extension.critical)
    return builder.sign(parent.key, _digest(parent.key)).public_bytes(Encoding.DER)


def _name(trust_domain: TrustDomain, role: str, key: SigningKey) -> x509.Name:
    """A name that differs between keys: path builders tell two authorities apart by it."""
    tag = key_identifier(public_key_bits(key.public_key())).hex()[:8]
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, trust_domain.name[:_MAX_NAME]),
            x509.NameAttribute(NameOID.COMMON_NAME, f"Gatehouse {role} {tag}"),
        ]
    )


def _builder(
    trust_domain: TrustDomain, key: SigningKey, now: dt.datetime, not_after: dt.datetime
) -> x509.CertificateBuilder:
    ski = key_identifier(public_key_bits(key.public_key()))
    san = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(trust_domain.id))])
    return (
        x509.CertificateBuilder()
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now.replace(microsecond=0) - CA_BACKDATE)
        .not_valid_after(not_after.replace(microsecond=0))
        .add_extension(_CA_USAGE, critical=True)
        .add_extension(x509.SubjectKeyIdentifier(ski), critical=False)
        .add_extension(san, critical=False)
    )


def _digest(key: SigningKey) -> hashes.SHA256 | hashes.SHA384:
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name == "secp384r1":
        return hashes.SHA384()
    return hashes.SHA256()
