"""A clock that stands still until a test moves it."""

from __future__ import annotations

import asyncio
import datetime as dt
import heapq
import itertools

EPOCH = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)


class FakeClock:
    """Implements `mesh.clock.Clock`, and a `sleep` that ends when the time has been moved far enough.

    For asyncio code that takes a sleeper: `await clock.armed(1)` returns when one task sleeps, so that a
    test never advances before the timer exists.
    """

    def __init__(self, start: dt.datetime = EPOCH) -> None:
        self._now = start
        self._sleepers: list[tuple[dt.datetime, int, asyncio.Future[None]]] = []
        self._order = itertools.count()
        self._changed = asyncio.Condition()

    def now(self) -> dt.datetime:
        return self._now

    def advance(self, by: dt.timedelta | float) -> dt.datetime:
        """Move forward (or back, as a wall clock may), by seconds or a timedelta; wakes who is due."""
        self._now += by if isinstance(by, dt.timedelta) else dt.timedelta(seconds=by)
        while self._sleepers and self._sleepers[0][0] <= self._now:
            _, _, future = heapq.heappop(self._sleepers)
            if not future.done():
                future.set_result(None)
        return self._now

    def set(self, to: dt.datetime) -> None:
        self.advance(to - self._now)

    def pending(self) -> tuple[float, ...]:
        """Seconds until each sleeper is due, soonest first."""
        live = sorted(due for due, _, future in self._sleepers if not future.done())
        return tuple((due - self._now).total_seconds() for due in live)

    async def sleep(self, seconds: float) -> None:
        """Like `asyncio.sleep`, on this clock."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        future = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._now + dt.timedelta(seconds=seconds), next(self._order), future))
        async with self._changed:
            self._changed.notify_all()
        await future

    async def armed(self, count: int = 1, *, deadline: float = 30.0) -> tuple[float, ...]:
        """Wait (real time, at most `deadline` seconds) until `count` tasks sleep; see `pending`."""
        async with asyncio.timeout(deadline), self._changed:
            await self._changed.wait_for(lambda: len(self.pending()) >= count)
        return self.pending()
