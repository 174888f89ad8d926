"""The authority's keys in a Kubernetes Secret, shared by its replicas.

The Secret has `root-cert.pem`, `root-key.pem`, `ca-cert.pem` and `ca-key.pem` (the intermediate that signs
leaves). It is made once: who starts first creates it, everybody else finds it taken and uses what is
there (G-04), so any number of replicas that start at once have one root. An empty Secret, e.g. of a
chart, is filled in the same way, by compare-and-swap.

A second root is never made beside traces of a first (G-05): with another root half of the mesh would
not trust the other half. Traces are the record (a ConfigMap of the same name as the Secret) and the
root ConfigMap of the authority's own namespace. The record is written after the Secret, so whoever sees
it sees the Secret too, unless that was lost.

Intermediates are renewed by the replica that leads; the others find the new one when they reload.

The chart renders the Secret without data, so `helm upgrade --force` and the like put an empty one in its
place. A replica that runs puts back what it has: the root is then never lost while one of them lives.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import hashlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec

from ca.core.authority import Issuer
from ca.core.hierarchy import Parent, make_intermediate, make_root
from ca.core.signer import SigningKey
from ca.keystore import RETRY_RENEWAL, KeyStoreCode, KeyStoreConfig, KeyStoreError, ReloadResult
from ca.keystore_files import MAX_FILE_BYTES, encode_key, parse_key
from ca.keystore_material import Material, check_material, parse_certificates
from mesh.errors import MeshError
from mesh.kube.api import KubeApi, KubeCode, KubeError
from mesh.obs.logs import logger
from mesh.x509 import pem
from mesh.x509.certs import CertFields, KeyKind, read_certificate

SECRET_TYPE: Final = "gatehouse.dev/ca-root"  # noqa: S105 - a name
ROOT_CERT: Final = "root-cert.pem"
ROOT_KEY: Final = "root-key.pem"
CERT: Final = "ca-cert.pem"
KEY: Final = "ca-key.pem"
_FILES: Final = (ROOT_CERT, ROOT_KEY, CERT, KEY)
_CURVES: Mapping[KeyKind, type[ec.EllipticCurve]] = {
    KeyKind.P256: ec.SECP256R1,
    KeyKind.P384: ec.SECP384R1,
}
_TRIES: Final = 5
_log = logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretPlace:
    """Where the keys are.

    Attributes:
        name: of the Secret, and of the ConfigMap that records its root.
        root_config_map: another trace of an earlier root, in the same namespace.
        force_new_root: make a root although there are traces of an earlier one.
    """

    namespace: str
    name: str = "gatehouse-ca"
    root_config_map: str = "istio-ca-root-cert"
    force_new_root: bool = False

    @property
    def secrets(self) -> str:
        """Path of the collection."""
        return f"/api/v1/namespaces/{self.namespace}/secrets"

    @property
    def config_maps(self) -> str:
        """Path of the collection."""
        return f"/api/v1/namespaces/{self.namespace}/configmaps"


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
        material: Material,
        secret: Mapping[str, Any],
        *,
        may_renew: Callable[[], bool],
    ) -> None:
        """Use `SecretKeyStore.open`."""
        self._api = api
        self._place = place
        self._config = config
        self._material = material
        self._version = _version(secret)
        self._data = dict(secret["data"])
        self._may_renew = may_renew
        self._mutex = threading.Lock()
        self._retry_at: dt.datetime | None = None
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
                secret = _renewed(api, place, config, secret, now)
            except KubeError as e:
                if e.code is not KubeCode.CONFLICT:
                    raise
                secret = _ensure(api, place, config, now)
        material = _material(place, config, secret, now)
        store = cls(api, place, config, material, secret, may_renew=may_renew)
        _record(api, place, material, now)
        return store

    @property
    def roots(self) -> tuple[bytes, ...]:
        """The bundle, as DER."""
        return self._material.issuer.roots

    def issuer(self, now: dt.datetime) -> Issuer:  # noqa: ARG002 - as `KeyStore.issuer`, which renews here
        """The issuer to use now; the same object until something changes. Asks nobody: see `reload`."""
        return self._material.issuer

    def record_issued(self, now: dt.datetime) -> None:
        """Nothing is noted: the clock check at the start is that the certificates have begun (G-11)."""

    def reload(self, now: dt.datetime) -> ReloadResult:
        """Read the Secret again, and renew the intermediate when it is due and this replica leads.

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

    def _reload(self, now: dt.datetime) -> bool:
        secret = self._api.get(f"{self._place.secrets}/{self._place.name}")
        changed = False
        if not secret.get("data"):
            secret = self._put_back(secret, now)
        elif _version(secret) != self._version:
            material = _material(self._place, self._config, secret, now)
            self._check_roots(material)
            changed = self._take(material)
            self._note(secret)
            _record(self._api, self._place, self._material, now)
        if self._due(now) and self._may_renew():
            changed = self._renew(secret, now) or changed
        return changed

    def _put_back(self, emptied: Mapping[str, Any], now: dt.datetime) -> Mapping[str, Any]:
        """Fill an emptied Secret; of several replicas one wins, the others find it filled then."""
        body = {**emptied, "data": self._data}
        written = dict(self._api.replace(f"{self._place.secrets}/{self._place.name}", body))
        _log.error(
            "the Secret with the root was emptied, and is filled again from memory; next: do not use"
            " `helm upgrade --force` or other replacing of objects",
            secret=f"{self._place.namespace}/{self._place.name}",
        )
        self._note(written)
        _record(self._api, self._place, self._material, now)
        return written

    def _note(self, secret: Mapping[str, Any]) -> None:
        self._version = _version(secret)
        self._data = dict(secret["data"])

    def _take(self, material: Material) -> bool:
        held, new = self._material.issuer, material.issuer
        if (held.certificate, held.chain, held.roots) == (new.certificate, new.chain, new.roots):
            return False
        self._material = material
        return True

    def _check_roots(self, material: Material) -> None:
        held, new = set(self._material.issuer.roots), set(material.issuer.roots)
        if material.anchor.der in held or (self._config.multi_root and (held <= new or new <= held)):
            return
        raise KeyStoreError(
            KeyStoreCode.ROOT_CHANGED,
            f"Secret {self._place.namespace}/{self._place.name} has another root than the one in use:"
            " workloads would refuse each other; put the former one back, or restart to switch",
        )

    def _due(self, now: dt.datetime) -> bool:
        if self._retry_at is not None and now < self._retry_at:
            return False
        held = self._material.issuer.certificate
        # One that ends with its root cannot be replaced by a longer one.
        return _is_short(held, now) and held.not_after < self._material.anchor.not_after

    def _renew(self, secret: Mapping[str, Any], now: dt.datetime) -> bool:
        self._retry_at = now + RETRY_RENEWAL
        written = _renewed(self._api, self._place, self._config, secret, now)
        changed = self._take(_material(self._place, self._config, written, now))
        self._note(written)
        self._retry_at = None
        return changed


def look(api: KubeApi, place: SecretPlace, config: KeyStoreConfig, now: dt.datetime) -> Issuer | None:
    """What a start would use, without making anything; None when it would make a root.

    Raises:
        KeyStoreError, KubeError: as `SecretKeyStore.open`.
    """
    found = _get(api, f"{place.secrets}/{place.name}")
    if found is not None and found.get("data"):
        return _material(place, config, found, now).issuer
    trace = "" if place.force_new_root else _trace(api, place)
    if trace:
        raise _lost(place, trace)
    return None


def _as_keystore(error: MeshError) -> KeyStoreError:
    if isinstance(error, KeyStoreError):
        return error
    return KeyStoreError(KeyStoreCode.FILE, error.public, private=error.private)


def _ensure(api: KubeApi, place: SecretPlace, config: KeyStoreConfig, now: dt.datetime) -> Mapping[str, Any]:
    """The Secret with its data; made when nobody has made it, whoever wins."""
    for _ in range(_TRIES):
        found = _get(api, f"{place.secrets}/{place.name}")
        if found is not None and found.get("data"):
            return found
        trace = "" if place.force_new_root else _trace(api, place)
        if trace:
            # Another replica may have made the Secret and its record since we looked.
            found = _get(api, f"{place.secrets}/{place.name}")
            if found is not None and found.get("data"):
                return found
            raise _lost(place, trace)
        made = _make(api, place, config, found, now)
        if made is not None:
            return made
    raise KeyStoreError(
        KeyStoreCode.LOCK,
        f"Secret {place.namespace}/{place.name} is changed by others all the time; try again",
    )


def _lost(place: SecretPlace, trace: str) -> KeyStoreError:
    return KeyStoreError(
        KeyStoreCode.ROOT_LOST,
        f"Secret {place.namespace}/{place.name} is not there, but {trace} says that there was a root: a new"
        " one would split the mesh; restore the Secret, or, to begin anew on purpose, set"
        " cluster.force_new_root once and restart every pod with a sidecar",
    )


def _get(api: KubeApi, path: str) -> Mapping[str, Any] | None:
    try:
        found = api.get(path)
    except KubeError as e:
        if e.code is KubeCode.NOT_FOUND:
            return None
        raise
    return found if isinstance(found, dict) else {}


def _trace(api: KubeApi, place: SecretPlace) -> str:
    """What tells of an earlier root; empty when nothing does."""
    record = _get(api, f"{place.config_maps}/{place.name}")
    if record is not None and (record.get("data") or {}).get("root-sha256"):
        return f"ConfigMap {place.namespace}/{place.name}"
    published = _get(api, f"{place.config_maps}/{place.root_config_map}")
    if published is not None and (published.get("data") or {}).get(ROOT_CERT):
        return f"ConfigMap {place.namespace}/{place.root_config_map}"
    return ""


def _make(
    api: KubeApi,
    place: SecretPlace,
    config: KeyStoreConfig,
    empty: Mapping[str, Any] | None,
    now: dt.datetime,
) -> Mapping[str, Any] | None:
    """Create the Secret, or fill the empty one; None when somebody else was faster."""
    key = ec.generate_private_key(_CURVES[config.curve]())
    root = read_certificate(make_root(config.trust_domain, key, now, config.root_lifetime))
    files = {ROOT_CERT: pem.encode_certificate(root.der), ROOT_KEY: encode_key(key)}
    files |= _issuing_files(config, root, key, now)
    try:
        if empty is not None:
            body = {**empty, "data": _encode(files)}
            made = api.replace(f"{place.secrets}/{place.name}", body)
        else:
            labels = {"app.kubernetes.io/managed-by": "gatehouse-ca"}
            meta = {"name": place.name, "namespace": place.namespace, "labels": labels}
            body = {"apiVersion": "v1", "kind": "Secret", "metadata": meta, "type": SECRET_TYPE}
            made = api.create(place.secrets, {**body, "data": _encode(files)})
    except KubeError as e:
        # UNREACHABLE: it may have been made; the next look tells.
        faster = {KubeCode.ALREADY_EXISTS, KubeCode.CONFLICT, KubeCode.UNREACHABLE}
        if e.code in faster or (e.code is KubeCode.NOT_FOUND and empty is not None):
            return None
        raise
    return dict(made)


def _issuing_files(
    config: KeyStoreConfig, root: CertFields, root_key: SigningKey, now: dt.datetime
) -> dict[str, str]:
    key = ec.generate_private_key(_CURVES[config.curve]())
    parent = Parent(root.certificate, root_key)
    der = make_intermediate(config.trust_domain, key, parent, now, config.issuing_lifetime)
    return {CERT: pem.encode_certificate(der), KEY: encode_key(key)}


def _ended(place: SecretPlace, secret: Mapping[str, Any], now: dt.datetime) -> bool:
    """True when the intermediate has expired, e.g. because nothing ran for a year."""
    return now >= parse_certificates(_files(place, secret)[CERT], _where(place, CERT))[0].not_after


def _renewed(
    api: KubeApi, place: SecretPlace, config: KeyStoreConfig, secret: Mapping[str, Any], now: dt.datetime
) -> Mapping[str, Any]:
    """The Secret with a new intermediate under the same root, written by compare-and-swap."""
    files = _files(place, secret)
    roots = parse_certificates(files[ROOT_CERT], _where(place, ROOT_CERT))
    root_key = parse_key(files[ROOT_KEY], _where(place, ROOT_KEY))
    check_material(root_key, [roots[0]], roots, config.trust_domain, now)
    files |= _issuing_files(config, roots[0], root_key, now)
    return dict(api.replace(f"{place.secrets}/{place.name}", {**secret, "data": _encode(files)}))


def _record(api: KubeApi, place: SecretPlace, material: Material, now: dt.datetime) -> None:
    """Leave a trace of the root outside the Secret; one that is there is brought up to date."""
    digest = hashlib.sha256(material.anchor.der).hexdigest()
    found = _get(api, f"{place.config_maps}/{place.name}")
    data = {"root-sha256": digest, "recorded": now.astimezone(dt.UTC).isoformat(timespec="seconds")}
    try:
        if found is None:
            meta = {"name": place.name, "namespace": place.namespace}
            api.create(
                place.config_maps, {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": data}
            )
        elif (found.get("data") or {}).get("root-sha256") != digest:
            api.replace(f"{place.config_maps}/{place.name}", {**found, "data": data})
    except KubeError as e:
        if e.code not in {KubeCode.ALREADY_EXISTS, KubeCode.CONFLICT}:
            raise


def _material(
    place: SecretPlace, config: KeyStoreConfig, secret: Mapping[str, Any], now: dt.datetime
) -> Material:
    files = _files(place, secret)
    roots = parse_certificates(files[ROOT_CERT], _where(place, ROOT_CERT))
    own = parse_certificates(files[CERT], _where(place, CERT))
    key = parse_key(files[KEY], _where(place, KEY))
    return check_material(key, own, roots, config.trust_domain, now)


def _files(place: SecretPlace, secret: Mapping[str, Any]) -> dict[str, str]:
    data = secret.get("data")
    missing = [name for name in _FILES if not isinstance(data, dict) or not data.get(name)]
    if missing or not isinstance(data, dict):
        raise KeyStoreError(
            KeyStoreCode.INCOMPLETE,
            f"Secret {place.namespace}/{place.name} has no {', '.join(missing)}; all of"
            f" {', '.join(_FILES)} are needed: restore it",
        )
    files = {}
    for name in _FILES:
        try:
            raw = base64.b64decode(str(data[name]), validate=True)
            files[name] = raw.decode("ascii")
        except (binascii.Error, UnicodeDecodeError) as e:
            raise KeyStoreError(KeyStoreCode.FILE, f"{_where(place, name)} is not a PEM text") from e
        if len(raw) > MAX_FILE_BYTES:
            raise KeyStoreError(KeyStoreCode.FILE, f"{_where(place, name)} has over {MAX_FILE_BYTES} bytes")
    return files


def _encode(files: Mapping[str, str]) -> dict[str, str]:
    return {name: base64.b64encode(text.encode("ascii")).decode("ascii") for name, text in files.items()}


def _where(place: SecretPlace, file: str) -> str:
    return f"Secret {place.namespace}/{place.name} {file}"


def _version(secret: Mapping[str, Any]) -> str:
    return str((secret.get("metadata") or {}).get("resourceVersion", ""))


def _is_short(certificate: CertFields, now: dt.datetime) -> bool:
    """True when less than a third of its life is left."""
    life = certificate.not_after - certificate.not_before
    return certificate.not_after - now < life / 3
