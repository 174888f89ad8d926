"""What the rotation of roots does next, and why not yet: a table of phases, facts and requests."""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ca.core.rotation import (
    INITIAL,
    MAX_WITHIN,
    Facts,
    Handled,
    Request,
    RotationCode,
    RotationError,
    RotationSettings,
    RotationState,
    apply,
    plan,
    prepare_at,
)
from ca.core.rotation_codec import (
    MAX_STATE_BYTES,
    decode_state,
    encode_state,
    is_request,
    read_request,
    request_id,
)
from mesh.ca_status import AgentCounts, Phase, Step

NOW = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)
DAY = dt.timedelta(days=1)
HOUR = dt.timedelta(hours=1)
SECOND = dt.timedelta(seconds=1)
SETTINGS = RotationSettings()
SOON = Request(step=Step.TAINT, within=HOUR)


def facts(now: dt.datetime = NOW, **changes: Any) -> Facts:
    defaults: dict[str, Any] = {"root_not_before": NOW - DAY, "root_not_after": NOW + 3650 * DAY}
    return Facts(now=now, **{**defaults, **changes})


def after(*steps: Step, at: dt.datetime = NOW) -> RotationState:
    state = INITIAL
    for step in steps:
        state = apply(state, step, at, SETTINGS, request=replace(SOON, step=step))
    return state


PREPARED = after(Step.PREPARE)
ACTIVE = after(Step.PREPARE, Step.ACTIVATE)
TAINTED = after(Step.PREPARE, Step.ACTIVATE, Step.TAINT)
LEAVES_GONE = NOW + 2 * DAY + 10 * 60 * SECOND


def test_nothing_happens_while_the_root_is_young() -> None:
    decision = plan(INITIAL, facts(), SETTINGS)
    assert (decision.step, decision.next_step, decision.waiting) == (None, Step.PREPARE, ())
    assert decision.next_at == NOW + 3620 * DAY


@pytest.mark.parametrize(
    ("life", "before", "wanted"),
    [
        (3650 * DAY, 30 * DAY, 3620 * DAY),
        (40 * DAY, 30 * DAY, 20 * DAY),
        (3650 * DAY, SECOND, 3650 * DAY - SECOND),
    ],
    ids=["before", "half-life", "late"],
)
def test_the_next_root_is_made_in_time(
    life: dt.timedelta, before: dt.timedelta, wanted: dt.timedelta
) -> None:
    settings = replace(SETTINGS, prepare_before=before)
    assert prepare_at(NOW, NOW + life, settings) == NOW + wanted
    times = {"root_not_before": NOW, "root_not_after": NOW + life}
    assert plan(INITIAL, facts(NOW + wanted, **times), settings).step is None
    assert plan(INITIAL, facts(NOW + wanted + SECOND, **times), settings).step is Step.PREPARE


READY = AgentCounts(expected=3, reported=3, acked=3)


@pytest.mark.parametrize(
    ("counts", "unpublished", "code", "words"),
    [
        (
            replace(READY, acked=2, missing=("n-7: no report",)),
            (),
            RotationCode.AGENTS,
            "1 of 3 .*: n-7: no rep",
        ),
        (replace(READY, pending=4), (), RotationCode.PENDING, "4 workloads have not acknowledged"),
        (READY, None, RotationCode.UNPUBLISHED, "not known yet"),
        (READY, tuple("abcdefg"), RotationCode.UNPUBLISHED, "7 namespaces .*: a, b, c, d, e and 2 more"),
    ],
    ids=["agents", "pending", "published-unknown", "unpublished"],
)
def test_activate_waits(
    counts: AgentCounts, unpublished: tuple[str, ...] | None, code: RotationCode, words: str
) -> None:
    late = facts(NOW + HOUR + SECOND, counts=counts, unpublished=unpublished)
    decision = plan(PREPARED, late, SETTINGS)
    assert (decision.step, decision.next_step, decision.next_at) == (None, Step.ACTIVATE, NOW + HOUR)
    assert [w.code for w in decision.waiting] == [code]
    refused = plan(PREPARED, replace(late, request=Request(step=Step.ACTIVATE)), SETTINGS)
    assert refused.refused is not None
    assert refused.refused.code is code
    with pytest.raises(RotationError, match=words):
        raise refused.refused
    forced = plan(PREPARED, replace(late, request=Request(step=Step.ACTIVATE, force=True)), SETTINGS)
    assert (forced.step, forced.forced, forced.refused) == (Step.ACTIVATE, True, None)


def test_activate_waits_for_the_hold_whatever_is_acknowledged() -> None:
    assert plan(PREPARED, facts(NOW + HOUR, counts=READY), SETTINGS).step is None
    refused = plan(PREPARED, facts(counts=READY, request=Request(step=Step.ACTIVATE)), SETTINGS).refused
    assert refused is not None
    assert refused.code is RotationCode.HOLD
    assert "waits until 2030-01-01T01:00:00Z" in refused.public
    assert plan(PREPARED, facts(NOW + HOUR + SECOND, counts=READY), SETTINGS).step is Step.ACTIVATE
    assert plan(PREPARED, facts(NOW + HOUR + SECOND), SETTINGS).step is Step.ACTIVATE, "no agents at all"
    asked = facts(NOW + HOUR + SECOND, counts=READY, request=Request(step=Step.ACTIVATE, force=True))
    assert not plan(PREPARED, asked, SETTINGS).forced, "nothing was waited for"


@pytest.mark.parametrize("state", [ACTIVE, TAINTED], ids=["active", "tainted"])
@pytest.mark.parametrize(
    ("now", "counts", "code"),
    [
        (LEAVES_GONE, READY, RotationCode.LEAVES),
        (LEAVES_GONE + SECOND, replace(READY, reported=2), RotationCode.AGENTS),
        (LEAVES_GONE + SECOND, replace(READY, outdated=1), RotationCode.OUTDATED),
    ],
    ids=["leaves", "reports", "outdated"],
)
def test_retire_waits(
    state: RotationState, now: dt.datetime, counts: AgentCounts, code: RotationCode
) -> None:
    decision = plan(state, facts(now, counts=counts), SETTINGS)
    assert (decision.step, decision.next_step, decision.next_at) == (None, Step.RETIRE, LEAVES_GONE)
    asked = facts(now, counts=counts, request=Request(step=Step.RETIRE))
    refused = plan(state, asked, SETTINGS).refused
    assert refused is not None
    assert refused.code is code
    forced = plan(state, replace(asked, request=Request(step=Step.RETIRE, force=True)), SETTINGS)
    assert (forced.step, forced.forced) == (Step.RETIRE, True)


def test_retire_needs_no_acknowledgement() -> None:
    """Whoever has the former root too does no harm."""
    counts = replace(READY, acked=0, pending=9)
    assert plan(ACTIVE, facts(LEAVES_GONE + SECOND, counts=counts), SETTINGS).step is Step.RETIRE


@pytest.mark.parametrize("force", [False, True], ids=["asked", "forced"])
@pytest.mark.parametrize("state", [INITIAL, PREPARED, ACTIVE, TAINTED], ids=lambda s: s.phase.value)
@pytest.mark.parametrize("step", Step)
def test_a_phase_allows_its_steps_and_force_changes_nothing_about_that(
    state: RotationState, step: Step, force: bool
) -> None:
    allowed = {
        Phase.STABLE: {Step.PREPARE},
        Phase.PREPARED: {Step.ACTIVATE, Step.ABORT},
        Phase.ACTIVE: {Step.TAINT, Step.RETIRE},
        Phase.TAINTED: {Step.RETIRE},
    }[state.phase]
    request = Request(step=step, force=force, within=HOUR if step is Step.TAINT else None)
    late = facts(LEAVES_GONE + SECOND, request=request)
    decision = plan(state, late, SETTINGS)
    if step in allowed:
        assert (decision.step, decision.refused, decision.forced) == (step, None, False)
        assert apply(state, step, NOW, SETTINGS, request=request).handled is not None
        return
    assert decision.step is None
    assert decision.refused is not None
    assert decision.refused.code is RotationCode.PHASE
    assert f"in the phase {state.phase}" in decision.refused.public
    with pytest.raises(RotationError) as e:
        apply(state, step, NOW, SETTINGS, request=request)
    assert e.value.code is RotationCode.PHASE


def test_taint_needs_a_time() -> None:
    decision = plan(ACTIVE, facts(request=Request(step=Step.TAINT)), SETTINGS)
    assert decision.refused is not None
    assert decision.refused.code is RotationCode.WITHIN


def test_a_plugged_in_ca_is_rotated_by_somebody_else() -> None:
    plugged = RotationState(phase=Phase.PLUGGED)
    assert plan(plugged, facts(), SETTINGS) == plan(plugged, facts(), SETTINGS)
    assert plan(plugged, facts(), SETTINGS).next_step is None
    refused = plan(plugged, facts(request=Request(step=Step.PREPARE, force=True)), SETTINGS).refused
    assert refused is not None
    assert refused.code is RotationCode.PLUGGED
    with pytest.raises(RotationError, match="the CA comes from files"):
        apply(plugged, Step.PREPARE, NOW, SETTINGS)


def test_when_steps_are_not_automatic_people_are_told_what_is_waited_for() -> None:
    manual = replace(SETTINGS, automatic=False)
    late = facts(NOW + 2 * HOUR, counts=replace(READY, acked=1))
    decision = plan(PREPARED, late, manual)
    assert (decision.step, decision.next_step) == (None, None)
    assert [w.code for w in decision.waiting] == [RotationCode.AGENTS]
    assert plan(PREPARED, facts(NOW + 2 * HOUR, counts=READY), manual).step is None
    asked = facts(NOW + 2 * HOUR, counts=READY, request=Request(step=Step.ACTIVATE))
    assert plan(PREPARED, asked, manual).step is Step.ACTIVATE


def test_what_the_steps_leave() -> None:
    assert (PREPARED.phase, PREPARED.generation, PREPARED.epoch) == (Phase.PREPARED, 2, 1)
    assert (ACTIVE.phase, ACTIVE.generation, ACTIVE.epoch) == (Phase.ACTIVE, 2, 2)
    assert ACTIVE.retire_after == LEAVES_GONE
    assert (TAINTED.phase, TAINTED.taint_within, TAINTED.retire_after) == (Phase.TAINTED, HOUR, LEAVES_GONE)
    retired = apply(TAINTED, Step.RETIRE, LEAVES_GONE, SETTINGS, forced=True)
    assert (retired.phase, retired.generation, retired.epoch) == (Phase.STABLE, 3, 2)
    assert (retired.retire_after, retired.taint_within, retired.forced) == (None, None, ())
    aborted = apply(PREPARED, Step.ABORT, NOW, SETTINGS)
    assert (aborted.phase, aborted.generation, aborted.epoch) == (Phase.STABLE, 3, 1)
    forced = apply(
        PREPARED, Step.ACTIVATE, NOW, SETTINGS, forced=True, request=Request(step=Step.ACTIVATE, id="i")
    )
    assert forced.forced == (Step.ACTIVATE,)
    assert forced.handled == Handled(step=Step.ACTIVATE, id="i", text="activate is done, by force", at=NOW)


def test_former_roots_are_remembered() -> None:
    state = INITIAL
    for number in range(20):
        state = apply(state, Step.PREPARE, NOW, SETTINGS, root="no")
        state = apply(state, Step.ACTIVATE, NOW, SETTINGS, root=str(number))
        state = apply(state, Step.RETIRE, NOW, SETTINGS, root="no")
    assert state.former == tuple(str(n) for n in range(19, 3, -1))


def test_time_that_is_left_for_renewals() -> None:
    assert ACTIVE.renew_within(NOW) == dt.timedelta(0)
    assert TAINTED.renew_within(NOW + HOUR / 2) == HOUR / 2
    assert TAINTED.renew_within(NOW + DAY) == SECOND, "late ones at once"


# --- rotation.json -----------------------------------------------------------------------------------

times = st.datetimes(dt.datetime(2020, 1, 1), dt.datetime(2100, 1, 1)).map(  # noqa: DTZ001 - made aware
    lambda at: at.replace(tzinfo=dt.UTC, microsecond=0)
)
ids = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=128)
handled = st.none() | st.builds(Handled, step=st.sampled_from(Step), id=ids, text=ids, at=times)


@st.composite
def states(draw: st.DrawFn) -> RotationState:
    phase = draw(st.sampled_from([Phase.STABLE, Phase.PREPARED, Phase.ACTIVE, Phase.TAINTED]))
    moving = phase in {Phase.ACTIVE, Phase.TAINTED}
    within = st.integers(1, 30 * 86400).map(lambda s: dt.timedelta(seconds=s))
    return RotationState(
        phase=phase,
        generation=draw(st.integers(1, 1 << 50)),
        epoch=draw(st.integers(1, 1 << 50)),
        since=draw(times),
        retire_after=draw(times) if moving else None,
        taint_within=draw(within) if phase is Phase.TAINTED else None,
        forced=draw(st.lists(st.sampled_from(Step), max_size=5).map(tuple)),
        handled=draw(handled),
        former=draw(st.lists(st.text("0123456789abcdef", min_size=64, max_size=64), max_size=16).map(tuple)),
    )


@given(states())
def test_a_state_survives_its_file(state: RotationState) -> None:
    assert decode_state(encode_state(state)) == state


def test_no_file_is_the_state_before_any_rotation() -> None:
    assert decode_state(None) == INITIAL == RotationState(phase=Phase.STABLE, generation=1, epoch=1)


def _changed(state: RotationState = TAINTED, **fields: Any) -> str:
    found = json.loads(encode_state(state)) | fields
    return json.dumps({k: v for k, v in found.items() if v != "gone"})


DONE = {"step": "taint", "id": "", "text": "", "at": "2030-01-01T00:00:00Z"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is not JSON"),
        ("[" * 5000, "is not JSON"),
        ("[]", "is no JSON object"),
        ("x" * (MAX_STATE_BYTES + 1), "has over"),
        (_changed(schema=2), "has the schema '2', known is 1"),
        (_changed(extra=1), "unknown 'extra'"),
        (_changed(epoch="gone"), "KeyError 'epoch'"),
        (_changed(epoch=0), "no number from 1 on"),
        (_changed(generation=True), "no number"),
        (_changed(generation=1 << 53), "no number"),
        (_changed(generation=1.5), "no number"),
        (_changed(phase="other"), "'other' is not a valid Phase"),
        (_changed(phase="plugged"), "the phase plugged"),
        (_changed(phase="stable"), "do not belong to the phase stable"),
        (_changed(retire_after=None), "do not belong to the phase tainted"),
        (_changed(PREPARED, since=None), "since when the phase is prepared"),
        (_changed(since="2030-01-01T00:00:00"), "has no time zone"),
        (_changed(since=1), "a time is text"),
        (_changed(taint_within_seconds=31 * 86400), "out of bounds"),
        (_changed(forced="x"), "TypeError forced"),
        (_changed(former=["A" * 64]), "ValueError former"),
        (_changed(former=["a" * 64] * 17), "ValueError former"),
        (_changed(former=[1]), "ValueError former"),
        (_changed(forced=["jump"]), "not a valid Step"),
        (_changed(handled={}), "handled"),
        (_changed(handled=DONE | {"id": 1}), "handled"),
        (_changed(handled=DONE | {"id": "i" * 129}), "too long"),
    ],
)  # fmt: skip
def test_a_state_that_cannot_be_trusted_is_refused(text: str, words: str) -> None:
    with pytest.raises(RotationError, match=r"restore the Secret|use a newer program") as e:
        decode_state(text)
    assert e.value.code is RotationCode.STATE
    assert words in e.value.public


# --- annotations -------------------------------------------------------------------------------------

ASK = "gatehouse.dev/ca-request"


def asked(step: str = "activate", **others: str) -> dict[str, str]:
    return {ASK: step, **{f"{ASK}-{name}": value for name, value in others.items()}, "other": "x"}


@pytest.mark.parametrize(
    ("annotations", "request_"),
    [
        (asked(), Request(step=Step.ACTIVATE)),
        (asked("retire", force="true", id="r-1"), Request(step=Step.RETIRE, force=True, id="r-1")),
        (asked("abort", force="false"), Request(step=Step.ABORT)),
        (asked("taint", within="1"), Request(step=Step.TAINT, within=SECOND)),
        (asked("taint", within="2592000"), Request(step=Step.TAINT, within=MAX_WITHIN)),
    ],
)
def test_requests(annotations: dict[str, str], request_: Request) -> None:
    assert is_request(annotations)
    assert read_request(annotations) == request_


@pytest.mark.parametrize(
    ("annotations", "code", "words"),
    [
        (asked("jump"), RotationCode.STEP, "'jump' is no step of a rotation; allowed are prepare, activate"),
        (asked(""), RotationCode.STEP, "allowed are"),
        (asked(force="yes"), RotationCode.FORCE, "allowed are true and false"),
        (asked(id="a\nb"), RotationCode.REQUEST_ID, "printable ASCII"),
        (asked(id="i" * 129), RotationCode.REQUEST_ID, "1 to 128"),
        (asked(within="10"), RotationCode.WITHIN, "belongs to taint"),
        (asked("taint"), RotationCode.WITHIN, "is absent; taint needs whole seconds from 1 to 2592000"),
        (asked("taint", within="0"), RotationCode.WITHIN, "whole seconds"),
        (asked("taint", within="2592001"), RotationCode.WITHIN, "whole seconds"),
        (asked("taint", within="1h"), RotationCode.WITHIN, "'1h'"),
        (asked("taint", within="-5"), RotationCode.WITHIN, "whole seconds"),
        (asked("taint", within="\u0663"), RotationCode.WITHIN, "whole seconds"),
        (asked("taint", within="9" * 5000), RotationCode.WITHIN, "whole seconds"),
    ],
)
def test_requests_that_are_refused(annotations: dict[str, str], code: RotationCode, words: str) -> None:
    with pytest.raises(RotationError) as e:
        read_request(annotations)
    assert e.value.code is code
    assert words in e.value.public
    assert len(e.value.public) < 400


def test_what_is_given_back_of_a_bad_request() -> None:
    assert not is_request({f"{ASK}-id": "x"})
    assert request_id(asked(id="r-1")) == "r-1"
    assert request_id(asked(id="\x1b[31m")) == ""
    assert request_id({}) == ""
