"""What an operator sees: a Prometheus that finds the pods of a real mesh by annotations, our dashboards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.kubectl import Kubectl
from tests.cluster.marks import CLUSTER
from tests.cluster.mesh import NAMESPACE, Mesh
from tests.cluster.run import wait_for
from tests.cluster.shop import open_shop
from tests.fakes.dashboards import Drawn, queries
from tests.fakes.helm import CHART
from tests.fakes.prometheus import Prometheus, running

pytestmark = CLUSTER


@pytest.fixture
def prometheus(mesh: Mesh, tmp_path: Path, socket_enabled: None) -> Iterator[Prometheus]:
    """On this machine, which reaches the pods."""
    if mesh.kube.layout is None:
        pytest.skip("the pods of another cluster cannot be reached from here")
    job = {"job_name": "pods", "scrape_interval": "2s", "static_configs": _targets(mesh)}
    config = yaml.safe_dump({"scrape_configs": [job]})
    with running(tmp_path, config) as found:
        wait_for("targets that answer", lambda: _healthy(found), seconds=60)
        yield found


def _targets(mesh: Mesh) -> list[dict[str, Any]]:
    """What a configuration for the annotations finds; Debian's Prometheus cannot ask an API server itself."""
    found = []
    for item in mesh.kubectl.pods("app.kubernetes.io/part-of=gatehouse"):
        annotations = item["metadata"]["annotations"]
        assert annotations["prometheus.io/scrape"] == "true"
        assert annotations["prometheus.io/path"] == "/metrics"
        address = f"{item['status']['podIP']}:{annotations['prometheus.io/port']}"
        labels = {"namespace": NAMESPACE, "pod": item["metadata"]["name"]}
        found.append({"targets": [address], "labels": labels})
    return found


def _healthy(prometheus: Prometheus) -> bool:
    targets = prometheus.targets()
    return len(targets) > 4 and {target["health"] for target in targets} == {"up"}


def test_no_panel_is_empty_and_no_alert_is_raised(
    mesh: Mesh, injected: Kubectl, prometheus: Prometheus
) -> None:
    open_shop(mesh.kube, injected).wait_answer()

    def empty() -> list[Drawn]:
        return [query for query in queries() if not prometheus.query(query.filled())]

    def all_drawn() -> bool:
        return not empty()

    try:
        wait_for("something in every panel", all_drawn, seconds=90, every=1)
    finally:
        assert [str(query) for query in empty()] == []

    # More pods come while it looks: the first of a kind is no increase, and a line of zeros proves little.
    injected("scale", "deployment/server", "--replicas=5")
    injected.wait_ready("app=server", count=5)
    namespace = {"namespace": NAMESPACE, "pod": ".*"}
    seen: dict[str, list[dict[str, Any]]] = {}
    wanted = {
        "identities: Certificates issued A": ("key_kind", "P-256"),
        "injection: Pods, by outcome A": ("outcome", "patched"),
        "nodeagents: Volumes published and taken away A": ("call", "publish"),
        "nodeagents: Open streams A": ("api", "ads"),
    }

    def moved() -> bool:
        seen.update({str(query): prometheus.query(query.filled(namespace)) for query in queries()})
        return all(
            any(
                series["metric"].get(label) == value and float(series["value"][1]) > 0
                for series in seen[panel]
            )
            for panel, (label, value) in wanted.items()
        )

    wait_for("what new pods cause", moved, seconds=60, every=1)
    ((workloads,),) = [[series["value"][1] for series in seen["nodeagents: Workloads A"]]]
    assert float(workloads) >= 2
    agents = {item["metadata"]["name"] for item in mesh.kubectl.pods("app.kubernetes.io/component=nodeagent")}
    memory = {series["metric"]["pod"]: float(series["value"][1]) for series in seen["nodeagents: Memory A"]}
    assert set(memory) == agents
    assert min(memory.values()) > 20 << 20

    raised = {
        alert["alert"]: found
        for alert in yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())
        if (found := prometheus.query(alert["expr"]))
    }
    assert raised == {}
