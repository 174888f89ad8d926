"""Limits: rates, fairness and bounded memory, on a clock that the test moves (F-28, G-17)."""

from __future__ import annotations

import contextlib
import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ca.limits import MAX_RETRY_AFTER, LimitCode, Limiter, LimitError, Limits
from mesh.errors import Category
from tests.fakes.ca_factory import NOW


def at(seconds: float) -> dt.datetime:
    return NOW + dt.timedelta(seconds=seconds)


def ask(limiter: Limiter, caller: str, seconds: float = 0) -> LimitError | None:
    try:
        with limiter.admit(caller, at(seconds)):
            return None
    except LimitError as e:
        return e


def test_burst_then_rate() -> None:
    limiter = Limiter(Limits(caller_rate=2, caller_burst=3))
    assert [ask(limiter, "a") for _ in range(3)] == [None] * 3
    refused = ask(limiter, "a")
    assert refused is not None
    assert (refused.code, refused.category) == (LimitCode.CALLER_RATE, Category.RESOURCE_EXHAUSTED)
    assert "more than 2 requests per second" in refused.public
    assert refused.retry_after == dt.timedelta(seconds=0.5)
    assert ask(limiter, "a", 0.5) is None
    assert ask(limiter, "a", 0.5) is not None
    assert [ask(limiter, "a", 60) for _ in range(3)] == [None] * 3
    assert ask(limiter, "a", 60) is not None, "a pause gives a full bucket, not more"


def test_others_are_not_affected() -> None:
    limiter = Limiter(Limits(caller_rate=1, caller_burst=5))
    found = [ask(limiter, "greedy") for _ in range(1000)]
    assert found.count(None) == 5
    assert all(ask(limiter, f"p{n}") is None for n in range(100))


def test_requests_of_one_caller_at_once() -> None:
    limiter = Limiter(Limits(caller_in_flight=2))
    with limiter.admit("a", NOW), limiter.admit("a", NOW):
        refused = ask(limiter, "a")
        assert refused is not None
        assert refused.code is LimitCode.CALLER_IN_FLIGHT
        assert "more than 2 requests of this caller at once" in refused.public
        assert ask(limiter, "b") is None
        assert limiter.in_flight == 2
    assert ask(limiter, "a") is None
    assert limiter.in_flight == 0


def test_requests_of_all_callers_at_once() -> None:
    limiter = Limiter(Limits(total_in_flight=3))
    with contextlib.ExitStack() as stack:
        for n in range(3):
            stack.enter_context(limiter.admit(f"p{n}", NOW))
        refused = ask(limiter, "other")
        assert refused is not None
        assert refused.code is LimitCode.TOTAL_IN_FLIGHT
        assert "busy" in refused.public
    assert ask(limiter, "other") is None


def test_a_place_is_free_after_an_error() -> None:
    limiter = Limiter(Limits(caller_in_flight=1))
    with pytest.raises(RuntimeError, match="x"), limiter.admit("a", NOW):
        raise RuntimeError("x")
    assert limiter.in_flight == 0
    assert ask(limiter, "a") is None


def test_a_refusal_costs_no_token() -> None:
    limiter = Limiter(Limits(caller_rate=1, caller_burst=2, total_in_flight=1))
    with limiter.admit("other", NOW):
        assert all(ask(limiter, "a") is not None for _ in range(10))
    assert ask(limiter, "a") is None


def test_memory_is_bounded_and_the_least_recent_is_forgotten() -> None:
    limiter = Limiter(Limits(caller_rate=0.001, caller_burst=1, callers=3))
    for name in "abc":
        assert ask(limiter, name) is None
    assert ask(limiter, "a", 1) is not None, "looked at, so it is the most recent now"
    assert ask(limiter, "d", 2) is None
    assert limiter.callers == 3
    assert ask(limiter, "b", 3) is None, "forgotten: a full bucket"
    assert ask(limiter, "a", 3) is not None


def test_a_caller_with_requests_in_flight_is_not_forgotten() -> None:
    limiter = Limiter(Limits(caller_in_flight=1, callers=1))
    with limiter.admit("a", NOW):
        assert ask(limiter, "b") is None
        assert ask(limiter, "a") is not None


def test_a_clock_that_is_set_back_takes_nothing_away() -> None:
    limiter = Limiter(Limits(caller_rate=1, caller_burst=2))
    assert ask(limiter, "a", 100) is None
    assert ask(limiter, "a", -100) is None
    assert ask(limiter, "a", -100) is not None
    assert ask(limiter, "a", -99) is None


@pytest.mark.parametrize(("rate", "expected"), [(1e6, 0.05), (0.01, 30)])
def test_retry_after_is_bounded(rate: float, expected: float) -> None:
    error = LimitError(LimitCode.CALLER_RATE, "x", dt.timedelta(seconds=1 / rate))
    assert error.retry_after == dt.timedelta(seconds=expected) <= MAX_RETRY_AFTER


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.floats(0, 5)), max_size=200))
def test_law_no_caller_gets_more_than_burst_and_rate(events: list[tuple[str, float]]) -> None:
    limits = Limits(caller_rate=2, caller_burst=4, callers=100)
    limiter, now = Limiter(limits), 0.0
    granted: dict[str, int] = {}
    for caller, pause in events:
        now += pause / 5
        if ask(limiter, caller, now) is None:
            granted[caller] = granted.get(caller, 0) + 1
    assert all(n <= limits.caller_burst + limits.caller_rate * now + 0.01 for n in granted.values())
    assert limiter.in_flight == 0
