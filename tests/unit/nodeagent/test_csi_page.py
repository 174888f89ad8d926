"""docs/csi.md names every setting, metric and code of mode kubernetes."""

from __future__ import annotations

from pathlib import Path

import pytest

from mesh.obs.metrics import describe as describe_metrics
from mesh.settings import describe
from nodeagent.config import AgentSettings
from nodeagent.core.kube_world import KubeCode
from nodeagent.core.volume import VolumeCode
from nodeagent.csi_server import CsiServerCode
from nodeagent.kube_watches import KubeMetrics, WatchCode
from nodeagent.state import StateCode
from nodeagent.tokens import TokenCode

TEXT = (Path(__file__).parents[3] / "docs" / "csi.md").read_text()


@pytest.mark.parametrize("field", [f for f in describe(AgentSettings) if f.path.startswith("kubernetes.")])
def test_every_setting_is_explained(field) -> None:
    assert f"`{field.path}`" in TEXT
    assert field.default in {"none", '""'} or f"`{field.default}`" in TEXT


@pytest.mark.parametrize("metric", describe_metrics(KubeMetrics), ids=lambda metric: metric.name)
def test_every_metric_is_explained(metric) -> None:
    assert f"`{metric.name}" in TEXT


@pytest.mark.parametrize(
    "code",
    [
        code
        for kind in (VolumeCode, KubeCode, CsiServerCode, WatchCode, StateCode, TokenCode)
        for code in kind
    ],
)
def test_every_code_is_explained(code: str) -> None:
    assert f"`{code}`" in TEXT
