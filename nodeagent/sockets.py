"""One Unix socket and one gRPC server per workload: the socket is the identity.

The socket is bound, renamed and removed through a descriptor of its directory that is held from
before the bind until after the server has stopped:

- an address under `/proc/self/fd/N/` fits the 107 bytes of a Unix address, whatever the real path is;
- a directory that someone swaps for another, or for a symbolic link, is never followed (F-77);
- gRPC removes the path that it bound when it stops: with a closed and reused N it would remove
  another workload's socket.

The server binds a name of its own and renames it over `agent.sock` when it is ready: a client finds the
old server or the new one, never nothing and never a socket that it may not open yet.
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import grpc
import grpc.aio
from grpc_reflection.v1alpha import reflection

from mesh.clock import Clock, SystemClock
from mesh.errors import Category, Code, MeshError
from nodeagent import ads, sds, workload_api
from nodeagent.cache import WorkloadCache
from nodeagent.core.subscriptions import SessionEvents
from nodeagent.stream import StreamLimits, Streams

SOCKET_NAME: Final = "agent.sock"
MARKER_NAME: Final = ".gatehouse"
"""Keeps the kubelet from removing an empty volume directory under a running pod."""
FINISHED_NAME: Final = "finished"
"""Tells the proxy of a job that the pod's other containers have ended."""
SERVED: Final = (
    sds.SERVICE_NAME,
    ads.SERVICE_NAME,
    workload_api.SERVICE_NAME,
    reflection.SERVICE_NAME,
)
"""What reflection lists (W-10)."""

_MAX_MESSAGE: Final = 1 << 20  # an Envoy's first request is about 60 KiB, 1,000 names are 50 KiB more
_TEMPORARY_PREFIX: Final = ".agent.sock."
_SPARE_CALLS: Final = 16


class SocketCode(Code):
    """Why a socket could not be served."""

    NO_DIRECTORY = "socket_no_directory"
    NOT_A_DIRECTORY = "socket_not_a_directory"
    OWNER = "socket_directory_owner"
    WRITABLE = "socket_directory_writable"
    BIND = "socket_bind"
    RUNNING = "socket_running"


class SocketError(MeshError):
    """The directory or the socket is not as it must be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketOptions:
    """How sockets are made.

    Attributes:
        directory_mode: of a directory that is made here.
        socket_mode: 0666 lets every user of the pod connect; the directory decides which pod.
        socket_uid: owner of the socket; None = the agent's own.
        grace_seconds: how long streams may take to end when the server stops.
        limits: bounds on streams.
    """

    directory_mode: int = 0o755
    socket_mode: int = 0o666
    socket_uid: int | None = None
    grace_seconds: float = 0.5
    limits: StreamLimits = field(default_factory=StreamLimits)


class WorkloadSocket:
    """SDS, ADS, Workload API and reflection for one workload on `<directory>/agent.sock`.

    Args:
        directory: made if missing (its parent must exist); must be ours and not writable by others.
        cache: what the workload is served.
        clock: an expired SVID is never sent.
        events: told what happens on the streams.
        options: modes, limits and grace.
    """

    def __init__(
        self,
        directory: Path,
        cache: WorkloadCache,
        *,
        clock: Clock | None = None,
        events: SessionEvents | None = None,
        options: SocketOptions = SocketOptions(),
    ) -> None:
        self.directory = directory
        self._cache = cache
        self._clock = clock if clock is not None else SystemClock()
        self._events = events
        self._options = options
        self._directory_fd = -1
        self._inode = -1
        self._streams: Streams | None = None
        self._server: grpc.aio.Server | None = None

    @property
    def path(self) -> Path:
        """Where clients connect."""
        return self.directory / SOCKET_NAME

    @property
    def open_streams(self) -> int:
        """Calls that are open now."""
        return self._streams.open if self._streams is not None else 0

    async def start(self) -> None:
        """Listen; replaces whatever socket an earlier agent left.

        Raises:
            SocketError: the directory is a link, someone else's or writable by others, or the bind failed.
        """
        if self._server is not None:
            raise SocketError(SocketCode.RUNNING, f"{self.path}: is served already; stop it first")
        self._directory_fd = open_directory(self.directory, self._options.directory_mode)
        streams = Streams(self._cache, events=self._events, limits=self._options.limits)
        server = _server(streams, self._clock)
        try:
            temporary = _TEMPORARY_PREFIX + secrets.token_hex(8)
            self._bind(server, temporary)
            await server.start()
            self._publish(temporary)
        except BaseException as error:
            streams.close()
            await server.stop(None)
            self._close_directory()
            if isinstance(error, OSError):
                raise _bind_error(self.path, error.strerror or str(error)) from error
            raise
        self._streams, self._server = streams, server

    async def stop(self, *, remove: bool = False) -> None:
        """Stop listening and end all streams with UNAVAILABLE. Safe to call when not started.

        Args:
            remove: the workload is gone: remove the directory too.
        """
        server, streams = self._server, self._streams
        if server is None or streams is None:
            return
        self._server = self._streams = None
        streams.close()
        await server.stop(self._options.grace_seconds)
        if self._own_socket() is not None:
            os.unlink(SOCKET_NAME, dir_fd=self._directory_fd)
        if remove:
            with suppress(FileNotFoundError):
                os.unlink(MARKER_NAME, dir_fd=self._directory_fd)
            if self._in_place():
                with suppress(OSError):  # holds something that is not ours, or went away: not ours to force
                    self.directory.rmdir()
        self._close_directory()

    def intact(self) -> bool:
        """False when the directory or the socket was replaced or removed: stop, then start again."""
        return self._server is not None and self._in_place() and self._own_socket() is not None

    def _bind(self, server: grpc.aio.Server, name: str) -> None:
        address = f"unix:/proc/self/fd/{self._directory_fd}/{name}"
        try:
            server.add_insecure_port(address)
        except RuntimeError as error:
            raise _bind_error(self.path, str(error)) from error

    def _publish(self, temporary: str) -> None:
        fd = os.open(temporary, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._directory_fd)
        try:
            status = os.fstat(fd)
            if not stat.S_ISSOCK(status.st_mode):
                raise _bind_error(self.path, "what was bound is not a socket any more")
            proc = f"/proc/self/fd/{fd}"
            if self._options.socket_uid is not None:
                os.chown(proc, self._options.socket_uid, -1)
            Path(proc).chmod(self._options.socket_mode)
            self._inode = status.st_ino
        finally:
            os.close(fd)
        os.rename(temporary, SOCKET_NAME, src_dir_fd=self._directory_fd, dst_dir_fd=self._directory_fd)
        _remove_left_overs(self._directory_fd)
        marker = os.open(
            MARKER_NAME,
            os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC,
            0o644,
            dir_fd=self._directory_fd,
        )
        os.close(marker)

    def _own_socket(self) -> os.stat_result | None:
        try:
            status = os.stat(SOCKET_NAME, dir_fd=self._directory_fd, follow_symlinks=False)
        except FileNotFoundError:
            return None
        return status if status.st_ino == self._inode else None

    def _in_place(self) -> bool:
        try:
            now = self.directory.stat(follow_symlinks=False)
        except OSError:
            return False
        held = os.fstat(self._directory_fd)
        return (now.st_dev, now.st_ino) == (held.st_dev, held.st_ino)

    def _close_directory(self) -> None:
        if self._directory_fd >= 0:
            os.close(self._directory_fd)
            self._directory_fd = -1


def prepare_base(base: Path, mode: int = 0o711) -> None:
    """Make the directory that holds the workloads' directories.

    Args:
        base: made with its parents when missing.
        mode: 0711 lets processes of any user reach a directory whose name they know and list nothing;
            0700 when the directories are mounted elsewhere.

    Raises:
        SocketError: it is a link, someone else's or writable by others.
    """
    base.parent.mkdir(parents=True, exist_ok=True)
    os.close(open_directory(base, mode))


def open_directory(directory: Path, mode: int) -> int:
    """Make a directory if it is missing, and hold it.

    Returns:
        A descriptor; the caller closes it.

    Raises:
        SocketError: it cannot be made, is a link, someone else's or writable by others (F-77).
    """
    made = False
    try:
        with suppress(FileExistsError):
            directory.mkdir(mode=0o700)
            made = True
    except OSError as error:
        raise SocketError(
            SocketCode.NO_DIRECTORY,
            f"{directory}: cannot be made ({error.strerror}); its parent must exist and let the agent write",
            category=Category.FAILED_PRECONDITION,
        ) from error
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise SocketError(
            SocketCode.NOT_A_DIRECTORY,
            f"{directory}: must be a directory and not a link ({error.strerror}); remove it, it is made anew",
            category=Category.FAILED_PRECONDITION,
        ) from error
    try:
        if made:
            os.fchmod(fd, mode)
        status = os.fstat(fd)
        if status.st_uid != os.geteuid():
            raise SocketError(
                SocketCode.OWNER,
                f"{directory}: belongs to uid {status.st_uid}; must belong to uid {os.geteuid()} (the agent)",
                category=Category.FAILED_PRECONDITION,
            )
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise SocketError(
                SocketCode.WRITABLE,
                f"{directory}: mode {stat.S_IMODE(status.st_mode):04o} lets others write; chmod go-w it",
                category=Category.FAILED_PRECONDITION,
            )
    except BaseException:
        os.close(fd)
        raise
    return fd


def sweep_orphans(base: Path, keep: Collection[str]) -> list[str]:
    """Remove the directories of workloads that are gone.

    Only directories that hold nothing but what this module puts there are removed; links are never
    followed. Call it before sockets are started, or with the names of all that run.

    Args:
        base: the directory that holds the workloads' directories.
        keep: names of directories that belong to workloads.

    Returns:
        Names of the directories removed.
    """
    removed: list[str] = []
    for entry in _entries(base):
        if entry.name in keep or not entry.is_dir(follow_symlinks=False):
            continue
        names = [e.name for e in _entries(Path(entry.path))]
        if not all(is_ours(name) for name in names):
            continue
        if SOCKET_NAME not in names and MARKER_NAME not in names:
            continue
        shutil.rmtree(entry.path)
        removed.append(entry.name)
    return sorted(removed)


def _entries(directory: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as entries:
            return list(entries)
    except OSError:
        return []


def is_ours(name: str) -> bool:
    """True for the names that this module gives to files."""
    return name in {SOCKET_NAME, MARKER_NAME, FINISHED_NAME} or name.startswith(_TEMPORARY_PREFIX)


def _remove_left_overs(directory_fd: int) -> None:
    """Sockets that a killed agent had bound and not yet renamed."""
    for name in os.listdir(directory_fd):
        if name.startswith(_TEMPORARY_PREFIX):
            os.unlink(name, dir_fd=directory_fd)


def _bind_error(path: Path, detail: str) -> SocketError:
    return SocketError(
        SocketCode.BIND,
        f"{path}: cannot listen: {detail}; the agent needs /proc and a writable directory",
        category=Category.UNAVAILABLE,
    )


def _server(streams: Streams, clock: Clock) -> grpc.aio.Server:
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", _MAX_MESSAGE),
            ("grpc.max_concurrent_streams", streams.limits.streams + _SPARE_CALLS),
            # Envoy pings each 10 s; the default takes three idle pings in 5 minutes as an attack.
            ("grpc.http2.max_ping_strikes", 0),
            # gRPC's own books on calls and connections: nobody reads them, and each stream pays for them.
            ("grpc.enable_channelz", 0),
        ],
        maximum_concurrent_rpcs=streams.limits.streams + _SPARE_CALLS,
    )
    server.add_generic_rpc_handlers(
        (
            sds.SecretDiscovery(streams).handler(),
            ads.AggregatedDiscovery(streams).handler(),
            workload_api.WorkloadApi(streams, clock).handler(),
        )
    )
    reflection.enable_server_reflection(SERVED, server)
    return server
