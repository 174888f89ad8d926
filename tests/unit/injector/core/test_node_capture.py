"""Which pods want rules of their node, and when the agent tries: decisions as values."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from injector.core.capture import CaptureConfig, PortRange
from injector.core.capture_messages import NamespaceCode
from injector.core.inject import InjectorSettings
from injector.core.node_capture import Tried, Wanted, due, is_news, read_wanted
from tests.fakes.injector_pods import CLASSIC, NATIVE, a_pod, container, find, injected

UID = "0b7d1e5c-3f2a-4c7e-9a41-6d5b8f0e2c11"
NODE = "node1"
SETTINGS = InjectorSettings(node_capture=True)
NO_SANDBOX = NamespaceCode.NO_SANDBOX.value


def running(pod: dict[str, Any], **status: Any) -> dict[str, Any]:
    """The pod as the API server has it once it is on a node."""
    pod["metadata"]["uid"] = UID
    pod["spec"]["nodeName"] = NODE
    pod["status"] = {"phase": "Pending", **status}
    return pod


def waits(state: dict[str, Any] | None = None, container_id: str = "containerd://a") -> dict[str, Any]:
    found = {"name": "istio-validation", "state": state or {"running": {}}, "containerID": container_id}
    return {"initContainerStatuses": [{"name": "other"}, found], "podIP": "10.1.0.7"}


def read(pod: dict[str, Any]) -> Wanted | None:
    return read_wanted(pod, node=NODE)


def wanted(mode: Any = NATIVE, *, init: bool = False, **status: Any) -> Wanted:
    more: dict[str, Any] = {"initContainers": [container("setup")]} if init else {}
    found = read(running(injected(a_pod(**more), mode, config=SETTINGS), **status))
    assert found is not None
    return found


def test_the_rules_are_those_that_the_injector_computed() -> None:
    pod = a_pod(annotations={"traffic.sidecar.istio.io/excludeOutboundPorts": "5432"})
    found = read(running(injected(pod, config=SETTINGS)))
    assert found is not None
    assert found.config == CaptureConfig(exclude_outbound_ports=(PortRange(5432, 5432),))
    own = find(injected(pod), "istio-init")["args"]
    assert CaptureConfig.from_json(own[1]) == found.config, "the same as where the pod writes its own rules"


@pytest.mark.parametrize(
    "change",
    [
        {"spec": {"nodeName": "node2"}},
        {"spec": {"nodeName": None}},
        {"spec": {"hostNetwork": True}},
        {"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}},
        {"metadata": {"uid": "../../1"}},
        {"status": {"phase": "Succeeded"}},
        {"status": {"phase": "Failed"}},
        {"spec": {"initContainers": []}},
    ],
    ids=["elsewhere", "nowhere", "host-network", "going", "uid", "succeeded", "failed", "not-injected"],
)
def test_no_business_of_ours(change: dict[str, dict[str, Any]]) -> None:
    pod = running(injected(a_pod(), config=SETTINGS))
    assert read(pod) is not None
    for part, fields in change.items():
        pod[part].update(fields)
    assert read(pod) is None


def test_a_container_of_that_name_that_does_something_else_is_another_meshs() -> None:
    pod = running(injected(a_pod(), config=SETTINGS))
    find(pod, "istio-validation")["command"] = ["pilot-agent"]
    assert read(pod) is None


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--config"],
        ["--timeout", "5"],
        "--config",
        ["--config", "{"],
        ["--config", '{"proxy_uid":0}'],
        ["--config", '{"include_outbound_cidrs":["fe80::%x} ; flush ruleset"]}'],
        ["--config", 7],
    ],
)
def test_what_cannot_become_rules_is_refused_and_told_once(arguments: Any) -> None:
    pod = running(injected(a_pod(), config=SETTINGS))
    find(pod, "istio-validation")["args"] = arguments
    found = read(pod)
    assert found is not None
    assert found.config is None
    code, sentence = found.problem
    assert code.startswith("capture_")
    assert sentence
    assert due(found, None, now=5.0, recheck=300.0) == 5.0
    tried = Tried(at=5.0, token=found.token, code=code, failures=1)
    assert is_news(found, tried)
    assert due(found, tried, now=99.0, recheck=300.0) is None


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.lists(anything, max_size=4)
    | st.just(["--config"]).flatmap(lambda a: anything.map(lambda b: [*a, json.dumps(b)]))
)
def test_arguments_of_any_kind_are_read(arguments: list[Any]) -> None:
    pod = running(injected(a_pod(), config=SETTINGS))
    find(pod, "istio-validation")["args"] = arguments
    found = read(pod)
    assert found is not None
    assert (found.config is None) == bool(found.problem[0])


# --- when


def test_rules_are_there_before_the_containers_where_nobody_else_comes_first() -> None:
    found = wanted()
    assert found.first
    assert not found.started
    assert due(found, None, now=7.0, recheck=300.0) == 7.0


def test_other_init_containers_still_reach_the_network() -> None:
    """Classic sidecars: they run before the proxy, as they do where the pod writes its own rules."""
    before = wanted(CLASSIC, init=True)
    assert not before.first
    assert due(before, None, now=7.0, recheck=300.0) is None
    now = wanted(CLASSIC, init=True, **waits())
    assert due(now, None, now=7.0, recheck=300.0) == 7.0
    assert wanted(NATIVE, init=True).first, "natively they run after the proxy, and are in the mesh"


def test_failures_are_tried_again_ever_more_slowly() -> None:
    found = wanted()
    times = []
    for failures in range(1, 20):
        at = due(
            found, Tried(at=0.0, token=found.token, code=NO_SANDBOX, failures=failures), now=0.0, recheck=9.0
        )
        assert at is not None
        times.append(at)
    assert times[:3] == [0.4, 0.8, 1.6]
    assert max(times) == 5.0


def test_a_new_sandbox_is_captured_at_once() -> None:
    """The pod keeps its UID, and everything else is new: the network has no rules."""
    proved = wanted(**waits({"terminated": {"exitCode": 0}}))
    assert proved.proved
    tried = Tried(at=100.0, token=proved.token, network="4:1")
    assert due(proved, tried, now=101.0, recheck=300.0) == 400.0
    for again in (waits(container_id="containerd://b"), {**waits({"waiting": {}}), "podIP": "10.1.0.8"}):
        assert due(wanted(**again), tried, now=101.0, recheck=300.0) == 101.0


def test_until_the_pod_has_seen_them_rules_are_looked_at_often() -> None:
    found = wanted(**waits())
    assert due(found, Tried(at=100.0, token=found.token, network="4:1"), now=101.0, recheck=300.0) == 105.0


def test_a_failed_wait_counts_as_started() -> None:
    ended = {
        "name": "istio-validation",
        "state": {"waiting": {}},
        "lastState": {"terminated": {"exitCode": 1}},
    }
    found = wanted(initContainerStatuses=[ended])
    assert found.started
    assert not found.proved


@pytest.mark.parametrize(
    ("code", "started", "failures", "news"),
    [
        ("", True, 0, False),
        (NO_SANDBOX, False, 99, False),
        (NO_SANDBOX, True, 2, False),
        (NO_SANDBOX, True, 3, True),
        ("capture_node_network", True, 3, True),
        ("init_apply_failed", False, 1, True),
        ("capture_worker_away", True, 2, False),
        ("capture_worker_away", True, 3, True),
    ],
)
def test_what_is_told(code: str, started: bool, failures: int, news: bool) -> None:
    found = wanted(**(waits() if started else {}))
    assert is_news(found, Tried(at=0.0, token=found.token, code=code, failures=failures)) is news


def test_pods_that_run_do_not_hear_of_a_worker_that_starts_anew() -> None:
    found = wanted(**waits({"terminated": {"exitCode": 0}}))
    assert not is_news(found, Tried(at=0.0, token=found.token, code="capture_worker_away", failures=99))
    assert is_news(found, Tried(at=0.0, token=found.token, code="init_apply_failed", failures=1))
