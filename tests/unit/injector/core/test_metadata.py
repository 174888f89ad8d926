"""Names, labels and what Prometheus is told (b.5, b.6, b.11)."""

from __future__ import annotations

from typing import Any

import pytest

from injector.core.metadata import label_value, metrics, workload_name
from injector.core.options import PodOptions
from injector.core.values import ScrapeTarget
from tests.fakes.injector_pods import NATIVE, a_pod, container, injected


def owned(kind: str, owner: str, labels: dict[str, str] | None = None, **meta: Any) -> dict[str, Any]:
    reference = {"kind": kind, "name": owner, "controller": True}
    return {
        "metadata": {"ownerReferences": [{"kind": "X", "name": "y"}, reference], "labels": labels, **meta}
    }


@pytest.mark.parametrize(
    ("pod", "hint", "name"),
    [
        ({}, "hello", "hello"),
        (owned("ReplicaSet", "hello-7d4b", {"pod-template-hash": "7d4b"}), "", "hello"),
        (owned("ReplicaSet", "hello-7d4b", {"rollouts-pod-template-hash": "7d4b"}), "", "hello"),
        (owned("ReplicaSet", "hello-7d4b", {"pod-template-hash": "other"}), "", "hello-7d4b"),
        (owned("ReplicaSet", "alone"), "", "alone"),
        (owned("ReplicationController", "rc-1", {"deploymentconfig": "dc"}), "", "dc"),
        (owned("ReplicationController", "rc-1"), "", "rc-1"),
        (owned("Job", "nightly-28391822"), "", "nightly"),
        (owned("Job", "once"), "", "once"),
        (owned("StatefulSet", "db", name="db-0"), "", "db"),
        (owned("Workflow", "w", name="w-step-1"), "", "w"),
        ({"metadata": {"name": "bare"}}, "", "bare"),
        ({"metadata": {"generateName": "bare-"}}, "", "bare"),
        ({"metadata": None}, "", ""),
    ],
)
def test_workload_names(pod: dict[str, Any], hint: str, name: str) -> None:
    """Trap: an owner counts without generateName too, or each pod of a workflow is a workload."""
    assert workload_name(pod, hint) == name


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a" * 70, "a" * 63),
        ("a" * 62 + ".b", "a" * 62),
        ("-_.a.", "a"),
        ("v1+build/3", "v1-build-3"),
        ("ü", ""),
        ("", ""),
    ],
)
def test_label_values(text: str, value: str) -> None:
    assert label_value(text) == value


@pytest.mark.parametrize(
    ("labels", "name", "revision"),
    [
        (
            {"app": "a", "app.kubernetes.io/name": "k", "version": "1", "app.kubernetes.io/version": "2"},
            "k",
            "2",
        ),
        ({"app": "a", "version": "1"}, "a", "1"),
        ({}, "web", "latest"),
        ({"service.istio.io/canonical-name": "own", "service.istio.io/canonical-revision": "r"}, "own", "r"),
    ],
)
def test_canonical_labels(labels: dict[str, str], name: str, revision: str) -> None:
    found = injected(a_pod(labels=labels))["metadata"]["labels"]
    assert found["service.istio.io/canonical-name"] == name
    assert found["service.istio.io/canonical-revision"] == revision
    assert found["security.istio.io/tlsMode"] == "istio"


def test_the_authors_metadata_stays() -> None:
    own = {
        "kubectl.kubernetes.io/default-container": "second",
        "kubectl.kubernetes.io/default-logs-container": "second",
        "istio.io/rev": "theirs",
    }
    pod = a_pod(
        container(), container("second"), labels={"security.istio.io/tlsMode": "disabled"}, annotations=own
    )
    found = injected(pod)["metadata"]
    assert found["labels"]["security.istio.io/tlsMode"] == "disabled"
    assert found["annotations"]["kubectl.kubernetes.io/default-container"] == "second"
    assert found["annotations"]["istio.io/rev"] == "default"


def test_without_capture_nobody_answers_mutual_tls() -> None:
    found = injected(a_pod(annotations={"sidecar.istio.io/interceptionMode": "NONE"}), NATIVE)
    assert found["metadata"]["labels"]["security.istio.io/tlsMode"] == "disabled"


TARGETS: list[tuple[dict[str, str], Any]] = [
    ({}, ()),
    ({"prometheus.io/scrape": "true", "prometheus.io/port": "9100"}, (ScrapeTarget(9100, "/metrics"),)),
    (
        {"prometheus.io/scrape": "True", "prometheus.io/port": "9100", "prometheus.io/path": "/m?x=1"},
        (ScrapeTarget(9100, "/m?x=1"),),
    ),
    ({"prometheus.io/scrape": "true"}, (ScrapeTarget(8080, "/metrics"),)),
    ({"prometheus-io/scrape": "true", "prometheus-io/port": "1"}, (ScrapeTarget(1, "/metrics"),)),
    ({"prometheus.io.scrape": "true", "prometheus.io.port": "2"}, (ScrapeTarget(2, "/metrics"),)),
    ({"prometheus.io/scrape": "false"}, None),
    ({"prometheus.io.scrape": "false"}, None),
    ({"prometheus-io/scrape": "FALSE"}, None),
    ({"prometheus.io/port": "9100"}, ()),
    ({"prometheus.io/scrape": "true", "prometheus.io/scheme": "https"}, None),
]


@pytest.mark.parametrize(("annotations", "targets"), TARGETS, ids=[str(i) for i in range(len(TARGETS))])
def test_metrics(annotations: dict[str, str], targets: Any) -> None:
    pod = a_pod(container(ports=[{"containerPort": 8080}]), annotations=annotations)
    found = metrics(pod, PodOptions())
    assert found.targets == targets
    assert not found.problems
    after = injected(pod)["metadata"]["annotations"]
    if targets is None:
        assert {k: v for k, v in after.items() if "prometheus" in k} == annotations
        return
    assert {k: v for k, v in after.items() if "prometheus" in k and not k.endswith("scheme")} == {
        "prometheus.io/scrape": "true",
        "prometheus.io/port": "15020",
        "prometheus.io/path": "/stats/prometheus",
    }


@pytest.mark.parametrize(
    ("annotations", "said"),
    [
        ({"prometheus.io/port": "15090"}, "port 15090 belongs to the proxy"),
        ({"prometheus.io/port": "x"}, "'x' is not a port"),
        ({"prometheus.io/port": "80", "prometheus.io/path": "m"}, "'m' is not a path"),
        ({"prometheus.io/port": "80", "prometheus.io/path": "/a b"}, "'/a b' is not a path"),
    ],
)
def test_bad_targets(annotations: dict[str, str], said: str) -> None:
    found = metrics(a_pod(annotations={"prometheus.io/scrape": "true", **annotations}), PodOptions())
    assert said in found.problems[0]
    assert "for annotation 'prometheus.io/port'" in found.problems[0]


def test_no_port_at_all() -> None:
    found = metrics(a_pod(annotations={"prometheus.io/scrape": "true"}), PodOptions())
    assert found.targets == ()
    assert "only the proxy is scraped" in found.remarks[0]


def test_merging_can_be_off() -> None:
    assert metrics(a_pod(), PodOptions(merge_metrics=False)).targets is None


def test_several_targets() -> None:
    pod = a_pod(annotations={"prometheus.istio.io/scrape-targets": "8080:/metrics,9100:/x"})
    options = PodOptions(scrape_targets=(ScrapeTarget(8080, "/metrics"),))
    assert metrics(pod, options).targets == (ScrapeTarget(8080, "/metrics"),)
    assert str(ScrapeTarget(8080, "/metrics")) == "8080:/metrics"
