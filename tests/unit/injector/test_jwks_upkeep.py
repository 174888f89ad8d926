"""Key sets in one ConfigMap: last good kept, back-off, one flight per host, bounded."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator

import pytest

from injector.jwks_fetch import FetchCode, FetchError
from injector.jwks_upkeep import DATA_KEY, MAX_ADDRESSES, JwksUpkeep, JwksUpkeepCode, JwksUpkeepError
from injector.published import PublishedText
from mesh.kube.api import KubeError
from mesh.policy.jwks import parse_key_set
from tests.fakes.injector_issuer import key_set
from tests.fakes.kube_api import FakeKube

A, B = "https://a.example/jwks", "https://b.example/jwks"


@pytest.fixture
def kube() -> Iterator[FakeKube]:
    with FakeKube() as kube:
        kube.add({"kind": "Namespace", "metadata": {"name": "istio-system"}})
        yield kube


class World:
    def __init__(self, kube: FakeKube) -> None:
        self.kube = kube
        self.sets: dict[str, str] = {}
        self.wanted: list[str] | None = []
        self.asked: list[str] = []
        self.told: list[str] = []
        self.now = 0.0
        self.upkeep = self.leader()

    def leader(self) -> JwksUpkeep:
        return JwksUpkeep(
            PublishedText(self.kube.api(), namespace="istio-system", name="gatehouse-jwks", key=DATA_KEY),
            fetch=self.fetch,
            addresses=lambda: self.wanted,
            interval=300.0,
            told=self.told.append,
            monotonic=lambda: self.now,
            rng=random.Random(1),
        )

    def fetch(self, url: str) -> str:
        self.asked.append(url)
        if url not in self.sets:
            raise FetchError(FetchCode.STATUS, "HTTP status 500")
        return self.sets[url]

    def published(self) -> dict[str, str] | None:
        found = self.kube.find("ConfigMap", "gatehouse-jwks", "istio-system")
        return None if found is None else json.loads(found["data"][DATA_KEY])


@pytest.fixture
def world(kube: FakeKube) -> World:
    return World(kube)


def canonical() -> str:
    return parse_key_set(key_set()).json


def test_key_sets_are_published_by_address(world: World) -> None:
    world.sets, world.wanted = {A: canonical(), B: canonical()}, [A, B, A]
    world.upkeep.step()
    assert world.published() == world.sets
    assert sorted(world.asked) == [A, B]
    assert (world.upkeep.published, world.upkeep.stale) == (2, 0)


def test_nothing_is_written_without_need(world: World) -> None:
    world.sets, world.wanted = {A: canonical()}, [A]
    for _ in range(5):
        world.upkeep.step()
        world.now += 300
    assert len(world.asked) == 5
    assert len(world.kube.asked("PATCH")) + len(world.kube.asked("POST")) == 2, (
        "one PATCH that finds nothing, one POST"
    )


def test_what_somebody_emptied_is_filled_again(world: World) -> None:
    """`helm upgrade --force` replaces the ConfigMap by the chart's, which holds nothing."""
    world.sets, world.wanted = {A: canonical()}, [A]
    world.upkeep.step()
    world.kube.add({"kind": "ConfigMap", "metadata": {"name": "gatehouse-jwks", "namespace": "istio-system"}})
    world.upkeep.step()
    assert world.published() == world.sets
    assert len(world.asked) == 1, "what was fetched is known still"


def test_a_failed_fetch_keeps_the_last_good_set(world: World) -> None:
    """policy.md e, must-have 2."""
    world.sets, world.wanted = {A: canonical()}, [A]
    world.upkeep.step()
    good, world.sets = world.published(), {}
    for _ in range(10):
        world.now += 400
        world.upkeep.step()
    assert world.published() == good
    assert world.upkeep.stale == 1
    assert set(world.told[1:]) == {"jwks_status"}


def test_rotated_keys_replace_the_old_ones(world: World) -> None:
    world.sets, world.wanted = {A: canonical()}, [A]
    world.upkeep.step()
    world.sets, world.now = {A: canonical()}, 301
    world.upkeep.step()
    assert world.published() == world.sets


def test_failures_back_off_and_recover_soon(world: World) -> None:
    world.wanted = [A]
    for _ in range(600):
        world.upkeep.step()
        world.now += 1
    assert 5 <= len(world.asked) <= 14
    world.sets = {A: canonical()}
    world.now += 300
    world.upkeep.step()
    assert world.published() == world.sets


def test_a_new_leader_starts_from_what_is_published(world: World) -> None:
    world.sets, world.wanted = {A: canonical()}, [A]
    world.upkeep.step()
    good, world.sets = world.published(), {}
    world.leader().step()
    assert world.published() == good


def test_before_the_addresses_are_known_nothing_is_thrown_away(world: World) -> None:
    world.sets, world.wanted = {A: canonical()}, [A]
    world.upkeep.step()
    world.wanted = None
    world.leader().step()
    assert world.published() == world.sets


def test_addresses_that_nobody_names_leave(world: World) -> None:
    world.sets, world.wanted = {A: canonical(), B: canonical()}, [A, B]
    world.upkeep.step()
    world.wanted = [B]
    world.upkeep.step()
    assert list(world.published() or {}) == [B]


def test_what_others_wrote_into_the_map_is_not_believed(world: World) -> None:
    world.kube.add(
        {
            "kind": "ConfigMap",
            "metadata": {"name": "gatehouse-jwks", "namespace": "istio-system"},
            "data": {DATA_KEY: json.dumps({A: "rubbish", B: 7})},
        }
    )
    world.wanted = [A, B]
    world.upkeep.step()
    assert world.published() == {A: "rubbish", "https://b.example/jwks": 7}, "nothing known, nothing written"
    world.sets = {A: canonical()}
    world.now += 300
    world.upkeep.step()
    assert world.published() == world.sets


def test_a_process_that_no_longer_leads_writes_nothing(world: World) -> None:
    world.sets, world.wanted = {A: canonical()}, [A]
    world.upkeep.step(lambda: False)
    assert world.published() is None


def test_an_api_server_that_fails_is_told_and_tried_again(world: World) -> None:
    world.sets, world.wanted = {A: canonical()}, [A]
    world.kube.fail(500, times=1, path=".*configmaps.*")
    with pytest.raises(KubeError):
        world.upkeep.step()
    world.upkeep.step()
    assert world.published() == world.sets


def test_too_many_addresses_are_cut(world: World) -> None:
    world.wanted = [f"https://h{n}.example/" for n in range(MAX_ADDRESSES + 20)]
    world.upkeep.step()
    assert len(world.asked) == MAX_ADDRESSES


def test_more_than_a_config_map_holds_is_refused(world: World) -> None:
    keys = [json.loads(key_set(f"k{n}" + "x" * 900))["keys"][0] for n in range(90)]
    large = parse_key_set(json.dumps({"keys": keys})).json
    world.wanted = [f"https://h{n}.example/" for n in range(12)]
    world.sets = dict.fromkeys(world.wanted, large)
    with pytest.raises(JwksUpkeepError, match="a ConfigMap takes") as caught:
        world.upkeep.step()
    assert caught.value.code is JwksUpkeepCode.TOO_LARGE
    assert world.published() is None


def test_one_flight_per_host(kube: FakeKube) -> None:
    """policy.md e, must-have 3."""
    lock, most = threading.Lock(), [0, 0]

    def fetch(url: str) -> str:
        with lock:
            most[0] += 1
            most[1] = max(most)
        with lock:
            most[0] -= 1
        return canonical()

    upkeep = JwksUpkeep(
        PublishedText(kube.api(), namespace="istio-system", name="j", key=DATA_KEY),
        fetch=fetch,
        addresses=lambda: [f"https://a.example/{n}" for n in range(30)],
        interval=300,
    )
    upkeep.step()
    assert most[1] == 1
