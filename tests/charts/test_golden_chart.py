"""The whole release as data, and what must never change from one render to the next."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.fakes.helm import CHART, HelmError, Rendered, helm, render

PRODUCTION: dict[str, Any] = {
    "image": {
        "registry": "registry.example.com/team",
        "control": {"digest": f"sha256:{'a' * 64}"},
        "proxy": {"digest": f"sha256:{'b' * 64}"},
        "pullSecrets": ["registry"],
        "podPullSecrets": ["registry"],
    },
    "commonLabels": {"team": "mesh"},
    "commonAnnotations": {"owner": "platform"},
    "trustDomain": "prod.example",
    "metrics": {"tls": True, "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}}},
    "networkPolicy": {
        "metricsFrom": [
            {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
        ],
        "egress": {"enabled": True},
    },
    "ca": {"autoscaling": {"enabled": True, "minReplicas": 3, "maxReplicas": 6}},
    "injector": {"autoscaling": {"enabled": True, "minReplicas": 3, "targetCPU": 60}},
    "upkeep": {"issuerRoots": "-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----\n"},
    "extraObjects": [
        {
            "apiVersion": "scheduling.k8s.io/v1",
            "kind": "PriorityClass",
            "metadata": {"name": "shop", "annotations": {"note": "{{ not a template }}"}},
            "value": 1_000_000,
        },
        """\
apiVersion: v1
kind: ConfigMap
metadata:
  name: {{ include "gatehouse.fullname" . }}-trust-domain
  namespace: {{ .Release.Namespace }}
data:
  trust-domain: {{ .Values.trustDomain }}
---
apiVersion: v1
kind: ConfigMap
metadata:
  name: {{ .Release.Name }}-second
""",
    ],
}


def _by_name(chart: Rendered) -> dict[str, Any]:
    """Objects by kind and name; the definitions have their own tests."""
    return {
        f"{item['kind']}/{item['metadata']['name']}": item
        if item["kind"] != "CustomResourceDefinition"
        else {"metadata": item["metadata"]}
        for item in chart.objects
    }


def _production(kube: str = "1.32.0") -> Rendered:
    return render(values=PRODUCTION, files=[CHART / "values-ha.yaml"], kube=kube)


def test_golden_defaults(golden: Callable[[str, Any], None]) -> None:
    golden("charts/defaults.yaml", _by_name(render()))


def test_golden_production(golden: Callable[[str, Any], None]) -> None:
    golden("charts/production.yaml", _by_name(_production()))


def test_golden_node_capture_adds_and_changes_these_objects_only(golden: Callable[[str, Any], None]) -> None:
    plain, node = _by_name(render()), _by_name(render(values={"capture": {"mode": "node"}}))
    changed = {name: item for name, item in node.items() if plain.get(name) != item}
    assert set(plain) <= set(node)
    assert set(changed) == {
        "ConfigMap/gatehouse-injector-config",
        "Deployment/gatehouse-injector",
        "Deployment/gatehouse-upkeep",
        *(
            f"{kind}/gatehouse-capture"
            for kind in ("ClusterRole", "ClusterRoleBinding", "DaemonSet", "NetworkPolicy", "ServiceAccount")
        ),
    }
    golden("charts/node-capture.yaml", {name: changed[name] for name in changed if name not in plain})


def test_golden_kubernetes_1_20_differs_in_these_objects_only(golden: Callable[[str, Any], None]) -> None:
    new, old = _by_name(render()), _by_name(render(kube="1.20.2"))
    changed = {name: item for name, item in old.items() if new.get(name) != item}
    assert set(changed) == {
        "PodDisruptionBudget/gatehouse-ca",
        "PodDisruptionBudget/gatehouse-injector",
        "MutatingWebhookConfiguration/gatehouse-sidecar-injector",
        "ValidatingWebhookConfiguration/gatehouse-policy-validator",
    }
    golden("charts/kubernetes-1.20.yaml", changed)


@pytest.mark.parametrize(
    ("kube", "budget", "conditions"),
    [
        ("1.20.2", "policy/v1beta1", False),
        ("1.21.0", "policy/v1", False),
        ("1.29.3-gke.1", "policy/v1", False),
        ("1.30.0", "policy/v1", True),
        ("1.36.1", "policy/v1", True),
    ],
)
def test_what_depends_on_the_cluster(kube: str, budget: str, conditions: bool) -> None:
    chart = render(kube=kube)
    assert {item["apiVersion"] for item in chart.all("PodDisruptionBudget")} == {budget}
    webhook = chart.one("MutatingWebhookConfiguration", "gatehouse-sidecar-injector")
    assert {"matchConditions" in entry for entry in webhook["webhooks"]} == {conditions}


@pytest.mark.parametrize(
    ("kube", "version"),
    [("1.20.2", "autoscaling/v2beta2"), ("1.22.17", "autoscaling/v2beta2"), ("1.23.0", "autoscaling/v2")],
)
def test_an_autoscaler_has_the_number_of_replicas(kube: str, version: str) -> None:
    chart = render(values={"ca": {"autoscaling": {"enabled": True, "targetCPU": 70}}}, kube=kube)
    (scaler,) = chart.all("HorizontalPodAutoscaler")
    assert scaler["apiVersion"] == version
    assert scaler["spec"]["scaleTargetRef"]["name"] == "gatehouse-ca"
    assert (scaler["spec"]["minReplicas"], scaler["spec"]["maxReplicas"]) == (2, 10)
    assert scaler["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"] == 70
    assert "replicas" not in chart.one("Deployment", "gatehouse-ca")["spec"]
    assert chart.one("Deployment", "gatehouse-injector")["spec"]["replicas"] == 2
    for deployment in _production().all("Deployment"):
        for container in deployment["spec"]["template"]["spec"]["containers"]:
            assert container["resources"]["requests"]["cpu"]  # what the share is a share of


@pytest.fixture
def notes(tmp_path: Path) -> Callable[..., str]:
    """NOTES.txt, which `helm template` leaves out: shown as an object of a copy of the chart."""

    def show(kube: str = "1.32.0", **values: Any) -> str:
        copy = tmp_path / "copy"
        shutil.copytree(CHART, copy, dirs_exist_ok=True)
        templates = copy / "templates"
        text = (templates / "NOTES.txt").read_text()
        (templates / "notes.yaml").write_text(
            f'{{{{ define "notes" }}}}{text}{{{{ end }}}}data: {{{{ include "notes" $ | quote }}}}'
        )
        file = tmp_path / "values.yaml"
        file.write_text(yaml.safe_dump(values))
        output = helm(
            "template", "gatehouse", str(copy), "--namespace=istio-system", f"--kube-version={kube}",
            f"--values={file}", "--show-only=templates/notes.yaml",
        )  # fmt: skip
        return str(yaml.safe_load(output)["data"])

    return show


def test_notes_say_what_to_do_next(notes: Callable[..., str]) -> None:
    text = notes()
    for line in (
        "kubectl -n istio-system rollout status deployment,daemonset -l app.kubernetes.io/instance=gatehouse",
        "kubectl label namespace NAMESPACE istio-injection=enabled",
        "kubectl -n NAMESPACE rollout restart deployment",
        "image.registry is empty",
        "Before `helm uninstall`",
        "removes the policy kinds",
    ):
        assert line in text
    assert "WARNING" not in text
    assert "IMPORTANT" not in text


def test_notes_tell_where_dashboards_are(notes: Callable[..., str]) -> None:
    assert "Grafana" not in notes()
    text = notes(metrics={"dashboards": {"enabled": True}})
    assert "for a sidecar that selects grafana_dashboard=1 and looks into this namespace" in text
    assert "kubectl -n istio-system get configmap -l app.kubernetes.io/component=dashboards" in text


def test_notes_tell_what_is_special(notes: Callable[..., str]) -> None:
    text = notes(
        kube="1.20.2",
        crds={"keep": True},
        image={"registry": "r"},
        injector={"replicas": 1, "revision": "blue"},
    )
    assert "kubectl label namespace $n kubernetes.io/metadata.name=$n" in text
    assert "kubectl label namespace NAMESPACE istio.io/rev=blue" in text
    assert (
        "injector.replicas is 1: while it restarts, pods of labelled namespaces cannot be made, and no policy"
        in text
    )
    assert "image.registry is empty" not in text
    assert "removes the policy kinds" not in text


@pytest.mark.parametrize(
    ("values", "warning"),
    [
        ({"injector": {"webhook": {"failurePolicy": "Ignore"}}}, "start without a sidecar"),
        ({"injector": {"policyWebhook": {"failurePolicy": "Ignore"}}}, "stored unseen"),
        ({"injector": {"policyWebhook": {"enabled": False}}}, "policies that cannot be enforced are stored"),
        ({"networkPolicy": {"enabled": False}}, "every pod of the cluster can connect to the authority"),
    ],
    ids=["pods", "policies", "no-policies", "network"],
)
def test_notes_warn_of_what_is_less_than_safe(
    notes: Callable[..., str], values: dict[str, Any], warning: str
) -> None:
    text = notes(**values)
    assert text.count("WARNING") == 1
    assert warning in " ".join(text.split())


@pytest.mark.parametrize("component", ["ca", "injector"])
def test_notes_advise_two_replicas_at_least(notes: Callable[..., str], component: str) -> None:
    text = notes(**{component: {"replicas": 1, "autoscaling": {"enabled": True}}})
    assert "WARNING" not in text
    text = notes(**{component: {"replicas": 3, "autoscaling": {"enabled": True, "minReplicas": 1}}})
    assert f"WARNING: {component}.autoscaling.minReplicas is 1: while it restarts" in text
    assert "Take 2 or more." in text


def test_two_renders_are_the_same_bytes() -> None:
    """No random data, no time, nothing of the cluster's: GitOps sees no drift."""
    first = _production().text
    again = render("--is-upgrade", values=PRODUCTION, files=[CHART / "values-ha.yaml"]).text
    assert first == again
    sources = [path for path in (CHART / "templates").rglob("*") if path.is_file()]
    # These can refuse only: the file renders nothing.
    assert [path.name for path in sources if "lookup" in path.read_text()] == ["owners.yaml"]
    assert "templates/owners.yaml" not in first


def test_a_new_tag_changes_pods_and_the_injectors_settings_only() -> None:
    old, new = _by_name(render()), _by_name(render(values={"image": {"tag": "0.2.0"}}))
    assert set(old) == set(new)
    assert {name for name in old if old[name] != new[name]} == {
        "ConfigMap/gatehouse-injector-config",
        "DaemonSet/gatehouse-nodeagent",
        "Deployment/gatehouse-ca",
        "Deployment/gatehouse-injector",
        "Deployment/gatehouse-upkeep",
    }


def test_a_setting_restarts_its_own_process_only() -> None:
    values = {"ca": {"config": {"issue": {"default_lifetime": "12h"}}}}
    old, new = _by_name(render()), _by_name(render(values=values))
    assert {name for name in old if old[name] != new[name]} == {
        "ConfigMap/gatehouse-ca-config",
        "Deployment/gatehouse-ca",
    }


def test_other_roots_of_issuers_restart_the_process_that_reads_them_at_its_start() -> None:
    roots = ("-----BEGIN CERTIFICATE-----\nMA==\n", "-----BEGIN CERTIFICATE-----\nMQ==\n")
    old, new = (_by_name(render(values={"upkeep": {"issuerRoots": text}})) for text in roots)
    assert {name for name in old if old[name] != new[name]} == {
        "ConfigMap/gatehouse-injector-config",
        "Deployment/gatehouse-upkeep",
    }


def test_selectors_never_change() -> None:
    """A Deployment's selector is immutable: an upgrade that changes it fails."""

    def selectors(chart: Rendered) -> dict[str, Any]:
        return {
            item["metadata"]["name"]: item["spec"]["selector"]
            for item in chart.all("Deployment", "DaemonSet", "Service", "PodDisruptionBudget")
        }

    assert selectors(render()) == selectors(_production())


def test_names_fit_whatever_the_release_is_called() -> None:
    chart = render(release="a" * 53, namespace="b" * 63)
    for item in chart.objects:
        if item["kind"] in {"Service", "Deployment", "DaemonSet", "ServiceAccount"}:
            assert len(item["metadata"]["name"]) <= 63
    names = [f"{item['kind']}/{item['metadata']['name']}" for item in chart.objects]
    assert len(set(names)) == len(names)
    other = render(release="mesh")
    assert other.one("Deployment", "mesh-gatehouse-ca")
    assert "mesh-gatehouse-ca.istio-system.svc:15012" in other.text


def test_extra_objects_are_maps_or_templates() -> None:
    chart = _production()
    assert chart.one("PriorityClass", "shop") == PRODUCTION["extraObjects"][0]
    assert chart.one("ConfigMap", "gatehouse-trust-domain")["data"] == {"trust-domain": "prod.example"}
    assert chart.one("ConfigMap", "gatehouse-second")
    with pytest.raises(HelmError, match="no such name"):
        render(values={"extraObjects": ['{{ fail "no such name" }}']})


def test_values_may_add_to_pods() -> None:
    values = {
        "ca": {
            "extraArgs": ["--set=drain=5s"],
            "extraEnv": [{"name": "A", "value": "b"}],
            "podLabels": {"x": "y"},
            "podAnnotations": {"note": "1"},
            "serviceAccountAnnotations": {"role": "r"},
            "nodeSelector": {"pool": "control"},
            "tolerations": [{"operator": "Exists"}],
        }
    }
    chart = render(values=values)
    pod = chart.one("Deployment", "gatehouse-ca")["spec"]["template"]
    assert pod["metadata"]["labels"]["x"] == "y"
    assert pod["metadata"]["annotations"]["note"] == "1"
    assert pod["spec"]["nodeSelector"] == {"pool": "control"}
    assert pod["spec"]["containers"][0]["args"][-1] == "--set=drain=5s"
    assert pod["spec"]["containers"][0]["env"] == [{"name": "A", "value": "b"}]
    assert chart.one("ServiceAccount", "gatehouse-ca")["metadata"]["annotations"] == {"role": "r"}
