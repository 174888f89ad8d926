"""Line and branch coverage per package, and the floor: `coverage_gate.py COVERAGE_JSON`.

A global figure hides holes, so each package that decides about security has a floor of its own.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FLOOR = 95.0
GATED = ("ca/core/", "injector/core/", "nodeagent/core/", "mesh/spiffe.py", "mesh/x509/", "mesh/policy/")
SHOWN = ("ca/", "nodeagent/", "mesh/envoy/", "mesh/obs/", "mesh/", "")


@dataclass(frozen=True, slots=True)
class Row:
    """Coverage of the files under one prefix, in percent; 100 when there is nothing to cover."""

    prefix: str
    files: int
    lines: float
    branches: float

    @property
    def ok(self) -> bool:
        """True when the floor holds; a package without files has not been measured."""
        return self.files > 0 and min(self.lines, self.branches) >= FLOOR


def row(prefix: str, files: dict[str, Any]) -> Row:
    """Sum up the files of a `coverage json` report that start with `prefix`."""
    summaries = [data["summary"] for name, data in files.items() if name.startswith(prefix)]

    def percent(covered: str, total: str) -> float:
        whole = sum(item[total] for item in summaries)
        return 100.0 * sum(item[covered] for item in summaries) / whole if whole else 100.0

    lines = percent("covered_lines", "num_statements")
    return Row(prefix, len(summaries), lines, percent("covered_branches", "num_branches"))


def main() -> int:
    files = json.loads(Path(sys.argv[1]).read_text())["files"]
    print(f"{'package':<18}{'files':>6}{'lines %':>10}{'branches %':>12}  floor {FLOOR:.0f}")
    failed = []
    for prefix in (*GATED, *SHOWN):
        found = row(prefix, files)
        gated = prefix in GATED
        verdict = ("ok" if found.ok else "BELOW") if gated else ""
        print(f"{prefix or 'all':<18}{found.files:>6}{found.lines:>10.1f}{found.branches:>12.1f}  {verdict}")
        if gated and not found.ok:
            failed.append(prefix)
    for name, data in sorted(files.items()):
        missing, arcs = data["missing_lines"], data["missing_branches"]
        if name.startswith(tuple(failed)) and failed and (missing or arcs):
            print(f"  {name}: lines {missing}, branches {[f'{a}->{b}' for a, b in arcs]}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
