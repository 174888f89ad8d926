"""The dashboards of the chart: what somebody who was woken up looks at. `make docs` writes their files.

First row: what must be true now. Below it: what changed, and when. Each panel says what to do when it
looks bad.
"""

from __future__ import annotations

from typing import Final

from scripts.dashboards.grafana import render
from scripts.dashboards.identities import IDENTITIES
from scripts.dashboards.injection import INJECTION
from scripts.dashboards.nodeagents import AGENTS

DIRECTORY: Final = "charts/gatehouse/files/dashboards"
DASHBOARDS: Final = {"identities": IDENTITIES, "injection": INJECTION, "nodeagents": AGENTS}


def files() -> dict[str, str]:
    """The text of each file, by its path in the repository."""
    return {f"{DIRECTORY}/{name}.json": render(dashboard) for name, dashboard in DASHBOARDS.items()}
