"""Wall-clock time as an injected dependency.

Pure code takes `now` as an argument and does not import this module; shells hold a `Clock`.
Certificates live on the wall clock, so deadlines are compared on it at every tick and never slept
for in one piece (a suspended machine must notice on wake).
"""

from __future__ import annotations

import datetime as dt
from typing import Protocol


class Clock(Protocol):
    """Source of the current time."""

    def now(self) -> dt.datetime:
        """Current time, timezone-aware, in UTC."""
        ...


class SystemClock:
    """The machine's wall clock."""

    def now(self) -> dt.datetime:
        """Current time in UTC."""
        return dt.datetime.now(dt.UTC)
