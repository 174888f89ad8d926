"""The rotation of roots as a state machine: where it stands, what comes next, and what that waits for.

Everything here is a value: the state is what `rotation.json` of the Secret holds, `plan` decides, `apply`
says what the state is after a step. Who may act, and how it is written, is the business of others. The phases
and the reasons for the order are in docs/adr/0014.

The law: while no step is forced, and replicas read a change within `RotationSettings.hold`, the bundle of
every workload has the root of every certificate that has not ended.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final

from mesh.ca_status import AgentCounts, Phase, Step, Waiting
from mesh.errors import Category, Code, MeshError

MIN_WITHIN: Final = dt.timedelta(seconds=1)
MAX_WITHIN: Final = dt.timedelta(days=30)
MAX_ID: Final = 128
"""Characters of the identifier of a request."""
MAX_FORMER: Final = 16
"""Former signing roots that are remembered."""
_SHOWN: Final = 5  # names in a sentence
_NONE: Final = AgentCounts()


class RotationCode(Code):
    """Why a step was refused, or what it waits for."""

    PHASE = "rotation_phase"
    PLUGGED = "rotation_plugged"
    HOLD = "rotation_hold"
    AGENTS = "rotation_agents"
    PENDING = "rotation_pending"
    UNPUBLISHED = "rotation_unpublished"
    LEAVES = "rotation_leaves"
    OUTDATED = "rotation_outdated"
    STEP = "rotation_step"
    FORCE = "rotation_force"
    WITHIN = "rotation_within"
    REQUEST_ID = "rotation_request_id"
    STATE = "rotation_state"


class RotationError(MeshError):
    """A step that is not taken, or a state that cannot be read."""

    def __init__(self, code: RotationCode, public: str) -> None:
        super().__init__(code, public, category=Category.FAILED_PRECONDITION)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a person asks for.

    Attributes:
        force: do not wait for what the step would wait for; never changes which steps a phase allows.
        within: of `taint`: the time over which renewals are spread.
        id: chosen by who asks; empty when somebody gave none.
    """

    step: Step
    force: bool = False
    within: dt.timedelta | None = None
    id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Handled:
    """The newest step that was taken because somebody asked: it must be answered, and not taken twice.

    Attributes:
        text: of the answer.
    """

    step: Step
    id: str
    text: str
    at: dt.datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class RotationState:
    """Where a rotation stands.

    Attributes:
        generation: of the bundle; rises with each change of the roots.
        epoch: of the signing root; rises with each activation.
        since: when the phase began; None when nobody knows, as before the first step.
        retire_after: active and tainted: no leaf of the former root lives longer.
        taint_within: tainted: time from `since` over which renewals are spread.
        forced: steps of this rotation that were forced.
        handled: what was done for a person last.
        former: SHA-256 of the roots that signed before, lower-case hexadecimal, newest first. By them whoever
            has missed steps knows that it is the same authority.
    """

    phase: Phase = Phase.STABLE
    generation: int = 1
    epoch: int = 1
    since: dt.datetime | None = None
    retire_after: dt.datetime | None = None
    taint_within: dt.timedelta | None = None
    forced: tuple[Step, ...] = ()
    handled: Handled | None = None
    former: tuple[str, ...] = ()

    def renew_within(self, now: dt.datetime) -> dt.timedelta:
        """What is left of the time over which certificates of earlier epochs are renewed ahead of time.

        Zero while they are renewed when they are due; at least a second while tainted.
        """
        if self.phase is not Phase.TAINTED or self.since is None or self.taint_within is None:
            return dt.timedelta(0)
        return max(MIN_WITHIN, self.since + self.taint_within - now)


INITIAL: Final = RotationState()
"""A Secret without `rotation.json`: made before there was one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RotationSettings:
    """What the configuration says.

    Attributes:
        automatic: steps are taken without being asked for.
        hold: from prepare to activate at least; must hold the time in which all replicas read the Secret.
        prepare_before: how long before its end a root is replaced.
        leaf_lifetime: the longest of any leaf.
        margin: added to it: clocks that differ, and replicas that read the switch late.
    """

    automatic: bool = True
    hold: dt.timedelta = dt.timedelta(hours=1)
    prepare_before: dt.timedelta = dt.timedelta(days=30)
    leaf_lifetime: dt.timedelta = dt.timedelta(hours=48)
    margin: dt.timedelta = dt.timedelta(minutes=10)


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known at one moment.

    Attributes:
        root_not_before: start of the signing root, and `root_not_after` its end.
        counts: for the bundle, generation and epoch of the state that is planned for.
        unpublished: namespaces without the bundle; None while that is not known.
    """

    now: dt.datetime
    root_not_before: dt.datetime
    root_not_after: dt.datetime
    counts: AgentCounts = _NONE
    unpublished: tuple[str, ...] | None = ()
    request: Request | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What to do now, and what is to come.

    Attributes:
        step: to take now; None when there is nothing to do.
        forced: something was still waited for.
        refused: why the request is not granted; None when it is, or there is none.
        next_step: what comes next by itself.
        next_at: not before this; None when it is not a matter of time.
        waiting: what `next_step` waits for, beside the time. When steps are not automatic: what the next one
            would wait for if somebody asked.
    """

    step: Step | None = None
    forced: bool = False
    refused: RotationError | None = None
    next_step: Step | None = None
    next_at: dt.datetime | None = None
    waiting: tuple[Waiting, ...] = ()


@dataclass(frozen=True, slots=True)
class _Outlook:
    """A step: not before a time, and what else it waits for."""

    step: Step
    at: dt.datetime | None
    time_code: RotationCode
    waiting: tuple[Waiting, ...] = field(default=())

    def blocked(self, now: dt.datetime) -> Waiting | None:
        """The first reason not to take it now."""
        if self.at is not None and now <= self.at:
            text = f"{self.step} waits until {_time(self.at)}: {_WHY[self.time_code]}"
            return Waiting(code=self.time_code, text=text)
        return self.waiting[0] if self.waiting else None


_FROM: Final[Mapping[Step, frozenset[Phase]]] = MappingProxyType(
    {
        Step.PREPARE: frozenset({Phase.STABLE}),
        Step.ACTIVATE: frozenset({Phase.PREPARED}),
        Step.TAINT: frozenset({Phase.ACTIVE}),
        Step.RETIRE: frozenset({Phase.ACTIVE, Phase.TAINTED}),
        Step.ABORT: frozenset({Phase.PREPARED}),
    }
)
_WHY: Final[Mapping[RotationCode, str]] = MappingProxyType(
    {
        RotationCode.HOLD: "everything that reads the roots gets time to have them",
        RotationCode.LEAVES: "certificates of the former root may live until then",
    }
)


def prepare_at(not_before: dt.datetime, not_after: dt.datetime, settings: RotationSettings) -> dt.datetime:
    """When the next root is made by itself: when less than min(life/2, `prepare_before`) is left."""
    return not_after - min((not_after - not_before) / 2, settings.prepare_before)


def plan(state: RotationState, facts: Facts, settings: RotationSettings) -> Decision:
    """The one step to take now, and the outlook.

    A request is answered first; when it is refused, nothing else happens in this round.
    """
    request = facts.request
    if state.phase is Phase.PLUGGED:
        return Decision(refused=_refusal(state, request) if request is not None else None)
    outlook = _outlook(state, facts, settings)
    blocked = outlook.blocked(facts.now)
    decision = Decision(
        step=outlook.step if settings.automatic and blocked is None else None,
        next_step=outlook.step if settings.automatic else None,
        next_at=outlook.at,
        waiting=outlook.waiting,
    )
    if request is None:
        return decision
    refused = _refusal(state, request)
    # What stands in the way of prepare is that it is early: whoever asks for it wants it early.
    waits = request.step is outlook.step and request.step is not Step.PREPARE
    if refused is None and waits and blocked is not None and not request.force:
        refused = RotationError(
            RotationCode(blocked.code), f"{request.step} is refused: {blocked.text}; wait, or ask with force"
        )
    if refused is not None:
        return replace(decision, step=None, refused=refused)
    return replace(decision, step=request.step, forced=waits and blocked is not None)


def _refusal(state: RotationState, request: Request) -> RotationError | None:
    """Why this phase does not allow what is asked for, forced or not."""
    if state.phase is Phase.PLUGGED:
        return RotationError(
            RotationCode.PLUGGED,
            f"{request.step} is refused: the CA comes from files, and whoever makes them rotates it; this"
            " authority only says who has acknowledged the roots",
        )
    allowed = _FROM[request.step]
    if state.phase not in allowed:
        names = " or ".join(sorted(allowed))
        return RotationError(
            RotationCode.PHASE,
            f"{request.step} is refused: the rotation is in the phase {state.phase}, and {request.step} is"
            f" possible from {names} only",
        )
    if request.step is Step.TAINT and request.within is None:
        return RotationError(
            RotationCode.WITHIN, "taint is refused: say over which time renewals are spread, e.g. 3600 s"
        )
    return None


def _outlook(state: RotationState, facts: Facts, settings: RotationSettings) -> _Outlook:
    match state.phase:
        case Phase.STABLE:
            at = prepare_at(facts.root_not_before, facts.root_not_after, settings)
            return _Outlook(Step.PREPARE, at, RotationCode.HOLD)
        case Phase.PREPARED:
            since = state.since or facts.now
            return _Outlook(Step.ACTIVATE, since + settings.hold, RotationCode.HOLD, _before_activate(facts))
        case _:
            at = state.retire_after or facts.now + settings.leaf_lifetime + settings.margin
            return _Outlook(Step.RETIRE, at, RotationCode.LEAVES, _before_retire(facts.counts))


def _before_activate(facts: Facts) -> tuple[Waiting, ...]:
    counts, found = facts.counts, []
    if counts.acked < counts.expected:
        missing = _names(counts.missing)
        found.append(
            Waiting(
                code=RotationCode.AGENTS,
                text=f"{counts.expected - counts.acked} of {counts.expected} node agents have not"
                f" acknowledged the roots{missing}",
            )
        )
    if counts.pending:
        found.append(
            Waiting(
                code=RotationCode.PENDING,
                text=f"{counts.pending} workloads have not acknowledged the roots",
            )
        )
    if facts.unpublished is None:
        found.append(
            Waiting(
                code=RotationCode.UNPUBLISHED,
                text="it is not known yet whether every namespace has the roots",
            )
        )
    elif facts.unpublished:
        found.append(
            Waiting(
                code=RotationCode.UNPUBLISHED,
                text=f"{len(facts.unpublished)} namespaces do not have the roots{_names(facts.unpublished)}",
            )
        )
    return tuple(found)


def _before_retire(counts: AgentCounts) -> tuple[Waiting, ...]:
    found = []
    if counts.reported < counts.expected:
        found.append(
            Waiting(
                code=RotationCode.AGENTS,
                text=f"{counts.expected - counts.reported} of {counts.expected} node agents have not reported"
                f"{_names(counts.missing)}",
            )
        )
    if counts.outdated:
        found.append(
            Waiting(
                code=RotationCode.OUTDATED,
                text=f"{counts.outdated} workloads have a certificate of the former root",
            )
        )
    return tuple(found)


def _names(names: tuple[str, ...]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f": {', '.join(names[:_SHOWN])}{more}"


def _time(at: dt.datetime) -> str:
    return at.astimezone(dt.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def apply(
    state: RotationState,
    step: Step,
    now: dt.datetime,
    settings: RotationSettings,
    *,
    forced: bool = False,
    request: Request | None = None,
    root: str = "",
) -> RotationState:
    """The state after a step.

    Args:
        root: SHA-256 of the root that signs before the step.
        forced: something was still waited for.
        request: whose step it is; None when it comes by itself.

    Raises:
        RotationError: the phase does not allow the step; `PHASE`, `PLUGGED` or `WITHIN`.
    """
    within = request.within if request is not None else None
    refused = _refusal(state, Request(step=step, within=within))
    if refused is not None:
        raise refused
    now = now.astimezone(dt.UTC).replace(microsecond=0)
    handled = state.handled
    if request is not None:
        text = f"{step} is done" + (", by force" if forced else "")
        handled = Handled(step=step, id=request.id, text=text, at=now)
    flags = (*state.forced, step) if forced else state.forced
    after = replace(state, since=now, forced=flags, handled=handled)
    match step:
        case Step.PREPARE:
            return replace(after, phase=Phase.PREPARED, generation=state.generation + 1, forced=())
        case Step.ACTIVATE:
            # The roots are the same, so the generation is: what was acknowledged stays so.
            return replace(
                after,
                phase=Phase.ACTIVE,
                epoch=state.epoch + 1,
                former=(root, *state.former)[:MAX_FORMER] if root else state.former,
                retire_after=now + settings.leaf_lifetime + settings.margin,
            )
        case Step.TAINT:
            return replace(after, phase=Phase.TAINTED, taint_within=within)
        case Step.RETIRE:
            return replace(
                after,
                phase=Phase.STABLE,
                generation=state.generation + 1,
                retire_after=None,
                taint_within=None,
                forced=(),
            )
        case Step.ABORT:
            return replace(after, phase=Phase.STABLE, generation=state.generation + 1, forced=())
