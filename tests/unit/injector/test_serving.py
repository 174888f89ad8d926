"""The serving pair: read as one, last good kept, looked at once a second."""

from __future__ import annotations

from pathlib import Path

import pytest

from injector.keeper import write_pair
from injector.serving import Serving, ServingCode, ServingError, read_pair, server_context
from tests.fakes.injector_pki import Root, plain_pair


class World:
    def __init__(self, directory: Path) -> None:
        self.directory, self.root, self.now = directory, Root(), 0.0
        self.loads: list[bool] = []
        self.serving = Serving(directory, loaded=self.loads.append, monotonic=lambda: self.now)

    def write(self) -> str:
        issued = self.root.issue()
        write_pair(self.directory, issued.key_pem, issued.chain_pem)
        return read_pair(self.directory).leaf.serial

    def served(self) -> str:
        assert self.serving.pair is not None
        return self.serving.pair.leaf.serial


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_without_a_pair_there_is_a_sentence(world: World) -> None:
    with pytest.raises(ServingError, match="is not there yet") as caught:
        world.serving.context()
    assert caught.value.code is ServingCode.MISSING


def test_a_new_pair_is_served_at_the_next_look(world: World) -> None:
    first = world.write()
    before = world.serving.context()
    second = world.write()
    assert world.serving.context() is before
    assert world.served() == first
    world.now += 1
    assert world.serving.context() is not before
    assert world.served() == second
    assert world.loads == [True, True]


def test_the_same_pair_again_is_no_news(world: World) -> None:
    issued = world.root.issue()
    for _ in range(3):
        write_pair(world.directory, issued.key_pem, issued.chain_pem)
        world.serving.refresh()
    assert world.loads == [True]


def test_plain_files_work_too(world: World) -> None:
    issued = world.root.issue()
    plain_pair(world.directory, issued)
    assert world.serving.refresh()


@pytest.mark.parametrize(
    ("certificate", "key", "code", "text"),
    [
        pytest.param(b"", None, ServingCode.UNREADABLE, "is empty", id="empty"),
        pytest.param(b"rubbish", None, ServingCode.UNREADABLE, "PEM", id="rubbish"),
        pytest.param(b"\xff", None, ServingCode.UNREADABLE, "PEM", id="binary"),
        pytest.param(b"x" * 300_000, None, ServingCode.UNREADABLE, "over", id="large"),
        pytest.param(None, b"rubbish", ServingCode.MISMATCH, "tls.key", id="no-key"),
        pytest.param(None, "other", ServingCode.MISMATCH, "tls.key", id="other-key"),
    ],
)
def test_a_bad_pair_is_refused_and_the_good_one_stays(
    world: World, certificate: bytes | None, key: bytes | str | None, code: ServingCode, text: str
) -> None:
    good = world.write()
    world.serving.refresh()
    issued = world.root.issue()
    key_pem = world.root.issue().key_pem if key == "other" else key or issued.key_pem
    assert isinstance(key_pem, bytes)
    write_pair(world.directory, key_pem, issued.chain_pem if certificate is None else certificate)
    for _ in range(3):
        world.serving.refresh()
    assert world.served() == good
    assert world.loads == [True, False], "told once"
    assert text in world.serving.problem
    with pytest.raises(ServingError) as caught:
        server_context(read_pair(world.directory))
    assert caught.value.code is code
    assert world.write() == read_pair(world.directory).leaf.serial
    assert world.serving.refresh(), "and the next good one is taken"


def test_files_that_vanish_change_nothing(world: World) -> None:
    good = world.write()
    world.serving.refresh()
    (world.directory / "tls.key").unlink()
    world.serving.refresh()
    assert world.served() == good


def test_an_unreadable_file_is_told(world: World) -> None:
    (world.directory / "tls.crt").mkdir()
    world.serving.refresh()
    assert "cannot be read" in world.serving.problem
