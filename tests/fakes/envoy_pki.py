"""Certificates for a running proxy: valid now, with any names, good or bad."""

from __future__ import annotations

import datetime as dt
import itertools
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from mesh.envoy.resources import SDS_ROOTS, SDS_SVID, Resource
from mesh.envoy.secrets import roots_secret, svid_secret

CLIENT_AUTH = ExtendedKeyUsageOID.CLIENT_AUTH
SERVER_AUTH = ExtendedKeyUsageOID.SERVER_AUTH
BOTH = (SERVER_AUTH, CLIENT_AUTH)
_FILES = itertools.count()


def spiffe(name: str, *, namespace: str = "demo", trust_domain: str = "cluster.local") -> str:
    """`spiffe://<td>/ns/<namespace>/sa/<name>`."""
    return f"spiffe://{trust_domain}/ns/{namespace}/sa/{name}"


@dataclass(frozen=True, slots=True)
class Credential:
    """A leaf certificate with its key."""

    der: bytes
    key: ec.EllipticCurvePrivateKey

    @property
    def key_pkcs8(self) -> bytes:
        return self.key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())

    def secret(self, name: str = SDS_SVID) -> Resource:
        """The SDS secret of this credential."""
        return svid_secret(name, [self.der], self.key_pkcs8)

    def write(self, directory: Path) -> tuple[Path, Path]:
        """Certificate and key as PEM files."""
        number = next(_FILES)
        cert, key = directory / f"{number}.crt", directory / f"{number}.key"
        cert.write_text(ssl.DER_cert_to_PEM_cert(self.der))
        key.write_bytes(self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return cert, key


class Pki:
    """A root that signs leaves."""

    def __init__(self, name: str = "test root") -> None:
        self._now = dt.datetime.now(dt.UTC)
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._key = ec.generate_private_key(ec.SECP256R1())
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        self._root = (
            self._builder(self._name, self._key, dt.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .sign(self._key, hashes.SHA256())
        )

    @property
    def der(self) -> bytes:
        return self._root.public_bytes(Encoding.DER)

    def roots(self, name: str = SDS_ROOTS) -> Resource:
        """The SDS secret of this root."""
        return roots_secret(name, [self.der])

    def leaf(
        self,
        *uris: str,
        dns: Sequence[str] = (),
        usages: Sequence[ObjectIdentifier] = BOTH,
        subject: str = "",
        lifetime: dt.timedelta = dt.timedelta(hours=1),
    ) -> Credential:
        """A leaf; a negative lifetime makes an expired one."""
        key = ec.generate_private_key(ec.SECP256R1())
        attributes = [x509.NameAttribute(NameOID.COMMON_NAME, subject)] if subject else []
        builder = self._builder(x509.Name(attributes), key, lifetime)
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri) for uri in uris]
        names += [x509.DNSName(name) for name in dns]
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=not subject)
        digital = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
        certificate = (
            builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(digital, critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return Credential(certificate.public_bytes(Encoding.DER), key)

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, lifetime: dt.timedelta
    ) -> x509.CertificateBuilder:
        start = self._now - dt.timedelta(hours=2)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(self._now + lifetime)
        )
