"""The authority's keys: a self-signed root and intermediate made once, or a plugged-in CA; reload.

State directory (self-signed; everything but the public root has mode 0600)::

    root -> root.<serial>/         ca-cert.pem, ca-key.pem; read only when an intermediate is signed
    issuing -> issuing.<serial>/   ca-cert.pem, ca-key.pem; replaced in one step at each renewal
    root-cert.pem                  the public root, for people and scripts to hand out
    newest-issued                  time of the newest certificate, for the clock check at start
    lock                           held while any of these is made or changed

A second root is never made beside traces of a first (G-05): with another root half of the mesh would
not trust the other half, while a restored file mends everything. Delete the whole directory to begin
anew on purpose.

Keys are used through `Issuer.signer`; nothing here returns their bytes.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from ca.core.authority import Issuer
from ca.core.hierarchy import Parent, make_intermediate, make_root
from ca.keystore_files import (
    KeyStoreCode,
    KeyStoreError,
    check_private,
    encode_key,
    ensure_dir,
    load_key,
    locked,
    prune,
    publish_dir,
    read_text,
    write_atomic,
)
from ca.keystore_material import Material, check_material, find_files, load_certificates, load_material
from mesh.spiffe import TrustDomain
from mesh.x509 import pem
from mesh.x509.certs import CertFields, KeyKind, read_certificate

__all__ = ["KeyStore", "KeyStoreCode", "KeyStoreConfig", "KeyStoreError", "ReloadResult"]

ROOT = "root"
ISSUING = "issuing"
CERT_FILE = "ca-cert.pem"
KEY_FILE = "ca-key.pem"
ROOT_FILE = "root-cert.pem"
MARK_FILE = "newest-issued"
MARK_EVERY = dt.timedelta(minutes=1)  # so the mark costs nothing while a burst is issued
RETRY_RENEWAL = dt.timedelta(minutes=1)
_CURVES: dict[KeyKind, type[ec.EllipticCurve]] = {KeyKind.P256: ec.SECP256R1, KeyKind.P384: ec.SECP384R1}


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyStoreConfig:
    """Where keys are, and what is made when there are none.

    Attributes:
        state_dir: of this authority alone, on a disk that survives it.
        plugged_dir: files of a plugged-in CA; when given, no root is ever made.
        root_lifetime: of a self-signed root.
        issuing_lifetime: of an intermediate; it is renewed when a third is left.
        leaf_lifetime: the longest leaf; a third of `issuing_lifetime` must hold one.
        curve: of the keys that are made: P-256 or P-384.
        multi_root: a reload may bring new roots when the old ones are among them, or the reverse;
            when false, what is reloaded must chain to a root that is trusted already.
    """

    trust_domain: TrustDomain
    state_dir: Path
    plugged_dir: Path | None = None
    root_lifetime: dt.timedelta = dt.timedelta(days=3650)
    issuing_lifetime: dt.timedelta = dt.timedelta(days=365)
    leaf_lifetime: dt.timedelta = dt.timedelta(hours=48)
    curve: KeyKind = KeyKind.P256
    multi_root: bool = False

    def __post_init__(self) -> None:
        if self.curve not in _CURVES:
            raise KeyStoreError(KeyStoreCode.KEY, f"CA key of {self.curve}: make P-256 or P-384 keys")
        if self.issuing_lifetime < 3 * self.leaf_lifetime or self.root_lifetime < 2 * self.issuing_lifetime:
            raise KeyStoreError(
                KeyStoreCode.EXPIRED,
                f"lifetimes: the intermediate's, {self.issuing_lifetime}, must be at least three times the"
                f" leaf's, {self.leaf_lifetime}; the root's, {self.root_lifetime}, twice the intermediate's",
            )


@dataclass(frozen=True, slots=True)
class ReloadResult:
    """What a reload did.

    Attributes:
        changed: another issuer, or other roots, are in use now.
        error: why the files were refused; the former material stays in use (G-16).
    """

    changed: bool
    error: KeyStoreError | None = None


class KeyStore:
    """Holds the current `Issuer`. Safe for use by several threads, and by several processes at once."""

    def __init__(self, config: KeyStoreConfig, material: Material, mark: dt.datetime | None) -> None:
        """Use `KeyStore.open`."""
        self._config = config
        self._material = material
        self._due_from = _due_from(material)
        self._mark = mark
        self._mutex = threading.Lock()
        self._mark_mutex = threading.Lock()
        self._retry_at: dt.datetime | None = None
        self.last_error: KeyStoreError | None = None
        """Why the newest reload, renewal or mark failed; None when it worked."""

    @classmethod
    def open(cls, config: KeyStoreConfig, now: dt.datetime) -> KeyStore:
        """Load the material, or make it when there is none.

        Several starters at once end with the same root: one makes it, the others wait and load it.

        Raises:
            KeyStoreError: the state directory cannot be used; the clock is behind the newest record
                (G-11); a first root is lost (G-05); or the material breaks a rule.
        """
        ensure_dir(config.state_dir)
        with locked(config.state_dir), _disk(config.state_dir):
            mark = _read_mark(config.state_dir / MARK_FILE)
            if mark is not None and now < mark:
                raise KeyStoreError(
                    KeyStoreCode.CLOCK,
                    f"the clock says {now.isoformat()}, but a certificate was issued at {mark.isoformat()};"
                    " set the clock right, then start again",
                )
            return cls(config, _load(config, now), mark)

    @property
    def roots(self) -> tuple[bytes, ...]:
        """The bundle, as DER."""
        return self._material.issuer.roots

    @property
    def root(self) -> CertFields:
        """The root that the signing certificate leads to."""
        return self._material.anchor

    def issuer(self, now: dt.datetime) -> Issuer:
        """The issuer to use now. A self-signed intermediate is renewed here when it is due.

        The same object comes back until something changes, so `is` tells when to make a new `Authority`.
        A renewal that fails is tried again after a minute; the former issuer serves on.
        """
        if self._due(now) and self._mutex.acquire(blocking=False):
            try:
                self._renew(now)
            finally:
                self._mutex.release()
        return self._material.issuer

    def reload(self, now: dt.datetime) -> ReloadResult:
        """Read the files again. Whatever is wrong with them, the former material stays in use."""
        with self._mutex:
            try:
                with locked(self._config.state_dir), _disk(self._config.state_dir):
                    material = _load(self._config, now)
                self._check_roots(material)
            except KeyStoreError as e:
                self.last_error = e
                return ReloadResult(changed=False, error=e)
            self.last_error = None
            return ReloadResult(changed=self._take(material))

    def record_issued(self, now: dt.datetime) -> None:
        """Note that a certificate was issued, for the clock check at the next start (G-11).

        Written to disk at most once a minute. A full disk does not stop issuance: `last_error` tells.
        """
        if self._mark is not None and now < self._mark + MARK_EVERY:
            return
        with self._mark_mutex:
            if self._mark is not None and now < self._mark + MARK_EVERY:
                return
            self._mark = now
            directory = self._config.state_dir
            try:
                with locked(directory), _disk(directory):
                    newest = max(now, _read_mark(directory / MARK_FILE) or now)
                    write_atomic(directory / MARK_FILE, newest.astimezone(dt.UTC).isoformat(), mode=0o600)
            except KeyStoreError as e:
                self.last_error = e

    def _due(self, now: dt.datetime) -> bool:
        if self._config.plugged_dir is not None or (self._retry_at is not None and now < self._retry_at):
            return False
        return self._due_from is not None and now > self._due_from

    def _renew(self, now: dt.datetime) -> None:
        try:
            with locked(self._config.state_dir), _disk(self._config.state_dir):
                self._take(_load(self._config, now))
        except KeyStoreError as e:
            self.last_error = e
            self._retry_at = now + RETRY_RENEWAL
        else:
            self.last_error = self._retry_at = None

    def _take(self, material: Material) -> bool:
        held = self._material.issuer
        new = material.issuer
        if (held.certificate, held.chain, held.roots) == (new.certificate, new.chain, new.roots):
            return False
        self._material = material
        self._due_from = _due_from(material)
        return True

    def _check_roots(self, material: Material) -> None:
        held, new = set(self._material.issuer.roots), set(material.issuer.roots)
        if material.anchor.der in held or (self._config.multi_root and (held <= new or new <= held)):
            return
        raise KeyStoreError(
            KeyStoreCode.ROOT_CHANGED,
            "the new signing certificate chains to a root that is not trusted yet: workloads would refuse"
            " each other; first add the new root to the old ones with multi_root, or restart to switch",
        )


@contextlib.contextmanager
def _disk(directory: Path) -> Iterator[None]:
    """Errors of the disk become refusals; the file name is in the text, the content never."""
    try:
        yield
    except OSError as e:
        raise KeyStoreError(
            KeyStoreCode.FILE,
            f"{e.filename or directory}: {e.strerror}; the CA state cannot be used",
        ) from e


def _read_mark(path: Path) -> dt.datetime | None:
    if not path.exists():
        return None
    text = read_text(path)
    try:
        mark = dt.datetime.fromisoformat(text.strip())
    except ValueError:
        mark = None
    if mark is None or mark.tzinfo is None:
        raise KeyStoreError(
            KeyStoreCode.FILE, f"{path} does not hold a time; delete it if you know that the clock is right"
        )
    return mark


def _load(config: KeyStoreConfig, now: dt.datetime) -> Material:
    """Under the lock: load, and make what is missing or due."""
    if config.plugged_dir is not None:
        files = find_files(config.plugged_dir)
        return load_material(config.plugged_dir, files, config.trust_domain, now)
    _ensure_root(config, now)
    return _ensure_issuing(config, now)


def _ensure_root(config: KeyStoreConfig, now: dt.datetime) -> None:
    state = config.state_dir
    if (state / ROOT / CERT_FILE).is_file() and (state / ROOT / KEY_FILE).is_file():
        return
    traces = [n for n in (ROOT, ISSUING, ROOT_FILE, MARK_FILE) if _lexists(state / n)]
    if traces:
        raise KeyStoreError(
            KeyStoreCode.ROOT_LOST,
            f"{state} has traces of an earlier root ({', '.join(traces)}) but not its {ROOT}/{KEY_FILE} and"
            f" {ROOT}/{CERT_FILE}; restore them, or delete the whole directory to begin with a new root that"
            " running workloads will not trust",
        )
    key = ec.generate_private_key(_CURVES[config.curve]())
    der = make_root(config.trust_domain, key, now, config.root_lifetime)
    _publish(state, ROOT, key, der)


def _lexists(path: Path) -> bool:
    return path.is_symlink() or path.exists()  # a dangling link is a trace too


def _publish(state: Path, name: str, key: ec.EllipticCurvePrivateKey, der: bytes) -> None:
    files = {CERT_FILE: pem.encode_certificate(der), KEY_FILE: encode_key(key)}
    publish_dir(state, name, files, generation=read_certificate(der).serial)
    prune(state, name)


def _ensure_issuing(config: KeyStoreConfig, now: dt.datetime) -> Material:
    state = config.state_dir
    roots = load_certificates(state / ROOT / CERT_FILE)
    root = roots[0]
    if (state / ROOT_FILE).exists():
        if root.der not in {c.der for c in load_certificates(state / ROOT_FILE)}:
            raise KeyStoreError(
                KeyStoreCode.ROOT_CHANGED,
                f"{state / ROOT_FILE} is another root than {ROOT}/{CERT_FILE}; restore what was changed",
            )
    else:
        write_atomic(state / ROOT_FILE, pem.encode_certificate(root.der), mode=0o644)
    directory = state / ISSUING
    if (directory / CERT_FILE).is_file() and (directory / KEY_FILE).is_file():
        held = load_certificates(directory / CERT_FILE)
        if held[0].not_after >= root.not_after or not _is_short(held[0], now):
            check_private(directory / KEY_FILE)
            return check_material(load_key(directory / KEY_FILE), held, roots, config.trust_domain, now)
    check_private(state / ROOT / KEY_FILE)
    root_key = load_key(state / ROOT / KEY_FILE)
    check_material(root_key, roots, roots, config.trust_domain, now)
    key = ec.generate_private_key(_CURVES[config.curve]())
    parent = Parent(root.certificate, root_key)
    der = make_intermediate(config.trust_domain, key, parent, now, config.issuing_lifetime)
    material = check_material(key, [read_certificate(der)], roots, config.trust_domain, now)
    _publish(state, ISSUING, key, der)
    return material


def _due_from(material: Material) -> dt.datetime | None:
    """When the intermediate is to be renewed: once a third of its life is left.

    None when never: one that ends with its root cannot be replaced by a longer one.
    """
    held = material.issuer.certificate
    return _short_from(held) if held.not_after < material.anchor.not_after else None


def _short_from(ca: CertFields) -> dt.datetime:
    """After this, less than a third of its life is left."""
    return ca.not_after - (ca.not_after - ca.not_before) / 3


def _is_short(ca: CertFields, now: dt.datetime) -> bool:
    return now > _short_from(ca)
