"""The authority's status document: what is written is what is read, and nothing else is taken for one."""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.ca_status import (
    MAX_STATUS_BYTES,
    AgentCounts,
    Answer,
    CaStatus,
    CaStatusCode,
    CaStatusError,
    Phase,
    RootRole,
    RootView,
    Step,
    Waiting,
    decode,
    encode,
)

NOW = dt.datetime(2026, 11, 27, 5, 0, tzinfo=dt.UTC)
STATUS = CaStatus(
    phase=Phase.PREPARED,
    generation=4,
    epoch=1,
    since=NOW,
    bundle_digest="ab" * 32,
    roots=(
        RootView(
            role=RootRole.SIGNING,
            sha256="cd" * 32,
            subject="CN=Gatehouse root 1",
            not_before=NOW,
            not_after=NOW + dt.timedelta(days=3650),
        ),
    ),
    issuer_serial="0a",
    issuer_not_after=NOW + dt.timedelta(days=365),
    agents=AgentCounts(expected=2, reported=1, acked=1, pending=3, missing=("node-2: no report",)),
    automatic=True,
    next_step=Step.ACTIVATE,
    next_at=NOW + dt.timedelta(hours=1),
    waiting=(Waiting(code="rotation_agents", text="1 of 2 agents has not acknowledged the bundle"),),
    answer=Answer(step=Step.PREPARE, id="x", done=True, code="", text="prepared", at=NOW),
    writer="gatehouse-ca-0",
    updated=NOW,
)
times = st.integers(946_684_800, 7_258_118_400).map(lambda second: dt.datetime.fromtimestamp(second, dt.UTC))


@given(
    phase=st.sampled_from(Phase),
    step=st.none() | st.sampled_from(Step),
    at=st.none() | times,
    names=st.lists(st.text(max_size=20), max_size=5).map(tuple),
    counts=st.lists(st.integers(0, 10_000), min_size=5, max_size=5),
)
def test_what_is_written_is_what_is_read(
    phase: Phase, step: Step | None, at: dt.datetime | None, names: tuple[str, ...], counts: list[int]
) -> None:
    agents = AgentCounts(
        **dict(zip(("expected", "reported", "acked", "pending", "outdated"), counts, strict=True)),
        missing=names,
    )
    status = replace(STATUS, phase=phase, next_step=step, next_at=at, agents=agents)
    assert decode(encode(status)) == status


def test_fields_that_are_not_known_are_skipped() -> None:
    found = json.loads(encode(STATUS))
    found["colour"] = "blue"
    assert decode(json.dumps(found)) == STATUS


def test_the_same_status_is_the_same_text() -> None:
    assert encode(STATUS) == encode(decode(encode(STATUS)))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("phase", "nowhere"),
        ("generation", "4"),
        ("generation", True),
        ("generation", -1),
        ("since", "yesterday"),
        ("since", "2026-11-27T05:00:00"),
        ("roots", [7]),
        ("agents", None),
        ("next_step", "dance"),
        ("waiting", [{}]),
        ("answer", {"step": "prepare"}),
    ],
)
def test_a_wrong_field_is_refused(path: str, value: Any) -> None:
    found = json.loads(encode(STATUS))
    found[path] = value
    with pytest.raises(CaStatusError) as refusal:
        decode(json.dumps(found))
    assert refusal.value.code is CaStatusCode.FIELD


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, " " * (MAX_STATUS_BYTES + 1)])
def test_what_is_no_json_is_refused(text: str) -> None:
    with pytest.raises(CaStatusError) as refusal:
        decode(text)
    assert refusal.value.code is CaStatusCode.SYNTAX


@pytest.mark.parametrize("text", ["null", "[]", "{}", "7"])
def test_other_json_is_refused(text: str) -> None:
    with pytest.raises(CaStatusError) as refusal:
        decode(text)
    assert refusal.value.code is CaStatusCode.FIELD
