"""Certificates that no honest authority would issue.

The demo plays an outsider with an authority of its own, and an insider who got hold of the demo
authority's own issuing key: what the latter signs chains to the right root, so only the *other* rules
(validity, trust domain) can refuse it.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from examples.demo.svid import Identity

_MINUTE = dt.timedelta(minutes=1)
_PEM = serialization.Encoding.PEM


@dataclass(frozen=True, slots=True)
class Signer:
    """An issuing certificate with its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def issue(
        self, spiffe_id: str, *, start: dt.timedelta = -_MINUTE, end: dt.timedelta = 10 * _MINUTE
    ) -> Identity:
        """A leaf for any name and any time, relative to now."""
        now = dt.datetime.now(dt.UTC)
        key = ec.generate_private_key(ec.SECP256R1())
        usage = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        leaf = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + start)
            .not_valid_after(now + end)
            .add_extension(
                x509.SubjectAlternativeName([x509.UniformResourceIdentifier(spiffe_id)]), critical=True
            )
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(leaf=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usage), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(
                    self.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
                ),
                critical=False,
            )
            .sign(self.key, hashes.SHA256())
        )
        public = key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return Identity(
            spiffe_id=spiffe_id,
            chain_pem=leaf.public_bytes(_PEM) + self.certificate.public_bytes(_PEM),
            key_pem=key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
            roots_pem=b"",
            serial=f"{leaf.serial_number:x}",
            public_key=hashlib.sha256(public).hexdigest()[:12],
            not_after=leaf.not_valid_after_utc,
        )


def insider(state: Path) -> Signer:
    """The demo authority's own issuing key, read from its state directory."""
    directory = state / "issuing"
    certificate = x509.load_pem_x509_certificates((directory / "ca-cert.pem").read_bytes())[0]
    key = serialization.load_pem_private_key((directory / "ca-key.pem").read_bytes(), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TypeError(f"{directory}: expected an EC key")
    return Signer(certificate, key)


def outsider() -> Signer:
    """An authority of somebody else."""
    now = dt.datetime.now(dt.UTC)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "somebody else")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _MINUTE)
        .not_valid_after(now + 60 * _MINUTE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(leaf=False), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Signer(certificate, key)


def _usage(*, leaf: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=leaf,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=not leaf,
        crl_sign=not leaf,
        encipher_only=False,
        decipher_only=False,
    )
