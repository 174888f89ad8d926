"""Records of a cluster become a world: workloads, services, endpoints, policies, key sets."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from mesh.meshconfig import MeshConfig
from mesh.policy.effective import Severity
from mesh.policy.jwks import encode_public_key
from mesh.spiffe import TrustDomain
from mesh.topology import AppProtocol, Interception, SocketAddress
from nodeagent.core.kube_objects import (
    Interner,
    KeySetsRecord,
    read_pod,
    read_policy,
    read_service,
    read_slice,
)
from nodeagent.core.kube_world import KubeCode, KubeWorld, Snapshot
from nodeagent.core.services import Scope, build_services, check_references, check_scope, scope
from nodeagent.core.volume import Volume
from tests.fakes.ca_factory import new_key
from tests.fakes.kube_objects import kube_pod, kube_policy, kube_service, kube_slice

MESH = MeshConfig(trust_domain=TrustDomain("cluster.local"))
KEYS = encode_public_key(new_key().public_key(), kid="one")
WEB = Volume(
    volume_id="csi-web",
    target="/pods/uid-web/volumes/kubernetes.io~csi/gatehouse/mount",
    name="gatehouse",
    pod_uid="uid-web",
    namespace="demo",
    pod="web",
    service_account="web",
)


def snapshot(*items: dict[str, Any], volumes: tuple[Volume, ...] = (WEB,), **more: Any) -> Snapshot:
    interner = Interner()
    found: dict[str, dict[Any, Any]] = {"Pod": {}, "Service": {}, "EndpointSlice": {}}
    policies = {}
    for item in items:
        key = (item["metadata"]["namespace"], item["metadata"]["name"])
        kind = item["kind"]
        if kind == "Pod":
            found[kind][key] = read_pod(item, node="node1", interner=interner)
        elif kind == "Service":
            found[kind][key] = read_service(item, interner=interner)
        elif kind == "EndpointSlice":
            found[kind][key] = read_slice(item)
        else:
            policies[(kind, *key)] = read_policy(item, kind=kind, version="v1")
    return Snapshot(
        volumes=volumes,
        pods=found["Pod"],
        services=found["Service"],
        slices=found["EndpointSlice"],
        policies=policies,
        **more,
    )


def world() -> KubeWorld:
    return KubeWorld(MESH)


def workload(*items: dict[str, Any], **more: Any):
    (spec,) = world().update(snapshot(*items, **more)).world.workloads
    return spec.workload


def endpoints(*items: dict[str, Any]):
    (service,) = world().update(snapshot(*items)).world.known_services
    return service.ports[0].endpoints


# --- workloads ------------------------------------------------------------------------------------


def test_a_published_pod_is_a_captured_workload() -> None:
    found = workload(kube_pod(), kube_service())
    assert (found.uid, found.namespace, found.name, found.service_account) == (
        "uid-web",
        "demo",
        "web",
        "web",
    )
    assert (found.address, found.interception, found.draining) == ("10.0.0.1", Interception.REDIRECT, False)
    (port,) = found.ports
    assert (port.number, port.protocol, port.app) == (8080, AppProtocol.HTTP, SocketAddress("10.0.0.1", 8080))


def test_identity_needs_nothing_but_the_volume() -> None:
    found = workload()
    assert (found.uid, found.service_account, found.address, found.ports) == ("uid-web", "web", "", ())


def test_identity_is_the_volumes_even_when_the_pod_says_otherwise() -> None:
    assert workload(kube_pod(account="admin")).service_account == "web"


@pytest.mark.parametrize(
    "pod",
    [
        pytest.param(kube_pod(ip=""), id="no-address-yet"),
        pytest.param(kube_pod(uid="another"), id="another-pod-of-that-name"),
        pytest.param(kube_pod(mesh=False), id="no-proxy"),
        pytest.param(kube_pod(phase="Failed"), id="finished"),
        pytest.param({**kube_pod(), "spec": {**kube_pod()["spec"], "hostNetwork": True}}, id="host-network"),
    ],
)
def test_pods_that_get_no_configuration(pod: dict[str, Any]) -> None:
    assert workload(pod).address == ""


def test_before_the_first_lists_there_is_identity_only() -> None:
    state = world().update(snapshot(kube_pod(), kube_service(), complete=False))
    assert [spec.workload.address for spec in state.world.workloads] == [""]
    assert state.world.known_services == ()


def test_the_deletion_timestamp_starts_the_soft_drain() -> None:
    pod = kube_pod()
    pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    found = workload(pod)
    assert (found.draining, found.address) == (True, "10.0.0.1")


def test_ports_of_containers_and_of_services() -> None:
    pod = kube_pod(ports=((8080, "web"), (9000, "grpc-api"), (7000, "")))
    services = [
        kube_service("by-name", selector={"app": "web"}, ports=(("http-x", 80, "web"), ("y", 81, "missing"))),
        kube_service("undeclared", selector={"app": "web"}, ports=(("tcp", 5000, 5001),)),
        kube_service("other", selector={"app": "other"}, ports=(("tcp", 80, 8080),)),
        kube_service("by-hand", selector={}, ports=(("tcp", 80, 8080),)),
        kube_service("elsewhere", namespace="x", selector={"app": "web"}, ports=(("tcp", 80, 8080),)),
    ]
    found = workload(pod, *services)
    assert [(p.number, p.protocol, p.name) for p in found.ports] == [
        (5001, AppProtocol.TCP, "tcp"),
        (7000, AppProtocol.AUTO, ""),
        (8080, AppProtocol.HTTP, "http-x"),
        (9000, AppProtocol.HTTP2, "grpc-api"),
    ]


def test_server_first_ports() -> None:
    found = workload(kube_pod(ports=((3306, "mysql"), (25, ""))))
    assert [(p.number, p.server_first) for p in found.ports] == [(25, True), (3306, True)]


def test_services_that_disagree_about_a_port() -> None:
    young = kube_service(
        "a", selector={"app": "web"}, ports=(("tcp", 80, 8080),), created="2026-02-02T00:00:00Z"
    )
    old = kube_service("b", selector={"app": "web"}, ports=(("http", 80, 8080),))
    state = world().update(snapshot(kube_pod(), young, old))
    assert state.world.workloads[0].workload.ports[0].protocol is AppProtocol.HTTP
    (finding,) = state.world.findings
    assert (finding.code, finding.severity) == (KubeCode.PORT_CONFLICT, Severity.WARNING)
    assert str(finding.ref).endswith("demo/a")
    assert "older Service demo/b says HTTP" in finding.message


# --- services -------------------------------------------------------------------------------------


def test_a_service_with_its_endpoints() -> None:
    state = world().update(
        snapshot(
            kube_pod(), kube_service(), kube_slice("web", ("10.0.0.1", "web")), kube_pod("x", mesh=False)
        )
    )
    (service,) = state.world.known_services
    assert (service.host, service.addresses, service.headless) == (
        "web.demo.svc.cluster.local",
        ("10.96.0.10",),
        False,
    )
    (endpoint,) = service.ports[0].endpoints
    assert (endpoint.address, endpoint.service_account) == (SocketAddress("10.0.0.1", 8080), "web")
    assert (endpoint.in_mesh, endpoint.healthy) == (True, True)
    assert endpoint.labels["app"] == "web"
    assert build_services(state.world) == state.world.known_services
    assert check_references(state.world, state.world.known_services) == ()


def test_an_endpoint_without_a_proxy_is_not_in_the_mesh() -> None:
    (found,) = endpoints(kube_pod(mesh=False), kube_service(), kube_slice("web", ("10.0.0.1", "web")))
    assert (found.in_mesh, found.service_account) == (False, "web")


def test_an_endpoint_whose_pod_is_not_known_yet_is_left_out() -> None:
    assert endpoints(kube_service(), kube_slice("web", ("10.0.0.1", "web"))) == ()


def test_an_endpoint_kept_by_hand() -> None:
    service, item = kube_service(selector={}), kube_slice("web", ("192.0.2.1", ""), ("10.0.0.1", ""))
    outside, inside = sorted(endpoints(kube_pod(), service, item), key=lambda e: e.in_mesh)
    assert (outside.in_mesh, outside.service_account, outside.namespace) == (False, "", "demo")
    assert (inside.address.host, inside.service_account) == ("10.0.0.1", "web")


def test_not_ready_endpoints_stay_known() -> None:
    (found,) = endpoints(kube_pod(), kube_service(), kube_slice("web", ("10.0.0.1", "web"), ready=False))
    assert found.healthy is False


def test_endpoints_are_in_order_and_once() -> None:
    items = [kube_pod(f"p{n}", ip=f"10.0.0.{n}") for n in (1, 2, 3)]
    slices = [
        kube_slice("web", ("10.0.0.3", "p3"), ("10.0.0.1", "p1"), name="b"),
        kube_slice("web", ("10.0.0.2", "p2"), ("10.0.0.1", "p1"), name="a"),
    ]
    found = endpoints(*items, kube_service(), *slices)
    assert [e.address.host for e in found] == ["10.0.0.1", "10.0.0.2", "10.0.0.3"]


def test_one_address_family_counts() -> None:
    four = kube_slice("web", ("10.0.0.1", "web"))
    six = kube_slice("web", ("fd00::1", "web"), family="IPv6")
    assert [e.address.host for e in endpoints(kube_pod(), kube_service(), four, six)] == ["10.0.0.1"]
    first_six = kube_service(address="fd00::10")
    assert [e.address.host for e in endpoints(kube_pod(), first_six, four, six)] == ["fd00::1"]
    assert [e.address.host for e in endpoints(kube_pod(), kube_service(), six)] == ["fd00::1"]


def test_ports_are_joined_by_name() -> None:
    service = kube_service(ports=(("http", 80, 8080), ("admin", 81, 8081)))
    state = world().update(snapshot(kube_pod(), service, kube_slice("web", ("10.0.0.1", "web"))))
    first, second = state.world.known_services[0].ports
    assert [len(first.endpoints), len(second.endpoints)] == [1, 0]


def test_a_headless_service() -> None:
    (service,) = world().update(snapshot(kube_service(address="None"))).world.known_services
    assert (service.headless, service.addresses) == (True, ())


def test_what_did_not_change_is_the_same_object() -> None:
    one, other = kube_service("web"), kube_service("api", address="10.96.0.11")
    base = snapshot(kube_pod(), one, other, kube_slice("web", ("10.0.0.1", "web")))
    builder = world()
    before = builder.update(base).world
    again = builder.update(base).world
    assert again.known_services[0] is before.known_services[0]
    assert again.workloads[0] is before.workloads[0]
    pod = base.pods["demo", "web"]
    changed = replace(base, pods={("demo", "web"): replace(pod, ip="10.0.0.9")})
    after = builder.update(changed).world
    api, web = after.known_services
    assert api is before.known_services[0]
    assert web is not before.known_services[1]
    assert after.workloads[0].workload.address == "10.0.0.9"


# --- scope ----------------------------------------------------------------------------------------


def test_scope_of_a_captured_workload() -> None:
    items = [kube_service(name, namespace=ns) for ns, name in (("a", "x"), ("demo", "y"), ("z", "w"))]
    state = world().update(snapshot(kube_pod(), *items))
    services, (spec,) = state.world.known_services, state.world.workloads

    def hosts(options: Scope) -> list[str]:
        return [service.host.split(".")[0] for service in scope(spec.workload, services, options)]

    assert hosts(Scope()) == ["y", "x", "w"]
    assert hosts(Scope(other_namespaces=False)) == ["y"]
    assert hosts(Scope(limit=2)) == ["y", "x"]
    (finding,) = check_scope(state.world, services, Scope(limit=2))
    assert "1 of 3 services" in finding.message
    assert check_scope(state.world, services, Scope(other_namespaces=False, limit=1)) == ()


# --- policies -------------------------------------------------------------------------------------


def test_policies_in_a_stable_order() -> None:
    state = world().update(snapshot(kube_policy(name="b"), kube_policy(name="a")))
    assert [policy.meta.ref.name for policy in state.world.policies] == ["a", "b"]


def test_a_broken_edit_leaves_the_last_good_form_in_force() -> None:
    builder = world()
    (good,) = builder.update(snapshot(kube_policy())).world.policies
    state = builder.update(snapshot(kube_policy(mtls={"mode": "LOUD"})))
    assert state.world.policies == (good,)
    assert "LOUD" in state.world.findings[0].message
    assert "stays in force" in state.world.findings[0].message
    assert builder.update(snapshot()).world.policies == ()
    fresh = builder.update(snapshot(kube_policy(mtls={"mode": "LOUD"}))).world
    assert fresh.policies == ()
    assert "stays in force" not in fresh.findings[0].message


# --- key sets -------------------------------------------------------------------------------------


def test_key_sets() -> None:
    builder = world()
    record = KeySetsRecord({"https://a/jwks": KEYS, "https://b/jwks": "{}"})
    state = builder.update(snapshot(key_sets=record))
    assert set(state.key_sets) == {"https://a/jwks"}
    assert json.loads(state.key_sets["https://a/jwks"])["keys"][0]["kid"] == "one"
    (finding,) = state.world.findings
    assert finding.code is KubeCode.KEY_SETS
    assert "https://b/jwks" in finding.message
    assert "tokens of this issuer are refused" in finding.message
    assert builder.update(snapshot(key_sets=record)).world.findings == (finding,)


def test_a_config_map_that_holds_nothing_is_no_fault() -> None:
    """As installed: nothing to say. Emptied (a replace by Helm): good sets stay until it is filled again."""
    builder = world()
    state = builder.update(snapshot(key_sets=KeySetsRecord({}, published=False)))
    assert (state.key_sets, state.world.findings) == ({}, ())
    good = builder.update(snapshot(key_sets=KeySetsRecord({"https://a/jwks": KEYS}))).key_sets
    emptied = builder.update(snapshot(key_sets=KeySetsRecord({}, published=False)))
    assert (emptied.key_sets, emptied.world.findings) == (good, ())
    assert builder.update(snapshot(key_sets=KeySetsRecord({}))).key_sets == {}


def test_key_sets_that_break_stay() -> None:
    builder = world()
    good = builder.update(snapshot(key_sets=KeySetsRecord({"https://a/jwks": KEYS}))).key_sets
    broken = builder.update(snapshot(key_sets=KeySetsRecord({"https://a/jwks": "no"})))
    assert broken.key_sets == good
    assert "stays in force" in broken.world.findings[0].message
    unreadable = builder.update(snapshot(key_sets=KeySetsRecord(None)))
    assert unreadable.key_sets == good
    assert "is not a map" in unreadable.world.findings[0].message
    assert builder.update(snapshot(key_sets=None)).key_sets == {}
