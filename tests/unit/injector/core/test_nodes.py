"""Native sidecars by the kubelets' versions: never on a guess, never vacuously, per pool of nodes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from injector.core.nodes import (
    MAX_LABELS,
    NATIVE_MINOR,
    NodeFacts,
    NodesAndServer,
    NodeVersions,
    read_node,
    summarise,
)
from injector.core.settings import ClusterFeatures
from tests.fakes.injector_pods import a_pod, injected, injecting, status

S = "sidecar.istio.io/"


def node(version: str = "v1.31.2", **labels: str) -> dict[str, Any]:
    return {"metadata": {"name": "n", "labels": labels}, "status": {"nodeInfo": {"kubeletVersion": version}}}


def facts(minor: int, *labels: str) -> NodeFacts:
    return NodeFacts(minor, frozenset(labels))


@pytest.mark.parametrize(
    ("version", "minor"),
    [
        ("v1.29.0", 29),
        ("v1.28.15", 28),
        ("v1.31.2-gke.1", 31),
        ("v1.30.1+k3s1", 30),
        ("v1.19.10-vk-azure-aci-1.4.1", 19),
        ("", 0),
        ("v2.0.0", 0),
        ("1.31.0", 0),
    ],
)
def test_the_version_of_a_kubelet(version: str, minor: int) -> None:
    """What cannot be read is too old: a wrong guess hangs pods."""
    found = read_node(node(version))
    assert found is not None
    assert found.minor == minor


def test_a_node_without_linux_says_nothing_and_host_names_are_no_pool() -> None:
    assert read_node(node("v1.20.0", **{"kubernetes.io/os": "windows"})) is None
    windows = {"status": {"nodeInfo": {"kubeletVersion": "v1.20.0", "operatingSystem": "windows"}}}
    assert read_node(windows) is None
    assert read_node({}) == facts(0)
    found = read_node(node(**{"kubernetes.io/hostname": "n", "pool": "new"}))
    assert found is not None
    assert found.labels == {"pool=new"}


def test_no_nodes_say_nothing() -> None:
    """b.7, trap: an "all nodes" over nothing is true."""
    assert summarise([]) is None


def test_all_new_enough_is_one_fact() -> None:
    found = summarise([facts(29, "pool=a"), facts(33, "pool=b")])
    assert found == NodeVersions(29)
    assert found.native({})


def test_one_old_node_makes_classic_except_where_a_selector_avoids_it() -> None:
    found = summarise([facts(28, "pool=old", "os=linux"), facts(31, "pool=new", "os=linux")])
    assert found is not None
    assert found.oldest == 28
    assert found.native_labels == {"pool=new"}
    for selector, native in (
        ({}, False),
        ({"os": "linux"}, False),
        ({"pool": "old"}, False),
        ({"pool": "unheard-of"}, False),
        ({"pool": "new"}, True),
        ({"os": "linux", "pool": "new"}, True),
    ):
        assert found.native(selector) is native, selector


NODES = st.lists(
    st.builds(
        lambda minor, labels: NodeFacts(minor, frozenset(f"{k}={v}" for k, v in labels.items())),
        st.integers(26, 33),
        st.dictionaries(st.sampled_from("abc"), st.sampled_from("xyz"), max_size=3),
    ),
    min_size=1,
    max_size=8,
)


@given(NODES, st.dictionaries(st.sampled_from("abc"), st.sampled_from("xyz"), max_size=3))
def test_native_is_never_said_of_a_pod_that_an_old_node_may_run(
    nodes: list[NodeFacts], selector: Mapping[str, str]
) -> None:
    found = summarise(nodes)
    assert found is not None
    wanted = {f"{key}={value}" for key, value in selector.items()}
    if found.native(selector):
        assert all(node.minor >= NATIVE_MINOR for node in nodes if wanted <= node.labels)
    assert NodeVersions.from_json(found.to_json()) == found


def test_what_is_published_is_bounded() -> None:
    many = [facts(31, *(f"l{i}=x" for i in range(2 * MAX_LABELS)), "common=x"), facts(31, "common=x")]
    found = summarise([facts(20), *many])
    assert found is not None
    assert len(found.native_labels) == MAX_LABELS
    assert "common=x" in found.native_labels


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"schema":2,"oldest":31,"native_labels":[]}',
        '{"schema":1,"oldest":"31","native_labels":[]}',
        '{"schema":1,"oldest":true,"native_labels":[]}',
        '{"schema":1,"oldest":31}',
        '{"schema":1,"oldest":31,"native_labels":[1]}',
    ],
)
def test_what_is_not_ours_says_nothing(text: str) -> None:
    assert NodeVersions.from_json(text) is None


@pytest.mark.parametrize(
    ("server", "nodes", "known"),
    [
        (True, NodeVersions(29), True),
        (True, NodeVersions(28), False),
        (True, None, None),
        (False, NodeVersions(29), False),  # an API server before 1.29 drops the field
        (False, None, False),
    ],
)
def test_server_and_nodes_together(server: bool, nodes: NodeVersions | None, known: bool | None) -> None:
    assert NodesAndServer(ClusterFeatures(native_sidecars=server), nodes).native({}) is known  # type: ignore[arg-type]  # has the one field


@pytest.mark.parametrize(
    ("known", "said", "mode"),
    [
        (True, None, "native"),
        (True, "false", "classic"),
        (False, None, "classic"),
        (None, None, "classic"),  # closed: classic works everywhere
        (None, "true", "native"),  # the author knows better
        (None, "false", "classic"),
    ],
)
def test_the_mode_of_a_pod(known: bool | None, said: str | None, mode: str) -> None:
    pod = a_pod(annotations={S + "nativeSidecar": said} if said else {})
    assert status(injected(pod, ClusterFeatures(native_sidecars=known)))["mode"] == mode


def test_native_against_what_is_known_is_denied() -> None:
    """The pod would hang for ever: its proxy is an init container that never ends."""
    pod = a_pod(annotations={S + "nativeSidecar": "true"})
    result = injecting(pod, ClusterFeatures(native_sidecars=False))
    assert result.decision.reason.value == "invalid_option"
    assert "not every node where this pod may run has native sidecars" in result.problems[0]


def test_a_pod_is_judged_by_the_nodes_that_its_selector_allows() -> None:
    cluster = NodesAndServer(ClusterFeatures(), NodeVersions(27, frozenset({"pool=new"})))  # type: ignore[arg-type]  # has the one field
    for selector, mode in (({"pool": "new"}, "native"), ({"pool": "old"}, "classic")):
        result = injected(a_pod(nodeSelector=selector), cluster)  # type: ignore[arg-type]  # another cluster
        assert status(result)["mode"] == mode
