"""What a CA reply must satisfy before the agent uses it (F-58).

The reply of `CreateCertificate` is a list of PEM texts: the leaf, then intermediates, last the whole
root bundle (b.1). The agent asked with a fresh key for one identity; it takes nothing else, so that a
broken or captured authority cannot hand a workload another name, another key or its own roots.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from mesh.errors import Category, Code, MeshError
from mesh.spiffe import SpiffeId
from mesh.x509.certs import CertError, CertFields, read_certificate
from mesh.x509.pem import PemError, decode_certificates
from mesh.x509.verify import MAX_ROOTS, SvidError, VerifiedSvid, check_authority, verify_svid
from nodeagent.core.snapshot import IdentitySnapshot, Svid, TrustBundle

MAX_ELEMENTS: Final = 10
MAX_REPLY_CHARS: Final = 256 * 1024
MAX_SKEW: Final = dt.timedelta(minutes=5)
"""How far NotBefore may lie after the authority's own time before the reply counts as forged."""


class ReplyCode(Code):
    """Why a reply was refused, beside the codes of `mesh.x509.verify.SvidCode`."""

    SHORT_CHAIN = "reply_short_chain"
    TOO_LARGE = "reply_too_large"
    MALFORMED = "reply_malformed"
    ROOTS = "reply_roots"
    UNKNOWN_ROOT = "reply_unknown_root"
    FORMER_ROOT = "reply_former_root"
    NOT_YET_VALID = "reply_not_yet_valid"


class ReplyError(MeshError):
    """A reply that the agent does not use; what it had before stays in force.

    `code` is a `ReplyCode`, or the `SvidCode` of the rule that the chain breaks.
    """

    def __init__(self, code: Code, public: str, *, private: str | None = None) -> None:
        # INTERNAL: the authority is at fault; asking again may meet a healthy replica.
        super().__init__(code, public, category=Category.INTERNAL, private=private)


@dataclass(frozen=True, slots=True)
class KeyPair:
    """The key that the request was made with.

    Attributes:
        pkcs8: unencrypted PKCS#8 DER; in memory only.
        spki: DER SubjectPublicKeyInfo of the public half.
    """

    pkcs8: bytes = field(repr=False)
    spki: bytes = field(repr=False)


def check_reply(
    cert_chain: Sequence[str],
    *,
    expected_id: SpiffeId,
    key: KeyPair,
    trusted: Iterable[bytes],
    now: dt.datetime,
    server_time: dt.datetime | None = None,
    epoch: int = 0,
) -> IdentitySnapshot:
    """Turn a reply into an identity, or refuse it.

    A bundle with new roots is taken only when it hangs together with what is trusted already: it
    still contains a trusted root (the same certificate, or the same name and key signed anew), or the
    chain leads to a trusted root by a cross-signed certificate.

    Args:
        cert_chain: as received.
        expected_id: the identity that was asked for.
        key: the key of the request.
        trusted: DER roots that the connection was verified with, and roots accepted before.
        now: the agent's time, aware.
        server_time: the authority's time when it sent one. A certificate of the future is not
            fatal as such, since our clock may be the wrong one (d.4): it is compared with this.
        epoch: of the root that signed, as the authority says.

    Raises:
        ReplyError: with one code per rule.
    """
    chain, roots = _decode(cert_chain)
    leaf = _read(chain[0], "the first certificate")
    # The leaf's own span decides between a wrong clock of ours and a wrong certificate.
    if leaf.not_before > (server_time or now) + MAX_SKEW:
        raise ReplyError(
            ReplyCode.NOT_YET_VALID,
            f"the certificate is valid from {leaf.not_before.isoformat()}, more than"
            f" {MAX_SKEW.total_seconds():.0f} s after the authority's time; compare the clocks",
        )
    at = max(now, leaf.not_before)
    verified = _verify(chain, roots, at, expected_id, key)
    if not _continues(chain, roots, tuple(trusted), at, expected_id):
        raise ReplyError(ReplyCode.UNKNOWN_ROOT, _UNKNOWN_ROOT)
    anchors = frozenset(roots)
    return IdentitySnapshot(
        svid=Svid(
            spiffe_id=verified.spiffe_id,
            chain_der=tuple(der for der in chain if der not in anchors),
            key_pkcs8=key.pkcs8,
            serial=verified.serial,
            not_before=leaf.not_before,
            not_after=min(leaf.not_after, verified.path_not_after),
            epoch=epoch,
        ),
        bundle=TrustBundle(trust_domain=expected_id.trust_domain, roots_der=roots),
    )


def check_roots(roots_pem: Sequence[str], *, trusted: Iterable[bytes]) -> tuple[bytes, ...]:
    """Roots that the authority tells without a certificate, as DER, or a refusal.

    As with the roots of a reply, at least one must be trusted already (the same name and key).

    Args:
        roots_pem: as received, one certificate each.
        trusted: DER roots that the connection was verified with, and roots accepted before.

    Raises:
        ReplyError: with one code per rule.
    """
    if not roots_pem:
        raise ReplyError(ReplyCode.ROOTS, "the authority tells no roots; a bundle has at least one")
    if len(roots_pem) > MAX_ROOTS or sum(map(len, roots_pem)) > MAX_REPLY_CHARS:
        raise ReplyError(
            ReplyCode.TOO_LARGE, f"the authority tells {len(roots_pem)} roots; allowed are {MAX_ROOTS}"
        )
    roots = _decode_roots("".join(roots_pem))
    if not _shares_root(roots, trusted):
        raise ReplyError(ReplyCode.UNKNOWN_ROOT, _UNKNOWN_ROOT)
    return roots


def check_under(svid: Svid, roots: Sequence[bytes], now: dt.datetime) -> None:
    """Refuse a certificate that the bundle of a later generation no longer vouches for.

    Raises:
        ReplyError: peers that have that bundle would refuse it.
    """
    try:
        verify_svid(
            svid.chain_der, roots, max(now, svid.not_before), trust_domain=svid.spiffe_id.trust_domain
        )
    except SvidError as error:
        raise ReplyError(
            ReplyCode.FORMER_ROOT,
            "the certificate leads to a root that a later bundle has left out: the replica that signed it is"
            " behind; if the authority was restored from a backup, restart this agent",
            private=error.private,
        ) from error


_UNKNOWN_ROOT: Final = (
    "the reply's roots have nothing in common with the roots that are trusted; if the authority"
    " was replaced, put its new root into the agent's CA root file"
)


def _decode(cert_chain: Sequence[str]) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
    if len(cert_chain) <= 1:
        raise ReplyError(
            ReplyCode.SHORT_CHAIN,
            f"the reply has {len(cert_chain)} elements; at least a leaf and the root bundle are needed",
        )
    if len(cert_chain) > MAX_ELEMENTS or sum(map(len, cert_chain)) > MAX_REPLY_CHARS:
        raise ReplyError(
            ReplyCode.TOO_LARGE,
            f"the reply has {len(cert_chain)} elements of {sum(map(len, cert_chain))} characters; allowed"
            f" are {MAX_ELEMENTS} and {MAX_REPLY_CHARS}",
        )
    try:
        chain = [der for element in cert_chain[:-1] for der in decode_certificates(element)]
    except PemError as error:
        raise _not_pem(error) from error
    return tuple(chain), _decode_roots(cert_chain[-1])


def _not_pem(error: PemError) -> ReplyError:
    return ReplyError(ReplyCode.MALFORMED, f"the reply is not PEM: {error.public}")


def _decode_roots(text: str) -> tuple[bytes, ...]:
    try:
        roots = tuple(dict.fromkeys(decode_certificates(text)))
    except PemError as error:
        raise _not_pem(error) from error
    if len(roots) > MAX_ROOTS:
        raise ReplyError(ReplyCode.ROOTS, f"the reply has {len(roots)} roots; allowed are {MAX_ROOTS}")
    for der in roots:
        try:
            check_authority(_read(der, "a root"))
        except SvidError as error:
            raise ReplyError(ReplyCode.ROOTS, f"a root of the reply: {error.public}") from error
    return roots


def _read(der: bytes, what: str) -> CertFields:
    try:
        return read_certificate(der)
    except CertError as error:
        raise ReplyError(ReplyCode.MALFORMED, f"{what} of the reply: {error.public}") from error


def _verify(
    chain: Sequence[bytes], roots: Sequence[bytes], at: dt.datetime, expected_id: SpiffeId, key: KeyPair
) -> VerifiedSvid:
    try:
        return verify_svid(
            chain,
            roots,
            at,
            trust_domain=expected_id.trust_domain,
            expected_id=expected_id,
            public_key=key.spki,
        )
    except SvidError as error:
        raise ReplyError(error.code, error.public, private=error.private) from error


def _continues(
    chain: Sequence[bytes],
    roots: Sequence[bytes],
    trusted: tuple[bytes, ...],
    at: dt.datetime,
    expected_id: SpiffeId,
) -> bool:
    if _shares_root(roots, trusted):
        return True
    if not trusted:
        return False
    try:
        verify_svid(chain, trusted, at, trust_domain=expected_id.trust_domain)
    except SvidError:
        return False  # an answer, not a failure: the caller refuses
    return True


def _shares_root(roots: Iterable[bytes], trusted: Iterable[bytes]) -> bool:
    known = {(fields.subject, fields.spki) for fields in (_read(der, "a trusted root") for der in trusted)}
    return any((fields.subject, fields.spki) in known for fields in (_read(der, "a root") for der in roots))
