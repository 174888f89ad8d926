"""Leader election on a `coordination.k8s.io/v1` Lease, as client-go does it.

One candidate at a time holds the Lease, by compare-and-swap on its version. The times that others wrote
are never compared with our clock: a Lease counts as expired when *we* have seen no change of it for its
whole duration, so clocks may differ. A leader stops to be one on its own clock before anybody can take
over: it must have renewed within `renew_within`, which is shorter than `duration`.
"""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mesh.clock import Clock
from mesh.kube.api import KubeApi, KubeCode, KubeError
from mesh.obs.logs import logger

log = logger(__name__)
_TIME = "%Y-%m-%dT%H:%M:%S.%fZ"
_LOST = frozenset({KubeCode.CONFLICT, KubeCode.ALREADY_EXISTS, KubeCode.NOT_FOUND, KubeCode.INVALID})


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseConfig:
    """What is held, and for how long.

    Attributes:
        holder: unique for each process, e.g. the pod's name.
        duration: after which others may take over a Lease that does not change; whole seconds.
        renew_within: after which a leader that cannot renew stops; shorter than `duration`.
        retry: pause between two tries; under half of `renew_within`.
    """

    namespace: str
    name: str
    holder: str
    duration: dt.timedelta = dt.timedelta(seconds=15)
    renew_within: dt.timedelta = dt.timedelta(seconds=10)
    retry: dt.timedelta = dt.timedelta(seconds=2)

    def __post_init__(self) -> None:
        if not self.holder or not self.name or not self.namespace:
            raise ValueError("a lease needs a namespace, a name and a holder")
        if not dt.timedelta(0) < 2 * self.retry < self.renew_within < self.duration:
            raise ValueError("a lease needs 2 * retry < renew_within < duration")

    @property
    def path(self) -> str:
        """Of the collection."""
        return f"/apis/coordination.k8s.io/v1/namespaces/{self.namespace}/leases"


class Elector:
    """Tries to lead, and to go on leading.

    Drive it by `step` (tests), or by `run` on a thread of its own. Ask `leading` before each piece of a
    leader's work: it is false as soon as somebody else could lead.

    Args:
        clock: for what is written, which only people read.
        monotonic: for what is decided, in seconds.
        changed: told True when leading begins and False when it ends, on the thread of `step`.
    """

    def __init__(
        self,
        api: KubeApi,
        config: LeaseConfig,
        *,
        clock: Clock,
        monotonic: Callable[[], float],
        changed: Callable[[bool], None] | None = None,
    ) -> None:
        self._api = api
        self._config = config
        self._clock = clock
        self._monotonic = monotonic
        self._changed = changed
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._lease: Mapping[str, Any] | None = None  # as it was seen last
        self._seen_at = 0.0  # when it was seen to change
        self._renewed_at: float | None = None  # None = not leading
        self._holder = ""

    @property
    def leading(self) -> bool:
        """True while nobody else can hold the Lease."""
        renewed = self._renewed_at
        return renewed is not None and self._monotonic() - renewed < self._config.renew_within.total_seconds()

    @property
    def holder(self) -> str:
        """Who was seen to lead last; empty when nobody was."""
        return self._holder

    def step(self) -> bool:
        """One try to take or renew the Lease; returns `leading`. Never raises for what the server says."""
        with self._lock:
            if self._stop.is_set():
                return self.leading  # what was released is not taken again
            before = self._renewed_at is not None
            began = self._monotonic()
            try:
                won = self._try(began)
            except KubeError as error:
                won = False
                if error.code not in _LOST:
                    log.warning("lease cannot be renewed", lease=self._config.name, code=str(error.code))
                if error.code in _LOST:
                    self._lease = None  # read it anew
            if won:
                # Counted from before the request: the server may have been slow to answer.
                self._renewed_at = began
            elif not self.leading or self._holder != self._config.holder:
                self._renewed_at = None
            leading = self.leading
            self._tell(before, leading)
            return leading

    def run(self) -> None:
        """Step until `stop`, then release the Lease."""
        while not self._stop.is_set():
            self.step()
            self._stop.wait(self._config.retry.total_seconds())
        self.release()

    def start(self) -> threading.Thread:
        """`run` on a new daemon thread."""
        thread = threading.Thread(target=self.run, name=f"lease-{self._config.name}", daemon=True)
        thread.start()
        return thread

    def stop(self) -> None:
        """End `run` soon."""
        self._stop.set()

    def release(self) -> None:
        """Give the Lease up, so that the next one need not wait for it to expire."""
        with self._lock:
            held = self._renewed_at is not None
            self._renewed_at = None
            self._tell(held, False)
            if not held or self._lease is None:
                return
            spec = {**_spec(self._lease), "holderIdentity": "", "leaseDurationSeconds": 1}
            try:
                self._put(self._lease, spec)
            except KubeError as error:
                log.info("lease was not released", lease=self._config.name, code=str(error.code))

    def _tell(self, before: bool, now: bool) -> None:
        if before == now:
            return
        log.info("leading" if now else "leading no more", lease=self._config.name, holder=self._config.holder)
        if self._changed is not None:
            self._changed(now)

    def _try(self, began: float) -> bool:
        config = self._config
        if self._lease is None or self._renewed_at is None:
            found = self._read()
            if found is None:
                return self._create()
            self._see(found, began)
        lease = self._lease
        assert lease is not None  # noqa: S101 - for the type checker: seen above
        spec = _spec(lease)
        mine = self._holder == config.holder
        if not mine and self._holder and not self._expired(spec, began):
            return False
        now = self._clock.now().astimezone(dt.UTC).strftime(_TIME)
        transitions = spec.get("leaseTransitions")
        count = transitions if isinstance(transitions, int) else 0
        fresh = {
            "holderIdentity": config.holder,
            "leaseDurationSeconds": round(config.duration.total_seconds()),
            "acquireTime": spec.get("acquireTime") or now if mine else now,
            "renewTime": now,
            "leaseTransitions": count if mine else count + 1,
        }
        self._put(lease, fresh)
        return True

    def _expired(self, spec: Mapping[str, Any], now: float) -> bool:
        seconds = spec.get("leaseDurationSeconds")
        if not isinstance(seconds, int) or seconds <= 0:
            seconds = round(self._config.duration.total_seconds())
        return now - self._seen_at >= seconds

    def _read(self) -> Mapping[str, Any] | None:
        try:
            found = self._api.get(f"{self._config.path}/{self._config.name}")
        except KubeError as error:
            if error.code is KubeCode.NOT_FOUND:
                return None
            raise
        return found if isinstance(found, dict) else {}

    def _see(self, lease: Mapping[str, Any], now: float) -> None:
        if self._lease is None or _version(lease) != _version(self._lease):
            self._seen_at = now
        self._lease = lease
        self._holder = str(_spec(lease).get("holderIdentity") or "")

    def _create(self) -> bool:
        config = self._config
        now = self._clock.now().astimezone(dt.UTC).strftime(_TIME)
        spec = {
            "holderIdentity": config.holder,
            "leaseDurationSeconds": round(config.duration.total_seconds()),
            "acquireTime": now,
            "renewTime": now,
            "leaseTransitions": 0,
        }
        body = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"namespace": config.namespace, "name": config.name},
            "spec": spec,
        }
        self._see(self._api.create(config.path, body), self._monotonic())
        return True

    def _put(self, lease: Mapping[str, Any], spec: Mapping[str, Any]) -> None:
        """Compare-and-swap: the version in the metadata is the one that was seen."""
        body = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", **lease, "spec": dict(spec)}
        path = f"{self._config.path}/{self._config.name}"
        self._see(self._api.replace(path, body), self._monotonic())


def _spec(lease: Mapping[str, Any]) -> Mapping[str, Any]:
    spec = lease.get("spec")
    return spec if isinstance(spec, dict) else {}


def _version(lease: Mapping[str, Any]) -> str:
    return str((lease.get("metadata") or {}).get("resourceVersion", ""))
