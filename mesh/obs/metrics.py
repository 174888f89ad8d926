"""Metrics declared once, with names that are checked, and documented from the declaration.

A process declares its metrics as attributes of one class::

    class CaMetrics(MetricSet):
        issued = counter("gatehouse_ca_certificates_issued_total", "Certificates signed.", labels=("kind",))
        sign_seconds = histogram("gatehouse_ca_sign_seconds", "Time to sign.", buckets=(0.001, 0.01, 0.1))

    metrics = CaMetrics(CollectorRegistry())
    metrics.issued.labels(kind="workload").inc()

`describe(CaMetrics)` gives the rows of the reference page. Label values must come from small closed
sets (codes, kinds), never from what a caller sends.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, Literal, Self, TypeVar, cast, overload

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

PREFIX: Final = "gatehouse_"
UNITS: Final = ("seconds", "bytes", "ratio")
_NAME = re.compile(r"gatehouse_[a-z0-9]+(?:_[a-z0-9]+)+")
_LABEL = re.compile(r"[a-z][a-z0-9]*(?:_[a-z0-9]+)*")
_RESERVED_LABELS = frozenset({"le", "quantile", "job", "instance"})
# Scaled units: everything is in base units (Prometheus naming conventions).
_SCALED = frozenset(
    {
        "ms",
        "milliseconds",
        "us",
        "microseconds",
        "minutes",
        "hours",
        "days",
        "kb",
        "mb",
        "kib",
        "mib",
        "percent",
    }
)
_STATES = ("info", "ready", "up", "connected", "generation")  # gauges of 0 or 1; a number that only rises

M = TypeVar("M", Counter, Gauge, Histogram)


@dataclass(frozen=True, slots=True)
class MetricDoc:
    """One row of the reference page.

    Attributes:
        kind: counter, gauge or histogram.
        unit: seconds, bytes, ratio, or empty for counts and states.
    """

    name: str
    kind: str
    help: str
    labels: tuple[str, ...]
    unit: str


class Declared(Generic[M]):
    """A metric in the body of a `MetricSet`; on an instance it is the metric itself."""

    def __init__(self, kind: type[M], doc: MetricDoc, **options: Any) -> None:
        self._kind: type[M] = kind
        self._options = options
        self._attribute = ""
        self.doc = doc

    def __set_name__(self, owner: type[MetricSet], name: str) -> None:
        self._attribute = name

    @overload
    def __get__(self, instance: None, owner: type[MetricSet]) -> Self: ...
    @overload
    def __get__(self, instance: MetricSet, owner: type[MetricSet]) -> M: ...
    def __get__(self, instance: MetricSet | None, owner: type[MetricSet]) -> Self | M:
        if instance is None:
            return self
        return cast("M", instance.metrics[self._attribute])

    def create(self, registry: CollectorRegistry) -> M:
        """The real metric, registered."""
        kind: Any = self._kind  # the three constructors have no common base with this signature
        return cast(
            "M", kind(self.doc.name, self.doc.help, self.doc.labels, registry=registry, **self._options)
        )


class MetricSet:
    """The metrics of one process or part, created in `registry`.

    Two instances need two registries: a name is registered once.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.metrics = {name: declared.create(registry) for name, declared in _declared(type(self)).items()}


def counter(name: str, help_text: str, *, labels: Sequence[str] = ()) -> Declared[Counter]:
    """Declare a counter; the name ends in `_total`.

    Raises:
        ValueError: when a name breaks the conventions of this module, as for the functions below.
    """
    return Declared(Counter, _doc(name, "counter", help_text, labels))


def gauge(
    name: str,
    help_text: str,
    *,
    labels: Sequence[str] = (),
    across: Literal["all", "min", "max", "sum"] = "all",
) -> Declared[Gauge]:
    """Declare a gauge; the name ends in a unit, a plural noun (a count), or a state.

    Args:
        across: what several worker processes show together (`PROMETHEUS_MULTIPROC_DIR`); `all` keeps
            them apart. Workers that have ended do not count.
    """
    mode = "liveall" if across == "all" else f"live{across}"
    return Declared(Gauge, _doc(name, "gauge", help_text, labels), multiprocess_mode=mode)


def histogram(
    name: str, help_text: str, *, buckets: Sequence[float], labels: Sequence[str] = ()
) -> Declared[Histogram]:
    """Declare a histogram; the name ends in a unit. Buckets are in that unit, ascending."""
    if list(buckets) != sorted(set(buckets)) or not buckets:
        raise ValueError(f"metric {name}: buckets must be ascending and not empty")
    return Declared(Histogram, _doc(name, "histogram", help_text, labels), buckets=tuple(buckets))


def describe(metrics: type[MetricSet]) -> tuple[MetricDoc, ...]:
    """Every metric of a set, by name."""
    return tuple(sorted((declared.doc for declared in _declared(metrics).values()), key=lambda doc: doc.name))


def show_process(registry: CollectorRegistry) -> None:
    """Add memory, CPU time, start and open files of this process, under Prometheus' own names (`process_*`).

    For processes that show themselves alone: not for workers that share a page.
    """
    ProcessCollector(registry=registry)


def exposition(registry: CollectorRegistry) -> tuple[bytes, str]:
    """What `/metrics` answers: body and content type."""
    return generate_latest(registry), CONTENT_TYPE_LATEST


def _declared(owner: type[MetricSet]) -> dict[str, Declared[Any]]:
    found: dict[str, Declared[Any]] = {}
    for base in reversed(owner.__mro__):
        found |= {name: value for name, value in vars(base).items() if isinstance(value, Declared)}
    return found


def _doc(name: str, kind: str, help_text: str, labels: Sequence[str]) -> MetricDoc:
    for problem in _problems(name, kind, help_text, labels):
        raise ValueError(f"metric {name!r}: {problem}")
    stem = name.removesuffix("_total")
    unit = next((unit for unit in UNITS if stem.endswith(f"_{unit}")), "")
    return MetricDoc(name, kind, help_text, tuple(labels), unit)


def _problems(name: str, kind: str, help_text: str, labels: Sequence[str]) -> list[str]:
    words = name.split("_")
    problems = []
    if not _NAME.fullmatch(name):
        problems.append(f"must be lower_snake_case and start with {PREFIX}")
    if scaled := _SCALED.intersection(words):
        problems.append(f"{min(scaled)} is no base unit; use one of {', '.join(UNITS)}")
    if (kind == "counter") != (words[-1] == "total"):
        problems.append("a counter, and nothing else, ends in _total")
    if kind == "histogram" and words[-1] not in UNITS:
        problems.append(f"must end in a unit: {', '.join(UNITS)}")
    if kind == "gauge" and words[-1] not in (*UNITS, *_STATES) and not words[-1].endswith("s"):
        problems.append(
            f"must end in a unit ({', '.join(UNITS)}), a state ({', '.join(_STATES)}) or a plural"
        )
    if not help_text.endswith("."):
        problems.append("the help text must be a sentence")
    problems += [
        f"label {label!r} is not allowed"
        for label in labels
        if not _LABEL.fullmatch(label) or label in _RESERVED_LABELS
    ]
    return problems
