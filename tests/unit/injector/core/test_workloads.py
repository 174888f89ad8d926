"""Pod templates in manifests of every kind."""

from __future__ import annotations

from typing import Any

import pytest

from injector.core.workloads import TEMPLATES, transform, walk

POD = {"metadata": {}, "spec": {"containers": []}}


def document(kind: str, **metadata: Any) -> dict[str, Any]:
    value: Any = POD
    for key in reversed(TEMPLATES[kind]):
        value = {key: value}
    return {"kind": kind, **value, "metadata": {"name": "w", **metadata}}


@pytest.mark.parametrize("kind", sorted(TEMPLATES))
def test_every_kind(kind: str) -> None:
    (found,) = walk(document(kind, namespace="shop"))
    assert (found.kind, found.name, found.namespace) == (kind, "w", "shop")
    assert found.path == TEMPLATES[kind]
    assert found.pod["spec"] is POD["spec"]


def test_a_generated_name() -> None:
    (found,) = walk({**document("Job"), "metadata": {"generateName": "sum-"}})
    assert (found.name, found.namespace) == ("sum", "")


@pytest.mark.parametrize(
    "value",
    [
        None,
        1,
        "Pod",
        [],
        {},
        {"kind": "Service", "spec": {"template": POD}},
        {"kind": "Deployment"},
        {"kind": "Deployment", "spec": None},
        {"kind": "Deployment", "spec": {"template": []}},
        {"kind": "Deployment", "spec": {"template": {"spec": None}}},
        {"kind": ["Pod"], "spec": {}},
        {"kind": "List", "items": "x"},
        {"kind": "List", "items": [1, None]},
    ],
)
def test_everything_else_has_none(value: Any) -> None:
    assert list(walk(value)) == []
    assert transform(value, lambda template: {}) is value


def test_lists() -> None:
    inner = {"kind": "DeploymentList", "items": [document("Deployment")]}
    value = {"kind": "List", "items": [document("Pod"), {"kind": "Service"}, inner]}
    assert [t.path[:2] for t in walk(value)] == [("items", 0), ("items", 2)]
    changed = transform(value, lambda template: {**template.pod, "seen": template.kind})
    assert changed["items"][0]["seen"] == "Pod"
    assert changed["items"][1] is value["items"][1]
    assert changed["items"][2]["items"][0]["spec"]["template"]["seen"] == "Deployment"
    assert "seen" not in str(value), "the input is left alone"


def test_nothing_changed_is_the_same_object() -> None:
    value = document("CronJob")
    assert transform(value, lambda template: template.pod) is value


def test_endless_lists_are_bounded() -> None:
    value: dict[str, Any] = document("Pod")
    for _ in range(100):
        value = {"kind": "List", "items": [value]}
    assert list(walk(value)) == []


def test_a_pod_without_metadata() -> None:
    (found,) = walk({"kind": "Pod", "metadata": None, "spec": {}})
    assert found.name == ""
