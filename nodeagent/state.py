"""What a restarted agent must know to serve the pods that are there: one small file per volume.

The directory should be on tmpfs: then tokens are kept too, and a restarted agent renews certificates at
once. Anywhere else tokens are left out, because they would reach a disk; sockets come back just as fast,
and the kubelet brings a token with its next republish. Files of an earlier boot are removed (G-10).
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Final

import orjson

from mesh.errors import Category, Code, MeshError
from mesh.obs.logs import logger
from nodeagent.core.volume import Volume
from nodeagent.sockets import SocketError, open_directory

MAX_VOLUMES: Final = 4096
BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_MAX_FILE: Final = 64 * 1024
_SUFFIX: Final = ".json"
_MEMORY_FILE_SYSTEMS: Final = frozenset({0x01021994, 0x858458F6})  # tmpfs, ramfs
_STATFS_BYTES: Final = 256
_log = logger("nodeagent.state")


class StateCode(Code):
    """Why the state directory cannot be used."""

    DIRECTORY = "state_directory"
    FULL = "state_write"


class StateError(MeshError):
    """The state could not be kept."""


def in_memory(directory: Path) -> bool:
    """True when files in the directory live in memory only (tmpfs or ramfs)."""
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(_STATFS_BYTES)
    if libc.statfs(os.fsencode(directory), buffer) != 0:
        return False
    # `struct statfs` begins with f_type, a long; only its low half is the magic number.
    kind = ctypes.c_long.from_buffer(buffer).value
    return kind & 0xFFFFFFFF in _MEMORY_FILE_SYSTEMS


def read_boot_id() -> str:
    """The kernel's id of this boot."""
    return BOOT_ID.read_text(encoding="ascii").strip()


class VolumeState:
    """The state directory.

    Args:
        directory: made if missing (its parent must exist), for the agent only.
        boot_id: of this boot.
        is_memory: whether tokens may be written below a directory.
    """

    def __init__(
        self, directory: Path, *, boot_id: str, is_memory: Callable[[Path], bool] = in_memory
    ) -> None:
        self.directory = directory
        self._boot_id = boot_id
        self._is_memory = is_memory
        self.keeps_tokens = False

    def load(self) -> list[tuple[Volume, str]]:
        """Prepare the directory and read what an earlier agent left.

        Returns:
            Volumes with their tokens, which are empty where none was kept.

        Raises:
            StateError: the directory cannot be made, or is not the agent's own.
        """
        try:
            self.directory.parent.mkdir(parents=True, exist_ok=True)
            os.close(open_directory(self.directory, 0o700))
        except (OSError, SocketError) as error:
            detail = error.public if isinstance(error, SocketError) else str(error)
            raise StateError(
                StateCode.DIRECTORY,
                f"kubernetes.state_dir: {detail}",
                category=Category.FAILED_PRECONDITION,
            ) from error
        self.keeps_tokens = self._is_memory(self.directory)
        if not self.keeps_tokens:
            _log.warning(
                "the state directory is not on tmpfs: tokens are kept in memory only, and a restarted agent"
                " waits for the kubelet to bring them again",
                directory=self.directory,
            )
        found: list[tuple[Volume, str]] = []
        for path in sorted(self.directory.iterdir())[:MAX_VOLUMES]:
            item = self._read(path)
            if item is None:
                path.unlink(missing_ok=True)
            else:
                found.append(item)
        return found

    def save(self, volume: Volume, token: str) -> None:
        """Write one volume; atomically, so that a crash leaves the old or the new form.

        Raises:
            StateError: the file cannot be written (disk full).
        """
        body = {"boot": self._boot_id, "volume": asdict(volume), "token": token if self.keeps_tokens else ""}
        path = self._path(volume.volume_id)
        temporary = path.with_name(f".{secrets.token_hex(8)}")
        try:
            fd = os.open(
                temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
            )
            with os.fdopen(fd, "wb") as stream:
                stream.write(orjson.dumps(body))
            temporary.replace(path)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise StateError(
                StateCode.FULL,
                f"the state of a volume cannot be written to {self.directory}: {error.strerror}",
                category=Category.UNAVAILABLE,
            ) from error

    def remove(self, volume_id: str) -> None:
        """Forget one volume; unknown ones are fine."""
        with suppress(OSError):  # a left-over file costs nothing: its target is gone at the next start
            self._path(volume_id).unlink(missing_ok=True)

    def _path(self, volume_id: str) -> Path:
        return self.directory / f"{hashlib.sha256(volume_id.encode()).hexdigest()[:40]}{_SUFFIX}"

    def _read(self, path: Path) -> tuple[Volume, str] | None:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
            with os.fdopen(fd, "rb") as stream:
                body = orjson.loads(stream.read(_MAX_FILE))
            item = _parse(body, self._boot_id)
        except (OSError, orjson.JSONDecodeError):
            item = None
        if item is None or path != self._path(item[0].volume_id):
            _log.info("a state file of an earlier boot or of no use is removed", file=path.name)
            return None
        return item


def _parse(body: Any, boot_id: str) -> tuple[Volume, str] | None:
    if not isinstance(body, dict) or body.get("boot") != boot_id:
        return None
    volume, token = body.get("volume"), body.get("token")
    names = {item.name for item in fields(Volume)}
    if not isinstance(volume, dict) or volume.keys() != names or not isinstance(token, str):
        return None
    if not all(isinstance(value, str) and value for value in volume.values()):
        return None
    return Volume(**volume), token
