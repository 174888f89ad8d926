"""What a cluster test gets to see."""

from __future__ import annotations

from dataclasses import dataclass

from tests.cluster.kubectl import Kubectl
from tests.cluster.layout import Layout


@dataclass(frozen=True, slots=True)
class ClusterUnderTest:
    """A cluster that can pull our images.

    Args:
        kubectl: for any namespace.
        registry: what precedes gatehouse/NAME in image names.
        tag: the images' tag.
        layout: set when the cluster is our own and its nodes can be entered.
    """

    kubectl: Kubectl
    registry: str
    tag: str
    layout: Layout | None

    def image(self, name: str) -> str:
        """The full name of `control`, `proxy` or `bookshop`."""
        return f"{self.registry}/gatehouse/{name}:{self.tag}"

    def nodes(self) -> list[str]:
        """The names of the nodes."""
        return [node["metadata"]["name"] for node in self.kubectl.items("nodes")]
