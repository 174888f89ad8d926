"""Reports of agents as values: bounds, counting, merging, and the text that replicas share."""

from __future__ import annotations

import datetime as dt
import json
import uuid
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ca.core.acknowledged import (
    FRESH,
    KEPT,
    MAX_NAME_CHARS,
    MAX_NUMBER,
    MAX_SHARED_CHARS,
    MAX_SHARED_REPORTS,
    MAX_WAITING,
    MAX_WORKLOADS,
    Agent,
    Claim,
    ClaimCode,
    ClaimError,
    Report,
    counts,
    decode,
    encode,
    merge,
)
from mesh.ca_status import MAX_NAMES, AgentCounts

NOW = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)
NEW, OLD = "a" * 64, "b" * 64
SECOND = dt.timedelta(seconds=1)


def report(uid: str = "u1", *, ago: float = 0.0, **claim: Any) -> Report:
    return Report(uid=uid, at=NOW - ago * SECOND, claim=Claim(**{"digest": NEW, "workloads": 3, **claim}))


def count(expected: list[Agent], *reports: Report, digest: str = NEW, epoch: int = 0) -> AgentCounts:
    return counts(expected, merge(reports), digest=digest, epoch=epoch, now=NOW)


# --- bounds -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "code", "words"),
    [
        pytest.param({"digest": "A" * 64}, ClaimCode.DIGEST, "bundle_digest", id="upper case"),
        pytest.param({"digest": "a" * 63}, ClaimCode.DIGEST, "bundle_digest", id="short"),
        pytest.param({"digest": "a" * 64 + "\n"}, ClaimCode.DIGEST, "bundle_digest", id="newline"),
        pytest.param({"generation": MAX_NUMBER}, ClaimCode.NUMBER, "bundle_generation", id="generation"),
        pytest.param({"epoch": 1 << 63}, ClaimCode.NUMBER, "issuer_epoch", id="epoch"),
        pytest.param({"workloads": MAX_WORKLOADS + 1}, ClaimCode.COUNT, "one node has", id="workloads"),
        pytest.param({"workloads": 1, "pending": 2}, ClaimCode.COUNT, "pending is 2", id="pending"),
        pytest.param(
            {"workloads": 2, "pending": 1, "refused": 2}, ClaimCode.COUNT, "refused is", id="refused"
        ),
        pytest.param({"workloads": 1, "outdated": 2}, ClaimCode.COUNT, "outdated is 2", id="outdated"),
        pytest.param(
            {"workloads": 30, "pending": 30, "waiting_for": ("a/b",) * (MAX_WAITING + 1)},
            ClaimCode.NAMES,
            "has 21 names",
            id="too many",
        ),
        pytest.param(
            {"workloads": 3, "waiting_for": ("a/b",)}, ClaimCode.NAMES, "with 0 pending", id="of nobody"
        ),
        pytest.param(
            {"workloads": 1, "pending": 1, "waiting_for": ("a/" + "b" * MAX_NAME_CHARS,)},
            ClaimCode.NAMES,
            "at most 200",
            id="long",
        ),
        *(
            pytest.param(
                {"workloads": 1, "pending": 1, "waiting_for": (name,)},
                ClaimCode.NAMES,
                "namespace/name",
                id=repr(name),
            )
            for name in ("", "a", "a/b\n", "A/b", "a/b/c", "a/\u00e9", "a b/c", "\x1b[31m/x")
        ),
    ],
)
def test_a_claim_out_of_bounds(fields: dict[str, Any], code: ClaimCode, words: str) -> None:
    with pytest.raises(ClaimError, match=words) as error:
        Claim(**fields)
    assert error.value.code is code


def test_a_claim_at_the_bounds() -> None:
    names = ("n" * 63 + "/" + "p" * (MAX_NAME_CHARS - 64),) * MAX_WAITING
    claim = Claim(
        digest="",
        generation=MAX_NUMBER - 1,
        workloads=MAX_WORKLOADS,
        pending=MAX_WORKLOADS,
        refused=MAX_WORKLOADS,
        outdated=MAX_WORKLOADS,
        waiting_for=names,
        epoch=MAX_NUMBER - 1,
    )
    assert len(claim.waiting_for[0]) == MAX_NAME_CHARS


# --- counting -----------------------------------------------------------------------------------------

NODE1, NODE2 = Agent("u1", "node-1"), Agent("u2", "node-2")


def test_all_have_acknowledged() -> None:
    found = count([NODE1, NODE2], report("u1"), report("u2"))
    assert found == AgentCounts(expected=2, reported=2, acked=2)


@pytest.mark.parametrize(
    ("made", "text", "pending"),
    [
        pytest.param((), "node-1: no report", 0, id="silent"),
        pytest.param((report("other"),), "node-1: no report", 0, id="the report of another pod"),
        pytest.param((report(ago=KEPT.total_seconds() + 1),), "node-1: no report", 0, id="too old"),
        pytest.param((report(digest=""),), "node-1: has no bundle yet", 3, id="none"),
        pytest.param(
            (report(digest=OLD, generation=4),), "node-1: has another bundle, of generation 4", 3, id="former"
        ),
        pytest.param(
            (report(pending=3, waiting_for=("shop/web-1",)),),
            "node-1: 3 workloads pending (shop/web-1, ...)",
            3,
            id="pending",
        ),
        pytest.param(
            (report(pending=1, refused=1, waiting_for=("shop/web-1",)),),
            "node-1: 1 workload pending (shop/web-1), 1 refused it",
            1,
            id="refused",
        ),
        pytest.param(
            (report(pending=1, ago=400),),
            "node-1: 1 workload pending; silent for 400 s",
            1,
            id="silent since",
        ),
    ],
)
def test_who_is_missing(made: tuple[Report, ...], text: str, pending: int) -> None:
    found = count([NODE1], *made)
    assert (found.acked, found.missing, found.pending) == (0, (text,), pending)


def test_what_was_acknowledged_counts_for_a_while_after_the_agent_fell_silent() -> None:
    found = count([NODE1], report(ago=FRESH.total_seconds() + 1))
    assert (found.reported, found.acked, found.missing) == (0, 1, ())


def test_no_bundle_is_acknowledged_by_nobody() -> None:
    assert count([NODE1], report(digest=""), digest="").acked == 0


def test_an_agent_that_does_not_know_the_epoch_counts_with_all_its_workloads() -> None:
    assert count([NODE1], report(outdated=1, epoch=2), epoch=2).outdated == 1
    assert count([NODE1], report(outdated=0, epoch=1), epoch=2).outdated == 3


def test_only_the_first_names_are_told_in_order() -> None:
    agents = [Agent(f"u{i}", f"node-{i:03}") for i in reversed(range(50))]
    found = count(agents)
    assert found.expected == 50
    assert found.missing == tuple(f"node-{i:03}: no report" for i in range(MAX_NAMES))


UIDS = st.sampled_from([str(uuid.UUID(int=i)) for i in range(6)])


@st.composite
def claims(draw: st.DrawFn) -> Claim:
    workloads = draw(st.integers(0, 20))
    pending = draw(st.integers(0, workloads))
    names = draw(st.lists(st.from_regex(r"[a-z0-9-]{1,9}/[a-z0-9-]{1,9}", fullmatch=True), max_size=pending))
    return Claim(
        digest=draw(st.sampled_from(["", NEW, OLD])),
        generation=draw(st.integers(0, 9)),
        workloads=workloads,
        pending=pending,
        refused=draw(st.integers(0, pending)),
        waiting_for=tuple(names[:MAX_WAITING]),
        epoch=draw(st.integers(0, 3)),
        outdated=draw(st.integers(0, workloads)),
    )


reports = st.builds(
    lambda uid, ago, claim: Report(uid=uid, at=NOW - ago * SECOND, claim=claim),
    UIDS,
    st.integers(0, 2000),
    claims(),
)


@settings(max_examples=200)
@given(made=st.lists(reports, max_size=20), data=st.data())
def test_merging_does_not_depend_on_order_nor_on_books(made: list[Report], data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(made))
    cut = data.draw(st.integers(0, len(made)))
    assert merge(made) == merge(shuffled) == merge(shuffled[cut:], shuffled[:cut], made)


@settings(max_examples=300)
@given(made=st.lists(reports, max_size=20), alive=st.sets(UIDS), epoch=st.integers(0, 3))
def test_laws_of_counting(made: list[Report], alive: set[str], epoch: int) -> None:
    found = count([Agent(uid, uid[-4:]) for uid in alive], *made, epoch=epoch)
    newest = {uid: max((r.at for r in made if r.uid == uid), default=None) for uid in alive}
    assert found.expected == len(alive)
    assert 0 <= found.acked <= found.expected
    assert found.acked + len(found.missing) == found.expected
    assert found.reported == sum(at is not None and NOW - at <= FRESH for at in newest.values())
    if found.acked == found.expected:
        # Nobody acknowledges by silence, by an older report, or for another pod.
        assert all(at is not None and NOW - at <= KEPT for at in newest.values())
        assert found.pending == 0
    for uid in alive:
        said = [r for r in made if r.uid == uid and r.at == newest[uid]]
        if said and all(not r.acknowledges(NEW) for r in said):
            assert any(text.startswith(f"{uid[-4:]}: ") for text in found.missing)


# --- sharing ------------------------------------------------------------------------------------------


@given(made=st.lists(reports, max_size=20, unique_by=lambda r: r.uid))
def test_shared_reports_count_as_the_originals(made: list[Report]) -> None:
    alive = [Agent(r.uid, r.uid[-4:]) for r in made]
    back = decode(encode(made))
    assert {r.uid for r in back} == {r.uid for r in made}
    assert count(alive, *back) == count(alive, *made)


def test_five_thousand_agents_fit_into_one_object_with_room_for_those_that_move() -> None:
    names = tuple("n" * 63 + "/" + "p" * 136 for _ in range(MAX_WAITING))
    made = [
        report(
            str(uuid.uuid4()),
            pending=30,
            workloads=110,
            outdated=110,
            generation=99,
            epoch=99,
            waiting_for=names,
        )
        for _ in range(5000)
    ]
    text = encode(made)
    assert len(text.encode()) < 500_000
    assert len(decode(text)) == 5000


def test_no_more_than_so_many_are_shared_and_the_newest_of_them() -> None:
    made = [report(str(uuid.UUID(int=i)), ago=i) for i in range(MAX_SHARED_REPORTS + 10)]
    back = decode(encode(made))
    assert len(back) == MAX_SHARED_REPORTS
    assert min(r.at for r in back) == NOW - (MAX_SHARED_REPORTS - 1) * SECOND


GOOD = ["u1", 1_893_456_000, 0, 1, 3, 1, 0, 1, 0, "a/b"]


@pytest.mark.parametrize(
    "row",
    [
        *(
            [*GOOD[:i], bad, *GOOD[i + 1 :]]
            for i, bad in enumerate([1, "x", 7, -1, 1.5, 4, True, 1 << 60, 4, "A"])
        ),
        ["u\n", *GOOD[1:]],
        ["u1", 10**30, *GOOD[2:]],
        [],
        "text",
        None,
    ],
    ids=repr,
)
def test_a_row_that_is_not_ours_is_left_out(row: Any) -> None:
    text = json.dumps({"v": 1, "digests": [NEW], "reports": [row, ["u9", *GOOD[1:]]]})
    assert [r.uid for r in decode(text)] == ["u9"]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", ClaimCode.MALFORMED),
        ("[]", ClaimCode.MALFORMED),
        ("{}", ClaimCode.MALFORMED),
        ('{"v":2,"digests":[],"reports":[]}', ClaimCode.MALFORMED),
        ('{"v":1,"digests":{},"reports":[]}', ClaimCode.MALFORMED),
        ("[" * 100_000, ClaimCode.MALFORMED),
        (" " * (MAX_SHARED_CHARS + 1), ClaimCode.TOO_LARGE),
    ],
    ids=lambda v: str(v)[:30],
)
def test_a_text_that_is_not_ours(text: str, code: ClaimCode) -> None:
    with pytest.raises(ClaimError) as error:
        decode(text)
    assert error.value.code is code
