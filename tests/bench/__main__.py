"""`make bench`: figures as ratios to limits that are measured in the same run."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping

from tests.bench import (
    rows_agent,
    rows_ca,
    rows_cluster,
    rows_csi,
    rows_grpc,
    rows_injector,
    rows_node,
    rows_policy,
    rows_rotation,
)
from tests.bench.measure import Row

SUITES: Mapping[str, Callable[[], Iterator[Row]]] = {
    "ca": rows_ca.rows,
    "grpc": rows_grpc.rows,
    "agent": rows_agent.rows,
    "injector": rows_injector.rows,
    "policy": rows_policy.rows,
    "node": rows_node.rows,
    "rotation": rows_rotation.rows,
    "csi": rows_csi.rows,
    "cluster": rows_cluster.rows,
}


def main() -> int:
    """Run the suites, print the table or one JSON object; 1 when a goal is missed."""
    parser = argparse.ArgumentParser(
        prog="make bench ARGS=...",
        description="Every row is a ratio to a limit of this machine, measured in the same run.",
        epilog="BENCH_ROUNDS (7) and BENCH_SECONDS (0.4) change how long each figure is taken.",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.add_argument(
        "--only", metavar="SUITE", action="append", choices=list(SUITES), help="run one suite"
    )
    options = parser.parse_args()
    started, done = time.monotonic(), []
    for name in options.only or SUITES:
        if not options.json:
            sys.stdout.write(f"\n{name}\n{HEAD}\n")
        for row in SUITES[name]():
            done.append(row)
            if not options.json:
                sys.stdout.write(line(row) + "\n")
                sys.stdout.flush()
    ok = all(row.ok for row in done)
    if options.json:
        json.dump({"rows": [dataclasses.asdict(row) for row in done], "ok": ok}, sys.stdout)
        sys.stdout.write("\n")
    else:
        missed = sum(not row.ok for row in done)
        verdict = "every goal is met" if ok else f"{missed} of {len(done)} goals are missed"
        sys.stdout.write(f"\n{len(done)} rows in {time.monotonic() - started:.0f} s: {verdict}\n")
    return 0 if ok else 1


HEAD = f"  {'':2} {'row':45} {'value':>10} {'limit':>10} {'ratio':>7} {'goal':>8}  unit"


def line(row: Row) -> str:
    """One row of the table, at most 100 columns, and below it what the figure is made of."""
    mark = "ok" if row.ok else "!!"
    text = (
        f"  {mark:2} {row.name:45.45} {row.value:>10,.6g} {row.limit:>10,.6g} {row.ratio:>7.2f} {row.goal:>8}"
        f"  {row.unit}"
    )
    evidence = textwrap.wrap(row.evidence, 100, initial_indent=" " * 7, subsequent_indent=" " * 7)
    return "\n".join([text, *evidence])


if __name__ == "__main__":
    sys.exit(main())
