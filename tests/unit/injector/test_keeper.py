"""The keeper: renews half-way, swaps atomically, and never before the API server trusts the new leaf."""

from __future__ import annotations

import datetime as dt
import random
import stat
from collections.abc import Sequence
from pathlib import Path

import pytest

from injector.ca_bundle import Entry
from injector.csr_client import CertificateCode, CertificateError, Issued
from injector.keeper import LOOK_SECONDS, Keeper, write_pair
from injector.serving import ServingError, read_pair
from mesh.errors import Category
from mesh.kube.api import KubeCode, KubeError
from tests.fakes.clock import EPOCH
from tests.fakes.injector_pki import DAY, NAMES, Root

HOUR = dt.timedelta(hours=1)


class World:
    """What the keeper meets, with the attempts it made."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.issuer = Root(EPOCH)
        self.trusted = [self.issuer]
        self.published: Sequence[Root] = (self.issuer,)
        self.failure: CertificateError | None = None
        self.api_down = False
        self.issued = 0
        self.results: list[str] = []
        self.keeper = self.new_keeper()

    def new_keeper(self) -> Keeper:
        return Keeper(
            self.directory,
            names=NAMES,
            issue=self.issue,
            roots=lambda: "".join(r.pem for r in self.trusted),
            entries=self.entries,
            renewed=lambda result, _: self.results.append(result),
            rng=random.Random(1),
        )

    def issue(self, now: dt.datetime) -> Issued:
        self.issued += 1
        if self.failure is not None:
            raise self.failure
        return self.issuer.issue(start=now)

    def entries(self) -> Sequence[Entry]:
        if self.api_down:
            raise KubeError(KubeCode.UNREACHABLE, "no answer", category=Category.UNAVAILABLE)
        return [Entry("/x", 0, "entry", "".join(r.pem for r in self.published), "")]

    def serial(self) -> str:
        return read_pair(self.directory).leaf.serial


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "serving")


def test_the_first_pair_is_written_at_once_and_private(world: World) -> None:
    assert world.keeper.step(EPOCH) == LOOK_SECONDS
    pair = read_pair(world.directory)
    assert pair.not_after == EPOCH + DAY
    for name in ("tls.key", "tls.crt"):
        assert stat.S_IMODE((world.directory / name).stat().st_mode) == 0o600
    assert world.results == ["written"]


def test_nothing_is_asked_before_half_of_the_life(world: World) -> None:
    world.keeper.step(EPOCH)
    for hours in range(1, 10):
        world.keeper.step(EPOCH + hours * HOUR)
    assert world.issued == 1
    before = world.serial()
    world.keeper.step(EPOCH + 14 * HOUR)
    assert world.serial() != before


def test_a_restarted_keeper_goes_on_with_what_is_there(world: World) -> None:
    world.keeper.step(EPOCH)
    world.keeper = world.new_keeper()
    world.keeper.step(EPOCH + HOUR)
    assert world.issued == 1


def test_it_renews_for_ever(world: World) -> None:
    now = EPOCH
    for _ in range(60):
        world.keeper.step(now)
        assert read_pair(world.directory).not_after > now
        now += 9 * HOUR
    assert world.issued > 20


def test_d5_a_new_leaf_waits_until_the_published_bundle_verifies_it(world: World) -> None:
    """Patch before switching the leaf, seen from the leaf's side."""
    world.keeper.step(EPOCH)
    before = world.serial()
    old, new = world.issuer, Root(EPOCH, name="new")
    world.issuer, world.trusted = new, [new]
    wait = world.keeper.step(EPOCH + HOUR)
    assert world.serial() == before
    assert wait < LOOK_SECONDS
    assert "caBundle of entry" in world.keeper.problem
    world.keeper.step(EPOCH + HOUR)
    assert world.issued == 2, "the waiting pair is kept, not asked for again"
    world.published = (new, old)
    world.keeper.step(EPOCH + HOUR)
    assert world.serial() != before
    assert world.results == ["written", "waiting", "waiting", "written"]


def test_d5_an_api_server_that_is_away_changes_nothing(world: World) -> None:
    world.keeper.step(EPOCH)
    before, world.api_down = world.serial(), True
    world.keeper.step(EPOCH + 14 * HOUR)
    assert world.serial() == before
    assert "cannot be read" in world.keeper.problem


def test_a_leaf_at_its_end_is_replaced_whatever_is_published(world: World) -> None:
    world.keeper.step(EPOCH)
    before, world.api_down = world.serial(), True
    world.keeper.step(EPOCH + DAY - dt.timedelta(seconds=30))
    assert world.serial() != before


def test_a_bundle_that_never_worked_holds_nothing_up(world: World) -> None:
    """A configuration that trusts neither leaf is upkeep's to repair: the leaf may change meanwhile."""
    world.keeper.step(EPOCH)
    before, world.published = world.serial(), ()
    world.keeper.step(EPOCH + 14 * HOUR)
    assert world.serial() != before


def test_a_waiting_pair_that_was_overtaken_is_asked_for_again(world: World) -> None:
    world.keeper.step(EPOCH)
    world.issuer = Root(EPOCH, name="second")
    world.trusted = [world.issuer]
    world.keeper.step(EPOCH + HOUR)
    world.issuer = Root(EPOCH, name="third")
    world.trusted, world.published = [world.issuer], (world.issuer,)
    world.keeper.step(EPOCH + HOUR)
    assert world.issued == 3


def test_failures_back_off_and_keep_the_old_pair(world: World) -> None:
    world.keeper.step(EPOCH)
    before = world.serial()
    world.failure = CertificateError(
        CertificateCode.UNREACHABLE, "authority: UNAVAILABLE", category=Category.UNAVAILABLE
    )
    waits = [world.keeper.step(EPOCH + 14 * HOUR) for _ in range(12)]
    assert world.serial() == before
    assert waits[0] < 3
    assert 150 <= waits[-1] <= 300
    assert world.keeper.problem == "authority: UNAVAILABLE"
    world.failure = None
    world.keeper.step(EPOCH + 15 * HOUR)
    assert world.keeper.problem == ""


def test_without_any_pair_it_stays_quick(world: World) -> None:
    world.failure = CertificateError(CertificateCode.REFUSED, "no", category=Category.PERMISSION_DENIED)
    assert max(world.keeper.step(EPOCH) for _ in range(12)) <= 10


def test_names_that_changed_mean_a_new_pair(world: World) -> None:
    issued = world.issuer.issue(("other.istio-system.svc",))
    write_pair(world.directory, issued.key_pem, issued.chain_pem)
    world.keeper.step(EPOCH + HOUR)
    assert world.issued == 1


def test_a_directory_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    world = World(tmp_path / "file" / "serving")
    world.keeper.step(EPOCH)
    assert "Not a directory" in world.keeper.problem


def test_readers_never_see_a_mixed_pair(tmp_path: Path) -> None:
    """The swap is one rename; old directories do not pile up."""
    root = Root(EPOCH)
    for _ in range(20):
        issued = root.issue()
        write_pair(tmp_path, issued.key_pem, issued.chain_pem)
        pair = read_pair(tmp_path)
        assert (pair.key_pem, pair.chain_pem) == (issued.key_pem, issued.chain_pem)
    assert len([p for p in tmp_path.iterdir() if p.name.startswith("..")]) == 2


def test_plain_files_are_taken_over(tmp_path: Path) -> None:
    for name in ("tls.key", "tls.crt"):
        (tmp_path / name).write_text("old")
    with pytest.raises(ServingError):
        read_pair(tmp_path)
    issued = Root(EPOCH).issue()
    write_pair(tmp_path, issued.key_pem, issued.chain_pem)
    assert (tmp_path / "tls.crt").read_bytes() == issued.chain_pem
