"""What a process that holds keys does to itself before it makes or reads the first one.

Called first thing by the entry points of the authority and the agent. Linux only, as they are.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
from collections.abc import Iterator
from typing import Final

from mesh.errors import Category, Code, MeshError

PRIVATE_UMASK: Final = 0o077
_PR_GET_DUMPABLE: Final = 3  # linux/prctl.h
_PR_SET_DUMPABLE: Final = 4


class HardeningCode(Code):
    """Why a process could not protect itself."""

    DUMPABLE = "hardening_dumpable"


class HardeningError(MeshError):
    """The kernel refused; the process must not go on to hold keys."""


def harden() -> None:
    """Keep keys out of core files, other processes' reach, and other users' files.

    Raises:
        HardeningError: when the kernel refuses.
    """
    forbid_core_dumps()
    os.umask(PRIVATE_UMASK)


def forbid_core_dumps() -> None:
    """No core file, and no reading of this process's memory by others of the same user.

    The limit alone does not hold for `core_pattern` pipes (systemd-coredump ignores it for a value
    of 1, apport altogether); "not dumpable" does, and it refuses ptrace and `/proc/<pid>/mem` too.
    Child processes that call `exec` start dumpable again; the limit is inherited.

    Raises:
        HardeningError: when the kernel refuses.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if _prctl(_PR_SET_DUMPABLE, 0) != 0 or is_dumpable():
        raise HardeningError(
            HardeningCode.DUMPABLE,
            "the kernel refused to make this process not dumpable; keys would land in core files",
            category=Category.FAILED_PRECONDITION,
        )


def is_dumpable() -> bool:
    """True when a crash of this process may leave its memory in a file."""
    return _prctl(_PR_GET_DUMPABLE, 0) != 0


@contextlib.contextmanager
def umask(mode: int) -> Iterator[None]:
    """Files made inside get no more than `~mode`. The mask is the process's: not for threads."""
    before = os.umask(mode)
    try:
        yield
    finally:
        os.umask(before)


def _prctl(option: int, argument: int) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    return int(libc.prctl(option, ctypes.c_ulong(argument), 0, 0, 0))
