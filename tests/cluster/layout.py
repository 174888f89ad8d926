"""Where the cluster of the tests keeps things, and its addresses.

Everything is private to this cluster: state directory, network namespaces, addresses, control groups. So
it runs beside another cluster on the same machine.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]

BUILD = 3  # counts up when tests/cluster/build.py builds something else
SERVERS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy")
PAUSE_IMAGE = "localhost/pause:3"

API_ADDRESS, API_PORT = "10.253.0.1", 6443
NODE_NETWORK_PREFIX = 24
HOST_ADDRESS, HOST_PEER = (
    "10.253.1.1",
    "10.253.1.2",
)  # the machine's end of its link to the cluster, and the other
HOST_LINK = "ghk-host"
SERVICE_NETWORK, SERVICE_API = "10.97.0.0/16", "10.97.0.1"
POD_NETWORK = "10.245.0.0/16"
CLUSTER_NETWORKS = ("10.253.0.0/24", POD_NETWORK, SERVICE_NETWORK)  # what the machine reaches over HOST_LINK
DOMAIN = "cluster.local"
CONTROL_NAMESPACE = "ghk-control"


@dataclass(frozen=True, slots=True)
class NodePlace:
    """One node: its names, addresses and directories. `number` counts from 1."""

    number: int
    state: Path

    @property
    def name(self) -> str:
        return f"node{self.number}"

    @property
    def namespace(self) -> str:
        return f"ghk-{self.name}"

    @property
    def address(self) -> str:
        return f"10.253.0.{10 + self.number}"

    @property
    def pod_network(self) -> str:
        return f"10.245.{self.number}.0/24"

    @property
    def cgroup(self) -> str:
        return f"ghk-{self.name}"

    @property
    def directory(self) -> Path:
        return self.state / self.name

    @property
    def containerd_socket(self) -> Path:
        return self.directory / "containerd.sock"


@dataclass(frozen=True, slots=True)
class Layout:
    """All paths of one cluster.

    Args:
        state: everything that `down` removes. Short: Unix sockets live below it, their names hold 107 bytes.
        cache: what survives: server binaries, the base image, wheels, the image store.
        nodes: how many nodes.
    """

    state: Path
    cache: Path
    nodes: int = 2

    @classmethod
    def default(cls) -> Layout:
        """`GATEHOUSE_CLUSTER_STATE` and `GATEHOUSE_CLUSTER_CACHE` override the places."""
        return cls(
            Path(os.environ.get("GATEHOUSE_CLUSTER_STATE", "/tmp/ghk")),
            Path(os.environ.get("GATEHOUSE_CLUSTER_CACHE") or Path.home() / ".cache" / "gatehouse-kube"),
        )

    @property
    def places(self) -> list[NodePlace]:
        return [NodePlace(number, self.state) for number in range(1, self.nodes + 1)]

    @property
    def pki(self) -> Path:
        return self.state / "pki"

    @property
    def logs(self) -> Path:
        return self.state / "log"

    @property
    def kubeconfig(self) -> Path:
        return self.state / "kubeconfig"

    @property
    def binaries(self) -> Path:
        return self.cache / f"servers-{BUILD}"
