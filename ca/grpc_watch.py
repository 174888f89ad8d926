"""No call may keep a thread waiting for ever: what takes too long to send its message is cancelled."""

from __future__ import annotations

import datetime as dt
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final

_WATCH_SECONDS: Final = 0.25


class Watch:
    """Cancels calls that keep a thread waiting for too long; one thread watches all of them.

    Args:
        also: called with the time of `time.monotonic` a few times a second.
    """

    def __init__(self, limit: dt.timedelta, also: Callable[[float], None] = lambda _: None) -> None:
        self._limit = limit.total_seconds()
        self._also = also
        self._waiting: dict[int, tuple[float, Callable[[], object]]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="grpc-watch", daemon=True)

    def start(self) -> None:
        """Start watching."""
        self._thread.start()

    def stop(self) -> None:
        """Stop watching; calls that still wait are cancelled."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self.sweep(float("inf"))

    def guard(self, cancel: Callable[[], object]) -> AbstractContextManager[None]:
        """Have `cancel` called unless the block ends in time."""
        return _Guard(self._waiting, self._limit, cancel)

    def sweep(self, now: float) -> None:
        """Cancel what waits beyond its time."""
        for deadline, cancel in list(self._waiting.values()):
            if now >= deadline:
                cancel()

    def _run(self) -> None:
        while not self._stop.wait(_WATCH_SECONDS):
            now = time.monotonic()
            self.sweep(now)
            self._also(now)


class _Guard:
    """An entry among the calls that wait. A class and no generator: one is made for each request."""

    __slots__ = ("_entry", "_waiting")

    def __init__(
        self,
        waiting: dict[int, tuple[float, Callable[[], object]]],
        limit: float,
        cancel: Callable[[], object],
    ) -> None:
        self._waiting = waiting
        self._entry = (time.monotonic() + limit, cancel)

    def __enter__(self) -> None:
        self._waiting[threading.get_ident()] = self._entry  # a thread waits for one message at a time

    def __exit__(self, *_: object) -> None:
        self._waiting.pop(threading.get_ident(), None)
