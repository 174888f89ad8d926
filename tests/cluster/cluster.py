"""Starts and stops the cluster of the tests."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.cluster import images, namespaces, packages, servers
from tests.cluster.build import build
from tests.cluster.images import ImageStore
from tests.cluster.layout import Layout
from tests.cluster.pki import ClusterCa
from tests.cluster.run import ClusterError, run, wait_for, works

_PROXY_BINDING = ("test-cluster-proxy", "--clusterrole=system:node-proxier", "--user=system:kube-proxy")


@dataclass(frozen=True, slots=True)
class Status:
    """What is there: the names of running parts, and of nodes that are Ready."""

    running: list[str]
    ready: list[str]


def up(place: Layout) -> Path:
    """Start the cluster unless it runs; returns its kubeconfig.

    Raises:
        ClusterError: it cannot run here, or a part did not come up; logs are in `place.logs`.
    """
    if reason := packages.why_not_here():
        raise ClusterError(f"no cluster on this machine: {reason}")
    with _lock(place):
        if is_up(place):
            return place.kubeconfig
        _down(place)
        packages.install()
        build(place)
        place.state.mkdir(mode=0o755, parents=True)
        try:
            _start(place)
        except ClusterError as error:
            raise ClusterError(f"{error}\nlogs: {place.logs}; next: python -m tests.cluster down") from error
    return place.kubeconfig


def _start(place: Layout) -> None:
    namespaces.create_network(place)
    ca = ClusterCa(place.pki, datetime.datetime.now(datetime.UTC))
    servers.start_control(place, ca)
    for node in place.places:
        servers.start_node(place, node, ca)
    sockets = [node.containerd_socket for node in place.places]
    wait_for("containerd on every node", lambda: all(map(_answers, sockets)), seconds=60)
    pause = place.state / "pause.tar"
    images.pause_archive(place, pause)
    images.load(place, pause)
    wait_for("the API server", lambda: works(_kubectl(place, "get", "--raw", "/readyz")), seconds=120)
    run(_kubectl(place, "create", "clusterrolebinding", *_PROXY_BINDING))
    wait_for("Ready nodes", lambda: len(_ready(place)) == place.nodes, seconds=120)


def _answers(socket: Path) -> bool:
    return socket.exists() and works(["ctr", "-a", socket, "version"], timeout=5)


def load_images(place: Layout) -> list[str]:
    """Build our images from the working tree and load those that changed into the nodes."""
    with _lock(place):
        store = ImageStore(place)
        names = store.build()
        # What each name means on the nodes now: a tree that comes back to an earlier image loads it again.
        record = place.state / "loaded.json"
        loaded = json.loads(record.read_text(encoding="ascii")) if record.exists() else {}
        wanted = {name: store.image_id(name) for name in names}
        if new := [name for name, image in wanted.items() if loaded.get(name) != image]:
            archive = place.state / "images.tar"
            store.export(new, archive)
            images.load(place, archive)
            archive.unlink()
        record.write_text(json.dumps(wanted), encoding="ascii")
        return names


def down(place: Layout) -> None:
    """Stop everything and remove every trace but the cache; safe to repeat."""
    with _lock(place):
        _down(place)


def _down(place: Layout) -> None:
    for node in place.places:
        servers.node_tree(node).stop()
    servers.control_tree(place).stop()
    namespaces.remove_network(place)
    for node in place.places:
        servers.remove_cgroup(node)
    if place.state.exists():
        shutil.rmtree(place.state)


def status(place: Layout) -> Status:
    """What runs now."""
    trees = [servers.control_tree(place), *map(servers.node_tree, place.places)]
    return Status([tree.name for tree in trees if tree.outer_pid()], _ready(place))


def is_up(place: Layout) -> bool:
    """Whether every node is Ready."""
    return len(_ready(place)) == place.nodes


def _ready(place: Layout) -> list[str]:
    if not place.kubeconfig.exists():
        return []
    template = '{range .items[*]}{.metadata.name}={.status.conditions[?(@.type=="Ready")].status}{"\\n"}{end}'
    try:
        lines = run(_kubectl(place, "get", "nodes", "-o", f"jsonpath={template}")).splitlines()
    except ClusterError:
        return []
    return [line.removesuffix("=True") for line in lines if line.endswith("=True")]


def _kubectl(place: Layout, *words: str) -> list[str]:
    return ["kubectl", f"--kubeconfig={place.kubeconfig}", "--request-timeout=10s", *words]


@contextlib.contextmanager
def exclusive(place: Layout, *, wait: bool) -> Iterator[None]:
    """Be the only user of the cluster: runs of tests install and remove things, and would break each other.

    Args:
        place: the cluster.
        wait: for the end of another user, instead of giving up.

    Raises:
        ClusterError: somebody else uses it.
    """
    place.cache.mkdir(parents=True, exist_ok=True)
    with (place.cache / "user").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise ClusterError(
                "a run of tests uses the cluster; next: wait for its end, or end it"
            ) from error
        yield


@contextlib.contextmanager
def _lock(place: Layout) -> Iterator[None]:
    """One `up` or `down` at a time: test processes run in parallel."""
    place.cache.mkdir(parents=True, exist_ok=True)
    with (place.cache / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
