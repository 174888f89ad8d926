"""The cluster of the tests (docs/testing.md): KUBECONFIG's, else one that is started here.

A plugin, not a conftest: the contracts in tests/contract and the paths in tests/e2e/cluster share one
cluster and one installation.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster import cluster, images, packages
from tests.cluster.kubectl import Kubectl
from tests.cluster.layout import Layout
from tests.cluster.mesh import Mesh
from tests.cluster.under_test import ClusterUnderTest

_NUMBERS = itertools.count(1)


@pytest.fixture(scope="session")
def kube() -> Iterator[ClusterUnderTest]:
    """The cluster, with the images of the working tree in it."""
    place = Layout.default()
    given = os.environ.get("KUBECONFIG", "")
    if given and Path(given) != place.kubeconfig:
        registry = os.environ.get("E2E_IMAGE_REGISTRY", "")
        if not registry:
            pytest.skip("KUBECONFIG is set, E2E_IMAGE_REGISTRY is not: push the images there and name it")
        tag = os.environ.get("E2E_IMAGE_TAG", images.TAG)
        yield ClusterUnderTest(Kubectl(Path(given)), registry, tag, None)
        return
    if reason := packages.why_not_here():
        pytest.skip(f"no KUBECONFIG, and no cluster can be started here: {reason}")
    with cluster.exclusive(place, wait=True):
        was_up = cluster.is_up(place)
        kubeconfig = cluster.up(place)
        cluster.load_images(place)
        yield ClusterUnderTest(Kubectl(kubeconfig), images.REGISTRY, images.TAG, place)
        if not was_up and not os.environ.get("E2E_KEEP"):
            cluster.down(place)


@pytest.fixture
def kubeconfig(kube: ClusterUnderTest, monkeypatch: pytest.MonkeyPatch, socket_enabled: None) -> Path:
    """The cluster's kubeconfig, also in KUBECONFIG: for tests of our own clients."""
    monkeypatch.setenv("KUBECONFIG", str(kube.kubectl.kubeconfig))
    return kube.kubectl.kubeconfig


@pytest.fixture
def new_namespace(kube: ClusterUnderTest) -> Iterator[Callable[..., Kubectl]]:
    """`new_namespace(label=value)`: a kubectl in a namespace of its own, removed after the test."""
    made: list[str] = []

    def make(**labels: str) -> Kubectl:
        name = f"e2e-{os.getpid()}-{next(_NUMBERS)}"
        metadata = {"name": name, "labels": {key.replace("_", "-"): value for key, value in labels.items()}}
        kube.kubectl.apply([{"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}])
        made.append(name)
        return kube.kubectl.within(name)

    yield make
    for name in made:
        kube.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture
def namespace(new_namespace: Callable[..., Kubectl]) -> Kubectl:
    """One namespace without a sidecar in it."""
    return new_namespace()


@pytest.fixture(scope="session")
def mesh(kube: ClusterUnderTest) -> Iterator[Mesh]:
    """Gatehouse, installed by the chart with default values."""
    found = Mesh(kube)
    found.install()
    yield found
    if not os.environ.get("E2E_KEEP"):
        found.uninstall()


@pytest.fixture
def injected(mesh: Mesh, new_namespace: Callable[..., Kubectl]) -> Kubectl:
    """A namespace whose pods get a sidecar."""
    return new_namespace(istio_injection="enabled")
