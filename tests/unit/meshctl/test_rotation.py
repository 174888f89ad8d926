"""What people see of a rotation of roots, in every phase, and what is called a problem."""

from __future__ import annotations

import datetime as dt
import io
from dataclasses import replace
from typing import Any

import pytest

from mesh.ca_status import AgentCounts, Answer, CaStatus, Phase, RootRole, RootView, Step, Waiting
from mesh.obs.table import MAX_WIDTH
from meshctl.rotation import LATE, PATIENCE, SOON, STALE, document, problems, show
from meshctl.terminal import Screen
from tests.fakes.golden import check_golden

NOW = dt.datetime(2026, 11, 27, 12, 0, tzinfo=dt.UTC)
DAY, HOUR, MINUTE = dt.timedelta(days=1), dt.timedelta(hours=1), dt.timedelta(minutes=1)
SECOND = dt.timedelta(seconds=1)


def root(role: RootRole, number: int, left: dt.timedelta) -> RootView:
    return RootView(
        role=role,
        sha256=f"{number:02x}" * 32,
        subject=f"CN=Gatehouse root {number:08x},O=cluster.local",
        not_before=NOW - 3650 * DAY + left,
        not_after=NOW + left,
    )


OLD, NEW = root(RootRole.SIGNING, 17, 900 * DAY), root(RootRole.NEXT, 34, 3650 * DAY)
STABLE = CaStatus(
    phase=Phase.STABLE,
    generation=1,
    epoch=1,
    since=NOW - 40 * DAY,
    bundle_digest="ab" * 32,
    roots=(OLD,),
    issuer_serial="0a1b2c3d4e5f60718293",
    issuer_not_after=NOW + 300 * DAY,
    agents=AgentCounts(expected=2, reported=2, acked=2),
    automatic=True,
    next_step=Step.PREPARE,
    next_at=NOW + 870 * DAY,
    writer="gatehouse-ca-6d8c9f7b5-x2x4z",
    updated=NOW - 4 * SECOND,
)
PREPARED = replace(
    STABLE,
    phase=Phase.PREPARED,
    generation=2,
    since=NOW - 12 * MINUTE,
    roots=(OLD, NEW),
    agents=AgentCounts(
        expected=3,
        reported=2,
        acked=1,
        pending=3,
        missing=(
            "node-2: 3 workloads pending (shop/web-5d9c7b9c4-x2, shop/web-5d9c7b9c4-x3)",
            "node-3: no report",
        ),
    ),
    next_step=Step.ACTIVATE,
    next_at=NOW + 48 * MINUTE,
    waiting=(
        Waiting(
            code="rotation_agents",
            text="2 of 3 node agents have not acknowledged the roots: node-2: 3 workloads pending"
            " (shop/web-5d9c7b9c4-x2, shop/web-5d9c7b9c4-x3), node-3: no report",
        ),
        Waiting(code="rotation_pending", text="3 workloads have not acknowledged the roots"),
    ),
    answer=Answer(
        step=Step.PREPARE, id="1", done=True, code="", text="prepare is done", at=NOW - 12 * MINUTE
    ),
)
ACTIVE = replace(
    PREPARED,
    phase=Phase.ACTIVE,
    epoch=2,
    roots=(replace(NEW, role=RootRole.SIGNING), replace(OLD, role=RootRole.RETIRING)),
    agents=AgentCounts(expected=3, reported=3, acked=3, outdated=41),
    next_step=Step.RETIRE,
    next_at=NOW + 48 * HOUR,
    waiting=(Waiting(code="rotation_outdated", text="41 workloads have a certificate of the former root"),),
    answer=Answer(
        step=Step.RETIRE,
        id="2",
        done=False,
        code="rotation_leaves",
        text="retire is refused: retire waits until 2026-11-29T12:00:00Z: certificates of the former root may"
        " live until then; wait, or ask with force",
        at=NOW - MINUTE,
    ),
)
PLUGGED = replace(
    STABLE,
    phase=Phase.PLUGGED,
    generation=0,
    epoch=0,
    roots=(OLD, replace(NEW, role=RootRole.TRUSTED)),
    automatic=False,
    next_step=None,
    next_at=None,
)
CASES = {
    "stable": STABLE,
    "prepared": PREPARED,
    "active": ACTIVE,
    "tainted": replace(ACTIVE, phase=Phase.TAINTED, waiting=(), answer=None),
    "plugged": PLUGGED,
    "by-hand": replace(PREPARED, automatic=False, next_step=None, waiting=()),
    "held-up": replace(PREPARED, next_at=NOW - 3 * HOUR),
    "ends": replace(STABLE, automatic=False, next_step=None, roots=(root(RootRole.SIGNING, 17, 20 * DAY),)),
    "silent": replace(STABLE, updated=NOW - 2 * HOUR),
    "without-agents": replace(STABLE, agents=AgentCounts()),
}


def said(status: CaStatus, *, colours: bool = False) -> str:
    out = io.StringIO()
    found = problems(status, NOW, "istio-system")
    show(Screen(out, io.StringIO(), colours=colours), status, found, NOW, "istio-system")
    return out.getvalue()


@pytest.mark.parametrize("name", CASES)
def test_golden_text_of_a_phase(name: str) -> None:
    text = said(CASES[name])
    check_golden(f"meshctl/ca-{name}.txt", text)
    assert max(map(len, text.splitlines())) <= MAX_WIDTH
    assert "\x1b" not in text


def test_the_present_phase_stands_out_on_a_terminal() -> None:
    assert (
        said(PREPARED, colours=True).splitlines()[0]
        == "stable -> \x1b[1m[prepared]\x1b[0m -> active -> stable"
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, []),
        ({"updated": NOW - STALE}, []),
        ({"updated": NOW - STALE - SECOND}, ["no replica leads"]),
        ({"issuer_not_after": NOW + 6 * DAY}, ["the signing certificate ends in"]),
        ({"issuer_not_after": NOW - SECOND}, ["the signing certificate ended"]),
        ({"roots": (root(RootRole.SIGNING, 1, SOON - DAY),)}, []),
        ({"roots": (root(RootRole.SIGNING, 1, SOON - DAY),), "automatic": False}, ["the root ends in"]),
        ({"roots": (root(RootRole.SIGNING, 1, LATE - DAY),)}, ["the root ends in"]),
        ({"phase": Phase.PREPARED, "roots": (root(RootRole.SIGNING, 1, LATE - DAY),)}, []),
        ({"waiting": PREPARED.waiting, "next_at": NOW + SECOND}, []),
        ({"waiting": PREPARED.waiting, "next_at": NOW - PATIENCE}, []),
        ({"waiting": PREPARED.waiting, "next_at": NOW - PATIENCE - SECOND}, ["prepare could be since"]),
        ({"waiting": (), "next_at": NOW - PATIENCE - SECOND}, []),
    ],
)
def test_what_is_a_problem(changes: dict[str, Any], words: list[str]) -> None:
    found = problems(replace(STABLE, **changes), NOW, "istio-system")
    assert [any(word in problem.text for word in words) for problem in found] == [True] * len(words)
    assert all(problem.next for problem in found)


def test_a_held_up_step_names_the_code_and_what_to_do() -> None:
    (found,) = problems(CASES["held-up"], NOW, "istio-system")
    assert found.text.startswith("activate could be since 2026-11-27T09:00:00Z and waits: 2 of 3 node agents")
    assert found.text.endswith("[rotation_agents]")
    assert "kubectl delete node" in found.next


def test_the_document_is_the_status_and_what_is_wrong() -> None:
    found = document(CASES["silent"], problems(CASES["silent"], NOW, "istio-system"))
    assert (found["schema"], found["phase"], len(found["problems"])) == (1, "stable", 1)
    assert set(found["problems"][0]) == {"text", "next"}
