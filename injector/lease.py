"""Leader election by a Lease (coordination.k8s.io/v1), on compare-and-swap.

A candidate takes the Lease when its holder has not changed it for a whole term *on the candidate's own
monotonic clock*: wall clocks of different nodes are never compared. A leader stops to be one by itself
when it could not renew within two thirds of the term, before anybody else can take over.
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from mesh.clock import Clock, SystemClock
from mesh.kube.api import KubeApi, KubeCode, KubeError
from mesh.obs.logs import logger

TERM_SECONDS: Final = 15
_LOST: Final = frozenset({KubeCode.CONFLICT, KubeCode.ALREADY_EXISTS, KubeCode.NOT_FOUND})

_log = logger(__name__)


class Election:
    """One candidate.

    Args:
        identity: unique for each process, e.g. the name of the pod.
        term_seconds: how long a silent leader is still respected.
    """

    def __init__(
        self,
        api: KubeApi,
        *,
        namespace: str,
        name: str,
        identity: str,
        term_seconds: int = TERM_SECONDS,
        clock: Clock | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api = api
        self._collection = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._path = f"{self._collection}/{name}"
        self._namespace, self._name = namespace, name
        self._identity = identity
        self._term = term_seconds
        self._clock = clock or SystemClock()
        self._monotonic = monotonic
        self._renewed: float | None = None
        self._observed: tuple[str, float] = ("", 0.0)

    @property
    def leading(self) -> bool:
        """True while nobody else can hold the Lease. Ask before every write."""
        return self._renewed is not None and self._monotonic() - self._renewed < self._term * 2 / 3

    @property
    def pause(self) -> float:
        """Seconds until the next `step`."""
        return self._term / 7

    def step(self) -> bool:
        """Renew, or take a Lease that is free; True when this process leads."""
        was = self.leading
        # The term counts from before the request: the server may have taken it at once.
        at = self._monotonic()
        try:
            if self._try(at):
                self._renewed = at
            else:
                self._renewed = None
        except KubeError as error:
            if error.code in _LOST:
                self._renewed = None
            else:
                _log.warning("the Lease cannot be renewed", lease=self._name, error=error)
        if was != self.leading:
            _log.info("leading" if self.leading else "no longer leading", lease=self._name)
        return self.leading

    def release(self) -> None:
        """Let the next one take over at once; failures are left to the term."""
        if not self.leading:
            return
        self._renewed = None
        try:
            lease = self._api.get(self._path)
            if (lease.get("spec") or {}).get("holderIdentity") == self._identity:
                spec = {**lease["spec"], "holderIdentity": "", "leaseDurationSeconds": 1}
                self._api.replace(self._path, {**lease, "spec": spec})
        except KubeError as error:
            _log.warning("the Lease was not released", lease=self._name, error=error)

    def _try(self, at: float) -> bool:
        try:
            lease = self._api.get(self._path)
        except KubeError as error:
            if error.code is not KubeCode.NOT_FOUND:
                raise
            self._api.create(
                self._collection,
                {
                    "apiVersion": "coordination.k8s.io/v1",
                    "kind": "Lease",
                    "metadata": {"name": self._name, "namespace": self._namespace},
                    "spec": self._spec({}),
                },
            )
            return True
        spec: Mapping[str, Any] = lease.get("spec") or {}
        holder = str(spec.get("holderIdentity") or "")
        if holder not in {"", self._identity} and not self._is_stale(lease, at):
            return False
        # With its resourceVersion: of two candidates one gets a conflict.
        self._api.replace(self._path, {**lease, "spec": self._spec(spec)})
        return True

    def _is_stale(self, lease: Mapping[str, Any], at: float) -> bool:
        version = str((lease.get("metadata") or {}).get("resourceVersion", ""))
        if version != self._observed[0]:
            self._observed = (version, at)
        seconds = (lease.get("spec") or {}).get("leaseDurationSeconds")
        term = max(seconds, self._term) if isinstance(seconds, int) else self._term
        return at - self._observed[1] >= term

    def _spec(self, old: Mapping[str, Any]) -> dict[str, Any]:
        now = self._clock.now().astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        same = old.get("holderIdentity") == self._identity
        changes = int(old.get("leaseTransitions") or 0)
        return {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": self._term,
            "acquireTime": old.get("acquireTime") or now if same else now,
            "renewTime": now,
            "leaseTransitions": changes if same or not old else changes + 1,
        }
