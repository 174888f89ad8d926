"""Who is injected: every row of injector a.3, every row 1 to 11 of the table of codes."""

from __future__ import annotations

from typing import Any

import pytest

from injector.core.decision import Outcome, Reason, Selection, applicable, decide
from injector.core.selectors import LabelSelector, SelectorCode, SelectorError
from tests.fakes.injector_pods import a_pod, container

INJECT, REV, NS = "sidecar.istio.io/inject", "istio.io/rev", "istio-injection"
BATCH = LabelSelector.parse({"matchLabels": {"tier": "batch"}})
LEGACY = LabelSelector.parse({"matchExpressions": [{"key": "legacy", "operator": "Exists"}]})


def decided(
    namespace_labels: dict[str, str],
    labels: dict[str, str] | None = None,
    annotations: dict[str, str] | None = None,
    *,
    namespace: str = "shop",
    selection: Selection | None = None,
    **spec: Any,
) -> tuple[str, str, bool]:
    pod = a_pod(labels=labels or {}, annotations=annotations or {}, **spec)
    found = decide(pod, namespace, namespace_labels, selection or Selection())
    return found.outcome.value, found.reason.value, found.warn


ON = {NS: "enabled"}
YES, NO = {INJECT: "true"}, {INJECT: "false"}
CANARY = Selection(revision="canary")
OPT_IN = Selection(opt_in_only=True)

ROWS: list[tuple[str, dict[str, Any], tuple[str, str, bool]]] = [
    ("a3-01 namespace enabled", {"namespace_labels": ON}, ("inject", "injected", False)),
    ("a3-02 label false", {"namespace_labels": ON, "labels": NO}, ("skip", "pod_opt_out", False)),
    ("a3-03 annotation false", {"namespace_labels": ON, "annotations": NO}, ("skip", "pod_opt_out", False)),
    (
        "a3-04 label beats annotation",
        {"namespace_labels": ON, "labels": YES, "annotations": NO},
        ("inject", "injected", False),
    ),
    (
        "a3-05 trap: False in any case is a no",
        {"namespace_labels": ON, "labels": {INJECT: "False"}},
        ("skip", "pod_opt_out", False),
    ),
    (
        "a3-05 trap: no",
        {"namespace_labels": ON, "labels": {INJECT: "no"}},
        ("deny", "invalid_inject_value", True),
    ),
    (
        "a3-05 trap: 0",
        {"namespace_labels": ON, "annotations": {INJECT: "0"}},
        ("deny", "invalid_inject_value", True),
    ),
    (
        "a3-05 trap: empty",
        {"namespace_labels": ON, "labels": {INJECT: ""}},
        ("deny", "invalid_inject_value", True),
    ),
    (
        "a3-06 namespace disabled is final",
        {"namespace_labels": {NS: "disabled", REV: "default"}, "labels": YES},
        ("skip", "namespace_disabled", True),
    ),
    (
        "a3-06 any other value",
        {"namespace_labels": {NS: "Enabled"}},
        ("skip", "namespace_disabled", False),
    ),
    ("a3-06 empty value", {"namespace_labels": {NS: ""}}, ("skip", "namespace_disabled", False)),
    ("a3-07 nobody asks", {"namespace_labels": {}}, ("skip", "not_selected", False)),
    (
        "a3-08 trap: an annotation selects nothing, and says so",
        {"namespace_labels": {}, "annotations": YES},
        ("skip", "not_selected", True),
    ),
    ("a3-09 pod label", {"namespace_labels": {}, "labels": YES}, ("inject", "injected", False)),
    (
        "a3-10 trap: case",
        {"namespace_labels": {}, "labels": {INJECT: "True"}},
        ("inject", "injected", False),
    ),
    (
        "a3-11 pod revision, ours",
        {"namespace_labels": {}, "labels": {REV: "canary"}, "selection": CANARY},
        ("inject", "injected", False),
    ),
    (
        "a3-11 pod revision, not ours",
        {"namespace_labels": {}, "labels": {REV: "canary", **YES}},
        ("skip", "not_selected", True),
    ),
    (
        "a3-12 namespace revision, ours",
        {"namespace_labels": {REV: "canary"}, "selection": CANARY},
        ("inject", "injected", False),
    ),
    (
        "a3-12 namespace revision, not ours",
        {"namespace_labels": {REV: "canary"}},
        ("skip", "not_selected", False),
    ),
    (
        "a3-12 by tag",
        {
            "namespace_labels": {REV: "prod"},
            "selection": Selection(revision="v2", tags=frozenset({"prod"})),
        },
        ("inject", "injected", False),
    ),
    (
        "a3-13 namespace revision beats the pod's",
        {"namespace_labels": {REV: "canary"}, "labels": {REV: "other"}, "selection": CANARY},
        ("inject", "injected", False),
    ),
    (
        "a3-14 istio-injection beats the revision",
        {"namespace_labels": {NS: "enabled", REV: "canary"}},
        ("inject", "injected", False),
    ),
    (
        "a3-14 and canary leaves it",
        {"namespace_labels": {NS: "enabled", REV: "canary"}, "selection": CANARY},
        ("skip", "not_selected", False),
    ),
    (
        "a3-15 trap: no default revision",
        {"namespace_labels": ON, "selection": CANARY},
        ("skip", "not_selected", False),
    ),
    (
        "a3-16 kube-system",
        {"namespace_labels": ON, "labels": YES, "namespace": "kube-system"},
        ("skip", "system_namespace", True),
    ),
    (
        "a3-17 hostNetwork",
        {"namespace_labels": ON, "labels": YES, "hostNetwork": True},
        ("skip", "host_network", True),
    ),
    (
        "a3-18 pods have to ask",
        {"namespace_labels": ON, "selection": OPT_IN},
        ("skip", "not_selected", False),
    ),
    (
        "a3-19 and one does",
        {"namespace_labels": ON, "labels": YES, "selection": OPT_IN},
        ("inject", "injected", False),
    ),
    (
        "a3-19 by annotation in an enabled namespace",
        {"namespace_labels": ON, "annotations": YES, "selection": OPT_IN},
        ("inject", "injected", False),
    ),
    (
        "a3-20 explicit beats never",
        {"namespace_labels": ON, "labels": {"legacy": "1", **YES}, "selection": Selection(never=(LEGACY,))},
        ("inject", "injected", False),
    ),
    (
        "never",
        {"namespace_labels": ON, "labels": {"legacy": "1"}, "selection": Selection(never=(LEGACY,))},
        ("skip", "never_selector", False),
    ),
    (
        "a3-21 never beats always",
        {
            "namespace_labels": ON,
            "labels": {"legacy": "1", "tier": "batch"},
            "selection": Selection(never=(LEGACY,), always=(BATCH,)),
        },
        ("skip", "never_selector", False),
    ),
    (
        "a3-22 always",
        {
            "namespace_labels": {},
            "labels": {"tier": "batch"},
            "selection": Selection(always=(BATCH,), opt_in_only=True),
        },
        ("inject", "injected", False),
    ),
    (
        "auto namespaces",
        {"namespace_labels": {}, "selection": Selection(namespaces_by_default=True)},
        ("inject", "injected", False),
    ),
    (
        "auto namespaces, disabled",
        {"namespace_labels": {NS: "disabled"}, "selection": Selection(namespaces_by_default=True)},
        ("skip", "namespace_disabled", False),
    ),
    (
        "disabled, but the operator lets pods ask",
        {
            "namespace_labels": {NS: "disabled"},
            "labels": YES,
            "selection": Selection(pods_override_disabled=True),
        },
        ("inject", "injected", False),
    ),
    (
        "disabled, an annotation still does not",
        {
            "namespace_labels": {NS: "disabled"},
            "annotations": YES,
            "selection": Selection(pods_override_disabled=True),
        },
        ("skip", "namespace_disabled", True),
    ),
    (
        "the control plane's own namespace",
        {
            "namespace_labels": ON,
            "namespace": "istio-system",
            "selection": Selection(excluded_namespaces=frozenset({"istio-system"})),
        },
        ("skip", "system_namespace", False),
    ),
    (
        "strict namespace denies hostNetwork",
        {
            "namespace_labels": ON,
            "hostNetwork": True,
            "selection": Selection(strict_namespaces=frozenset({"shop"})),
        },
        ("deny", "host_network", True),
    ),
]


@pytest.mark.parametrize(("row", "arguments", "expected"), ROWS, ids=[row[0] for row in ROWS])
def test_truth_table(row: str, arguments: dict[str, Any], expected: tuple[str, str, bool]) -> None:
    assert decided(**arguments) == expected


@pytest.mark.parametrize(
    ("expected", "spec"),
    [
        ("windows_pod", {"os": {"name": "windows"}}),
        ("windows_pod", {"nodeSelector": {"kubernetes.io/os": "windows"}}),
        ("windows_pod", {"nodeSelector": {"beta.kubernetes.io/os": "windows"}}),
        ("injected", {"os": {"name": "linux"}, "nodeSelector": {"kubernetes.io/os": "linux"}}),
    ],
)
def test_windows(expected: str, spec: dict[str, Any]) -> None:
    assert decided(ON, **spec)[1] == expected


def _terms(*values: list[str]) -> dict[str, Any]:
    terms = [
        {"matchExpressions": [{"key": "kubernetes.io/os", "operator": "In", "values": v}]} for v in values
    ]
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    return {"affinity": {"nodeAffinity": required}}


@pytest.mark.parametrize(
    ("expected", "spec"),
    [
        ("windows_pod", _terms(["windows"])),
        ("injected", _terms(["windows"], ["linux"])),
        ("injected", _terms(["windows", "linux"])),
        ("injected", _terms()),
    ],
    ids=["certain", "one-of-two-terms", "one-of-two-values", "no-term"],
)
def test_windows_by_affinity(expected: str, spec: dict[str, Any]) -> None:
    """Terms are alternatives: only a certain Windows node counts."""
    assert decided(ON, **spec)[1] == expected


@pytest.mark.parametrize(
    "pod",
    [
        a_pod(annotations={"kubernetes.io/config.mirror": "x", INJECT: "nonsense"}),
        {
            "metadata": {"ownerReferences": [{"kind": "Node", "name": "n1"}]},
            "spec": {"containers": [container()]},
        },
    ],
    ids=["annotation", "owner"],
)
def test_static_pods(pod: dict[str, Any]) -> None:
    assert decide(pod, "shop", ON, Selection()).reason is Reason.MIRROR_POD


@pytest.mark.parametrize(
    "sidecar",
    [
        container("linkerd-proxy"),
        container("kuma-sidecar"),
        container("consul-dataplane"),
        {"name": "istio-proxy", "image": "docker.io/istio/proxyv2:1.30"},
    ],
    ids=lambda c: c["name"],
)
@pytest.mark.parametrize("where", ["containers", "initContainers"])
def test_sidecars_of_others(sidecar: dict[str, Any], where: str) -> None:
    pod = a_pod()
    pod["spec"][where] = [*pod["spec"].get(where, []), sidecar]
    found = decide(pod, "shop", ON, Selection())
    assert (found.outcome, found.reason) == (Outcome.SKIP, Reason.FOREIGN_SIDECAR)
    assert sidecar["name"] in found.message
    strict = Selection(strict_namespaces=frozenset({"shop"}))
    assert decide(pod, "shop", ON, strict).outcome is Outcome.DENY


def test_the_status_of_another_injector() -> None:
    theirs = {"sidecar.istio.io/status": '{"containers":["istio-proxy"],"revision":"default"}'}
    assert decided(ON, annotations=theirs)[1] == "foreign_sidecar"


def test_order_of_the_rows() -> None:
    """A pod for which every row holds is judged by the first."""
    everything: dict[str, Any] = {
        "labels": {INJECT: "nonsense"},
        "annotations": {"kubernetes.io/config.mirror": "x"},
        "hostNetwork": True,
        "os": {"name": "windows"},
    }
    off = {NS: "disabled"}
    assert decided(off, namespace="kube-public", **everything)[1] == "system_namespace"
    assert decided(off, **everything)[1] == "mirror_pod"
    del everything["annotations"]
    assert decided(off, **everything)[1] == "windows_pod"
    del everything["os"]
    assert decided(off, **everything)[1] == "invalid_inject_value"
    everything["labels"] = NO
    assert decided(off, **everything)[1] == "pod_opt_out"
    everything["labels"] = {}
    assert decided(off, **everything)[1] == "namespace_disabled"
    assert decided({}, **everything)[1] == "not_selected"
    assert decided(ON, **everything)[1] == "host_network"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"namespace_labels": {}}, "kubectl label namespace shop istio-injection=enabled"),
        ({"namespace_labels": {}, "annotations": YES}, "set it as a label of the pod"),
        ({"namespace_labels": ON, "selection": OPT_IN}, "label the pod sidecar.istio.io/inject=true"),
        (
            {"namespace_labels": {REV: "canary"}},
            "name revision 'canary'; this injector is revision 'default'",
        ),
        ({"namespace_labels": {NS: "on"}}, "istio-injection=on (allowed are enabled and disabled)"),
    ],
)
def test_the_message_says_what_to_do(arguments: dict[str, Any], said: str) -> None:
    selection = arguments.pop("selection", Selection())
    pod = a_pod(annotations=arguments.get("annotations"))
    assert said in decide(pod, "shop", arguments["namespace_labels"], selection).message


POD_KIND = {"group": "", "version": "v1", "kind": "Pod"}


@pytest.mark.parametrize(
    ("request_", "ok"),
    [
        ({"kind": POD_KIND, "operation": "CREATE"}, True),
        ({"kind": POD_KIND, "operation": "CREATE", "subResource": ""}, True),
        ({"kind": POD_KIND, "operation": "UPDATE"}, False),
        ({"kind": POD_KIND, "operation": "CREATE", "subResource": "ephemeralcontainers"}, False),
        ({"kind": {**POD_KIND, "group": "apps"}, "operation": "CREATE"}, False),
        ({"kind": {**POD_KIND, "version": "v2"}, "operation": "CREATE"}, False),
        ({"kind": {**POD_KIND, "kind": "Service"}, "operation": "CREATE"}, False),
        ({}, False),
    ],
)
def test_row_1_not_applicable(request_: dict[str, Any], ok: bool) -> None:
    found = applicable(request_)
    if ok:
        assert found is None
        return
    assert found is not None
    assert (found.outcome, found.reason) == (Outcome.SKIP, Reason.NOT_APPLICABLE)
    assert "only the creation of v1 pods" in found.message


def test_an_empty_selector_is_refused() -> None:
    """It would match every pod of the cluster."""
    with pytest.raises(SelectorError, match="matches every pod") as caught:
        Selection(never=(LabelSelector(),))
    assert caught.value.code is SelectorCode.INVALID
