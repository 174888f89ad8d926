"""SPIFFE bundle documents: the roots of one trust domain as a JWK set.

Source: SPIFFE Trust Domain and Bundle, sections 4 and 5 (rows B-01 to B-05, B-09, B-10). The encoding is
stable: the same bundle gives the same bytes.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, rsa

from mesh.errors import Code, MeshError
from mesh.spiffe import SpiffeIdError, TrustDomain
from mesh.x509.certs import CertError, CertFields, KeyKind, read_certificate
from mesh.x509.verify import SvidError, check_authority

MAX_DOCUMENT_BYTES = 1 << 20
MAX_KEYS = 256
MAX_SEQUENCE = (1 << 63) - 1
DEFAULT_REFRESH_HINT = 300  # seconds; B-07
_MAX_REFRESH_HINT = 30 * 86400
X509_USE = "x509-svid"
JWT_USE = "jwt-svid"
_KNOWN_KTY = ("EC", "RSA")  # a tuple: the value that is looked up may be of any JSON type


class BundleCode(Code):
    """Why a bundle document was refused."""

    TOO_LARGE = "bundle_too_large"
    SYNTAX = "bundle_syntax"
    FIELD = "bundle_field"
    CERTIFICATE = "bundle_certificate"
    STALE = "bundle_stale"
    DUPLICATE = "bundle_duplicate"


class BundleError(MeshError):
    """A document that is not a usable bundle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """The authorities of one trust domain.

    Attributes:
        roots_der: X.509 authorities; empty means that all former ones are revoked (B-04).
        jwt_keys: JWKs of JWT authorities by key ID, as they came.
        sequence: rises with every change; None when the document has none (it is optional).
        refresh_hint: seconds until a reader should ask again; None when absent.
        ignored: entries that were skipped because their `use` or `kty` is not known (B-03).
    """

    trust_domain: TrustDomain
    roots_der: tuple[bytes, ...]
    jwt_keys: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    sequence: int | None = None
    refresh_hint: int | None = DEFAULT_REFRESH_HINT
    ignored: int = 0


def encode_bundle(bundle: Bundle) -> bytes:
    """The document (B-01, B-02).

    Raises:
        BundleError: a root is not a CA certificate with an EC or RSA key.
    """
    keys: list[dict[str, Any]] = []
    for der in bundle.roots_der:
        root = _authority(der)
        x5c = base64.b64encode(der).decode("ascii")
        keys.append({**_jwk(root), "use": X509_USE, "x5c": [x5c]})
    keys += [{**jwk, "kid": kid, "use": JWT_USE} for kid, jwk in sorted(bundle.jwt_keys.items())]
    document: dict[str, Any] = {"keys": keys}
    if bundle.sequence is not None:
        document["spiffe_sequence"] = bundle.sequence
    if bundle.refresh_hint is not None:
        document["spiffe_refresh_hint"] = bundle.refresh_hint
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode("ascii")


def decode_bundle(data: bytes, trust_domain: TrustDomain, *, held_sequence: int | None = None) -> Bundle:
    """Read a document.

    Args:
        data: the JSON text.
        trust_domain: whose bundle it is; the document does not say (B-05).
        held_sequence: sequence of the bundle that is held; an older document is refused (B-09).

    Raises:
        BundleError: not a bundle document, or an older one than the one held.
    """
    bundle = _bundle(_parse(data), trust_domain, "document")
    if held_sequence is not None and bundle.sequence is not None and bundle.sequence < held_sequence:
        raise BundleError(
            BundleCode.STALE,
            f"bundle of {trust_domain}: spiffe_sequence {bundle.sequence} is older than {held_sequence},"
            " which is held and stays",
        )
    return bundle


def decode_bundle_map(data: bytes) -> Mapping[TrustDomain, Bundle]:
    """Read the form that holds several bundles: `{"trust_domains": {name: document}}` (B-10).

    Raises:
        BundleError: not such a document, or a trust domain is named twice.
    """
    document = _parse(data)
    domains = document.get("trust_domains")
    if not isinstance(domains, dict):
        raise BundleError(BundleCode.FIELD, "bundle map: trust_domains must be an object")
    if len(domains) > MAX_KEYS:
        raise BundleError(BundleCode.TOO_LARGE, f"bundle map: more than {MAX_KEYS} trust domains")
    bundles: dict[TrustDomain, Bundle] = {}
    for name, value in domains.items():
        try:
            domain = TrustDomain(name)
        except SpiffeIdError as e:
            raise BundleError(BundleCode.FIELD, f"bundle map: {e.public}") from e
        bundles[domain] = _bundle(value, domain, f"trust_domains.{name}")
    return bundles


def _authority(der: bytes) -> CertFields:
    try:
        root = read_certificate(der)
        check_authority(root)
    except (CertError, SvidError) as e:
        raise BundleError(BundleCode.CERTIFICATE, f"bundle: not a CA certificate: {e.public}") from e
    return root


def _b64(value: int, size: int) -> str:
    return base64.urlsafe_b64encode(value.to_bytes(size, "big")).rstrip(b"=").decode("ascii")


def _jwk(root: CertFields) -> dict[str, str]:
    key = root.certificate.public_key()
    if isinstance(key, ec.EllipticCurvePublicKey) and root.key.kind is not KeyKind.OTHER:
        point, size = key.public_numbers(), (root.key.bits + 7) // 8
        return {"kty": "EC", "crv": root.key.kind.value, "x": _b64(point.x, size), "y": _b64(point.y, size)}
    if isinstance(key, rsa.RSAPublicKey):
        numbers = key.public_numbers()
        return {"kty": "RSA", "n": _b64(numbers.n, root.key.bits // 8), "e": _b64(numbers.e, 3)}
    raise BundleError(
        BundleCode.CERTIFICATE, f"bundle: a root has a key of type {root.key.name}; use an EC or RSA root"
    )


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in pairs:
        if name in result:
            raise BundleError(
                BundleCode.DUPLICATE, f"bundle: the name {name[:80]!r} occurs twice in one object"
            )
        result[name] = value
    return result


def _parse(data: bytes) -> dict[str, Any]:
    if len(data) > MAX_DOCUMENT_BYTES:
        raise BundleError(
            BundleCode.TOO_LARGE, f"bundle has {len(data)} bytes; allowed are {MAX_DOCUMENT_BYTES}"
        )
    try:
        document = json.loads(data, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as e:
        raise BundleError(BundleCode.SYNTAX, f"bundle is not JSON: {str(e)[:100]}") from e
    if not isinstance(document, dict):
        raise BundleError(BundleCode.SYNTAX, "bundle: the document must be a JSON object")
    return document


def _number(document: Mapping[str, Any], name: str, limit: int, where: str) -> int | None:
    value = document.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= limit:
        raise BundleError(BundleCode.FIELD, f"bundle: {where}.{name} must be an integer from 0 to {limit}")
    return value


def _bundle(document: object, trust_domain: TrustDomain, where: str) -> Bundle:
    if not isinstance(document, dict) or not isinstance(document.get("keys"), list):
        raise BundleError(
            BundleCode.FIELD, f"bundle: {where}.keys must be a list (an empty one revokes all keys)"
        )
    entries = document["keys"]
    if len(entries) > MAX_KEYS:
        raise BundleError(BundleCode.TOO_LARGE, f"bundle: {where}.keys has more than {MAX_KEYS} entries")
    roots: list[bytes] = []
    jwt_keys: dict[str, Mapping[str, Any]] = {}
    ignored = 0
    for i, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise BundleError(BundleCode.FIELD, f"bundle: {where}.keys[{i}] must be an object")
        use = entry.get("use") if entry.get("kty") in _KNOWN_KTY else None
        if use == X509_USE and (der := _x5c(entry, f"{where}.keys[{i}]")) is not None:
            roots += [] if der in roots else [der]
        elif use == JWT_USE and isinstance(entry.get("kid"), str) and entry["kid"]:
            if entry["kid"] in jwt_keys:
                raise BundleError(BundleCode.DUPLICATE, f"bundle: {where}.keys[{i}].kid is not unique")
            jwt_keys[entry["kid"]] = entry
        else:
            ignored += 1
    return Bundle(
        trust_domain=trust_domain,
        roots_der=tuple(roots),
        jwt_keys=jwt_keys,
        sequence=_number(document, "spiffe_sequence", MAX_SEQUENCE, where),
        refresh_hint=_number(document, "spiffe_refresh_hint", _MAX_REFRESH_HINT, where),
        ignored=ignored,
    )


def _x5c(entry: Mapping[str, Any], where: str) -> bytes | None:
    """The first certificate; further ones are ignored, and so is an entry without one (B-02)."""
    x5c = entry.get("x5c")
    if x5c is None or x5c == []:
        return None
    if not isinstance(x5c, list) or not isinstance(x5c[0], str):
        raise BundleError(BundleCode.FIELD, f"bundle: {where}.x5c must be a list of base64 texts")
    try:
        der = base64.b64decode(x5c[0], validate=True)
    except (binascii.Error, ValueError) as e:
        raise BundleError(BundleCode.FIELD, f"bundle: {where}.x5c[0] is not base64") from e
    return _authority(der).der
