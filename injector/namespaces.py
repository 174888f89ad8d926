"""What the injector knows of namespaces: their labels, and the annotations that are defaults for pods.

A cache by list and watch. Where the cache would leave a pod alone, the API server is asked once more:
a namespace that was labelled a moment ago may not be in the cache yet, and a pod that silently stays
out of the mesh is the worst of outcomes.
"""

from __future__ import annotations

import datetime as dt
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from injector.core.openshift import UID_RANGE
from mesh.kube.api import KubeApi, KubeCode, KubeError
from mesh.kube.reflector import Collection, Events, Reflector
from mesh.kube.store import Store

_OURS: Final = ("istio.io/", ".istio.io/", "pod-security.kubernetes.io/", UID_RANGE)
NAMESPACES: Final = Collection(path="/api/v1/namespaces", name="namespaces")
LOOKUP_TIMEOUT: Final = dt.timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class Namespace:
    """A namespace, trimmed to what injection reads."""

    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)


def read_namespace(item: Mapping[str, Any]) -> Namespace:
    """Trim an object; keys are interned, and annotations of others are left out (they may be large)."""
    meta = item.get("metadata") or {}
    return Namespace(
        labels={sys.intern(str(k)): sys.intern(str(v)) for k, v in (meta.get("labels") or {}).items()},
        annotations={
            sys.intern(str(k)): str(v)
            for k, v in (meta.get("annotations") or {}).items()
            if any(part in str(k) for part in _OURS)
        },
    )


class Namespaces:
    """The cache, with a second look at the API server.

    Args:
        api: for list and watch.
        lookup: for single reads within a request: the same server with a short time-out.
    """

    def __init__(
        self,
        api: KubeApi,
        lookup: KubeApi,
        *,
        events: Events | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lookup = lookup
        self._store: Store[Namespace] = Store()
        self._reflector = Reflector(
            api, NAMESPACES, read_namespace, self._store, events=events, monotonic=monotonic
        )

        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Watch on a thread; after the fork only."""
        self._thread = self._reflector.start()

    def stop(self) -> None:
        """End the watch."""
        self._reflector.stop()

    @property
    def synced(self) -> bool:
        """True once all namespaces are known."""
        return self._store.synced

    @property
    def alive(self) -> bool:
        """False when the thread of the watch has died of a fault of ours; a restart is the cure."""
        return self._thread is None or self._thread.is_alive()

    def __len__(self) -> int:
        return len(self._store)

    def get(self, name: str) -> Namespace | None:
        """From the cache."""
        return self._store.get("", name)

    def ask(self, name: str) -> Namespace | None:
        """From the API server; None when there is no such namespace.

        Raises:
            KubeError: no answer.
        """
        try:
            item = self._lookup.get(f"/api/v1/namespaces/{name}")
        except KubeError as error:
            if error.code is KubeCode.NOT_FOUND:
                return None
            raise
        return read_namespace(item)
