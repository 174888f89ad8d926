"""The example of docs/file-mode.md is accepted as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

from nodeagent.core.directory import Directory
from nodeagent.core.fields import DocumentCode

PAGE = Path(__file__).parents[3] / "docs" / "file-mode.md"


def test_the_example_is_accepted() -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    world = Directory().update({"example.yaml": example.replace("4b1c...", "4b1c")})
    assert world.findings == ()
    assert len(world.workloads) == 1
    assert len(world.services) == 2
    assert len(world.key_sets) == 1
    assert world.mesh.drain_seconds == 3


def test_every_document_code_is_explained() -> None:
    text = PAGE.read_text()
    assert [code for code in DocumentCode if f"`{code}`" not in text] == []
