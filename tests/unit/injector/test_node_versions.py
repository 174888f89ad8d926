"""Upkeep publishes kubelet versions, the webhook watches them: both sides on one API server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from injector.core.nodes import DATA_KEY, NodeFacts, NodeVersions
from injector.node_versions import NodesUpkeep, PublishedNodes
from injector.published import PublishedText
from mesh.kube.api import KubeError
from tests.fakes.injector_running import wait_for
from tests.fakes.kube_api import FakeKube

NAME = "gatehouse-nodes"
NEW, OLD = NodeFacts(31, frozenset({"pool=new"})), NodeFacts(28, frozenset({"pool=old"}))


@pytest.fixture
def kube() -> Iterator[FakeKube]:
    with FakeKube() as kube:
        kube.add({"kind": "Namespace", "metadata": {"name": "istio-system"}})
        yield kube


class World:
    def __init__(self, kube: FakeKube) -> None:
        self.kube = kube
        self.nodes: list[NodeFacts] | None = [NEW]
        self.upkeep = self.leader()

    def leader(self) -> NodesUpkeep:
        text = PublishedText(self.kube.api(), namespace="istio-system", name=NAME, key=DATA_KEY)
        return NodesUpkeep(text, lambda: self.nodes)

    def published(self) -> dict[str, Any] | None:
        found = self.kube.find("ConfigMap", NAME, "istio-system")
        return None if found is None else json.loads(found["data"][DATA_KEY])

    def writes(self) -> int:
        return sum(request.method in {"PATCH", "POST"} for request in self.kube.requests)


@pytest.fixture
def world(kube: FakeKube) -> World:
    return World(kube)


def test_the_answer_is_published_and_follows_the_nodes(world: World) -> None:
    world.upkeep.step()
    assert world.published() == {"schema": 1, "oldest": 31, "native_labels": []}
    world.nodes = [NEW, OLD]
    world.upkeep.step()
    assert world.published() == {"schema": 1, "oldest": 28, "native_labels": ["pool=new"]}


def test_the_same_answer_is_not_written_again(world: World) -> None:
    world.upkeep.step()
    before = world.writes()
    world.nodes = [NEW, NEW]
    world.upkeep.step()
    world.leader().step()
    assert world.writes() == before


@pytest.mark.parametrize("nodes", [None, []], ids=["not-listed-yet", "none"])
def test_nothing_known_changes_nothing(world: World, nodes: list[NodeFacts] | None) -> None:
    world.upkeep.step()
    world.nodes = nodes
    world.upkeep.step()
    assert world.published() == {"schema": 1, "oldest": 31, "native_labels": []}


def test_who_lost_the_lease_does_not_write(world: World) -> None:
    world.upkeep.step(lambda: False)
    assert world.published() is None
    world.upkeep.step()
    assert world.published() is not None


def test_what_somebody_emptied_is_filled_again(world: World) -> None:
    world.upkeep.step()
    world.kube.add({"kind": "ConfigMap", "metadata": {"name": NAME, "namespace": "istio-system"}})
    world.upkeep.step()
    assert world.published() == {"schema": 1, "oldest": 31, "native_labels": []}


def test_an_api_server_that_refuses_is_told(world: World, kube: FakeKube) -> None:
    kube.routes["GET", f"/api/v1/namespaces/istio-system/configmaps/{NAME}"] = lambda _: (403, {})
    with pytest.raises(KubeError):
        world.upkeep.step()


def test_the_webhook_knows_nothing_until_something_is_published_and_then_follows(
    world: World, kube: FakeKube
) -> None:
    nodes = PublishedNodes(kube.api(), namespace="istio-system", name=NAME)
    nodes.start()
    try:
        kube.add({"kind": "ConfigMap", "metadata": {"name": NAME, "namespace": "istio-system"}})
        assert nodes.current is None
        world.upkeep.step()
        wait_for(lambda: nodes.current == NodeVersions(31), "the answer has come")
        world.nodes = [NEW, OLD]
        world.upkeep.step()
        wait_for(lambda: nodes.current == NodeVersions(28, frozenset({"pool=new"})), "it follows")
        data = {DATA_KEY: '{"schema":2}'}
        kube.add({"kind": "ConfigMap", "metadata": {"name": NAME, "namespace": "istio-system"}, "data": data})
        wait_for(lambda: nodes.current is None, "what is not understood is not known")
    finally:
        nodes.stop()
