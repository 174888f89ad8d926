"""The proxy of a job: ends with the others, passes its own end on, forwards signals."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from injector.until_finished import main, run

SLEEP = "import time; print('up', flush=True); time.sleep(60)"
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"


@pytest.mark.parametrize(("code", "status"), [("raise SystemExit(0)", 0), ("raise SystemExit(3)", 3)])
def test_its_own_end_is_passed_on(tmp_path: Path, code: str, status: int) -> None:
    assert run([sys.executable, "-c", code], tmp_path / "finished", 0.01) == status


def test_a_death_by_signal_is_told_as_shells_do(tmp_path: Path) -> None:
    code = "import os; os.kill(os.getpid(), 9)"
    assert run([sys.executable, "-c", code], tmp_path / "finished", 0.01) == 137


def test_it_ends_with_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "finished").touch()
    assert main(["--file", str(tmp_path / "finished"), "--", sys.executable, "-c", SLEEP]) == 0
    assert "the other containers have ended" in capsys.readouterr().out


def test_a_stubborn_proxy_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("injector.until_finished._STOP_SECONDS", 0.1)
    (tmp_path / "finished").touch()
    assert run([sys.executable, "-c", STUBBORN], tmp_path / "finished", 0.01) == 0


def test_a_signal_reaches_the_proxy(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "injector.until_finished", "--file", str(tmp_path / "finished"), "--"]
    with subprocess.Popen([*command, sys.executable, "-c", SLEEP], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 128 + signal.SIGTERM


def test_a_command_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--"])
    assert caught.value.code == 2
    assert "a command is needed" in capsys.readouterr().err
