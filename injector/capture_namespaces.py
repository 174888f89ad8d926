"""Finds the network namespace of a pod of this node, and enters it: what the capture worker needs rights for.

A namespace is held by a descriptor, never by a path: a process may end and its number be another's at any
moment, so what it is is looked at again after the descriptor is open. Never entered are the node's own
namespace and one that another pod is in, whatever anybody says. Standard library only.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from injector.core.capture_cgroups import MAX_BYTES, pod_uid, state_and_start
from injector.core.capture_messages import NamespaceCode
from mesh.errors import Category, MeshError

PROC = Path("/proc")
_CLONE_NEWNET = 0x40000000
_GONE_STATES = "ZXx"
_NSFS = "net"

NamespaceId = tuple[int, int]
"""Device and inode: the identity of a namespace while somebody holds it."""


class NamespaceError(MeshError):
    """The network namespace of a pod cannot be used."""


@dataclass(frozen=True, slots=True)
class Process:
    """A process of this node.

    Attributes:
        pod: UID of its pod, None = of the node.
        start: clock ticks; with `pid` it tells processes apart.
    """

    pid: int
    start: int
    pod: str | None


@dataclass(frozen=True, slots=True)
class Node:
    """The node, as a container in its process namespace sees it.

    Attributes:
        proc: where processes are.
        own: namespaces that are never entered: the node's, and that of this process.
        pod: UID of the pod of this process, None = it has none or does not see it.
    """

    proc: Path
    own: frozenset[NamespaceId]
    pod: str | None

    @classmethod
    def look(cls, proc: Path = PROC) -> Node:
        """Look around, once at the start.

        Raises:
            NamespaceError: the node's processes or its network cannot be seen: nobody could tell then what
                must never be touched.
        """
        try:
            node, own = (_identity(proc / name / "ns" / _NSFS) for name in ("1", "self"))
            pod = pod_uid(_read(proc / "self" / "cgroup"))
        except OSError as error:
            raise NamespaceError(
                NamespaceCode.NO_HOST,
                f"the network of process 1 cannot be seen ({error.strerror}); next: hostPID, and SYS_PTRACE",
                category=Category.FAILED_PRECONDITION,
            ) from error
        if node == own:
            raise NamespaceError(
                NamespaceCode.NO_HOST,
                "process 1 is in the network of this container; next: hostPID without hostNetwork",
                category=Category.FAILED_PRECONDITION,
            )
        return cls(proc, frozenset({node, own}), pod)

    def processes(self) -> Iterator[Process]:
        """Everything that runs now; what ends meanwhile is left out."""
        for name in (path.name for path in self.proc.iterdir()):
            if name.isdecimal() and (process := self._process(int(name))) is not None:
                yield process

    def open_network(self, uid: str) -> int:
        """A descriptor of the pod's network namespace; the caller closes it.

        It is that of the pod's oldest process: the sandbox, in which containers only start later. (A
        container may well make namespaces of its own.) Passed over are processes in the node's network: some
        runtimes keep a monitor in the pod's control group, and each container is there for a moment before
        it is where it belongs.

        Raises:
            NamespaceError: there is none, or it is not the pod's alone.
        """
        found = list(self.processes())
        mine = sorted((p for p in found if p.pod == uid), key=lambda p: (p.start, p.pid))
        if not mine:
            raise _no_sandbox("no process of the pod runs on this node yet")
        for process in mine:
            descriptor = self._open(process)
            try:
                identity = _descriptor_identity(descriptor)
                if identity not in self.own:
                    self._alone(identity, uid, found)
                    return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)
        raise NamespaceError(
            NamespaceCode.NODE_NETWORK,
            "the pod is in the network of the node, which is never touched; next: no sidecar for pods with"
            " hostNetwork",
            category=Category.PERMISSION_DENIED,
        )

    def _open(self, process: Process) -> int:
        try:
            descriptor = os.open(self.proc / str(process.pid) / "ns" / _NSFS, os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, ProcessLookupError) as error:
            raise _no_sandbox("the pod's process has just ended") from error
        except OSError as error:
            raise _cannot_enter(f"opening it: {error.strerror}") from error
        if self._process(process.pid) != process:
            os.close(descriptor)
            raise _no_sandbox("the number of the pod's process is another's by now")
        return descriptor

    def _alone(self, identity: NamespaceId, uid: str, processes: list[Process]) -> None:
        for other in processes:
            if other.pod in {None, uid, self.pod}:
                continue  # of the node, or a worker of ours that is at work in there
            try:
                shared = _identity(self.proc / str(other.pid) / "ns" / _NSFS) == identity
            except OSError:
                continue
            if shared and self._process(other.pid) == other:
                raise NamespaceError(
                    NamespaceCode.SHARED,
                    f"the pod shares its network with pod {other.pod}; neither is touched",
                    category=Category.PERMISSION_DENIED,
                )

    def _process(self, pid: int) -> Process | None:
        try:
            read = state_and_start(_read(self.proc / str(pid) / "stat"))
            if read is None or read[0] in _GONE_STATES:
                return None
            return Process(pid, read[1], pod_uid(_read(self.proc / str(pid) / "cgroup")))
        except OSError:
            return None


def enter(descriptor: int) -> NamespaceId:
    """Move this process into a network namespace for good; returns its identity. Only for children.

    Raises:
        NamespaceError: the kernel refuses.
    """
    wanted = _descriptor_identity(descriptor)
    libc = ctypes.CDLL(None, use_errno=True)  # os.setns is there from Python 3.12 on
    if libc.setns(descriptor, _CLONE_NEWNET):
        raise _cannot_enter(f"setns: {os.strerror(ctypes.get_errno())}")
    if _identity(PROC / "self" / "ns" / _NSFS) != wanted:
        raise _cannot_enter("the process is not where it should be")
    return wanted


def _identity(path: Path) -> NamespaceId:
    found = path.stat()
    return found.st_dev, found.st_ino


def _descriptor_identity(descriptor: int) -> NamespaceId:
    found = os.fstat(descriptor)
    return found.st_dev, found.st_ino


def _read(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(MAX_BYTES).decode("utf-8", "replace")


def _no_sandbox(text: str) -> NamespaceError:
    return NamespaceError(NamespaceCode.NO_SANDBOX, text, category=Category.UNAVAILABLE)


def _cannot_enter(detail: str) -> NamespaceError:
    return NamespaceError(
        NamespaceCode.ENTER,
        f"the pod's network namespace cannot be entered ({detail}); next: the worker needs the capabilities"
        " SYS_ADMIN, SYS_PTRACE and NET_ADMIN, and no AppArmor or SELinux profile against them",
        category=Category.INTERNAL,
    )
