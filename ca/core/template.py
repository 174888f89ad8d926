"""The leaf certificate as a DER template.

Everything that does not change between two leaves of an issuer is encoded once, by the library. What
changes (serial, validity, public key, SAN) is put in by length-prefixed concatenation. The tests hold
the result equal, field for field, to what `x509.CertificateBuilder` makes.

Contents of a leaf (X509-SVID 4, RFC 5280 4.2): empty subject; key usage digitalSignature (and
keyEncipherment for RSA), critical; extended key usage serverAuth and clientAuth; basic constraints CA
false, critical; authority and subject key identifiers; one URI SAN, critical. Servers of the mesh that
were granted DNS names have these after the URI (X-03).
"""

from __future__ import annotations

import datetime as dt
from functools import lru_cache

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from mesh.spiffe import SpiffeId
from mesh.x509.certs import KeyKind

EMPTY_NAME = b"\x30\x00"
VERSION_3 = b"\xa0\x03\x02\x01\x02"
SKI_BYTES = 20
_TRUE = b"\x01\x01\xff"
_OID_KU = bytes.fromhex("0603551d0f")
_OID_EKU = bytes.fromhex("0603551d25")
_OID_BC = bytes.fromhex("0603551d13")
_OID_AKI = bytes.fromhex("0603551d23")
_OID_SKI = bytes.fromhex("0603551d0e")
_OID_SAN = bytes.fromhex("0603551d11")
_UTC_TIME_ENDS = 2050  # RFC 5280 4.1.2.5


def header(tag: int, length: int) -> bytes:
    """Tag and length of a DER element."""
    if length < 0x80:
        return bytes((tag, length))
    size = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(size))) + size


def tlv(tag: int, body: bytes) -> bytes:
    """One DER element."""
    return header(tag, len(body)) + body


def integer(value: int) -> bytes:
    """A non-negative DER INTEGER."""
    return tlv(0x02, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def key_usage(kind: KeyKind) -> x509.KeyUsage:
    """Key usage of a leaf: digitalSignature, and keyEncipherment for RSA (X-08)."""
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=kind is KeyKind.RSA,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


EXTENDED_KEY_USAGE = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
LEAF_CONSTRAINTS = x509.BasicConstraints(ca=False, path_length=None)


def _time(value: dt.datetime) -> bytes:
    if value.year < _UTC_TIME_ENDS:
        return tlv(0x17, value.strftime("%y%m%d%H%M%SZ").encode("ascii"))
    return tlv(0x18, value.strftime("%Y%m%d%H%M%SZ").encode("ascii"))


@lru_cache(maxsize=64)
def validity(not_before: dt.datetime, not_after: dt.datetime) -> bytes:
    """Validity sequence. Times are UTC with whole seconds; certificates of one second share it."""
    return tlv(0x30, _time(not_before) + _time(not_after))


def _extension(oid: bytes, value: bytes, *, critical: bool) -> bytes:
    return tlv(0x30, oid + (_TRUE if critical else b"") + tlv(0x04, value))


def san_value(identity: SpiffeId, dns: tuple[str, ...] = ()) -> bytes:
    """Value of a SAN extension with the one URI, and DNS names after it."""
    names = b"".join(tlv(0x82, name.encode("ascii")) for name in dns)
    return tlv(0x30, tlv(0x86, str(identity).encode("ascii")) + names)


class Shape:
    """What all leaves of one identity, its DNS names and key kind share: their extensions.

    Attributes:
        extensions: all of them, in DER, without the 20 bytes of the subject key identifier at the end.
        linted: set by the linter when a whole certificate with these extensions has passed.
    """

    __slots__ = ("dns", "extensions", "identity", "kind", "linted")

    def __init__(
        self, identity: SpiffeId, kind: KeyKind, extensions: bytes, dns: tuple[str, ...] = ()
    ) -> None:
        self.identity = identity
        self.dns = dns
        self.kind = kind
        self.extensions = extensions
        self.linted = False


class LeafTemplate:
    """Leaves of one issuer.

    Args:
        issuer_name: DER of the issuer's subject.
        issuer_ski: the issuer's subject key identifier, which becomes the leaf's AKI.
        signature_algorithm: DER AlgorithmIdentifier that the issuer signs with.
    """

    __slots__ = ("_constant", "_head")

    def __init__(self, *, issuer_name: bytes, issuer_ski: bytes, signature_algorithm: bytes) -> None:
        self._head = signature_algorithm + issuer_name
        aki = x509.AuthorityKeyIdentifier(issuer_ski, None, None).public_bytes()
        shared = (
            _extension(_OID_EKU, EXTENDED_KEY_USAGE.public_bytes(), critical=False)
            + _extension(_OID_BC, LEAF_CONSTRAINTS.public_bytes(), critical=True)
            + _extension(_OID_AKI, aki, critical=False)
        )
        self._constant = {
            kind: _extension(_OID_KU, key_usage(kind).public_bytes(), critical=True) + shared
            for kind in KeyKind
        }

    def shape(self, identity: SpiffeId, kind: KeyKind, dns: tuple[str, ...] = ()) -> Shape:
        """Encode the extensions of an identity's leaves. Keep the result: it is used for each leaf."""
        san = _extension(_OID_SAN, san_value(identity, dns), critical=True)
        ski = _extension(_OID_SKI, tlv(0x04, bytes(SKI_BYTES)), critical=False)
        extensions = tlv(0xA3, tlv(0x30, self._constant[kind] + san + ski))
        return Shape(identity, kind, extensions[:-SKI_BYTES], dns)

    def tbs(
        self,
        shape: Shape,
        *,
        serial_number: int,
        not_before: dt.datetime,
        not_after: dt.datetime,
        spki: bytes,
        ski: bytes,
    ) -> bytes:
        """TBSCertificate, to be signed.

        Args:
            shape: of this template; its key kind must be the one of `spki`.
            serial_number: positive, at most 159 bits.
            not_before: UTC, whole seconds; so is `not_after`.
            spki: DER SubjectPublicKeyInfo of the subject.
            ski: the subject's key identifier, 20 bytes.
        """
        return tlv(
            0x30,
            b"".join(
                (
                    VERSION_3,
                    integer(serial_number),
                    self._head,
                    validity(not_before, not_after),
                    EMPTY_NAME,
                    spki,
                    shape.extensions,
                    ski,
                )
            ),
        )


def assemble(tbs: bytes, signature_algorithm: bytes, signature: bytes) -> bytes:
    """Certificate from its three parts."""
    return tlv(0x30, tbs + signature_algorithm + tlv(0x03, b"\x00" + signature))
