"""The X-rows as code: every certificate passes here before it leaves the authority.

Two layers. `check_leaf_certificate` parses a whole certificate and compares each field with what was
asked for. `Linter` does the same for every certificate at a tenth of the price: it takes the DER apart,
compares the fields that differ between certificates, and compares the rest with bytes for which
`check_leaf_certificate` has passed. The same bytes get the same verdict, so comparing is enough.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

from ca.core.template import EMPTY_NAME, SKI_BYTES, VERSION_3, assemble, validity
from mesh.errors import Category, Code, MeshError
from mesh.spiffe import SpiffeId
from mesh.x509.certs import CLIENT_AUTH, SERVER_AUTH, CertError, CertFields, KeyKind, read_certificate
from mesh.x509.verify import SvidError, check_leaf

MIN_SERIAL_BITS = 64
MAX_SERIAL_BITS = 159
MAX_SHAPES = 8192
_EKU = frozenset({SERVER_AUTH, CLIENT_AUTH})


class LintCode(Code):
    """Which row a certificate of ours breaks. Each is a fault of the authority, never of the caller."""

    STRUCTURE = "lint_structure"
    SERIAL = "lint_serial"
    ISSUER = "lint_issuer"
    VALIDITY = "lint_validity"
    SUBJECT = "lint_subject"
    PUBLIC_KEY = "lint_public_key"
    EXTENSIONS = "lint_extensions"
    IDENTITY = "lint_identity"
    SIGNATURE = "lint_signature"


class LintError(MeshError):
    """A certificate that must not leave the authority."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What a leaf must say.

    Attributes:
        latest: NotAfter of the issuer: nothing that it signs outlives it (X-13).
    """

    identity: SpiffeId
    serial_number: int
    not_before: dt.datetime
    not_after: dt.datetime
    latest: dt.datetime
    spki: bytes
    ski: bytes
    kind: KeyKind
    issuer_name: bytes
    issuer_ski: bytes


def _fail(code: LintCode, message: str) -> LintError:
    return LintError(
        code,
        "the authority made a certificate that breaks its own rules; nothing was issued, report this",
        category=Category.INTERNAL,
        private=f"lint: {message}",
    )


def check_numbers(expected: Expected) -> None:
    """Serial number and times, whatever the encoding (X-13, X-14).

    Raises:
        LintError: serial not positive or of a wrong size, or times out of order.
    """
    if expected.serial_number <= 0 or expected.serial_number.bit_length() > MAX_SERIAL_BITS:
        raise _fail(LintCode.SERIAL, f"serial must be positive with at most {MAX_SERIAL_BITS} bits")
    if not expected.not_before < expected.not_after <= expected.latest:
        raise _fail(
            LintCode.VALIDITY,
            f"validity {expected.not_before} to {expected.not_after}, issuer ends {expected.latest}",
        )


def check_leaf_certificate(der: bytes, expected: Expected) -> CertFields:
    """Parse a leaf and compare every field (X-01 to X-16).

    Raises:
        LintError: with the first field that differs.
    """
    check_numbers(expected)
    try:
        leaf = read_certificate(der)
        found = check_leaf(leaf)
    except (CertError, SvidError) as e:
        raise _fail(LintCode.STRUCTURE, e.private) from e
    if found != expected.identity or leaf.uris != (str(expected.identity),) or leaf.other_sans:
        raise _fail(LintCode.IDENTITY, f"leaf is for {leaf.uris}, asked was {expected.identity}")
    if leaf.serial_number != expected.serial_number:
        raise _fail(LintCode.SERIAL, "serial differs from the one drawn")
    if (leaf.not_before, leaf.not_after) != (expected.not_before, expected.not_after):
        raise _fail(LintCode.VALIDITY, f"validity {leaf.not_before} to {leaf.not_after} was not asked for")
    if not leaf.subject_empty:
        raise _fail(LintCode.SUBJECT, "subject is not empty")
    if leaf.issuer != expected.issuer_name:
        raise _fail(LintCode.ISSUER, "issuer is not the signing certificate's subject")
    if leaf.spki != expected.spki:
        raise _fail(LintCode.PUBLIC_KEY, "public key is not the one that was proved")
    _check_extensions(leaf, expected)
    return leaf


def _check_extensions(leaf: CertFields, expected: Expected) -> None:
    usage = leaf.key_usage
    good = (
        leaf.ca is False
        and leaf.ca_critical
        and leaf.san_critical
        and leaf.eku == _EKU
        and leaf.ski == expected.ski
        and leaf.aki == expected.issuer_ski
        and usage is not None
        and usage.key_encipherment is (expected.kind is KeyKind.RSA)
        and not (usage.content_commitment or usage.data_encipherment or usage.key_agreement)
    )
    if not good:
        raise _fail(LintCode.EXTENSIONS, "an extension has another value than the profile's")


class Linter:
    """Lints the leaves of one issuer.

    Args:
        issuer_name: DER of the issuer's subject.
        signature_algorithm: DER AlgorithmIdentifier of the issuer.
    """

    __slots__ = ("_after_serial", "_algorithm", "_passed")

    def __init__(self, *, issuer_name: bytes, signature_algorithm: bytes) -> None:
        self._algorithm = signature_algorithm
        self._after_serial = signature_algorithm + issuer_name
        self._passed: set[tuple[SpiffeId, KeyKind, bytes]] = set()

    def check_tbs(self, tbs: bytes, expected: Expected) -> None:
        """Check what is about to be signed.

        Raises:
            LintError: with the first field that differs.
        """
        check_numbers(expected)
        start = _header(tbs, 0, 0x30)
        if _end(tbs, 0) != len(tbs) or not tbs.startswith(VERSION_3, start):
            raise _fail(LintCode.STRUCTURE, "TBSCertificate is not one sequence of version 3")
        serial = start + len(VERSION_3)
        at = _end(tbs, serial)
        if int.from_bytes(tbs[_header(tbs, serial, 0x02) : at], "big", signed=True) != expected.serial_number:
            raise _fail(LintCode.SERIAL, "serial differs from the one drawn")
        at = _skip(tbs, at, self._after_serial, LintCode.ISSUER)
        at = _skip(tbs, at, validity(expected.not_before, expected.not_after), LintCode.VALIDITY)
        at = _skip(tbs, at, EMPTY_NAME, LintCode.SUBJECT)
        at = _skip(tbs, at, expected.spki, LintCode.PUBLIC_KEY)
        if not tbs.endswith(expected.ski) or len(expected.ski) != SKI_BYTES:
            raise _fail(LintCode.EXTENSIONS, "subject key identifier is not the key's")
        shape = (expected.identity, expected.kind, tbs[at:-SKI_BYTES])
        if shape in self._passed:
            return
        # First certificate of this shape: parse it all. The signature is not read here.
        check_leaf_certificate(assemble(tbs, self._algorithm, b"\x00"), expected)
        if len(self._passed) >= MAX_SHAPES:
            self._passed.clear()
        self._passed.add(shape)

    def check_issued(self, der: bytes, tbs: bytes) -> None:
        """Check that a certificate is the linted TBSCertificate with a signature after it.

        Raises:
            LintError: when it is not.
        """
        start = _header(der, 0, 0x30)
        if _end(der, 0) != len(der) or not der.startswith(tbs + self._algorithm + b"\x03", start):
            raise _fail(LintCode.STRUCTURE, "certificate is not the linted TBSCertificate, signed")


def signature_failed() -> LintError:
    """The authority's own signature does not verify."""
    return _fail(LintCode.SIGNATURE, "the new signature does not verify with the issuer's public key")


def _header(der: bytes, at: int, tag: int) -> int:
    """Offset of the value of the element at `at`."""
    if len(der) < at + 2 or der[at] != tag:
        raise _fail(LintCode.STRUCTURE, f"expected tag {tag:#x} at byte {at}")
    return at + 2 if der[at + 1] < 0x80 else at + 2 + (der[at + 1] & 0x7F)


def _end(der: bytes, at: int) -> int:
    """Offset behind the element at `at`."""
    length = der[at + 1]
    if length < 0x80:
        return at + 2 + length
    value = at + 2 + (length & 0x7F)
    return value + int.from_bytes(der[at + 2 : value], "big")


def _skip(der: bytes, at: int, wanted: bytes, code: LintCode) -> int:
    if not der.startswith(wanted, at):
        raise _fail(code, f"unexpected bytes at {at}")
    return at + len(wanted)
