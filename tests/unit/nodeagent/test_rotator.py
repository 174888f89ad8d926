"""The rotator with the real authority's code, a fake clock, and everything that can go wrong."""

from __future__ import annotations

import asyncio
import datetime as dt
import itertools
import random
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_private_key
from envoy.extensions.transport_sockets.tls.v3 import secret_pb2
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from prometheus_client import CollectorRegistry

from mesh.envoy.resources import SDS_ALL_BUNDLES, SDS_ROOTS, SDS_SVID, SECRET, ResourceSet
from mesh.errors import Category
from mesh.spiffe import SpiffeId
from mesh.x509.verify import verify_svid
from nodeagent.ca_client import CaCode, CaError
from nodeagent.core.rotation import Priority
from nodeagent.core.schedule import TICK
from nodeagent.core.snapshot import IdentitySnapshot
from nodeagent.metrics import AgentMetrics
from nodeagent.rotator import Rotator, wait_for_event
from tests.fakes.ca_factory import make_hierarchy
from tests.fakes.clock import FakeClock
from tests.fakes.nodeagent_ca import NodeagentCa
from tests.fakes.nodeagent_wait import nodeagent_until

ID = SpiffeId.parse("spiffe://cluster.local/ns/demo/sa/web")
UNAVAILABLE = CaError(CaCode.UNREACHABLE, "away", category=Category.UNAVAILABLE)
REFUSED = CaError(CaCode.UNAUTHENTICATED, "who are you", category=Category.UNAUTHENTICATED)
DENIED = CaError(CaCode.DENIED, "no", category=Category.PERMISSION_DENIED)
HOUR = 3600.0


class RotatorBench:
    """A rotator in virtual time: a wait moves the clocks instead of waiting."""

    def __init__(self, directory: Path, *, seed: int = 1, lifetime: float = 24 * HOUR) -> None:
        self.clock = FakeClock()
        self.seconds = 0.0
        self.ca = NodeagentCa(self.clock, ID, lifetime=dt.timedelta(seconds=lifetime))
        self.token = directory / "token"
        self.token.write_text("token")
        self.metrics = AgentMetrics(CollectorRegistry())
        self.published: list[tuple[dt.datetime, IdentitySnapshot, ResourceSet]] = []
        self.rotator = Rotator(
            spiffe_id=ID,
            token_file=self.token,
            signer=self.ca,
            publish=lambda s, r: self.published.append((self.clock.now(), s, r)),
            metrics=self.metrics,
            clock=self.clock,
            monotonic=lambda: self.seconds,
            rng=random.Random(seed),
            roots_lead=0.0,
            wait=self.wait,
        )

    async def wait(self, event: asyncio.Event, seconds: float) -> None:
        assert 0 <= seconds <= TICK
        if not event.is_set():
            self.pass_time(max(seconds, 0.001))

    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.seconds += seconds

    def run_for(self, seconds: float) -> None:
        asyncio.run(self._run(self.seconds + seconds))

    async def _run(self, until: float) -> None:
        while self.seconds < until:
            await self.rotator.step()

    def steps(self, count: int) -> None:
        async def run() -> None:
            for _ in range(count):
                await self.rotator.step()

        asyncio.run(run())

    @property
    def now_published(self) -> IdentitySnapshot:
        return self.published[-1][1] if self.published else IdentitySnapshot()

    def counted(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


@pytest.fixture
def bench(tmp_path: Path) -> RotatorBench:
    return RotatorBench(tmp_path)


def names(resources: ResourceSet) -> set[str]:
    return set(resources.of_type(SECRET))


def test_the_first_certificate_is_published_under_all_names(bench: RotatorBench) -> None:
    assert bench.rotator.status().state == "waiting"
    bench.steps(1)
    ((_, snapshot, resources),) = bench.published
    assert snapshot.svid is not None
    assert names(resources) == {SDS_SVID, str(ID), SDS_ROOTS, "spiffe://cluster.local", SDS_ALL_BUNDLES}
    secret = secret_pb2.Secret.FromString(resources.of_type(SECRET)[SDS_SVID].body)
    assert secret.tls_certificate.private_key.inline_bytes.startswith(b"-----BEGIN PRIVATE KEY-----")
    assert bench.ca.priorities == [Priority.FIRST]
    status = bench.rotator.status()
    assert (status.state, status.serial, status.issued) == ("valid", snapshot.svid.serial, 1)
    assert bench.counted("gatehouse_agent_renewals_total") == 1


def test_nothing_is_published_before_the_first_certificate(bench: RotatorBench) -> None:
    bench.ca.fail_with = UNAVAILABLE
    bench.run_for(120)
    assert bench.published == []
    assert len(bench.ca.csrs) > 5
    assert bench.rotator.status().code == "ca_unreachable"


def test_months_without_a_restart_a_new_key_each_time(bench: RotatorBench) -> None:
    bench.run_for(90 * 24 * HOUR)
    serials = {s.svid.serial for _, s, _ in bench.published if s.svid}
    keys = {s.svid.key_pkcs8 for _, s, _ in bench.published if s.svid}
    assert 170 <= len(serials) <= 220  # about two a day
    assert len(keys) == len(serials) == len(bench.published) == len(bench.ca.csrs)
    assert all(snapshot.svid for _, snapshot, _ in bench.published)
    assert bench.ca.most_in_flight == 1


def test_the_key_that_was_published_is_that_of_the_leaf(bench: RotatorBench) -> None:
    bench.steps(1)
    svid = bench.now_published.svid
    assert svid is not None
    key = load_der_private_key(svid.key_pkcs8, None)
    leaf = x509.load_der_x509_certificate(svid.chain_der[0])
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert key.public_key().public_bytes(*form) == leaf.public_key().public_bytes(*form)


def test_short_demo_lifetimes_renew_at_half(tmp_path: Path) -> None:
    bench = RotatorBench(tmp_path, lifetime=20)
    bench.run_for(95)
    assert len(bench.published) == 10


def test_d4_ca_down_with_a_valid_certificate_keeps_serving(bench: RotatorBench) -> None:
    bench.steps(1)
    bench.ca.fail_with = UNAVAILABLE
    bench.run_for(23 * HOUR)
    assert len(bench.published) == 1
    assert bench.rotator.status().state == "endangered"
    assert Priority.EXPIRING in bench.ca.priorities
    assert bench.counted("gatehouse_agent_renew_failures_total", code="ca_unreachable") > 100


def test_d4_ca_down_past_expiry_stops_sending_and_resumes_by_itself(bench: RotatorBench) -> None:
    bench.steps(1)
    bench.ca.fail_with = UNAVAILABLE
    bench.run_for(25 * HOUR)
    _, snapshot, resources = bench.published[-1]
    assert snapshot.svid is None
    assert snapshot.bundle is not None
    assert names(resources) == {SDS_ROOTS, "spiffe://cluster.local", SDS_ALL_BUNDLES}
    assert len(bench.published) == 2
    assert bench.rotator.status().state == "expired"
    bench.ca.fail_with = None
    bench.run_for(20)
    assert bench.now_published.svid is not None
    assert bench.rotator.status().state == "valid"


def test_d4_a_refused_token_slows_down_until_the_token_changes(bench: RotatorBench) -> None:
    bench.ca.fail_with = REFUSED
    bench.run_for(60)
    assert len(bench.ca.csrs) == 3
    bench.run_for(200)
    assert len(bench.ca.csrs) == 3  # five minutes are not over
    bench.ca.fail_with = None
    bench.token.write_text("fresh token")
    bench.run_for(TICK + 1)
    assert bench.now_published.svid is not None


def test_a_permanent_refusal_is_tried_again_each_five_minutes(bench: RotatorBench) -> None:
    bench.ca.fail_with = DENIED
    bench.run_for(3600)
    assert 12 <= len(bench.ca.csrs) <= 14


def test_wake_ends_the_wait(bench: RotatorBench) -> None:
    bench.ca.fail_with = DENIED
    bench.steps(2)
    bench.ca.fail_with = None
    bench.rotator.wake()
    bench.steps(3)
    assert bench.now_published.svid is not None


def test_f58_a_forged_reply_changes_nothing_and_alarms(bench: RotatorBench) -> None:
    bench.steps(1)
    before = bench.published[-1]
    other = NodeagentCa(bench.clock, ID)
    bench.ca.forge = lambda chain: [*chain[:-1], other.hierarchy.roots_pem]
    bench.run_for(14 * HOUR)
    assert bench.published[-1] is before
    assert bench.rotator.status().code == "svid_untrusted"
    assert bench.counted("gatehouse_agent_renew_failures_total", code="svid_untrusted") > 1
    bench.ca.forge = list
    bench.run_for(120)
    assert bench.published[-1] is not before


def test_a_fault_of_ours_does_not_end_the_rotator(bench: RotatorBench) -> None:
    def broken(chain: list[str]) -> list[str]:
        raise ZeroDivisionError

    bench.ca.forge = broken
    bench.run_for(30)
    assert bench.rotator.status().code == "rotator_unexpected"
    bench.ca.forge = list
    bench.run_for(30)
    assert bench.rotator.status().state == "valid"


def test_d4_roots_are_published_before_the_leaf_that_needs_them(bench: RotatorBench) -> None:
    bench.steps(1)
    old = bench.now_published
    new = make_hierarchy(now=bench.clock.now() - dt.timedelta(days=1))
    both = bench.ca.hierarchy.roots_pem + new.roots_pem
    bench.ca.hierarchy = new
    bench.ca.forge = lambda chain: [*chain[:-1], both]
    bench.run_for(14 * HOUR)
    (_, first, _), (_, roots_only, _), (_, fresh, _) = bench.published[:3]
    assert first is old
    assert old.svid is not None
    assert (roots_only.svid, roots_only.bundle != old.bundle) == (old.svid, True)
    assert fresh.svid is not None
    assert fresh.svid != old.svid
    assert fresh.bundle == roots_only.bundle


def test_d4_skew_is_measured_and_not_fatal(bench: RotatorBench) -> None:
    bench.ca.skew = dt.timedelta(minutes=4)  # the authority is ahead: NotBefore lies in our future
    bench.steps(1)
    assert bench.now_published.svid is not None
    assert bench.counted("gatehouse_agent_clock_skew_seconds") == pytest.approx(-240)


def test_d4_clock_jump_back_does_not_drop_the_certificate(bench: RotatorBench) -> None:
    bench.steps(1)
    bench.clock.advance(-6 * HOUR)
    bench.run_for(HOUR)
    assert len(bench.published) == 1


def test_d4_suspend_everything_expired_recovers_with_a_fresh_token(bench: RotatorBench) -> None:
    bench.steps(2)
    bench.clock.advance(72 * HOUR)  # asleep: the monotonic clock stands still
    bench.run_for(TICK + 1)
    assert bench.now_published.svid is not None
    assert bench.now_published.svid.not_after > bench.clock.now()


def test_run_ends_by_cancellation(bench: RotatorBench) -> None:
    bench.rotator._wait = wait_for_event

    async def cancel() -> None:
        task = asyncio.ensure_future(bench.rotator.run())
        await nodeagent_until(lambda: bench.published)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())


# --- the law: whatever happens, in whatever order -------------------------------------------------


class RotationLaws(RuleBasedStateMachine):
    """Crashes of the authority, forged replies, refused tokens, new roots, and clocks that jump."""

    @initialize(seed=st.integers(0, 2**32), lifetime=st.sampled_from([20, 600, 3600, 24 * 3600]))
    def begin(self, seed: int, lifetime: int) -> None:
        import tempfile

        self.directory = tempfile.TemporaryDirectory()
        self.bench = RotatorBench(Path(self.directory.name), seed=seed, lifetime=lifetime)
        self.lifetime = lifetime
        self.checked = 0

    def teardown(self) -> None:
        if not hasattr(self, "bench"):
            return
        bench = self.bench
        bench.ca.fail_with, bench.ca.forge = None, list
        try:
            # Liveness: with a healthy authority there is a certificate within the longest wait.
            bench.run_for(330)
            assert bench.now_published.svid is not None
        finally:
            self.directory.cleanup()

    @rule(share=st.floats(0.001, 1.5))
    def time_passes(self, share: float) -> None:
        self.bench.run_for(min(share * self.lifetime, HOUR / 2))

    @rule(error=st.sampled_from([UNAVAILABLE, REFUSED, DENIED, None]))
    def authority(self, error: CaError | None) -> None:
        self.bench.ca.fail_with = error

    @rule()
    def forger(self) -> None:
        stranger = make_hierarchy(now=self.bench.clock.now())
        self.bench.ca.forge = lambda chain: [*chain[:-1], stranger.roots_pem]

    @rule()
    def honest(self) -> None:
        self.bench.ca.forge = list

    @precondition(lambda self: self.bench.ca.forge is list)
    @rule()
    def new_root_beside_the_old(self) -> None:
        ca = self.bench.ca
        new = make_hierarchy(now=self.bench.clock.now() - dt.timedelta(days=100))
        roots = ca.hierarchy.roots_pem + new.roots_pem
        ca.hierarchy = new
        ca.trusted = (*ca.trusted[-1:], *new.roots)
        ca.forge = lambda chain: [*chain[:-1], roots]

    @rule(hours=st.sampled_from([-30.0, -1.0, 0.1, 5.0, 30.0]))
    def wall_clock_jumps(self, hours: float) -> None:
        self.bench.clock.advance(hours * HOUR)

    @rule()
    def new_token(self) -> None:
        self.bench.token.write_text(f"token {len(self.bench.ca.csrs)}")

    @invariant()
    def what_is_published_is_whole_and_current(self) -> None:
        if not hasattr(self, "bench"):
            return
        for at, snapshot, _ in self.bench.published[self.checked :]:
            assert snapshot.bundle is not None
            svid = snapshot.svid
            if svid is not None:
                assert at <= svid.not_after
                verify_svid(
                    svid.chain_der,
                    snapshot.bundle.roots_der,
                    max(at, svid.not_before),
                    trust_domain=ID.trust_domain,
                    expected_id=ID,
                )
        self.checked = len(self.bench.published)

    @invariant()
    def a_valid_certificate_is_never_dropped(self) -> None:
        if not hasattr(self, "bench"):
            return
        published = self.bench.published
        for (_, before, _), (at, after, _) in itertools.pairwise(published):
            if before.svid is not None and after.svid is None:
                assert at > before.svid.not_after

    @invariant()
    def one_flight_and_no_key_twice(self) -> None:
        if not hasattr(self, "bench"):
            return
        assert self.bench.ca.most_in_flight <= 1
        assert len(set(self.bench.ca.csrs)) == len(self.bench.ca.csrs)


TestRotationLaws = RotationLaws.TestCase
TestRotationLaws.settings = settings(
    max_examples=20,
    stateful_step_count=15,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
