"""`helm test`: objects that live for as long as it takes, and rights in one namespace of the release."""

from __future__ import annotations

from typing import Any

import pytest

from meshctl.__main__ import _parser
from meshctl.traffic.plan import CLIENTS, before_pods, client, server
from meshctl.traffic.wish import read_wish
from tests.fakes.helm import render
from tests.fakes.meshctl_traffic import plan

HOOK = "helm.sh/hook"
READ_ONLY: dict[str, Any] = {"test": {"traffic": False}}
VALUES: list[dict[str, Any]] = [
    {},
    {"fullnameOverride": "mesh", "image": {"registry": "r.example", "pullSecrets": ["pull"]}},
]


def objects(values: dict[str, Any]) -> list[dict[str, Any]]:
    """What is rendered for the test alone."""
    release = {(item["kind"], item["metadata"]["name"]) for item in render(values=values).objects}
    everything = render(values=values, with_tests=True).objects
    return [item for item in everything if (item["kind"], item["metadata"]["name"]) not in release]


def one(kind: str, found: list[dict[str, Any]]) -> dict[str, Any]:
    (item,) = [item for item in found if item["kind"] == kind]
    return item


def rights(role: dict[str, Any]) -> set[tuple[str, str]]:
    """Resource and verb of every rule."""
    return {(name, verb) for rule in role["rules"] for name in rule["resources"] for verb in rule["verbs"]}


@pytest.mark.parametrize("values", [*VALUES, READ_ONLY])
def test_all_of_it_is_a_test_and_goes_with_it(values: dict[str, Any]) -> None:
    found = objects(values)
    kinds = ["ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding", "Pod"]
    if values is READ_ONLY:
        kinds = [kind for kind in kinds if not kind.startswith("Role")]
    assert [item["kind"] for item in found] == kinds
    for item in found:
        notes = item["metadata"]["annotations"]
        assert notes[HOOK] == "test"
        assert notes["helm.sh/hook-delete-policy"] == "before-hook-creation,hook-succeeded"
    weights = [int(item["metadata"]["annotations"]["helm.sh/hook-weight"]) for item in found]
    assert weights == [*(0 for _ in kinds[1:]), 1]


@pytest.mark.parametrize("values", VALUES)
def test_in_the_cluster_it_reads_only_what_the_command_looks_at(values: dict[str, Any]) -> None:
    found = rights(one("ClusterRole", objects(values)))
    assert {verb for _, verb in found} == {"get", "list"}
    resources = {name for name, _ in found}
    assert "secrets" not in resources
    assert not any("*" in name or "/" in name for name in resources)


@pytest.mark.parametrize("values", VALUES)
def test_in_its_namespace_it_may_do_just_what_the_traffic_needs(values: dict[str, Any]) -> None:
    """The chart and the command agree: what is made may be made and deleted, and nothing else."""
    found = objects(values)
    role, binding, pod = (one(kind, found) for kind in ("Role", "RoleBinding", "Pod"))
    made = [*before_pods(plan()), server(plan()), *(client(plan(), role) for role in CLIENTS)]
    plurals = {item.path.rpartition("/")[2] for item in made}
    assert rights(role) == {(p, verb) for p in plurals for verb in ("create", "delete")} | {("pods", "list")}
    namespace = one("Namespace", render(values=values).objects)["metadata"]["name"]
    assert {role["metadata"]["namespace"], binding["metadata"]["namespace"]} == {namespace}
    assert binding["roleRef"] == {
        "apiGroup": "rbac.authorization.k8s.io",
        "kind": "Role",
        "name": role["metadata"]["name"],
    }
    assert binding["subjects"] == one("ClusterRoleBinding", found)["subjects"]
    assert binding["subjects"][0]["namespace"] == pod["metadata"]["namespace"] != namespace


@pytest.mark.parametrize(
    ("values", "label", "value"),
    [
        ({}, "istio-injection", "enabled"),
        ({"injector": {"revision": "canary", "tags": ["default"]}}, "istio-injection", "enabled"),
        ({"injector": {"revision": "canary"}}, "istio.io/rev", "canary"),
    ],
)
def test_its_namespace_asks_for_sidecars(values: dict[str, Any], label: str, value: str) -> None:
    item = one("Namespace", render(values=values).objects)
    labels = item["metadata"]["labels"]
    assert labels[label] == value
    assert len({"istio-injection", "istio.io/rev"} & labels.keys()) == 1
    assert labels["pod-security.kubernetes.io/enforce"] == "privileged"
    assert labels["app.kubernetes.io/part-of"] == "gatehouse"
    assert HOOK not in (item["metadata"].get("annotations") or {})  # else Helm deletes whichever is there


def test_without_traffic_there_is_no_namespace() -> None:
    assert not [item for item in render(values=READ_ONLY).objects if item["kind"] == "Namespace"]


@pytest.mark.parametrize("values", [*VALUES, READ_ONLY])
def test_its_pod_is_restricted_and_never_injected(values: dict[str, Any]) -> None:
    pod = one("Pod", objects(values))
    assert pod["metadata"]["labels"]["sidecar.istio.io/inject"] == "false"
    assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
    (container,) = pod["spec"]["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


@pytest.mark.parametrize("values", [*VALUES, READ_ONLY])
def test_its_command_is_one_that_meshctl_knows(values: dict[str, Any]) -> None:
    found = objects(values)
    (container,) = one("Pod", found)["spec"]["containers"]
    assert container["command"][:4] == ["python", "-m", "meshctl", "check"]
    wish = read_wish(_parser().parse_args(container["command"][3:]))
    if values is READ_ONLY:
        assert wish is None
    else:
        assert wish is not None
        assert wish.namespace == one("Role", found)["metadata"]["namespace"]
        assert not wish.keep


def test_its_pod_is_pulled_with_the_secrets_of_a_parent_chart_too() -> None:
    values = {"global": {"imagePullSecrets": ["all"]}, "image": {"pullSecrets": ["own"]}}
    (pod,) = [item for item in objects(values) if item["kind"] == "Pod"]
    assert pod["spec"]["imagePullSecrets"] == [{"name": "own"}, {"name": "all"}]
