"""Rotation maths d.1, d.3 and d.4: invariants as laws."""

from __future__ import annotations

import datetime as dt
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import Category
from nodeagent.core import schedule
from nodeagent.core.schedule import BackOff, clock_jumped, plan_renewal, spread_after_jump

T0 = dt.datetime(2026, 11, 20, 12, 0, tzinfo=dt.UTC)
SECOND = dt.timedelta(seconds=1)
MINUTE = dt.timedelta(minutes=1)
HOUR = dt.timedelta(hours=1)

lives = st.integers(min_value=1, max_value=48 * 3600).map(lambda s: dt.timedelta(seconds=s))
skews = st.integers(min_value=-7200, max_value=7200).map(lambda s: dt.timedelta(seconds=s))
rngs = st.integers().map(random.Random)


def plan(life: dt.timedelta, *, issued: dt.timedelta = schedule.BACKDATE, seed: int = 1, **more: float):
    return plan_renewal(
        not_before=T0, not_after=T0 + life, issued_at=T0 + issued, rng=random.Random(seed), **more
    )


@given(life=lives, skew=skews, rng=rngs)
def test_never_renews_before_the_certificate_was_issued(life, skew, rng) -> None:
    issued = T0 + skew
    assert plan_renewal(not_before=T0, not_after=T0 + life, issued_at=issued, rng=rng).renew_at >= issued


@given(life=lives.filter(lambda x: x >= schedule.SHORT_LIFE), rng=rngs)
def test_leaves_time_for_retries_before_expiry(life, rng) -> None:
    made = plan_renewal(not_before=T0, not_after=T0 + life, issued_at=T0 + 2 * MINUTE, rng=rng)
    assert made.renew_at <= made.not_after - max(5 * MINUTE, life * 0.10)


@given(
    life=lives.filter(lambda x: x < schedule.SHORT_LIFE),
    backdate=st.integers(0, 120).map(lambda s: dt.timedelta(seconds=s)),
    rng=rngs,
)
def test_short_lives_renew_at_exactly_half_of_the_usable_life(life, backdate, rng) -> None:
    made = plan_renewal(not_before=T0, not_after=T0 + life, issued_at=T0 + backdate, rng=rng)
    taken = min(backdate, life)
    half = T0 + taken + (life - taken) / 2
    # A certificate that arrives past its half (or its end) is renewed as soon as the floor allows.
    assert made.renew_at == max(half, T0 + backdate + min(schedule.FLOOR, (life - taken) / 20))
    assert made.ratio == schedule.RATIO


@given(life=lives, skew=skews, rng=rngs, ratio=st.floats(-3, 3), jitter=st.floats(0, 1))
def test_the_ratio_stays_inside_the_life_whatever_is_configured(life, skew, rng, ratio, jitter) -> None:
    made = plan_renewal(
        not_before=T0,
        not_after=T0 + life,
        issued_at=T0 + skew,
        rng=rng,
        ratio=ratio,
        jitter=jitter,
    )
    assert 0.0 < made.ratio < 1.0
    assert made.clamped == (life >= schedule.SHORT_LIFE and not 0.0 < ratio < 1.0)


@given(life=lives, skew=skews, rng=rngs)
def test_a_floor_stands_between_a_certificate_and_its_successor(life, skew, rng) -> None:
    issued = T0 + skew
    made = plan_renewal(not_before=T0, not_after=T0 + life, issued_at=issued, rng=rng)
    assert made.renew_at - issued >= min(schedule.FLOOR, made.usable / 20)


@given(life=lives.filter(lambda x: x >= HOUR), rng=rngs)
def test_a_wrong_clock_moves_the_plan_by_the_backdating_at_most(life, rng) -> None:
    seed = rng.getrandbits(32)
    behind = plan_renewal(not_before=T0, not_after=T0 + life, issued_at=T0 - HOUR, rng=random.Random(seed))
    right = plan_renewal(
        not_before=T0, not_after=T0 + life, issued_at=T0 + 2 * MINUTE, rng=random.Random(seed)
    )
    assert abs(right.renew_at - behind.renew_at) <= schedule.BACKDATE


def test_draws_are_spread_over_the_jitter_window() -> None:
    ratios = [plan(24 * HOUR, seed=n).ratio for n in range(400)]
    assert min(ratios) < 0.42
    assert max(ratios) > 0.58
    assert all(0.4 <= r <= 0.6 for r in ratios)


def test_equal_leaves_of_one_restart_do_not_renew_together() -> None:
    rng = random.Random(7)
    times = {
        plan_renewal(not_before=T0, not_after=T0 + 24 * HOUR, issued_at=T0, rng=rng).renew_at
        for _ in range(100)
    }
    assert len(times) == 100


def test_due_expired_and_endangered_follow_the_wall_clock() -> None:
    made = plan(24 * HOUR)
    assert not made.due(made.renew_at - SECOND)
    assert made.due(made.renew_at)
    assert not made.expired(made.not_after)
    assert made.expired(made.not_after + SECOND)
    assert not made.endangered(T0 + 12 * HOUR)
    assert made.endangered(T0 + 19 * HOUR)
    assert made.remaining(T0) == 24 * HOUR


# --- back-off (d.3) -------------------------------------------------------------------------------

categories = st.sampled_from(list(Category))


def backoff_after(*failures: Category) -> BackOff:
    state = BackOff()
    for category in failures:
        state = state.after(category)
    return state


@given(n=st.integers(1, 60), rng=rngs, life=lives, share=st.floats(0, 1), none=st.booleans())
def test_back_off_stays_under_its_caps(n, rng, life, share, none) -> None:
    state = backoff_after(*[Category.UNAVAILABLE] * n)
    usable, remaining = (None, None) if none else (life, life * share)
    delay = state.delay(usable=usable, remaining=remaining, rng=rng)
    assert 0 <= delay <= 0.5 * 2 ** (n - 1)
    cap = 60 if remaining is not None and remaining > 0.25 * life else 15
    assert delay <= cap


@pytest.mark.parametrize(
    ("share", "cap"), [pytest.param(0.9, 60, id="plenty"), pytest.param(0.2, 15, id="endangered")]
)
def test_back_off_reaches_its_cap(share: float, cap: float) -> None:
    state = backoff_after(*[Category.UNAVAILABLE] * 20)
    rng = random.Random(3)
    drawn = [state.delay(usable=24 * HOUR, remaining=24 * HOUR * share, rng=rng) for _ in range(300)]
    assert cap * 0.9 < max(drawn) <= cap
    assert min(drawn) < cap * 0.1  # full jitter starts at zero


def test_back_off_of_short_lives_is_scaled_down_to_a_second() -> None:
    state = backoff_after(*[Category.UNAVAILABLE] * 20)
    rng = random.Random(3)
    drawn = [state.delay(usable=20 * SECOND, remaining=18 * SECOND, rng=rng) for _ in range(300)]
    assert 4.5 < max(drawn) <= 5
    drawn = [state.delay(usable=12 * SECOND, remaining=-SECOND, rng=rng) for _ in range(300)]
    assert 0.9 < max(drawn) <= 1


@pytest.mark.parametrize(
    "failures",
    [
        pytest.param([Category.INVALID_ARGUMENT], id="invalid-argument"),
        pytest.param([Category.PERMISSION_DENIED], id="permission-denied"),
        pytest.param([Category.NOT_FOUND], id="G-18-not-found"),
        pytest.param([Category.UNAUTHENTICATED] * 3, id="unauthenticated-x3"),
    ],
)
def test_permanent_codes_slow_down_to_five_minutes(failures: list[Category]) -> None:
    state = backoff_after(*failures)
    assert state.permanent
    assert 270 <= state.delay(usable=24 * HOUR, remaining=HOUR, rng=random.Random(1)) <= 300


def test_two_refusals_or_a_break_between_them_are_not_permanent() -> None:
    unauthenticated = Category.UNAUTHENTICATED
    assert not backoff_after(unauthenticated, unauthenticated).permanent
    assert not backoff_after(
        unauthenticated, unauthenticated, Category.UNAVAILABLE, unauthenticated
    ).permanent


@given(before=st.lists(categories, max_size=8))
def test_a_transient_failure_ends_the_permanent_state(before) -> None:
    state = backoff_after(*before, Category.UNAVAILABLE)
    assert not state.permanent
    assert state.failures == len(before) + 1


# --- clock jumps (d.4) ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wall", "monotonic", "jumped"),
    [
        pytest.param(15.0, 15.0, False, id="tick"),
        pytest.param(18.0, 15.0, False, id="slewed"),
        pytest.param(3600.0, 15.0, True, id="forward-or-suspend"),
        pytest.param(-600.0, 15.0, True, id="backward"),
    ],
)
def test_jumps_are_told_from_ticks(wall: float, monotonic: float, jumped: bool) -> None:
    assert clock_jumped(wall_elapsed=wall, monotonic_elapsed=monotonic) is jumped


@given(remaining=st.integers(-86400, 86400), rng=rngs)
def test_renewals_after_a_jump_are_spread_but_never_too_late(remaining, rng) -> None:
    wait = spread_after_jump(dt.timedelta(seconds=remaining), rng)
    assert 0 <= wait <= min(60, max(remaining, 0) / 4)
