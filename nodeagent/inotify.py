"""Linux inotify by ctypes: events of directories as they happen, without a dependency.

Only what `nodeagent.files` needs. Where inotify is missing (another kernel, a limit reached) `open_inotify`
answers None and the caller polls.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MODIFY: Final = 0x2
ATTRIB: Final = 0x4
CLOSE_WRITE: Final = 0x8
MOVED_FROM: Final = 0x40
MOVED_TO: Final = 0x80
CREATE: Final = 0x100
DELETE: Final = 0x200
DELETE_SELF: Final = 0x400
MOVE_SELF: Final = 0x800
OVERFLOW: Final = 0x4000
IGNORED: Final = 0x8000
_ONLYDIR: Final = 0x01000000
CHANGES: Final = (
    MODIFY | CLOSE_WRITE | MOVED_FROM | MOVED_TO | CREATE | DELETE | DELETE_SELF | MOVE_SELF | _ONLYDIR
)
_HEADER: Final = struct.Struct("iIII")
_BUFFER: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Event:
    """One event; `name` is empty when it concerns the directory itself."""

    directory: Path | None
    mask: int
    name: str


class Inotify:
    """Watches directories; `fileno` becomes readable when there are events."""

    def __init__(self, libc: ctypes.CDLL, fd: int) -> None:
        self._libc = libc
        self._fd = fd
        self._paths: dict[int, Path] = {}

    def fileno(self) -> int:
        """The descriptor, for an event loop."""
        return self._fd

    def add(self, directory: Path) -> bool:
        """Watch a directory (again is fine); False when that is not possible."""
        watch = self._libc.inotify_add_watch(self._fd, os.fsencode(directory), CHANGES)
        if watch < 0:
            return False
        self._paths[watch] = directory
        return True

    def read(self) -> list[Event]:
        """All events that are waiting; empty when there are none."""
        events: list[Event] = []
        while True:
            try:
                data = os.read(self._fd, _BUFFER)
            except BlockingIOError:
                return events
            at = 0
            while at < len(data):
                watch, mask, _, length = _HEADER.unpack_from(data, at)
                at += _HEADER.size
                name = os.fsdecode(data[at : at + length].rstrip(b"\0"))
                at += length
                events.append(Event(self._paths.get(watch), mask, name))
                if mask & IGNORED:
                    self._paths.pop(watch, None)

    def close(self) -> None:
        """Release the descriptor."""
        os.close(self._fd)


def open_inotify() -> Inotify | None:
    """An inotify instance, or None where there is none to be had."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, AttributeError):
        return None
    if fd < 0:
        # EMFILE: the limit per user is reached. Polling still works.
        if ctypes.get_errno() not in {errno.EMFILE, errno.ENFILE, errno.ENOSYS, errno.ENOMEM}:
            raise OSError(ctypes.get_errno(), "inotify_init1 failed")
        return None
    return Inotify(libc, fd)
