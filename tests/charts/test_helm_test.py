"""`helm test`: objects that live for as long as it takes, and may read only."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fakes.helm import render

HOOK = "helm.sh/hook"
VALUES: list[dict[str, Any]] = [
    {},
    {"fullnameOverride": "mesh", "image": {"registry": "r.example", "pullSecrets": ["pull"]}},
]


def objects(values: dict[str, Any]) -> list[dict[str, Any]]:
    """What is rendered for the test alone."""
    release = {(item["kind"], item["metadata"]["name"]) for item in render(values=values).objects}
    everything = render(values=values, with_tests=True).objects
    return [item for item in everything if (item["kind"], item["metadata"]["name"]) not in release]


@pytest.mark.parametrize("values", VALUES)
def test_all_of_it_is_a_test_and_goes_with_it(values: dict[str, Any]) -> None:
    found = objects(values)
    assert [item["kind"] for item in found] == ["ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Pod"]
    for item in found:
        notes = item["metadata"]["annotations"]
        assert notes[HOOK] == "test"
        assert notes["helm.sh/hook-delete-policy"] == "before-hook-creation,hook-succeeded"
    weights = [int(item["metadata"]["annotations"]["helm.sh/hook-weight"]) for item in found]
    assert weights == [0, 0, 0, 1]


@pytest.mark.parametrize("values", VALUES)
def test_it_reads_only_what_the_command_looks_at(values: dict[str, Any]) -> None:
    (role,) = [item for item in objects(values) if item["kind"] == "ClusterRole"]
    assert {verb for rule in role["rules"] for verb in rule["verbs"]} == {"get", "list"}
    resources = {name for rule in role["rules"] for name in rule["resources"]}
    assert "secrets" not in resources
    assert not any("*" in name or "/" in name for name in resources)


@pytest.mark.parametrize("values", VALUES)
def test_its_pod_is_restricted_and_never_injected(values: dict[str, Any]) -> None:
    (pod,) = [item for item in objects(values) if item["kind"] == "Pod"]
    assert pod["metadata"]["labels"]["sidecar.istio.io/inject"] == "false"
    assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
    (container,) = pod["spec"]["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["command"] == ["python", "-m", "meshctl", "check"]
