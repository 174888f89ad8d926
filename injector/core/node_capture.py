"""What the capture agent of a node has to do, as values: which pods want rules, and when to try.

The rules stand in the arguments of the pod's container `istio-validation`, which nobody can change once the
pod is there. Whoever may create pods may write such a container by hand: what it says is parsed strictly
and concerns that pod's own network, so there is nothing to gain by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from injector.core import podjson
from injector.core.capture import CaptureCode, CaptureConfig, CaptureError
from injector.core.capture_cgroups import POD_UID
from injector.core.capture_messages import MessageCode, NamespaceCode
from injector.core.decision import VALIDATION, VALIDATION_COMMAND

PATIENCE = 3
"""Tries in a row that may find no sandbox, or no worker, before somebody is told."""
_NOT_YET = frozenset({NamespaceCode.NO_SANDBOX, NamespaceCode.NODE_NETWORK, MessageCode.AWAY})
_FIRST_PAUSE, _LONGEST_WAIT, _LONGEST_PAUSE = 0.2, 5.0, 30.0  # seconds
_UNPROVED_SECONDS = 5.0  # until the pod itself has seen its rules


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A pod of this node whose rules the node writes.

    Attributes:
        config: what is captured; None = what the pod says is refused.
        problem: why: a code and a sentence.
        first: no other init container runs before the one that waits. Otherwise those must still reach the
            network, as they do where the pod writes its own rules.
        started: the container that waits has been started: the sandbox is there, the others are through.
        proved: it has seen the rules.
        token: changes when the sandbox or that container is another one.
    """

    namespace: str
    name: str
    uid: str
    config: CaptureConfig | None
    problem: tuple[str, str]
    first: bool
    started: bool
    proved: bool
    token: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """What became of a pod's last try.

    Attributes:
        at: monotonic seconds.
        code: why it failed, "" = the rules are in force.
        failures: in a row, with the same token.
    """

    at: float
    token: str
    code: str = ""
    failures: int = 0
    network: str = ""


def read_wanted(item: Mapping[str, Any], *, node: str) -> Wanted | None:
    """A pod as the API server has it; None = it is no business of this node's agent."""
    spec, meta, status = (item.get(key) or {} for key in ("spec", "metadata", "status"))
    uid = str(meta.get("uid") or "")
    if (
        spec.get("nodeName") != node
        or spec.get("hostNetwork")
        or meta.get("deletionTimestamp")
        or status.get("phase") in {"Succeeded", "Failed"}
        or not POD_UID.fullmatch(uid)
    ):
        return None
    containers = podjson.listed(item, "initContainers")
    index = next((i for i, c in enumerate(containers) if c.get("name") == VALIDATION), None)
    if index is None or tuple(containers[index].get("command") or ()) != VALIDATION_COMMAND:
        return None
    config, problem = _config(containers[index].get("args") or ())
    return Wanted(
        namespace=str(meta.get("namespace") or ""),
        name=str(meta.get("name") or ""),
        uid=uid,
        config=config,
        problem=problem,
        first=index == 0,
        **_progress(status),
    )


def _config(arguments: Any) -> tuple[CaptureConfig | None, tuple[str, str]]:
    try:
        if not isinstance(arguments, list) or arguments[:1] != ["--config"] or len(arguments) < 2:
            raise CaptureError(
                CaptureCode.FORMAT,
                f"container {VALIDATION}: the first argument is not --config; next: let the injector make it",
            )
        return CaptureConfig.from_json(str(arguments[1])), ("", "")
    except CaptureError as error:
        return None, (str(error.code), error.public)


def _progress(status: Mapping[str, Any]) -> dict[str, Any]:
    found: Mapping[str, Any] = podjson.named(status.get("initContainerStatuses") or [], VALIDATION) or {}
    state, last = found.get("state") or {}, found.get("lastState") or {}
    ended = state.get("terminated") or {}
    return {
        "started": bool({"running", "terminated"} & state.keys() or "terminated" in last),
        "proved": ended.get("exitCode") == 0,
        "token": "/".join(
            [str(status.get("podIP") or ""), str(found.get("containerID") or ""), *sorted(state)]
        ),
    }


def due(wanted: Wanted, tried: Tried | None, *, now: float, recheck: float) -> float | None:
    """When to try, in monotonic seconds; None = not before the pod changes.

    Args:
        recheck: seconds between two looks at the rules of a pod that runs.
    """
    if wanted.config is None:
        return now if tried is None else None  # the arguments stay as they are: told once
    if not wanted.first and not wanted.started:
        return None
    if tried is None or tried.token != wanted.token:
        return now
    if tried.code:
        longest = _LONGEST_PAUSE if wanted.started else _LONGEST_WAIT
        return tried.at + min(longest, _FIRST_PAUSE * 2.0 ** min(tried.failures, 16))
    return tried.at + (recheck if wanted.proved else min(recheck, _UNPROVED_SECONDS))


def is_news(wanted: Wanted, tried: Tried) -> bool:
    """Whether a failure is worth an Event: not while sandbox or worker may only not be there yet."""
    if tried.code in _NOT_YET:
        # A pod that has seen its rules has them still: a worker that is away is no affair of that pod's.
        waits = wanted.started and not (wanted.proved and tried.code == MessageCode.AWAY)
        return waits and tried.failures >= PATIENCE
    return bool(tried.code)
