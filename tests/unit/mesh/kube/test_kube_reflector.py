"""The reflector under every fault of the table in ecosystem.md b.3, with the time injected.

A failing server gets a bounded number of requests: the pauses are recorded instead of slept.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from mesh.kube import reflector as module
from mesh.kube.api import KubeCode
from mesh.kube.reflector import Collection, Reflector
from mesh.kube.store import Store
from tests.fakes.kube_api import FakeKube

MAPS = "/api/v1/configmaps"


class Lab:
    """A reflector of config maps on a fake server; pauses end at once, unless the test holds them."""

    def __init__(self, kube: FakeKube, collection: Collection, *, timeout: float = 2.0) -> None:
        self.kube = kube
        self.now = 0.0
        self.pauses: list[float] = []
        self.gate = threading.Event()
        self.gate.set()
        self.failures: list[str] = []
        self.relists: list[int] = []
        self.events: list[str] = []
        self.changes: list[frozenset[tuple[str, str]]] = []
        self.changed = threading.Condition()
        self.read: Callable[[Mapping[str, Any]], str | None] = lambda o: (o.get("data") or {}).get("v", "")
        self.store: Store[str] = Store()
        self.store.subscribe(self._note)
        self.api = kube.api("reflector", timeout=timeout)
        self.reflector = Reflector(
            self.api,
            collection,
            self._read,
            self.store,
            events=self,
            wait=self._pause,
            monotonic=lambda: self.now,
            rng=random.Random(7),
        )
        self.thread = self.reflector.start()

    def _read(self, item: Mapping[str, Any]) -> str | None:
        return self.read(item)  # as the test has set it now

    def relisted(self, resource: str, items: int) -> None:
        self._poke(lambda: self.relists.append(items))

    def event(self, resource: str) -> None:
        self._poke(lambda: self.events.append(resource))

    def failed(self, resource: str, code: str) -> None:
        self._poke(lambda: self.failures.append(code))

    def _note(self, changed: frozenset[tuple[str, str]]) -> None:
        self._poke(lambda: self.changes.append(changed))

    def _pause(self, seconds: float) -> bool:
        self._poke(lambda: self.pauses.append(seconds))
        self.gate.wait(60)
        return self.reflector._stop.is_set()

    def _poke(self, action: Callable[[], None]) -> None:
        with self.changed:
            action()
            self.changed.notify_all()

    def until(self, condition: Callable[[], bool], what: str) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, 10), f"{what}: {self.__dict__}"

    def names(self) -> set[str]:
        return {name for namespace, name in self.store.items() if namespace == "default"}

    def close(self) -> None:
        self.reflector.stop()
        self.gate.set()
        self.api.close()
        self.thread.join(30)
        assert not self.thread.is_alive()


@pytest.fixture
def kube() -> Iterator[FakeKube]:
    with FakeKube() as server:
        yield server


def _add(kube: FakeKube, name: str, value: str = "1") -> None:
    kube.add({"kind": "ConfigMap", "metadata": {"name": name}, "data": {"v": value}})


Start = Callable[..., Lab]


@pytest.fixture
def start(kube: FakeKube) -> Iterator[Start]:
    labs: list[Lab] = []

    def make(collection: Collection | None = None, **options: Any) -> Lab:
        labs.append(Lab(kube, collection or Collection(path=MAPS, name="configmaps"), **options))
        return labs[-1]

    yield make
    for lab in labs:
        lab.close()


def test_list_and_watch(kube: FakeKube, start: Start) -> None:
    _add(kube, "a")
    lab = start()
    lab.until(lambda: lab.names() == {"a"}, "listed")
    assert lab.store.synced
    kube.wait_watchers(1)
    _add(kube, "b")
    lab.until(lambda: lab.names() == {"a", "b"}, "added")
    _add(kube, "a", "2")
    lab.until(lambda: lab.store.get("default", "a") == "2", "modified")
    kube.remove("ConfigMap", "a", "default")
    lab.until(lambda: lab.names() == {"b"}, "deleted")
    query = kube.asked(watch=True)[0].query
    assert query["allowWatchBookmarks"] == "true"
    assert 300 <= int(query["timeoutSeconds"]) <= 600
    assert (lab.failures, lab.reflector.problem) == ([], None)


def test_pages_are_joined(kube: FakeKube, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PAGE", "3")
    for i in range(10):
        _add(kube, f"m{i}")
    lab = start()
    lab.until(lambda: len(lab.names()) == 10, "listed")
    assert len(kube.asked("GET", MAPS, watch=False)) == 4


def test_pages_that_expire_are_read_at_once(
    kube: FakeKube, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A continue token gets 410: the next list asks for everything."""
    monkeypatch.setattr(module, "_PAGE", "3")
    for i in range(10):
        _add(kube, f"m{i}")
    kube.fail(410, reason="Expired", path=MAPS, watch=False)
    lab = start()
    lab.until(lambda: len(lab.names()) == 10, "listed")
    assert [r.query.get("limit") for r in kube.asked("GET", MAPS, watch=False)] == ["3", None]
    assert lab.failures == [KubeCode.GONE]


def test_query_is_sent_with_list_and_watch(kube: FakeKube, start: Start) -> None:
    kube.add({"kind": "ConfigMap", "metadata": {"name": "a", "labels": {"app": "x"}}})
    _add(kube, "b")
    lab = start(Collection(path=MAPS, name="configmaps", query={"labelSelector": "app=x"}))
    lab.until(lambda: lab.names() == {"a"}, "listed")
    kube.wait_watchers(1)
    kube.add({"kind": "ConfigMap", "metadata": {"name": "a", "labels": {"app": "y"}}})
    lab.until(lambda: lab.names() == set(), "left the selection")


def test_410_as_status_lists_anew_and_finds_deletions(kube: FakeKube, start: Start) -> None:
    _add(kube, "a")
    _add(kube, "b")
    lab = start()
    lab.until(lambda: lab.names() == {"a", "b"}, "listed")
    kube.wait_watchers(1)
    lab.gate.clear()
    kube.cut_watches()
    lab.until(lambda: len(lab.pauses) == 1, "paused")
    kube.remove("ConfigMap", "a", "default")
    kube.expire()
    lab.gate.set()
    lab.until(lambda: lab.names() == {"b"}, "deletion found")
    assert KubeCode.GONE in lab.failures
    assert len(lab.relists) == 2


def test_410_as_event_lists_anew_and_finds_deletions(kube: FakeKube, start: Start) -> None:
    _add(kube, "a")
    _add(kube, "b")
    lab = start()
    lab.until(lambda: lab.names() == {"a", "b"}, "listed")
    kube.wait_watchers(1)
    kube.mute_watches()
    kube.remove("ConfigMap", "a", "default")
    kube.watch_error(410, "Expired")
    lab.until(lambda: len(lab.failures) == 1, "failed")
    kube.mute_watches(False)
    lab.until(lambda: lab.names() == {"b"}, "deletion found")
    assert lab.failures == [KubeCode.GONE]


@pytest.mark.parametrize(
    ("status", "reason", "code"),
    [(500, "InternalError", KubeCode.SERVER), (429, "TooManyRequests", KubeCode.THROTTLED)],
)
def test_any_error_event_lists_anew(
    kube: FakeKube, start: Start, status: int, reason: str, code: KubeCode
) -> None:
    lab = start()
    kube.wait_watchers(1)
    kube.watch_error(status, reason)
    lab.until(lambda: len(lab.relists) == 2, "listed anew")
    assert lab.failures == [code]


def test_error_event_without_a_number(kube: FakeKube, start: Start) -> None:
    lab = start()
    kube.wait_watchers(1)
    kube.watch_garbage(b'{"type": "ERROR", "object": {"code": "many"}}\n')
    lab.until(lambda: len(lab.relists) == 2, "listed anew")
    assert lab.failures == [KubeCode.SERVER]


def test_cut_stream_goes_on_from_where_it_was(kube: FakeKube, start: Start) -> None:
    """Connection dropped: one pause, one request, no new list, no event lost (b.3: others sent 3,775)."""
    _add(kube, "a")
    lab = start()
    kube.wait_watchers(1)
    _add(kube, "b")
    lab.until(lambda: lab.names() == {"a", "b"}, "applied")
    version = kube.store.version
    kube.cut_watches()
    lab.until(lambda: len(lab.pauses) == 1, "paused")
    kube.wait_watchers(1)
    _add(kube, "c")
    lab.until(lambda: "c" in lab.names(), "went on")
    watches = kube.asked(watch=True)
    assert [w.query["resourceVersion"] for w in watches[1:]] == [str(version)]
    assert len(lab.relists) == 1


def test_streams_that_end_at_once_are_failures(kube: FakeKube, start: Start) -> None:
    """Clean end of stream: the pauses grow, so that it is no busy loop."""
    lab = start()
    for i in range(6):
        kube.wait_watchers(1)
        kube.end_watches()
        lab.until(lambda i=i: len(lab.pauses) > i, "paused")
    assert max(lab.pauses[3:]) > max(lab.pauses[:2])
    assert lab.failures == []


def test_stream_that_lived_long_is_followed_by_the_next_at_once(kube: FakeKube, start: Start) -> None:
    lab = start()
    for _ in range(3):
        kube.wait_watchers(1)
        seen = len(kube.asked(watch=True))
        lab.now += 400
        kube.end_watches()
        deadline = threading.Event()
        while len(kube.asked(watch=True)) == seen:
            deadline.wait(0.01)
    assert lab.pauses == []


@pytest.mark.parametrize("status", [500, 503, 429, 403, 401])
@pytest.mark.parametrize("watch", [True, False], ids=["watch", "list"])
def test_failing_server_gets_few_requests(kube: FakeKube, start: Start, status: int, watch: bool) -> None:
    """HTTP 500, 429: exponential pauses with jitter up to 30 s (b.3: others sent up to 5,513 in 5 s)."""
    kube.fail(status, times=12, path=MAPS, watch=watch)
    lab = start()
    lab.until(lambda: len(lab.pauses) == 12, "paused")
    kube.wait_watchers(1)
    assert len(lab.failures) == 12
    assert sum(lab.pauses) > 30
    assert all(0.25 <= p <= 30 for p in lab.pauses)
    assert lab.pauses[0] <= 1.0


def test_retry_after_is_honoured_and_bounded(kube: FakeKube, start: Start) -> None:
    kube.fail(429, path=MAPS, retry_after="17")
    kube.fail(429, path=MAPS, retry_after="90000")
    lab = start()
    lab.until(lambda: len(lab.pauses) == 2, "paused")
    assert lab.pauses[0] >= 17
    assert lab.pauses[1] == 60


def test_version_that_keeps_failing_is_given_up(kube: FakeKube, start: Start) -> None:
    """E.g. after etcd was restored: the version is from a future that never was."""
    kube.fail(500, times=5, path=MAPS, watch=True)
    lab = start()
    lab.until(lambda: len(lab.relists) == 2, "listed anew")
    assert len(lab.failures) == 5


def test_server_that_is_away_costs_no_new_list(kube: FakeKube, start: Start) -> None:
    _add(kube, "a")
    lab = start()
    kube.wait_watchers(1)
    kube.stop()
    lab.until(lambda: len(lab.pauses) >= 8, "paused")
    assert lab.reflector.problem is not None
    assert lab.reflector.problem.code is KubeCode.UNREACHABLE
    assert lab.names() == {"a"}  # what was known stays (G-01)
    lab.now += 100
    assert lab.reflector.silent_seconds() == 100
    kube.restart()
    kube.wait_watchers(1)
    _add(kube, "b")
    lab.until(lambda: lab.names() == {"a", "b"}, "went on")
    assert (len(lab.relists), lab.reflector.problem) == (1, None)


def test_silent_stream_is_given_up(kube: FakeKube, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half-open TCP."""
    monkeypatch.setattr(module, "_SILENCE", module.dt.timedelta(seconds=0.2))
    _add(kube, "a")
    lab = start()
    kube.wait_watchers(1)
    kube.mute_watches()
    _add(kube, "b")
    lab.until(lambda: len(lab.failures) >= 1, "given up")
    kube.mute_watches(False)
    lab.until(lambda: lab.names() == {"a", "b"}, "went on")
    assert set(lab.failures) == {KubeCode.UNREACHABLE}
    assert len(lab.relists) == 1


def test_bookmark_moves_the_version(kube: FakeKube, start: Start) -> None:
    lab = start()
    kube.wait_watchers(1)
    kube.add({"kind": "Secret", "metadata": {"name": "other"}})
    kube.bookmark()
    lab.until(lambda: len(lab.events) == 1, "bookmark")
    kube.expire_before(kube.store.version)
    kube.cut_watches()
    lab.until(lambda: len(lab.pauses) == 1, "cut")
    kube.wait_watchers(1)
    assert len(lab.relists) == 1  # no 410: the bookmark was newer than the history


@pytest.mark.parametrize("line", [b"{not json\n", b"[]\n"], ids=["garbage", "array"])
def test_garbage_in_the_stream_lists_anew(kube: FakeKube, start: Start, line: bytes) -> None:
    lab = start()
    kube.wait_watchers(1)
    kube.watch_garbage(line)
    lab.until(lambda: len(lab.relists) == 2, "listed anew")
    assert lab.failures == [KubeCode.RESPONSE]


@pytest.mark.parametrize("page", [[], "x", {"items": {"a": 1}}], ids=["array", "text", "items-no-list"])
def test_list_that_is_none(kube: FakeKube, start: Start, page: Any) -> None:
    kube.routes["GET", MAPS] = lambda _r: (200, page)
    lab = start()
    lab.until(lambda: len(lab.failures) >= 2, "failed")
    assert set(lab.failures) == {KubeCode.RESPONSE}
    assert not lab.store.synced


def test_fault_of_the_reader_ends_no_thread(kube: FakeKube, start: Start) -> None:
    _add(kube, "a")
    lab = start()
    kube.wait_watchers(1)
    good, lab.read = lab.read, lambda o: o["never"]
    _add(kube, "b")
    lab.until(lambda: len(lab.failures) >= 1, "failed")
    lab.read = good
    lab.until(lambda: lab.names() == {"a", "b"}, "recovered")
    assert set(lab.failures) == {KubeCode.RESPONSE}


def test_reader_leaves_out(kube: FakeKube, start: Start) -> None:
    _add(kube, "a")
    lab = start()
    lab.read = lambda o: None if o["data"]["v"] == "no" else o["data"]["v"]
    kube.wait_watchers(1)
    _add(kube, "b", "no")
    _add(kube, "a", "no")
    lab.until(lambda: lab.names() == set(), "left out")


def test_collection_that_is_not_there(kube: FakeKube, start: Start) -> None:
    """A CRD that is not installed counts as empty, and is found when it comes."""
    path = "/apis/later.test/v1/things"
    lab = start(Collection(path=path, name="things", optional=True))
    lab.until(lambda: lab.store.synced, "empty")
    lab.until(lambda: len(lab.pauses) >= 2, "asks again")
    assert lab.reflector.problem is None
    kube.serve("later.test", "v1", "things", "Thing")
    kube.add({"kind": "Thing", "metadata": {"name": "a"}, "data": {"v": "1"}})
    lab.until(lambda: lab.names() == {"a"}, "found")
    kube.unserve("Thing")
    kube.end_watches()
    lab.until(lambda: lab.names() == set(), "gone with its kind")


def test_missing_collection_that_is_needed(kube: FakeKube, start: Start) -> None:
    lab = start(Collection(path="/apis/later.test/v1/things", name="things"))
    lab.until(lambda: len(lab.pauses) >= 2, "asks again")
    assert not lab.store.synced
    assert lab.reflector.problem is not None
    assert lab.reflector.problem.code is KubeCode.NOT_FOUND


def test_too_many_objects(kube: FakeKube, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_ITEMS", 2)
    for i in range(3):
        _add(kube, f"m{i}")
    lab = start()
    lab.until(lambda: len(lab.failures) >= 1, "refused")
    assert not lab.store.synced


def test_stop_during_a_pause(kube: FakeKube, start: Start) -> None:
    kube.fail(500, times=1000, path=MAPS)
    lab = start()
    lab.gate.clear()
    lab.until(lambda: len(lab.pauses) >= 1, "paused")
    lab.close()


def test_stop_with_an_event(kube: FakeKube, start: Start) -> None:
    lab = start()
    kube.wait_watchers(1)
    lab.reflector.stop()
    _add(kube, "late")
    lab.thread.join(30)
    assert not lab.thread.is_alive()
    assert lab.names() == set()


def test_many_events_without_a_clock(kube: FakeKube) -> None:
    """Defaults: its own waiting and randomness."""
    store: Store[str] = Store()
    api = kube.api()
    reflector = Reflector(api, Collection(path=MAPS, name="m"), lambda _o: "x", store, monotonic=lambda: 0.0)
    assert reflector.silent_seconds() is None
    thread = reflector.start()
    kube.wait_watchers(1)
    for i in range(200):
        _add(kube, f"m{i}")
    kube.end_watches()
    deadline = threading.Event()
    for _ in range(500):
        if len(store) == 200:
            break
        deadline.wait(0.02)
    assert len(store) == 200
    reflector.stop()
    api.close()
    thread.join(30)
    assert not thread.is_alive()
