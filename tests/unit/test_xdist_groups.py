"""One group, one worker: else each worker starts every shared Envoy, and two demos fight for two cores."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes.xdist_groups import group_in

ROOT = Path(__file__).resolve().parents[2]
TESTS = """
import os
from pathlib import Path
import pytest
pytestmark = pytest.mark.xdist_group("shared")

@pytest.mark.parametrize("number", range(6))
def test_where(number, request):
    with Path(os.environ["SEEN"]).open("a") as out:
        out.write(os.environ["PYTEST_XDIST_WORKER"] + "\\n")
"""


def test_groups_are_read_off_the_files() -> None:
    assert (
        group_in(ROOT / "tests/e2e/test_demo.py") == group_in(ROOT / "tests/e2e/test_resilience.py") == "demo"
    )
    assert group_in(ROOT / "tests/interop/test_envoy_rbac.py") == "envoy-rbac"
    assert group_in(ROOT / "tests/unit/test_images.py") == ""
    assert group_in(ROOT / "tests") == ""


def test_two_groups_in_a_file_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "test_x.py"
    file.write_text("".join(f"pytest.mark.xdist_group({name!r})\n" for name in "ab"))
    with pytest.raises(ValueError, match="more than one xdist_group"):
        group_in(file)


def test_a_group_of_two_files_runs_in_one_worker(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(
        "from tests.fakes.xdist_groups import pytest_xdist_make_scheduler as pytest_xdist_make_scheduler\n"
    )
    for name in ("test_a.py", "test_b.py"):
        (tmp_path / name).write_text(TESTS)
    seen = tmp_path / "seen"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-n",
            "2",
            "--dist",
            "loadgroup",
            f"--rootdir={tmp_path}",
            ".",
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "SEEN": str(seen)},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert len(set(seen.read_text().split())) == 1
    assert len(seen.read_text().split()) == 12
