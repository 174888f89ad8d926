"""`make golden` writes the schema of the values first: everything else renders with it."""

from __future__ import annotations

import json

import pytest

from tests.charts.chart_schema import SCHEMA_FILE, values_schema
from tests.fakes.golden import updating


@pytest.fixture(scope="session", autouse=True)
def _written_schema() -> None:
    if updating():
        SCHEMA_FILE.write_text(json.dumps(values_schema(), indent=1) + "\n")
