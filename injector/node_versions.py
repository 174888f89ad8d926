"""Kubelet versions on their way: upkeep's leader watches nodes and publishes the answer for the webhook.

Only upkeep may read nodes. The webhook watches one ConfigMap; what it does not know it takes for too old.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from injector.core.nodes import DATA_KEY, NodeFacts, NodeVersions, summarise
from injector.published import PublishedText
from mesh.kube.api import KubeApi
from mesh.kube.reflector import Collection, Events, Reflector
from mesh.kube.store import Store
from mesh.obs.logs import logger

NODES: Final = Collection(path="/api/v1/nodes", name="nodes")

_log = logger(__name__)


class NodesUpkeep:
    """Keeps the ConfigMap.

    Args:
        nodes: all of them; None while they are not known yet.
    """

    def __init__(self, published: PublishedText, nodes: Callable[[], Iterable[NodeFacts] | None]) -> None:
        self._published = published
        self._nodes = nodes

    def step(self, allowed: Callable[[], bool] = lambda: True) -> None:
        """Publish what has changed.

        Raises:
            KubeError: the ConfigMap cannot be read or written.
        """
        nodes = self._nodes()
        found = summarise(nodes) if nodes is not None else None
        if found is None:
            return  # what is published stays: it was true a moment ago
        text = found.to_json()
        if text != self._published.read() and allowed():
            self._published.write(text)
            _log.info(
                "kubelet versions published", oldest=found.oldest, native_labels=len(found.native_labels)
            )


def read_published(item: Mapping[str, Any]) -> NodeVersions | None:
    """The answer in the ConfigMap; None when it holds none that this version understands."""
    return NodeVersions.from_json(str((item.get("data") or {}).get(DATA_KEY, "")))


class PublishedNodes:
    """The webhook's side: watches the ConfigMap."""

    def __init__(
        self,
        api: KubeApi,
        *,
        namespace: str,
        name: str,
        events: Events | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._key = (namespace, name)
        self._store: Store[NodeVersions] = Store()
        collection = Collection(
            path=f"/api/v1/namespaces/{namespace}/configmaps",
            name="node_versions",
            query={"fieldSelector": f"metadata.name={name}"},
        )
        self._reflector = Reflector(
            api, collection, read_published, self._store, events=events, monotonic=monotonic
        )
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Watch on a thread; after the fork only."""
        self._thread = self._reflector.start()

    def stop(self) -> None:
        """End the watch."""
        self._reflector.stop()

    @property
    def current(self) -> NodeVersions | None:
        """What is known; None = nothing."""
        return self._store.get(*self._key)
