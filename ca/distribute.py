"""The trust bundle in every namespace, as a ConfigMap that pods without a proxy can mount.

The name, the key and the label are Istio's. The replica that leads writes it where it is missing and
repairs it where it was changed. Namespaces that end, and those that hold no workloads, are left out.
"""

from __future__ import annotations

import datetime as dt
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from mesh.kube.api import KubeApi, KubeCode, KubeError, PatchType
from mesh.kube.reflector import Collection
from mesh.kube.store import Store
from mesh.obs import logs

KEY: Final = "root-cert.pem"
LABEL: Final = ("istio.io/config", "true")
NAMESPACES: Final = Collection(path="/api/v1/namespaces", name="namespaces")
SKIPPED: Final = frozenset({"kube-public", "kube-node-lease", "local-path-storage"})
EVERY: Final = dt.timedelta(seconds=30)
"""How often everything is compared, whatever the watches say."""
REPAIR_AFTER: Final = dt.timedelta(seconds=5)
"""Pause between two writes to one namespace: another controller may want the same name."""

_log = logs.logger(__name__)


def config_maps(name: str) -> Collection:
    """The ConfigMaps of that name in all namespaces."""
    return Collection(
        path="/api/v1/configmaps", name="root_config_maps", query={"fieldSelector": f"metadata.name={name}"}
    )


def read_namespace(item: Mapping[str, Any]) -> bool | None:
    """True for a namespace that takes new objects; None leaves it out."""
    meta, status = item.get("metadata") or {}, item.get("status") or {}
    ending = status.get("phase") == "Terminating" or meta.get("deletionTimestamp") is not None
    return None if ending or meta.get("name") in SKIPPED else True


@dataclass(frozen=True, slots=True)
class Published:
    """What a namespace has: the text and whether the label is right."""

    text: str
    labelled: bool


def read_published(item: Mapping[str, Any]) -> Published:
    """Trim a ConfigMap. Nearly all of them hold the same text, which is kept once."""
    labels = (item.get("metadata") or {}).get("labels") or {}
    text = (item.get("data") or {}).get(KEY)
    return Published(
        sys.intern(text) if isinstance(text, str) else "", labelled=labels.get(LABEL[0]) == LABEL[1]
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """What the ConfigMaps belong to: when it is deleted, so are they. A cluster-scoped object."""

    api_version: str
    kind: str
    name: str
    uid: str

    def reference(self) -> dict[str, Any]:
        """An entry of `metadata.ownerReferences`."""
        return {"apiVersion": self.api_version, "kind": self.kind, "name": self.name, "uid": self.uid}


class Distributor:
    """Keeps the ConfigMaps equal to the bundle.

    Args:
        name: of the ConfigMaps.
        bundle: the roots now, one PEM text each.
        leading: asked before each write.
        namespaces: those that get it, from `read_namespace`.
        published: what is there, from `read_published`; both stores are filled by reflectors.
        monotonic: in seconds.
        count: told the outcome of each write: created, repaired or failed.
        owner: asked at each creation; None makes them belong to nothing.
        also: done in each pass of the leader; raises KubeError.
    """

    def __init__(
        self,
        api: KubeApi,
        name: str,
        *,
        bundle: Callable[[], Sequence[str]],
        leading: Callable[[], bool],
        namespaces: Store[bool],
        published: Store[Published],
        monotonic: Callable[[], float],
        count: Callable[[str], None],
        owner: Callable[[], Owner | None] = lambda: None,
        also: Callable[[], None] = lambda: None,
    ) -> None:
        self._api = api
        self._name = name
        self._bundle = bundle
        self._leading = leading
        self._namespaces = namespaces
        self._published = published
        self._monotonic = monotonic
        self._count = count
        self._owner = owner
        self._also = also
        self._written: dict[str, float] = {}
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self.problem = ""
        """Why the newest pass left something undone; empty when it did not."""
        namespaces.subscribe(lambda _keys: self._wake.set())
        published.subscribe(lambda _keys: self._wake.set())

    @property
    def wanted(self) -> int:
        """Namespaces that should have the bundle."""
        return len(self._namespaces)

    @property
    def synced(self) -> bool:
        """True once the namespaces and what they have are known."""
        return self._namespaces.synced and self._published.synced

    def missing(self) -> list[str]:
        """Namespaces whose ConfigMap is not what it should be."""
        text = "".join(self._bundle())
        good = Published(text, labelled=True)
        return sorted(
            name for _, name in self._namespaces.items() if self._published.get(name, self._name) != good
        )

    def step(self) -> None:
        """One pass; does nothing unless this replica leads and has seen everything."""
        if not (self._leading() and self.synced):
            return
        text = "".join(self._bundle())
        problems: list[str] = []
        missing = self.missing()
        now = self._monotonic()
        self._written = {n: at for n, at in self._written.items() if now - at < REPAIR_AFTER.total_seconds()}
        for namespace in missing:
            if not self._leading() or self._stopping.is_set():
                return
            if namespace in self._written:
                continue
            self._written[namespace] = now
            try:
                self._write(namespace, text)
            except KubeError as e:
                if _ends(e):
                    continue
                self._count("failed")
                problems.append(f"{namespace}: {e.public}")
                if e.code in {KubeCode.UNREACHABLE, KubeCode.THROTTLED, KubeCode.UNAUTHORIZED}:
                    break  # no namespace would fare better now
        try:
            self._also()
        except KubeError as e:
            self._count("failed")
            problems.append(f"ClusterTrustBundle: {e.public}")
        if problems:
            _log.warning("trust bundle is not everywhere", failed=len(problems), first=problems[0])
        self.problem = problems[0] if problems else ""

    def run(self) -> None:
        """Pass after pass, at each change and every so often, until `stop`."""
        while not self._stopping.is_set():
            self._wake.clear()
            try:
                self.step()
            except Exception:  # noqa: BLE001 - the next pass tries again; a thread that died would never
                _log.exception("distribution failed")
            pause = REPAIR_AFTER if self._written else EVERY
            if self._wake.wait(pause.total_seconds()):
                self._stopping.wait(0.2)  # changes come in crowds

    def start(self) -> threading.Thread:
        """`run` on a new daemon thread."""
        thread = threading.Thread(target=self.run, name="distribute", daemon=True)
        thread.start()
        return thread

    def poke(self) -> None:
        """Look soon: the bundle has changed, or this replica leads now."""
        self._wake.set()

    def stop(self) -> None:
        """End `run` soon."""
        self._stopping.set()
        self._wake.set()

    def _write(self, namespace: str, text: str) -> None:
        path = f"/api/v1/namespaces/{namespace}/configmaps"
        labels = {LABEL[0]: LABEL[1]}
        if self._published.get(namespace, self._name) is None:
            owner = self._owner()
            meta: dict[str, Any] = {"name": self._name, "namespace": namespace, "labels": labels}
            if owner is not None:
                meta["ownerReferences"] = [owner.reference()]
            body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {KEY: text}}
            try:
                self._api.create(path, body)
            except KubeError as e:
                if e.code is not KubeCode.ALREADY_EXISTS:
                    raise
            else:
                self._count("created")
                return
        patch = {"metadata": {"labels": labels}, "data": {KEY: text}}
        self._api.patch(f"{path}/{self._name}", patch, PatchType.MERGE)
        self._count("repaired")
        _log.info("trust bundle repaired", namespace=namespace)


def _ends(error: KubeError) -> bool:
    """True when the namespace went away under our hands, or the ConfigMap did: the watch will tell."""
    if error.code is KubeCode.NOT_FOUND:
        return True
    return error.code is KubeCode.FORBIDDEN and "being terminated" in error.public
