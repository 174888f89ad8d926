"""The systemd unit for machines without a cluster (NA-08): it starts what exists, and gives no right away."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
UNIT = ROOT / "examples" / "systemd" / "gatehouse-nodeagent.service"


def settings() -> dict[str, str]:
    lines = (line for line in UNIT.read_text().splitlines() if "=" in line and not line.startswith("#"))
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def test_the_command_is_the_agents(tmp_path: Path) -> None:
    """With a configuration that is not there the agent itself says so: module, verb and option are right."""
    python, *arguments = shlex.split(settings()["ExecStart"])
    assert python == f"{settings()['WorkingDirectory']}/.venv/bin/python"
    missing = tmp_path / "none.yaml"
    changed = [str(missing) if word == "/etc/gatehouse/nodeagent.yaml" else word for word in arguments]
    assert str(missing) in changed
    done = subprocess.run(
        [sys.executable, *changed], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2
    assert str(missing) in done.stderr


def test_sockets_outlive_a_restart() -> None:
    """Workloads hold the directory: a new one would leave them with a dead socket (G-08)."""
    found = settings()
    assert found["RuntimeDirectoryPreserve"] == "restart"
    assert (found["RuntimeDirectory"], found["RuntimeDirectoryMode"]) == ("gatehouse", "0711")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("User", "gatehouse"),
        ("NoNewPrivileges", "yes"),
        ("CapabilityBoundingSet", ""),
        ("ProtectSystem", "strict"),
        ("LimitCORE", "0"),
        ("MemorySwapMax", "0"),
        ("Restart", "always"),
    ],
)
def test_no_right_is_given_away(name: str, value: str) -> None:
    assert settings()[name] == value
