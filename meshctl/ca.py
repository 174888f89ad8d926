"""`meshctl ca`: where the rotation of roots stands, and the next step of it.

The authority's leader writes its status into a ConfigMap and reads requests there (`mesh.ca_status`); this is
the other side. Who may edit that ConfigMap may rotate.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from mesh.ca_status import (
    CONFIG_MAP,
    FORCE_ANNOTATION,
    REQUEST_ANNOTATION,
    REQUEST_ID_ANNOTATION,
    STATUS_KEY,
    WITHIN_ANNOTATION,
    CaStatus,
    Phase,
    Step,
    decode,
)
from mesh.errors import Category
from mesh.kube.api import KubeCode, KubeError, PatchType
from meshctl.cluster import Cluster, annotations_of, connect, metadata_of
from meshctl.errors import CtlCode, CtlError, bad_argument
from meshctl.exits import EXIT_OK, EXIT_PROBLEM
from meshctl.rotation import document, path, problems, show
from meshctl.terminal import Screen

ASK_EVERY: Final = 0.5
"""Seconds between two looks for an answer; the authority looks every few seconds."""
TRIES: Final = 5
"""Of a request: the authority writes there too."""
MAX_WAIT: Final = 3600.0
_DURATION = re.compile(r"([1-9][0-9]{0,6})([smhd])")
_UNITS: Final[Mapping[str, int]] = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_MAX_WITHIN: Final = 30 * 86400
_BREAKS: Final[Mapping[Step, str]] = {
    Step.ACTIVATE: "workloads that do not have the next root yet may refuse certificates of it",
    Step.RETIRE: "certificates of the former root are refused from then on, wherever they still are",
}


@dataclass(frozen=True, slots=True)
class Found:
    """What the ConfigMap says.

    Attributes:
        asked: the step of a request that was not answered yet; empty when there is none.
        version: of the ConfigMap.
    """

    status: CaStatus
    asked: str
    version: str


def run_ca(options: argparse.Namespace, screen: Screen) -> int:
    """Show the status, or ask for a step and wait for the answer."""
    if options.step == "status":
        return _status(options, screen)
    return _ask(Step(options.step), options, screen)


def read_status(cluster: Cluster, namespace: str = "") -> Found:
    """Where the rotation stands.

    Args:
        namespace: of the authority; the cluster's mesh namespace by default.

    Raises:
        CtlError: the authority has not told, or told something else.
        KubeError: not allowed or no answer.
    """
    namespace = namespace or cluster.mesh_namespace
    where = f"ConfigMap {namespace}/{CONFIG_MAP}"
    item = cluster.get(_path(namespace))
    text = ((item or {}).get("data") or {}).get(STATUS_KEY)
    if item is None or not isinstance(text, str):
        raise CtlError(
            CtlCode.NO_STATUS,
            f"{where} has no {STATUS_KEY}: no authority leads there, or it is too old to tell;"
            f" next: kubectl -n {namespace} logs deploy/gatehouse-ca",
            category=Category.INTERNAL,
        )
    asked = str(annotations_of(item).get(REQUEST_ANNOTATION, ""))[:40]
    return Found(decode(text), asked, str(metadata_of(item).get("resourceVersion", "")))


def _path(namespace: str) -> str:
    return f"/api/v1/namespaces/{namespace}/configmaps/{CONFIG_MAP}"


def _status(options: argparse.Namespace, screen: Screen) -> int:
    cluster = connect(options)
    told, now = read_status(cluster), cluster.local_now()
    status = told.status
    found = problems(status, now, cluster.mesh_namespace, asked=told.asked)
    if options.output == "json":
        screen.say_json(document(status, found))
    else:
        show(screen, status, found, now, cluster.mesh_namespace)
    return EXIT_PROBLEM if found else EXIT_OK


# --- asking for a step ---------------------------------------------------------------------------------


def within(text: str) -> int:
    """Whole seconds of a duration such as `90s`, `30m`, `24h` or `2d`.

    Raises:
        CtlError: another form, or over 30 days.
    """
    match = _DURATION.fullmatch(text)
    seconds = int(match[1]) * _UNITS[match[2]] if match else 0
    if not 0 < seconds <= _MAX_WITHIN:
        raise bad_argument(f"--within {text[:40]!r}: give 1s to 30d, e.g. 90s, 30m, 24h or 2d")
    return seconds


def _ask(step: Step, options: argparse.Namespace, screen: Screen) -> int:
    if not 0 <= options.wait <= MAX_WAIT:
        raise bad_argument(f"--wait {options.wait}: allowed are seconds from 0 to {MAX_WAIT:.0f}")
    notes = {REQUEST_ANNOTATION: step.value, REQUEST_ID_ANNOTATION: uuid.uuid4().hex}
    if step is Step.TAINT:
        notes[WITHIN_ANNOTATION] = str(within(options.within))
    force = bool(getattr(options, "force", False))
    if force:
        notes[FORCE_ANNOTATION] = "true"
    cluster = connect(options)
    version = _free(cluster, step)
    if force:
        _confirm(step, options, screen)
    _put(cluster, step, notes, version)
    if options.wait == 0:
        screen.remark(f"asked for {step}; next: meshctl ca status")
        return EXIT_OK
    answered = _wait(cluster, notes[REQUEST_ID_ANNOTATION], options.wait)
    return _told(answered, step, options, screen)


def _free(cluster: Cluster, step: Step) -> str:
    """The version of a ConfigMap in which nobody waits for an answer.

    Raises:
        CtlError: somebody does, or this authority rotates nothing.
    """
    found = read_status(cluster)
    if found.status.phase is Phase.PLUGGED:
        raise CtlError(
            CtlCode.PLUGGED,
            f"{step}: the CA comes from files (ca.existingSecret), and whoever makes them rotates it;"
            " next: docs/rotation.md, a CA of your own",
            category=Category.INTERNAL,
        )
    if found.asked:
        raise CtlError(
            CtlCode.UNANSWERED,
            f"somebody asked for {found.asked!r} and has no answer yet: whoever leads answers within seconds;"
            " next: meshctl ca status",
            category=Category.INTERNAL,
        )
    return found.version


def _put(cluster: Cluster, step: Step, notes: Mapping[str, str], version: str) -> None:
    """Write a request, and never over another one: the ConfigMap must be as it was seen.

    Raises:
        CtlError: somebody else asks.
        KubeError: not allowed or no answer.
    """
    for left in reversed(range(TRIES)):
        metadata = {"resourceVersion": version, "annotations": notes}
        try:
            cluster.api.patch(_path(cluster.mesh_namespace), {"metadata": metadata}, PatchType.MERGE)
        except KubeError as error:
            if error.code is not KubeCode.CONFLICT or not left:
                raise
            version = _free(cluster, step)
        else:
            return


def _confirm(step: Step, options: argparse.Namespace, screen: Screen) -> None:
    """By force only knowingly.

    Raises:
        CtlError: no.
    """
    if options.yes:
        return
    danger = _BREAKS.get(step, "nothing is waited for")
    if not sys.stdin.isatty():
        raise bad_argument(f"{step} --force: {danger}; next: add --yes if that is meant")
    screen.remark(f"{step} by force: {danger}.")
    screen.err.write(f"Type {step} to go on: ")
    screen.err.flush()
    if sys.stdin.readline().strip() != step:
        raise CtlError(CtlCode.ARGUMENT, f"{step} was not asked for: nothing was changed")


def _wait(
    cluster: Cluster,
    request: str,
    seconds: float,
    *,
    monotonic: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
) -> CaStatus:
    """The status, as soon as it has the answer.

    Raises:
        CtlError: no answer in time. The request stays: an authority that comes back answers it.
    """
    deadline = monotonic() + seconds
    problem = ""
    while monotonic() < deadline:
        try:
            status = read_status(cluster).status
            if status.answer is not None and status.answer.id == request:
                return status
        except KubeError as error:
            if error.code is KubeCode.FORBIDDEN:
                raise
            problem = f": {error.public}"  # it may be on its way back
        pause(ASK_EVERY)
    raise CtlError(
        CtlCode.UNANSWERED,
        f"no answer within {seconds:g} s{problem}; the request stays, and is answered when an authority leads"
        f" again; next: meshctl ca status; kubectl -n {cluster.mesh_namespace} logs deploy/gatehouse-ca",
        category=Category.UNAVAILABLE,
    )


def _told(status: CaStatus, step: Step, options: argparse.Namespace, screen: Screen) -> int:
    answer = status.answer
    if answer is None:
        raise AssertionError("an answer was waited for")
    if options.output == "json":
        found: dict[str, Any] = status.to_json()
        screen.say_json(found["answer"] | {"phase": status.phase.value})
        return EXIT_OK if answer.done else EXIT_PROBLEM
    if not answer.done:
        screen.refuse(f"{answer.text}; next: meshctl ca status", answer.code)
        return EXIT_PROBLEM
    screen.say(answer.text)
    screen.say(path(screen, status.phase))
    screen.say(f"next: {_AFTER[step]}")
    return EXIT_OK


_AFTER: Final[Mapping[Step, str]] = {
    Step.PREPARE: "meshctl ca status shows who has acknowledged the roots; then it is activated",
    Step.ACTIVATE: "nothing: certificates move as they are renewed, and then the former root goes",
    Step.TAINT: "meshctl ca status shows how many certificates of the former root are left",
    Step.RETIRE: "meshctl check",
    Step.ABORT: "nothing: the current root signs as before",
}
