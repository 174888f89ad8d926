"""CA material: files in, a checked `Issuer` out.

The rules are those that every load and every reload must pass (Istio's file names and cert-manager's):
all files there, every PEM block known and parsed, key and certificate belong together, everything that
signs is a CA, the signing certificate chains to a root, nothing has expired, CRLs are complete.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

from ca.core.authority import IssueError, Issuer
from ca.core.signer import KeySigner, SignerError, SigningKey
from ca.keystore_files import KeyStoreCode, KeyStoreError, load_key, read_text
from mesh.spiffe import TrustDomain
from mesh.x509 import pem
from mesh.x509.certs import CertError, CertFields, read_certificate
from mesh.x509.verify import MAX_CHAIN, SvidError, check_authority

CRL_FILE = "ca-crl.pem"


@dataclass(frozen=True, slots=True)
class Material:
    """An issuer and the root that its chain ends at."""

    issuer: Issuer
    anchor: CertFields


@dataclass(frozen=True, slots=True)
class FileSet:
    """The file names of one form of plugged-in CA."""

    certificate: str
    key: str
    roots: str
    chain: str | None

    @property
    def required(self) -> tuple[str, ...]:
        """Every file that must be there."""
        return tuple(n for n in (self.certificate, self.key, self.roots, self.chain) if n)


ISTIO_FILES = FileSet("ca-cert.pem", "ca-key.pem", "root-cert.pem", "cert-chain.pem")
CERT_MANAGER_FILES = FileSet("tls.crt", "tls.key", "ca.crt", None)
_FORMS = (ISTIO_FILES, CERT_MANAGER_FILES)


def find_files(directory: Path) -> FileSet:
    """The form of the files in a directory.

    Raises:
        KeyStoreError: INCOMPLETE, when some files of a form are there and others are not, or none is:
            a directory that was named must never lead to a self-signed root instead.
    """
    for form in _FORMS:
        missing = [n for n in form.required if not (directory / n).is_file()]
        if not missing:
            return form
        if len(missing) < len(form.required):
            raise KeyStoreError(
                KeyStoreCode.INCOMPLETE,
                f"incomplete CA bundle in {directory}: {', '.join(missing)} missing; all of"
                f" {', '.join(form.required)} are needed",
            )
    wanted = " or ".join(", ".join(f.required) for f in _FORMS)
    raise KeyStoreError(KeyStoreCode.INCOMPLETE, f"no CA bundle in {directory}; expected {wanted}")


def load_material(directory: Path, files: FileSet, trust_domain: TrustDomain, now: dt.datetime) -> Material:
    """Load and check one set of files.

    Raises:
        KeyStoreError: with the first rule that is broken.
    """
    key = load_key(directory / files.key)
    own = load_certificates(directory / files.certificate)
    roots = load_certificates(directory / files.roots)
    further = load_certificates(directory / files.chain) if files.chain else []
    material = check_material(key, [*own, *further], roots, trust_domain, now)
    if (directory / CRL_FILE).is_file():
        issuer = material.issuer
        _check_crls(directory / CRL_FILE, [issuer.certificate, *issuer.chain, *roots], now)
    return material


def load_certificates(path: Path) -> list[CertFields]:
    """Every certificate of a file; see `parse_certificates`."""
    return parse_certificates(read_text(path), path)


def parse_certificates(text: str, path: Path | str) -> list[CertFields]:
    """Every certificate of a PEM text.

    Args:
        path: where the text comes from, for messages.

    Raises:
        KeyStoreError: no certificate, an unknown block, or one that does not parse.
    """
    try:
        return [read_certificate(der) for der in pem.decode_certificates(text)]
    except (pem.PemError, CertError) as e:
        raise KeyStoreError(KeyStoreCode.FILE, f"{path}: {e.public}") from e


def check_material(
    key: SigningKey,
    certificates: Sequence[CertFields],
    roots: Sequence[CertFields],
    trust_domain: TrustDomain,
    now: dt.datetime,
) -> Material:
    """An issuer from its parts.

    Args:
        certificates: the signing certificate first; then, in any order, what leads to a root.

    Raises:
        KeyStoreError: with the first rule that is broken.
    """
    certificate = certificates[0]
    try:
        signer = KeySigner(key)
    except SignerError as e:
        raise KeyStoreError(KeyStoreCode.KEY, e.public) from e
    for ca in (*certificates, *roots):
        _check_authority(ca, trust_domain)
    chain = _chain(certificate, certificates[1:], roots)
    for ca in chain:
        _check_time(ca, now)
    sent = tuple(c for c in chain if c.der not in {r.der for r in roots})
    try:
        issuer = Issuer(
            trust_domain=trust_domain,
            certificate=certificate,
            signer=signer,
            chain=sent,
            roots=tuple(dict.fromkeys(r.der for r in roots)),
        )
    except IssueError as e:
        raise KeyStoreError(KeyStoreCode.KEY_MISMATCH, e.public) from e
    return Material(issuer, chain[-1])


def check_cross(cross: CertFields, root: CertFields, signers: Sequence[CertFields], path: Path | str) -> None:
    """A certificate with a root's name and key, signed by another root.

    Args:
        root: whose name and key it must have.
        signers: one of them must have signed it.

    Raises:
        KeyStoreError: it is something else.
    """
    fits = cross.ca and (cross.subject, cross.spki) == (root.subject, root.spki)
    if not fits or not any(_signed_by(cross, signer) for signer in signers):
        raise KeyStoreError(
            KeyStoreCode.CHAIN,
            f"{path} is not the root {_subject(root)} signed by another trusted root; restore the Secret as a"
            " whole",
        )


def _check_authority(ca: CertFields, trust_domain: TrustDomain) -> None:
    try:
        check_authority(ca)
    except SvidError as e:
        raise KeyStoreError(KeyStoreCode.NOT_CA, f"CA certificate {_subject(ca)}: {e.public}") from e
    found = ca.spiffe_id()
    if found is not None and found.trust_domain != trust_domain:
        raise KeyStoreError(
            KeyStoreCode.TRUST_DOMAIN,
            f"CA certificate {_subject(ca)} is for the trust domain {found.trust_domain}, configured is"
            f" {trust_domain}",
        )


def _subject(ca: CertFields) -> str:
    return repr(ca.certificate.subject.rfc4514_string()[:120])


def _check_time(ca: CertFields, now: dt.datetime) -> None:
    if now >= ca.not_after:
        raise KeyStoreError(
            KeyStoreCode.EXPIRED, f"CA certificate {_subject(ca)} expired at {ca.not_after.isoformat()}"
        )
    if now < ca.not_before:
        raise KeyStoreError(
            KeyStoreCode.EXPIRED,
            f"CA certificate {_subject(ca)} starts at {ca.not_before.isoformat()}, it is {now.isoformat()}",
        )


def _signed_by(child: CertFields, parent: CertFields) -> bool:
    if child.issuer != parent.subject:
        return False
    try:
        child.certificate.verify_directly_issued_by(parent.certificate)
    except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm):
        return False
    return True


def _chain(
    certificate: CertFields, further: Sequence[CertFields], roots: Sequence[CertFields]
) -> list[CertFields]:
    """From the signing certificate up to a root, the root included."""
    chain = [certificate]
    root_ders = {r.der for r in roots}
    while chain[-1].der not in root_ders:
        seen = {c.der for c in chain}
        parent = next((c for c in (*roots, *further) if c.der not in seen and _signed_by(chain[-1], c)), None)
        if parent is None or len(chain) >= MAX_CHAIN:
            raise KeyStoreError(
                KeyStoreCode.CHAIN,
                f"CA certificate {_subject(chain[-1])} leads to no root of the bundle; the chain file must"
                " hold every certificate between it and a root",
            )
        if parent.path_length is not None and parent.path_length < len(chain):
            raise KeyStoreError(
                KeyStoreCode.CHAIN,
                f"CA certificate {_subject(parent)} has path length {parent.path_length}, but {len(chain)} CA"
                " certificates stand below it",
            )
        chain.append(parent)
    return chain


def _check_crls(path: Path, authorities: Sequence[CertFields], now: dt.datetime) -> None:
    """Every authority has a CRL that it signed: a proxy that gets one CRL wants them all."""
    try:
        blocks = pem.decode_bundle(read_text(path), frozenset({pem.X509_CRL}))
        crls = [x509.load_der_x509_crl(der) for _, der in blocks]
    except (pem.PemError, ValueError) as e:
        raise KeyStoreError(KeyStoreCode.CRL, f"{path}: not a file of X509 CRL blocks: {str(e)[:200]}") from e
    for ca in {a.der: a for a in authorities}.values():
        own = [c for c in crls if c.issuer == ca.certificate.subject and _crl_signed(c, ca)]
        if not own:
            raise KeyStoreError(
                KeyStoreCode.CRL,
                f"{path} has no CRL signed by {_subject(ca)}; every CA of the chain needs one",
            )
        if all(c.next_update_utc is not None and c.next_update_utc <= now for c in own):
            raise KeyStoreError(KeyStoreCode.CRL, f"{path}: the CRL of {_subject(ca)} is out of date")


def _crl_signed(crl: x509.CertificateRevocationList, ca: CertFields) -> bool:
    try:
        return crl.is_signature_valid(ca.certificate.public_key())  # type: ignore[arg-type]  # any CA key
    except (TypeError, ValueError, UnsupportedAlgorithm):
        return False
