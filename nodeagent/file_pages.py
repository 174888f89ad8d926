"""Lets go of the pages of program files while the agent is idle.

Three large libraries touch most of their pages when they are loaded, and many again for each certificate.
They stay mapped although nothing uses them, so the agent seems twice as large as what it works with, and the
kernel, which sees them mapped, takes other pages first. Unmapped, they are plain page cache, shared by all
agents of that file and taken when memory is short; what is needed after all comes back by a few hundred minor
faults (docs/adr/0012).

Only mappings of files that cannot be written and hold no page of the process's own are let go (madvise(2),
MADV_DONTNEED: later accesses find the contents of the file). A page that was relocated and then protected is
anonymous, and keeps its mapping whole.
"""

from __future__ import annotations

import ctypes
import re
import resource
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from mesh.obs.logs import logger

_log = logger("nodeagent.file_pages")
_PROCESS: Final = Path("/proc/self")
_HEADER: Final = re.compile(
    r"([0-9a-f]+)-([0-9a-f]+) ([r-][w-][x-][ps]) [0-9a-f]+ [0-9a-f]+:[0-9a-f]+ (\d+) *(.*)"
)
_NOTHING: Final = "0"
_MADV_DONTNEED: Final = 4
_KIB: Final = 1024
WORTH_IT: Final = 8 * 1024
"""KiB of file pages beyond what stayed the last time."""
PAUSE: Final = 60.0
"""Seconds between two times: a burst of work keeps its pages."""


def clean_mappings(smaps: Iterable[str]) -> Iterator[tuple[int, int, int]]:
    """Address, length and resident KiB of each mapping that can be read again from its file.

    Args:
        smaps: lines of proc(5) `/proc/PID/smaps`.
    """
    found: tuple[int, int] | None = None
    resident = 0
    for line in smaps:
        if header := _HEADER.fullmatch(line.rstrip("\n")):
            start, end, rights, inode, path = header.groups()
            of_a_file = inode != _NOTHING and path.startswith("/") and not path.endswith(" (deleted)")
            found = (int(start, 16), int(end, 16)) if of_a_file and "w" not in rights else None
            resident = 0
        elif found and line.startswith("Rss:"):
            resident = int(line.split()[1])
        elif found and line.startswith("Anonymous:"):
            if line.split()[1] == _NOTHING and resident:
                yield found[0], found[1] - found[0], resident
            found = None


class FilePages:
    """The file pages of this process.

    Where the system does not tell or refuses, nothing happens.
    """

    def __init__(self) -> None:
        self._floor = 0
        self._at = float("-inf")

    def idle(self, now: float) -> int:
        """Let go of them if that is worth it; returns KiB.

        Args:
            now: of `time.monotonic`.
        """
        if now - self._at < PAUSE:
            return 0
        try:
            if _shared_kib() - self._floor < WORTH_IT:
                return 0
            self._at = now
            given = _let_go()
            self._floor = _shared_kib()
        except (OSError, AttributeError, ValueError, IndexError) as error:
            _log.info("pages of files stay mapped", reason=error)
            self._at = float("inf")
            return 0
        _log.debug("pages of files are no longer mapped", kib=given)
        return given


def _shared_kib() -> int:
    """Resident pages of files, KiB: the third number of proc(5) `/proc/PID/statm`."""
    return int((_PROCESS / "statm").read_text(encoding="ascii").split()[2]) * resource.getpagesize() // _KIB


def _let_go() -> int:
    with (_PROCESS / "smaps").open(encoding="utf-8", errors="replace") as lines:
        mappings = list(clean_mappings(lines))
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return sum(kib for start, size, kib in mappings if madvise(start, size, _MADV_DONTNEED) == 0)
