"""The X-rows as code: every certificate passes here before it leaves the authority.

Two layers. `check_leaf_certificate` parses a whole certificate and compares each field with what was
asked for. `Linter` does the same for every certificate at a tenth of the price: it takes the DER apart,
compares the fields that differ between certificates, and compares the rest with bytes for which
`check_leaf_certificate` has passed. The same bytes get the same verdict, so comparing is enough.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import NamedTuple

from cryptography import x509

from ca.core.csr import ProvenKey
from ca.core.template import EMPTY_NAME, VERSION_3, Shape, assemble, validity
from mesh.errors import Category, Code, MeshError
from mesh.spiffe import SpiffeId
from mesh.x509.certs import CLIENT_AUTH, SERVER_AUTH, CertError, CertFields, KeyKind, read_certificate
from mesh.x509.verify import SvidError, check_leaf

MAX_SERIAL_BITS = 159
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


class LeafSpec(NamedTuple):
    """What one leaf must say, beside what its issuer and its identity decide.

    Attributes:
        not_before: UTC, whole seconds; so is `not_after`.
    """

    identity: SpiffeId
    key: ProvenKey
    serial_number: int
    not_before: dt.datetime
    not_after: dt.datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuerFacts:
    """What every leaf of an issuer must say.

    Attributes:
        name: DER of the issuer's subject.
        ski: its subject key identifier.
        algorithm: DER AlgorithmIdentifier of its signatures.
        not_after: no leaf outlives it (X-13).
    """

    name: bytes
    ski: bytes
    algorithm: bytes
    not_after: dt.datetime


def _fail(code: LintCode, message: str) -> LintError:
    return LintError(
        code,
        "the authority made a certificate that breaks its own rules; nothing was issued, report this",
        category=Category.INTERNAL,
        private=f"lint: {message}",
    )


def check_leaf_certificate(der: bytes, spec: LeafSpec, issuer: IssuerFacts) -> CertFields:
    """Parse a leaf and compare every field (X-01 to X-16).

    Raises:
        LintError: with the first field that differs.
    """
    try:
        leaf = read_certificate(der)
        found = check_leaf(leaf)
    except (CertError, SvidError) as e:
        raise _fail(LintCode.STRUCTURE, e.private) from e
    _check_numbers(spec, issuer)
    dns = _dns_names(leaf) if leaf.other_sans else ()
    names = (found, leaf.uris, dns, leaf.other_sans)
    if names != (spec.identity, (str(spec.identity),), spec.key.dns, len(spec.key.dns)):
        raise _fail(
            LintCode.IDENTITY,
            f"leaf is for {leaf.uris}, {dns} and {leaf.other_sans} names beside the URI; asked was"
            f" {spec.identity} with {spec.key.dns}",
        )
    if leaf.serial_number != spec.serial_number:
        raise _fail(LintCode.SERIAL, "serial differs from the one drawn")
    if (leaf.not_before, leaf.not_after) != (spec.not_before, spec.not_after):
        raise _fail(LintCode.VALIDITY, f"validity {leaf.not_before} to {leaf.not_after} was not asked for")
    if not leaf.subject_empty:
        raise _fail(LintCode.SUBJECT, "subject is not empty")
    if leaf.issuer != issuer.name:
        raise _fail(LintCode.ISSUER, "issuer is not the signing certificate's subject")
    if leaf.spki != spec.key.spki_der:
        raise _fail(LintCode.PUBLIC_KEY, "public key is not the one that was proved")
    _check_extensions(leaf, spec.key, issuer)
    return leaf


def _dns_names(leaf: CertFields) -> tuple[str, ...]:
    """DNS names in their order; a name of any other kind makes the count differ."""
    san = leaf.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return tuple(san.get_values_for_type(x509.DNSName))


def _check_numbers(spec: LeafSpec, issuer: IssuerFacts) -> None:
    """Serial number and times, whatever their encoding (X-13, X-14)."""
    if spec.serial_number <= 0 or spec.serial_number.bit_length() > MAX_SERIAL_BITS:
        raise _fail(LintCode.SERIAL, f"serial must be positive with at most {MAX_SERIAL_BITS} bits")
    if not spec.not_before < spec.not_after <= issuer.not_after:
        raise _fail(
            LintCode.VALIDITY,
            f"validity {spec.not_before} to {spec.not_after}, issuer ends {issuer.not_after}",
        )


def _check_extensions(leaf: CertFields, key: ProvenKey, issuer: IssuerFacts) -> None:
    usage = leaf.key_usage
    good = (
        leaf.ca is False
        and leaf.ca_critical
        and leaf.san_critical
        and leaf.eku == _EKU
        and leaf.ski == key.key_id
        and leaf.aki == issuer.ski
        and usage is not None
        and usage.key_encipherment is (key.kind is KeyKind.RSA)
        and not (usage.content_commitment or usage.data_encipherment or usage.key_agreement)
    )
    if not good:
        raise _fail(LintCode.EXTENSIONS, "an extension has another value than the profile's")


class Linter:
    """Lints the leaves of one issuer."""

    __slots__ = ("_after_serial", "_issuer", "_signature_head")

    def __init__(self, issuer: IssuerFacts) -> None:
        self._issuer = issuer
        self._after_serial = issuer.algorithm + issuer.name
        self._signature_head = issuer.algorithm + b"\x03"

    def check_tbs(self, tbs: bytes, spec: LeafSpec, shape: Shape) -> None:
        """Check what is about to be signed.

        Args:
            tbs: TBSCertificate.
            spec: what it must say.
            shape: what its extensions must be. The first certificate of a shape is parsed and checked
                in full; from then on the same bytes are known to be right.

        Raises:
            LintError: with the first field that differs.
        """
        _check_numbers(spec, self._issuer)
        key = spec.key
        start, end = _element(tbs, 0, 0x30)
        if not tbs.startswith(VERSION_3, start) or end != len(tbs):
            raise _fail(LintCode.STRUCTURE, "TBSCertificate is not one sequence of version 3")
        serial, at = _element(tbs, start + len(VERSION_3), 0x02)
        if int.from_bytes(tbs[serial:at], "big", signed=True) != spec.serial_number:
            raise _fail(LintCode.SERIAL, "serial differs from the one drawn")
        rest = (
            self._after_serial,
            validity(spec.not_before, spec.not_after),
            EMPTY_NAME,
            key.spki_der,
            shape.extensions,
            key.key_id,
        )
        if tbs[at:] != b"".join(rest):
            raise _first_difference(tbs, at, rest)
        if shape.kind is not key.kind or (
            shape.identity is not spec.identity and shape.identity != spec.identity
        ):
            raise _fail(LintCode.IDENTITY, "extensions are those of another identity or key kind")
        if shape.dns != key.dns:
            raise _fail(LintCode.IDENTITY, "extensions have other DNS names than were granted")
        if not shape.linted:  # the signature is not read here
            check_leaf_certificate(assemble(tbs, self._issuer.algorithm, b"\x00"), spec, self._issuer)
            shape.linted = True

    def check_issued(self, der: bytes, tbs: bytes) -> None:
        """Check that a certificate is the linted TBSCertificate with a signature after it.

        Raises:
            LintError: when it is not.
        """
        start, end = _element(der, 0, 0x30)
        if end != len(der) or not der.startswith(tbs + self._signature_head, start):
            raise _fail(LintCode.STRUCTURE, "certificate is not the linted TBSCertificate, signed")


def signature_failed() -> LintError:
    """The authority's own signature does not verify."""
    return _fail(LintCode.SIGNATURE, "the new signature does not verify with the issuer's public key")


def _element(der: bytes, at: int, tag: int) -> tuple[int, int]:
    """Where the value of the element at `at` starts, and where it ends."""
    if len(der) < at + 2 or der[at] != tag:
        raise _fail(LintCode.STRUCTURE, f"expected tag {tag:#x} at byte {at}")
    length = der[at + 1]
    value = at + 2
    if length < 0x80:
        return value, value + length
    value += length & 0x7F
    return value, value + int.from_bytes(der[at + 2 : value], "big")


def _first_difference(tbs: bytes, at: int, rest: tuple[bytes, ...]) -> LintError:
    """Name the field that differs; the last one when bytes follow."""
    fields = (
        (LintCode.ISSUER, "signature algorithm or issuer"),
        (LintCode.VALIDITY, "validity"),
        (LintCode.SUBJECT, "subject"),
        (LintCode.PUBLIC_KEY, "public key"),
        (LintCode.EXTENSIONS, "extensions"),
        (LintCode.EXTENSIONS, "subject key identifier"),
    )
    for (code, name), wanted in zip(fields, rest, strict=True):
        if not tbs.startswith(wanted, at):
            return _fail(code, f"{name}: unexpected bytes at {at}")
        at += len(wanted)
    return _fail(LintCode.STRUCTURE, f"{len(tbs) - at} bytes follow the extensions")
