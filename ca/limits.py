"""Load shedding: how much the authority does at once, and how much of it for one caller.

One pod that asks a thousand times must not keep the others waiting (F-28), and a cluster that starts
all at once must be told to come back instead of piling up (G-17). Pure logic: time is an argument; the
lock only makes the counters consistent between threads. Memory is bounded: callers that were not seen
for long are forgotten, which gives them a full bucket again.
"""

from __future__ import annotations

import datetime as dt
import threading
from collections import OrderedDict
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final

from mesh.errors import Category, Code, MeshError

MAX_RETRY_AFTER: Final = dt.timedelta(seconds=30)


class LimitCode(Code):
    """Which limit refused a request."""

    CALLER_RATE = "limit_caller_rate"
    CALLER_IN_FLIGHT = "limit_caller_in_flight"
    TOTAL_IN_FLIGHT = "limit_total_in_flight"
    QUEUE = "limit_queue"


class LimitError(MeshError):
    """Too much at once.

    Attributes:
        retry_after: the earliest moment when trying again makes sense.
    """

    def __init__(self, code: LimitCode, public: str, retry_after: dt.timedelta) -> None:
        super().__init__(code, public, category=Category.RESOURCE_EXHAUSTED)
        self.retry_after = min(max(retry_after, dt.timedelta(milliseconds=50)), MAX_RETRY_AFTER)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much is allowed.

    Attributes:
        caller_rate: requests per second of one caller, in the long run.
        caller_burst: requests that a caller may send at once after a pause.
        caller_in_flight: requests of one caller that are worked on at the same time.
        total_in_flight: requests that are worked on at the same time.
        callers: callers that are remembered; about 200 bytes each.
    """

    caller_rate: float = 2.0
    caller_burst: int = 20
    caller_in_flight: int = 4
    total_in_flight: int = 64
    callers: int = 20_000


class _Bucket:
    __slots__ = ("in_flight", "since", "tokens")

    def __init__(self, tokens: float, since: float) -> None:
        self.tokens = tokens
        self.since = since
        self.in_flight = 0


class _Place:
    """A place among those that are worked on. A class and no generator: one is made for each request."""

    __slots__ = ("_bucket", "_caller", "_limiter", "_now")

    def __init__(self, limiter: Limiter, caller: str, now: float) -> None:
        self._limiter = limiter
        self._caller = caller
        self._now = now

    def __enter__(self) -> None:
        self._bucket = self._limiter._enter(self._caller, self._now)  # noqa: SLF001 - one module

    def __exit__(self, *_: object) -> None:
        self._limiter._leave(self._bucket)  # noqa: SLF001 - one module


class Limiter:
    """Admits requests or refuses them with the time to wait."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()  # least recently used first
        self._in_flight = 0

    @property
    def in_flight(self) -> int:
        """Requests that are worked on now."""
        return self._in_flight

    @property
    def callers(self) -> int:
        """Callers that are remembered now."""
        return len(self._buckets)

    def admit(self, caller: str, now: dt.datetime) -> AbstractContextManager[None]:
        """Hold a place while a request of `caller` is worked on.

        Raises:
            LimitError: on entering: no place, with the time to wait.
        """
        return _Place(self, caller, now.timestamp())

    def _leave(self, bucket: _Bucket) -> None:
        with self._lock:
            bucket.in_flight -= 1
            self._in_flight -= 1

    def _enter(self, caller: str, now: float) -> _Bucket:
        limits = self._limits
        with self._lock:
            bucket = self._bucket(caller, now)
            if bucket.in_flight >= limits.caller_in_flight:
                raise LimitError(
                    LimitCode.CALLER_IN_FLIGHT,
                    f"more than {limits.caller_in_flight} requests of this caller at once; wait for an answer"
                    " before you ask again",
                    dt.timedelta(seconds=1 / limits.caller_rate),
                )
            if bucket.tokens < 1:
                raise LimitError(
                    LimitCode.CALLER_RATE,
                    f"more than {limits.caller_rate:g} requests per second of this caller; ask less often",
                    dt.timedelta(seconds=(1 - bucket.tokens) / limits.caller_rate),
                )
            if self._in_flight >= limits.total_in_flight:
                raise LimitError(
                    LimitCode.TOTAL_IN_FLIGHT,
                    "the authority is busy; try again later",
                    dt.timedelta(seconds=1),
                )
            bucket.tokens -= 1
            bucket.in_flight += 1
            self._in_flight += 1
            return bucket

    def _bucket(self, caller: str, now: float) -> _Bucket:
        limits = self._limits
        bucket = self._buckets.get(caller)
        if bucket is None:
            self._forget()
            bucket = self._buckets[caller] = _Bucket(float(limits.caller_burst), now)
            return bucket
        self._buckets.move_to_end(caller)
        # A clock that was set back must not take tokens away.
        bucket.tokens = min(
            limits.caller_burst, bucket.tokens + max(0.0, now - bucket.since) * limits.caller_rate
        )
        bucket.since = now
        return bucket

    def _forget(self) -> None:
        """Make room for one more. A bucket with requests in flight stays, so these may come on top."""
        if len(self._buckets) < self._limits.callers:
            return
        oldest = next(iter(self._buckets))
        if self._buckets[oldest].in_flight:
            self._buckets.move_to_end(oldest)
        else:
            del self._buckets[oldest]
