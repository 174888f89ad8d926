"""A hundred pods at once, and a mesh that goes away without a trace."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tests.cluster.kubectl import Kubectl
from tests.cluster.marks import CLUSTER
from tests.cluster.mesh import Mesh
from tests.cluster.objects import account
from tests.cluster.shop import PATIENT, open_shop, workload

pytestmark = CLUSTER

MANY = 100


def seconds_to_ready(mesh: Mesh, kubectl: Kubectl) -> float:
    """From creation until all pods are Ready."""
    started = time.monotonic()
    kubectl.apply([account("many"), workload(mesh.kube, "many", replicas=MANY, probes=PATIENT)])
    kubectl.wait_ready("app=many", count=MANY, seconds=900)
    return time.monotonic() - started


@pytest.mark.slow
def test_a_hundred_pods_at_once(
    mesh: Mesh,
    new_namespace: Callable[..., Kubectl],
    record_property: Callable[[str, object], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Every one gets its identity; the time with and without injection, side by side."""
    times = {}
    for injection in ("disabled", "enabled"):
        kubectl = new_namespace(istio_injection=injection)
        times[injection] = seconds_to_ready(mesh, kubectl)
        pods = kubectl.pods()
        sidecars = sum("istio-proxy" in [c["name"] for c in pod["spec"]["containers"]] for pod in pods)
        assert (len(pods), sidecars) == (MANY, MANY if injection == "enabled" else 0)
        restarts = sum(
            status["restartCount"] for pod in pods for status in pod["status"]["containerStatuses"]
        )
        assert restarts == 0
        kubectl("delete", "deployment", "many", "--wait=false")
        kubectl("delete", "pods", "--all", "--grace-period=1", "--wait=false")
        kubectl.wait_gone("pods", seconds=300)
        record_property(f"seconds_to_{MANY}_ready_{injection}", round(times[injection], 1))
    with capsys.disabled():
        print(
            f"\n{MANY} pods Ready: {times['disabled']:.0f} s without, {times['enabled']:.0f} s with sidecars"
        )


def test_uninstall_leaves_nothing(mesh: Mesh, new_namespace: Callable[..., Kubectl]) -> None:
    """INS-07: no object, no Terminating pod, and pods can be made afterwards."""
    injected = new_namespace(istio_injection="enabled")
    open_shop(mesh.kube, injected)
    injected("delete", "deployments", "--all")
    injected.wait_gone("pods")
    try:
        mesh.uninstall()
        mesh.kubectl.wait_gone("pods")
        assert mesh.leftovers() == set()
        assert not mesh.kube.kubectl("get", "namespaces", "--selector=app.kubernetes.io/part-of=gatehouse")
        injected.apply([account("server"), workload(mesh.kube, "server")])
        (item,) = injected.wait_ready()
        assert len(item["spec"]["containers"]) == 1
    finally:
        mesh.install()
