"""The rotation state machine: what is due when, whatever the clocks do (d.4)."""

from __future__ import annotations

import datetime as dt
import random

import pytest

from mesh.errors import Category
from nodeagent.core.rotation import Priority, Rotation
from nodeagent.core.schedule import TICK

T0 = dt.datetime(2026, 11, 20, 12, 0, tzinfo=dt.UTC)
HOUR = dt.timedelta(hours=1)
MINUTE = dt.timedelta(minutes=1)


class Bench:
    """A rotation with its two clocks."""

    def __init__(self, life: dt.timedelta = 24 * HOUR, **options: float) -> None:
        self.rotation = Rotation(rng=random.Random(1), **options)
        self.now, self.monotonic = T0, 1000.0
        self.life = life

    def poll(self):
        return self.rotation.poll(self.now, self.monotonic)

    def pass_time(self, seconds: float) -> None:
        self.now += dt.timedelta(seconds=seconds)
        self.monotonic += seconds

    def issue(self) -> None:
        self.rotation.succeeded(
            not_before=self.now - 2 * MINUTE, not_after=self.now + self.life, now=self.now
        )

    def fail(self, category: Category = Category.UNAVAILABLE) -> float:
        return self.rotation.failed(category, self.now, self.monotonic)

    def to_renewal(self) -> None:
        assert self.rotation.plan is not None
        self.pass_time((self.rotation.plan.renew_at - self.now).total_seconds())


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_the_first_certificate_is_wanted_at_once(bench: Bench) -> None:
    step = bench.poll()
    assert (step.attempt, step.servable) == (Priority.FIRST, False)
    assert bench.rotation.plan is None


def test_a_fresh_certificate_is_left_alone_a_tick_at_a_time(bench: Bench) -> None:
    bench.issue()
    step = bench.poll()
    assert (step.attempt, step.wait, step.servable) == (None, TICK, True)


def test_at_its_time_it_is_renewed_as_routine(bench: Bench) -> None:
    bench.issue()
    bench.to_renewal()
    step = bench.poll()
    assert (step.attempt, step.servable) == (Priority.ROUTINE, True)


def test_the_last_wait_ends_at_the_renewal_and_not_a_tick_later(bench: Bench) -> None:
    bench.issue()
    assert bench.rotation.plan is not None
    bench.to_renewal()
    bench.pass_time(-3.0)
    assert bench.poll().wait == pytest.approx(3.0)


def test_less_than_a_quarter_left_is_expiring(bench: Bench) -> None:
    bench.issue()
    bench.to_renewal()
    bench.poll()
    bench.fail()
    for _ in range(6 * 240):
        bench.pass_time(TICK)
        step = bench.poll()
    bench.pass_time(2 * 3600)
    step = bench.rotation.poll(bench.now, bench.monotonic)
    assert (step.attempt, step.servable) == (Priority.EXPIRING, True)


def test_d4_ca_down_past_expiry_nothing_is_servable_and_tries_go_on(bench: Bench) -> None:
    bench.issue()
    bench.pass_time(24 * 3600 + 1)
    step = bench.poll()
    assert (step.attempt, step.servable) == (Priority.FIRST, False)
    wait = bench.fail()
    assert wait <= 15
    bench.pass_time(wait)
    assert bench.poll().attempt is Priority.FIRST
    bench.issue()
    assert bench.poll().servable


def test_after_a_failure_it_waits_by_the_monotonic_clock(bench: Bench) -> None:
    bench.poll()
    for _ in range(6):
        wait = bench.fail()
    bench.now -= HOUR  # a clock set back does not prolong the wait
    bench.monotonic += wait
    assert bench.poll().attempt is Priority.FIRST


def test_a_wait_is_never_longer_than_a_tick(bench: Bench) -> None:
    bench.poll()
    assert bench.fail(Category.PERMISSION_DENIED) > 200
    assert bench.poll().wait == TICK


def test_retry_now_ends_the_wait(bench: Bench) -> None:
    bench.poll()
    bench.fail(Category.PERMISSION_DENIED)
    assert bench.poll().attempt is None
    bench.rotation.retry_now()
    assert bench.poll().attempt is Priority.FIRST
    assert bench.rotation.backoff.permanent


def test_success_forgets_the_failures(bench: Bench) -> None:
    for _ in range(5):
        bench.fail()
    bench.issue()
    assert bench.rotation.backoff.failures == 0


def test_d4_clock_jump_forward_spreads_renewals() -> None:
    waits = []
    for seed in range(40):
        bench = Bench()
        bench.rotation = Rotation(rng=random.Random(seed))
        bench.issue()
        bench.poll()
        bench.now += 20 * HOUR  # stepped; the monotonic clock went on by one tick
        bench.monotonic += TICK
        step = bench.poll()
        assert step.jumped
        assert step.servable
        waits.append(step.wait if step.attempt is None else 0.0)
        bench.monotonic += 60
        bench.now += dt.timedelta(seconds=60)
        assert bench.poll().attempt is not None
    # Most wait longer than a tick, and look at the clock in between.
    assert len(set(waits)) >= 8


def test_d4_suspend_past_expiry_renews_at_once(bench: Bench) -> None:
    bench.issue()
    bench.poll()
    bench.now += 48 * HOUR
    step = bench.poll()
    assert step.jumped
    assert (step.attempt, step.servable) == (Priority.FIRST, False)


def test_d4_a_jump_while_waiting_to_retry_shortens_the_wait(bench: Bench) -> None:
    bench.issue()
    bench.to_renewal()
    bench.poll()
    bench.fail(Category.PERMISSION_DENIED)
    bench.poll()
    bench.now += 2 * HOUR
    bench.poll()
    bench.pass_time(60)
    assert bench.poll().attempt is not None


def test_d4_a_jump_while_an_attempt_runs_delays_nothing(bench: Bench) -> None:
    """A machine that slept during a renewal: what was due before is still wanted at once."""
    bench.issue()
    bench.to_renewal()
    assert bench.poll().attempt is Priority.ROUTINE
    bench.now += 2 * HOUR
    step = bench.poll()
    assert step.jumped
    assert step.attempt is Priority.ROUTINE


def test_d4_clock_jump_back_keeps_the_certificate(bench: Bench) -> None:
    bench.issue()
    bench.poll()
    bench.now -= 5 * HOUR  # NotBefore lies in the future now
    step = bench.poll()
    assert step.jumped
    assert (step.attempt, step.servable) == (None, True)


def test_a_clock_that_was_wrong_for_a_while_makes_the_certificate_servable_again(bench: Bench) -> None:
    bench.issue()
    bench.poll()
    bench.now += 30 * HOUR
    assert not bench.poll().servable
    bench.now -= 30 * HOUR
    assert bench.poll().servable


def test_the_configured_ratio_is_used() -> None:
    bench = Bench(ratio=0.8, jitter=0.0)
    bench.issue()
    assert bench.rotation.plan is not None
    assert bench.rotation.plan.renew_at - bench.now == dt.timedelta(hours=24) * 0.8


# --- renewed ahead of time ----------------------------------------------------------------------------


def hurried(bench: Bench, why: object = "taint", within: float = 600.0) -> float:
    """Seconds until the attempt, which must come within that time."""
    bench.rotation.hurry(why, within, bench.monotonic)
    begin = bench.monotonic
    while bench.poll().attempt is None:
        assert bench.monotonic - begin <= within
        bench.pass_time(max(bench.poll().wait, 0.001))
    return bench.monotonic - begin


def test_a_certificate_is_renewed_within_the_time_that_was_given(bench: Bench) -> None:
    bench.issue()
    assert bench.poll().attempt is None
    assert 0 < hurried(bench) <= 600
    assert bench.poll().attempt is Priority.ROUTINE


def test_moments_are_spread_over_the_whole_time() -> None:
    drawn = []
    for seed in range(300):
        bench = Bench()
        bench.rotation = Rotation(rng=random.Random(seed))
        bench.issue()
        drawn.append(hurried(bench))
    assert min(drawn) < 30
    assert max(drawn) > 570
    assert 270 < sum(drawn) / len(drawn) < 330


def test_the_moment_is_drawn_once_for_each_reason(bench: Bench) -> None:
    bench.issue()
    assert bench.rotation.hurry("one", 600.0, bench.monotonic)
    for _ in range(50):
        bench.pass_time(1)
        assert not bench.rotation.hurry("one", 600.0, bench.monotonic)
    assert bench.rotation.hurry("two", 600.0, bench.monotonic)


def test_a_shorter_time_draws_anew(bench: Bench) -> None:
    bench.issue()
    bench.rotation.hurry("one", 1e6, bench.monotonic)
    assert bench.rotation.hurry("one", 1.0, bench.monotonic)
    bench.pass_time(1)
    assert bench.poll().attempt is Priority.ROUTINE


def test_a_new_certificate_ends_the_hurry(bench: Bench) -> None:
    bench.issue()
    hurried(bench)
    bench.issue()
    assert bench.poll().attempt is None
    assert bench.poll().wait == TICK


def test_an_attempt_that_fails_waits_as_ever(bench: Bench) -> None:
    bench.issue()
    hurried(bench)
    delay = bench.fail()
    if delay > 0.001:
        assert bench.poll().attempt is None
    bench.pass_time(delay)
    assert bench.poll().attempt is Priority.ROUTINE
