"""The one exception among Gatehouse's pods: what captures on the nodes, and how little it has beside that."""

from __future__ import annotations

from typing import Any

import kubernetes_validate
import pytest

from injector.core.inject import InjectorSettings
from tests.charts.test_openshift import REQUIRED, RESTRICTED_V2, refusals
from tests.fakes.helm import CHART, HelmError, Rendered, render
from tests.fakes.injector_pods import CLASSIC, a_pod, injected

NODE: dict[str, Any] = {"capture": {"mode": "node"}}


def pod_of(chart: Rendered) -> dict[str, Any]:
    template = chart.one("DaemonSet", "gatehouse-capture")["spec"]["template"]
    assert isinstance(template, dict)
    return template


def container(template: dict[str, Any], name: str) -> dict[str, Any]:
    return next(dict(found) for found in template["spec"]["containers"] if found["name"] == name)


def test_it_is_asked_for_by_one_of_two_words() -> None:
    with pytest.raises(HelmError, match=r"capture\.mode"):
        render(values={"capture": {"mode": "nodes"}})


def test_the_capture_worker_is_the_only_exception_and_has_nothing_else() -> None:
    """Rights on the node, and neither token nor port nor file of it; what it is told comes by a socket."""
    for tls in (False, True):
        chart = render(values={"capture": {"mode": "node"}, "metrics": {"tls": tls}})
        worker = container(pod_of(chart), "worker")
        context = worker["securityContext"]
        rights = {"drop": ["ALL"], "add": ["SYS_ADMIN", "SYS_PTRACE", "NET_ADMIN"]}
        assert context["capabilities"] == rights
        assert (context["runAsUser"], context["allowPrivilegeEscalation"]) == (0, False)
        assert worker["volumeMounts"] == [{"name": "worker", "mountPath": "/run/gatehouse-capture"}]
        assert not {"ports", "env", "livenessProbe"} & set(worker)
        assert worker["image"].endswith("gatehouse/proxy:0.1.0")
    assert "capture" not in render().text.replace("node_capture", ""), (
        "it is there only where it is asked for"
    )


@pytest.mark.parametrize("kube", ["1.20.2", "1.29.0", "1.30.0", "1.36.1"])
def test_apparmor_lets_the_worker_see_the_processes_of_pods(kube: str) -> None:
    template = pod_of(render(values=NODE, kube=kube))
    worker = container(template, "worker")
    annotation = "container.apparmor.security.beta.kubernetes.io/worker"
    by_field = worker["securityContext"].get("appArmorProfile") == {"type": "Unconfined"}
    by_annotation = template["metadata"]["annotations"].get(annotation) == "unconfined"
    assert (by_field, by_annotation) == ((True, False) if kube >= "1.30" else (False, True))


def test_the_capture_agent_reads_pods_and_nothing_else() -> None:
    for events in (True, False):
        chart = render(values={"capture": {"mode": "node"}, "injector": {"events": events}})
        role = chart.one("ClusterRole", "gatehouse-capture")
        rights = [(rule["resources"], rule["verbs"]) for rule in role["rules"]]
        told = [(["events"], ["create"])] if events else []
        assert rights == [(["pods"], ["list", "watch"]), *told]
        assert "gatehouse-capture" not in {item["metadata"]["name"] for item in chart.all("Role")}


def test_openshift_has_constraints_for_it() -> None:
    chart = render(files=[CHART / "values-openshift.yaml"], values=NODE, kube="1.26.0")
    found = chart.one("SecurityContextConstraints", "gatehouse-capture")
    spec = pod_of(chart)["spec"]
    assert set(found) >= REQUIRED
    assert refusals(found, spec) <= {"hostPID"}, "which the judge knows of restricted pods only"
    assert found["allowHostPID"] is True
    assert {"capability SYS_ADMIN", "runAsUser 0", "seLinuxOptions"} <= refusals(RESTRICTED_V2, spec)
    assert found["users"] == ["system:serviceaccount:istio-system:gatehouse-capture"]
    worker, users = container(pod_of(chart), "worker"), spec["securityContext"]
    assert worker["securityContext"]["seLinuxOptions"] == {"type": "spc_t"}
    assert users["runAsGroup"] == worker["securityContext"]["runAsGroup"], (
        "they meet, whatever podSecurity says"
    )
    usual = render(files=[CHART / "values-openshift.yaml"], kube="1.26.0")
    assert {item["metadata"]["name"] for item in usual.all("SecurityContextConstraints")} == {
        "gatehouse-nodeagent"
    }


@pytest.mark.parametrize("version", ["1.25", "1.31", "1.37"])
def test_kubernetes_own_schemas_know_every_field(version: str) -> None:
    items = render(values=NODE, kube=f"{version}.0").objects
    assert "gatehouse-capture" in {item["metadata"]["name"] for item in items}
    for item in [*items, injected(a_pod(), CLASSIC, config=InjectorSettings(node_capture=True))]:
        kubernetes_validate.validate(item, version, strict=True)
