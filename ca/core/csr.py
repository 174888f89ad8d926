"""The gate for certificate requests: untrusted PEM in, a proven public key out.

A CSR contributes a public key and the proof that its sender holds the private key; nothing else. Names
come from the authenticated identity. Whatever else a CSR asks for must be absent or exactly what would
be issued anyway; the rest is refused with a reason (rows F-01 to F-17).

Order of the checks: size, framing, structure, key type and size, signature, contents. So no expensive
step runs on input that a cheap one refuses.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ca.core.profile import MAX_RSA_BITS, MIN_RSA_BITS, RSA_EXPONENT, Profile
from ca.core.template import header, san_value, tlv
from mesh.errors import Code, MeshError
from mesh.spiffe import SCHEME, SpiffeId
from mesh.x509 import pem
from mesh.x509.certs import KeyInfo, KeyKind, key_identifier, key_info, public_key_bits, spki_der

MAX_CSR_BYTES = 16 << 10  # 20 000 names in 419 KB take 17 ms to parse
MAX_SUBJECT_BYTES = 1024
MAX_SUBJECT_VALUE = 64  # upper bound of X.520 for CN and O


class CsrCode(Code):
    """Why a certificate request was refused."""

    EMPTY = "csr_empty"
    TOO_LARGE = "csr_too_large"
    FRAMING = "csr_framing"
    MALFORMED = "csr_malformed"
    KEY_TYPE = "key_type"
    KEY_BLOCKED = "key_blocked"
    SIGNATURE_ALGORITHM = "csr_signature_algorithm"
    SIGNATURE = "csr_signature"
    SUBJECT = "csr_subject"
    SAN_MISMATCH = "csr_san_mismatch"
    SPOOF_ATTEMPT = "spoof_attempt"
    CA_REQUEST = "csr_ca_request"
    EXTENSION = "csr_extension"


HOSTILE = frozenset({CsrCode.SPOOF_ATTEMPT, CsrCode.CA_REQUEST})
"""Codes that no honest client causes; the audit line says so."""


class CsrError(MeshError):
    """A certificate request that is not acceptable."""


class ProvenKey(NamedTuple):
    """A public key whose holder has proved possession.

    Attributes:
        spki_der: SubjectPublicKeyInfo, re-encoded with a named curve.
        key_id: subject key identifier, 20 bytes.
        dns: names that the request asked for and its sender has been granted; for servers of the mesh.
    """

    spki_der: bytes
    kind: KeyKind
    key_id: bytes
    dns: tuple[str, ...] = ()


def prove(csr_pem: str, identity: SpiffeId, policy: Profile, granted: tuple[str, ...] = ()) -> ProvenKey:
    """Check a request of an authenticated caller.

    Args:
        csr_pem: PKCS#10 request in PEM, exactly one block.
        identity: who the caller is; the only name that the request may hold.
        policy: key types and tolerances.
        granted: DNS names that this identity may have (X-03): a request has all of them, or none.

    Raises:
        CsrError: with the reason; category INVALID_ARGUMENT.
    """
    der = _decode(csr_pem)
    point = _canonical_point(der, identity)
    if point is not None:
        return _prove_canonical(der, point, policy)
    try:
        return _prove_any(der, identity, policy, granted)
    except UnsupportedAlgorithm as e:
        raise CsrError(
            CsrCode.KEY_TYPE, f"CSR: public key or signature of an unknown type; {_allowed(policy)}"
        ) from e
    except _UNREADABLE as e:
        raise CsrError(
            CsrCode.MALFORMED, "CSR cannot be parsed; send a PKCS#10 request", private=f"CSR: {str(e)[:200]}"
        ) from e


# What the library raises for bytes that are not a request; some only when a field is read.
_UNREADABLE = (
    ValueError,
    TypeError,
    OverflowError,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)


def _decode(text: str) -> bytes:
    if not text:
        raise CsrError(CsrCode.EMPTY, "CSR is empty; send a PKCS#10 request in PEM")
    if len(text) > MAX_CSR_BYTES:
        raise CsrError(
            CsrCode.TOO_LARGE,
            f"CSR has {len(text)} bytes; allowed are {MAX_CSR_BYTES}; drop extra names",
        )
    try:
        return pem.decode_one(text, pem.CSR_LABELS, max_bytes=MAX_CSR_BYTES)
    except pem.PemError as e:
        raise CsrError(CsrCode.FRAMING, f"CSR: {e.public}") from e


# --- the canonical request --------------------------------------------------------------------------
# Our agent, and every client that asks for P-256 with an empty subject and one SAN or none, sends
# requests that differ only in the key and the signature. They are recognised by comparing bytes: the
# request is taken apart only where every other byte is known, so no second parser can disagree with
# the library's. Anything else takes the long way.

_P256_SPKI_HEAD = bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d030107034200")
_POINT_BYTES = 65
_MAX_SIGNATURE = 72  # two INTEGERs of up to 33 bytes
_SPKI_BYTES = len(_P256_SPKI_HEAD) + _POINT_BYTES
_ECDSA_SHA256 = bytes.fromhex("300a06082a8648ce3d040302")
_VERSION_1 = bytes.fromhex("020100")
_EMPTY_SUBJECT = bytes.fromhex("3000")
_OID_EXTENSION_REQUEST = bytes.fromhex("06092a864886f70d01090e")
_OID_SAN = bytes.fromhex("0603551d11")
_P256 = ec.SECP256R1()
_SHA256 = ec.ECDSA(hashes.SHA256())


@lru_cache(maxsize=4096)
def _canonical_infos(identity: SpiffeId) -> tuple[tuple[bytes, bytes], ...]:
    """Head and tail of the CertificationRequestInfo around the 65 bytes of the point."""
    san = san_value(identity)
    shapes = [b"\xa0\x00"]
    for critical in (b"\x01\x01\xff", b""):
        extension = tlv(0x30, _OID_SAN + critical + tlv(0x04, san))
        attribute = tlv(0x30, _OID_EXTENSION_REQUEST + tlv(0x31, tlv(0x30, extension)))
        shapes.append(tlv(0xA0, attribute))
    infos = []
    for attributes in shapes:
        info = tlv(0x30, _VERSION_1 + _EMPTY_SUBJECT + _P256_SPKI_HEAD + bytes(_POINT_BYTES) + attributes)
        at = len(info) - len(attributes) - _POINT_BYTES
        infos.append((info[:at], attributes))
    return tuple(infos)


def _canonical_point(der: bytes, identity: SpiffeId) -> tuple[int, int, int] | None:
    """Offsets of the info, the point and the signature algorithm in a canonical request, or None."""
    if len(der) < _SPKI_BYTES:
        return None
    start = 2 if der[1] < 0x80 else 2 + (der[1] & 0x7F)
    for head, tail in _canonical_infos(identity):
        if der.startswith(head, start):
            point = start + len(head)
            end = point + _POINT_BYTES
            if der.startswith(tail + _ECDSA_SHA256, end):
                return start, point, end + len(tail)
    return None


def _prove_canonical(der: bytes, offsets: tuple[int, int, int], policy: Profile) -> ProvenKey:
    start, at, end = offsets
    point = der[at : at + _POINT_BYTES]
    bits = end + len(_ECDSA_SHA256)
    signature = der[bits + 3 :]
    # The frame must be the very one that DER gives these parts; a P-256 signature is always short.
    if len(signature) > _MAX_SIGNATURE or der[bits : bits + 3] != bytes((0x03, len(signature) + 1, 0x00)):
        raise _malformed()
    if der[:start] != header(0x30, len(der) - start):
        raise _malformed()
    try:
        ec.EllipticCurvePublicKey.from_encoded_point(_P256, point).verify(signature, der[start:end], _SHA256)
    except InvalidSignature as e:
        raise _bad_signature() from e
    except ValueError as e:
        raise CsrError(CsrCode.MALFORMED, "CSR: the public key is not a point of P-256") from e
    key = ProvenKey(_P256_SPKI_HEAD + point, KeyKind.P256, key_identifier(point))
    _check_blocked(key, policy)
    return key


def _malformed() -> CsrError:
    return CsrError(CsrCode.MALFORMED, "CSR cannot be parsed; send a PKCS#10 request in DER")


def _bad_signature() -> CsrError:
    return CsrError(
        CsrCode.SIGNATURE,
        "CSR: the signature does not verify with the CSR's own public key; sign the request with that key",
    )


# --- any other request --------------------------------------------------------------------------------


def _prove_any(der: bytes, identity: SpiffeId, policy: Profile, granted: tuple[str, ...]) -> ProvenKey:
    csr = x509.load_der_x509_csr(der)
    public = csr.public_key()
    info = key_info(public)
    _check_key(info, policy)  # before the signature: its cost grows with the key
    _check_signature(csr, info)
    _check_subject(csr, policy)
    dns = _check_extensions(csr, identity, granted)
    key = ProvenKey(spki_der(public), info.kind, key_identifier(public_key_bits(public)), dns)
    _check_blocked(key, policy)
    return key


def _allowed(policy: Profile) -> str:
    names = ["P-256", "P-384"]
    names += ["P-521"] if policy.allow_p521 else []
    names += ["Ed25519"] if policy.allow_ed25519 else []
    rsa = f"RSA of {MIN_RSA_BITS} to {MAX_RSA_BITS} bits with e={RSA_EXPONENT}"
    return f"allowed are {', '.join(names)} and {rsa}"


def _check_key(info: KeyInfo, policy: Profile) -> None:
    if info.kind in {KeyKind.P256, KeyKind.P384}:
        return
    if info.kind is KeyKind.P521 and policy.allow_p521:
        return
    if info.kind is KeyKind.ED25519 and policy.allow_ed25519:
        return
    found = info.name
    if info.kind is KeyKind.RSA:
        if MIN_RSA_BITS <= info.bits <= MAX_RSA_BITS and info.exponent == RSA_EXPONENT:
            return
        found += f" with e={str(info.exponent)[:20]}"
    raise CsrError(CsrCode.KEY_TYPE, f"CSR: public key is {found}; {_allowed(policy)}")


def _check_blocked(key: ProvenKey, policy: Profile) -> None:
    if policy.blocked_keys and hashlib.sha256(key.spki_der).digest() in policy.blocked_keys:
        raise CsrError(CsrCode.KEY_BLOCKED, "CSR: this public key is known to be weak; make a new key")


def _check_signature(csr: x509.CertificateSigningRequest, info: KeyInfo) -> None:
    if info.kind is not KeyKind.ED25519:
        digest = csr.signature_hash_algorithm
        if digest is None or digest.name not in {"sha256", "sha384", "sha512"}:
            raise CsrError(
                CsrCode.SIGNATURE_ALGORITHM,
                f"CSR is signed with {digest.name if digest else 'no digest'}; use SHA-256 or better",
            )
    if not csr.is_signature_valid:
        raise _bad_signature()


def _subject_der(csr: x509.CertificateSigningRequest) -> bytes:
    """The subject as it came. The library has parsed the request, so the lengths are right."""
    info = csr.tbs_certrequest_bytes
    at = (2 if info[1] < 0x80 else 2 + (info[1] & 0x7F)) + len(_VERSION_1)
    size = info[at + 1]
    value = at + 2 if size < 0x80 else at + 2 + (size & 0x7F)
    length = size if size < 0x80 else int.from_bytes(info[at + 2 : value], "big")
    return info[at : value + length]


def _check_subject(csr: x509.CertificateSigningRequest, policy: Profile) -> None:
    subject = _subject_der(csr)
    if subject in _EMPTY_SUBJECTS:
        return
    if not policy.ignore_subject:
        raise CsrError(
            CsrCode.SUBJECT,
            f"CSR: the subject has {len(subject)} bytes; leave it empty, names come from the identity",
        )
    if len(subject) > MAX_SUBJECT_BYTES or not _ignorable(csr):
        raise CsrError(
            CsrCode.SUBJECT,
            f"CSR: the subject may have CN and O values of up to {MAX_SUBJECT_VALUE} characters, which are"
            f" ignored, and {MAX_SUBJECT_BYTES} bytes in all; leave it empty",
        )


def _ignorable(csr: x509.CertificateSigningRequest) -> bool:
    try:
        attributes = list(csr.subject)
    except UserWarning:  # the library warns of values that are too long; warnings may be errors
        return False
    return all(
        a.oid in {NameOID.COMMON_NAME, NameOID.ORGANIZATION_NAME} and len(a.value) <= MAX_SUBJECT_VALUE
        for a in attributes
    )


def _check_extensions(
    csr: x509.CertificateSigningRequest, identity: SpiffeId, granted: tuple[str, ...]
) -> tuple[str, ...]:
    """Refuse what would not be issued; the DNS names to issue."""
    dns: tuple[str, ...] = ()
    for attribute in csr.attributes:
        if attribute.oid.dotted_string not in _ALLOWED_ATTRIBUTES:
            raise CsrError(
                CsrCode.EXTENSION,
                f"CSR: attribute {attribute.oid.dotted_string} is not allowed; send only an extensionRequest",
            )
    for extension in csr.extensions:
        value = extension.value
        if isinstance(value, x509.SubjectAlternativeName):
            dns = _check_san(value, identity, granted)
        elif isinstance(value, x509.BasicConstraints):
            if value.ca:
                raise _ca_request("basicConstraints CA:TRUE")
        elif isinstance(value, x509.KeyUsage):
            _check_key_usage(value)
        elif isinstance(value, x509.ExtendedKeyUsage):
            extra = [o.dotted_string for o in value if o not in _ALLOWED_EKU]
            if extra:
                raise CsrError(
                    CsrCode.EXTENSION,
                    f"CSR: extended key usage {extra[0]} is refused; allowed are serverAuth and clientAuth",
                )
        else:
            raise CsrError(
                CsrCode.EXTENSION,
                f"CSR: extension {extension.oid.dotted_string} is not allowed; allowed are subjectAltName,"
                " keyUsage, extendedKeyUsage and basicConstraints",
            )
    return dns


# Also `O=` with an empty value, UTF8String or PrintableString: istio-agent sends it, and it names nobody.
_EMPTY_SUBJECTS = frozenset(
    {
        _EMPTY_SUBJECT,
        bytes.fromhex("300b3109300706035504 0a0c00"),
        bytes.fromhex("300b3109300706035504 0a1300"),
    }
)
_EXTENSION_REQUEST = "1.2.840.113549.1.9.14"
_ALLOWED_ATTRIBUTES = frozenset({_EXTENSION_REQUEST})
_ALLOWED_EKU = frozenset({ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH})


def _ca_request(what: str) -> CsrError:
    return CsrError(CsrCode.CA_REQUEST, f"CSR asks for {what}; workloads never get a certificate that signs")


def _check_key_usage(usage: x509.KeyUsage) -> None:
    if usage.key_cert_sign or usage.crl_sign:
        raise _ca_request("keyCertSign or cRLSign")
    if usage.content_commitment or usage.data_encipherment:
        raise CsrError(
            CsrCode.EXTENSION,
            "CSR: key usage may ask for digitalSignature, keyEncipherment and keyAgreement only",
        )


def _check_san(
    san: x509.SubjectAlternativeName, identity: SpiffeId, granted: tuple[str, ...]
) -> tuple[str, ...]:
    """Exactly the identity, once (F-01 to F-03). Another SPIFFE ID is worth an alarm.

    With granted names: the identity or no URI, and exactly these names; they are the result.
    """
    own = str(identity)
    uris = [n.value for n in san if isinstance(n, x509.UniformResourceIdentifier)]
    foreign = [u for u in uris if u != own and u[: len(SCHEME)].lower() == SCHEME]
    if foreign:
        raise CsrError(
            CsrCode.SPOOF_ATTEMPT,
            f"CSR asks for another identity than the caller's own, {own}; leave the SAN out",
            private=f"CSR of {own} asks for {foreign[0][:200]!r}",
        )
    dns = [n.value for n in san if isinstance(n, x509.DNSName)]
    no_others = len(uris) + len(dns) == len(list(san))
    if granted and no_others and sorted(dns) == sorted(granted) and uris in ([], [own]):
        return granted
    if uris != [own] or len(list(san)) != 1:
        raise CsrError(
            CsrCode.SAN_MISMATCH,
            f"CSR: subjectAltName has {len(list(san))} names; allowed is none, or exactly the URI {own}"
            + (f", or with it all of the DNS names {', '.join(granted)}" if granted else ""),
        )
    return ()
