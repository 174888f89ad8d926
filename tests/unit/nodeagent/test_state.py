"""What a restarted agent knows: files of this boot, tokens on tmpfs only (G-07, G-08, G-10)."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from nodeagent.core.volume import Volume
from nodeagent.state import StateCode, StateError, VolumeState, in_memory, read_boot_id
from nodeagent.tokens import MemoryToken, TokenCode, TokenError, token_stamp
from nodeagent.volumes import Volumes

WEB = Volume(
    volume_id="csi-web",
    target="/nowhere",
    name="gatehouse",
    pod_uid="u1",
    namespace="demo",
    pod="web",
    service_account="web",
)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "a" / "state"


def state(place: Path, *, memory: bool = True, boot: str = "boot-1") -> VolumeState:
    return VolumeState(place, boot_id=boot, is_memory=lambda _: memory)


def loaded(place: Path, **options: object) -> list[tuple[Volume, str]]:
    return state(place, **options).load()  # type: ignore[arg-type]  # passed on as they are


def saved(place: Path, *, memory: bool = True) -> VolumeState:
    found = state(place, memory=memory)
    found.load()
    found.save(WEB, "secret-token")
    return found


def test_g08_volumes_and_tokens_come_back(place: Path) -> None:
    saved(place)
    assert loaded(place) == [(WEB, "secret-token")]


def test_only_the_agent_can_read_it(place: Path) -> None:
    saved(place)
    (file,) = place.iterdir()
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_tokens_never_touch_a_disk(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    saved(place, memory=False)
    (file,) = place.iterdir()
    assert b"secret-token" not in file.read_bytes()
    assert loaded(place, memory=False) == [(WEB, "")]
    assert "not on tmpfs" in caplog.text


def test_what_is_memory() -> None:
    assert in_memory(Path("/dev/shm"))
    assert not in_memory(Path("/proc"))
    assert not in_memory(Path("/nonexistent"))


def test_the_boot_id_is_the_kernels() -> None:
    assert len(read_boot_id()) == 36


def test_g10_files_of_an_earlier_boot_are_removed(place: Path) -> None:
    saved(place)
    assert loaded(place, boot="boot-2") == []
    assert list(place.iterdir()) == []


def test_a_volume_is_forgotten(place: Path) -> None:
    found = saved(place)
    found.remove("csi-web")
    found.remove("csi-web")
    assert loaded(place) == []


def body(**changes: object) -> bytes:
    fields = {name: getattr(WEB, name) for name in Volume.__dataclass_fields__}
    return orjson.dumps({"boot": "boot-1", "volume": {**fields, **changes}, "token": "t"})


BROKEN = [
    ("cut", b'{"boot": "boot-1", "vol'),
    ("empty", b""),
    ("list", b"[]"),
    ("no-volume", orjson.dumps({"boot": "boot-1", "token": ""})),
    ("token-number", orjson.dumps({"boot": "boot-1", "volume": {}, "token": 1})),
    ("field-more", body(extra="x")),
    ("field-empty", body(pod="")),
    ("field-number", body(pod=1)),
    ("under-another-name", body(volume_id="csi-other")),
]


@pytest.mark.parametrize("content", [pytest.param(row[1], id=row[0]) for row in BROKEN])
def test_broken_files_are_removed(place: Path, content: bytes) -> None:
    saved(place)
    (file,) = place.iterdir()
    file.write_bytes(content)
    assert loaded(place) == []
    assert not file.exists()


def test_links_and_left_overs_are_removed_and_not_followed(place: Path, tmp_path: Path) -> None:
    saved(place)
    victim = tmp_path / "victim"
    victim.write_bytes(body())
    (place / ".temporary").write_bytes(b"half")
    (place / "link.json").symlink_to(victim)
    assert loaded(place) == [(WEB, "secret-token")]
    assert victim.exists()
    assert len(list(place.iterdir())) == 1


def test_a_directory_of_others_is_refused(place: Path) -> None:
    place.mkdir(parents=True)
    place.chmod(0o777)
    with pytest.raises(StateError) as caught:
        loaded(place)
    assert caught.value.code is StateCode.DIRECTORY
    assert "kubernetes.state_dir" in caught.value.public


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError) as caught:
        loaded(tmp_path / "file" / "state")
    assert caught.value.code is StateCode.DIRECTORY


def test_g07_a_full_disk_is_said_and_leaves_nothing(place: Path) -> None:
    found = saved(place)
    for file in place.iterdir():
        file.unlink()
    place.rmdir()
    with pytest.raises(StateError) as caught:
        found.save(WEB, "x")
    assert caught.value.code is StateCode.FULL


# --- tokens -----------------------------------------------------------------------------------------


def test_a_token_in_memory() -> None:
    token = MemoryToken("demo/web")
    assert token_stamp(token) is None
    with pytest.raises(TokenError) as caught:
        token.read()
    assert caught.value.code is TokenCode.MISSING
    assert "demo/web: no token yet" in caught.value.public
    assert token.replace("one")
    assert not token.replace("one")
    first = token_stamp(token)
    assert token.replace("two")
    assert token.read() == "two"
    assert token_stamp(token) != first
    assert "two" not in repr(token)


def test_the_stamp_of_a_token_file(tmp_path: Path) -> None:
    file = tmp_path / "token"
    assert token_stamp(file) is None
    file.write_text("one")
    first = token_stamp(file)
    file.write_text("other")
    assert token_stamp(file) != first


# --- the registry -----------------------------------------------------------------------------------


def volumes(place: Path, told: list[int] | None = None) -> Volumes:
    changes = told if told is not None else []
    return Volumes(state(place), lambda: changes.append(1))


def test_volumes_whose_directory_is_gone_are_forgotten(place: Path, tmp_path: Path) -> None:
    here = replace(WEB, volume_id="csi-here", target=str(tmp_path))
    first = volumes(place)
    first.restore()
    first.put(here, "token")
    first.put(WEB, "token")
    again = volumes(place)
    assert again.restore() == 1
    (held,) = again.items()
    assert (held.volume, held.token.read()) == (here, "token")
    assert len(loaded(place)) == 1


def test_a_fresh_token_is_kept_and_nobody_is_disturbed(place: Path, tmp_path: Path) -> None:
    told: list[int] = []
    found = volumes(place, told)
    found.restore()
    volume = replace(WEB, target=str(tmp_path))
    held = found.put(volume, "one")
    changes = len(told)
    assert found.put(volume, "two") is held
    assert (held.token.read(), len(told)) == ("two", changes)
    assert loaded(place) == [(volume, "two")]
    assert found.at(str(tmp_path)) is held
    assert found.drop("csi-web") is held
    assert found.drop("csi-web") is None
    assert len(told) == changes + 1
    assert len(found) == 0


def test_the_same_token_is_not_written_again(place: Path) -> None:
    found = volumes(place)
    found.restore()
    found.put(WEB, "one")
    (file,) = place.iterdir()
    before = file.stat().st_ino
    found.put(WEB, "one")
    assert file.stat().st_ino == before


def test_facts_that_change_make_another_volume(place: Path) -> None:
    found = volumes(place)
    found.restore()
    first = found.put(WEB, "one")
    other = found.put(replace(WEB, service_account="other"), "one")
    assert other is not first
    assert other.token is not first.token


def test_g07_serving_goes_on_when_the_state_cannot_be_written(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = volumes(place)
    found.restore()
    place.rmdir()
    held = found.put(WEB, "secret-token")
    assert held.token.read() == "secret-token"
    assert "state is not kept" in caplog.text
    assert "secret-token" not in caplog.text
