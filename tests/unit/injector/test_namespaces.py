"""Namespaces: what is kept of them, and the second look."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from injector.namespaces import Namespace, Namespaces, read_namespace
from mesh.kube.api import KubeError
from tests.fakes.injector_running import wait_for
from tests.fakes.kube_api import FakeKube


@pytest.fixture
def kube() -> Iterator[FakeKube]:
    with FakeKube() as kube:
        yield kube


def test_only_what_injection_reads_is_kept() -> None:
    found = read_namespace(
        {
            "metadata": {
                "name": "shop",
                "labels": {"istio-injection": "enabled", "team": "a"},
                "annotations": {
                    "sidecar.istio.io/proxyCPU": "50m",
                    "pod-security.kubernetes.io/enforce": "baseline",
                    "kubectl.kubernetes.io/last-applied-configuration": "x" * 10_000,
                },
            }
        }
    )
    assert found.labels == {"istio-injection": "enabled", "team": "a"}
    assert set(found.annotations) == {"sidecar.istio.io/proxyCPU", "pod-security.kubernetes.io/enforce"}


@pytest.mark.parametrize(
    "item", [{}, {"metadata": None}, {"metadata": {"labels": None, "annotations": None}}]
)
def test_bare_objects_are_read(item: dict[str, object]) -> None:
    assert read_namespace(item) == Namespace()


def test_the_cache_follows_and_the_second_look_asks(kube: FakeKube) -> None:
    namespaces = Namespaces(kube.api(), kube.api())
    assert not namespaces.synced
    assert namespaces.alive
    namespaces.start()
    try:
        wait_for(lambda: namespaces.synced, "the first list")
        kube.add({"kind": "Namespace", "metadata": {"name": "shop", "labels": {"a": "b"}}})
        wait_for(lambda: namespaces.get("shop"), "the watch")
        found = namespaces.get("shop")
        assert found is not None
        assert found.labels["a"] == "b"
        assert namespaces.ask("shop") == found
        assert namespaces.ask("nowhere") is None
        assert len(namespaces) == 5
        kube.fail(500, times=1)
        with pytest.raises(KubeError):
            namespaces.ask("shop")
    finally:
        namespaces.stop()
