"""Commands with an answer: output on success, the whole story on failure."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path


class ClusterError(Exception):
    """The cluster cannot be built, started or used; the text says what to do."""


def run(
    command: Sequence[str | Path],
    *,
    stdin: str | bytes | None = None,
    timeout: float = 120,
    environment: dict[str, str] | None = None,
    directory: Path | None = None,
) -> str:
    """The command's standard output.

    Raises:
        ClusterError: it failed or took longer than `timeout` seconds.
    """
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words,
            input=stdin.encode() if isinstance(stdin, str) else stdin,
            capture_output=True,
            timeout=timeout,
            check=False,
            env={**os.environ, **(environment or {})},
            cwd=directory,
        )
    except FileNotFoundError as error:
        raise ClusterError(f"{words[0]} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise ClusterError(f"{' '.join(words)} took longer than {timeout:.0f} s") from error
    if done.returncode:
        said = (done.stderr or done.stdout).decode(errors="replace").strip()
        raise ClusterError(f"{' '.join(words)} ended with {done.returncode}: {said[-2000:]}")
    return done.stdout.decode(errors="replace")


def works(command: Sequence[str | Path], timeout: float = 30) -> bool:
    """Whether the command succeeds."""
    try:
        run(command, timeout=timeout)
    except ClusterError:
        return False
    return True


def wait_for(what: str, condition: Callable[[], bool], *, seconds: float, every: float = 0.2) -> None:
    """Return once `condition()` holds.

    Raises:
        ClusterError: it did not within `seconds`.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise ClusterError(f"{what}: not within {seconds:.0f} s")
        time.sleep(every)
