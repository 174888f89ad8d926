"""What the dashboards of the chart have in common."""

from __future__ import annotations

from typing import Final

from scripts.dashboards.grafana import RATE, Panel, Query, graph, zero

DAY: Final = 86_400
CA, HOOK, AGENT = "gatehouse_ca", "gatehouse_injector", "gatehouse_agent"
# What every process of a kind shows from its first moment on.
CA_UP, HOOK_UP, UPKEEP_UP, AGENT_UP = (
    f"{CA}_ready",
    f"{HOOK}_ready",
    f"{HOOK}_leader_ready",
    f"{AGENT}_workloads",
)
NONE_IS_RED: Final = ((None, "red"), (1, "green"))
# Counts, some of them extrapolated: less than 1 may be one.
ANY_IS_RED: Final = ((None, "green"), (0.01, "red"))
ANY_IS_ORANGE: Final = ((None, "green"), (0.01, "orange"))


def share_left(matchers: str = "$all") -> str:
    left, age = (f"{AGENT}_svid_{part}_seconds{{{matchers}}}" for part in ("remaining", "age"))
    return f"{left} / ({left} + {age})"


def recent(metric: str, base: str, matchers: str = "$own", span: str = "15m") -> str:
    """How many in the last minutes; 0 when nothing of the kind was ever counted."""
    return f"sum(increase({metric}{{{matchers}}}[{span}])) or {zero(base, matchers)}"


def of_process(metric: str, base: str) -> str:
    """A `process_*` metric of the processes that have `base`."""
    return f"{metric}{{$own}} and on (namespace, pod, instance) {base}{{$own}}"


def memory(base: str) -> Panel:
    return graph(
        "Memory",
        "Resident memory of each process. The kernel ends a process at the limit of its container: raise "
        "the limit "
        "(`resources` of the values) before it comes near.",
        Query(of_process("process_resident_memory_bytes", base), "{{pod}}"),
        unit="bytes",
    )


def processor(base: str) -> Panel:
    return graph(
        "CPU",
        "Cores that each process uses. One Python process has use for little more than one.",
        Query(
            f"rate(process_cpu_seconds_total{{$own}}[{RATE}]) and on (namespace, pod, instance) "
            f"{base}{{$own}}",
            "{{pod}}",
        ),
    )
