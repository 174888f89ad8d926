"""Leader election against an API server: never two leaders, and always one again."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from injector.lease import TERM_SECONDS, Election
from tests.fakes.kube_api import FakeKube


class Time:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def kube() -> Iterator[FakeKube]:
    with FakeKube() as kube:
        kube.add({"kind": "Namespace", "metadata": {"name": "istio-system"}})
        yield kube


def candidate(kube: FakeKube, name: str, time: Time) -> Election:
    return Election(kube.api(), namespace="istio-system", name="upkeep", identity=name, monotonic=time)


def test_one_of_two_leads_and_the_other_takes_over_after_a_silent_term(kube: FakeKube) -> None:
    time = Time()
    first, second = candidate(kube, "a", time), candidate(kube, "b", time)
    assert first.step()
    assert not second.step()
    time.now += TERM_SECONDS - 0.1
    assert not first.leading, "a silent leader stops by itself before anybody can take over"
    assert not second.step()
    time.now += 0.2
    assert second.step()
    assert not first.step()
    lease = kube.find("Lease", "upkeep", "istio-system")
    assert lease is not None
    assert (lease["spec"]["holderIdentity"], lease["spec"]["leaseTransitions"]) == ("b", 1)


def test_a_leader_that_renews_is_never_replaced(kube: FakeKube) -> None:
    time = Time()
    first, second = candidate(kube, "a", time), candidate(kube, "b", time)
    for _ in range(40):
        assert first.step()
        assert not second.step()
        time.now += first.pause
    lease = kube.find("Lease", "upkeep", "istio-system")
    assert lease is not None
    assert lease["spec"]["acquireTime"] <= lease["spec"]["renewTime"]


def test_a_lease_from_the_future_is_respected_for_one_term_only(kube: FakeKube) -> None:
    """Wall clocks of other nodes mean nothing."""
    kube.add(
        {
            "kind": "Lease",
            "metadata": {"name": "upkeep", "namespace": "istio-system"},
            "spec": {
                "holderIdentity": "gone",
                "leaseDurationSeconds": 15,
                "renewTime": "2199-01-01T00:00:00.000000Z",
            },
        }
    )
    time = Time()
    election = candidate(kube, "a", time)
    assert not election.step()
    time.now += TERM_SECONDS
    assert election.step()


def test_without_an_api_server_the_leader_steps_down_in_time(kube: FakeKube) -> None:
    time = Time()
    election = candidate(kube, "a", time)
    assert election.step()
    kube.fail(500, times=100)
    time.now += TERM_SECONDS / 2
    assert election.step(), "one failure is no reason"
    time.now += TERM_SECONDS / 2
    assert not election.step()
    kube.faults.clear()
    assert election.step()


def test_release_lets_the_next_one_in_at_once(kube: FakeKube) -> None:
    time = Time()
    first, second = candidate(kube, "a", time), candidate(kube, "b", time)
    assert first.step()
    first.release()
    assert not first.leading
    assert second.step()
    first.release()  # of somebody else's: nothing
    assert second.step()


def test_a_lease_that_was_deleted_is_made_again(kube: FakeKube) -> None:
    time = Time()
    election = candidate(kube, "a", time)
    assert election.step()
    kube.remove("Lease", "upkeep", "istio-system")
    assert election.step()


def test_of_many_at_once_exactly_one_leads(kube: FakeKube) -> None:
    """Compare-and-swap: eight candidates for a free Lease."""
    time = Time()
    candidates = [candidate(kube, f"c{number}", time) for number in range(8)]
    barrier = threading.Barrier(8)

    def run(election: Election) -> None:
        barrier.wait()
        election.step()

    threads = [threading.Thread(target=run, args=(c,)) for c in candidates]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(c.leading for c in candidates) == 1
