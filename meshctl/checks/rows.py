"""Rows of `meshctl check`: what was looked at, what is wrong, what is to be done."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from mesh.kube.api import KubeCode, KubeError
from meshctl.cluster import Cluster, Installation
from meshctl.errors import CtlCode, CtlError

_SILENT: Final = frozenset({KubeCode.UNREACHABLE, KubeCode.UNAUTHORIZED, KubeCode.CONFIG})


class Status(enum.Enum):
    """How a row ended."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    SKIP = "skip"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One answer.

    Attributes:
        check: stable name.
        message: what was found.
        next: what to do, commands apart by `; `; empty for `ok`.
        objects: names that the message is about.
    """

    check: str
    status: Status
    message: str
    next: str = ""
    objects: Sequence[str] = ()

    def to_json(self) -> Mapping[str, Any]:
        """For programs; field names are stable."""
        return {
            "check": self.check,
            "status": self.status.value,
            "message": self.message,
            "next": self.next,
            "objects": list(self.objects),
        }


@dataclass(frozen=True, slots=True)
class View:
    """What checks may look at.

    Attributes:
        found: the installation; None before it, and when there is none.
        only: namespace of the pods that are looked at; None = all.
    """

    cluster: Cluster
    found: Installation | None = None
    only: str | None = None

    @property
    def installed(self) -> Installation:
        """The installation.

        Raises:
            CtlError: there is none.
        """
        if self.found is None:
            raise CtlError(CtlCode.NOT_INSTALLED, "Gatehouse is not installed")
        return self.found

    @property
    def pods(self) -> Sequence[Mapping[str, Any]]:
        """The pods that are looked at.

        Raises:
            KubeError: not allowed or no answer.
        """
        where = f"/namespaces/{self.only}" if self.only else ""
        return self.cluster.items(f"/api/v1{where}/pods")


Check = Callable[[View], Iterable[Row]]


def ok(check: str, message: str) -> Row:
    """All is well."""
    return Row(check=check, status=Status.OK, message=message)


def warn(check: str, message: str, then: str, objects: Sequence[str] = ()) -> Row:
    """Somebody should look at it."""
    return Row(check=check, status=Status.WARN, message=message, next=then, objects=objects)


def fail(check: str, message: str, then: str, objects: Sequence[str] = ()) -> Row:
    """Something does not work, or will not."""
    return Row(check=check, status=Status.FAIL, message=message, next=then, objects=objects)


def skip(check: str, message: str, then: str = "") -> Row:
    """It cannot be known."""
    return Row(check=check, status=Status.SKIP, message=message, next=then)


def many(count: int, noun: str, plural: str = "") -> str:
    """`1 node`, `2 nodes`; of another plural where one is given."""
    return f"{count} {noun if count == 1 else plural or f'{noun}s'}"


def run_check(name: str, check: Check, view: View) -> list[Row]:
    """Rows of one check; what may not be read becomes a row too.

    Raises:
        KubeError: the API server does not answer at all, or does not know us.
    """
    try:
        return list(check(view))
    except KubeError as error:
        if error.code in _SILENT:
            raise
        if error.code is KubeCode.FORBIDDEN:
            return [skip(name, error.public, "run it as a user who may read this")]
        return [warn(name, f"cannot be checked: {error.public}", "try again; then look at the API server")]
