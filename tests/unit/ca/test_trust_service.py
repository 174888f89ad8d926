"""Who is told the bundle, and what of an agent's report is believed."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ca.agents import AgentBook
from ca.authn import AuthnCode, AuthnError, Caller, Method, Presented
from ca.core.acknowledged import Claim, ClaimCode, ClaimError
from ca.core.authority import Issuer
from ca.limits import LimitCode, LimitError
from ca.pods import PodFact
from ca.requests import RequestHead
from ca.trust_handler import MAX_SYNC_BYTES, parse_claim
from ca.trust_service import CALLER_BURST, MAX_RENEW_WITHIN, SyncCode, SyncError, TrustService
from mesh._proto import trust_pb2
from mesh.errors import MeshError
from mesh.kube.store import Store
from mesh.spiffe import SpiffeId
from mesh.x509.bundles import bundle_digest
from tests.fakes.ca_factory import make_hierarchy
from tests.fakes.clock import FakeClock

AGENT = SpiffeId.parse("spiffe://cluster.local/ns/istio-system/sa/gatehouse-nodeagent")
OTHER = SpiffeId.parse("spiffe://cluster.local/ns/demo/sa/gatehouse-nodeagent")
HEAD = RequestHead(Presented(), (), "ipv4:127.0.0.1:1")
H = make_hierarchy()


class Bench:
    """The service with a caller that a test chooses."""

    def __init__(self, agents: SpiffeId | None = AGENT, *, book: bool = True) -> None:
        self.clock = FakeClock()
        self.caller: Caller | MeshError = Caller(
            AGENT, Method.TOKEN, self.clock.now(), "agent-1", "u1", "node-1"
        )
        self.issuer: Issuer = H.issuer()
        self.renew_within = 0
        self.refused: list[tuple[str, Caller | None, str]] = []
        self.answered = 0
        self.reads = 0
        self.store: Store[PodFact] = Store()
        self.store.replace({})
        self.book = AgentBook(self.store, "istio-system/gatehouse-nodeagent")
        self.service = TrustService(
            agents=agents,
            authenticate=self._authenticate,
            refuse=self._refuse,
            issuer=lambda: self.issuer,
            book=self.book if book else None,
            answered=self._count,
            renew_within=lambda: self.renew_within,
            in_flight=2,
        )

    def _authenticate(self, _head: RequestHead, _now: dt.datetime) -> Caller:
        if isinstance(self.caller, MeshError):
            raise self.caller
        return self.caller

    def _refuse(self, error: MeshError, caller: Caller | None, *, peer: str) -> None:
        self.refused.append((str(error.code), caller, peer))

    def _count(self) -> None:
        self.answered += 1

    def sync(self, **claim: Any) -> Any:
        def read() -> Claim:
            self.reads += 1
            return Claim(**claim)

        return self.service.sync(HEAD, read, self.clock.now())


def test_an_agent_is_told_and_its_report_is_kept() -> None:
    bench = Bench()
    bench.store.put(("istio-system", "agent-1"), PodFact("u1", "gatehouse-nodeagent", "node-1", None, False))
    digest = bundle_digest(H.roots)
    told = bench.sync(digest=digest, workloads=2)
    assert ("".join(told.roots_pem), told.generation, told.epoch, told.renew_within_s) == (
        H.roots_pem,
        0,
        0,
        0,
    )
    assert told.poll_after == dt.timedelta(seconds=60)
    found = bench.book.counts(digest, 0, bench.clock.now())
    assert (found.expected, found.acked, bench.answered, bench.refused) == (1, 1, 1, [])


def test_the_numbers_of_the_issuer_in_force_are_told() -> None:
    bench = Bench()
    bench.sync()
    bench.issuer = dataclasses.replace(
        H.issuer(), generation=7, epoch=3, roots=(*H.roots, make_hierarchy().root_der)
    )
    bench.renew_within = 600
    told = bench.sync()
    assert (len(told.roots_pem), told.generation, told.epoch, told.renew_within_s) == (2, 7, 3, 600)
    assert told.poll_after == dt.timedelta(seconds=2), "the bundle has changed"


@pytest.mark.parametrize(("given_s", "told_s"), [(-1, 0), (10**9, MAX_RENEW_WITHIN)])
def test_the_time_to_renew_is_bounded(given_s: int, told_s: int) -> None:
    bench = Bench()
    bench.renew_within = given_s
    assert bench.sync().renew_within_s == told_s


@pytest.mark.parametrize(
    ("caller", "agents", "book", "code", "words"),
    [
        pytest.param({}, None, True, SyncCode.NO_AGENTS, "cluster.agents", id="nobody may"),
        pytest.param({}, AGENT, False, SyncCode.NO_AGENTS, "cluster.agents", id="no cluster"),
        pytest.param({"spiffe_id": OTHER}, AGENT, True, SyncCode.NOT_AN_AGENT, "may not ask", id="namespace"),
        pytest.param(
            {"pod_uid": "", "method": Method.CERTIFICATE},
            AGENT,
            True,
            SyncCode.NO_POD,
            "a token",
            id="mtls only",
        ),
    ],
)
def test_refuses_whoever_is_no_agent_before_reading(
    caller: dict[str, Any], agents: SpiffeId | None, book: bool, code: SyncCode, words: str
) -> None:
    bench = Bench(agents, book=book)
    assert isinstance(bench.caller, Caller)
    bench.caller = bench.caller._replace(**caller)
    with pytest.raises(SyncError, match=words) as error:
        bench.sync()
    assert error.value.code is code
    assert bench.refused == [(code, bench.caller, HEAD.peer)]
    assert (bench.reads, bench.answered) == (0, 0)


def test_a_bad_credential_is_refused_as_ever() -> None:
    bench = Bench()
    bench.caller = AuthnError(AuthnCode.POD_GONE, "gone")
    with pytest.raises(AuthnError):
        bench.sync()
    assert bench.refused == [("authn_pod_gone", None, HEAD.peer)]


def test_a_claim_out_of_bounds_is_refused_and_not_kept() -> None:
    bench = Bench()
    with pytest.raises(ClaimError) as error:
        bench.sync(workloads=1, pending=2)
    assert error.value.code is ClaimCode.COUNT
    assert [code for code, _, _ in bench.refused] == ["sync_count"]
    assert bench.book.own(bench.clock.now()) == ()


def test_an_agent_that_asks_too_often_is_told_when_to_come_back() -> None:
    bench = Bench()
    for _ in range(CALLER_BURST):
        bench.sync()
    with pytest.raises(LimitError) as error:
        bench.sync()
    assert error.value.code is LimitCode.CALLER_RATE
    bench.clock.advance(1)
    bench.sync()


def test_a_fault_of_ours_is_audited() -> None:
    bench = Bench()
    bench.book.record = None  # type: ignore[assignment, method-assign]  # the fault
    with pytest.raises(TypeError):
        bench.sync()
    assert [code for code, _, _ in bench.refused] == ["internal"]


# --- the message --------------------------------------------------------------------------------------


def test_a_message_is_read_whole() -> None:
    request = trust_pb2.SyncRequest(
        bundle_digest="a" * 64,
        bundle_generation=5,
        workloads=9,
        pending=2,
        refused=1,
        waiting_for=["a/b", "c/d"],
        issuer_epoch=4,
        outdated=3,
    )
    assert parse_claim(request.SerializeToString()) == Claim(
        digest="a" * 64,
        generation=5,
        workloads=9,
        pending=2,
        refused=1,
        waiting_for=("a/b", "c/d"),
        epoch=4,
        outdated=3,
    )


@pytest.mark.parametrize(
    ("message", "code"),
    [
        pytest.param(b"\x0a\x02\xff\xfe", ClaimCode.MALFORMED, id="not UTF-8"),
        pytest.param(b"\x32\x01\xff", ClaimCode.MALFORMED, id="a name that is not UTF-8"),
        pytest.param(b"\x0a\x40abc", ClaimCode.MALFORMED, id="cut off"),
        pytest.param(b"\xff" * 50, ClaimCode.MALFORMED, id="noise"),
        pytest.param(b"\x32\x03a/b" * 3000, ClaimCode.TOO_LARGE, id="huge"),
        pytest.param(b"\x32\x03a/b" * 21, ClaimCode.NAMES, id="too many names"),
        # A negative number as other languages would write it: ten bytes, and for us a very large one.
        pytest.param(b"\x18" + b"\xff" * 9 + b"\x01", ClaimCode.COUNT, id="workloads -1"),
        pytest.param(b"\x10" + b"\xff" * 9 + b"\x01", ClaimCode.NUMBER, id="generation -1"),
        pytest.param(b"\x38" + b"\xff" * 9 + b"\x01", ClaimCode.NUMBER, id="epoch -1"),
    ],
)
def test_hostile_messages(message: bytes, code: ClaimCode) -> None:
    with pytest.raises(ClaimError) as error:
        parse_claim(message)
    assert error.value.code is code


def test_unknown_fields_of_a_later_agent_are_skipped() -> None:
    assert parse_claim(b"\x7a\x03new\x18\x02").workloads == 2


@given(st.binary(max_size=MAX_SYNC_BYTES + 10))
def test_any_bytes_are_a_claim_or_a_refusal(message: bytes) -> None:
    with contextlib.suppress(ClaimError):
        assert isinstance(parse_claim(message), Claim)
