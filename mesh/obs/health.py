"""Liveness and readiness with reasons."""

from __future__ import annotations

import threading
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Check:
    """State of one named part.

    Attributes:
        detail: one sentence for people; may be shown to anyone who can reach the health port.
        liveness: a restart of the process is the cure when this check fails.
    """

    name: str
    ok: bool
    detail: str = ""
    liveness: bool = False


@dataclass(frozen=True, slots=True)
class Report:
    """Checks at one moment, sorted by name."""

    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """True when every check is."""
        return all(check.ok for check in self.checks)

    def reasons(self) -> tuple[str, ...]:
        """`name: detail` of each check that fails."""
        return tuple(f"{check.name}: {check.detail or 'not ok'}" for check in self.checks if not check.ok)

    def text(self) -> str:
        """One line per check, as an HTTP body."""
        lines = [
            f"{'ok' if check.ok else 'failed'} {check.name}" + (f": {check.detail}" if check.detail else "")
            for check in self.checks
        ]
        return "\n".join([*lines, "ok" if self.ok else "not ok", ""])


class Health:
    """What the parts of a process say about themselves; safe to use from any thread.

    Args:
        expected: checks that count as failed until they are set, so that a process is not ready
            before all its parts have spoken.
    """

    def __init__(self, *expected: str) -> None:
        self._lock = threading.Lock()
        self._checks = {name: Check(name, ok=False, detail="has not started yet") for name in expected}

    def set(self, name: str, ok: bool, detail: str = "", *, liveness: bool = False) -> None:
        """Record the state of a part.

        Args:
            liveness: count this check for `live` too. Only for states that a restart cures: a CA
                that is away, or a bad policy, is none.
        """
        with self._lock:
            self._checks[name] = Check(name, ok, detail, liveness)

    def forget(self, name: str) -> None:
        """Drop the check of a part that is gone; unknown names are fine."""
        with self._lock:
            self._checks.pop(name, None)

    def live(self) -> Report:
        """Checks whose failure a restart cures; no checks, alive."""
        return Report(tuple(check for check in self.ready().checks if check.liveness))

    def ready(self) -> Report:
        """Every check."""
        with self._lock:
            return Report(tuple(self._checks[name] for name in sorted(self._checks)))
