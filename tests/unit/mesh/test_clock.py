"""The clock and its stand-in keep the same contract."""

from __future__ import annotations

import asyncio
import datetime as dt

import pytest

from mesh.clock import Clock, SystemClock
from tests.fakes.clock import EPOCH, FakeClock


@pytest.mark.parametrize("clock", [SystemClock(), FakeClock()], ids=["system", "fake"])
def test_now_is_aware_and_in_utc(clock: Clock) -> None:
    assert clock.now().tzinfo is dt.UTC
    assert clock.now() <= clock.now()


def test_the_fake_stands_still_until_it_is_moved() -> None:
    clock = FakeClock()
    assert clock.now() == clock.now() == EPOCH
    assert clock.advance(1.5) == EPOCH + dt.timedelta(seconds=1.5)
    clock.set(EPOCH - dt.timedelta(hours=1))
    assert clock.now() == EPOCH - dt.timedelta(hours=1)


@pytest.mark.asyncio
async def test_sleepers_wake_in_order_when_they_are_due() -> None:
    clock, woken = FakeClock(), []

    async def sleeper(seconds: float) -> None:
        await clock.sleep(seconds)
        woken.append(seconds)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(sleeper(seconds)) for seconds in (30, 10, 20, 0)]
        assert await clock.armed(3) == (10.0, 20.0, 30.0)
        clock.advance(25)
        assert clock.pending() == (5.0,)
        await asyncio.wait(tasks[1:])
        assert sorted(woken) == [0, 10, 20]
        clock.advance(5)
    assert clock.pending() == ()


@pytest.mark.asyncio
async def test_a_cancelled_sleeper_is_forgotten() -> None:
    clock = FakeClock()
    task = asyncio.ensure_future(clock.sleep(5))
    await clock.armed(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert clock.pending() == ()
    clock.advance(10)


@pytest.mark.asyncio
async def test_waiting_for_a_timer_that_never_comes_ends() -> None:
    with pytest.raises(TimeoutError):
        await FakeClock().armed(1, deadline=0.01)
