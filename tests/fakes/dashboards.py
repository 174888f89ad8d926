"""The dashboards of the chart as Grafana reads them: panels, and expressions with the variables filled in."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tests.fakes.helm import CHART

DIRECTORY = CHART / "files" / "dashboards"
EVERYTHING = {"namespace": ".*", "pod": ".*"}
_VARIABLE = re.compile(r"\$(?:\{([a-z_]+)\}|([a-z_]+))")


@dataclass(frozen=True, slots=True)
class Drawn:
    """One query of one panel."""

    dashboard: str
    panel: str
    ref: str
    expr: str
    legend: str

    def __str__(self) -> str:
        return f"{self.dashboard}: {self.panel} {self.ref}"

    def filled(self, values: Mapping[str, str] = EVERYTHING, *, interval: str = "1m") -> str:
        """The expression that Grafana sends.

        Raises:
            KeyError: a variable that the dashboard does not have.
        """
        known = {**values, "__rate_interval": interval}
        return _VARIABLE.sub(lambda found: known[found[1] or found[2]], self.expr)


def dashboards() -> dict[str, dict[str, Any]]:
    """The files by name, without their ending."""
    return {file.stem: json.loads(file.read_text()) for file in sorted(DIRECTORY.glob("*.json"))}


def queries() -> Iterator[Drawn]:
    """Every query of every panel."""
    for name, dashboard in dashboards().items():
        for panel in dashboard["panels"]:
            for target in panel.get("targets", ()):
                yield Drawn(name, panel["title"], target["refId"], target["expr"], target["legendFormat"])
