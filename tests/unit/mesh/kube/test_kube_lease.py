"""Leader election: never two leaders at once, whatever clocks, conflicts and outages do."""

from __future__ import annotations

import datetime as dt
import random
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from mesh.kube.api import KubeCode, KubeError
from mesh.kube.lease import Elector, LeaseConfig
from tests.fakes.clock import EPOCH
from tests.fakes.kube_api import FakeKube


@pytest.fixture
def kube() -> Iterator[FakeKube]:
    with FakeKube() as server:
        yield server


class Time:
    """One true time, and candidates whose wall clocks differ."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


class Wall:
    """A wall clock of one candidate, ahead of the true time by `skew` seconds."""

    def __init__(self, time: Time, skew: float = 0) -> None:
        self.time, self.skew = time, skew

    def now(self) -> dt.datetime:
        return EPOCH + dt.timedelta(seconds=self.time() - 1000 + self.skew)


def _elector(
    kube: FakeKube, time: Time, name: str, *, skew: float = 0, told: list[bool] | None = None
) -> Elector:
    config = LeaseConfig(namespace="default", name="lead", holder=name)
    changed = told.append if told is not None else None
    return Elector(kube.api(name), config, clock=Wall(time, skew), monotonic=time, changed=changed)


def _lease(kube: FakeKube) -> dict[str, Any]:
    found = kube.find("Lease", "lead", "default")
    assert found is not None
    return dict(found["spec"])


def test_first_one_leads_and_renews(kube: FakeKube) -> None:
    time, told = Time(), list[bool]()
    one, two = _elector(kube, time, "one", told=told), _elector(kube, time, "two")
    assert (one.step(), two.step()) == (True, False)
    for _ in range(20):
        time.seconds += 2
        assert (one.step(), two.step()) == (True, False)
    assert (one.holder, two.holder, told) == ("one", "one", [True])
    spec = _lease(kube)
    assert (spec["holderIdentity"], spec["leaseDurationSeconds"], spec["leaseTransitions"]) == ("one", 15, 0)
    assert spec["renewTime"] == "2030-01-01T00:00:40.000000Z"


def test_takes_over_when_the_leader_is_gone(kube: FakeKube) -> None:
    time, told = Time(), list[bool]()
    one, two = _elector(kube, time, "one", told=told), _elector(kube, time, "two")
    assert one.step()
    assert not two.step()
    time.seconds += 9.9
    assert one.leading
    time.seconds += 0.2
    assert not one.leading  # by its own clock, before anybody else may lead
    time.seconds += 4
    assert not two.step()
    time.seconds += 1
    assert two.step()
    assert _lease(kube)["leaseTransitions"] == 1
    assert not one.step()  # a conflict
    assert not one.step()  # read anew
    assert (told, one.holder) == ([True, False], "two")


@pytest.mark.parametrize("skew", [-86400, -20, 20, 86400])
def test_clocks_that_differ_do_not_matter(kube: FakeKube, skew: float) -> None:
    time = Time()
    one, two = _elector(kube, time, "one"), _elector(kube, time, "two", skew=skew)
    assert one.step()
    for _ in range(10):
        time.seconds += 2
        assert not two.step()
        assert one.step()
    assert not two.step()  # sees the newest change now
    time.seconds += 14
    assert not two.step()
    time.seconds += 2
    assert two.step()


def test_release_lets_the_next_one_in_at_once(kube: FakeKube) -> None:
    time, told = Time(), list[bool]()
    one, two = _elector(kube, time, "one", told=told), _elector(kube, time, "two")
    one.step()
    one.release()
    assert (one.leading, told, _lease(kube)["holderIdentity"]) == (False, [True, False], "")
    assert two.step()
    one.release()  # nothing is held: nothing is written
    assert _lease(kube)["holderIdentity"] == "two"


def test_release_that_fails_is_no_fault(kube: FakeKube) -> None:
    time = Time()
    one = _elector(kube, time, "one")
    one.step()
    kube.fail(500, method="PUT")
    one.release()
    assert not one.leading


def test_own_lease_is_taken_up_after_a_restart(kube: FakeKube) -> None:
    time = Time()
    assert _elector(kube, time, "one").step()
    assert _elector(kube, time, "one").step()
    assert _lease(kube)["leaseTransitions"] == 0


def test_api_server_away_for_a_while(kube: FakeKube) -> None:
    time, told = Time(), list[bool]()
    one = _elector(kube, time, "one", told=told)
    one.step()
    kube.fail(500, times=2)
    time.seconds += 4
    assert one.step()  # renewed 4 s ago: still leading
    time.seconds += 7
    assert not one.step()
    time.seconds += 2
    assert one.step()
    assert told == [True, False, True]


def test_somebody_edits_the_lease(kube: FakeKube) -> None:
    """A conflict means that it is read again; another holder in it wins."""
    time, told = Time(), list[bool]()
    one = _elector(kube, time, "one", told=told)
    one.step()
    kube.add(
        {
            "kind": "Lease",
            "metadata": {"name": "lead"},
            "spec": {"holderIdentity": "other", "leaseDurationSeconds": 15},
        }
    )
    time.seconds += 2
    one.step()
    time.seconds += 2
    assert not one.step()
    assert (told, one.holder) == ([True, False], "other")


def test_lease_deleted_under_the_leader(kube: FakeKube) -> None:
    time = Time()
    one = _elector(kube, time, "one")
    one.step()
    kube.remove("Lease", "lead", "default")
    for _ in range(3):
        time.seconds += 2
        one.step()
    assert one.leading
    assert _lease(kube)["holderIdentity"] == "one"


@pytest.mark.parametrize(
    "spec", [None, {}, {"holderIdentity": None}, {"leaseDurationSeconds": "x"}], ids=repr
)
def test_lease_without_a_holder_is_free(kube: FakeKube, spec: Any) -> None:
    kube.add({"kind": "Lease", "metadata": {"name": "lead"}, "spec": spec})
    assert _elector(kube, Time(), "one").step()


def test_lease_of_another_with_a_strange_duration(kube: FakeKube) -> None:
    spec = {"holderIdentity": "other", "leaseDurationSeconds": 0, "leaseTransitions": "many"}
    kube.add({"kind": "Lease", "metadata": {"name": "lead"}, "spec": spec})
    time = Time()
    one = _elector(kube, time, "one")
    assert not one.step()
    time.seconds += 15
    assert one.step()
    assert _lease(kube)["leaseTransitions"] == 1


def test_answer_that_is_no_object(kube: FakeKube) -> None:
    path = "/apis/coordination.k8s.io/v1/namespaces/default/leases/lead"
    kube.routes["GET", path] = lambda _r: (200, [])
    kube.fail(409, method="PUT", times=5)
    assert not _elector(kube, Time(), "one").step()


def test_never_two_leaders(kube: FakeKube) -> None:
    """Random schedules of five candidates, faults and pauses: at each moment at most one leads."""
    rng = random.Random(11)
    time = Time()
    electors = [_elector(kube, time, f"c{i}", skew=rng.uniform(-100, 100)) for i in range(5)]
    terms = 0
    for _ in range(250):
        time.seconds += rng.choice([0.1, 1, 2, 5, 11])
        if rng.random() < 0.1:
            kube.fail(rng.choice([500, 409, 429]), method=rng.choice(["PUT", "GET"]))
        elector = rng.choice(electors)
        if rng.random() < 0.05:
            elector.release()
        else:
            elector.step()
        leading = [e for e in electors if e.leading]
        assert len(leading) <= 1
        terms += len(leading)
    assert terms > 50


def test_race_of_threads_has_one_winner(kube: FakeKube) -> None:
    time = Time()
    electors = [_elector(kube, time, f"c{i}") for i in range(8)]
    barrier = threading.Barrier(8)
    won: list[bool] = []

    def go(elector: Elector) -> None:
        barrier.wait()
        won.append(elector.step())

    threads = [threading.Thread(target=go, args=(e,)) for e in electors]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(won) == [False] * 7 + [True]


def test_run_leads_until_it_is_stopped(kube: FakeKube) -> None:
    began = threading.Event()
    config = LeaseConfig(namespace="default", name="lead", holder="one", retry=dt.timedelta(seconds=1))
    elector = Elector(
        kube.api(), config, clock=Wall(Time()), monotonic=Time(), changed=lambda now: now and began.set()
    )
    thread = elector.start()
    assert began.wait(30)
    elector.stop()
    thread.join(30)
    assert not thread.is_alive()
    assert _lease(kube)["holderIdentity"] == ""


@pytest.mark.parametrize(
    "change",
    [
        {"holder": ""},
        {"name": ""},
        {"retry": dt.timedelta(seconds=5)},
        {"duration": dt.timedelta(seconds=10)},
    ],
    ids=repr,
)
def test_configuration_that_cannot_work(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="a lease needs"):
        LeaseConfig(**{"namespace": "n", "name": "l", "holder": "h", **change})


def test_forbidden_is_no_crash(kube: FakeKube) -> None:
    kube.fail(403, times=3)
    assert not _elector(kube, Time(), "one").step()
    with pytest.raises(KubeError) as e:
        kube.api().get("/apis/coordination.k8s.io/v1/namespaces/default/leases/lead")
    assert e.value.code is KubeCode.FORBIDDEN


def test_stopped_one_does_not_come_back(kube: FakeKube) -> None:
    one = _elector(kube, Time(), "one")
    assert one.step()
    one.stop()
    one.release()
    assert not one.step()
    assert _lease(kube)["holderIdentity"] == ""
