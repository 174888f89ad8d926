"""Which nodes can run native sidecars: what upkeep publishes of kubelets, and what the webhook makes of it.

An init container with `restartPolicy: Always` is an ordinary init container to a kubelet before 1.29: the
proxy would never end and the application never start. So a pod gets a native sidecar only where every node
that it may run on is known to be new enough. What is published is an answer, not an inventory: the oldest
kubelet, and, if that is too old, the labels that only new enough nodes have.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

NATIVE_MINOR: Final = 29
DATA_KEY: Final = "nodes.json"
"""In the ConfigMap."""
SCHEMA: Final = 1
MAX_LABELS: Final = 500
"""Labels that are published at most, those of the most nodes first."""
_VERSION: Final = re.compile(r"v1\.([0-9]{1,4})\..*")
_OS_LABEL: Final = "kubernetes.io/os"
_OF_ONE_NODE: Final = frozenset({"kubernetes.io/hostname"})


class _Server(Protocol):
    @property
    def native_sidecars(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """A node, trimmed.

    Attributes:
        minor: of its kubelet's version 1.x; 0 when that cannot be read, which is too old.
        labels: `key=value`.
    """

    minor: int
    labels: frozenset[str]


def read_node(item: Mapping[str, Any]) -> NodeFacts | None:
    """Trim a Node object; None when no pod of the mesh can run there (another operating system)."""
    labels = (item.get("metadata") or {}).get("labels") or {}
    info = (item.get("status") or {}).get("nodeInfo") or {}
    if labels.get(_OS_LABEL, info.get("operatingSystem") or "linux") != "linux":
        return None
    version = _VERSION.fullmatch(str(info.get("kubeletVersion", "")))
    return NodeFacts(
        int(version[1]) if version else 0,
        frozenset(sys.intern(f"{key}={value}") for key, value in labels.items() if key not in _OF_ONE_NODE),
    )


@dataclass(frozen=True, slots=True)
class NodeVersions:
    """What is published.

    Attributes:
        oldest: minor of the oldest kubelet.
        native_labels: `key=value` that only nodes with native sidecars have; empty when all have them.
    """

    oldest: int
    native_labels: frozenset[str] = frozenset()

    def native(self, node_selector: Mapping[str, Any]) -> bool:
        """True when a pod with that `nodeSelector` can only run on nodes with native sidecars."""
        if self.oldest >= NATIVE_MINOR:
            return True
        return any(f"{key}={value}" in self.native_labels for key, value in node_selector.items())

    def to_json(self) -> str:
        """The text that is published."""
        return json.dumps(
            {"schema": SCHEMA, "oldest": self.oldest, "native_labels": sorted(self.native_labels)},
            separators=(",", ":"),
        )

    @classmethod
    def from_json(cls, text: str) -> NodeVersions | None:
        """The inverse of `to_json`; None for anything else: then nothing is known."""
        try:
            found = json.loads(text)
        except ValueError:
            return None
        if not isinstance(found, dict) or found.get("schema") != SCHEMA:
            return None
        labels = found.get("native_labels")
        if (
            type(found.get("oldest")) is not int
            or not isinstance(labels, list)
            or not all(isinstance(label, str) for label in labels)
        ):
            return None
        return cls(found["oldest"], frozenset(labels))


def summarise(nodes: Iterable[NodeFacts]) -> NodeVersions | None:
    """The answer for these nodes; None for none at all: that says nothing about those to come."""
    known = list(nodes)
    if not known:
        return None
    oldest = min(node.minor for node in known)
    if oldest >= NATIVE_MINOR:
        return NodeVersions(oldest)
    spoilt = {label for node in known if node.minor < NATIVE_MINOR for label in node.labels}
    count = Counter(label for node in known for label in node.labels - spoilt)
    best = sorted(count, key=lambda label: (-count[label], label))[:MAX_LABELS]
    return NodeVersions(oldest, frozenset(best))


@dataclass(frozen=True, slots=True)
class NodesAndServer:
    """The cluster as the webhook knows it; see `injector.core.settings.Cluster`.

    Attributes:
        nodes: None while nothing is published.
    """

    server: _Server
    nodes: NodeVersions | None

    def native(self, node_selector: Mapping[str, Any]) -> bool | None:
        """True, False, or None when nothing is known of the nodes."""
        if not self.server.native_sidecars:
            return False
        return None if self.nodes is None else self.nodes.native(node_selector)
