"""The roots in every namespace: made, repaired, left alone; by the leader only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from ca.distribute import (
    NAMESPACES,
    Distributor,
    Owner,
    Published,
    config_maps,
    read_namespace,
    read_published,
)
from mesh.kube.api import KubeError
from mesh.kube.reflector import Reflector
from mesh.kube.store import Store
from tests.fakes.ca_cluster import until
from tests.fakes.kube_api import FakeKube

NAME = "istio-ca-root-cert"
SYSTEM = {"default", "kube-system"}


@pytest.fixture
def kube() -> Iterator[FakeKube]:
    with FakeKube() as server:
        yield server


class Lab:
    """A distributor with real watches; `step` first waits until they have seen everything."""

    def __init__(self, kube: FakeKube, **options: Any) -> None:
        self.kube = kube
        self.seconds = 0.0
        self.leads = True
        self.bundle = ["ROOT1\n"]
        self.counted: list[str] = []
        self.namespaces: Store[bool] = Store()
        self.published: Store[Published] = Store()
        self.api = kube.api()
        self.reflectors: list[Reflector[Any]] = [
            Reflector(self.api, NAMESPACES, read_namespace, self.namespaces, monotonic=lambda: 0.0),
            Reflector(self.api, config_maps(NAME), read_published, self.published, monotonic=lambda: 0.0),
        ]
        self.distributor = Distributor(
            self.api,
            NAME,
            bundle=lambda: self.bundle,
            leading=lambda: self.leads,
            namespaces=self.namespaces,
            published=self.published,
            monotonic=lambda: self.seconds,
            count=self.counted.append,
            **options,
        )

    def watch(self) -> None:
        for reflector in self.reflectors:
            reflector.start()
        self.kube.wait_watchers(2)

    def close(self) -> None:
        self.distributor.stop()
        for reflector in self.reflectors:
            reflector.stop()

    def have(self) -> dict[str, str]:
        return {
            m["metadata"]["namespace"]: (m.get("data") or {}).get("root-cert.pem", "")
            for m in self.kube.all("ConfigMap")
            if m["metadata"]["name"] == NAME
        }

    def seen(self) -> None:
        until(lambda: not self.distributor.missing(), "seen")


@pytest.fixture
def lab(kube: FakeKube) -> Iterator[Lab]:
    made = Lab(kube)
    yield made
    made.close()


def _namespace(kube: FakeKube, name: str, phase: str = "Active") -> None:
    kube.add({"kind": "Namespace", "metadata": {"name": name}, "status": {"phase": phase}})


def test_written_where_it_belongs(kube: FakeKube, lab: Lab) -> None:
    """kube-system is served; kube-public, kube-node-lease, local-path-storage and ending ones are not."""
    for name in ("shop", "local-path-storage"):
        _namespace(kube, name)
    _namespace(kube, "ending", "Terminating")
    kube.add(
        {"kind": "Namespace", "metadata": {"name": "going", "deletionTimestamp": "2026-06-01T00:00:00Z"}}
    )
    lab.watch()
    lab.distributor.step()
    assert lab.have() == dict.fromkeys({*SYSTEM, "shop"}, "ROOT1\n")
    made = kube.find("ConfigMap", NAME, "shop") or {}
    assert made["metadata"]["labels"] == {"istio.io/config": "true"}
    assert lab.counted == ["created"] * 3
    lab.seen()
    lab.seconds += 60
    lab.distributor.step()
    assert len(kube.asked("POST")) == 3
    assert (lab.distributor.wanted, lab.distributor.problem) == (3, "")


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param({"data": {"root-cert.pem": "EVIL"}}, id="edited"),
        pytest.param({"data": {}}, id="emptied"),
        pytest.param({"data": None}, id="no-data"),
        pytest.param({"data": {"root-cert.pem": 7}}, id="not-text"),
        pytest.param({"data": {"root-cert.pem": "ROOT1\n"}, "labels": None}, id="label-gone"),
    ],
)
def test_repaired_when_edited(kube: FakeKube, lab: Lab, damage: dict[str, Any]) -> None:
    lab.watch()
    lab.distributor.step()
    lab.seen()
    meta = {"name": NAME, "namespace": "default", "labels": damage.pop("labels", {"istio.io/config": "true"})}
    kube.add({"kind": "ConfigMap", "metadata": meta, **damage})
    until(lambda: lab.distributor.missing() == ["default"], "noticed")
    lab.distributor.step()
    assert lab.have()["default"] != "ROOT1\n" or damage["data"] == {"root-cert.pem": "ROOT1\n"}
    lab.seconds += 5
    lab.distributor.step()
    lab.seen()
    assert lab.have()["default"] == "ROOT1\n"
    assert lab.counted[-1] == "repaired"


def test_repaired_when_deleted(kube: FakeKube, lab: Lab) -> None:
    lab.watch()
    lab.distributor.step()
    lab.seen()
    kube.remove("ConfigMap", NAME, "default")
    until(lambda: lab.distributor.missing() == ["default"], "noticed")
    lab.seconds += 5
    lab.distributor.step()
    assert lab.have()["default"] == "ROOT1\n"


def test_other_keys_of_the_object_stay(kube: FakeKube, lab: Lab) -> None:
    kube.add(
        {"kind": "ConfigMap", "metadata": {"name": NAME, "namespace": "default"}, "data": {"note": "mine"}}
    )
    lab.watch()
    lab.distributor.step()
    found = kube.find("ConfigMap", NAME, "default") or {}
    assert found["data"] == {"note": "mine", "root-cert.pem": "ROOT1\n"}


def test_union_of_roots(kube: FakeKube, lab: Lab) -> None:
    lab.watch()
    lab.distributor.step()
    lab.seen()
    lab.bundle = ["ROOT1\n", "ROOT2\n"]
    lab.seconds += 5
    lab.distributor.step()
    assert set(lab.have().values()) == {"ROOT1\nROOT2\n"}


def test_only_the_leader_writes(kube: FakeKube, lab: Lab) -> None:
    lab.leads = False
    lab.watch()
    lab.distributor.step()
    assert lab.have() == {}
    lab.leads = True
    lab.distributor.step()
    assert set(lab.have()) == SYSTEM


def test_leader_that_loses_stops_in_the_middle(kube: FakeKube) -> None:
    lab = Lab(kube)
    lab.watch()
    lab.distributor._count = lambda _r: setattr(lab, "leads", False)
    lab.distributor.step()
    assert len(lab.have()) == 1
    lab.close()


def test_nothing_is_written_before_everything_was_seen(kube: FakeKube) -> None:
    lab = Lab(kube)
    lab.namespaces.replace({("", "default"): True})
    lab.distributor.step()
    assert lab.have() == {}


def test_lost_race_of_creation_is_a_repair(kube: FakeKube) -> None:
    lab = Lab(kube)
    lab.namespaces.replace({("", "default"): True})
    lab.published.replace({})
    kube.add({"kind": "ConfigMap", "metadata": {"name": NAME, "namespace": "default"}, "data": {}})
    lab.distributor.step()
    assert (lab.have(), lab.counted) == ({"default": "ROOT1\n"}, ["repaired"])


@pytest.mark.parametrize(
    "gone",
    [
        pytest.param(lambda k: _namespace(k, "default", "Terminating"), id="ending"),
        pytest.param(lambda k: k.remove("Namespace", "default"), id="gone"),
    ],
)
def test_namespace_that_goes_away_is_no_failure(kube: FakeKube, gone: Any) -> None:
    lab = Lab(kube)
    lab.namespaces.replace({("", "default"): True})
    lab.published.replace({})
    gone(kube)
    lab.distributor.step()
    assert (lab.counted, lab.distributor.problem) == ([], "")


def test_failures_are_counted_and_tried_again(kube: FakeKube, lab: Lab) -> None:
    lab.watch()
    kube.fail(403, method="POST", times=2)
    lab.distributor.step()
    assert lab.counted == ["failed", "failed"]
    assert "HTTP 403" in lab.distributor.problem
    lab.seconds += 5
    lab.distributor.step()
    assert set(lab.have()) == SYSTEM
    assert lab.distributor.problem == ""


def test_api_server_away_ends_a_pass(kube: FakeKube, lab: Lab) -> None:
    lab.watch()
    kube.fail(429, method="POST", times=5)
    lab.distributor.step()
    assert lab.counted == ["failed"]


def test_creation_that_fails_otherwise(kube: FakeKube, lab: Lab) -> None:
    lab.watch()
    kube.fail(422, method="POST")
    lab.distributor.step()
    assert sorted(lab.counted) == ["created", "failed"]


def test_owner(kube: FakeKube) -> None:
    owner = Owner(api_version="rbac.authorization.k8s.io/v1", kind="ClusterRole", name="x", uid="u")
    lab = Lab(kube, owner=lambda: owner)
    lab.watch()
    lab.distributor.step()
    made = kube.find("ConfigMap", NAME, "default") or {}
    assert made["metadata"]["ownerReferences"] == [
        {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "name": "x", "uid": "u"}
    ]
    lab.close()


def test_owner_that_cannot_be_asked(kube: FakeKube) -> None:
    def fail() -> Owner | None:
        raise KubeError.of_status(500, "GET owner", {})

    lab = Lab(kube, owner=fail)
    lab.watch()
    lab.distributor.step()
    assert lab.counted == ["failed", "failed"]
    lab.close()


def test_runs_by_itself(kube: FakeKube, lab: Lab) -> None:
    lab.watch()
    thread = lab.distributor.start()
    until(lambda: set(lab.have()) == SYSTEM, "written")
    _namespace(kube, "new")
    until(lambda: "new" in lab.have(), "new namespace")
    lab.distributor.poke()
    lab.distributor.stop()
    thread.join(30)
    assert not thread.is_alive()


def test_fault_of_ours_ends_no_thread(kube: FakeKube, lab: Lab) -> None:
    lab.bundle = None
    lab.watch()
    thread = lab.distributor.start()
    lab.bundle = ["ROOT1\n"]
    lab.distributor.poke()
    until(lambda: set(lab.have()) == SYSTEM, "written")
    lab.distributor.stop()
    thread.join(30)
