"""The webhook's own certificate from the authority: a key, a CSR with DNS names, one call.

Used by the certificate keeper only: gRPC must not be loaded by a process that forks, as the webhook's
parent does. The authority signs DNS names for service accounts to which it grants them; see
docs/injector.md.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from injector import ca_bundle
from injector.config import CertificateConfig
from mesh._proto import istio_ca_pb2, istio_ca_pb2_grpc
from mesh.errors import Category, Code, MeshError
from mesh.x509 import pem
from mesh.x509.certs import CertError, read_certificate

_DEADLINE: Final = 10.0
_MAX_TOKEN: Final = 16 << 10
_MAX_ROOTS: Final = 1 << 20
_TOKEN: Final = re.compile(r"[\x21-\x7e]+")
_OPTIONS: Final = (("grpc.max_receive_message_length", 1 << 20), ("grpc.enable_retries", 0))
_UNAVAILABLE: Final = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.INTERNAL,
    }
)


class CertificateCode(Code):
    """Why there is no new serving certificate."""

    FILE = "certificate_file"
    UNREACHABLE = "certificate_authority_unreachable"
    REFUSED = "certificate_refused"
    WRONG = "certificate_wrong"
    NOT_TRUSTED = "certificate_not_trusted_yet"


class CertificateError(MeshError):
    """The authority gave no certificate that can be served."""


@dataclass(frozen=True, slots=True)
class Issued:
    """A pair that fits together and that the roots verify.

    Attributes:
        chain_pem: leaf and intermediates, without roots.
    """

    key_pem: bytes = field(repr=False)
    chain_pem: bytes = field(repr=False)
    not_after: dt.datetime


def read_roots(path: Path) -> str:
    """PEM of the roots in force.

    Raises:
        CertificateError: the file is not there, or holds no certificates.
    """
    text = _read(path, _MAX_ROOTS, "root file")
    try:
        return pem.encode_certificates(pem.decode_certificates(text))
    except MeshError as error:
        raise _error(CertificateCode.FILE, f"root file {path}: {error.public}") from error


def issue(config: CertificateConfig, names: Sequence[str], now: dt.datetime) -> Issued:
    """Make a key and have the authority sign it.

    Args:
        names: DNS names, exactly those that the authority grants to our service account.

    Raises:
        CertificateError: with a category that says whether trying again can help.
    """
    roots = read_roots(config.root_file)
    token = _read(config.token_file, _MAX_TOKEN, "token file").strip()
    if not _TOKEN.fullmatch(token):
        raise _error(CertificateCode.FILE, f"token file {config.token_file} does not hold one token")
    key = ec.generate_private_key(ec.SECP256R1())
    blocks = _call(config, roots, token, _request(key, names))
    return _checked(key, blocks, roots, names, now)


def _request(key: ec.EllipticCurvePrivateKey, names: Sequence[str]) -> str:
    csr = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=True)
        .sign(key, hashes.SHA256())
    )
    return csr.public_bytes(serialization.Encoding.PEM).decode("ascii")


def _call(config: CertificateConfig, roots: str, token: str, csr_pem: str) -> Sequence[str]:
    address = str(config.ca_address)
    message = istio_ca_pb2.IstioCertificateRequest(
        csr=csr_pem, validity_duration=int(config.lifetime.total_seconds())
    )
    credentials = grpc.ssl_channel_credentials(root_certificates=roots.encode("ascii"))
    with grpc.secure_channel(address, credentials, options=_OPTIONS) as channel:
        stub = istio_ca_pb2_grpc.IstioCertificateServiceStub(channel)  # type: ignore[no-untyped-call] # generated
        try:
            reply = stub.CreateCertificate(
                message, metadata=(("authorization", f"Bearer {token}"),), timeout=_DEADLINE
            )
        except grpc.RpcError as error:
            code, details = error.code(), str(error.details() or "")[:500]
            away = code in _UNAVAILABLE
            raise CertificateError(
                CertificateCode.UNREACHABLE if away else CertificateCode.REFUSED,
                f"authority {address}: {code.name}",
                category=Category.UNAVAILABLE if away else Category.PERMISSION_DENIED,
                private=f"authority {address}: {code.name}: {details}",
            ) from error
    return tuple(reply.cert_chain)


def _checked(
    key: ec.EllipticCurvePrivateKey, blocks: Sequence[str], roots: str, names: Sequence[str], now: dt.datetime
) -> Issued:
    try:
        ders = [der for block in blocks for der in pem.decode_certificates(block)]
        leaf = read_certificate(ders[0])
        public = x509.load_der_x509_certificate(ders[0]).public_key()
    except (MeshError, CertError, ValueError, IndexError) as error:
        raise _error(CertificateCode.WRONG, f"the authority's answer is no chain: {error}") from error
    trusted = frozenset(pem.decode_certificates(roots))
    chain = pem.encode_certificates(der for der in ders if der not in trusted).encode("ascii")
    if public != key.public_key():
        raise _error(CertificateCode.WRONG, "the authority signed another key")
    for name in names:
        if not ca_bundle.verifies(chain, roots, name, now):
            raise _error(
                CertificateCode.WRONG,
                f"the certificate is not good for {name}; next: grant the names to our service account in"
                " the authority's configuration (serving_grants)",
            )
    key_pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return Issued(key_pem, chain, leaf.not_after)


def _read(path: Path, limit: int, what: str) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
        text = data.decode("ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise _error(CertificateCode.FILE, f"{what} {path} cannot be read: {error}") from error
    if not 0 < len(data) <= limit:
        raise _error(CertificateCode.FILE, f"{what} {path} is empty or over {limit} bytes")
    return text


def _error(code: CertificateCode, public: str) -> CertificateError:
    return CertificateError(code, public, category=Category.UNAVAILABLE)
