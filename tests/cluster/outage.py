"""Outages of the cluster's own programs, where the cluster is ours."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import pytest

from tests.cluster.layout import Layout
from tests.cluster.namespaces import Tree
from tests.cluster.servers import control_tree, node_tree
from tests.cluster.under_test import ClusterUnderTest


def own(kube: ClusterUnderTest) -> Layout:
    """The layout of our own cluster; skips the test on any other."""
    if kube.layout is None:
        pytest.skip("needs to enter the nodes: not on KUBECONFIG's cluster")
    return kube.layout


@contextlib.contextmanager
def api_server_hangs(kube: ClusterUnderTest) -> Iterator[None]:
    """The API server answers nothing inside the block, and goes on where it was afterwards."""
    with _stopped([control_tree(own(kube))], "/kube-apiserver --"):
        yield


@contextlib.contextmanager
def node_agents_hang(kube: ClusterUnderTest) -> Iterator[None]:
    """No node agent does anything inside the block."""
    with _stopped([node_tree(node) for node in own(kube).places], "^python -m nodeagent serve"):
        yield


def last(seconds: float) -> None:
    """Let an outage last: its length is what is tested, no condition could tell its end."""
    time.sleep(seconds)


@contextlib.contextmanager
def _stopped(trees: list[Tree], pattern: str) -> Iterator[None]:
    # Inside the trees' process namespaces there is nothing but their own processes.
    for tree in trees:
        tree.enter(["pkill", "-STOP", "-f", pattern])
    try:
        yield
    finally:
        for tree in trees:
            tree.enter(["pkill", "-CONT", "-f", pattern])
