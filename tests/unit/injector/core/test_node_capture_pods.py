"""Injected pods where nodes capture: without rights, in the right order, and back again."""

from __future__ import annotations

from typing import Any

import pytest

from injector.core.capture import CaptureConfig, PortRange, probe_port
from injector.core.inject import ClusterFeatures, InjectorSettings, uninject
from injector.core.patch import apply_patch
from tests.fakes.injector_pods import (
    CLASSIC,
    ENABLED,
    NATIVE,
    a_pod,
    container,
    find,
    injected,
    injecting,
    names,
    status,
)
from tests.fakes.pod_security import restricted

POD, NODE = InjectorSettings(), InjectorSettings(node_capture=True)
MODES = pytest.mark.parametrize("mode", [NATIVE, CLASSIC], ids=["native", "classic"])
T = "traffic.sidecar.istio.io/"
SAFE: dict[str, Any] = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "runAsNonRoot": True,
    "seccompProfile": {"type": "RuntimeDefault"},
}
LEVEL = {**ENABLED, "pod-security.kubernetes.io/enforce": "restricted"}


def safe(name: str = "web") -> dict[str, Any]:
    return container(name, securityContext=SAFE, livenessProbe={"httpGet": {"path": "/h", "port": 8080}})


@MODES
def test_the_whole_pod_is_restricted(mode: ClusterFeatures) -> None:
    pod = a_pod(safe(), initContainers=[container("setup", securityContext=SAFE)])
    assert restricted(pod) == []
    result = injecting(pod, mode, config=NODE, namespace_labels=LEVEL)
    assert (result.decision.reason, result.decision.warn) == ("injected", False)
    assert restricted(apply_patch(pod, result.patch)) == []
    insecure = injecting(pod, mode, config=POD, namespace_labels=LEVEL)
    assert insecure.decision.reason == "pod_security"
    assert "next: the chart's capture.mode=node" in insecure.decision.message
    assert restricted(apply_patch(pod, insecure.patch)), "the checker itself must see it"


@MODES
def test_the_container_that_waits(mode: ClusterFeatures) -> None:
    pod = injected(a_pod(), mode, config=InjectorSettings(node_capture=True, capture_seconds=7))
    wait = find(pod, "istio-validation")
    proxy = find(pod, "istio-proxy")
    assert wait["securityContext"] == proxy["securityContext"], "the user that the rules know"
    assert wait["securityContext"]["readOnlyRootFilesystem"] is True
    assert wait["command"] == ["python3", "-m", "injector.istio_validation"]
    assert wait["args"][0] == "--config"
    assert wait["args"][2:] == ["--timeout", "7"]
    assert wait["image"] == proxy["image"]
    assert wait["resources"] == proxy["resources"], "quotas"
    assert {item["name"]: item["valueFrom"]["fieldRef"]["fieldPath"] for item in wait["env"]} == {
        "POD_IPS": "status.podIPs",
        "NODE_NAME": "spec.nodeName",
    }
    assert wait["terminationMessagePolicy"] == "FallbackToLogsOnError"
    assert "volumeMounts" not in wait
    assert "istio-init" not in names(pod, "initContainers")


def test_order() -> None:
    pod = a_pod(initContainers=[container("setup")])
    assert names(injected(pod, NATIVE, config=NODE), "initContainers") == [
        *("istio-validation", "istio-proxy", "setup")
    ]
    assert names(injected(pod, CLASSIC, config=NODE), "initContainers") == ["setup", "istio-validation"]


@MODES
def test_the_rules_are_those_of_istio_init(mode: ClusterFeatures) -> None:
    options = {
        f"{T}includeInboundPorts": "8080",
        f"{T}excludeOutboundIPRanges": "10.0.0.0/8,fd00::/8",
        f"{T}excludeInterfaces": "net1",
    }
    range_ = {"openshift.io/sa.scc.uid-range": "1000680000/10000"}
    rules = [
        find(injected(a_pod(annotations=options), mode, config=config, namespace_annotations=range_), name)[
            "args"
        ][1]
        for config, name in ((POD, "istio-init"), (NODE, "istio-validation"))
    ]
    assert rules[0] == rules[1]
    assert CaptureConfig.from_json(rules[0]).proxy_uid != 1337


@MODES
def test_without_capture_nothing_waits(mode: ClusterFeatures) -> None:
    pod = injected(a_pod(annotations={"sidecar.istio.io/interceptionMode": "NONE"}), mode, config=NODE)
    assert "istio-validation" not in names(pod, "initContainers")


@MODES
def test_there_and_back_and_again(mode: ClusterFeatures) -> None:
    """An upgrade that changes who captures: pods and templates that come back get the other container."""
    pod = a_pod(safe(), initContainers=[container("setup")])
    first = injected(pod, mode, config=POD)
    second = injecting(first, mode, config=NODE)
    assert second.decision.reason == "reinjected"
    after = apply_patch(first, second.patch)
    assert status(after)["initContainers"][0] == "istio-validation"
    assert "istio-init" not in names(after, "initContainers")
    assert find(after, "istio-validation") == find(injected(pod, mode, config=NODE), "istio-validation")
    assert injecting(after, mode, config=NODE).decision.reason == "up_to_date"
    assert uninject(after)["spec"] == pod["spec"]
    back = injecting(after, mode, config=POD)
    assert "istio-validation" not in names(apply_patch(after, back.patch), "initContainers")


@MODES
def test_what_others_change_is_put_right(mode: ClusterFeatures) -> None:
    after = injected(a_pod(), mode, config=NODE)
    find(after, "istio-validation")["args"] = ["--config", "{}"]
    find(after, "istio-validation")["command"] = ["true"]
    result = injecting(after, mode, config=NODE)
    assert result.decision.reason == "repaired"
    again = apply_patch(after, result.patch)
    assert find(again, "istio-validation")["command"] == ["python3", "-m", "injector.istio_validation"]


@pytest.mark.parametrize("config", [POD, NODE], ids=["pod", "node"])
@pytest.mark.parametrize("name", ["istio-init", "istio-validation"])
def test_the_names_belong_to_the_mesh(config: InjectorSettings, name: str) -> None:
    result = injecting(a_pod(initContainers=[container(name)]), config=config)
    assert result.problems == (f"container name {name} belongs to the mesh; next: rename it",)


@pytest.mark.parametrize(
    "annotation", [{f"{T}excludeInterfaces": "lo"}, {f"{T}excludeOutboundPorts": "1-65535"}]
)
def test_rules_that_nobody_could_see_are_refused(annotation: dict[str, str]) -> None:
    """Such a pod would wait for ever."""
    result = injecting(a_pod(annotations=annotation), config=NODE)
    assert result.decision.reason == "invalid_option"
    assert "could not tell that its rules are in force" in result.decision.message
    assert injecting(a_pod(annotations=annotation), config=POD).decision.reason == "injected"


@pytest.mark.parametrize(
    ("excluded", "port"),
    [
        ((), 15002),
        ((PortRange(15002, 15002),), 1),
        ((PortRange(1, 15010),), 15011),
        ((PortRange(2, 15090),), 1),
    ],
)
def test_a_port_that_only_rules_lead_from(excluded: tuple[PortRange, ...], port: int) -> None:
    assert probe_port(CaptureConfig(exclude_outbound_ports=excluded)) == port


def test_no_such_port() -> None:
    every = PortRange(1, 65535)
    assert probe_port(CaptureConfig(exclude_outbound_ports=(every,))) is None
    own = (PortRange(1, 14999), PortRange(15002, 15005), PortRange(15007, 15019))
    rest = (PortRange(15022, 15089), PortRange(15091, 65535))
    assert probe_port(CaptureConfig(exclude_outbound_ports=(*own, *rest))) is None, (
        "the proxy's own are no proof"
    )
    assert probe_port(CaptureConfig(exclude_interfaces=("lo",))) is None


def test_what_is_done_is_told_in_words() -> None:
    said = injecting(a_pod(), config=NODE).mutations
    assert (
        "init container istio-validation: waits for the capture rules, which the node's agent writes" in said
    )
