"""Core dumps and file modes; each case in a process of its own, because it cannot be undone."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mesh import hardening


def run(code: str) -> str:
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_hardened_process_leaves_no_core_and_private_files(tmp_path: Path) -> None:
    path = tmp_path / "file"
    out = run(
        "import os, resource\n"
        "from mesh import hardening\n"
        "assert hardening.is_dumpable()\n"
        "hardening.harden()\n"
        f"open({str(path)!r}, 'w').close()\n"
        "print(hardening.is_dumpable(), resource.getrlimit(resource.RLIMIT_CORE))"
    )
    assert out == "False (0, 0)"
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to become another user")
def test_an_unprivileged_hardened_process_still_reaches_its_own_descriptors() -> None:
    """The agent binds sockets through /proc/self/fd; not dumpable makes that directory root's."""
    out = run(
        "import os\n"
        "from mesh import hardening\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "hardening.harden()\n"
        "fd = os.open('/tmp', os.O_RDONLY)\n"
        "print(os.path.samestat(os.stat(f'/proc/self/fd/{fd}/.'), os.fstat(fd)))"
    )
    assert out == "True"


def test_a_kernel_that_refuses_stops_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardening, "_prctl", lambda option, argument: -1)
    monkeypatch.setattr(hardening.resource, "setrlimit", lambda which, limits: None)
    with pytest.raises(hardening.HardeningError, match="not dumpable") as caught:
        hardening.forbid_core_dumps()
    assert caught.value.code is hardening.HardeningCode.DUMPABLE


def test_umask_is_put_back_after_an_error(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        with contextlib.suppress(KeyError), hardening.umask(0o007):
            (tmp_path / "inside").touch()
            raise KeyError
        (tmp_path / "outside").touch()
    finally:
        os.umask(before)
    assert (tmp_path / "inside").stat().st_mode & 0o777 == 0o660
    assert (tmp_path / "outside").stat().st_mode & 0o777 == 0o644
