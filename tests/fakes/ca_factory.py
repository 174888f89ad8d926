"""Certificates for tests everywhere: a real hierarchy, and leaves good and bad.

Times are fixed (`NOW`) unless given. Keys are made anew each time: P-256 takes 10 microseconds.

    hierarchy = make_hierarchy()                 # root, issuing intermediate, trust domain cluster.local
    leaf = hierarchy.leaf("/ns/demo/sa/web")           # as the authority would issue it
    bad = hierarchy.leaf("/ns/demo/sa/web", uris=("spiffe://a/b", "spiffe://c/d"))
    hierarchy.write_cacerts(tmp_path)                  # plugged-in CA files
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from ca.core.authority import Issuer
from ca.core.hierarchy import Parent, make_intermediate, make_root
from ca.core.signer import KeySigner, SigningKey
from mesh.spiffe import SpiffeId, TrustDomain
from mesh.x509 import pem
from mesh.x509.certs import key_identifier, public_key_bits, read_certificate

NOW = dt.datetime(2026, 6, 1, 12, 0, 0, tzinfo=dt.UTC)
DAY = dt.timedelta(days=1)
TRUST_DOMAIN = TrustDomain("cluster.local")
BOTH_EKU = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)


def new_key() -> ec.EllipticCurvePrivateKey:
    """A P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: CertificateIssuerPrivateKeyTypes) -> str:
    """PKCS#8 PEM, not encrypted."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode("ascii")


def key_pkcs8(key: CertificateIssuerPrivateKeyTypes) -> bytes:
    """PKCS#8 DER, not encrypted."""
    return key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())


def usage(*names: str) -> x509.KeyUsage:
    """Key usage with the named bits (`digital_signature`, `key_cert_sign`, ...)."""
    bits = [
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    ]
    return x509.KeyUsage(**{b: b in names for b in bits})


@dataclass(frozen=True, slots=True)
class Leaf:
    """A leaf with its key and what goes with it."""

    der: bytes
    key: ec.EllipticCurvePrivateKey
    intermediates: tuple[bytes, ...]

    @property
    def chain(self) -> tuple[bytes, ...]:
        """Leaf first, without the root."""
        return (self.der, *self.intermediates)

    @property
    def chain_pem(self) -> str:
        """The chain as PEM."""
        return pem.encode_certificates(self.chain)

    @property
    def key_pem(self) -> str:
        """The key as PKCS#8 PEM."""
        return key_pem(self.key)

    @property
    def key_pkcs8(self) -> bytes:
        """The key as PKCS#8 DER."""
        return key_pkcs8(self.key)

    @property
    def certificate(self) -> x509.Certificate:
        """Parsed."""
        return x509.load_der_x509_certificate(self.der)


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """A root and an issuing intermediate of one trust domain, with their keys."""

    trust_domain: TrustDomain
    root_der: bytes
    root_key: SigningKey
    issuing_der: bytes
    issuing_key: SigningKey

    @property
    def roots(self) -> tuple[bytes, ...]:
        """The bundle."""
        return (self.root_der,)

    @property
    def roots_pem(self) -> str:
        """The bundle as PEM."""
        return pem.encode_certificates(self.roots)

    def issuer(self) -> Issuer:
        """For `ca.core.authority.Authority`."""
        issuing = read_certificate(self.issuing_der)
        return Issuer(
            trust_domain=self.trust_domain,
            certificate=issuing,
            signer=KeySigner(self.issuing_key),
            chain=(issuing,),
            roots=self.roots,
        )

    def spiffe_id(self, path: str) -> SpiffeId:
        """An ID of this trust domain."""
        return SpiffeId(self.trust_domain, path)

    def leaf(
        self,
        path: str = "/ns/demo/sa/web",
        *,
        uris: Sequence[str] | None = None,
        dns: Sequence[str] = (),
        key: ec.EllipticCurvePrivateKey | None = None,
        not_before: dt.datetime = NOW - dt.timedelta(minutes=2),
        not_after: dt.datetime = NOW + DAY,
        san_critical: bool = True,
        subject: x509.Name | None = None,
        ca: bool | None = False,
        key_usage: x509.KeyUsage | None = usage("digital_signature"),  # noqa: B008 - a constant
        key_usage_critical: bool = True,
        eku: Sequence[ObjectIdentifier] | None = BOTH_EKU,
        signed_by: Parent | None = None,
        extra: Sequence[tuple[x509.ExtensionType, bool]] = (),
    ) -> Leaf:
        """A leaf as the authority makes it; each argument makes it different, or wrong.

        Args:
            uris: URI SANs instead of the one of `path`.
            signed_by: another signer than the issuing intermediate.
            extra: extensions to add, with their criticality.
        """
        key = key or new_key()
        parent = signed_by or Parent(x509.load_der_x509_certificate(self.issuing_der), self.issuing_key)
        uris = (str(self.spiffe_id(path)),) if uris is None else uris
        names = [*map(x509.UniformResourceIdentifier, uris), *map(x509.DNSName, dns)]
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject or x509.Name([]))
            .issuer_name(parent.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(not_before)
            .not_valid_after(not_after)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=san_critical)
        if ca is not None:
            builder = builder.add_extension(x509.BasicConstraints(ca, None), critical=True)
        if key_usage is not None:
            builder = builder.add_extension(key_usage, critical=key_usage_critical)
        if eku is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage(eku), critical=False)
        ski = key_identifier(public_key_bits(key.public_key()))
        aki = key_identifier(public_key_bits(parent.key.public_key()))
        builder = builder.add_extension(x509.SubjectKeyIdentifier(ski), critical=False)
        builder = builder.add_extension(x509.AuthorityKeyIdentifier(aki, None, None), critical=False)
        for value, critical in extra:
            builder = builder.add_extension(value, critical=critical)
        der = builder.sign(parent.key, hashes.SHA256()).public_bytes(Encoding.DER)
        return Leaf(der, key, (self.issuing_der,) if signed_by is None else ())

    def expired_leaf(self, path: str = "/ns/demo/sa/web") -> Leaf:
        """A leaf that ended an hour before `NOW`."""
        hour = dt.timedelta(hours=1)
        return self.leaf(path, not_before=NOW - 2 * hour, not_after=NOW - hour)

    def two_uri_leaf(self, path: str = "/ns/demo/sa/web", second: str = "spiffe://evil/ns/a/sa/b") -> Leaf:
        """A leaf with two URI SANs, which no validator may accept (X-02)."""
        return self.leaf(path, uris=(str(self.spiffe_id(path)), second))

    def self_signed_leaf(self, path: str = "/ns/demo/sa/web") -> Leaf:
        """A leaf that signed itself."""
        key = new_key()
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "self")])
        at = NOW - dt.timedelta(minutes=2)
        shell = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(1)
            .not_valid_before(at)
            .not_valid_after(NOW + DAY)
            .sign(key, hashes.SHA256())
        )
        return self.leaf(path, key=key, subject=name, signed_by=Parent(shell, key))

    def write_cacerts(self, directory: Path) -> None:
        """Plugged-in CA files by Istio's names (`ca-cert.pem`, `ca-key.pem`, ...)."""
        directory.mkdir(parents=True, exist_ok=True)
        issuing = pem.encode_certificate(self.issuing_der)
        (directory / "ca-cert.pem").write_text(issuing)
        (directory / "ca-key.pem").write_text(key_pem(self.issuing_key))
        (directory / "cert-chain.pem").write_text(issuing + self.roots_pem)
        (directory / "root-cert.pem").write_text(self.roots_pem)

    def write_cert_manager(self, directory: Path) -> None:
        """Plugged-in CA files by cert-manager's names (`tls.crt`, `tls.key`, `ca.crt`)."""
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "tls.crt").write_text(pem.encode_certificate(self.issuing_der))
        (directory / "tls.key").write_text(key_pem(self.issuing_key))
        (directory / "ca.crt").write_text(self.roots_pem)


def make_hierarchy(
    trust_domain: TrustDomain = TRUST_DOMAIN,
    *,
    now: dt.datetime = NOW,
    root_lifetime: dt.timedelta = 3650 * DAY,
    issuing_lifetime: dt.timedelta = 365 * DAY,
    root_key: SigningKey | None = None,
    issuing_key: SigningKey | None = None,
) -> Hierarchy:
    """A root and an issuing intermediate, made at `now`.

    A foreign CA is a second call; a foreign trust domain is a call with another name.
    """
    root_key = root_key or new_key()
    issuing_key = issuing_key or new_key()
    root_der = make_root(trust_domain, root_key, now, root_lifetime)
    parent = Parent(x509.load_der_x509_certificate(root_der), root_key)
    issuing_der = make_intermediate(trust_domain, issuing_key, parent, now, issuing_lifetime)
    return Hierarchy(trust_domain, root_der, root_key, issuing_der, issuing_key)


def make_csr(
    key: CertificateIssuerPrivateKeyTypes | None = None,
    *,
    uris: Sequence[str] = (),
    names: Sequence[x509.GeneralName] = (),
    san_critical: bool = True,
    subject: x509.Name | None = None,
    extra: Sequence[tuple[x509.ExtensionType, bool]] = (),
    digest: hashes.HashAlgorithm | None = hashes.SHA256(),  # noqa: B008 - a constant
) -> str:
    """A PKCS#10 request as PEM, as our agent makes it; the arguments make it different, or wrong."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject or x509.Name([]))
    sans = [*map(x509.UniformResourceIdentifier, uris), *names]
    if sans:
        builder = builder.add_extension(x509.SubjectAlternativeName(sans), critical=san_critical)
    for value, critical in extra:
        builder = builder.add_extension(value, critical=critical)
    csr = builder.sign(key or new_key(), digest)  # type: ignore[arg-type]  # any digest, to be refused
    return csr.public_bytes(Encoding.PEM).decode("ascii")
