"""Objects of an API server become small records, whatever they hold."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.topology import AppProtocol
from nodeagent.core.kube_objects import (
    MAX_PORTS,
    EndpointRecord,
    Interner,
    KeySetsRecord,
    PodPort,
    read_key_sets,
    read_pod,
    read_policy,
    read_service,
    read_slice,
)
from nodeagent.core.kube_protocols import protocol_of
from tests.fakes.kube_objects import kube_pod, kube_policy, kube_service, kube_slice

HTTP, HTTP2, TCP, AUTO = AppProtocol.HTTP, AppProtocol.HTTP2, AppProtocol.TCP, AppProtocol.AUTO


def pod(item: dict[str, Any], node: str = "node1"):
    return read_pod(item, node=node, interner=Interner())


def service(item: dict[str, Any]):
    return read_service(item, interner=Interner())


def test_a_pod() -> None:
    found = pod(kube_pod(ports=((8080, "http"), (9090, "metrics"))))
    assert found is not None
    assert (found.uid, found.namespace, found.name, found.ip) == ("uid-web", "demo", "web", "10.0.0.1")
    assert (found.service_account, found.in_mesh, found.deleting, found.finished) == (
        "web",
        True,
        False,
        False,
    )
    assert found.ports == (PodPort(8080, "http"), PodPort(9090, "metrics"))  # not the proxy's 15090


def test_ports_of_other_nodes_pods_are_not_kept() -> None:
    found = pod(kube_pod(node="node2"))
    assert found is not None
    assert found.ports == ()


ENDED = {"terminated": {"exitCode": 0}}
FAILED = {"terminated": {"exitCode": 1}}


@pytest.mark.parametrize(
    ("policy", "app", "ended"),
    [
        ("Never", ENDED, True),
        ("Never", FAILED, True),
        ("OnFailure", ENDED, True),
        ("OnFailure", FAILED, False),
        ("Always", ENDED, False),
        ("", ENDED, False),
        ("Never", {"running": {}}, False),
        ("Never", {}, False),
    ],
)
def test_when_the_proxy_of_a_job_may_end(policy: str, app: dict[str, Any], ended: bool) -> None:
    """The proxy still runs; containers that the kubelet would start again have not ended."""
    statuses = [{"name": "app", "state": app}, {"name": "istio-proxy", "state": {"running": {}}}]
    item = kube_pod(containerStatuses=statuses)
    item["spec"]["restartPolicy"] = policy
    found, elsewhere = pod(item), pod(item, node="node2")
    assert found is not None
    assert elsewhere is not None
    assert found.apps_ended is ended
    assert not elsewhere.apps_ended, "the agent of its own node tells it"


def test_every_container_of_a_job_must_have_ended() -> None:
    item = kube_pod(containerStatuses=[{"name": "app", "state": ENDED}])
    item["spec"]["restartPolicy"] = "Never"
    item["spec"]["containers"].append({"name": "second"})
    found = pod(item)
    assert found is not None
    assert not found.apps_ended


def test_what_makes_a_pod_part_of_the_mesh() -> None:
    bare = kube_pod(mesh=False)
    assert pod(bare).in_mesh is False
    bare["metadata"]["annotations"] = {"sidecar.istio.io/status": "{}"}
    assert pod(bare).in_mesh is True


def test_the_end_of_a_pod() -> None:
    item = kube_pod(phase="Succeeded")
    item["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    found = pod(item)
    assert found is not None
    assert (found.deleting, found.finished) == (True, True)


def test_a_pod_without_an_account_has_the_default_one() -> None:
    item = kube_pod(podIP="nonsense")
    del item["spec"]["serviceAccountName"]
    item["spec"]["hostNetwork"] = True
    found = pod(item)
    assert found is not None
    assert (found.service_account, found.ip, found.host_network) == ("default", "", True)


def test_ports_are_bounded_unique_and_tcp() -> None:
    item = kube_pod(ports=tuple((n, "") for n in range(1, MAX_PORTS + 50)))
    assert len(pod(item).ports) == MAX_PORTS
    item["spec"]["containers"][0]["ports"] = [
        {"containerPort": 53, "protocol": "UDP"},
        {"containerPort": 80},
        {"containerPort": 80, "name": "again"},
        {"containerPort": True},
        {"containerPort": 70000},
        {"containerPort": "x"},
    ]
    assert pod(item).ports == (PodPort(80, ""),)


def test_equal_labels_are_one_object() -> None:
    interner = Interner()
    first, second = (read_pod(kube_pod(name="web", uid=u), node="", interner=interner) for u in "ab")
    assert first is not None
    assert second is not None
    assert first.labels is second.labels
    assert first.namespace is second.namespace


def test_the_pool_of_labels_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nodeagent.core.kube_objects._MAX_POOL", 2)
    interner = Interner()
    kept = interner.labels({"a": "1"})
    for number in range(5):
        assert interner.labels({"n": str(number)}) == {"n": str(number)}
    assert interner.labels({"a": "1"}) == kept


def test_a_service() -> None:
    found = service(kube_service(clusterIPs=["10.96.0.10", "fd00:0::a"], ipFamilies=["IPv4", "IPv6"]))
    assert found is not None
    assert found.addresses == ("10.96.0.10", "fd00::a")
    assert (found.headless, found.ipv6_first, found.selector) == (False, False, {"app": "web"})
    (port,) = found.ports
    assert (port.name, port.number, port.target, port.protocol, port.server_first) == (
        "http",
        80,
        8080,
        HTTP,
        False,
    )
    assert found.created == dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


def test_a_headless_service_and_ipv6() -> None:
    headless = service(kube_service(address="None"))
    assert headless is not None
    assert (headless.headless, headless.addresses) == (True, ())
    six = service(kube_service(address="fd00::1"))
    assert six is not None
    assert six.ipv6_first is True


@pytest.mark.parametrize(
    "item",
    [
        pytest.param(kube_service(type="ExternalName"), id="external-name"),
        pytest.param(kube_service(ports=()), id="no-ports"),
        pytest.param({"metadata": {"name": "x"}}, id="no-namespace"),
        pytest.param({}, id="empty"),
    ],
)
def test_services_that_nobody_can_be_led_to(item: dict[str, Any]) -> None:
    assert service(item) is None


def test_ports_of_a_service() -> None:
    item = kube_service(created="yesterday")
    item["spec"]["ports"] = [
        {"port": 53, "protocol": "UDP"},
        {"port": 443, "name": "x", "appProtocol": "kubernetes.io/h2c", "targetPort": "web"},
        {"port": 3306},
        {"port": 9000, "targetPort": 0},
        {"port": "80"},
    ]
    found = service(item)
    assert found is not None
    assert [(p.number, p.target, p.protocol, p.server_first) for p in found.ports] == [
        (443, "web", HTTP2, False),
        (3306, 3306, TCP, True),
        (9000, 9000, AUTO, False),
    ]
    assert found.created.year == 1970


PROTOCOLS = [
    ("http", 80, "http", "", HTTP, False),
    ("http-suffix", 80, "http-web", "", HTTP, False),
    ("http2", 80, "http2", "", HTTP2, False),
    ("grpc", 80, "grpc-api", "", HTTP2, False),
    ("grpc-web", 80, "grpc-web", "", HTTP, False),
    ("grpc-web-suffix", 80, "grpc-web-x", "", HTTP, False),
    ("https-is-bytes", 443, "https", "", TCP, False),
    ("tls", 443, "tls-x", "", TCP, False),
    ("tcp", 9000, "tcp", "", TCP, False),
    ("mongo", 1, "mongo", "", TCP, False),
    ("redis", 1, "redis-main", "", TCP, False),
    ("mysql-by-name", 1, "mysql", "", TCP, True),
    ("case", 80, "HTTP-Web", "", HTTP, False),
    ("app-protocol-wins", 80, "http", "tcp", TCP, False),
    ("app-protocol-ws", 80, "", "kubernetes.io/ws", HTTP, False),
    ("app-protocol-wss", 80, "", "kubernetes.io/wss", TCP, False),
    ("app-protocol-unknown", 80, "http", "acme.example/x", AUTO, False),
    ("unknown-name", 8080, "web", "", AUTO, False),
    ("unnamed", 8080, "", "", AUTO, False),
    ("smtp", 25, "", "", TCP, True),
    ("dns", 53, "", "", TCP, False),
    ("mysql", 3306, "", "", TCP, True),
    ("mongo-port", 27017, "db", "", TCP, False),
    ("ssh-declared-tcp", 22, "tcp-ssh", "", TCP, True),
    ("http-on-25", 25, "http", "", HTTP, False),
]


@pytest.mark.parametrize(
    ("number", "name", "said", "wanted", "first"), [pytest.param(*row[1:], id=row[0]) for row in PROTOCOLS]
)
def test_protocol_selection(number: int, name: str, said: str, wanted: AppProtocol, first: bool) -> None:
    found = protocol_of(number, name, said)
    assert (found.protocol, found.server_first) == (wanted, first)


def test_a_slice() -> None:
    found = read_slice(kube_slice("web", ("10.0.0.1", "web-1"), ("10.0.0.2", "")))
    assert found is not None
    assert found.service == ("demo", "web")
    assert found.ports == {"http": 8080}
    assert found.endpoints == (
        EndpointRecord("10.0.0.1", True, "web-1"),
        EndpointRecord("10.0.0.2", True, ""),
    )


def test_readiness_that_is_not_said_counts_as_ready() -> None:
    item = kube_slice("web", ("10.0.0.1", ""))
    item["endpoints"][0]["conditions"] = {}
    item["endpoints"].append({"addresses": ["10.0.0.2"], "conditions": {"ready": False}})
    found = read_slice(item)
    assert found is not None
    assert [e.ready for e in found.endpoints] == [True, False]


@pytest.mark.parametrize("change", [{"addressType": "FQDN"}, {"metadata": {"name": "x", "namespace": "y"}}])
def test_slices_of_nobody(change: dict[str, Any]) -> None:
    assert read_slice({**kube_slice(), **change}) is None


def test_broken_endpoints_are_left_out() -> None:
    item = kube_slice("web", ("10.0.0.1", ""))
    item["endpoints"] += [{}, None, {"addresses": []}, {"addresses": ["name"]}, {"addresses": [1]}]
    item["ports"] += [{"name": "udp", "port": 53, "protocol": "UDP"}, {"name": "x"}, {"port": 0}]
    found = read_slice(item)
    assert found is not None
    assert len(found.endpoints) == len(found.ports) == 1


def test_a_policy_of_a_list_need_not_say_its_kind() -> None:
    item = kube_policy()
    del item["kind"], item["apiVersion"]
    assert read_policy(item, kind="PeerAuthentication", version="v1beta1").policy is not None


def test_a_policy_that_is_refused() -> None:
    found = read_policy(kube_policy(mtls={"mode": "LOUD"}), kind="PeerAuthentication", version="v1")
    assert found.policy is None
    assert "LOUD" in found.findings[0].message


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ('{"https://a/jwks": "{}"}', {"https://a/jwks": "{}"}),
        ("{}", {}),
        ("", None),
        ("[", None),
        ("[]", None),
        ('{"a": 1}', None),
        ("[" * 100_000, None),
        (json.dumps({"a": "x" * (1 << 20)}), None),
    ],
    ids=["good", "empty", "absent", "cut", "list", "number", "deep", "huge"],
)
def test_key_sets(text: str, wanted: object) -> None:
    item = {"metadata": {"name": "gatehouse-jwks"}, "data": {"keysets.json": text}}
    assert read_key_sets(item).key_sets == wanted


@pytest.mark.parametrize("item", [{}, {"data": None}, {"data": {}}, {"data": {"other": "x"}}])
def test_a_config_map_as_installed_has_no_key_sets_and_no_fault(item: dict[str, Any]) -> None:
    assert read_key_sets(item) == KeySetsRecord({}, published=False)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=9,
)
paths = st.sampled_from(
    [
        ("metadata",),
        ("metadata", "labels"),
        ("metadata", "namespace"),
        ("spec",),
        ("spec", "ports"),
        ("spec", "clusterIPs"),
        ("spec", "ipFamilies"),
        ("spec", "selector"),
        ("spec", "containers"),
        ("status",),
        ("status", "podIP"),
        ("endpoints",),
        ("ports",),
        ("data",),
    ]
)


@given(
    st.sampled_from([kube_pod(), kube_service(), kube_slice("web", ("10.0.0.1", "w"))]), paths, json_values
)
def test_readers_cope_with_anything(item: dict[str, Any], path: tuple[str, ...], value: object) -> None:
    broken = json.loads(json.dumps(item))
    owner = broken
    for step in path[:-1]:
        owner = owner.setdefault(step, {})
    owner[path[-1]] = value
    pod(broken)
    service(broken)
    read_slice(broken)
    read_key_sets(broken)
