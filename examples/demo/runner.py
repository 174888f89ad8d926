"""Runs the chosen checks in order and reports each as it ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

from examples.demo.checks import Spec
from examples.demo.harness import Demo
from examples.demo.model import Check, DemoError

Announce = Callable[[Check], None]


def run_checks(demo: Demo, specs: Sequence[Spec], announce: Announce) -> list[Check]:
    """Run checks; a check that breaks down becomes a row that says so, and the next one follows."""
    if {10, 11} & {spec.number for spec in specs}:
        demo.start_load()
    return [_run(demo, spec, announce) for spec in specs]


def _run(demo: Demo, spec: Spec, announce: Announce) -> Check:
    check = spec.new()
    began = time.monotonic()
    try:
        spec.run(demo, check)
    except (DemoError, OSError, ValueError, LookupError) as error:
        check.judge(
            "broke down",
            "to run the check to its end",
            expected="every row",
            got=f"{type(error).__name__}: {error}"[:300],
            ok=False,
        )
    check.seconds = time.monotonic() - began
    announce(check)
    return check


def verdict(checks: Iterable[Check]) -> int:
    """Exit code: 0 when there are checks and all are good, else 1."""
    results = [check.ok for check in checks]
    return 0 if results and all(results) else 1
