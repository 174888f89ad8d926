"""`meshctl explain inject`: the truth table of injector a.3 against real selectors, and what is told."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import injector.core.decision
import injector.core.inject
from injector.core.decision import Outcome, Reason, Selection, decide
from meshctl.rules import RULES, passed_before
from meshctl.webhooks import evaluate, mesh_of, sees_new_pods
from tests.fakes.kube_api import FakeKube
from tests.fakes.meshctl_cli import Ran, ctl, golden_script
from tests.fakes.meshctl_cluster import (
    injected,
    install,
    istio_configuration,
    namespace,
    pod,
    webhook_configuration,
)

INJECT = "sidecar.istio.io/inject"
OPTED_OUT = ("true", "false")

# Row of a.3, namespace labels, pod labels, annotation, is the webhook called, does the pod get a sidecar.
# Rows 5, 6 and 8 to 10 are the traps that ours answers otherwise (5: refused, not injected), as marked there.
ROWS: list[tuple[str, dict[str, str], dict[str, str], str, bool, bool]] = [
    ("01", {"istio-injection": "enabled"}, {}, "", True, True),
    ("02", {"istio-injection": "enabled"}, {INJECT: "false"}, "", False, False),
    ("03", {"istio-injection": "enabled"}, {}, "false", True, False),
    ("04", {"istio-injection": "enabled"}, {INJECT: "true"}, "false", True, True),
    ("05-False", {"istio-injection": "enabled"}, {INJECT: "False"}, "", True, False),
    ("05-no", {"istio-injection": "enabled"}, {INJECT: "no"}, "", True, False),
    ("06", {"istio-injection": "disabled"}, {INJECT: "true"}, "", False, False),
    ("06-other", {"istio-injection": "yes"}, {INJECT: "true"}, "", False, False),
    ("07", {}, {}, "", False, False),
    ("08", {}, {}, "true", False, False),
    ("09", {}, {INJECT: "true"}, "", True, True),
    ("10", {}, {INJECT: "True"}, "", False, False),
    ("11", {}, {"istio.io/rev": "canary"}, "", False, False),
    ("11-ours", {}, {"istio.io/rev": "default"}, "", True, True),
    ("12", {"istio.io/rev": "canary"}, {}, "", False, False),
    ("12-ours", {"istio.io/rev": "default"}, {}, "", True, True),
    ("13", {"istio.io/rev": "default"}, {"istio.io/rev": "other"}, "", True, True),
    ("14", {"istio-injection": "enabled", "istio.io/rev": "canary"}, {}, "", True, True),
    (
        "16",
        {"istio-injection": "enabled", "kubernetes.io/metadata.name": "kube-system"},
        {},
        "",
        False,
        False,
    ),
]


@pytest.mark.parametrize(
    ("around", "own", "note", "called", "gets"),
    [row[1:] for row in ROWS],
    ids=[f"a.3-{row[0]}" for row in ROWS],
)
def test_truth_table(
    around: dict[str, str], own: dict[str, str], note: str, called: bool, gets: bool
) -> None:
    found = evaluate([webhook_configuration()], namespace_labels=around, pod_labels=own)
    assert any(w.called for w in found) is called, found
    assert sum(w.called for w in found) <= 1, "two of our webhooks would inject twice"
    meta = {"labels": own, "annotations": {INJECT: note} if note else {}}
    decision = decide({"metadata": meta, "spec": {"containers": []}}, "shop", around, Selection())
    assert (called and decision.outcome is Outcome.INJECT) is gets, decision
    if not called and around.get("kubernetes.io/metadata.name") is None and own.get(INJECT) != "True":
        assert decision.outcome is not Outcome.INJECT, "both layers say the same"


def test_rules_are_those_of_the_injector() -> None:
    """The numbers are read off the tables in the injector's own documentation."""
    text = f"{injector.core.decision.__doc__}{injector.core.inject.__doc__}"
    found: dict[str, int] = {}
    for line in text.splitlines():
        match = re.fullmatch(r" ?(\d+) .*  (?:allow|skip|deny|warn|patch)\s+(.*)", line)
        row = int(match[1]) if match else next(reversed(found.values()), 0)
        codes = match[2] if match else line.strip() if line.startswith(" " * 60) else ""
        for code in re.findall(r"[a-z]+(?:_[a-z]+)*", codes):
            if code in {str(reason) for reason in Reason}:
                found[code] = row
    assert found == {str(reason): row for reason, (row, _) in RULES.items()}
    assert [row for row, _ in passed_before(Reason.HOST_NETWORK)] == list(range(1, 10))


def test_other_webhooks() -> None:
    configuration = {
        "metadata": {"name": "x"},
        "webhooks": [
            {"name": "all.example", "rules": [rule()]},
            {"name": "update.example", "rules": [rule(operations=["UPDATE"])]},
            {"name": "apps.example", "rules": [rule(apiGroups=["apps"])]},
            {"name": "cluster.example", "rules": [rule(scope="Cluster")]},
            {"name": "stars.example", "rules": [rule(operations=["*"], apiGroups=["*"], resources=["*/*"])]},
            {"name": "broken.example", "rules": [rule()], "objectSelector": {"matchLabels": {"a": 1}}},
            {
                "name": "linkerd-proxy-injector.linkerd.io",
                "rules": [rule()],
                "namespaceSelector": {"matchExpressions": [{"key": "k", "operator": "Exists"}]},
                "failurePolicy": "Ignore",
            },
            {
                "name": "cel.example",
                "rules": [rule()],
                "matchConditions": [{"name": "c", "expression": "true"}],
            },
        ],
    }
    found = {w.name: w for w in evaluate([configuration], namespace_labels={}, pod_labels={})}
    assert set(found) == {
        "all.example",
        "stars.example",
        "broken.example",
        "linkerd-proxy-injector.linkerd.io",
        "cel.example",
    }
    assert found["all.example"].called
    assert found["all.example"].why == "it takes every pod"
    assert not found["broken.example"].called
    linkerd = found["linkerd-proxy-injector.linkerd.io"]
    assert (linkerd.mesh, linkerd.called, linkerd.failure_policy) == ("linkerd", False, "Ignore")
    assert linkerd.why == "namespace: label k must be set"
    assert found["cel.example"].conditions == ("c",)
    assert mesh_of({"metadata": {"labels": {"app": "sidecar-injector"}}}, {"name": "x"}) == "istio"
    assert not sees_new_pods({})


def rule(**changes: Any) -> dict[str, Any]:
    return {
        "operations": ["CREATE"],
        "apiGroups": [""],
        "apiVersions": ["v1"],
        "resources": ["pods"],
        **changes,
    }


@pytest.fixture
def kube() -> Iterator[FakeKube]:
    with FakeKube() as found:
        install(found)
        yield found


def explain(kube: FakeKube, tmp_path: Path, *arguments: str) -> Ran:
    return ctl("explain", "inject", *arguments, "--kubeconfig", str(kube.kubeconfig(tmp_path)))


def names(tmp_path: Path) -> dict[str, str]:
    return {f" --kubeconfig {tmp_path}/kubeconfig": ""}


def test_a_pod_that_has_one(kube: FakeKube, tmp_path: Path) -> None:
    ran = explain(kube, tmp_path, "-n", "shop", "web-5d9c-a")
    golden_script("explain-injected", ran, names=names(tmp_path))
    assert ran.code == 0


def test_a_pod_that_is_older_than_the_label(kube: FakeKube, tmp_path: Path) -> None:
    kube.add(pod("web-5d9c-old"))
    ran = explain(kube, tmp_path, "-n", "shop", "web-5d9c-old")
    assert "the running pod has no sidecar of Gatehouse" in ran.out
    assert "next: the pod is older than what asks for a sidecar: kubectl -n shop rollout restart" in ran.out
    assert ran.code == 0


def test_a_stale_sidecar(kube: FakeKube, tmp_path: Path) -> None:
    item = injected(pod("web-5d9c-b"))
    notes = item["metadata"]["annotations"]
    notes["sidecar.istio.io/status"] = notes["sidecar.istio.io/status"].replace('"0.1.0"', '"0.0.9"')
    kube.add(item)
    found = json.loads(explain(kube, tmp_path, "-n", "shop", "web-5d9c-b", "-o", "json").out)[0]
    assert found["sidecar"]["stale"] is True
    assert found["sidecar"]["version"] == "0.0.9"
    assert found["next"].startswith(
        "its sidecar was made with other settings: kubectl -n shop rollout restart"
    )


def test_nobody_asks(kube: FakeKube, tmp_path: Path) -> None:
    kube.add(namespace("plain"), pod("p", namespace="plain", ownerReferences=[]))
    ran = explain(kube, tmp_path, "-n", "plain", "pod/p")
    golden_script("explain-not-selected", ran, names=names(tmp_path))
    assert ran.code == 1


def test_two_meshes(kube: FakeKube, tmp_path: Path) -> None:
    kube.add(istio_configuration())
    ran = explain(kube, tmp_path, "-n", "shop", "web-5d9c-a")
    assert "conflict: namespace.sidecar-injector.istio.io would put its own sidecar into this pod" in ran.out
    assert ran.code == 1


def test_the_webhook_does_not_select_it(kube: FakeKube, tmp_path: Path) -> None:
    kube.remove("MutatingWebhookConfiguration", "gatehouse-sidecar-injector")
    configuration = webhook_configuration()
    configuration["webhooks"] = configuration["webhooks"][1:]
    kube.add(configuration)
    ran = explain(kube, tmp_path, "-n", "shop", "web-5d9c-a")
    assert ran.code == 1
    assert "no webhook of Gatehouse selects it" in ran.out


@pytest.mark.parametrize(
    ("kind", "target", "group"),
    [
        ("Deployment", "deploy/w", "apps/v1"),
        ("StatefulSet", "sts/w", "apps/v1"),
        ("DaemonSet", "daemonset/w", "apps/v1"),
        ("ReplicaSet", "rs/w", "apps/v1"),
        ("ReplicationController", "rc/w", "v1"),
        ("Job", "job/w", "batch/v1"),
        ("CronJob", "cj/w", "batch/v1beta1"),
    ],
    ids=str,
)
def test_workloads(kube: FakeKube, tmp_path: Path, kind: str, target: str, group: str) -> None:
    template: dict[str, Any] = {"template": {"metadata": {}, "spec": {"containers": [{"name": "a"}]}}}
    spec = {"jobTemplate": {"spec": template}} if kind == "CronJob" else template
    kube.add({"kind": kind, "metadata": {"name": "w", "namespace": "shop"}, "spec": spec})
    ran = explain(kube, tmp_path, "-n", "shop", target)
    assert ran.out.startswith(f"{kind.lower()} shop/w: it would get a sidecar [injected]\n"), ran


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        ((), "give either a pod or -f FILE"),
        (("p", "-f", "x"), "give either a pod or -f FILE"),
        (("p", "--offline"), "--offline needs -f"),
        (("no-pod", "-n", "shop"), "there is no Pod shop/no-pod"),
        (("thing/x",), "known kinds are po, deploy, sts"),
        (("deploy/",), "known kinds are"),
        (("p", "-n", "shop", "--context", "other"), "no entry 'other' in contexts"),
        (("p", "--timeout", "0"), "--timeout 0.0: allowed are"),
    ],
    ids=["nothing", "both", "offline", "no-pod", "kind", "name", "context", "timeout"],
)
def test_wrong_questions(kube: FakeKube, tmp_path: Path, arguments: tuple[str, ...], fragment: str) -> None:
    ran = explain(kube, tmp_path, *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert fragment in ran.err


def test_files(kube: FakeKube, tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    meta = '{name: p, namespace: NS, annotations: {sidecar.istio.io/proxyCPU: "x"}}'
    text = "kind: Pod\nmetadata: META\nspec: {containers: [{name: a, image: b}]}\n".replace("META", meta)
    file.write_text(text.replace("NS", "shop"))
    ran = explain(kube, tmp_path, "-f", str(file))
    assert (ran.code, "it would be refused [invalid_option]" in ran.out) == (1, True)
    assert "13  here " in ran.out
    ran = ctl("explain", "inject", "--offline", "-f", str(file))
    assert (ran.code, "WEBHOOK" in ran.out) == (1, False)
    file.write_text("kind: Service\n")
    ran = explain(kube, tmp_path, "-f", str(file))
    assert (ran.code, "no document of the files has pods" in ran.err) == (2, True)
    file.write_text("kind: Pod\nmetadata: {name: p, labels: {a: 1}}\nspec: {containers: []}\n")
    ran = ctl("explain", "inject", "--offline", "-f", str(file))
    assert (ran.code, "Pod default/p: metadata.labels" in ran.err) == (2, True)


def test_json_is_stable(kube: FakeKube, tmp_path: Path) -> None:
    found = json.loads(explain(kube, tmp_path, "-n", "shop", "web-5d9c-a", "-o", "json").out)
    assert [set(item) for item in found] == [
        {
            "kind",
            "namespace",
            "name",
            "injected",
            "verdict",
            "namespace_labels",
            "webhooks",
            "decision",
            "changes",
            "conflicts",
            "sidecar",
            "next",
        }
    ]
    assert set(found[0]["decision"]) == {"rule", "outcome", "code", "message", "problems", "warnings"}
    webhook = {"configuration", "webhook", "mesh", "called", "why", "failure_policy", "match_conditions"}
    assert {frozenset(w) for w in found[0]["webhooks"]} == {frozenset(webhook)}


def test_the_namespace_of_the_context(kube: FakeKube, tmp_path: Path) -> None:
    path = kube.kubeconfig(tmp_path)
    config = json.loads(path.read_text())
    config["contexts"][0]["context"]["namespace"] = "shop"
    path.write_text(json.dumps(config))
    ran = ctl("explain", "inject", "web-5d9c-a", "--kubeconfig", str(path), "--context", "fake")
    assert ran.out.startswith("pod shop/web-5d9c-a: ")
