"""The condition Accepted: what is written, when, how often, and what is left alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from injector.events import EventSink, Saying, Subject
from injector.metrics import UpkeepMetrics
from injector.policy_records import PolicyRecord, read_record
from injector.policy_status import BURST, RATE, PolicyStatus
from injector.policy_upkeep import PolicyUpkeep
from mesh.kube.api import KubeCode, KubeError
from mesh.policy.model import API_VERSIONS, KINDS
from tests.fakes.clock import EPOCH, FakeClock
from tests.fakes.kube_api import FakeKube
from tests.fakes.policy_reviews import GOOD_SPECS, when

AUTHZ = "AuthorizationPolicy"
BROKEN = when("request.headers")
NOW = "2030-01-01T00:00:00Z"
LATER = "2030-01-01T01:00:00Z"


class World:
    """A fake API server with policies, read anew for every step, as a watch that is never late."""

    def __init__(self, kube: FakeKube) -> None:
        self.kube = kube
        self.clock = FakeClock(EPOCH)
        self.seconds = 1000.0
        self.told: list[str] = []
        self.frozen: list[PolicyRecord] | None = None
        self.status = PolicyStatus(
            kube.api(),
            self.records,
            told=self.told.append,
            clock=self.clock,
            monotonic=lambda: self.seconds,
        )

    def records(self) -> list[PolicyRecord]:
        if self.frozen is not None:
            return self.frozen
        return [
            read_record(kind)({"apiVersion": API_VERSIONS[0], **item})
            for kind in KINDS
            for item in self.kube.all(kind)
        ]

    def put(
        self, name: str = "p", spec: Any = None, kind: str = AUTHZ, generation: int = 1, **more: Any
    ) -> None:
        meta = {"name": name, "namespace": "shop", "generation": generation}
        spec = GOOD_SPECS[kind] if spec is None else spec
        self.kube.add({"kind": kind, "metadata": meta, "spec": spec, **more})

    def conditions(self, name: str = "p", kind: str = AUTHZ) -> list[dict[str, Any]]:
        found = self.kube.find(kind, name, "shop")
        assert found is not None
        conditions: list[dict[str, Any]] = (found.get("status") or {}).get("conditions") or []
        return conditions

    def writes(self) -> int:
        return len(self.kube.asked("PATCH"))


@pytest.fixture
def world() -> Iterator[World]:
    with FakeKube() as kube:
        yield World(kube)


@pytest.mark.parametrize("kind", KINDS)
def test_a_good_policy_of_each_kind_is_accepted(world: World, kind: str) -> None:
    world.put(kind=kind, generation=3)
    assert world.status.step() == math.inf
    (found,) = world.conditions(kind=kind)
    assert found == {
        "type": "Accepted",
        "status": "True",
        "reason": "Accepted",
        "message": "in force on the workloads that it selects",
        "observedGeneration": 3,
        "lastTransitionTime": NOW,
    }
    assert world.told == ["ok"]


def test_a_refused_policy_says_why(world: World) -> None:
    world.put(spec=BROKEN)
    world.status.step()
    (found,) = world.conditions()
    assert (found["status"], found["reason"]) == ("False", "PolicyBadConditionKey")
    assert "spec.rules[0].when[0].key" in found["message"]
    assert "[policy_bad_condition_key]" in found["message"]


def test_nothing_is_written_when_nothing_changes(world: World) -> None:
    world.put("a")
    world.put("b", BROKEN)
    for _ in range(3):
        world.status.step()
    assert world.writes() == 2


def test_the_time_is_that_of_the_last_change_of_the_status(world: World) -> None:
    world.put(spec=BROKEN)
    world.status.step()
    world.clock.advance(3600)
    item = world.kube.find(AUTHZ, "p", "shop")
    assert item is not None
    world.put(spec=when("worse"), generation=2, status=item["status"])
    world.status.step()
    (found,) = world.conditions()
    assert (found["observedGeneration"], found["lastTransitionTime"]) == (2, NOW)
    world.put(generation=3, status={"conditions": [found]})
    world.status.step()
    (found,) = world.conditions()
    assert (found["status"], found["observedGeneration"], found["lastTransitionTime"]) == ("True", 3, LATER)


def test_what_somebody_changes_is_changed_back(world: World) -> None:
    world.put(spec=BROKEN)
    world.status.step()
    (found,) = world.conditions()
    world.put(spec=BROKEN, status={"conditions": [{**found, "status": "True"}]})
    world.status.step()
    assert world.conditions()[0]["status"] == "False"


def test_conditions_of_others_stay(world: World) -> None:
    theirs = {"type": "Reconciled", "status": "True", "observedGeneration": "7"}
    world.put(status={"conditions": [theirs], "validationMessages": []})
    world.status.step()
    assert [found["type"] for found in world.conditions()] == ["Reconciled", "Accepted"]
    assert world.conditions()[0] == theirs
    item = world.kube.find(AUTHZ, "p", "shop")
    assert item is not None
    assert item["status"]["validationMessages"] == []


@pytest.mark.parametrize(
    "status",
    [
        None,
        "x",
        {"conditions": {}},
        {"conditions": [None, 1, {"type": "Accepted"}]},
        {"conditions": [{"type": "Accepted", "observedGeneration": "x", "status": []}]},
    ],
)
def test_whatever_is_in_the_status_it_is_made_right(world: World, status: Any) -> None:
    world.put(status=status)
    world.status.step()
    world.status.step()
    assert [found["status"] for found in world.conditions()] == ["True"]
    assert world.writes() == 1


def test_only_the_status_is_touched(world: World) -> None:
    world.put(spec=BROKEN)
    before = world.kube.find(AUTHZ, "p", "shop")
    world.status.step()
    after = world.kube.find(AUTHZ, "p", "shop")
    assert before is not None
    assert after is not None
    assert after["spec"] == before["spec"]
    assert after["metadata"]["generation"] == before["metadata"]["generation"]
    (request,) = world.kube.asked("PATCH")
    assert request.path == "/apis/security.istio.io/v1/namespaces/shop/authorizationpolicies/p/status"
    assert request.query["fieldManager"] == "gatehouse-upkeep"


def test_an_object_that_changed_meanwhile_is_judged_anew(world: World) -> None:
    world.put(spec=BROKEN)
    world.frozen = world.records()
    world.put(generation=2)
    for _ in range(3):
        world.status.step()
    assert world.told == [KubeCode.CONFLICT]
    assert world.conditions() == []
    world.frozen = None
    world.status.step()
    assert world.conditions()[0]["status"] == "True"


def test_a_watch_that_is_late_causes_no_second_write(world: World) -> None:
    world.put()
    world.frozen = world.records()
    for _ in range(3):
        world.status.step()
    assert world.told == ["ok"]


@pytest.mark.parametrize(("status", "code"), [(404, KubeCode.NOT_FOUND), (422, KubeCode.INVALID)])
def test_a_form_that_cannot_be_written_is_tried_once_and_holds_nobody_up(
    world: World, status: int, code: KubeCode
) -> None:
    """Gone meanwhile, or stored before its schema became stricter."""
    world.put("a")
    world.put("b")
    world.kube.fail(status, times=100, method="PATCH", path=".*/a/status")
    for _ in range(3):
        world.status.step()
    assert world.told == [code, "ok"]
    assert world.conditions("b")[0]["status"] == "True"


def test_one_object_that_fails_does_not_hold_up_the_others_and_is_tried_again(world: World) -> None:
    world.put("a")
    world.put("b")
    world.kube.fail(500, times=1, method="PATCH", path=".*/a/status")
    with pytest.raises(KubeError) as caught:
        world.status.step()
    assert caught.value.code is KubeCode.SERVER
    assert world.conditions("b")[0]["status"] == "True"
    world.status.step()
    assert world.conditions("a")[0]["status"] == "True"


def test_an_api_server_that_does_not_want_to_is_not_asked_for_every_object(world: World) -> None:
    for number in range(20):
        world.put(f"p{number}")
    world.kube.fail(403, times=1000, method="PATCH", reason="Forbidden")
    with pytest.raises(KubeError) as caught:
        world.status.step()
    assert caught.value.code is KubeCode.FORBIDDEN
    assert world.writes() == 3


def test_the_first_run_in_a_large_cluster_is_no_storm(world: World) -> None:
    for number in range(int(BURST) + 15):
        world.put(f"p{number:03}")
    rest = world.status.step()
    assert world.writes() == BURST
    assert 0 < rest <= 1 / RATE
    world.seconds += 1
    assert 0 < world.status.step() <= 1 / RATE
    assert world.writes() == BURST + RATE
    world.seconds += 1
    assert world.status.step() == math.inf
    assert world.writes() == BURST + 15


def test_a_process_that_no_longer_leads_writes_nothing(world: World) -> None:
    world.put()
    assert world.status.step(lambda: False) == math.inf
    assert world.writes() == 0


# --- both ways of telling ---


class Sink(EventSink):
    def __init__(self) -> None:
        super().__init__(None)
        self.said: list[tuple[Subject, Saying]] = []

    def say(self, about: Subject, said: Saying) -> None:
        self.said.append((about, said))


@pytest.mark.parametrize("spec", [None, BROKEN, {"rules": [{"to": [{"operation": {"methods": ["get"]}}]}]}])
def test_event_and_condition_agree(world: World, spec: Any) -> None:
    world.put(spec=spec)
    (record,) = world.records()
    remark, wanted = record.remark, record.wanted
    assert (remark is None) == (wanted.reason == "Accepted")
    if remark is not None:
        assert (remark.said.word == "PolicyRefused") == (wanted.status == "False")
        assert f"[{remark.said.code}]" in wanted.message


def run(kube: FakeKube, *, events: bool, status: bool) -> tuple[list[Any], UpkeepMetrics]:
    """One step with everything known."""
    sink = Sink()
    metrics = UpkeepMetrics(CollectorRegistry())
    upkeep = PolicyUpkeep(kube.api(), events=sink if events else None, status=status, metrics=metrics)
    upkeep.start()
    try:
        assert upkeep.wait_synced(30)
        upkeep.step(lambda: True)
        assert upkeep.rest == math.inf
    finally:
        upkeep.stop()
    return sink.said, metrics


@pytest.mark.parametrize(("events", "status"), [(True, True), (True, False), (False, True)])
def test_each_way_can_be_turned_off(world: World, events: bool, status: bool) -> None:
    world.put("good", kind="PeerAuthentication")
    world.put("bad", BROKEN)
    said, metrics = run(world.kube, events=events, status=status)
    assert len(said) == (1 if events else 0)
    assert len(world.conditions("bad")) == (1 if status else 0)
    assert len(world.conditions("good", "PeerAuthentication")) == (1 if status else 0)
    sample = metrics.registry.get_sample_value
    assert sample("gatehouse_injector_refused_policies") == 1
    assert sample("gatehouse_injector_policy_conditions_total", {"result": "ok"}) == (2 if status else None)
