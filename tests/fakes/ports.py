"""Port numbers for programs that are told where to listen, before they can be asked where they do.

A port that is found free, closed and passed on can be taken meanwhile: by the kernel for an outgoing
connection, or by another test process. These are outside of the kernel's range, and each is locked while this
process lives.
"""

from __future__ import annotations

import fcntl
import os
import random
import socket
import tempfile
from pathlib import Path
from typing import Final

_LOW: Final = 12_000
_HIGH: Final = 29_000  # below the node ports of a cluster and the kernel's own range
_DIRECTORY: Final = Path(tempfile.gettempdir(), f"gatehouse-test-ports-{os.getuid()}")
_held: list[int] = []


def claim_port() -> int:
    """A TCP port of 127.0.0.1 that no other caller gets until this process ends."""
    _DIRECTORY.mkdir(mode=0o700, exist_ok=True)
    chance = random.SystemRandom()
    for _ in range(1000):
        port = chance.randrange(_LOW, _HIGH)
        lock = os.open(_DIRECTORY / str(port), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        if _lock(lock) and _nobody_listens(port):
            _held.append(lock)
            return port
        os.close(lock)
    raise AssertionError(f"no free port between {_LOW} and {_HIGH}")


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _nobody_listens(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
