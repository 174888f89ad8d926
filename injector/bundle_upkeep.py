"""Keeps `caBundle` of our webhook configurations equal to the roots in force, and tries it.

Order at a rotation of roots: the authority adds a root to its ConfigMap; here it is published beside
the old one; the keepers then change their leaves; when the old root has left the ConfigMap it stays
published for the overlap, and as long as a webhook is met that still needs it.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence

from injector import ca_bundle
from injector.ca_bundle import BundleCode, BundleError, Entry
from injector.metrics import UpkeepMetrics
from mesh.errors import Category, MeshError
from mesh.kube.api import KubeApi, KubeCode, KubeError, PatchType
from mesh.obs.logs import logger
from mesh.x509 import pem

ROOT_KEY = "root-cert.pem"

_log = logger(__name__)


class BundleUpkeep:
    """Compares and repairs.

    Args:
        call: tries a bundle by a TLS call to the Service; raises BundleError.
        overlap: how long a root that is no longer in force stays published.
    """

    def __init__(
        self,
        api: KubeApi,
        *,
        namespace: str,
        service: str,
        selector: str,
        roots_config_map: str,
        call: Callable[[str], None],
        overlap: dt.timedelta,
        metrics: UpkeepMetrics,
    ) -> None:
        self._api = api
        self._namespace, self._service = namespace, service
        self._selector = selector
        self._roots = f"/api/v1/namespaces/{namespace}/configmaps/{roots_config_map}"
        self._call = call
        self._overlap = overlap
        self._metrics = metrics
        self._left_at: dict[bytes, dt.datetime] = {}

    def step(self, now: dt.datetime, allowed: Callable[[], bool] = lambda: True) -> int:
        """Look, repair, try; the number of entries whose bundle does not work.

        Raises:
            KubeError: the API server does not answer, or forbids it.
            BundleError: there are no roots to publish.
        """
        current = self._current()
        entries = ca_bundle.list_entries(self._api, self._selector, self._namespace, self._service)
        bundle = self._bundle(current, entries, now)
        self._metrics.bundle_roots.set(bundle.count("BEGIN CERTIFICATE"))
        self._publish(entries, bundle, allowed)
        bad = self._try(entries, bundle)
        self._metrics.bundle_mismatch.set(bad)
        return bad

    def _current(self) -> tuple[bytes, ...]:
        found = self._api.get(self._roots)
        text = str((found.get("data") or {}).get(ROOT_KEY, ""))
        try:
            return pem.decode_certificates(text)
        except MeshError as error:
            raise BundleError(
                BundleCode.ROOTS,
                f"{self._roots} holds no roots under {ROOT_KEY}: {error.public}",
                category=Category.UNAVAILABLE,
            ) from error

    def _bundle(self, current: Sequence[bytes], entries: Sequence[Entry], now: dt.datetime) -> str:
        kept = []
        left = ca_bundle.left_over(current, (entry.bundle_pem for entry in entries), now)
        self._left_at = {der: self._left_at.get(der, now) for der in left}
        for der, since in self._left_at.items():
            if now - since < self._overlap or not self._works(ca_bundle.bundle_of(current)):
                kept.append(der)
        return ca_bundle.bundle_of([*current, *kept][: ca_bundle.MAX_ROOTS])

    def _publish(self, entries: Sequence[Entry], bundle: str, allowed: Callable[[], bool]) -> None:
        for path in dict.fromkeys(entry.path for entry in entries):
            operations = ca_bundle.patch_of([e for e in entries if e.path == path], bundle)
            if not operations or not allowed():
                continue
            try:
                self._api.patch(path, operations, PatchType.JSON, fieldManager="gatehouse-upkeep")
            except KubeError as error:
                self._metrics.bundle_patches.labels(result=str(error.code)).inc()
                # The entries moved, or the object went, since they were read: the next look sees it.
                if error.code in {KubeCode.CONFLICT, KubeCode.NOT_FOUND, KubeCode.INVALID}:
                    _log.warning("a caBundle was not patched", configuration=path, error=error)
                    continue
                raise
            self._metrics.bundle_patches.labels(result="ok").inc()
            _log.info("caBundle patched", configuration=path, entries=len(operations) // 2)

    def _try(self, entries: Sequence[Entry], bundle: str) -> int:
        if not entries:
            return 0
        try:
            self._call(bundle)
        except BundleError as error:
            _log.error("the published caBundle does not work", error=error)
            return len(entries)
        return 0

    def _works(self, bundle: str) -> bool:
        try:
            self._call(bundle)
        except BundleError:
            return False
        return True
