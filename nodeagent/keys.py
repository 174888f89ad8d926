"""Fresh workload keys and the CSRs made with them."""

from __future__ import annotations

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from mesh.spiffe import SpiffeId
from mesh.x509.certs import spki_der
from nodeagent.core.svid import KeyPair


def new_request(spiffe_id: SpiffeId) -> tuple[KeyPair, str]:
    """A new P-256 key and a CSR for it.

    The CSR has an empty subject and exactly one URI SAN, the identity that the token proves: names in
    certificates come from the token, and strict authorities want the CSR to say the same.

    Returns:
        The key pair, and the CSR as PEM.
    """
    return _request(x509.UniformResourceIdentifier(str(spiffe_id)))


def new_server_request(name: str) -> tuple[KeyPair, str]:
    """A new P-256 key and a CSR for a server of that DNS name, which the authority must have granted."""
    return _request(x509.DNSName(name))


def _request(name: x509.GeneralName) -> tuple[KeyPair, str]:
    key = ec.generate_private_key(ec.SECP256R1())
    san = x509.SubjectAlternativeName([name])
    csr = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .add_extension(san, critical=True)
        .sign(key, hashes.SHA256())
    )
    pair = KeyPair(
        pkcs8=key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()),
        spki=spki_der(key.public_key()),
    )
    return pair, csr.public_bytes(Encoding.PEM).decode("ascii")
