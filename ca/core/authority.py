"""Issuing: prepare, lint, sign, self-check.

`Authority.prepare` turns a proven key and an authenticated identity into a linted TBSCertificate;
`Authority.sign` signs it once and checks the result before the bytes leave. There is no way to a
signature that goes round the linter.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from ca.core import lint
from ca.core.csr import ProvenKey
from ca.core.profile import Profile, SelfCheck
from ca.core.signer import Signer
from ca.core.template import LeafTemplate, Shape, assemble
from mesh.errors import Category, Code, MeshError
from mesh.spiffe import SpiffeId, SpiffeIdError, TrustDomain
from mesh.x509 import pem
from mesh.x509.certs import CertFields, KeyKind, key_identifier, public_key_bits, spki_der
from mesh.x509.verify import SvidError, check_authority, verify_svid

MAX_SHAPES = 4096  # identities whose encoded extensions are kept


class IssueCode(Code):
    """Why no certificate was issued."""

    ISSUER_INVALID = "issuer_invalid"
    ISSUER_EXPIRING = "issuer_expiring"
    ISSUER_NOT_YET_VALID = "issuer_not_yet_valid"
    IDENTITY = "issue_identity"
    CA_KEY = "csr_ca_key"
    PREPARED_USED = "prepared_used"
    PREPARED_FOREIGN = "prepared_foreign"


class IssueError(MeshError):
    """A certificate that cannot be issued."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Issuer:
    """A signing certificate, its key and its way to the roots.

    Attributes:
        certificate: of the key that signs leaves.
        signer: the key.
        chain: what a client must send after its leaf: `certificate` and further intermediates; without
            the root. Empty when the root itself signs.
        roots: DER of the roots of the trust domain; what clients trust.
        generation: of `roots`, and `epoch`: of the root that signs. Both rise with a rotation
            (docs/adr/0014); 0 when nobody counts, as for a plugged-in CA.
        cross: the certificate of `chain` that leads to a former root; whoever trusts the present one can do
            without.
        not_after: the earliest end among `certificate` and `chain`, beside `cross`.

    Raises:
        IssueError: the certificate cannot sign leaves, or is not the key's.
    """

    trust_domain: TrustDomain
    certificate: CertFields
    signer: Signer
    chain: tuple[CertFields, ...]
    roots: tuple[bytes, ...]
    generation: int = 0
    epoch: int = 0
    cross: CertFields | None = None
    not_after: dt.datetime = field(init=False)
    ski: bytes = field(init=False)
    keys: frozenset[bytes] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        try:
            check_authority(self.certificate)
        except SvidError as e:
            raise self._invalid(e.private) from e
        if spki_der(self.signer.public_key) != self.certificate.spki:
            raise self._invalid("the key is not the one in the certificate")
        if not self.roots:
            raise self._invalid("there is no root")
        # Without an identifier of its own (openssl makes such), the leaf's AKI comes from the key.
        ski = self.certificate.ski or key_identifier(public_key_bits(self.signer.public_key))
        own = (self.certificate, *self.chain)
        needed = (c for c in own if self.cross is None or c.der != self.cross.der)
        object.__setattr__(self, "not_after", min(c.not_after for c in needed))
        object.__setattr__(self, "ski", ski)
        roots = frozenset(_spki(der) for der in self.roots)
        object.__setattr__(self, "keys", roots | {c.spki for c in own})

    @staticmethod
    def _invalid(reason: str) -> IssueError:
        return IssueError(
            IssueCode.ISSUER_INVALID,
            f"signing certificate: {reason}; replace the CA files",
            category=Category.FAILED_PRECONDITION,
        )


def _start(der: bytes) -> dt.datetime:
    return x509.load_der_x509_certificate(der).not_valid_before_utc


def _spki(der: bytes) -> bytes:
    return spki_der(x509.load_der_x509_certificate(der).public_key())


class PreparedCert(NamedTuple):
    """A linted TBSCertificate that can be signed once, by the authority that made it.

    Attributes:
        ticket: taken by the one call that signs.
    """

    tbs: bytes
    spec: lint.LeafSpec
    issuer: Issuer
    ticket: list[None]


class IssuedSvid(NamedTuple):
    """What the caller gets.

    Attributes:
        intermediates_pem: one certificate each, in sending order after the leaf; without the root.
        roots_pem: one certificate each: the bundle of the trust domain.
        serial: lower-case hexadecimal.
    """

    leaf_der: bytes
    leaf_pem: str
    intermediates_pem: tuple[str, ...]
    roots_pem: tuple[str, ...]
    serial: str
    not_before: dt.datetime
    not_after: dt.datetime
    spiffe_id: SpiffeId


class _Window(NamedTuple):
    """The validity of all leaves of one lifetime that are asked for from `start` to before `end`."""

    start: dt.datetime
    end: dt.datetime
    lifetime: dt.timedelta
    not_before: dt.datetime
    not_after: dt.datetime


class Authority:
    """Issues the leaves of one issuer under one profile. Make a new one when either changes.

    Making an authority issues and verifies a probe certificate, whatever `Profile.self_check` says:
    a key or a chain that does not work is found before the first request.

    Args:
        serial_number: source of serial numbers: positive, at most 159 bits, from a CSPRNG (X-14).

    Raises:
        IssueError, LintError: the issuer cannot issue a leaf that verifies.
    """

    __slots__ = (
        "_always",
        "_intermediates_pem",
        "_linter",
        "_roots_pem",
        "_serial_number",
        "_shape",
        "_template",
        "_window",
        "issuer",
        "profile",
    )

    def __init__(
        self,
        issuer: Issuer,
        profile: Profile,
        *,
        serial_number: Callable[[], int] = x509.random_serial_number,
    ) -> None:
        self.issuer = issuer
        self.profile = profile
        self._serial_number = serial_number
        self._always = profile.self_check is SelfCheck.ALWAYS
        algorithm, name = issuer.signer.algorithm, issuer.certificate.subject
        self._template = LeafTemplate(issuer_name=name, issuer_ski=issuer.ski, signature_algorithm=algorithm)
        self._linter = lint.Linter(
            lint.IssuerFacts(name=name, ski=issuer.ski, algorithm=algorithm, not_after=issuer.not_after)
        )
        self._shape = lru_cache(maxsize=MAX_SHAPES)(self._make_shape)
        self._intermediates_pem = tuple(pem.encode_certificate(c.der) for c in issuer.chain)
        self._roots_pem = tuple(map(pem.encode_certificate, issuer.roots))
        self._window: _Window | None = None
        self._probe()

    def prepare(
        self, key: ProvenKey, identity: SpiffeId, requested_seconds: int, now: dt.datetime
    ) -> PreparedCert:
        """Decide what to issue, encode and lint it.

        Args:
            key: from `ca.core.csr.prove` with the same identity; its DNS names go into the leaf.
            identity: authenticated.
            requested_seconds: lifetime that the caller asks for; 0 is the default.
            now: timezone-aware.

        Raises:
            LifetimeError: the profile does not grant the lifetime (F-19 to F-21).
            IssueError: the issuer has too little life left (F-22; UNAVAILABLE), the key is one of
                the authority's own (F-16), or the identity is not a workload's of this trust domain.
            LintError: a fault of ours.
        """
        issuer = self.issuer
        shape = self._shape(identity, key.kind, key.dns)
        if key.spki_der in issuer.keys:
            raise IssueError(
                IssueCode.CA_KEY,
                "CSR: this public key is not acceptable; make a new key",
                private="CSR holds a public key of the authority itself",
            )
        lifetime = self.profile.lifetime(requested_seconds)
        window = self._window
        if window is None or not window.start <= now < window.end or window.lifetime != lifetime:
            window = self._window = self._open_window(lifetime, now)
        return self._prepare(key, shape, window.not_before, window.not_after)

    def sign(self, prepared: PreparedCert) -> IssuedSvid:
        """Sign once, and check before the bytes leave.

        Raises:
            IssueError: signed before, or prepared by another authority.
            LintError: the result is not what was prepared, or its signature does not verify.
        """
        if prepared.issuer is not self.issuer:
            raise IssueError(
                IssueCode.PREPARED_FOREIGN,
                "the signing certificate changed during the request; send it again",
                category=Category.UNAVAILABLE,
            )
        try:
            prepared.ticket.pop()  # atomic: the second of two callers finds it empty
        except IndexError as e:
            raise IssueError(
                IssueCode.PREPARED_USED, "this certificate was signed before", category=Category.INTERNAL
            ) from e
        signer, tbs, spec = self.issuer.signer, prepared.tbs, prepared.spec
        signature = signer.sign(tbs)
        der = assemble(tbs, signer.algorithm, signature)
        self._linter.check_issued(der, tbs)
        if self._always and not signer.verify(signature, tbs):
            raise lint.signature_failed()
        return IssuedSvid(
            leaf_der=der,
            leaf_pem=pem.encode_certificate(der),
            intermediates_pem=self._intermediates_pem,
            roots_pem=self._roots_pem,
            serial=f"{spec.serial_number:x}",
            not_before=spec.not_before,
            not_after=spec.not_after,
            spiffe_id=spec.identity,
        )

    def _prepare(
        self, key: ProvenKey, shape: Shape, not_before: dt.datetime, not_after: dt.datetime
    ) -> PreparedCert:
        serial = self._serial_number()
        tbs = self._template.tbs(
            shape,
            serial_number=serial,
            not_before=not_before,
            not_after=not_after,
            spki=key.spki_der,
            ski=key.key_id,
        )
        spec = lint.LeafSpec(shape.identity, key, serial, not_before, not_after)
        self._linter.check_tbs(tbs, spec, shape)
        return PreparedCert(tbs, spec, self.issuer, [None])

    def _open_window(self, lifetime: dt.timedelta, now: dt.datetime) -> _Window:
        """Whole seconds, rounded down at both ends: never valid for longer than was granted."""
        start = now.astimezone(dt.UTC).replace(microsecond=0)
        self._check_issuer(start)
        not_after = min(start + lifetime, self.issuer.not_after)
        end = start + dt.timedelta(seconds=1)
        return _Window(start, end, lifetime, start - self.profile.backdate, not_after)

    def _make_shape(self, identity: SpiffeId, kind: KeyKind, dns: tuple[str, ...] = ()) -> Shape:
        """Check an identity (X-16) and encode what its leaves share; cached."""
        if identity.trust_domain != self.issuer.trust_domain:
            raise IssueError(
                IssueCode.IDENTITY,
                f"{identity} is not of the trust domain {self.issuer.trust_domain} of this authority",
                category=Category.PERMISSION_DENIED,
            )
        try:
            identity.service_account()
        except SpiffeIdError as e:
            raise IssueError(IssueCode.IDENTITY, e.public, category=Category.PERMISSION_DENIED) from e
        return self._template.shape(identity, kind, dns)

    def _check_issuer(self, now: dt.datetime) -> None:
        issuer = self.issuer
        left = issuer.not_after - now
        if left < self.profile.min_lifetime:
            raise IssueError(
                IssueCode.ISSUER_EXPIRING,
                "the authority's signing certificate is about to expire; try again later",
                category=Category.UNAVAILABLE,
                private=f"signing certificate ends {issuer.not_after.isoformat()}, it is {now.isoformat()};"
                f" a leaf needs {self.profile.min_lifetime.total_seconds():.0f} s",
            )
        if now < issuer.certificate.not_before:
            raise IssueError(
                IssueCode.ISSUER_NOT_YET_VALID,
                "the authority's signing certificate is not valid yet; try again later",
                category=Category.UNAVAILABLE,
                private=f"signing certificate starts {issuer.certificate.not_before.isoformat()}, now {now}",
            )

    def _probe(self) -> None:
        """Issue a leaf of one second in the past, and verify its path.

        The past: at the start of the issuer's own life, or of a root's that starts later because it
        was signed anew.
        """
        starts = {max(c.not_before for c in (self.issuer.certificate, *self.issuer.chain))}
        starts |= {s for s in map(_start, self.issuer.roots) if s > max(starts)}
        failures: list[SvidError] = []
        for start in sorted(starts):
            try:
                self._probe_at(start)
            except SvidError as e:
                failures.append(e)
            else:
                return
        raise IssueError(
            IssueCode.ISSUER_INVALID,
            "signing certificate: what it signs does not verify with the roots; check the CA files",
            category=Category.FAILED_PRECONDITION,
            private=failures[0].private,
        ) from failures[0]

    def _probe_at(self, start: dt.datetime) -> None:
        public = ec.generate_private_key(ec.SECP256R1()).public_key()
        key = ProvenKey(spki_der(public), KeyKind.P256, key_identifier(public_key_bits(public)))
        identity = SpiffeId.for_service_account(self.issuer.trust_domain, "gatehouse", "self-check")
        shape = self._make_shape(identity, key.kind)
        prepared = self._prepare(key, shape, start, start + dt.timedelta(seconds=1))
        svid = self.sign(prepared)
        verify_svid(
            (svid.leaf_der, *(c.der for c in self.issuer.chain)),
            self.issuer.roots,
            start,
            trust_domain=self.issuer.trust_domain,
            expected_id=identity,
            public_key=key.spki_der,
        )
