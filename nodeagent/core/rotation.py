"""One workload's certificate over time, as a state machine without clock or network.

The shell (`nodeagent.rotator`) asks `poll` what to do, does it, and reports how it went. Renewal times
live on the wall clock, since certificates do; waits after a failure live on the monotonic clock, so
that a wall clock set back cannot prolong them.
"""

from __future__ import annotations

import datetime as dt
import enum
import random
from dataclasses import dataclass

from mesh.errors import Category
from nodeagent.core import schedule
from nodeagent.core.schedule import BackOff, RenewalPlan


class Priority(enum.IntEnum):
    """Who goes first when several workloads want a certificate (G-17); lower is sooner."""

    FIRST = 0  # has none that is valid
    EXPIRING = 1  # less than a quarter of its life left
    ROUTINE = 2


@dataclass(frozen=True, slots=True)
class Step:
    """What to do now.

    Attributes:
        attempt: ask the authority now, with this priority; None = wait.
        wait: seconds to wait when there is nothing to do; at most a tick.
        servable: the certificate in hand may be handed out.
        jumped: the wall clock was stepped, or the machine slept, since the last poll.
    """

    attempt: Priority | None
    wait: float
    servable: bool
    jumped: bool = False


class Rotation:
    """When to ask for a certificate, and whether the one in hand may be used.

    Args:
        rng: source of jitter.
        ratio: share of the usable life after which to renew.
        jitter: half-width of the draw around `ratio`.
    """

    __slots__ = (
        "_backoff",
        "_hurry",
        "_jitter",
        "_last",
        "_plan",
        "_ratio",
        "_retry_at",
        "_rng",
        "_was_due",
    )

    def __init__(
        self, *, rng: random.Random, ratio: float = schedule.RATIO, jitter: float = schedule.JITTER
    ) -> None:
        self._rng = rng
        self._ratio = ratio
        self._jitter = jitter
        self._plan: RenewalPlan | None = None
        self._backoff = BackOff()
        self._retry_at: float | None = None
        self._last: tuple[dt.datetime, float] | None = None
        self._was_due = False
        self._hurry: tuple[object, float] | None = None

    @property
    def plan(self) -> RenewalPlan | None:
        """Times of the last certificate; None before the first."""
        return self._plan

    @property
    def backoff(self) -> BackOff:
        """Failures since the last success."""
        return self._backoff

    def poll(self, now: dt.datetime, monotonic: float) -> Step:
        """What to do at this moment.

        Args:
            now: wall clock, aware.
            monotonic: seconds of a clock that never goes back.
        """
        jumped = self._observe(now, monotonic)
        servable = self._plan is not None and not self._plan.expired(now)
        due = self._due(now, monotonic)
        if jumped:
            self._after_jump(now, monotonic, due=due)
        self._was_due = due
        if not due:
            return Step(None, self._until_due(now, monotonic), servable, jumped)
        if self._retry_at is not None and monotonic < self._retry_at:
            return Step(None, min(schedule.TICK, self._retry_at - monotonic), servable, jumped)
        return Step(self._priority(now), 0.0, servable, jumped)

    def succeeded(self, *, not_before: dt.datetime, not_after: dt.datetime, now: dt.datetime) -> RenewalPlan:
        """A certificate arrived and was accepted; returns when it will be renewed."""
        self._plan = schedule.plan_renewal(
            not_before=not_before,
            not_after=not_after,
            issued_at=now,
            rng=self._rng,
            ratio=self._ratio,
            jitter=self._jitter,
        )
        self._backoff = BackOff()
        self._retry_at = None
        self._was_due = False
        self._hurry = None
        return self._plan

    def failed(self, category: Category, now: dt.datetime, monotonic: float) -> float:
        """An attempt failed; returns the seconds until the next one."""
        self._backoff = self._backoff.after(category)
        plan = self._plan
        delay = self._backoff.delay(
            usable=None if plan is None else plan.usable,
            remaining=None if plan is None else plan.remaining(now),
            rng=self._rng,
        )
        self._retry_at = monotonic + delay
        return delay

    def retry_now(self) -> None:
        """Something changed that the last failure may have been about (a new token): do not wait."""
        self._retry_at = None

    def hurry(self, why: object, within: float, monotonic: float) -> bool:
        """Renew ahead of time, at a moment drawn uniformly from the next `within` seconds.

        Drawn once for each `why`; again only when what was drawn lies beyond a time that has become shorter.
        Forgotten when a certificate comes.

        Returns:
            True when a moment was drawn.
        """
        if self._hurry is not None and self._hurry[0] == why and self._hurry[1] <= monotonic + within:
            return False
        self._hurry = (why, monotonic + self._rng.uniform(0.0, within))
        return True

    def _observe(self, now: dt.datetime, monotonic: float) -> bool:
        last, self._last = self._last, (now, monotonic)
        return last is not None and schedule.clock_jumped(
            wall_elapsed=(now - last[0]).total_seconds(), monotonic_elapsed=monotonic - last[1]
        )

    def _after_jump(self, now: dt.datetime, monotonic: float, *, due: bool) -> None:
        if self._plan is None or not due:
            return
        at = monotonic + schedule.spread_after_jump(self._plan.remaining(now), self._rng)
        if not self._was_due:
            self._retry_at = at
        elif self._retry_at is not None:
            self._retry_at = min(self._retry_at, at)

    def _due(self, now: dt.datetime, monotonic: float) -> bool:
        if self._plan is None or self._plan.due(now):
            return True
        return self._hurry is not None and monotonic >= self._hurry[1]

    def _until_due(self, now: dt.datetime, monotonic: float) -> float:
        if self._plan is None:
            return 0.0
        wait = (self._plan.renew_at - now).total_seconds()
        if self._hurry is not None:
            wait = min(wait, self._hurry[1] - monotonic)
        return min(schedule.TICK, max(wait, 0.0))

    def _priority(self, now: dt.datetime) -> Priority:
        if self._plan is None or self._plan.expired(now):
            return Priority.FIRST
        return Priority.EXPIRING if self._plan.endangered(now) else Priority.ROUTINE
