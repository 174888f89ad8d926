"""The pods that are alive, as this replica's own watch sees them: a token counts only for a live pod.

A token outlives its pod by up to an hour. So the pod that it is bound to must be there, with the same UID
(F-46), the same service account, and neither ended nor deleted (F-45). No API call is made for a
certificate, and what is known goes on to count while the API server is away (G-01).
"""

from __future__ import annotations

import datetime as dt
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ca.authn import AuthnCode, AuthnError, Caller
from mesh.kube.reflector import Collection
from mesh.kube.store import Key, Store

PODS: Final = Collection(path="/api/v1/pods", name="pods")
MAX_WAITERS: Final = 8  # threads that may wait for a pod at the same time
MAX_GONE: Final = 20_000  # UIDs of deleted pods that are remembered, about 150 bytes each
AFTER_DELETION: Final = dt.timedelta(seconds=30)
"""A pod that shuts down may renew until this long after the end of its grace period."""
_ENDED = frozenset({"Succeeded", "Failed"})


@dataclass(frozen=True, slots=True)
class PodFact:
    """What counts of a pod.

    Attributes:
        ends: end of the grace period of a pod that is being deleted.
        ended: all its containers have ended for good.
    """

    uid: str
    service_account: str
    node: str
    ends: dt.datetime | None
    ended: bool


def read_pod(item: Mapping[str, Any]) -> PodFact | None:
    """Trim a pod; any object is safe."""
    meta, spec, status = (_object(item, name) for name in ("metadata", "spec", "status"))
    uid = str(meta.get("uid") or "")
    if not uid:
        return None
    return PodFact(
        uid=uid,
        service_account=sys.intern(str(spec.get("serviceAccountName") or "default")),
        node=sys.intern(str(spec.get("nodeName") or "")),
        ends=_time(meta.get("deletionTimestamp")),
        ended=status.get("phase") in _ENDED,
    )


def _object(item: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = item.get(name)
    return value if isinstance(value, dict) else {}


def _time(value: Any) -> dt.datetime | None:
    """A deletion time; one that cannot be read counts as long past."""
    if value is None:
        return None
    try:
        found = dt.datetime.fromisoformat(str(value))
    except ValueError:
        return dt.datetime.min.replace(tzinfo=dt.UTC)
    return found if found.tzinfo is not None else found.replace(tzinfo=dt.UTC)


class LivePods:
    """Checks callers against a store of pods that a reflector keeps current.

    Args:
        store: filled with what `read_pod` gives.
        failing: True while the API server is away; then nobody waits for a pod to appear.
        patience: how long a caller waits for a pod that is not there yet: the watch is a moment behind
            the kubelet.
        monotonic: for that wait, in seconds.
    """

    def __init__(
        self,
        store: Store[PodFact],
        *,
        failing: Callable[[], bool],
        monotonic: Callable[[], float],
        patience: dt.timedelta = dt.timedelta(seconds=2),
    ) -> None:
        self._store = store
        self._failing = failing
        self._patience = patience.total_seconds()
        self._monotonic = monotonic
        self._changed = threading.Condition()
        self._waiters = 0
        self._known: dict[Key, str] = {}
        self._gone: OrderedDict[str, None] = OrderedDict()
        store.subscribe(self._note)
        self._note(frozenset(store.items()))

    @property
    def synced(self) -> bool:
        """True once all pods were listed."""
        return self._store.synced

    def __len__(self) -> int:
        return len(self._store)

    def check(self, caller: Caller, now: dt.datetime) -> None:
        """Pass only when the caller's pod is alive. A caller without a pod passes: policy has let it.

        Raises:
            AuthnError: UNAUTHENTICATED for a pod that is gone, or is another; UNAVAILABLE while the pods
                are not known, or when the pod was not seen in time.
        """
        if not caller.pod_uid:
            return
        if not self._store.synced:
            raise AuthnError(AuthnCode.PODS_NOT_LOADED, "the pods were not listed yet")
        namespace, account = caller.spiffe_id.service_account()
        pod = self._find((namespace, caller.pod_name), caller.pod_uid)
        where = f"pod {namespace}/{caller.pod_name} {caller.pod_uid}"
        if pod is None:
            if caller.pod_uid in self._gone:
                raise AuthnError(AuthnCode.POD_GONE, f"{where} was deleted")
            other = self._store.get(namespace, caller.pod_name)
            if other is not None:
                raise AuthnError(AuthnCode.POD_OTHER, f"{where}: the pod of this name has UID {other.uid}")
            raise AuthnError(AuthnCode.POD_UNKNOWN, f"{where} was not seen")
        if pod.service_account != account:
            raise AuthnError(
                AuthnCode.POD_OTHER, f"{where} runs as {pod.service_account!r}, the token says {account!r}"
            )
        if caller.node_name and pod.node and caller.node_name != pod.node:
            raise AuthnError(
                AuthnCode.POD_OTHER, f"{where} is on {pod.node!r}, the token says {caller.node_name[:80]!r}"
            )
        if pod.ended:
            raise AuthnError(AuthnCode.POD_GONE, f"{where} has ended")
        if pod.ends is not None and now > pod.ends + AFTER_DELETION:
            raise AuthnError(AuthnCode.POD_GONE, f"{where} should have ended at {pod.ends.isoformat()}")

    def _find(self, key: Key, uid: str) -> PodFact | None:
        """The pod, waited for when it may still come."""
        pod = self._store.get(*key)
        if pod is not None and pod.uid == uid:
            return pod
        with self._changed:
            if uid in self._gone or self._waiters >= MAX_WAITERS:
                return None
            self._waiters += 1
            try:
                deadline = self._monotonic() + self._patience
                while True:
                    pod = self._store.get(*key)
                    if pod is not None and pod.uid == uid:
                        return pod
                    left = deadline - self._monotonic()
                    if left <= 0 or uid in self._gone or self._failing():
                        return None
                    self._changed.wait(left)
            finally:
                self._waiters -= 1

    def _note(self, changed: frozenset[Key]) -> None:
        """Remember UIDs that went away, on the reflector's thread."""
        with self._changed:
            for key in changed:
                before = self._known.get(key)
                pod = self._store.get(*key)
                now = pod.uid if pod is not None else None
                if before is not None and before != now:
                    self._gone[before] = None
                    if len(self._gone) > MAX_GONE:
                        self._gone.popitem(last=False)
                if now is None:
                    self._known.pop(key, None)
                else:
                    self._known[key] = now
            self._changed.notify_all()
