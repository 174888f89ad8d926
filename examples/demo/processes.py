"""Child processes with a log file each, and waiting for conditions."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from examples.demo.model import DemoError

T = TypeVar("T")
_TAIL_BYTES = 4000
_STOP_SECONDS = 5.0


def wait_for(what: str, probe: Callable[[], T | None], *, seconds: float = 10.0, every: float = 0.02) -> T:
    """Ask `probe` until it answers with something true.

    Raises:
        DemoError: when `seconds` are over.
    """
    deadline = time.monotonic() + seconds
    while True:
        answer = probe()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise DemoError(f"waited {seconds:g} s in vain for {what}")
        time.sleep(every)


class Process:
    """One child in a process group of its own, with its output in a file.

    Ctrl-C reaches the demo only, which then stops its children in the right order.
    """

    def __init__(
        self, name: str, argv: Sequence[str], log: Path, env: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self.argv = list(argv)
        self.log = log
        self._env = dict(env) if env is not None else None
        self._popen: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self._popen.pid if self.running and self._popen is not None else None

    @property
    def running(self) -> bool:
        """True between start and end."""
        return self._popen is not None and self._popen.poll() is None

    def start(self) -> None:
        """Start it (again); the log is appended to."""
        with self.log.open("ab") as out:
            self._popen = subprocess.Popen(
                [*_die_with_parent(), *self.argv],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self._env} if self._env is not None else None,
                start_new_session=True,
            )

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process and what it started."""
        if self._popen is not None and self.running:
            os.killpg(self._popen.pid, number)

    def stop(self) -> None:
        """Terminate it, and kill it when it does not obey within five seconds."""
        self.signal(signal.SIGTERM)
        self.reap(_STOP_SECONDS)

    def kill(self) -> None:
        """Kill it at once, as a crash would."""
        self.signal(signal.SIGKILL)
        self.reap(_STOP_SECONDS)

    def reap(self, seconds: float) -> None:
        """Wait for the end; kill after `seconds`."""
        if self._popen is None:
            return
        try:
            self._popen.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self._popen.pid, signal.SIGKILL)
            self._popen.wait()

    def text(self) -> str:
        """The whole log so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def require_running(self) -> None:
        """Fail early, with the end of the log, when the process has died.

        Raises:
            DemoError: it does not run.
        """
        if self._popen is None or self.running:
            return
        tail = self.text()[-_TAIL_BYTES:].strip() or "(it wrote nothing)"
        raise DemoError(
            f"{self.name} ended with status {self._popen.returncode}; its log ({self.log}) ends:\n{tail}"
        )


@functools.cache
def _die_with_parent() -> tuple[str, ...]:
    """A prefix by which the kernel ends the child when the demo is killed and cannot clean up itself."""
    setpriv = shutil.which("setpriv")  # util-linux, from 2.33 on
    if setpriv is None:
        return ()
    prefix = (setpriv, "--pdeathsig", "TERM", "--")
    usable = subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode == 0
    return prefix if usable else ()


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Stopping takes a moment; an impatient second Ctrl-C must not leave half of it running."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop_all(processes: Sequence[Process]) -> None:
    """Stop several processes at once: ask all, then wait for each."""
    for process in processes:
        process.signal(signal.SIGTERM)
    deadline = time.monotonic() + _STOP_SECONDS
    for process in processes:
        process.reap(max(0.05, deadline - time.monotonic()))
