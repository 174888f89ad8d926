"""Tells authors what became of their policies: watches them all, writes Events and conditions.

On a thread of its own, because the first run in a large cluster takes minutes, and caBundle must not wait.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Any

from injector.core.policies import plural_of
from injector.events import EventSink
from injector.metrics import UpkeepMetrics
from injector.policy_events import PolicyEvents
from injector.policy_records import PolicyRecord, read_record
from injector.policy_status import PolicyStatus
from mesh.kube.api import KubeApi
from mesh.kube.reflector import Collection, Reflector
from mesh.kube.store import Store
from mesh.policy.model import API_VERSIONS, KINDS


class PolicyUpkeep:
    """Both ways of telling, from one judgement.

    Args:
        api: for the watches and the conditions.
        events: where Events go; None writes none.
        status: write conditions.

    Attributes:
        wake: set when a policy changed.
        rest: seconds after which more conditions can be written; infinite when none are left.
    """

    def __init__(
        self, api: KubeApi, *, events: EventSink | None, status: bool, metrics: UpkeepMetrics
    ) -> None:
        self.wake = threading.Event()
        self.rest = math.inf
        self._metrics = metrics
        self._stores: list[Store[PolicyRecord]] = []
        self._watches: list[Reflector[Any]] = []
        for kind in KINDS:
            store: Store[PolicyRecord] = Store()
            store.subscribe(lambda _: self.wake.set())
            collection = Collection(
                path=f"/apis/{API_VERSIONS[0]}/{plural_of(kind)}",
                name=f"{plural_of(kind)}_judged",
                optional=True,
            )
            self._watches.append(
                Reflector(api, collection, read_record(kind), store, monotonic=time.monotonic)
            )
            self._stores.append(store)
        self._events = None
        if events is not None:
            self._events = PolicyEvents(
                events, lambda: [r.remark for r in self._records() if r.remark is not None]
            )
        self._status = None
        if status:
            self._status = PolicyStatus(
                api, self._records, told=lambda result: metrics.policy_writes.labels(result=result).inc()
            )

    def start(self) -> None:
        """Watch, and write Events, on threads."""
        for watch in self._watches:
            watch.start()
        if self._events is not None:
            self._events.start()

    def wait_synced(self, timeout_seconds: float) -> bool:
        """Wait until all policies are known."""
        return all(store.wait_synced(timeout_seconds) for store in self._stores)

    def stop(self) -> None:
        """End the watches; write the Events that are queued."""
        for watch in self._watches:
            watch.stop()
        if self._events is not None:
            self._events.stop()

    def step(self, allowed: Callable[[], bool]) -> None:
        """Tell what has not been told.

        Args:
            allowed: asked before each write: is this still the leader?

        Raises:
            KubeError: a condition was not written; what could be written is.
        """
        self.rest = math.inf
        self._metrics.refused_policies.set(sum(r.wanted.status == "False" for r in self._records()))
        if self._events is not None:
            self._events.step()
        if self._status is not None:
            self.rest = self._status.step(allowed)

    def _records(self) -> list[PolicyRecord]:
        return [record for store in self._stores for record in store.values()]
