"""The loop that asks for the bundle: when it asks, what it says, what becomes of the answer. Virtual time."""

from __future__ import annotations

import asyncio
import itertools
import random
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from mesh.errors import Category
from mesh.x509.pem import encode_certificate
from nodeagent.ca_client import CaCode, CaError, SyncReply
from nodeagent.core.svid import ReplyCode
from nodeagent.core.trust import HeldRoots, Standing, TrustBook
from nodeagent.metrics import AgentMetrics
from nodeagent.trust import CROWD, LONGEST, SHORTEST, TrustSync
from tests.fakes.ca_factory import Hierarchy, make_hierarchy

FIRST, SECOND, FOREIGN = make_hierarchy(), make_hierarchy(), make_hierarchy()
AWAY = CaError(CaCode.UNREACHABLE, "away", category=Category.UNAVAILABLE)
DENIED = CaError(CaCode.DENIED, "no", category=Category.PERMISSION_DENIED)


def pems(*hierarchies: Hierarchy) -> tuple[str, ...]:
    return tuple(encode_certificate(h.root_der) for h in hierarchies)


def ders(*hierarchies: Hierarchy) -> tuple[bytes, ...]:
    return tuple(h.root_der for h in hierarchies)


@dataclass
class Authority:
    """Answers as a test says, and remembers what it was told, and when."""

    roots: tuple[str, ...] = pems(FIRST)
    generation: int = 1
    epoch: int = 1
    poll_after: float = 60.0
    renew_within: float = 0.0
    fails: Exception | None = None
    told: list[tuple[float, Standing]] = field(default_factory=list)


class Bench:
    """The loop in virtual time: a wait moves the clock; `at` makes things happen during a wait."""

    def __init__(self) -> None:
        self.authority = Authority()
        self.seconds = 0.0
        self.book = TrustBook()
        self.standing: Standing | None = Standing(workloads=2)
        self.renewals: list[tuple[int, float]] = []
        self.plans: list[tuple[float, object]] = []
        self.waits = 0
        self.metrics = AgentMetrics(CollectorRegistry())
        self.sync = TrustSync(
            _Client(self),
            Path("/token"),
            self.book,
            standing=self._standing,
            renew_within=lambda epoch, seconds: self.renewals.append((epoch, seconds)),
            metrics=self.metrics,
            monotonic=lambda: self.seconds,
            rng=random.Random(1),
            wait=self._wait,
        )

    def _standing(self) -> Standing | None:
        if self.standing is None:
            return None
        held = self.book.held
        return replace(
            self.standing,
            digest=held.digest if held else "",
            generation=held.generation if held else 0,
            epoch=self.book.epoch,
        )

    def _pending(self, count: int, look_at: float | None = None) -> None:
        names = tuple(f"demo/w{i}" for i in range(count))
        self.standing = Standing(workloads=2, pending=count, waiting_for=names, look_at=look_at)

    def at(self, seconds: float, what: object) -> None:
        self.plans.append((seconds, what))

    async def sync_call(self, standing: Standing) -> SyncReply:
        a = self.authority
        a.told.append((self.seconds, standing))
        if a.fails is not None:
            raise a.fails
        return SyncReply(
            roots_pem=a.roots,
            generation=a.generation,
            epoch=a.epoch,
            poll_after=a.poll_after,
            renew_within=a.renew_within,
            roots_der=ders(FIRST),
        )

    async def _wait(self, event: asyncio.Event, seconds: float) -> None:
        assert seconds >= 0
        self.waits += 1
        assert self.waits < 10_000, "it does not wait, it spins"
        end = self.seconds + seconds
        while not event.is_set() and self.seconds < end:
            due = sorted((at, i) for i, (at, _) in enumerate(self.plans) if at <= end)
            if not due:
                self.seconds = end
                return
            at, index = due[0]
            _, what = self.plans.pop(index)
            self.seconds = max(self.seconds, at)
            what()  # type: ignore[operator]  # a plan is a function

    def run(self, until: float) -> None:
        async def go() -> None:
            while self.seconds < until:
                await self.sync.step()

        asyncio.run(go())

    @property
    def times(self) -> list[float]:
        return [round(at, 2) for at, _ in self.authority.told]

    def counted(self, result: str) -> float:
        name = "gatehouse_agent_trust_syncs_total"
        return self.metrics.registry.get_sample_value(name, {"result": result}) or 0.0


class _Client:
    """The bench as what the loop calls."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench

    async def sync(self, standing: Standing, *, token_file: Path) -> SyncReply:
        assert token_file == Path("/token")
        return await self.bench.sync_call(standing)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def quiet(bench: Bench) -> None:
    """Past the start: the bundle is known and was reported; the next call is due."""
    bench.run(30)
    bench.authority.told.clear()


def test_asks_at_the_start_and_reports_the_bundle_soon_after(bench: Bench) -> None:
    bench.run(30)
    (first_at, first), (second_at, second) = bench.authority.told
    assert (first_at, first.digest) == (0.0, "")
    assert second_at == pytest.approx(SHORTEST + CROWD, abs=0.3)
    assert bench.book.held == HeldRoots(ders(FIRST), 1)
    assert (second.digest, second.generation, second.epoch) == (bench.book.held.digest, 1, 1)


def test_a_quiet_time_is_one_wake_up_a_poll(bench: Bench) -> None:
    quiet(bench)
    bench.waits = 0
    bench.run(3600)
    calls = len(bench.authority.told)
    assert 60 <= calls <= 68
    assert bench.waits == calls
    assert all(54 <= b - a <= 60 for a, b in zip(bench.times, bench.times[1:], strict=False))


def test_nothing_is_acknowledged_before_the_agent_knows_its_workloads(bench: Bench) -> None:
    bench.standing = None

    def known() -> None:
        bench.standing = Standing(workloads=3)
        bench.sync.workloads_changed()

    bench.at(20, known)
    bench.run(21)
    assert bench.authority.told[0][1].digest == ""
    assert [s.digest for _, s in bench.authority.told if s.workloads == 0] == [""], "one call, and silence"
    bench.run(40)
    assert bench.times[1] == pytest.approx(20 + CROWD, abs=0.3)
    assert bench.authority.told[1][1].workloads == 3


def test_new_roots_are_taken_and_the_last_acknowledgement_is_reported_at_once(bench: Bench) -> None:
    quiet(bench)
    bench.authority.roots, bench.authority.generation = pems(FIRST, SECOND), 2
    bench.authority.poll_after = 30.0
    bench.book.subscribe(lambda _: bench._pending(2))
    begin = bench.seconds

    def half() -> None:
        bench._pending(1)
        bench.sync.acknowledged()

    def whole() -> None:
        bench._pending(0)
        bench.sync.acknowledged()

    bench.at(begin + 5, half)
    bench.at(begin + 8, whole)
    bench.run(begin + 20)
    assert bench.book.held == HeldRoots(ders(FIRST, SECOND), 2)
    told = [s for _, s in bench.authority.told]
    assert [s.pending for s in told] == [0, 0]
    assert bench.times[1] == pytest.approx(begin + 8 + CROWD, abs=0.3)
    assert told[1].digest == bench.book.held.digest


def test_while_somebody_is_waited_for_the_pace_is_the_authoritys(bench: Bench) -> None:
    quiet(bench)
    bench.authority.poll_after = 2.0
    bench._pending(1)
    begin = bench.seconds
    bench.run(begin + 100)
    fast = [t for t in bench.times if t > begin + 60]
    assert all(1.7 <= b - a <= 2.0 for a, b in itertools.pairwise(fast))
    assert bench.authority.told[-1][1].waiting_for == ("demo/w0",)


def test_a_proxy_that_does_not_come_back_is_reported_when_its_time_is_over(bench: Bench) -> None:
    quiet(bench)
    begin = bench.seconds
    bench._pending(1, look_at=begin + 40)
    bench.at(begin + 39.9, lambda: bench._pending(0))
    bench.run(begin + 42)
    assert bench.times[-1] == pytest.approx(begin + 40, abs=0.1)
    assert [s.pending for _, s in bench.authority.told] == [1, 0]


def test_a_bundle_that_came_with_a_certificate_is_reported_at_once(bench: Bench) -> None:
    quiet(bench)
    begin = bench.seconds
    bench.at(begin + 5, lambda: bench.book.offer(HeldRoots(ders(FIRST, SECOND), 2), 1))
    bench.run(begin + 8)
    assert bench.times == [pytest.approx(begin, abs=0.1), pytest.approx(begin + 5 + CROWD, abs=SHORTEST)]


def test_acknowledgements_that_nobody_waits_for_wake_nobody(bench: Bench) -> None:
    quiet(bench)
    bench.waits = 0
    for i in range(1, 50):
        bench.at(bench.seconds + i, bench.sync.acknowledged)
    bench.run(bench.seconds + 50)
    assert bench.waits == 1


def test_an_older_bundle_is_not_taken_back(bench: Bench) -> None:
    bench.authority.roots, bench.authority.generation = pems(FIRST, SECOND), 2
    quiet(bench)
    bench.authority.roots, bench.authority.generation = pems(FIRST), 1
    bench.run(bench.seconds + 200)
    assert bench.book.held == HeldRoots(ders(FIRST, SECOND), 2)


def test_renewal_is_passed_on_with_the_epoch_of_the_answer(bench: Bench) -> None:
    bench.authority.epoch, bench.authority.renew_within = 4, 600.0
    quiet(bench)
    assert set(bench.renewals) == {(4, 600.0)}


@pytest.mark.parametrize(
    ("roots", "code"),
    [
        ((), ReplyCode.ROOTS),
        (pems(FOREIGN), ReplyCode.UNKNOWN_ROOT),
        (("no PEM",), ReplyCode.MALFORMED),
        (pems(*[FIRST] * 100), ReplyCode.TOO_LARGE),
        ((encode_certificate(FIRST.leaf().der),), ReplyCode.ROOTS),
    ],
    ids=["none", "foreign", "malformed", "many", "leaf"],
)
def test_bad_roots_change_nothing(bench: Bench, roots: tuple[str, ...], code: ReplyCode) -> None:
    quiet(bench)
    bench.authority.roots, bench.authority.generation = roots, 9
    bench.run(bench.seconds + 61)
    assert bench.book.held == HeldRoots(ders(FIRST), 1)
    assert bench.counted(code) >= 1
    assert bench.sync.problem is not None
    assert bench.sync.problem.code is code


def test_failures_back_off_to_five_minutes_and_recover(bench: Bench) -> None:
    quiet(bench)
    bench.authority.fails = AWAY
    bench.run(3 * 3600)
    gaps = [b - a for a, b in zip(bench.times, bench.times[1:], strict=False)]
    assert gaps[0] <= 60
    assert all(SHORTEST <= gap <= LONGEST for gap in gaps)
    assert max(gaps) > 150
    assert [round(g) for g in gaps[:3]] == sorted(round(g) for g in gaps[:3])
    assert bench.counted("ca_unreachable") == len(bench.times)
    bench.authority.fails = None
    bench.run(bench.seconds + LONGEST + 60)
    assert bench.sync.problem is None


def test_news_do_not_shorten_the_wait_after_a_failure(bench: Bench) -> None:
    quiet(bench)
    bench.authority.fails = DENIED
    bench.run(bench.seconds + 55)
    begin, calls = bench.seconds, len(bench.authority.told)
    for i in range(1, 100):
        bench.at(begin + i, bench.sync.acknowledged)
    bench.at(begin + 1, lambda: bench.book.offer(HeldRoots(ders(FIRST, SECOND), 2), 1))
    bench.run(begin + 100)
    assert len(bench.authority.told) - calls <= 1
    assert bench.counted("ca_denied") >= 1


def test_what_cannot_be_cured_by_trying_is_tried_rarely(bench: Bench) -> None:
    bench.authority.fails = DENIED
    bench.run(3600)
    assert 12 <= len(bench.times) <= 25


def test_a_code_is_logged_once(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.authority.fails = AWAY
    with caplog.at_level("INFO", "nodeagent.trust"):
        bench.run(300)
        bench.authority.fails = DENIED
        bench.run(1200)
        bench.authority.fails = None
        bench.run(2400)
    assert [r.getMessage() for r in caplog.records].count("the authority does not tell the trust bundle") == 2
    assert [r.getMessage() for r in caplog.records].count("the authority tells the trust bundle again") == 1


def test_whatever_happens_in_a_call_the_next_is_made(bench: Bench) -> None:
    bench.authority.fails = RuntimeError("surprise")
    bench.run(10)
    assert bench.counted("trust_unexpected") >= 2


@pytest.mark.parametrize(
    ("asked", "least", "most"), [(0.0, 1.0, 1.0), (1e9, 300.0, 300.0), (10.0, 9.0, 10.0)]
)
def test_the_pace_of_the_authority_is_bounded(bench: Bench, asked: float, least: float, most: float) -> None:
    quiet(bench)
    bench.authority.poll_after = asked
    bench.run(bench.seconds + 1000)
    gaps = [b - a for a, b in zip(bench.times[1:], bench.times[2:], strict=False)]
    assert all(least - 0.02 <= gap <= most + 0.02 for gap in gaps)


def test_gauges_and_the_status_page(bench: Bench) -> None:
    quiet(bench)
    bench.standing = Standing(workloads=2, pending=1, refused=1, waiting_for=("demo/w0",), outdated=2)
    bench.seconds += 7
    bench.sync.refresh()
    value = bench.metrics.registry.get_sample_value
    assert value("gatehouse_agent_bundle_generation") == 1
    assert value("gatehouse_agent_bundle_pending_workloads") == 1
    assert value("gatehouse_agent_outdated_workloads") == 2
    age = value("gatehouse_agent_trust_sync_age_seconds")
    assert age is not None
    assert 7 <= age <= 70
    view = bench.sync.view()
    assert (view["generation"], view["pending"], view["refused"], view["code"]) == (1, 1, 1, "")
    assert view["waiting_for"] == ["demo/w0"]
    bench.authority.fails = DENIED
    bench.run(bench.seconds + 61)
    assert bench.sync.view()["code"] == "ca_denied"
