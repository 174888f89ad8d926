"""One admission without a transport: the second look at namespaces, lateness, and pods of any shape."""

from __future__ import annotations

import copy
import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from injector.admission import Admission
from injector.core.settings import ClusterFeatures, InjectorSettings
from injector.events import EventSink
from injector.metrics import WebhookMetrics
from injector.namespaces import Namespace
from injector.review import ReviewCode, ReviewError
from mesh.errors import Category
from mesh.kube.api import KubeCode, KubeError
from tests.fakes import injector_reviews as reviews

ENABLED = Namespace({"istio-injection": "enabled"})
DISABLED = Namespace({"istio-injection": "disabled"})


class Source:
    """A cache and an API server that need not agree."""

    def __init__(self, cached: Namespace | None, real: Namespace | KubeError | None) -> None:
        self.cached, self.real, self.asked = cached, real, 0

    def get(self, name: str) -> Namespace | None:
        return self.cached

    def ask(self, name: str) -> Namespace | None:
        self.asked += 1
        if isinstance(self.real, KubeError):
            raise self.real
        return self.real


def away() -> KubeError:
    return KubeError(KubeCode.UNREACHABLE, "no answer", category=Category.UNAVAILABLE)


def admission(source: Source) -> Admission:
    mesh = InjectorSettings()
    return Admission(
        settings=lambda: mesh,
        cluster=lambda: ClusterFeatures(native_sidecars=True),
        namespaces=source,
        events=EventSink(None),
        metrics=WebhookMetrics(CollectorRegistry()),
    )


def reason(source: Source, **changes: Any) -> str:
    return admission(source).answer(reviews.body(**changes), started=time.monotonic()).reason


@pytest.mark.parametrize(
    ("cached", "real", "expected", "asked"),
    [
        pytest.param(ENABLED, away(), "injected", 0, id="cached"),
        pytest.param(None, ENABLED, "injected", 1, id="not-cached-yet"),
        pytest.param(None, None, "not_selected", 1, id="gone"),
        pytest.param(Namespace(), ENABLED, "injected", 1, id="labelled-a-moment-ago"),
        pytest.param(DISABLED, ENABLED, "injected", 1, id="enabled-a-moment-ago"),
        pytest.param(DISABLED, DISABLED, "namespace_disabled", 1, id="still-disabled"),
        pytest.param(Namespace(), away(), "not_selected", 1, id="nobody-to-ask"),
    ],
)
def test_a_stale_cache_never_keeps_a_pod_out(
    cached: Namespace | None, real: Any, expected: str, asked: int
) -> None:
    source = Source(cached, real)
    assert reason(source) == expected
    assert source.asked == asked


def test_an_unknown_namespace_without_an_api_server_is_no_decision() -> None:
    with pytest.raises(ReviewError, match="is not known yet") as caught:
        reason(Source(None, away()))
    assert (caught.value.code, caught.value.status) == (ReviewCode.NOT_READY, 503)


def test_what_nobody_waits_for_is_not_worked_on() -> None:
    source = Source(None, ENABLED)
    with pytest.raises(ReviewError, match="time-out") as caught:
        admission(source).answer(reviews.body(), started=0.0, deadline=time.monotonic() - 1)
    assert caught.value.code is ReviewCode.LATE
    assert source.asked == 0


def test_defaults_of_the_namespace_reach_the_pod() -> None:
    source = Source(Namespace(ENABLED.labels, {"sidecar.istio.io/proxyCPU": "much"}), None)
    assert reason(source) == "invalid_option"


def test_everything_is_counted_once() -> None:
    subject = admission(Source(ENABLED, None))
    subject.answer(reviews.body(), started=time.monotonic())
    subject.answer(reviews.body(dryRun=True), started=time.monotonic())
    subject.answer(reviews.body(operation="UPDATE"), started=time.monotonic())
    sample = subject.metrics.registry.get_sample_value
    name = "gatehouse_injector_admissions_total"
    assert sample(name, {"outcome": "patched", "reason": "injected"}) == 2
    assert sample(name, {"outcome": "allowed", "reason": "not_applicable"}) == 1
    assert sample("gatehouse_injector_dry_runs_total") == 1
    assert sample("gatehouse_injector_admission_duration_seconds_count") == 3
    assert sample("gatehouse_injector_patch_bytes_count") == 2


def test_a_dry_run_gets_the_same_answer() -> None:
    subject = admission(Source(ENABLED, None))
    wet, dry = (subject.answer(reviews.body(dryRun=d), started=0.0).body for d in (False, True))
    assert wet == dry


@pytest.mark.parametrize(
    ("pod", "text"),
    [
        pytest.param({"spec": []}, "spec", id="list-spec"),
        pytest.param({"metadata": 1, "spec": {}}, "metadata", id="number-metadata"),
        pytest.param({"metadata": {"labels": {"a": 1}}, "spec": {}}, "labels", id="number-label"),
        pytest.param({"metadata": {"annotations": []}, "spec": {}}, "annotations", id="list-annotations"),
        pytest.param({"metadata": {"ownerReferences": {}}, "spec": {}}, "ownerReferences", id="owners"),
        pytest.param({"spec": {"containers": {}}}, "containers", id="object-containers"),
        pytest.param({"spec": {"containers": [None]}}, "containers", id="null-container"),
        pytest.param({"spec": {"containers": [{}]}}, ".name: expected text", id="nameless-container"),
        pytest.param({"spec": {"containers": [{"name": "a"}], "volumes": "x"}}, "volumes", id="text-volumes"),
    ],
)
def test_d1_a_pod_of_a_wrong_shape_is_denied_with_400(pod: Any, text: str) -> None:
    answer = admission(Source(ENABLED, None)).answer(reviews.body(object=pod), started=0.0)
    found = json.loads(answer.body)["response"]
    assert found["allowed"] is False
    assert found["status"]["code"] == 400
    assert text in found["status"]["message"]
    assert answer.reason == "review_bad_pod"


# No nulls within lists: API servers encode typed pods, which have none.
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 70_000) | st.text(max_size=6),
    lambda inner: (
        st.lists(inner.filter(lambda item: item is not None), max_size=2)
        | st.dictionaries(st.text(max_size=6), inner, max_size=2)
    ),
    max_leaves=4,
)


def paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a document."""
    found = [at]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found += paths(inner, (*at, key))
    return found


def full() -> dict[str, Any]:
    pod = reviews.pod(annotations={"sidecar.istio.io/proxyCPU": "50m"})
    container = pod["spec"]["containers"][0]
    probe = {"httpGet": {"path": "/", "port": 8080, "httpHeaders": [{"name": "a", "value": "b"}]}}
    container |= {
        "readinessProbe": probe,
        "livenessProbe": {"tcpSocket": {"port": "http"}},
        "startupProbe": {"grpc": {"port": 9}},
        "env": [{"name": "A", "value": "b"}],
        "resources": {"limits": {"cpu": "1"}},
        "securityContext": {"runAsUser": 1000},
        "volumeMounts": [{"name": "v", "mountPath": "/v"}],
        "lifecycle": {"preStop": {"exec": {"command": ["x"]}}},
    }
    pod["spec"] |= {
        "initContainers": [{"name": "init", "image": "i"}],
        "volumes": [{"name": "v", "emptyDir": {}}],
        "securityContext": {"fsGroup": 1},
        "nodeSelector": {"a": "b"},
        "terminationGracePeriodSeconds": 30,
    }
    return pod


_PLACES = [path for path in paths(full()) if path and not isinstance(path[-1], int)]


@settings(max_examples=600)
@given(st.sampled_from(_PLACES), _JSON)
def test_pods_of_any_shape_get_an_answer(path: tuple[Any, ...], value: Any) -> None:
    """Panics are impossible: one field of a pod is replaced by anything; the answer is a decision."""
    pod = copy.deepcopy(full())
    at: Any = pod
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    answer = admission(Source(ENABLED, None)).answer(reviews.body(object=pod), started=0.0)
    assert isinstance(json.loads(answer.body)["response"]["allowed"], bool)
