"""Each reason code in every place where it is promised: warning, audit annotation, Event, metric, status.

The starred codes of the table of rules warn the client; all of them are one and the same word everywhere.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from injector.admission import Admission
from injector.core.decision import Reason, Selection
from injector.core.patch import apply_patch
from injector.core.settings import ClusterFeatures, InjectorSettings
from injector.events import EventSink
from injector.metrics import WebhookMetrics
from injector.namespaces import Namespace
from tests.fakes import injector_reviews as reviews
from tests.fakes.injector_pods import a_pod, container, injected, status
from tests.fakes.kube_api import FakeKube

ENABLED = {"istio-injection": "enabled"}
INJECT = "sidecar.istio.io/inject"
STRICT = InjectorSettings(selection=Selection(strict_namespaces=frozenset({"shop"})))
BASELINE = ENABLED | {"pod-security.kubernetes.io/enforce": "baseline"}


class Cluster:
    def __init__(self, kube: FakeKube, labels: Mapping[str, str], mesh: InjectorSettings) -> None:
        self.kube = kube
        self.namespace = Namespace(labels)
        self.events = EventSink(kube.api())
        self.events.start()
        self.metrics = WebhookMetrics(CollectorRegistry())
        self.admission = Admission(
            settings=lambda: mesh,
            cluster=lambda: ClusterFeatures(native_sidecars=True),
            namespaces=self,
            events=self.events,
            metrics=self.metrics,
        )

    def get(self, _name: str) -> Namespace:
        return self.namespace

    def ask(self, _name: str) -> Namespace:
        return self.namespace

    def review(self, pod: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
        body = reviews.body(object=dict(pod), **changes)
        answer = self.admission.answer(body, started=time.monotonic())
        self.events.stop()
        response: dict[str, Any] = json.loads(answer.body)["response"]
        return response

    def counted(self, outcome: str, reason: str) -> float | None:
        labels = {"outcome": outcome, "reason": reason}
        return self.metrics.registry.get_sample_value("gatehouse_injector_admissions_total", labels)

    def told(self) -> list[dict[str, Any]]:
        return self.kube.all("Event")


@pytest.fixture
def kube() -> Iterator[FakeKube]:
    with FakeKube() as kube:
        kube.add({"kind": "Namespace", "metadata": {"name": "shop"}})
        yield kube


HOST = a_pod(hostNetwork=True)
FOREIGN = a_pod(container(), container("linkerd-proxy"))
STARRED: list[tuple[str, str, dict[str, Any], Mapping[str, str], InjectorSettings]] = [
    (
        "windows_pod",
        "skipped",
        a_pod(nodeSelector={"kubernetes.io/os": "windows"}),
        ENABLED,
        InjectorSettings(),
    ),
    ("invalid_inject_value", "denied", a_pod(labels={INJECT: "maybe"}), ENABLED, InjectorSettings()),
    ("host_network", "skipped", HOST, ENABLED, InjectorSettings()),
    ("host_network", "denied", HOST, ENABLED, STRICT),
    ("foreign_sidecar", "skipped", FOREIGN, ENABLED, InjectorSettings()),
    ("foreign_sidecar", "denied", FOREIGN, ENABLED, STRICT),
    ("uid_clash", "denied", a_pod(securityContext={"runAsUser": 1337}), ENABLED, InjectorSettings()),
    ("gid_clash", "denied", a_pod(securityContext={"runAsGroup": 1337}), ENABLED, InjectorSettings()),
    (
        "invalid_option",
        "denied",
        a_pod(annotations={"sidecar.istio.io/proxyCPU": "much"}),
        ENABLED,
        InjectorSettings(),
    ),
    ("pod_security", "patched", a_pod(), BASELINE, InjectorSettings()),
    ("pod_security", "denied", a_pod(), BASELINE, InjectorSettings(deny_pod_security=True)),
    # Not starred, but its author asked for something that does not happen.
    (
        "namespace_disabled",
        "skipped",
        a_pod(labels={INJECT: "true"}),
        {"istio-injection": "disabled"},
        InjectorSettings(),
    ),
]


@pytest.mark.parametrize(
    ("code", "outcome", "pod", "labels", "mesh"), STARRED, ids=[f"{row[0]}-{row[1]}" for row in STARRED]
)
def test_a_starred_code_is_told_everywhere(
    kube: FakeKube,
    code: str,
    outcome: str,
    pod: dict[str, Any],
    labels: Mapping[str, str],
    mesh: InjectorSettings,
) -> None:
    cluster = Cluster(kube, labels, mesh)
    response = cluster.review(pod)
    assert response["allowed"] is (outcome != "denied")
    assert any(f"gatehouse: {code}: " in text or f"{code}: " in text for text in response["warnings"])
    assert response["auditAnnotations"]["reason"] == code
    assert cluster.counted(outcome, code) == 1
    (event,) = cluster.told()
    assert event["message"].startswith(f"{code}: ")
    assert event["type"] == "Warning"
    words = {"skipped": "InjectionSkipped", "denied": "InjectionDenied", "patched": "Injected"}
    assert event["reason"] == words[outcome]
    if outcome == "denied":
        assert code in json.dumps(response["status"])
    if outcome == "patched":
        patched = apply_patch(pod, json.loads(base64.b64decode(response["patch"])))
        assert status(patched)["reason"] == code
    else:
        assert "patch" not in response, "nothing is written on a pod that is left alone"


def test_every_starred_code_has_a_row() -> None:
    starred = {
        "windows_pod",
        "invalid_inject_value",
        "host_network",
        "foreign_sidecar",
        "uid_clash",
        "gid_clash",
    }
    assert {row[0] for row in STARRED} >= starred | {"invalid_option", "pod_security"}


QUIET: list[tuple[str, str, dict[str, Any], Mapping[str, str], bool]] = [
    ("injected", "patched", a_pod(), ENABLED, True),
    ("reinjected", "patched", injected(a_pod(), config=InjectorSettings(hold_seconds=7)), ENABLED, True),
    ("up_to_date", "unchanged", injected(a_pod()), ENABLED, False),
    ("pod_opt_out", "skipped", a_pod(labels={INJECT: "false"}), ENABLED, True),
    ("not_selected", "skipped", a_pod(), {}, False),
    ("namespace_disabled", "skipped", a_pod(), {"istio-injection": "no"}, True),
    ("mirror_pod", "skipped", a_pod(annotations={"kubernetes.io/config.mirror": "x"}), ENABLED, False),
]


@pytest.mark.parametrize(("code", "outcome", "pod", "labels", "event"), QUIET, ids=[row[0] for row in QUIET])
def test_other_codes_warn_nobody_and_are_counted(
    kube: FakeKube, code: str, outcome: str, pod: dict[str, Any], labels: Mapping[str, str], event: bool
) -> None:
    cluster = Cluster(kube, labels, InjectorSettings())
    response = cluster.review(pod)
    assert response["allowed"] is True
    assert not [text for text in response.get("warnings", ()) if code in text]
    assert response["auditAnnotations"]["reason"] == code
    assert cluster.counted(outcome, code) == 1
    assert [e["type"] for e in cluster.told()] == (["Normal"] if event else [])
    if outcome == "patched":
        assert status(apply_patch(pod, json.loads(base64.b64decode(response["patch"]))))["reason"] == code


def test_a_repaired_pod_says_so(kube: FakeKube) -> None:
    """Another webhook took something of ours away since."""
    pod = injected(a_pod())
    del pod["spec"]["volumes"]
    cluster = Cluster(kube, ENABLED, InjectorSettings())
    response = cluster.review(pod)
    patched = apply_patch(pod, json.loads(base64.b64decode(response["patch"])))
    assert status(patched)["reason"] == response["auditAnnotations"]["reason"] == "repaired"
    assert cluster.told()[0]["message"].startswith("repaired: ")


def test_a_dry_run_has_no_side_effect_and_says_the_same(kube: FakeKube) -> None:
    cluster = Cluster(kube, ENABLED, InjectorSettings())
    assert cluster.review(HOST, dryRun=True)["auditAnnotations"]["reason"] == Reason.HOST_NETWORK
    assert cluster.told() == []
