"""Which bundle wins, and who has acknowledged it: laws over any order of replies and any proxies."""

from __future__ import annotations

import itertools
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.envoy.resources import SDS_ALL_BUNDLES, SDS_ROOTS, SDS_SVID, SECRET
from mesh.spiffe import TrustDomain
from mesh.x509.bundles import bundle_digest
from nodeagent.core.snapshot import IdentitySnapshot, TrustBundle, WorkloadSnapshot
from nodeagent.core.subscriptions import Response, Subscription
from nodeagent.core.trust import (
    ABSENT_AFTER,
    MAX_NAME_CHARS,
    MAX_WAITING,
    HeldRoots,
    Receivers,
    TrustBook,
    Verdict,
    WorkloadFact,
    newer,
    standing,
    verdict_on_roots,
)
from nodeagent.rotator import secrets_of
from tests.fakes.agent_model import Wires
from tests.fakes.agent_session import IDENTITY, OWN, sds

TD = TrustDomain("cluster.local")
BY_ID = str(TD.id)
BOTH = pytest.mark.parametrize("delta", [False, True], ids=["sotw", "delta"])


def roots(*names: str, generation: int = 0) -> HeldRoots:
    return HeldRoots(tuple(name.encode() for name in names), generation)


# --- which bundle wins --------------------------------------------------------------------------------


def test_the_first_is_taken_and_the_digest_is_its_name() -> None:
    found = newer(None, roots("a", generation=5))
    assert found.digest == bundle_digest([b"a"])
    assert found.generation == 5


@pytest.mark.parametrize(
    ("held", "offered", "wins"),
    [
        pytest.param(roots("a", generation=2), roots("b", generation=3), "offered", id="higher"),
        pytest.param(roots("a", generation=3), roots("b", generation=2), "held", id="lower"),
        pytest.param(roots("a", generation=3), roots("b", generation=3), "offered", id="same"),
        pytest.param(roots("a", generation=3), roots("b"), "offered", id="nobody counts any more"),
        pytest.param(roots("a"), roots("b"), "offered", id="nobody counts"),
        pytest.param(roots("a"), roots("b", generation=1), "offered", id="counting begins"),
    ],
)
def test_which_wins(held: HeldRoots, offered: HeldRoots, wins: str) -> None:
    assert newer(held, offered) is (held if wins == "held" else offered)


def test_the_same_roots_stay_as_they_are_known() -> None:
    held = roots("a", "b", generation=2)
    found = newer(held, roots("b", "a", generation=3))
    assert (found.roots_der, found.generation) == (held.roots_der, 3)
    assert newer(held, roots("b", "a", generation=2)) is held


counted = st.builds(
    lambda generation, epoch: (HeldRoots((b"root %d" % generation,), generation), epoch),
    st.integers(1, 6),
    st.integers(0, 4),
)


@given(st.lists(counted, min_size=1, max_size=20))
def test_generation_and_epoch_never_fall_whatever_the_order_of_replies(
    offers: list[tuple[HeldRoots, int]],
) -> None:
    book = TrustBook()
    heard: list[HeldRoots] = []
    book.subscribe(heard.append)
    for index, (offered, epoch) in enumerate(offers):
        book.offer(offered, epoch)
        seen = offers[: index + 1]
        assert book.held is not None
        assert book.held.generation == max(o.generation for o, _ in seen)
        assert book.held.roots_der == (b"root %d" % book.held.generation,)
        assert book.epoch == max(e for _, e in seen)
    generations = [h.generation for h in heard]
    assert generations == sorted(set(generations)), "each is told once, in order"


def test_a_listener_hears_of_other_roots_only_and_not_after_it_left() -> None:
    book, heard = TrustBook(), []
    book.subscribe(heard.append)
    book.offer(roots("a", generation=1), 1)
    book.offer(roots("a", generation=2), 1)
    assert [h.generation for h in heard] == [1]
    book.unsubscribe(heard.append)
    book.unsubscribe(heard.append)
    book.offer(roots("b", generation=3), 1)
    assert len(heard) == 1


def test_an_authority_that_no_longer_counts_starts_anew() -> None:
    book = TrustBook()
    book.offer(roots("a", generation=4), 2)
    book.offer(roots("b"), 0)
    assert (book.held, book.epoch) == (roots("b"), 0)


# --- one stream ---------------------------------------------------------------------------------------


def identity(*names: str) -> IdentitySnapshot:
    bundle = TrustBundle(trust_domain=TD, roots_der=tuple(n.encode() for n in names))
    return IdentitySnapshot(svid=IDENTITY.svid, bundle=bundle)


def wired(*names: str, delta: bool = False) -> Wires:
    found = identity(*names)
    return sds(delta=delta, identity=found, secrets=secrets_of(found))


def publish(wires: Wires, *names: str) -> list[Response]:
    found = identity(*names)
    return wires.publish(identity=found, secrets=secrets_of(found))


def verdict(wires: Wires) -> Verdict | None:
    return wires.session.verdict(wires.snapshot)


@BOTH
def test_asked_sent_accepted(delta: bool) -> None:
    wires = wired("a", delta=delta)
    assert verdict(wires) is None
    first = wires.ask("SDS", SDS_ROOTS)
    assert verdict(wires) is Verdict.PENDING
    wires.ask("SDS", *(() if delta else (SDS_ROOTS,)), nonce=first[0].nonce)
    assert verdict(wires) is Verdict.ACCEPTED
    second = publish(wires, "a", "b")
    assert verdict(wires) is Verdict.PENDING
    wires.ask("SDS", *(() if delta else (SDS_ROOTS,)), nonce=second[0].nonce)
    assert verdict(wires) is Verdict.ACCEPTED


@BOTH
def test_what_is_published_and_not_sent_yet_is_pending(delta: bool) -> None:
    wires = wired("a", delta=delta)
    first = wires.ask("SDS", SDS_ROOTS)
    wires.ask("SDS", *(() if delta else (SDS_ROOTS,)), nonce=first[0].nonce)
    found = identity("a", "b")
    later = WorkloadSnapshot(revision=9, identity=found, secrets=secrets_of(found), starting=False)
    assert wires.session.verdict(later) is Verdict.PENDING


@BOTH
@pytest.mark.parametrize("name", [SDS_ROOTS, BY_ID, SDS_ALL_BUNDLES])
def test_each_name_of_the_roots_counts(delta: bool, name: str) -> None:
    wires = wired("a", delta=delta)
    first = wires.ask("SDS", name)
    assert verdict(wires) is Verdict.PENDING
    wires.ask("SDS", *(() if delta else (name,)), nonce=first[0].nonce)
    assert verdict(wires) is Verdict.ACCEPTED


@pytest.mark.parametrize("name", [SDS_SVID, OWN, "other", "spiffe://cluster.local/ns/demo/sa/other"])
def test_other_secrets_do_not_count(name: str) -> None:
    wires = wired("a")
    wires.ask("SDS", name)
    assert verdict(wires) is None


@BOTH
def test_a_refusal_stays_also_on_a_new_stream_that_accepts_the_same_bytes(delta: bool) -> None:
    """P7: Envoy acknowledges bytes that it has refused, and keeps the older ones in force."""
    wires = wired("a", delta=delta)
    first = wires.ask("SDS", SDS_ROOTS)
    wires.ask("SDS", *(() if delta else (SDS_ROOTS,)), nonce=first[0].nonce, nack="no")
    assert verdict(wires) is Verdict.REFUSED
    wires.new_session()
    again = wires.ask("SDS", SDS_ROOTS)
    wires.ask("SDS", *(() if delta else (SDS_ROOTS,)), nonce=again[0].nonce)
    assert verdict(wires) is Verdict.REFUSED
    better = publish(wires, "b")
    wires.ask("SDS", *(() if delta else (SDS_ROOTS,)), nonce=better[0].nonce)
    assert verdict(wires) is Verdict.ACCEPTED


def test_everything_that_is_asked_for_by_a_wildcard_counts() -> None:
    wires = wired("a")
    responses = wires.ask("SDS")
    answered = 0
    while responses:
        assert verdict(wires) is Verdict.PENDING or answered >= 3
        responses = wires.ask("SDS", nonce=responses[-1].nonce)
        answered += 1
    assert answered == 5  # three names of the roots, two of the certificate
    assert verdict(wires) is Verdict.ACCEPTED


def test_a_proxy_that_asks_for_roots_which_the_agent_does_not_know_yet_is_pending() -> None:
    subscription = Subscription(SECRET, names={SDS_ROOTS: None})
    assert verdict_on_roots(subscription, WorkloadSnapshot(), wired("a").status) is Verdict.PENDING
    subscription = Subscription(SECRET, names={SDS_SVID: None})
    assert verdict_on_roots(subscription, WorkloadSnapshot(), wired("a").status) is None


class Proxy:
    """What an Envoy holds by name, over all its streams; bytes that it refused just now it does not take."""

    def __init__(self, wires: Wires) -> None:
        self.wires = wires
        self.names: set[str] = set()
        self.heard: set[str] = set()  # of these, what the agent has heard of: see S-04
        self.holds: dict[str, str] = {}
        self.refused: dict[str, str] = {}
        self.waiting: deque[Response] = deque()

    def take(self, responses: list[Response]) -> None:
        self.waiting.extend(responses)

    def listed(self) -> tuple[str, ...]:
        return () if self.wires.delta else tuple(sorted(self.names))

    def want(self, name: str) -> None:
        if name in self.names:
            return
        self.names.add(name)
        nonce = "" if not self.waiting else "crossed"
        self._speaks()
        self.take(self.wires.ask("SDS", *((name,) if self.wires.delta else self.listed()), nonce=nonce))

    def answer(self, *, like: bool) -> None:
        if not self.waiting:
            return
        response = self.waiting.popleft()
        (found,) = response.resources
        self._speaks()
        if like:
            if self.refused.get(found.name) != found.version:
                self.refused.pop(found.name, None)
                self.holds[found.name] = found.version
            self.take(self.wires.ask("SDS", *self.listed(), nonce=response.nonce))
        else:
            if self.holds.get(found.name) != found.version:
                self.refused[found.name] = found.version
            self.take(self.wires.ask("SDS", *self.listed(), nonce=response.nonce, nack="no"))

    def _speaks(self) -> None:
        if self.wires.delta or not self.waiting:
            self.heard = set(self.names)

    def reconnect(self) -> None:
        self.waiting.clear()
        self._speaks()
        self.wires.new_session()
        if self.names:
            known = {n: v for n, v in self.holds.items() if n in self.names} if self.wires.delta else {}
            self.take(self.wires.ask("SDS", *sorted(self.names), versions=known))

    def has_all(self) -> bool:
        current = self.wires.snapshot.secrets.of_type(SECRET)
        return all(self.holds.get(n) == current[n].version for n in self.heard & ROOT_NAMES)


ROOT_NAMES = {SDS_ROOTS, BY_ID, SDS_ALL_BUNDLES}
steps = st.lists(
    st.one_of(
        st.tuples(st.just("want"), st.sampled_from([*sorted(ROOT_NAMES), SDS_SVID])),
        st.tuples(st.just("publish"), st.sampled_from(["a", "b", "c"])),
        st.tuples(st.just("like"), st.none()),
        st.tuples(st.just("dislike"), st.none()),
        st.tuples(st.just("reconnect"), st.none()),
    ),
    max_size=25,
)


@BOTH
@settings(max_examples=300, deadline=None)
@given(what=steps)
def test_accepted_only_if_the_proxy_has_each_name_that_it_asked_for(
    delta: bool, what: list[tuple[str, str | None]]
) -> None:
    wires = wired("a", delta=delta)
    proxy = Proxy(wires)
    for step, value in what:
        match step:
            case "want":
                proxy.want(str(value))
            case "publish":
                proxy.take(publish(wires, str(value)))
            case "like":
                proxy.answer(like=True)
            case "dislike":
                proxy.answer(like=False)
            case "reconnect":
                proxy.reconnect()
        found = verdict(wires)
        assert (found is not None) == bool(proxy.heard & ROOT_NAMES)
        if found is Verdict.ACCEPTED:
            assert proxy.has_all()
    # And a proxy that likes new bytes is believed in the end.
    proxy.take(publish(wires, "fresh"))
    for _ in range(50):
        proxy.answer(like=True)
    if proxy.names & ROOT_NAMES:
        assert verdict(wires) is Verdict.ACCEPTED


# --- one workload -------------------------------------------------------------------------------------


class Said:
    """A stream that says what a test wants."""

    def __init__(self, said: Verdict | None) -> None:
        self.said = said

    def verdict(self, _snapshot: WorkloadSnapshot) -> Verdict | None:
        return self.said


SNAPSHOT = WorkloadSnapshot()


def test_who_never_came_is_pending_and_then_has_no_proxy() -> None:
    receivers = Receivers(since=100.0)
    assert receivers.verdict(SNAPSHOT, 159.9) == (Verdict.PENDING, 160.0)
    assert receivers.verdict(SNAPSHOT, 160.0) == (Verdict.ACCEPTED, None)


def test_who_went_is_pending_and_then_has_no_proxy() -> None:
    receivers, proxy = Receivers(since=0.0), Said(Verdict.ACCEPTED)
    receivers.open(proxy, proxy=True)
    assert receivers.verdict(SNAPSHOT, 10.0) == (Verdict.ACCEPTED, None)
    receivers.close(proxy, 1000.0)
    receivers.close(proxy, 1050.0)
    assert receivers.verdict(SNAPSHOT, 1000.0) == (Verdict.PENDING, 1000.0 + ABSENT_AFTER)
    assert receivers.verdict(SNAPSHOT, 1060.0) == (Verdict.ACCEPTED, None)


def test_a_stream_without_roots_says_nothing() -> None:
    receivers = Receivers(since=0.0)
    receivers.open(Said(None), proxy=True)
    assert receivers.verdict(SNAPSHOT, 1.0)[0] is Verdict.PENDING
    assert receivers.verdict(SNAPSHOT, 61.0)[0] is Verdict.ACCEPTED


@pytest.mark.parametrize("worst", [Verdict.PENDING, Verdict.REFUSED])
@pytest.mark.parametrize("proxy", [True, False])
def test_the_worst_stream_counts(worst: Verdict, proxy: bool) -> None:
    receivers = Receivers(since=0.0)
    for said in itertools.chain(map(Said, [Verdict.ACCEPTED, None]), [Said(Verdict.ACCEPTED)]):
        receivers.open(said, proxy=True)
    receivers.open(Said(worst), proxy=proxy)
    assert receivers.verdict(SNAPSHOT, 1e6) == (worst, None)


def test_a_client_of_the_workload_api_is_no_proxy() -> None:
    receivers, client = Receivers(since=0.0), Said(Verdict.ACCEPTED)
    receivers.open(client, proxy=False)
    assert receivers.verdict(SNAPSHOT, 1.0)[0] is Verdict.PENDING, "its proxy may still come"
    assert receivers.verdict(SNAPSHOT, 61.0)[0] is Verdict.ACCEPTED
    client.said = Verdict.PENDING
    assert receivers.verdict(SNAPSHOT, 61.0)[0] is Verdict.PENDING
    receivers.close(client, 62.0)
    assert receivers.verdict(SNAPSHOT, 62.0)[0] is Verdict.ACCEPTED


# --- the report ---------------------------------------------------------------------------------------


def fact(name: str = "demo/web", **changes: object) -> WorkloadFact:
    bundle = TrustBundle(trust_domain=TD, roots_der=(b"a",))
    fields = {"bundle": bundle, "epoch": 2, "verdict": Verdict.ACCEPTED, **changes}
    return WorkloadFact(name=name, **fields)  # type: ignore[arg-type]  # of a test


def told(epoch: int = 2) -> TrustBook:
    book = TrustBook()
    book.offer(roots("a", generation=7), epoch)
    return book


def test_all_is_well() -> None:
    found = standing([fact(), fact("demo/api")], told())
    assert (found.digest, found.generation, found.epoch) == (bundle_digest([b"a"]), 7, 2)
    assert (found.workloads, found.pending, found.refused, found.outdated, found.look_at) == (
        2,
        0,
        0,
        0,
        None,
    )


def test_pending_and_refused_have_names_and_the_next_look_is_the_first() -> None:
    found = standing(
        [
            fact("demo/z", verdict=Verdict.PENDING, look_at=50.0),
            fact("demo/a", verdict=Verdict.REFUSED),
            fact("demo/m", verdict=Verdict.PENDING, look_at=40.0),
            fact("demo/ok"),
        ],
        told(),
    )
    assert (found.pending, found.refused, found.look_at) == (3, 1, 40.0)
    assert found.waiting_for == ("demo/a", "demo/m", "demo/z")


def test_names_are_bounded_as_the_authority_wants_them() -> None:
    facts = [fact("n/" + "x" * 300, verdict=Verdict.PENDING) for _ in range(MAX_WAITING + 5)]
    found = standing(facts, told())
    assert (found.pending, len(found.waiting_for)) == (MAX_WAITING + 5, MAX_WAITING)
    assert len(found.waiting_for[0]) == MAX_NAME_CHARS


def test_a_workload_with_another_bundle_is_pending_whatever_its_proxy_says() -> None:
    other = TrustBundle(trust_domain=TD, roots_der=(b"b",))
    assert standing([fact(bundle=other)], told()).pending == 1
    assert standing([fact(bundle=None)], told()).pending == 0


def test_outdated_are_certificates_of_earlier_epochs() -> None:
    facts = [fact(epoch=1), fact(epoch=2), fact(epoch=None), fact(epoch=0)]
    assert standing(facts, told(epoch=2)).outdated == 2
    assert standing(facts, told(epoch=0)).outdated == 0
    assert standing(facts, TrustBook()).outdated == 0
