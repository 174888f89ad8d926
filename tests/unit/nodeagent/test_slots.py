"""A limit whose queue has priorities."""

from __future__ import annotations

import asyncio

import pytest

from nodeagent.slots import PrioritySlots

pytestmark = pytest.mark.asyncio


async def test_who_waits_goes_by_priority_then_by_arrival() -> None:
    slots = PrioritySlots(1)
    order: list[str] = []
    gate = asyncio.Event()

    async def work(name: str, priority: int) -> None:
        async with slots.hold(priority):
            order.append(name)
            await gate.wait()

    async with asyncio.TaskGroup() as tasks:
        for name, priority in (("first", 2), ("late", 2), ("later", 2), ("urgent", 0), ("soon", 1)):
            tasks.create_task(work(name, priority))
            await asyncio.sleep(0)
        assert slots.waiting == 4
        gate.set()
    assert order == ["first", "urgent", "soon", "late", "later"]
    assert slots.waiting == 0


async def test_a_cancelled_waiter_takes_no_slot() -> None:
    slots = PrioritySlots(1)
    async with slots.hold(0):
        waiter = asyncio.ensure_future(_enter(slots))
        await asyncio.sleep(0)
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
        assert slots.waiting == 0
    async with asyncio.timeout(1), slots.hold(0):
        pass


async def test_a_slot_handed_over_in_the_moment_of_cancellation_is_not_lost() -> None:
    slots = PrioritySlots(1)
    async with slots.hold(0):
        waiter = asyncio.ensure_future(_enter(slots))
        await asyncio.sleep(0)
    waiter.cancel()  # after the slot was given, before the waiter ran
    with pytest.raises(asyncio.CancelledError):
        await waiter
    async with asyncio.timeout(1), slots.hold(0):
        pass


async def test_a_failing_holder_gives_its_slot_back() -> None:
    slots = PrioritySlots(1)
    with pytest.raises(ZeroDivisionError):
        async with slots.hold(0):
            raise ZeroDivisionError
    async with asyncio.timeout(1), slots.hold(0):
        pass


async def _enter(slots: PrioritySlots) -> None:
    async with slots.hold(0):
        pass
