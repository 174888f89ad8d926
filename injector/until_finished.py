"""Run the proxy of a pod that is meant to end (a Job), and end it when the pod's own containers have.

Only without native sidecars: there the kubelet takes a pod for complete when every container has ended,
the proxy included. The node agent, which watches the pods of its node, leaves a file in the pod's volume
when the others are done; then the proxy is asked to stop and the container ends with success. A proxy that
ends by itself passes its own status on. Standard library only.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

FINISHED = Path("/run/gatehouse/finished")
"""Written by the node agent when every other container of the pod has ended for good."""

_POLL_SECONDS = 0.5
_STOP_SECONDS = 10.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code of the container."""
    parser = argparse.ArgumentParser(
        prog="until-finished", description="Runs a command until the pod's other containers have ended."
    )
    parser.add_argument("--file", type=Path, default=FINISHED, help=f"default: {FINISHED}")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND")
    options = parser.parse_args(argv)
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        parser.error("a command is needed after --")
    return run(command, options.file)


def run(command: Sequence[str], finished: Path, poll_seconds: float = _POLL_SECONDS) -> int:
    """Run the command; 0 when it was stopped because of the file, else its own status."""
    with subprocess.Popen(command) as child:  # noqa: S603 - the arguments of this container, no shell

        def forward(number: int, _: FrameType | None) -> None:
            child.send_signal(number)

        before = [(number, signal.signal(number, forward)) for number in _SIGNALS]
        try:
            return _watch(child, finished, poll_seconds)
        finally:
            for number, handler in before:
                signal.signal(number, handler)


def _watch(child: subprocess.Popen[bytes], finished: Path, poll_seconds: float) -> int:
    while child.poll() is None:
        if finished.exists():
            sys.stdout.write("until-finished: the other containers have ended, stopping the proxy\n")
            sys.stdout.flush()
            _stop(child)
            return 0
        time.sleep(poll_seconds)
    # As a shell would have it: 128 + number of the signal.
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _stop(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


if __name__ == "__main__":
    sys.exit(main())
