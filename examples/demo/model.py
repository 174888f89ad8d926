"""What a check is: a number, a title, and rows of "tried, expected, got, evidence"."""

from __future__ import annotations

from dataclasses import dataclass, field


class DemoError(Exception):
    """The demo itself could not go on: a sentence that says what happened and what to do next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One thing that was tried.

    Attributes:
        name: unique within the check.
        expected, got: in the same short words, e.g. `403 RBAC: access denied`.
        evidence: facts beside the verdict: peer identities, serial numbers, alerts, durations.
    """

    name: str
    tried: str
    expected: str
    got: str
    ok: bool
    evidence: str = ""


@dataclass(slots=True)
class Check:
    """One numbered check; it passes when it has rows and all of them are good."""

    number: int
    name: str
    intent: str
    rows: list[Row] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """A check that tried nothing has shown nothing."""
        return bool(self.rows) and all(row.ok for row in self.rows)

    def expect(self, name: str, tried: str, *, expected: str, got: str, evidence: str = "") -> bool:
        """Add a row whose verdict is equality of the two texts."""
        return self.judge(name, tried, expected=expected, got=got, ok=got == expected, evidence=evidence)

    def judge(self, name: str, tried: str, *, expected: str, got: str, ok: bool, evidence: str = "") -> bool:
        """Add a row with a verdict of its own, for what is not an equality."""
        self.rows.append(Row(name=name, tried=tried, expected=expected, got=got, ok=ok, evidence=evidence))
        return ok
