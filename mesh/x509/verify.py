"""Validation of X.509-SVIDs: RFC 5280 paths plus the rules of SPIFFE (rows X-01 to X-34).

Path building and signatures are the library's. In front of it stand the rules that it does not know
(one URI SAN, trust domains, no signing certificate as a leaf) and the refusals that deserve a code of
their own.

Key identifiers are not demanded of authorities, because roots and intermediates that people make with
openssl often have none and Envoy takes them; the names and the signatures decide.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import verification as path

from mesh.errors import Category, Code, MeshError
from mesh.spiffe import SpiffeId, SpiffeIdError, TrustDomain
from mesh.x509.certs import CLIENT_AUTH, SERVER_AUTH, CertError, CertFields, read_certificate

MAX_CHAIN = 8
MAX_ROOTS = 64


class SvidCode(Code):
    """Why a chain is not a valid SVID of the bundle."""

    CHAIN_LENGTH = "svid_chain_length"
    MALFORMED = "svid_malformed"
    URI_SAN = "svid_uri_san"
    SPIFFE_ID = "svid_spiffe_id"
    NO_PATH = "svid_no_path"
    TRUST_DOMAIN = "svid_trust_domain"
    UNEXPECTED_ID = "svid_unexpected_id"
    SAN_NOT_CRITICAL = "svid_san_not_critical"
    CA_LEAF = "svid_ca_leaf"
    KEY_USAGE = "svid_key_usage"
    EXTENDED_KEY_USAGE = "svid_extended_key_usage"
    CRITICAL_EXTENSION = "svid_critical_extension"
    NOT_YET_VALID = "svid_not_yet_valid"
    EXPIRED = "svid_expired"
    PUBLIC_KEY = "svid_public_key"
    SIGNING_CERT = "svid_signing_cert"
    NO_ROOTS = "svid_no_roots"
    UNTRUSTED = "svid_untrusted"


class SvidError(MeshError):
    """A chain that does not prove an identity."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedSvid:
    """A chain that was verified.

    Attributes:
        path_der: the path that was found, leaf first, anchor last.
        path_not_after: the earliest end in the path: from then on the chain verifies no more.
    """

    spiffe_id: SpiffeId
    leaf: CertFields = field(repr=False)
    path_der: tuple[bytes, ...] = field(repr=False)
    path_not_after: dt.datetime

    @property
    def serial(self) -> str:
        """Serial number of the leaf, lower-case hexadecimal."""
        return self.leaf.serial


def verify_svid(
    chain_der: Sequence[bytes],
    roots_der: Iterable[bytes],
    now: dt.datetime,
    *,
    trust_domain: TrustDomain,
    expected_id: SpiffeId | None = None,
    public_key: bytes | None = None,
) -> VerifiedSvid:
    """Verify a chain with the bundle of one trust domain.

    Args:
        chain_der: leaf first, then intermediates in any order (X-12).
        roots_der: the bundle of `trust_domain`; no other bundle may anchor its IDs (X-31).
        now: timezone-aware.
        trust_domain: whose bundle it is; an ID of another one is refused.
        expected_id: when given, the only ID that is accepted.
        public_key: when given, the DER SubjectPublicKeyInfo that the leaf must hold.

    Raises:
        SvidError: category UNAUTHENTICATED, with one code per rule.
    """
    leaf = _leaf(chain_der)
    return _verify(
        leaf, chain_der[1:], {trust_domain: roots_der}, now, expected_id=expected_id, public_key=public_key
    )


def verify_svid_with_bundles(
    chain_der: Sequence[bytes],
    bundles: Mapping[TrustDomain, Iterable[bytes]],
    now: dt.datetime,
    *,
    expected_id: SpiffeId | None = None,
) -> VerifiedSvid:
    """Verify a chain with the bundle that its own trust domain selects (X-31).

    Raises:
        SvidError: as `verify_svid`; an ID of a trust domain without a bundle is refused.
    """
    return _verify(_leaf(chain_der), chain_der[1:], bundles, now, expected_id=expected_id, public_key=None)


def check_leaf(leaf: CertFields) -> SpiffeId:
    """The rules that a leaf must keep whoever signed it; no time, no signature.

    Raises:
        SvidError: rows X-01, X-02, X-04 to X-08, X-10, X-11, X-24, X-32, X-33.
    """
    if leaf.ca:
        raise _refuse(SvidCode.CA_LEAF, "the leaf is a CA certificate (basicConstraints cA)")
    _check_usages(leaf)
    if len(leaf.uris) != 1:
        raise _refuse(SvidCode.URI_SAN, f"the leaf has {len(leaf.uris)} URI SANs; exactly one is allowed")
    if leaf.subject_empty and not leaf.san_critical:
        raise _refuse(SvidCode.SAN_NOT_CRITICAL, "the leaf's subject is empty and its SAN is not critical")
    try:
        spiffe_id = SpiffeId.parse(leaf.uris[0])
    except SpiffeIdError as e:
        raise _refuse(SvidCode.SPIFFE_ID, f"the leaf's URI SAN: {e.public}") from e
    if spiffe_id.is_trust_domain:
        raise _refuse(SvidCode.NO_PATH, f"the leaf's SPIFFE ID {spiffe_id} has no path")
    return spiffe_id


def _check_usages(leaf: CertFields) -> None:
    usage = leaf.key_usage
    if usage is None or not leaf.key_usage_critical:
        raise _refuse(SvidCode.KEY_USAGE, "the leaf has no critical keyUsage")
    if usage.key_cert_sign or usage.crl_sign:
        raise _refuse(SvidCode.CA_LEAF, "the leaf has keyCertSign or cRLSign")
    if not usage.digital_signature:
        raise _refuse(SvidCode.KEY_USAGE, "the leaf's keyUsage lacks digitalSignature")
    if leaf.eku is not None and not {SERVER_AUTH, CLIENT_AUTH} <= leaf.eku:
        raise _refuse(
            SvidCode.EXTENDED_KEY_USAGE, "the leaf's extendedKeyUsage must hold serverAuth and clientAuth"
        )
    if leaf.unknown_critical:
        raise _refuse(
            SvidCode.CRITICAL_EXTENSION,
            f"the leaf has the unknown critical extension {leaf.unknown_critical[0]}",
        )


def check_authority(ca: CertFields) -> None:
    """The rules for a certificate that signs SVIDs or other authorities.

    Raises:
        SvidError: rows X-20, X-23: not a CA, no keyCertSign, or a SPIFFE ID with a path.
    """
    if not ca.ca:
        raise _refuse(SvidCode.SIGNING_CERT, "a signing certificate is not a CA (basicConstraints cA)")
    if ca.key_usage is None or not ca.key_usage.key_cert_sign:
        raise _refuse(SvidCode.SIGNING_CERT, "a signing certificate lacks keyCertSign")
    spiffe_id = ca.spiffe_id()
    if spiffe_id is not None and not spiffe_id.is_trust_domain:
        raise _refuse(
            SvidCode.SIGNING_CERT, f"a signing certificate has the SPIFFE ID {spiffe_id}, which has a path"
        )


def _refuse(code: SvidCode, message: str) -> SvidError:
    return SvidError(code, f"X.509-SVID refused: {message}", category=Category.UNAUTHENTICATED)


def _read(der: bytes, what: str) -> CertFields:
    try:
        return read_certificate(der)
    except CertError as e:
        raise _refuse(SvidCode.MALFORMED, f"{what}: {e.public}") from e


def _leaf(chain_der: Sequence[bytes]) -> CertFields:
    if not 1 <= len(chain_der) <= MAX_CHAIN:
        raise _refuse(
            SvidCode.CHAIN_LENGTH,
            f"the chain has {len(chain_der)} certificates; allowed are 1 to {MAX_CHAIN}",
        )
    return _read(chain_der[0], "leaf")


def _verify(
    leaf: CertFields,
    intermediates_der: Sequence[bytes],
    bundles: Mapping[TrustDomain, Iterable[bytes]],
    now: dt.datetime,
    *,
    expected_id: SpiffeId | None,
    public_key: bytes | None,
) -> VerifiedSvid:
    spiffe_id = check_leaf(leaf)
    if spiffe_id.trust_domain not in bundles:
        raise _refuse(
            SvidCode.TRUST_DOMAIN,
            f"{spiffe_id} is of a trust domain without a bundle; known is {', '.join(map(str, bundles))}",
        )
    if expected_id is not None and spiffe_id != expected_id:
        raise _refuse(SvidCode.UNEXPECTED_ID, f"the leaf is for {spiffe_id}, expected was {expected_id}")
    if public_key is not None and leaf.spki != public_key:
        raise _refuse(SvidCode.PUBLIC_KEY, "the leaf holds another public key than expected")
    _check_times(leaf, now)
    intermediates = [_read(der, "intermediate") for der in intermediates_der]
    for ca in intermediates:
        check_authority(ca)
    roots = tuple(bundles[spiffe_id.trust_domain])
    if not 1 <= len(roots) <= MAX_ROOTS:
        raise _refuse(SvidCode.NO_ROOTS, f"the bundle of {spiffe_id.trust_domain} has {len(roots)} roots")
    return _path(spiffe_id, leaf, intermediates, roots, now)


def _check_times(leaf: CertFields, now: dt.datetime) -> None:
    if now < leaf.not_before:
        raise _refuse(
            SvidCode.NOT_YET_VALID,
            f"the leaf starts at {leaf.not_before.isoformat()}, it is {now.isoformat()}; check the clocks",
        )
    if now > leaf.not_after:
        raise _refuse(
            SvidCode.EXPIRED, f"the leaf expired at {leaf.not_after.isoformat()}, it is {now.isoformat()}"
        )


def _policies() -> tuple[path.ExtensionPolicy, path.ExtensionPolicy]:
    """Extension rules for authorities and leaves; what SPIFFE adds is checked before."""
    agnostic = path.Criticality.AGNOSTIC
    ca = (
        path.ExtensionPolicy.permit_all()
        .require_present(x509.BasicConstraints, agnostic, None)
        .require_present(x509.KeyUsage, agnostic, None)
    )
    return ca, path.ExtensionPolicy.permit_all()


@lru_cache(maxsize=64)
def _store(roots: tuple[bytes, ...]) -> path.Store:
    anchors = [_read(der, "bundle") for der in roots]
    for anchor in anchors:
        check_authority(anchor)
    return path.Store([a.certificate for a in anchors])


def _path(
    spiffe_id: SpiffeId,
    leaf: CertFields,
    intermediates: Sequence[CertFields],
    roots: tuple[bytes, ...],
    now: dt.datetime,
) -> VerifiedSvid:
    ca_policy, leaf_policy = _policies()
    verifier = (
        path.PolicyBuilder()
        .store(_store(roots))
        .time(now.astimezone(dt.UTC).replace(tzinfo=None))
        .max_chain_depth(MAX_CHAIN)
        .extension_policies(ca_policy=ca_policy, ee_policy=leaf_policy)
        .build_client_verifier()
    )
    try:
        found = verifier.verify(leaf.certificate, [i.certificate for i in intermediates]).chain
    except (path.VerificationError, ValueError) as e:
        raise SvidError(
            SvidCode.UNTRUSTED,
            f"X.509-SVID refused: no valid path from {spiffe_id} to a root of {spiffe_id.trust_domain}",
            category=Category.UNAUTHENTICATED,
            private=f"{spiffe_id}: {str(e)[:300]}",
        ) from e
    fields = [_read(c.public_bytes(Encoding.DER), "path") for c in found]
    return VerifiedSvid(
        spiffe_id=spiffe_id,
        leaf=leaf,
        path_der=tuple(f.der for f in fields),
        path_not_after=min(f.not_after for f in fields),
    )
