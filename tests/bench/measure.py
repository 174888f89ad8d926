"""How figures are taken: interleaved rounds, CPU seconds, medians of pairwise ratios.

The machine is shared and drifts, so an absolute figure is worth little. In every round each variant
runs once (A, B, A, B, ...); the ratio is taken within the round and its median is reported.
"""

from __future__ import annotations

import contextlib
import gc
import os
import re
import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROUNDS = int(os.environ.get("BENCH_ROUNDS", "7"))
SLICE_SECONDS = float(os.environ.get("BENCH_SECONDS", "0.4"))


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    Attributes:
        value: the figure, in `unit`.
        limit: what the machine could do at best, measured in the same run, in the same unit.
        ratio: median over rounds of value/limit (not the ratio of the two medians).
        goal: text such as `>= 0.70`; `ok` says whether `ratio` (or `value`) meets it.
        evidence: what the figure is made of, where that needs a sentence.
    """

    name: str
    value: float
    unit: str
    limit: float
    ratio: float
    goal: str
    ok: bool
    evidence: str = ""


def at_least(name: str, values: list[float], limits: list[float], unit: str, goal: float) -> Row:
    """A row whose ratio must not fall under `goal` (rates)."""
    ratio = median_ratio(values, limits)
    return Row(
        name, statistics.median(values), unit, statistics.median(limits), ratio, f">= {goal:g}", ratio >= goal
    )


def at_most(name: str, values: list[float], limits: list[float], unit: str, goal: float) -> Row:
    """A row whose ratio must not exceed `goal` (times, sizes)."""
    ratio = median_ratio(values, limits)
    return Row(
        name, statistics.median(values), unit, statistics.median(limits), ratio, f"<= {goal:g}", ratio <= goal
    )


def median_ratio(values: list[float], limits: list[float]) -> float:
    """Median of the pairwise ratios."""
    return statistics.median(v / b for v, b in zip(values, limits, strict=True))


def rate(work: Callable[[], object], seconds: float = SLICE_SECONDS, batch: int = 4) -> float:
    """Operations per CPU second of this process."""
    start, cpu, count = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - start < seconds:
        for _ in range(batch):
            work()
        count += batch
    return count / (time.process_time() - cpu)


def interleaved(variants: Mapping[str, Callable[[], float]], rounds: int = ROUNDS) -> dict[str, list[float]]:
    """Call each variant once a round; returns its figures by name."""
    figures: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, measure in variants.items():
            gc.collect()
            figures[name].append(measure())
    return figures


def openssl_p256() -> tuple[float, float]:
    """Signatures and verifications per second of one core, by `openssl speed`."""
    out = subprocess.run(
        ["openssl", "speed", "-seconds", "1", "ecdsap256"], capture_output=True, text=True, check=True
    ).stdout
    found = re.search(r"nistp256\)\s+\S+\s+\S+\s+([\d.]+)\s+([\d.]+)", out)
    if found is None:
        raise RuntimeError("openssl speed printed no line for nistp256")
    return float(found[1]), float(found[2])


def cpu_seconds(pid: int) -> float:
    """CPU seconds that another process has used: its own CPU clock (clock_getcpuclockid(3))."""
    return time.clock_gettime((~pid << 3) | 2)


@contextlib.contextmanager
def pinned(pid: int, core: int) -> Iterator[None]:
    """All threads of a process on one core; ours on the others, where there are any."""
    before = os.sched_getaffinity(0)
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(ProcessLookupError):  # a thread that has just ended
            os.sched_setaffinity(int(task.name), {core})
    others = before - {core}
    os.sched_setaffinity(0, others or before)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def on_core(core: int) -> Iterator[None]:
    """This thread, and the processes that it starts, on one core: as what it is compared with."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def rss_mb(pid: int) -> float:
    """Resident set of a process in MB."""
    with Path(f"/proc/{pid}/smaps_rollup").open(encoding="ascii") as rollup:
        for line in rollup:
            if line.startswith("Rss:"):
                return int(line.split()[1]) / 1024
    raise RuntimeError(f"no Rss of process {pid}")


def memory_split(pid: int) -> str:
    """What the resident set of a process consists of, in MB.

    Private pages are the process's alone. Pages of files that nobody wrote to are the page cache's: they
    are shared by all processes that map the file, and the kernel takes them back when it wants to.
    """
    private, files, name = 0, Counter[str](), ""
    with Path(f"/proc/{pid}/smaps").open(encoding="utf-8") as maps:
        for line in maps:
            words = line.split()
            if not words[0].endswith(":"):
                name = Path(words[5]).name if len(words) > 5 else ""
            elif words[0] == "Rss:":
                files[name] += int(words[1])
            elif words[0] == "Anonymous:":
                files[name] -= int(words[1])
                private += int(words[1])
    largest = ", ".join(f"{name.partition('.')[0]} {kb / 1024:.1f}" for name, kb in files.most_common(4))
    clean = sum(files.values()) / 1024
    return f"private {private / 1024:.1f} MB, clean pages of files {clean:.1f} MB ({largest})"
