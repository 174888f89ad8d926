"""Target directories on disk: reached without following a link, emptied of what is ours (F-79, F-80)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from mesh.errors import Category
from nodeagent.core.volume import VolumeCode, VolumeError
from nodeagent.sockets import FINISHED_NAME, MARKER_NAME, is_ours

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def check_place(pods: Path, parts: Sequence[str]) -> None:
    """See that every directory above the target exists and that none is a link.

    Args:
        pods: the kubelet's directory of pods; itself it may be reached by links.
        parts: components of the target below it; the last one need not exist.

    Raises:
        VolumeError: one is missing or a link.
    """
    try:
        with _parent(pods, parts) as parent, suppress(FileNotFoundError):
            os.close(os.open(parts[-1], _OPEN, dir_fd=parent))
    except OSError as error:
        raise VolumeError(
            VolumeCode.TARGET,
            f"target_path: not a directory of the kubelet ({error.strerror}); no part of it may be a link,"
            " and the agent must see the kubelet's directory under the same path",
            category=Category.FAILED_PRECONDITION,
        ) from error


def has_marker(target: Path) -> bool:
    """True when a volume was published here and not unpublished since."""
    return os.path.lexists(target / MARKER_NAME)


def leave_finished(pods: Path, parts: Sequence[str]) -> bool:
    """Tell the proxy of a job, by a file in its volume, that the pod's other containers have ended.

    Returns:
        True when the file was made now; False when it is there already, or the volume is gone.

    Raises:
        OSError: the file system refuses.
    """
    with suppress(FileNotFoundError, FileExistsError), _parent(pods, parts) as parent:
        target = os.open(parts[-1], _OPEN, dir_fd=parent)
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            os.close(os.open(FINISHED_NAME, flags, 0o644, dir_fd=target))
        finally:
            os.close(target)
        return True
    return False


def clear_target(pods: Path, parts: Sequence[str]) -> None:
    """Remove our files and the directory; whatever is missing already is fine.

    Raises:
        OSError: the file system refuses.
    """
    with suppress(FileNotFoundError, NotADirectoryError), _parent(pods, parts) as parent:
        target = os.open(parts[-1], _OPEN, dir_fd=parent)
        try:
            # The marker goes last: until then the kubelet must not take the directory away (R2).
            for name in sorted(filter(is_ours, _names(target)), key=lambda name: name == MARKER_NAME):
                with suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=target)
            empty = not _names(target)
        finally:
            os.close(target)
        if empty:
            os.rmdir(parts[-1], dir_fd=parent)


@contextmanager
def _parent(pods: Path, parts: Sequence[str]) -> Iterator[int]:
    fd = os.open(pods, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parts[:-1]:
            below = os.open(part, _OPEN, dir_fd=fd)
            os.close(fd)
            fd = below
        yield fd
    finally:
        os.close(fd)


def _names(directory: int) -> list[str]:
    with os.scandir(directory) as entries:
        return [entry.name for entry in entries]
