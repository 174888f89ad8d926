"""The authority's keys in a Kubernetes Secret, shared by its replicas.

`ca.secret_files` says what stands in it. It is made once: who starts first creates it, everybody else finds
it taken and uses what is there (G-04), so any number of replicas that start at once have one root. An empty
Secret, e.g. of a chart, is filled in the same way, by compare-and-swap.

A second root is never made beside traces of a first (G-05): with another root half of the mesh would
not trust the other half. Traces are the record (a ConfigMap of the same name as the Secret) and the
root ConfigMap of the authority's own namespace. The record is written after the Secret, so whoever sees
it sees the Secret too, unless that was lost.

Intermediates are renewed by the replica that leads, and it takes the steps of a rotation of roots; each is
one write of the Secret. The others find what is new when they reload.

The chart renders the Secret without data, so `helm upgrade --force` and the like put an empty one in its
place. A replica that runs puts back what it has: the root is then never lost while one of them lives. The
same goes for an older copy: its rotation would be behind what workloads have seen.
"""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from ca import secret_record
from ca.core.authority import Issuer
from ca.core.rotation import Request, RotationSettings, RotationState, apply
from ca.core.rotation_codec import encode_state
from ca.keystore import RETRY_RENEWAL, KeyStoreCode, KeyStoreConfig, KeyStoreError, ReloadResult
from ca.secret_files import (
    CERT,
    ROTATION,
    SECRET_TYPE,
    Contents,
    SecretPlace,
    certificates,
    decode,
    encode,
    read,
    version,
)
from ca.secret_rotation import first_files, is_short, renewed, renewed_next, stepped
from mesh.ca_status import Step
from mesh.errors import MeshError
from mesh.kube.api import KubeApi, KubeCode, KubeError
from mesh.obs.logs import logger
from mesh.x509.certs import CertFields

__all__ = ["SECRET_TYPE", "SecretKeyStore", "SecretPlace", "look"]

_TRIES: Final = 5
_log = logger(__name__)


class SecretKeyStore:
    """Holds the current `Issuer`; what `ca.keystore.KeyStore` is for files.

    Args:
        may_renew: True while this replica leads.
    """

    def __init__(
        self,
        api: KubeApi,
        place: SecretPlace,
        config: KeyStoreConfig,
        contents: Contents,
        secret: Mapping[str, Any],
        *,
        may_renew: Callable[[], bool],
    ) -> None:
        """Use `SecretKeyStore.open`."""
        self._api = api
        self._place = place
        self._config = config
        self._contents = contents
        self._version = version(secret)
        self._data = dict(secret["data"])
        self._may_renew = may_renew
        self._mutex = threading.Lock()
        self._retry_at: dt.datetime | None = None
        self._recorded = b""  # the root that the record was seen to have
        self.last_error: MeshError | None = None
        """Why the newest reload or renewal failed; None when it worked. What was good stays in use."""

    @classmethod
    def open(
        cls,
        api: KubeApi,
        place: SecretPlace,
        config: KeyStoreConfig,
        now: dt.datetime,
        *,
        may_renew: Callable[[], bool],
    ) -> SecretKeyStore:
        """Load the keys, or make them when there never were any.

        Raises:
            KeyStoreError: a first root is lost (G-05), or the material breaks a rule.
            KubeError: the API server did not answer, or forbids it.
        """
        secret = _ensure(api, place, config, now)
        if _ended(place, secret, now):
            # Nobody could issue: whoever starts renews it, leader or not; one of them wins.
            try:
                secret = _write(api, place, secret, renewed(place, config, decode(place, secret), now))
            except KubeError as e:
                if e.code is not KubeCode.CONFLICT:
                    raise
                secret = _ensure(api, place, config, now)
        contents = read(place, config, decode(place, secret), now)
        store = cls(api, place, config, contents, secret, may_renew=may_renew)
        store._record(now)
        return store

    @property
    def roots(self) -> tuple[bytes, ...]:
        """The bundle, as DER; the signing root first."""
        return self._contents.plain.roots

    @property
    def rotation(self) -> RotationState:
        """Where the rotation of roots stands, as this replica has read it."""
        return self._contents.state

    @property
    def root(self) -> CertFields:
        """The root that signs."""
        return self._contents.material.anchor

    @property
    def next_root(self) -> CertFields | None:
        """The root that signs after activate; None unless prepared."""
        return self._contents.next_root

    def issuer(self, now: dt.datetime) -> Issuer:
        """The issuer to use now; the same object until something changes. Asks nobody: see `reload`."""
        return self._contents.issuer(now)

    def record_issued(self, now: dt.datetime) -> None:
        """Nothing is noted: the clock check at the start is that the certificates have begun (G-11)."""

    def reload(self, now: dt.datetime) -> ReloadResult:
        """Read the Secret again, and renew intermediates when they are due and this replica leads.

        Whatever goes wrong, the former material stays in use (G-01, G-05).
        """
        with self._mutex:
            try:
                changed = self._reload(now)
            except KubeError as e:
                error: MeshError = e
                if e.code is KubeCode.NOT_FOUND:
                    error = KeyStoreError(
                        KeyStoreCode.ROOT_LOST,
                        f"Secret {self._place.namespace}/{self._place.name} is gone; restore it before the"
                        " authority restarts, or run `helm upgrade`: it makes an empty one, and this replica"
                        " fills it with what is in memory, which is used until then",
                    )
                self.last_error = error
                return ReloadResult(changed=False, error=_as_keystore(error))
            except KeyStoreError as e:
                self.last_error = e
                return ReloadResult(changed=False, error=e)
            self.last_error = None
            return ReloadResult(changed=changed)

    def rotate(
        self,
        step: Step,
        now: dt.datetime,
        settings: RotationSettings,
        *,
        forced: bool = False,
        request: Request | None = None,
    ) -> RotationState:
        """Take a step of the rotation, for all replicas: one write, or nothing.

        Args:
            forced: something was still waited for.
            request: who asked; noted with the step, so that it is never taken twice.

        Returns:
            The new state, which is in use from now on.

        Raises:
            RotationError: the phase does not allow the step.
            KeyStoreError: CHANGED when another replica was faster: look again. Others: the keys cannot be
                used.
            KubeError: no answer, in which case the step may have been taken or not; or not allowed.

        The record follows at the next `reload`.
        """
        with self._mutex:
            root = secret_record.digest(self.root.der)
            state = apply(self.rotation, step, now, settings, forced=forced, request=request, root=root)
            return self._write_state(state, now, lambda f: stepped(self._place, self._config, f, step, now))

    def renumber(self, generation: int, epoch: int, now: dt.datetime) -> RotationState:
        """Raise the numbers, because workloads have seen higher ones: the Secret is an older copy.

        Raises:
            KeyStoreError, KubeError: as `rotate`.
        """
        with self._mutex:
            held = self.rotation
            state = replace(held, generation=max(held.generation, generation), epoch=max(held.epoch, epoch))
            return self._write_state(state, now, dict)

    def _write_state(
        self, state: RotationState, now: dt.datetime, change: Callable[[dict[str, str]], dict[str, str]]
    ) -> RotationState:
        secret = self._api.get(self._place.secret)
        if version(secret) != self._version:
            raise self._changed()
        files = change(decode(self._place, secret)) | {ROTATION: encode_state(state)}
        contents = read(self._place, self._config, files, now)  # what cannot be read is not written
        try:
            written = _write(self._api, self._place, secret, files)
        except KubeError as e:
            if e.code is KubeCode.CONFLICT:
                raise self._changed() from e
            raise
        self._take(contents)
        self._note(written)
        return state

    def _changed(self) -> KeyStoreError:
        return KeyStoreError(
            KeyStoreCode.CHANGED,
            f"Secret {self._place.namespace}/{self._place.name} was changed by somebody else meanwhile;"
            " nothing was done, the next look tells what is to do",
        )

    def _reload(self, now: dt.datetime) -> bool:
        secret = self._api.get(self._place.secret)
        changed = False
        if not secret.get("data"):
            secret = self._put_back(secret, "was emptied")
        elif version(secret) != self._version:
            contents = read(self._place, self._config, decode(self._place, secret), now)
            if _is_behind(contents, self._contents):
                secret = self._put_back(secret, "was replaced by an older copy")
            else:
                self._check_roots(contents)
                changed = self._take(contents)
                self._note(secret)
        if self._may_renew() and (self._retry_at is None or now >= self._retry_at):
            changed = self._renew(secret, now) or changed
        self._record(now)
        return changed

    def _put_back(self, found: Mapping[str, Any], what: str) -> Mapping[str, Any]:
        """Fill the Secret from memory; of several replicas one wins, the others find it filled then."""
        body = {**found, "data": self._data}
        written = dict(self._api.replace(self._place.secret, body))
        _log.error(
            f"the Secret with the root {what}, and is filled again from memory; next: do not use"
            " `helm upgrade --force` or other replacing of objects",
            secret=f"{self._place.namespace}/{self._place.name}",
        )
        self._note(written)
        self._recorded = b""  # the record may have been emptied with it
        return written

    def _record(self, now: dt.datetime) -> None:
        root = self.root.der
        if self._recorded != root and secret_record.write(self._api, self._place, root, now):
            self._recorded = root

    def _note(self, secret: Mapping[str, Any]) -> None:
        self._version = version(secret)
        self._data = dict(secret["data"])

    def _take(self, contents: Contents) -> bool:
        """Use it; the issuer stays the same object when nothing that it is made of has changed."""
        held = self._contents
        if _facts(held.material.issuer) == _facts(contents.material.issuer):
            self._contents = replace(
                contents, material=held.material, plain=held.plain, plain_from=held.plain_from
            )
            return False
        self._contents = contents
        return True

    def _check_roots(self, contents: Contents) -> None:
        """Take from others what a rotation does, and nothing else."""
        held, new = self._contents, contents
        same_roots = set(held.plain.roots) == set(new.plain.roots)
        same_signer = held.material.anchor.der == new.material.anchor.der
        # A generation is one set of roots, an epoch one signing root; neither falls.
        told_roots = same_roots or new.state.generation > held.state.generation
        told_signer = same_signer or (new.state.epoch > held.state.epoch and _descends(new, held))
        if told_roots and told_signer and _numbers(new) >= _numbers(held):
            return
        raise KeyStoreError(
            KeyStoreCode.ROOT_CHANGED,
            f"Secret {self._place.namespace}/{self._place.name} has another root than the one in use:"
            " workloads would refuse each other; put the former one back, or restart to switch",
        )

    def _renew(self, secret: Mapping[str, Any], now: dt.datetime) -> bool:
        """Renew what is due: the intermediate that signs, and the one that waits."""
        contents = self._contents
        due = _is_due(contents.plain.certificate, contents.material.anchor, now)
        next_due = _is_due(contents.next_certificate, contents.next_root, now)
        if not due and not next_due:
            return False
        self._retry_at = now + RETRY_RENEWAL
        files = decode(self._place, secret)
        if due:
            files = renewed(self._place, self._config, files, now)
        if next_due:
            files = renewed_next(self._place, self._config, files, now)
        written = _write(self._api, self._place, secret, files)
        changed = self._take(read(self._place, self._config, files, now))
        self._note(written)
        self._retry_at = None
        return changed


def look(api: KubeApi, place: SecretPlace, config: KeyStoreConfig, now: dt.datetime) -> Issuer | None:
    """What a start would use, without making anything; None when it would make a root.

    Raises:
        KeyStoreError, KubeError: as `SecretKeyStore.open`.
    """
    found = secret_record.get(api, place.secret)
    if found is not None and found.get("data"):
        return read(place, config, decode(place, found), now).issuer(now)
    trace = "" if place.force_new_root else secret_record.trace(api, place)
    if trace:
        raise secret_record.lost(place, trace)
    return None


def _as_keystore(error: MeshError) -> KeyStoreError:
    if isinstance(error, KeyStoreError):
        return error
    return KeyStoreError(KeyStoreCode.FILE, error.public, private=error.private)


def _facts(issuer: Issuer) -> tuple[object, ...]:
    """What makes an issuer another one for those who get certificates."""
    return (issuer.certificate, issuer.chain, issuer.roots, issuer.generation, issuer.epoch)


def _numbers(contents: Contents) -> tuple[int, int]:
    return contents.state.epoch, contents.state.generation


def _is_behind(new: Contents, held: Contents) -> bool:
    """True for an older copy of what is held; another authority's Secret is none."""
    same = new.material.anchor.der == held.material.anchor.der
    return _numbers(new) < _numbers(held) and (same or _descends(held, new))


def _descends(later: Contents, earlier: Contents) -> bool:
    """True when the root that signs in `earlier` is one that signed before the root in `later`."""
    return secret_record.digest(earlier.material.anchor.der) in later.state.former


def _is_due(certificate: CertFields | None, root: CertFields | None, now: dt.datetime) -> bool:
    if certificate is None or root is None:
        return False
    # One that ends with its root cannot be replaced by a longer one.
    return is_short(certificate, now) and certificate.not_after < root.not_after


def _ensure(api: KubeApi, place: SecretPlace, config: KeyStoreConfig, now: dt.datetime) -> Mapping[str, Any]:
    """The Secret with its data; made when nobody has made it, whoever wins."""
    for _ in range(_TRIES):
        found = secret_record.get(api, place.secret)
        if found is not None and found.get("data"):
            return found
        trace = "" if place.force_new_root else secret_record.trace(api, place)
        if trace:
            # Another replica may have made the Secret and its record since we looked.
            found = secret_record.get(api, place.secret)
            if found is not None and found.get("data"):
                return found
            raise secret_record.lost(place, trace)
        made = _make(api, place, config, found, now)
        if made is not None:
            return made
    raise KeyStoreError(
        KeyStoreCode.LOCK,
        f"Secret {place.namespace}/{place.name} is changed by others all the time; try again",
    )


def _make(
    api: KubeApi,
    place: SecretPlace,
    config: KeyStoreConfig,
    empty: Mapping[str, Any] | None,
    now: dt.datetime,
) -> Mapping[str, Any] | None:
    """Create the Secret, or fill the empty one; None when somebody else was faster."""
    files = first_files(config, now)
    try:
        if empty is not None:
            return _write(api, place, empty, files)
        labels = {"app.kubernetes.io/managed-by": "gatehouse-ca"}
        meta = {"name": place.name, "namespace": place.namespace, "labels": labels}
        body = {"apiVersion": "v1", "kind": "Secret", "metadata": meta, "type": SECRET_TYPE}
        return dict(api.create(place.secrets, {**body, "data": encode(files)}))
    except KubeError as e:
        # UNREACHABLE: it may have been made; the next look tells.
        faster = {KubeCode.ALREADY_EXISTS, KubeCode.CONFLICT, KubeCode.UNREACHABLE}
        if e.code in faster or (e.code is KubeCode.NOT_FOUND and empty is not None):
            return None
        raise


def _ended(place: SecretPlace, secret: Mapping[str, Any], now: dt.datetime) -> bool:
    """True when the intermediate has expired, e.g. because nothing ran for a year."""
    return now >= certificates(place, decode(place, secret), CERT)[0].not_after


def _write(
    api: KubeApi, place: SecretPlace, secret: Mapping[str, Any], files: Mapping[str, str]
) -> Mapping[str, Any]:
    """Compare-and-swap: `secret` has the version that was read."""
    return dict(api.replace(place.secret, {**secret, "data": encode(files)}))
