"""Rotators that share the bundle of their node: new roots at once, no older bundle, renewal on request."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest

from mesh.envoy.resources import SDS_ALL_BUNDLES, SDS_ROOTS, SDS_SVID, SECRET, ResourceSet
from nodeagent.core.snapshot import IdentitySnapshot
from nodeagent.core.trust import HeldRoots
from tests.fakes.ca_factory import Hierarchy, make_hierarchy
from tests.unit.nodeagent.test_rotator import HOUR, UNAVAILABLE, RotatorBench


@pytest.fixture
def bench(tmp_path: Path) -> RotatorBench:
    made = RotatorBench(tmp_path)
    made.rotator.trust.subscribe(made.rotator.take_roots)
    return made


def another(bench: RotatorBench) -> Hierarchy:
    return make_hierarchy(now=bench.clock.now() - dt.timedelta(days=1))


def names_and_versions(resources: ResourceSet) -> dict[str, str]:
    return {name: found.version for name, found in resources.of_type(SECRET).items()}


def test_other_roots_are_published_at_once_and_the_certificate_stays(bench: RotatorBench) -> None:
    bench.steps(1)
    ((_, before, old),) = bench.published
    both = HeldRoots((*bench.ca.hierarchy.roots, *another(bench).roots), 2)
    bench.rotator.trust.offer(both, 1)
    (_, after, new) = bench.published[-1]
    assert len(bench.published) == 2
    assert after.svid is before.svid
    assert after.bundle is not None
    assert after.bundle.roots_der == both.roots_der
    was, now = names_and_versions(old), names_and_versions(new)
    assert was.keys() == now.keys()
    changed = {name for name in now if was[name] != now[name]}
    assert changed == {SDS_ROOTS, SDS_ALL_BUNDLES, "spiffe://cluster.local"}
    assert was[SDS_SVID] == now[SDS_SVID]
    assert len(bench.ca.csrs) == 1, "no certificate is asked for"
    bench.steps(3)
    assert len(bench.published) == 2


def test_before_the_first_certificate_nothing_is_handed_out_and_then_the_newest(bench: RotatorBench) -> None:
    both = HeldRoots((*bench.ca.hierarchy.roots, *another(bench).roots), 2)
    bench.ca.generation = 1
    bench.ca.fail_with = UNAVAILABLE
    bench.steps(1)
    bench.rotator.trust.offer(both, 1)
    assert bench.published == []
    bench.ca.fail_with = None
    bench.run_for(60)
    (_, first, _) = bench.published[0]
    assert first.svid is not None
    assert first.bundle is not None
    assert first.bundle.roots_der == both.roots_der


def test_after_the_end_of_the_certificate_roots_still_come(bench: RotatorBench) -> None:
    bench.steps(1)
    bench.ca.fail_with = UNAVAILABLE
    bench.run_for(25 * HOUR)
    assert bench.now_published.svid is None
    both = HeldRoots((*bench.ca.hierarchy.roots, *another(bench).roots), 2)
    bench.rotator.trust.offer(both, 1)
    found = bench.now_published
    assert (found.svid, found.bundle is not None and found.bundle.roots_der) == (None, both.roots_der)


def test_a_reply_with_an_older_bundle_does_not_take_the_newer_one_back(bench: RotatorBench) -> None:
    bench.ca.generation, bench.ca.epoch = 1, 1
    bench.steps(1)
    both = HeldRoots((*bench.ca.hierarchy.roots, *another(bench).roots), 2)
    bench.rotator.trust.offer(both, 1)
    first = bench.now_published
    bench.run_for(14 * HOUR)
    found = bench.now_published
    assert first.svid is not None
    assert found.svid is not None
    assert found.svid.serial != first.svid.serial
    assert found.bundle == first.bundle
    assert bench.rotator.status().bundle_generation == 2
    assert bench.rotator.status().bundle_digest == both.digest


def test_a_reply_of_a_replica_that_is_behind_is_refused(bench: RotatorBench) -> None:
    """It signs with a root that the newer bundle has left out: peers would refuse the certificate."""
    bench.ca.generation = 1
    bench.steps(1)
    first = bench.now_published
    new = another(bench)
    bench.rotator.trust.offer(HeldRoots((*bench.ca.hierarchy.roots, *new.roots), 2), 1)
    bench.rotator.trust.offer(HeldRoots(new.roots, 3), 2)
    bench.run_for(14 * HOUR)
    assert bench.rotator.status().code == "reply_former_root"
    assert bench.now_published.svid is first.svid
    assert bench.now_published.bundle is not None
    assert bench.now_published.bundle.roots_der == new.roots
    bench.ca.hierarchy, bench.ca.generation, bench.ca.epoch = new, 3, 2
    bench.run_for(HOUR)
    assert bench.rotator.status().code == ""
    assert bench.rotator.status().epoch == 2


def test_a_reply_with_a_newer_bundle_is_told_to_all_workloads(tmp_path: Path) -> None:
    one, other = RotatorBench(tmp_path), RotatorBench(tmp_path)
    other.rotator.trust = one.rotator.trust
    for bench in (one, other):
        bench.rotator.trust.subscribe(bench.rotator.take_roots)
        bench.ca.hierarchy = one.ca.hierarchy
        bench.ca.trusted = one.ca.trusted
        bench.ca.generation = 1
        bench.steps(1)
    new = another(one)
    both = one.ca.hierarchy.roots_pem + new.roots_pem
    one.ca.forge = lambda chain: [*chain[:-1], both]
    one.ca.generation = 2
    before = other.now_published
    one.run_for(14 * HOUR)
    assert one.now_published.bundle is not None
    assert len(one.now_published.bundle.roots_der) == 2
    after = other.now_published
    assert (after.svid, after.bundle) == (before.svid, one.now_published.bundle)
    assert len(other.ca.csrs) == 1


def test_the_roots_of_a_reply_go_before_its_certificate(bench: RotatorBench) -> None:
    bench.ca.generation = 1
    bench.steps(1)
    old = bench.now_published
    both = bench.ca.hierarchy.roots_pem + another(bench).roots_pem
    bench.ca.forge = lambda chain: [*chain[:-1], both]
    bench.ca.generation = 2
    bench.run_for(14 * HOUR)
    (_, roots_only, _), (_, fresh, _) = bench.published[1:3]
    assert roots_only.svid is old.svid
    assert roots_only.bundle == fresh.bundle != old.bundle
    assert fresh.svid is not old.svid


def test_without_a_shared_bundle_a_plugged_in_ca_may_go_back(tmp_path: Path) -> None:
    """Generation 0: what comes last counts, as ever."""
    bench = RotatorBench(tmp_path)
    bench.steps(1)
    first = bench.now_published.bundle
    both = bench.ca.hierarchy.roots_pem + another(bench).roots_pem
    bench.ca.forge = lambda chain: [*chain[:-1], both]
    bench.run_for(14 * HOUR)
    assert bench.now_published.bundle != first
    bench.ca.forge = list
    bench.run_for(14 * HOUR)
    assert bench.now_published.bundle == first


# --- renewal on request -------------------------------------------------------------------------------


def issued(bench: RotatorBench) -> int:
    return len(bench.ca.csrs)


def test_a_certificate_of_an_earlier_epoch_is_renewed_within_the_time(bench: RotatorBench) -> None:
    bench.ca.epoch = 1
    bench.steps(1)
    bench.ca.epoch = 2
    for _ in range(10):
        bench.rotator.renew_within(2, 600.0)
        bench.run_for(60)
    assert issued(bench) == 2
    assert bench.rotator.status().epoch == 2
    for _ in range(10):
        bench.rotator.renew_within(2, 600.0)
        bench.run_for(60)
    assert issued(bench) == 2, "once for each taint"


@pytest.mark.parametrize("epoch", [0, 1])
def test_a_certificate_of_that_epoch_is_left_alone(bench: RotatorBench, epoch: int) -> None:
    bench.ca.epoch = 1
    bench.steps(1)
    bench.rotator.renew_within(epoch, 1.0)
    bench.run_for(120)
    assert issued(bench) == 1


def test_a_replica_that_still_signs_with_the_former_root_is_asked_again(bench: RotatorBench) -> None:
    bench.ca.epoch = 1
    bench.steps(1)
    for _ in range(4):
        bench.rotator.renew_within(2, 60.0)
        bench.run_for(61)
    assert issued(bench) >= 4
    bench.ca.epoch = 2
    bench.rotator.renew_within(2, 60.0)
    bench.run_for(61)
    assert bench.rotator.status().epoch == 2


def test_who_has_no_certificate_needs_no_request(bench: RotatorBench) -> None:
    bench.rotator.renew_within(5, 1.0)
    assert bench.now_published == IdentitySnapshot()
