"""Runs the demo as a person would: as a program, from the repository."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 150.0


@dataclass(frozen=True)
class Run:
    """A demo that has ended."""

    code: int
    out: str
    err: str

    @property
    def result(self) -> dict[str, Any]:
        """The one JSON object of `--json`."""
        found = json.loads(self.out)
        assert isinstance(found, dict)
        return found


def demo_environment(tmp: Path) -> dict[str, str]:
    """Files go to a directory of the test's own, where left-overs can be seen."""
    return {**os.environ, "TMPDIR": str(tmp), "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}


def run_demo(tmp: Path, *arguments: str, prelude: str = "") -> Run:
    """Run it to its end; `prelude` is Python that changes the demo before it starts."""
    code = f"{prelude}\nimport sys\nfrom examples.demo.__main__ import main\nsys.exit(main(sys.argv[1:]))\n"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env=demo_environment(tmp),
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    return Run(done.returncode, done.stdout, done.stderr)


class KeptDemo:
    """A demo that is left running; output is read from files."""

    def __init__(self, tmp: Path, *arguments: str) -> None:
        self._out = tmp / "out.txt"
        with self._out.open("wb") as out:
            self._popen = subprocess.Popen(
                [sys.executable, "-m", "examples.demo", *arguments],
                cwd=ROOT,
                env=demo_environment(tmp),
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def text(self) -> str:
        return self._out.read_text()

    def wait_for_text(self, wanted: str) -> str:
        def there() -> bool:
            assert self._popen.poll() is None, f"the demo has ended:\n{self.text}"
            return wanted in self.text

        until(there, what=wanted)
        return self.text

    def interrupt(self, number: signal.Signals = signal.SIGINT) -> int:
        """Send the signal to the demo alone, as a terminal would not; return the exit code."""
        self._popen.send_signal(number)
        return self._popen.wait(30)

    def close(self) -> None:
        if self._popen.poll() is None:
            self.interrupt(signal.SIGTERM)


def until(probe: Callable[[], bool], *, what: str, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not probe():
        assert time.monotonic() < deadline, f"waited {seconds:g} s in vain for {what}"
        time.sleep(0.05)


def processes_of(tmp: Path) -> dict[int, str]:
    """Processes whose command line or environment names the directory, by their ids."""
    found: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        try:
            words = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
        except OSError:
            continue  # it has ended, or is not ours to look at
        if str(tmp).encode() in words:
            found[int(entry.name)] = words.split(b"\0", 1)[0].decode(errors="replace")
    return found


def leftovers(tmp: Path) -> list[str]:
    """Directories of the demo that still exist."""
    return sorted(path.name for path in tmp.glob("gh-demo-*"))
