"""Process 1 of a namespace: `init.py SPEC.json`. Standard library only.

Prepares the mounts, starts the programs of the specification and restarts those that end, reaps what is
orphaned, and takes everything with it when it dies: a node that is killed leaves no process and no mount.

The specification: `{"mounts": [[argument of mount, ...], ...], "directories": [path, ...], "logs": path,
"programs": {name: [word, ...]}}`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

_RESTART_AFTER = 0.3  # seconds


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # the kernel then kills the whole namespace
    specification = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    for directory, arguments in _setup(specification):
        if directory:
            Path(directory).mkdir(parents=True, exist_ok=True)
        else:
            subprocess.run(["mount", *arguments], check=True)
    programs: dict[str, list[str]] = specification["programs"]
    running = {_start(name, programs[name], specification["logs"]): name for name in programs}
    while True:
        ended, _ = os.wait()
        name = running.pop(ended, None)
        if name is None:
            continue  # an orphan that became ours
        sys.stderr.write(f"{name} ended; starting it again\n")
        time.sleep(_RESTART_AFTER)
        running[_start(name, programs[name], specification["logs"])] = name


def _setup(specification: dict[str, list[list[str]]]) -> list[tuple[str, list[str]]]:
    mounts = [("", list(arguments)) for arguments in specification["mounts"]]
    return [*mounts, *((str(directory), []) for directory in specification["directories"])]


def _start(name: str, command: list[str], logs: str) -> int:
    with Path(logs, f"{name}.log").open("ab") as log:
        # os.wait() above reaps it, and a session of its own keeps signals apart.
        return os.posix_spawn(
            command[0],
            command,
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, log.fileno(), 1),
                (os.POSIX_SPAWN_DUP2, log.fileno(), 2),
            ],
            setsid=True,
        )


if __name__ == "__main__":
    main()
