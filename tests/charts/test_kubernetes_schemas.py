"""Everything that the chart renders, and pods as they are injected, against the schemas of Kubernetes itself.

Strict: a field that the API server would drop in silence fails.
"""

from __future__ import annotations

from typing import Any

import kubernetes_validate
import pytest

from tests.charts.test_golden_chart import PRODUCTION
from tests.fakes.helm import CHART, render
from tests.fakes.injector_pods import CLASSIC, NATIVE, a_pod, container, injected

OF_OTHERS = {"ServiceMonitor", "PodMonitor", "SecurityContextConstraints"}
"""Kinds of the Prometheus operator and of OpenShift."""
PROBES = {
    "livenessProbe": {"httpGet": {"path": "/live", "port": 8080}},
    "readinessProbe": {"tcpSocket": {"port": 8080}},
    "startupProbe": {"grpc": {"port": 9090}},
    "ports": [{"containerPort": 8080}],
}


def check(item: dict[str, Any], version: str) -> None:
    """Raises ValidationError, with the field."""
    kubernetes_validate.validate(item, version, strict=True)


@pytest.mark.parametrize("version", ["1.25", "1.31", "1.37"])
@pytest.mark.parametrize(
    ("profile", "values"),
    [("", {}), ("ha", {}), ("minimal", {}), ("openshift", {}), ("ha", PRODUCTION)],
    ids=["defaults", "ha", "minimal", "openshift", "production"],
)
def test_what_the_chart_renders_is_valid(profile: str, values: dict[str, Any], version: str) -> None:
    files = [CHART / f"values-{profile}.yaml"] if profile else []
    found = render(values=values, files=files, kube=f"{version}.0").objects
    kinds = {item["kind"] for item in found} - OF_OTHERS
    assert {"CSIDriver", "MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"} <= kinds
    assert {"NetworkPolicy", "PodDisruptionBudget"} <= kinds
    for item in found:
        if item["kind"] not in OF_OTHERS:
            check(item, version)


@pytest.mark.parametrize(
    ("kube", "wanted", "schema"),
    [("1.20.2", "v2beta2", "1.25"), ("1.23.0", "v2", "1.25"), ("1.37.0", "v2", "1.37")],
)
def test_autoscalers_are_valid(kube: str, wanted: str, schema: str) -> None:
    """1.25 is the last to serve v2beta2 and the oldest whose schema is here; there both are checked."""
    values = {name: {"autoscaling": {"enabled": True}} for name in ("ca", "injector")}
    found = render(values=values, kube=kube).all("HorizontalPodAutoscaler")
    assert [item["apiVersion"] for item in found] == [f"autoscaling/{wanted}"] * 2
    for item in found:
        check(item, schema)


@pytest.mark.parametrize(
    ("features", "version"), [(CLASSIC, "1.25"), (CLASSIC, "1.37"), (NATIVE, "1.29"), (NATIVE, "1.37")]
)
def test_injected_pods_are_valid(features: Any, version: str) -> None:
    pods = [
        a_pod(),
        a_pod(container(**PROBES), initContainers=[container("prepare")]),
        a_pod(restartPolicy="Never"),
        a_pod(annotations={"sidecar.istio.io/interceptionMode": "NONE"}),
        a_pod(
            annotations={
                "sidecar.istio.io/userVolume": '{"extra": {"emptyDir": {}}}',
                "sidecar.istio.io/userVolumeMount": '{"extra": {"mountPath": "/extra", "readOnly": true}}',
            }
        ),
    ]
    for pod in pods:
        check(injected(pod, features), version)


def test_the_schemas_are_strict() -> None:
    """The test itself: a misspelt field must not pass."""
    pod = a_pod(container(securityContxt={}))
    with pytest.raises(kubernetes_validate.ValidationError, match="securityContxt"):
        check(pod, "1.37")


def test_native_sidecars_are_unknown_to_old_servers() -> None:
    """Why the mode is chosen by version: the field does not exist there."""
    with pytest.raises(kubernetes_validate.ValidationError, match="restartPolicy"):
        check(injected(a_pod(), NATIVE), "1.27")
