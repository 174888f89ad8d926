"""Certificate fields as values: names, key kinds, serial, key identifiers.

Source: RFC 5280 section 4, X509-SVID sections 2 to 4. Parsing is the library's; what is read here is
checked where the library is lenient (URI names that are not ASCII, curves by their size).
"""

from __future__ import annotations

import datetime as dt
import enum
import hashlib
from dataclasses import dataclass, field
from functools import lru_cache

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, ObjectIdentifier

from mesh.errors import Code, MeshError
from mesh.spiffe import SpiffeId, SpiffeIdError

MAX_CERTIFICATE_BYTES = 64 << 10


class CertCode(Code):
    """Why a certificate could not be read."""

    MALFORMED = "cert_malformed"
    TOO_LARGE = "cert_too_large"
    KEY_TYPE = "cert_key_type"


class CertError(MeshError):
    """Bytes that are not a certificate that can be used."""


class KeyKind(enum.StrEnum):
    """Kinds of public keys that can be told apart; elliptic curves by *name*, never by size.

    (secp256k1 has 256 bits too.)
    """

    P256 = "P-256"
    P384 = "P-384"
    P521 = "P-521"
    RSA = "RSA"
    ED25519 = "Ed25519"
    OTHER = "other"


_CURVES = {"secp256r1": KeyKind.P256, "secp384r1": KeyKind.P384, "secp521r1": KeyKind.P521}


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """What a public key is.

    Attributes:
        name: for messages, e.g. `RSA-2048`, `P-256`, `secp256k1`.
        bits: size of the modulus or the field; 0 when the kind has no choice.
        exponent: RSA only, else 0.
    """

    kind: KeyKind
    name: str
    bits: int = 0
    exponent: int = 0


def key_info(key: PublicKeyTypes) -> KeyInfo:
    """Describe a public key."""
    if isinstance(key, ec.EllipticCurvePublicKey):
        kind = _CURVES.get(key.curve.name, KeyKind.OTHER)
        name = key.curve.name if kind is KeyKind.OTHER else kind.value
        return KeyInfo(kind, name, key.curve.key_size)
    if isinstance(key, rsa.RSAPublicKey):
        return KeyInfo(KeyKind.RSA, f"RSA-{key.key_size}", key.key_size, key.public_numbers().e)
    if isinstance(key, ed25519.Ed25519PublicKey):
        return KeyInfo(KeyKind.ED25519, KeyKind.ED25519.value)
    return KeyInfo(KeyKind.OTHER, type(key).__name__.lstrip("_").removesuffix("PublicKey"))


def spki_der(key: PublicKeyTypes) -> bytes:
    """SubjectPublicKeyInfo, re-encoded: an EC key always comes out with its named curve."""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def key_identifier(key_bits: bytes) -> bytes:
    """Key identifier of a public key: RFC 7093 section 2 method 1.

    Args:
        key_bits: value of the subjectPublicKey BIT STRING, without tag, length and unused-bits byte.

    Returns:
        The leftmost 160 bits of its SHA-256.
    """
    return hashlib.sha256(key_bits).digest()[:20]


def public_key_bits(key: PublicKeyTypes) -> bytes:
    """Value of the subjectPublicKey BIT STRING, for `key_identifier`."""
    if isinstance(key, ec.EllipticCurvePublicKey):
        return key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    if isinstance(key, rsa.RSAPublicKey):
        return key.public_bytes(Encoding.DER, PublicFormat.PKCS1)
    if isinstance(key, ed25519.Ed25519PublicKey):
        return key.public_bytes_raw()
    raise CertError(CertCode.KEY_TYPE, f"public key of type {key_info(key).name} has no use here")


@dataclass(frozen=True, slots=True, kw_only=True)
class CertFields:
    """What Gatehouse reads from a certificate.

    Attributes:
        certificate: the parsed certificate (for signatures and path building).
        uris: every URI in the SAN, as text, in order; not checked.
        other_sans: number of SAN entries that are not URIs.
        key_usage: None when the extension is absent.
        eku: None when the extension is absent, else dotted OIDs.
        ca: basicConstraints cA; None when the extension is absent.
        serial: as lower-case hexadecimal without leading zeros.
        unknown_critical: dotted OIDs of critical extensions that nobody here reads.
    """

    certificate: x509.Certificate = field(repr=False, compare=False)
    der: bytes = field(repr=False)
    serial_number: int
    subject: bytes
    issuer: bytes
    not_before: dt.datetime
    not_after: dt.datetime
    spki: bytes = field(repr=False)
    key: KeyInfo
    uris: tuple[str, ...]
    other_sans: int
    san_critical: bool
    ca: bool | None
    ca_critical: bool
    path_length: int | None
    key_usage: x509.KeyUsage | None
    key_usage_critical: bool
    eku: frozenset[str] | None
    ski: bytes | None
    aki: bytes | None
    unknown_critical: tuple[str, ...]

    @property
    def serial(self) -> str:
        """Serial number as lower-case hexadecimal."""
        return f"{self.serial_number:x}"

    @property
    def subject_empty(self) -> bool:
        """True when the subject is the empty sequence."""
        return self.subject == b"\x30\x00"

    @property
    def self_issued(self) -> bool:
        """True when issuer and subject are the same name."""
        return self.subject == self.issuer

    def spiffe_id(self) -> SpiffeId | None:
        """The SPIFFE ID when there is exactly one URI SAN and it is one, else None."""
        if len(self.uris) != 1:
            return None
        try:
            return SpiffeId.parse(self.uris[0])
        except SpiffeIdError:
            return None


SERVER_AUTH = ExtendedKeyUsageOID.SERVER_AUTH.dotted_string
CLIENT_AUTH = ExtendedKeyUsageOID.CLIENT_AUTH.dotted_string

_READ = frozenset(
    {
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.SUBJECT_KEY_IDENTIFIER,
        ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
        ExtensionOID.NAME_CONSTRAINTS,  # the path builder reads it
    }
)


# Everything the library raises for bytes that are not a certificate; some only when a field is read.
_UNREADABLE = (
    ValueError,
    TypeError,
    OverflowError,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
    UserWarning,  # names of a wrong length, where warnings are errors
)


@lru_cache(maxsize=32)
def read_certificate(der: bytes) -> CertFields:
    """Parse a DER certificate.

    The last few are remembered: a check of one leaf reads it and the same issuers several times, and
    an agent that renews reads the same issuers for each of its workloads.

    Raises:
        CertError: not a certificate, too large, or with a key that the library does not know.
    """
    if len(der) > MAX_CERTIFICATE_BYTES:
        raise CertError(
            CertCode.TOO_LARGE, f"certificate has {len(der)} bytes; allowed are {MAX_CERTIFICATE_BYTES}"
        )
    try:
        return _read(x509.load_der_x509_certificate(der))
    except UnsupportedAlgorithm as e:
        raise CertError(CertCode.KEY_TYPE, "certificate has a public key of an unknown type") from e
    except _UNREADABLE as e:
        raise CertError(CertCode.MALFORMED, f"certificate cannot be parsed: {str(e)[:200]}") from e


def _read(cert: x509.Certificate) -> CertFields:
    exts: dict[ObjectIdentifier, x509.Extension[x509.ExtensionType]] = {e.oid: e for e in cert.extensions}
    san = exts.get(ExtensionOID.SUBJECT_ALTERNATIVE_NAME)
    names = list(san.value) if san and isinstance(san.value, x509.SubjectAlternativeName) else []
    uris = tuple(n.value for n in names if isinstance(n, x509.UniformResourceIdentifier))
    bc = exts.get(ExtensionOID.BASIC_CONSTRAINTS)
    bcv = bc.value if bc and isinstance(bc.value, x509.BasicConstraints) else None
    ku = exts.get(ExtensionOID.KEY_USAGE)
    eku = exts.get(ExtensionOID.EXTENDED_KEY_USAGE)
    ski = exts.get(ExtensionOID.SUBJECT_KEY_IDENTIFIER)
    aki = exts.get(ExtensionOID.AUTHORITY_KEY_IDENTIFIER)
    key = cert.public_key()
    return CertFields(
        certificate=cert,
        der=cert.public_bytes(Encoding.DER),
        serial_number=cert.serial_number,
        subject=cert.subject.public_bytes(),
        issuer=cert.issuer.public_bytes(),
        not_before=cert.not_valid_before_utc,
        not_after=cert.not_valid_after_utc,
        spki=spki_der(key),
        key=key_info(key),
        uris=uris,
        other_sans=len(names) - len(uris),
        san_critical=bool(san and san.critical),
        ca=bcv.ca if bcv else None,
        ca_critical=bool(bc and bc.critical),
        path_length=bcv.path_length if bcv else None,
        key_usage=ku.value if ku and isinstance(ku.value, x509.KeyUsage) else None,
        key_usage_critical=bool(ku and ku.critical),
        eku=(
            frozenset(o.dotted_string for o in eku.value)
            if eku and isinstance(eku.value, x509.ExtendedKeyUsage)
            else None
        ),
        ski=ski.value.digest if ski and isinstance(ski.value, x509.SubjectKeyIdentifier) else None,
        aki=aki.value.key_identifier if aki and isinstance(aki.value, x509.AuthorityKeyIdentifier) else None,
        unknown_critical=tuple(
            sorted(e.oid.dotted_string for e in exts.values() if e.critical and e.oid not in _READ)
        ),
    )
