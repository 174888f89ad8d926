"""`rotation.json` of the Secret, and the annotations by which people ask for a step: strict in both.

The file is schema 1. A program that finds another schema must not guess where a rotation stands, so it
refuses.
"""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Mapping
from typing import Any, Final

from ca.core.rotation import (
    INITIAL,
    MAX_FORMER,
    MAX_ID,
    MAX_WITHIN,
    MIN_WITHIN,
    Handled,
    Request,
    RotationCode,
    RotationError,
    RotationState,
)
from mesh.ca_status import (
    FORCE_ANNOTATION,
    REQUEST_ANNOTATION,
    REQUEST_ID_ANNOTATION,
    WITHIN_ANNOTATION,
    Phase,
    Step,
)

SCHEMA: Final = 1
MAX_STATE_BYTES: Final = 16 << 10
MAX_NUMBER: Final = 1 << 53
"""Of generations and epochs: what every JSON reader can hold."""
ANNOTATIONS: Final = (REQUEST_ANNOTATION, FORCE_ANNOTATION, WITHIN_ANNOTATION, REQUEST_ID_ANNOTATION)
_FIELDS: Final = frozenset(
    {
        "schema",
        "phase",
        "generation",
        "epoch",
        "since",
        "retire_after",
        "taint_within_seconds",
        "forced",
        "handled",
        "former",
    }
)
_HANDLED: Final = frozenset({"step", "id", "text", "at"})
_MAX_TEXT: Final = 1000
_DIGEST: Final = re.compile("[0-9a-f]{64}")


def encode_state(state: RotationState) -> str:
    """The text of `rotation.json`."""
    handled = state.handled
    within = state.taint_within
    found = {
        "schema": SCHEMA,
        "phase": state.phase.value,
        "generation": state.generation,
        "epoch": state.epoch,
        "since": _format(state.since),
        "retire_after": _format(state.retire_after),
        "taint_within_seconds": int(within.total_seconds()) if within is not None else None,
        "forced": [step.value for step in state.forced],
        "former": list(state.former),
        "handled": None
        if handled is None
        else {
            "step": handled.step.value,
            "id": handled.id,
            "text": handled.text,
            "at": _format(handled.at),
        },
    }
    return json.dumps(found, sort_keys=True)


def decode_state(text: str | None) -> RotationState:
    """Read `rotation.json`; None, when there is no such file, is the state before any rotation.

    Raises:
        RotationError: STATE.
    """
    if text is None:
        return INITIAL
    if len(text) > MAX_STATE_BYTES:
        raise _broken(f"has over {MAX_STATE_BYTES} bytes")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise _broken("is not JSON") from e
    if not isinstance(found, dict):
        raise _broken("is no JSON object")
    if found.get("schema") != SCHEMA:
        raise _broken(
            f"has the schema {str(found.get('schema'))[:20]!r}, known is {SCHEMA}; use a newer program"
        )
    try:
        state = _state(found)
    except (KeyError, TypeError, ValueError, OverflowError) as e:
        raise _broken(f"has a wrong or missing field: {type(e).__name__} {str(e)[:100]}") from e
    _consistent(state)
    return state


def _broken(what: str) -> RotationError:
    return RotationError(RotationCode.STATE, f"rotation.json {what}; restore the Secret as a whole")


def _state(found: Mapping[str, Any]) -> RotationState:
    unknown = sorted(set(found) - _FIELDS)
    if unknown:
        raise ValueError(f"unknown {unknown[0][:40]!r}")
    phase = Phase(found["phase"])
    within = found["taint_within_seconds"]
    forced, former = found["forced"], found["former"]
    if not isinstance(forced, list) or not isinstance(former, list):
        raise TypeError("forced or former")
    if len(former) > MAX_FORMER or not all(isinstance(f, str) and _DIGEST.fullmatch(f) for f in former):
        raise ValueError("former")
    return RotationState(
        phase=phase,
        generation=_number(found["generation"]),
        epoch=_number(found["epoch"]),
        since=_optional_time(found["since"]),
        retire_after=_optional_time(found["retire_after"]),
        taint_within=dt.timedelta(seconds=_number(within)) if within is not None else None,
        forced=tuple(Step(step) for step in forced),
        handled=_handled(found["handled"]),
        former=tuple(former),
    )


def _consistent(state: RotationState) -> None:
    moving = state.phase in {Phase.ACTIVE, Phase.TAINTED}
    tainted = state.phase is Phase.TAINTED
    if state.phase is Phase.PLUGGED:
        raise _broken("has the phase plugged, which no Secret has")
    if (state.retire_after is not None) != moving or (state.taint_within is not None) != tainted:
        raise _broken(f"has times that do not belong to the phase {state.phase}")
    if state.phase is not Phase.STABLE and state.since is None:
        raise _broken(f"does not say since when the phase is {state.phase}")
    if state.taint_within is not None and not MIN_WITHIN <= state.taint_within <= MAX_WITHIN:
        raise _broken("has a time of renewals out of bounds")


def _handled(found: object) -> Handled | None:
    if found is None:
        return None
    if not isinstance(found, dict) or set(found) != _HANDLED:
        raise ValueError("handled")
    text, request_id, at = found["text"], found["id"], _optional_time(found["at"])
    if not isinstance(text, str) or not isinstance(request_id, str) or at is None:
        raise TypeError("handled")
    if len(text) > _MAX_TEXT or len(request_id) > MAX_ID:
        raise ValueError("handled is too long")
    return Handled(step=Step(found["step"]), id=request_id, text=text, at=at)


def _number(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < MAX_NUMBER:
        raise ValueError(f"{str(value)[:40]!r} is no number from 1 on")
    return value


def _format(at: dt.datetime | None) -> str | None:
    if at is None:
        return None
    return at.astimezone(dt.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _optional_time(value: object) -> dt.datetime | None:
    if value is None:
        return None
    if not isinstance(value, str) or len(value) > 40:
        raise ValueError("a time is text")
    found = dt.datetime.fromisoformat(value)
    if found.tzinfo is None:
        raise ValueError(f"{value!r} has no time zone")
    return found.astimezone(dt.UTC)


def is_request(annotations: Mapping[str, Any]) -> bool:
    """True when somebody asks for something, well or badly."""
    return REQUEST_ANNOTATION in annotations


def request_id(annotations: Mapping[str, Any]) -> str:
    """The identifier as far as it can be given back; empty when it cannot."""
    found = annotations.get(REQUEST_ID_ANNOTATION)
    return found if isinstance(found, str) and _is_id(found) else ""


def read_request(annotations: Mapping[str, Any]) -> Request:
    """What the annotations of the ConfigMap ask for; `is_request` must hold.

    Raises:
        RotationError: STEP, FORCE, WITHIN or REQUEST_ID.
    """
    step = read_step(annotations)
    if step is None:
        known = ", ".join(Step)
        raise RotationError(
            RotationCode.STEP,
            f"{_short(annotations[REQUEST_ANNOTATION])} is no step of a rotation; allowed are {known}",
        )
    force = annotations.get(FORCE_ANNOTATION, "false")
    if force not in {"true", "false"}:
        raise RotationError(
            RotationCode.FORCE, f"{FORCE_ANNOTATION} is {_short(force)}; allowed are true and false"
        )
    found = annotations.get(REQUEST_ID_ANNOTATION, "")
    if found != "" and not _is_id(found):
        raise RotationError(
            RotationCode.REQUEST_ID,
            f"{REQUEST_ID_ANNOTATION} must have 1 to {MAX_ID} printable ASCII characters",
        )
    within = _within(annotations.get(WITHIN_ANNOTATION), step)
    return Request(step=step, force=force == "true", within=within, id=str(found))


def read_step(annotations: Mapping[str, Any]) -> Step | None:
    """The step that is asked for; None when it is none."""
    try:
        return Step(str(annotations.get(REQUEST_ANNOTATION)))
    except ValueError:
        return None


def _is_id(found: object) -> bool:
    return isinstance(found, str) and 1 <= len(found) <= MAX_ID and found.isascii() and found.isprintable()


def _within(found: object, step: Step) -> dt.timedelta | None:
    if step is not Step.TAINT:
        if found is not None:
            raise RotationError(
                RotationCode.WITHIN, f"{WITHIN_ANNOTATION} belongs to taint; {step} takes no such time"
            )
        return None
    least, most = int(MIN_WITHIN.total_seconds()), int(MAX_WITHIN.total_seconds())
    good = isinstance(found, str) and found.isascii() and found.isdecimal() and len(found) <= 9
    if not good or not least <= int(str(found)) <= most:
        raise RotationError(
            RotationCode.WITHIN,
            f"{WITHIN_ANNOTATION} is {_short(found)}; taint needs whole seconds from {least} to {most}, the"
            " time over which renewals are spread",
        )
    return dt.timedelta(seconds=int(str(found)))


def _short(value: object) -> str:
    return "absent" if value is None else repr(str(value)[:40])
