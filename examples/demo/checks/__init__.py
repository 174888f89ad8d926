"""The thirteen checks, one family in a file; each has positive twins for what must be refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from examples.demo.checks import (
    c01_mutual_tls,
    c02_plaintext,
    c03_strangers,
    c04_identity,
    c05_tokens,
    c06_claims,
    c07_database,
    c08_impostor,
    c09_paths,
    c10_rotation,
    c11_outage,
    c12_live_policy,
    c13_resumption,
)
from examples.demo.harness import Demo
from examples.demo.model import Check


@dataclass(frozen=True, slots=True)
class Spec:
    """One check before it has run."""

    number: int
    name: str
    intent: str
    run: Callable[[Demo, Check], None]

    def new(self) -> Check:
        """An empty result."""
        return Check(self.number, self.name, self.intent)


_MODULES = (
    c01_mutual_tls,
    c02_plaintext,
    c03_strangers,
    c04_identity,
    c05_tokens,
    c06_claims,
    c07_database,
    c08_impostor,
    c09_paths,
    c10_rotation,
    c11_outage,
    c12_live_policy,
    c13_resumption,
)
ALL = tuple(Spec(number, m.NAME, m.INTENT, m.run) for number, m in enumerate(_MODULES, start=1))

ORDER = (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 10, 11)
"""Rotation is watched from the start, under load, while the others run; the outage comes last."""


def in_order(numbers: frozenset[int]) -> tuple[Spec, ...]:
    """The chosen checks in the order in which they run."""
    return tuple(ALL[number - 1] for number in ORDER if number in numbers)
