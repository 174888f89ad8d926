"""A root that issues serving certificates, for tests of the webhook's TLS."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from injector.csr_client import Issued

DAY = dt.timedelta(days=1)
NAMES = (
    "gatehouse-injector.istio-system.svc",
    "gatehouse-injector.istio-system.svc.cluster.local",
    "gatehouse-injector.istio-system",
)


class Root:
    """A self-signed root.

    Args:
        now: start of everything it issues, unless told otherwise.
    """

    def __init__(
        self, now: dt.datetime | None = None, *, name: str = "root", life: dt.timedelta = 365 * DAY
    ) -> None:
        self.now = now or dt.datetime.now(dt.UTC)
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.certificate = (
            x509.CertificateBuilder()
            .subject_name(self.name)
            .issuer_name(self.name)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(self.now - DAY)
            .not_valid_after(self.now + life)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(_USAGE, critical=True)
            .sign(self.key, hashes.SHA256())
        )

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(Encoding.PEM).decode()

    def issue(
        self,
        names: Sequence[str] = NAMES,
        *,
        start: dt.datetime | None = None,
        life: dt.timedelta = DAY,
        server: bool = True,
    ) -> Issued:
        key = ec.generate_private_key(ec.SECP256R1())
        start = start or self.now
        usage = ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH
        leaf = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(start + life)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(n) for n in names]), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        key_pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return Issued(key_pem, leaf.public_bytes(Encoding.PEM), start + life)


_USAGE = x509.KeyUsage(
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


def plain_pair(directory: Path, issued: Issued) -> None:
    """Write the two files without the swap of directories."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tls.key").write_bytes(issued.key_pem)
    (directory / "tls.crt").write_bytes(issued.chain_pem)
