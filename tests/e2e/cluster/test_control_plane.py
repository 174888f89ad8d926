"""The control plane as a neighbour: what its absence may block, what its metrics tell, and jobs that end."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from tests.cluster.kubectl import Kubectl
from tests.cluster.marks import CLUSTER
from tests.cluster.mesh import NAMESPACE, Mesh
from tests.cluster.objects import account, pod
from tests.cluster.run import ClusterError, wait_for
from tests.cluster.shop import open_shop

pytestmark = CLUSTER


def test_without_the_webhook_only_labelled_namespaces_wait(
    mesh: Mesh, injected: Kubectl, namespace: Kubectl
) -> None:
    """`failurePolicy: Fail` blocks no system namespace, not our own, and no namespace without the label."""
    injector = "deployment/gatehouse-injector"
    replicas = mesh.kubectl.get(injector)["spec"]["replicas"]
    item = pod("probe", mesh.kube.image("bookshop"), args=["details"])
    mesh.kubectl("scale", injector, "--replicas=0")
    try:
        mesh.kubectl.wait_gone("pods", "--selector=app.kubernetes.io/component=injector")
        with pytest.raises(ClusterError, match="failed calling webhook"):
            injected.apply([item])
        for free in (namespace, mesh.kubectl, mesh.kube.kubectl.within("kube-system")):
            free.apply([item])
            free("delete", "pod", "probe", "--wait=false")
    finally:
        mesh.kubectl("scale", injector, f"--replicas={replicas}")
        mesh.wait()
    injected.apply([item])
    (found,) = injected.wait_ready()
    assert len(found["spec"]["containers"]) == 2


def test_a_job_ends(mesh: Mesh, injected: Kubectl) -> None:
    """In classic mode the proxy must not outlive the job's own container."""
    open_shop(mesh.kube, injected).wait_answer()
    get = ["python", "-m", "bookshop", "get", "http://server:9080/headers"]
    template = pod("once", mesh.kube.image("bookshop"), command=get, restart="Never", account="client")
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "once"},
        "spec": {
            "backoffLimit": 0,
            "template": {"metadata": template["metadata"], "spec": template["spec"]},
        },
    }
    injected.apply([job])

    def ended() -> bool:
        conditions = injected.get("job", "once").get("status", {}).get("conditions", [])
        assert "Failed" not in [item["type"] for item in conditions], injected.story()
        return "Complete" in [item["type"] for item in conditions]

    wait_for("the end of the job", ended, seconds=180)
    (found,) = [item for item in injected.items("pods") if item["metadata"]["name"].startswith("once-")]
    assert {status["name"] for status in found["status"]["containerStatuses"]} == {"app", "istio-proxy"}
    assert f"/ns/{injected.namespace}/sa/client" in injected("logs", found["metadata"]["name"], "-c", "app")


def test_metrics_are_served_and_hold_no_secret(
    mesh: Mesh, injected: Kubectl, new_namespace: Callable[..., Kubectl]
) -> None:
    """Each process has a port of its own for Prometheus; what is on it is names and numbers."""
    shop = open_shop(mesh.kube, injected)
    shop.wait_answer()
    outside = new_namespace()
    outside.apply([account("prometheus"), pod("scraper", mesh.kube.image("bookshop"), args=["details"])])
    outside.wait_ready()
    seen = set()
    for item in [*mesh.kubectl.pods(), *injected.pods()]:
        annotations = item["metadata"].get("annotations", {})
        if annotations.get("prometheus.io/scrape") != "true":
            continue
        place = f"{item['status']['podIP']}:{annotations['prometheus.io/port']}"
        url = f"http://{place}{annotations.get('prometheus.io/path', '/metrics')}"
        code, text = outside.execute("scraper", "app", "python", "-m", "bookshop", "get", url)
        assert code == 0, (item["metadata"]["name"], text)
        assert re.search(r"(?m)^# TYPE \w+ (counter|gauge|histogram)$", text)
        assert not re.search(r"BEGIN|eyJ[A-Za-z0-9_-]{10}", text)
        seen.add(item["metadata"]["labels"].get("app.kubernetes.io/component") or "workload")
    assert seen >= {"ca", "injector", "nodeagent", "workload"}
    assert {item["metadata"]["namespace"] for item in mesh.kubectl.pods()} == {NAMESPACE}
