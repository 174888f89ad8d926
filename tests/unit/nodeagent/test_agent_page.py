"""docs/nodeagent.md names every setting, metric and code that there is."""

from __future__ import annotations

from pathlib import Path

from mesh.obs.metrics import describe as describe_metrics
from mesh.settings import describe as describe_settings
from nodeagent.ca_client import CaCode
from nodeagent.compiler import CompileCode
from nodeagent.config import AgentSettings
from nodeagent.core.svid import ReplyCode
from nodeagent.metrics import AgentMetrics
from nodeagent.rotator import RotatorCode
from nodeagent.trust import TrustCode

FILE_MODE = {"directory", "sockets", "listen", "ca", "rotation", "debounce", "log_level"}
TEXT = (Path(__file__).parents[3] / "docs" / "nodeagent.md").read_text()


def test_every_metric_is_explained() -> None:
    assert [m.name for m in describe_metrics(AgentMetrics) if f"`{m.name}`" not in TEXT] == []


def test_every_code_is_explained() -> None:
    codes = [*CaCode, *ReplyCode, *RotatorCode, *TrustCode, *CompileCode]
    assert [str(code) for code in codes if f"`{code}`" not in TEXT] == []


def test_every_setting_of_file_mode_is_explained() -> None:
    paths = [doc.path for doc in describe_settings(AgentSettings)]
    wanted = [path for path in paths if path.split(".")[0] in FILE_MODE]
    assert len(wanted) >= 13
    assert [path for path in wanted if f"`{path}`" not in TEXT] == []
