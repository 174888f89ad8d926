"""`meshctl check` where nodes capture: an agent on every node, and pods that wait for one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from injector.core.settings import InjectorSettings
from tests.fakes.kube_api import FakeKube
from tests.fakes.meshctl_check import check, rows
from tests.fakes.meshctl_cluster import CONFIG, NAMESPACE, component, injected, install, pod


@pytest.fixture
def kube() -> Iterator[FakeKube]:
    with FakeKube() as found:
        install(found)
        yield found


def node_mode(kube: FakeKube) -> None:
    text = CONFIG.replace("{version: 0.1.0}", "{version: 0.1.0, node_capture: true}")
    assert text != CONFIG
    meta = {"name": "gatehouse-injector-config", "namespace": NAMESPACE}
    kube.add({"kind": "ConfigMap", "metadata": meta, "data": {"injector.yaml": text}})


def capture_pod(node: str, *, ready: bool = True) -> dict[str, Any]:
    labels = component("capture")
    return pod(f"gatehouse-capture-{node}", node=node, namespace=NAMESPACE, labels=labels, ready=ready)


def test_where_pods_capture_themselves_nobody_asks(kube: FakeKube, tmp_path: Path) -> None:
    assert "capture-agents" not in rows(check(kube, tmp_path, "-o", "json"))


def test_an_agent_on_every_node(kube: FakeKube, tmp_path: Path) -> None:
    node_mode(kube)
    kube.add(capture_pod("node1"), capture_pod("node2"))
    row = rows(check(kube, tmp_path, "-o", "json"))["capture-agents"]
    assert (row["status"], row["message"]) == ("ok", "2 nodes write capture rules for their pods")


@pytest.mark.parametrize("agents", [["node1"], ["node1", "node2"]], ids=["missing", "not-ready"])
def test_a_node_without_one(kube: FakeKube, tmp_path: Path, agents: list[str]) -> None:
    node_mode(kube)
    for name in agents:
        kube.add(capture_pod(name, ready=name == "node1"))
    row = rows(check(kube, tmp_path, "-o", "json"))["capture-agents"]
    assert (row["status"], row["objects"]) == ("fail", ["node2"])
    assert "1 of 2 nodes without a ready capture agent" in str(row["message"])
    assert f"kubectl -n {NAMESPACE}" in str(row["next"])


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"running": {}}, "has not written the rules yet"),
        ({"waiting": {"reason": "CrashLoopBackOff"}}, "istio-validation: CrashLoopBackOff"),
        ({"terminated": {"exitCode": 1}}, "istio-validation: ended with 1"),
    ],
    ids=["waits", "again-and-again", "failed"],
)
def test_a_pod_that_waits_says_for_whom(
    kube: FakeKube, tmp_path: Path, state: dict[str, Any], said: str
) -> None:
    item = injected(pod("web-5d9c-c", ready=False), InjectorSettings(node_capture=True))
    item["status"]["containerStatuses"] = []
    item["status"]["initContainerStatuses"] = [{"name": "istio-validation", "state": state}]
    kube.add(item)
    row = rows(check(kube, tmp_path, "-o", "json"))["pods-broken"]
    assert row["status"] == "fail"
    assert said in str(row["objects"])
