"""Events: on the owner, bounded, aggregated, never for dry runs, never in the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from injector import events
from injector.core.decision import Decision, Outcome, Reason
from injector.events import EventSink
from tests.fakes import injector_reviews as reviews
from tests.fakes.injector_running import wait_for
from tests.fakes.kube_api import FakeKube

SKIP = Decision(Outcome.SKIP, Reason.POD_OPT_OUT, "the pod says no")
QUIET = Decision(Outcome.SKIP, Reason.NOT_SELECTED, "nobody asked")


class World:
    def __init__(self, kube: FakeKube) -> None:
        self.kube = kube
        self.now = 0.0
        self.told: Counter[str] = Counter()
        self.sink = EventSink(
            kube.api(), count=lambda result: self.told.update([result]), monotonic=lambda: self.now
        )

    def written(self) -> list[dict[str, Any]]:
        return self.kube.all("Event")


@pytest.fixture
def world() -> Iterator[World]:
    with FakeKube() as kube:
        kube.add({"kind": "Namespace", "metadata": {"name": "shop"}})
        yield World(kube)


def owned(name: str) -> dict[str, Any]:
    pod = reviews.pod()
    pod["metadata"]["ownerReferences"][0] |= {"name": name, "uid": name}
    return pod


def test_an_event_says_what_why_and_about_whom(world: World) -> None:
    world.sink.start()
    world.sink.tell(reviews.pod(), "shop", SKIP, dry_run=False)
    wait_for(world.written, "it is written")
    world.sink.stop()
    [event] = world.written()
    assert event["involvedObject"] == {
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "namespace": "shop",
        "name": "web-7d9c5b8f6",
        "uid": "3e2f1d0c-9b8a-4756-8453-21fedcba0987",
    }
    assert (event["reason"], event["message"]) == ("InjectionSkipped", "pod_opt_out: the pod says no")
    assert (event["type"], event["count"]) == ("Normal", 1)
    assert world.told["written"] == 1


def test_warnings_are_of_type_warning(world: World) -> None:
    world.sink.start()
    deny = Decision(Outcome.DENY, Reason.INVALID_OPTION, "x" * 5000, warn=True)
    world.sink.tell(reviews.pod(), "shop", deny, dry_run=False)
    wait_for(world.written, "it is written")
    world.sink.stop()
    [event] = world.written()
    assert (event["type"], event["reason"]) == ("Warning", "InjectionDenied")
    assert len(event["message"]) <= 1000


@pytest.mark.parametrize(("decision", "dry_run"), [(SKIP, True), (QUIET, False)], ids=["dry-run", "quiet"])
def test_nothing_is_queued(world: World, decision: Decision, dry_run: bool) -> None:
    world.sink.tell(reviews.pod(), "shop", decision, dry_run=dry_run)
    assert world.sink._queue.empty()


def test_what_repeats_is_aggregated(world: World) -> None:
    for _ in range(20):
        world.sink.tell(reviews.pod(), "shop", SKIP, dry_run=False)
        world.now += 1
    assert world.told["repeated"] == 19
    world.now += events.REPEAT_SECONDS
    world.sink.tell(reviews.pod(), "shop", SKIP, dry_run=False)
    world.sink.start()
    wait_for(lambda: len(world.written()) == 2, "both are written")
    world.sink.stop()
    assert sorted(e["count"] for e in world.written()) == [1, 20]


def test_a_storm_is_limited(world: World) -> None:
    for number in range(200):
        world.sink.tell(owned(f"rs-{number}"), "shop", SKIP, dry_run=False)
    assert world.sink._queue.qsize() == events.BURST
    assert world.told["limited"] == 200 - events.BURST
    world.now += 1
    world.sink.tell(owned("later"), "shop", SKIP, dry_run=False)
    assert world.sink._queue.qsize() == events.BURST + 1


def test_memory_and_queue_are_bounded(world: World) -> None:
    for number in range(events.MAX_MEMORY + 500):
        world.sink.tell(owned(f"rs-{number}"), "shop", SKIP, dry_run=False)
        world.now += 1
    assert len(world.sink._seen) == events.MAX_MEMORY
    assert world.sink._queue.qsize() == events.MAX_QUEUE
    assert world.told["full"] == events.MAX_MEMORY + 500 - events.MAX_QUEUE


def test_failures_are_counted_and_do_not_stop_the_thread(world: World) -> None:
    world.kube.fail(403, times=1, method="POST")
    world.sink.start()
    world.sink.tell(owned("a"), "shop", SKIP, dry_run=False)
    world.sink.tell(owned("b"), "shop", SKIP, dry_run=False)
    wait_for(world.written, "the second is written")
    world.sink.stop()
    assert (world.told["failed"], world.told["written"]) == (1, 1)


def test_an_api_server_that_is_away_for_a_moment_costs_no_event(world: World) -> None:
    """Seen on a real cluster: it closed an idle connection, and repetitions are suppressed."""
    world.kube.fail(503, times=2, method="POST")
    world.sink.start()
    world.sink.tell(owned("a"), "shop", SKIP, dry_run=False)
    wait_for(world.written, "it is written at the third try")
    world.sink.stop()
    assert world.told == {"written": 1}


def test_turned_off() -> None:
    sink = EventSink(None)
    sink.start()
    sink.tell(reviews.pod(), "shop", SKIP, dry_run=False)
    sink.stop()


def test_pods_without_a_controller_stand_for_themselves() -> None:
    found = events.subject(reviews.pod(ownerReferences=[], generateName="", name="web-1"), "shop")
    assert found == events.Subject("v1", "Pod", "shop", "web-1", "")
    assert events.subject({"metadata": {}}, "shop") is None
    not_controller = [{"kind": "Job", "name": "j", "uid": "u", "controller": False}]
    found = events.subject(reviews.pod(ownerReferences=not_controller), "shop")
    assert found is not None
    assert found.name == "web-7d9c5b8f6"
