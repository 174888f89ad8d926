"""The book of agents, and how replicas share it over an API server."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator
from typing import Any

import pytest

from ca.agent_sharing import CONFIG_MAP, EVERY, REFRESH, RETRY, AgentSharing
from ca.agents import LATELY, LOOK_EVERY, QUIET, SOON, AgentBook
from ca.core.acknowledged import KEPT, Claim
from ca.pods import PodFact
from mesh.kube.api import KubeCode, KubeError
from mesh.kube.store import Store
from tests.fakes.clock import FakeClock
from tests.fakes.kube_api import FakeKube

NAMESPACE = "istio-system"
ACCOUNT = f"{NAMESPACE}/gatehouse-nodeagent"
NEW, OLD = "a" * 64, "b" * 64
GOOD = Claim(digest=NEW, workloads=2)


def agent(uid: str, node: str = "node-1", **changes: Any) -> PodFact:
    fields = {"service_account": "gatehouse-nodeagent", "ends": None, "ended": False, **changes}
    return PodFact(uid=uid, node=node, **fields)


class Bench:
    """A book on a store of pods, with a clock."""

    def __init__(self, account: str = ACCOUNT) -> None:
        self.clock = FakeClock()
        self.pods: Store[PodFact] = Store()
        self.pods.replace({})
        self.book = AgentBook(self.pods, account)

    def put(self, name: str, fact: PodFact, namespace: str = NAMESPACE) -> None:
        self.pods.put((namespace, name), fact)

    def record(self, uid: str, claim: Claim = GOOD) -> None:
        self.book.record(uid, claim, self.clock.now())

    def missing(self, digest: str = NEW) -> tuple[str, ...]:
        return self.book.counts(digest, 0, self.clock.now()).missing

    def poll(self, digest: str = NEW, epoch: int = 0) -> float:
        return self.book.poll_after(digest, epoch, self.clock.now()).total_seconds()


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_expected_are_the_live_pods_of_the_agents_account(bench: Bench) -> None:
    bench.put("a-1", agent("u1", "node-1"))
    bench.put("a-2", agent("u2", ""))
    bench.put("ended", agent("u3", ended=True))
    bench.put("deleted", agent("u4", ends=bench.clock.now()))
    bench.put("other", agent("u5", service_account="other"))
    bench.put("elsewhere", agent("u6"), namespace="demo")
    assert bench.missing() == ("a-2: no report", "node-1: no report")
    bench.put("a-1", agent("u1", ends=bench.clock.now()))
    bench.pods.remove((NAMESPACE, "a-2"))
    assert bench.book.expected() == ()


def test_pods_that_were_there_before_the_book_count() -> None:
    pods: Store[PodFact] = Store()
    pods.put((NAMESPACE, "a-1"), agent("u1"))
    assert [a.uid for a in AgentBook(pods, ACCOUNT).expected()] == ["u1"]


def test_while_the_pods_are_not_listed_somebody_is_missing() -> None:
    """Nobody expected would let a leader that has just started activate at once."""
    pods: Store[PodFact] = Store()
    now = FakeClock().now()
    found = AgentBook(pods, ACCOUNT).counts(NEW, 1, now)
    assert (found.expected, found.reported, found.acked) == (1, 0, 0)
    assert found.missing == ("the pods of the cluster were not listed yet",)
    assert AgentBook(pods, "").counts(NEW, 1, now).expected == 0
    pods.replace({})
    assert AgentBook(pods, ACCOUNT).counts(NEW, 1, now).expected == 0


def test_without_an_account_nobody_is_expected() -> None:
    bench = Bench("")
    bench.put("a-1", agent("u1"))
    bench.pods.put(("", ""), agent("u2", service_account=""))
    assert [a.uid for a in bench.book.expected() if a.uid == "u1"] == []


def test_a_pod_of_the_same_name_must_speak_for_itself(bench: Bench) -> None:
    bench.put("a-1", agent("u1"))
    bench.record("u1")
    assert bench.missing() == ()
    bench.put("a-1", agent("u2"))
    assert bench.missing() == ("node-1: no report",)


def test_own_and_shared_reports_are_merged_by_time(bench: Bench) -> None:
    bench.put("a-1", agent("u1"))
    bench.record("u1", Claim(digest=OLD, workloads=2))
    earlier = bench.book.own(bench.clock.now())
    bench.clock.advance(5)
    bench.record("u1")
    later = bench.book.own(bench.clock.now())
    bench.book.share(earlier)
    assert bench.missing() == ()
    bench.record("u1", Claim(digest=OLD, workloads=2))
    bench.clock.advance(5)
    bench.record("u1", Claim(digest=OLD, workloads=2))
    bench.book.share(later)
    assert bench.missing() == ("node-1: has another bundle, of generation 0",)


def test_old_reports_are_forgotten(bench: Bench) -> None:
    bench.record("u1")
    bench.clock.advance(KEPT + dt.timedelta(seconds=1))
    assert bench.book.own(bench.clock.now()) == ()


def test_changes_are_what_is_new(bench: Bench) -> None:
    bench.record("u1")
    bench.record("u1")
    assert bench.book.changes == 1
    bench.record("u1", Claim(digest=NEW, workloads=2, pending=1))
    assert bench.book.changes == 2


# --- the pace -----------------------------------------------------------------------------------------


def test_a_quiet_time_has_a_quiet_pace(bench: Bench) -> None:
    bench.record("u1")
    assert bench.poll() == QUIET.total_seconds()


@pytest.mark.parametrize("change", [{"digest": OLD}, {"epoch": 1}], ids=str)
def test_after_a_change_agents_are_asked_to_come_soon_for_a_while(
    bench: Bench, change: dict[str, Any]
) -> None:
    assert bench.poll() == QUIET.total_seconds()
    assert bench.poll(**change) == SOON.total_seconds()
    bench.record("u1", Claim(digest=change.get("digest", NEW)))
    bench.clock.advance(LATELY + dt.timedelta(seconds=1))
    assert bench.poll(**change) == QUIET.total_seconds()


def test_while_somebody_has_not_acknowledged_they_come_soon(bench: Bench) -> None:
    bench.record("u1")
    bench.record("u2", Claim(digest=NEW, workloads=1, pending=1))
    assert bench.poll() == SOON.total_seconds()
    bench.record("u2")
    bench.clock.advance(LOOK_EVERY)
    assert bench.poll() == QUIET.total_seconds()
    bench.record("u1", Claim(digest=OLD))
    assert bench.poll() == SOON.total_seconds()


def test_soon_is_later_where_there_are_many(bench: Bench) -> None:
    for i in range(1000):
        bench.put(f"a-{i}", agent(f"u{i}"))
    bench.record("u1", Claim(digest=OLD))
    assert bench.poll() == 10.0
    for i in range(1000, 9000):
        bench.put(f"a-{i}", agent(f"u{i}"))
    assert bench.poll() == QUIET.total_seconds()


# --- sharing ------------------------------------------------------------------------------------------


class Sharing(Bench):
    """A replica on a fake API server."""

    def __init__(self, kube: FakeKube, replica: str = "ca-0_1", *, leading: bool = True) -> None:
        super().__init__()
        self.kube = kube
        self.seconds = 1000.0
        self.leading = leading
        self.sharing = AgentSharing(
            kube.api(),
            NAMESPACE,
            replica,
            self.book,
            leading=lambda: self.leading,
            monotonic=lambda: self.seconds,
        )

    def step(self, seconds: float = 0.0) -> None:
        self.seconds += seconds
        self.clock.advance(seconds)
        self.sharing.step(self.clock.now())

    def keys(self) -> dict[str, str]:
        found = self.kube.find("ConfigMap", CONFIG_MAP, NAMESPACE)
        return dict((found or {}).get("data") or {})

    def writes(self) -> int:
        return len(self.kube.asked("PATCH"))


@pytest.fixture
def kube() -> Iterator[FakeKube]:
    with FakeKube() as server:
        server.add({"kind": "Namespace", "metadata": {"name": NAMESPACE}})
        server.add({"kind": "ConfigMap", "metadata": {"name": CONFIG_MAP, "namespace": NAMESPACE}})
        yield server


def test_the_leader_counts_what_another_replica_was_told(kube: FakeKube) -> None:
    other, leader = Sharing(kube, "ca-1_7", leading=False), Sharing(kube)
    leader.put("a-1", agent("u1"))
    other.record("u1")
    other.step()
    assert set(leader.keys()) == {"ca-1_7"}
    assert leader.missing() == ("node-1: no report",)
    leader.step()
    assert leader.missing() == ()
    assert leader.writes() == 1, "who was told nothing writes nothing"


def test_nothing_is_written_while_nothing_is_new_but_the_times_now_and_then(kube: FakeKube) -> None:
    replica = Sharing(kube, leading=False)
    replica.step()
    assert replica.writes() == 0
    replica.record("u1")
    replica.step()
    for _ in range(10):
        replica.step(EVERY)
        replica.record("u1")
    assert replica.writes() == 1
    replica.step(REFRESH)
    assert replica.writes() == 2


def test_news_wait_for_the_pace(kube: FakeKube) -> None:
    replica = Sharing(kube, leading=False)
    replica.record("u1")
    replica.step()
    replica.record("u1", Claim(digest=OLD))
    replica.step(EVERY / 2)
    assert replica.writes() == 1
    replica.step(EVERY / 2)
    assert replica.writes() == 2


def test_the_pace_falls_with_the_size(kube: FakeKube) -> None:
    replica = Sharing(kube, leading=False)
    for i in range(3000):
        replica.record(f"00000000-0000-4000-8000-{i:012}")
    replica.step()
    replica.record("u1")
    replica.step(EVERY)
    assert replica.writes() == 1
    replica.step(3 * EVERY)
    assert replica.writes() == 2


def test_keys_of_replicas_that_are_gone_are_taken_away_and_only_by_the_leader(kube: FakeKube) -> None:
    gone, leader = Sharing(kube, "gone_1", leading=False), Sharing(kube, leading=False)
    gone.record("u1")
    gone.step()
    leader.record("u2")
    later = KEPT.total_seconds() + 60
    leader.step(later)
    assert set(leader.keys()) == {"gone_1", "ca-0_1"}
    leader.record("u2")
    leader.leading = True
    leader.step(REFRESH)
    assert set(leader.keys()) == {"ca-0_1"}


def test_a_key_that_is_not_ours_is_named_and_goes(kube: FakeKube) -> None:
    kube.remove("ConfigMap", CONFIG_MAP, NAMESPACE)
    kube.add(
        {
            "kind": "ConfigMap",
            "metadata": {"name": CONFIG_MAP, "namespace": NAMESPACE},
            "data": {"strange": "{", "empty": json.dumps({"v": 1, "digests": [], "reports": []})},
        }
    )
    leader = Sharing(kube)
    leader.step()
    assert leader.sharing.problem is not None
    assert leader.sharing.problem.code == "sync_malformed"
    assert leader.keys() == {}
    leader.step(EVERY)
    assert leader.sharing.problem is None


@pytest.mark.parametrize("method", ["GET", "PATCH"])
def test_what_was_known_counts_while_the_config_map_cannot_be_used(kube: FakeKube, method: str) -> None:
    other, leader = Sharing(kube, "ca-1_7", leading=False), Sharing(kube)
    leader.put("a-1", agent("u1"))
    leader.put("a-2", agent("u2", "node-2"))
    other.record("u1")
    other.step()
    leader.step()
    kube.fail(403, times=1, method=method, path=".*" + CONFIG_MAP)
    leader.record("u2")
    leader.step(EVERY)
    problem = leader.sharing.problem
    assert isinstance(problem, KubeError)
    assert problem.code is KubeCode.FORBIDDEN
    assert leader.missing() == ()
    leader.record("u2", Claim(digest=NEW, workloads=1, outdated=1))
    leader.step(RETRY - 1)
    assert leader.sharing.problem is problem, "it waits"
    leader.step(1)
    assert leader.sharing.problem is None


def test_without_the_config_map_the_problem_is_named(kube: FakeKube) -> None:
    kube.remove("ConfigMap", CONFIG_MAP, NAMESPACE)
    leader = Sharing(kube)
    leader.record("u1")
    leader.step()
    assert isinstance(leader.sharing.problem, KubeError)
    assert leader.sharing.problem.code is KubeCode.NOT_FOUND


def test_names_of_replicas_become_keys(kube: FakeKube) -> None:
    replica = Sharing(kube, "host name/é_1", leading=False)
    replica.record("u1")
    replica.step()
    assert set(replica.keys()) == {"host-name--_1"}
