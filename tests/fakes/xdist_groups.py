"""Tests of one `xdist_group` run in one worker, one after the other.

xdist 3.8 writes the group into the node id, which pytest 9.2 no longer lets it change: without this every
worker starts each shared Envoy and each demo for itself. Here the group is read off the file.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadGroupScheduling

_GROUP = re.compile(r"""xdist_group\(\s*(?:name=)?["']([^"']+)["']""")


@functools.cache
def group_in(file: Path) -> str:
    """The group that a test file names; empty when it names none."""
    found = set(_GROUP.findall(file.read_text())) if file.suffix == ".py" and file.is_file() else set()
    if len(found) > 1:
        raise ValueError(f"{file} names more than one xdist_group: {sorted(found)}; part the file")
    return found.pop() if found else ""


class ByGroup(LoadGroupScheduling):
    """Schedules a group as one piece, and every other test alone."""

    def _split_scope(self, nodeid: str) -> str:
        file = Path(self.config.rootpath, nodeid.partition("::")[0])
        return group_in(file) or super()._split_scope(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Our scheduler for `--dist loadgroup`, xdist's own for everything else."""
    return ByGroup(config, log) if config.getvalue("dist") == "loadgroup" else None
