"""What an operator sees: a Prometheus that finds the pods of a real mesh by annotations, our dashboards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

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

_META = "__meta_kubernetes_pod"
# Of annotations, as most configurations of Prometheus have it; names of labels as its operator gives them.
_RELABELS = [
    {"source_labels": [f"{_META}_label_app_kubernetes_io_part_of"], "regex": "gatehouse", "action": "keep"},
    {"source_labels": [f"{_META}_annotation_prometheus_io_scrape"], "regex": "true", "action": "keep"},
    {"source_labels": [f"{_META}_phase"], "regex": "Running", "action": "keep"},
    {
        "source_labels": [f"{_META}_ip", f"{_META}_annotation_prometheus_io_port"],
        "separator": ":",
        "target_label": "__address__",
    },
    {"source_labels": [f"{_META}_annotation_prometheus_io_path"], "target_label": "__metrics_path__"},
    {"source_labels": ["__meta_kubernetes_namespace"], "target_label": "namespace"},
    {"source_labels": [f"{_META}_name"], "target_label": "pod"},
]


@pytest.fixture
def prometheus(mesh: Mesh, tmp_path: Path, socket_enabled: None) -> Iterator[Prometheus]:
    """On this machine, which reaches the pods."""
    if mesh.kube.layout is None:
        pytest.skip("the pods of another cluster cannot be reached from here")
    discovery = {
        "role": "pod",
        "kubeconfig_file": str(mesh.kube.kubectl.kubeconfig),
        "namespaces": {"names": [NAMESPACE]},
    }
    job = {
        "job_name": "pods",
        "scrape_interval": "2s",
        "kubernetes_sd_configs": [discovery],
        "relabel_configs": _RELABELS,
    }
    config = yaml.safe_dump({"scrape_configs": [job]})
    with running(tmp_path, config) as found:
        wait_for("targets that answer", lambda: _healthy(mesh, found), seconds=60)
        yield found


def _healthy(mesh: Mesh, prometheus: Prometheus) -> bool:
    targets = prometheus.targets()
    pods = {item["metadata"]["name"] for item in mesh.kubectl.pods("app.kubernetes.io/part-of=gatehouse")}
    return {target["labels"]["pod"] for target in targets if target["health"] == "up"} >= pods


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

    # New pods came while it looked: what tells of them is more than a line of zeros.
    namespace = {"namespace": NAMESPACE, "pod": ".*"}
    seen = {str(query): prometheus.query(query.filled(namespace)) for query in queries()}
    for panel, label, value in (
        ("identities: Certificates issued A", "key_kind", "P-256"),
        ("injection: Pods, by outcome A", "outcome", "patched"),
        ("nodeagents: Volumes published and taken away A", "call", "publish"),
        ("nodeagents: Open streams A", "api", "ads"),
    ):
        found = {series["metric"].get(label): float(series["value"][1]) for series in seen[panel]}
        assert found[value] > 0, (panel, found)
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
