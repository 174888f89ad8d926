"""On a cluster a missed deadline gets a second run, seen in the report; nothing else does."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = """
from tests.cluster.run import ClusterError

tries = {"late": 0, "too_late": 0, "wrong": 0}

def test_late():
    tries["late"] += 1
    if tries["late"] == 1:
        raise ClusterError("Ready pods: not within 180 s")

def test_too_late():
    raise ClusterError("Ready pods: not within 180 s")

def test_wrong():
    tries["wrong"] += 1
    assert tries["wrong"] == 2, "ClusterError is in the text, too"
"""


def options(part: str) -> list[str]:
    found = re.search(rf'^    {part}\) options="([^"]*)"', (ROOT / "scripts/test").read_text(), re.MULTILINE)
    assert found is not None
    return found[1].split()


def test_a_missed_deadline_gets_a_second_run_and_an_assertion_none(tmp_path: Path) -> None:
    (tmp_path / "test_x.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-q", "-rRfp", "-c", "/dev/null", f"--rootdir={tmp_path}"]
    done = subprocess.run(
        [*command, *options("cluster"), str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    lines = [line.split(" - ")[0] for line in done.stdout.splitlines()]
    outcomes = [f"{line.split()[0]} {line.rpartition('::')[2]}" for line in lines if "test_x.py::" in line]
    assert {found for found in outcomes if found.startswith(("RERUN", "PASSED", "FAILED"))} == {
        "RERUN test_late",
        "RERUN test_too_late",
        "FAILED test_too_late",
        "FAILED test_wrong",
        "PASSED test_late",
    }
    assert "not within 180 s" in done.stdout


def test_nothing_else_is_run_again() -> None:
    assert "--reruns" not in options("here")
    assert "no:rerunfailures" in options("here")
