"""The directory on a real file system, with inotify and without."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from jwt.algorithms import ECAlgorithm

from mesh.policy.effective import Severity
from nodeagent import inotify
from nodeagent.core.fields import DocumentCode
from nodeagent.files import DirectoryState, FileSource
from tests.fakes.ca_factory import new_key
from tests.fakes.nodeagent_wait import nodeagent_until

KEY_SET = (
    "apiVersion: gatehouse.dev/v1alpha1\nkind: KeySet\nmetadata: {name: k}\n"
    "spec: {jwksUri: 'https://issuer/jwks', file: ../keys/k.json}\n"
)


def workload(name: str = "web", number: int = 80) -> str:
    return (
        "---\napiVersion: gatehouse.dev/v1alpha1\nkind: Workload\n"
        f"metadata: {{namespace: demo, name: {name}}}\n"
        "spec: {serviceAccount: sa, tokenFile: ../tokens/t, address: 127.0.10.1, "
        f'ports: [{{number: {number}, app: "127.0.0.1:1"}}]}}\n'
    )


def jwks(*, private: bool = False) -> str:
    key = new_key()
    jwk = json.loads(ECAlgorithm.to_jwk(key if private else key.public_key()))
    return json.dumps({"keys": [jwk]})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "keys").mkdir()
    found = tmp_path / "mesh"
    found.mkdir()
    return found


def names(state: DirectoryState) -> list[str]:
    return [spec.workload.name for spec in state.world.workloads]


def test_every_yaml_below_counts_and_nothing_hidden(root: Path) -> None:
    (root / "a.yaml").write_text(workload("a"))
    (root / "sub" / "deep").mkdir(parents=True)
    (root / "sub" / "deep" / "b.yml").write_text(workload("b", 81))
    (root / ".hidden.yaml").write_text(workload("c", 82))
    (root / ".git").mkdir()
    (root / ".git" / "d.yaml").write_text(workload("d", 83))
    (root / "notes.txt").write_text("]")
    state = FileSource(root).load()
    assert names(state) == ["a", "b"]
    assert state.findings == ()


def test_token_files_are_relative_to_their_document(root: Path) -> None:
    (root / "sub").mkdir()
    (root / "sub" / "a.yaml").write_text(workload())
    assert FileSource(root).load().token_files == {"demo/web": root / "tokens" / "t"}


def test_a_kubernetes_mount_is_a_farm_of_links(root: Path) -> None:
    for generation, number in (("..1", 80), ("..2", 81)):
        (root / generation).mkdir()
        (root / generation / "a.yaml").write_text(workload(number=number))
    (root / "..data").symlink_to("..1")
    (root / "a.yaml").symlink_to("..data/a.yaml")
    source = FileSource(root)
    assert source.load().world.workloads[0].workload.ports[0].number == 80
    (root / "..new").symlink_to("..2")
    (root / "..new").rename(root / "..data")
    assert source.changed()
    assert source.load().world.workloads[0].workload.ports[0].number == 81


def test_only_what_changed_is_read_again(root: Path) -> None:
    (root / "a.yaml").write_text(workload("a"))
    (root / "b.yaml").write_text(workload("b", 81))
    source = FileSource(root)
    first = source.load()
    assert not source.changed()
    (root / "b.yaml").write_text(workload("b", 82))
    assert source.changed()
    second = source.load()
    assert second.world.workloads[0] is first.world.workloads[0]
    assert second.world.workloads[1].workload.ports[0].number == 82


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda p: p.write_bytes(b"\xff\xfe"), "not UTF-8 text (byte 0)", id="binary"),
        pytest.param(lambda p: p.write_text("a: 1\n" * 300_000), "longer than", id="huge"),
        pytest.param(lambda p: p.mkdir(), "Is a directory", id="directory"),
    ],
)
def test_files_that_cannot_be_read(root: Path, make: Callable[[Path], object], message: str) -> None:
    make(root / "a.yaml")
    (finding,) = FileSource(root).load().findings
    assert message in finding.message


def test_a_root_that_is_not_there(tmp_path: Path) -> None:
    (finding,) = FileSource(tmp_path / "none").load().findings
    assert finding.code is DocumentCode.FILE
    assert "is not a directory" in finding.message


def test_a_broken_link_is_no_file(root: Path) -> None:
    (root / "a.yaml").symlink_to("nowhere")
    source = FileSource(root)
    assert source.load().findings == ()
    assert not source.changed()


# --- key sets ----------------------------------------------------------------------------------------


def test_key_sets_are_read_and_read_again(root: Path) -> None:
    (root / "k.yaml").write_text(KEY_SET)
    file = root.parent / "keys" / "k.json"
    file.write_text(jwks())
    source = FileSource(root)
    first = source.load().key_sets["https://issuer/jwks"]
    assert '"x"' in first
    file.write_text(jwks())
    assert source.changed()
    assert source.load().key_sets["https://issuer/jwks"] != first


def test_a_broken_key_set_keeps_the_last_good_keys(root: Path) -> None:
    (root / "k.yaml").write_text(KEY_SET)
    file = root.parent / "keys" / "k.json"
    file.write_text(jwks())
    source = FileSource(root)
    good = source.load().key_sets
    file.write_text("garbage")
    state = source.load()
    assert state.key_sets == good
    assert "stays in force" in state.findings[0].message
    file.unlink()
    state = source.load()
    assert state.key_sets == good
    assert "cannot be read" in state.findings[0].message


def test_a_key_set_that_was_never_good_is_an_error(root: Path) -> None:
    (root / "k.yaml").write_text(KEY_SET)
    state = FileSource(root).load()
    assert state.key_sets == {}
    (finding,) = state.findings
    assert (finding.severity, finding.field, finding.place) == (Severity.ERROR, "spec.file", "k.yaml")
    assert "tokens of this issuer are refused" in finding.message


def test_a_private_key_in_a_key_set_is_a_warning_and_goes_no_further(root: Path) -> None:
    (root / "k.yaml").write_text(KEY_SET)
    (root.parent / "keys" / "k.json").write_text(jwks(private=True))
    state = FileSource(root).load()
    assert '"d"' not in state.key_sets["https://issuer/jwks"]
    assert [f.severity for f in state.findings] == [Severity.WARNING]
    assert "holds a private key" in state.findings[0].message


def test_keys_that_cannot_be_used_are_named(root: Path) -> None:
    (root / "k.yaml").write_text(KEY_SET)
    keys = json.loads(jwks())["keys"] + [{"kty": "oct", "k": "c2VjcmV0"}]
    (root.parent / "keys" / "k.json").write_text(json.dumps({"keys": keys}))
    assert any("left out" in finding.message for finding in FileSource(root).load().findings)


# --- live -----------------------------------------------------------------------------------------------


@asynccontextmanager
async def watching(root: Path, **options):
    states: list[DirectoryState] = []
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(FileSource(root, **options).run(states.append))
        await nodeagent_until(lambda: states)
        yield states
        task.cancel()


both = pytest.mark.parametrize("events", [True, False], ids=["inotify", "poll"])


async def _saved(root: Path, events: bool, save: Callable[[Path], Awaitable[None] | None]) -> None:
    (root / "a.yaml").write_text(workload(number=80))
    async with watching(root, use_inotify=events) as states:
        result = save(root)
        if result is not None:
            await result
        await nodeagent_until(lambda: states[-1].world.workloads and _number(states[-1]) == 81)
        assert all(names(state) == ["web"] for state in states), "a half-written file was applied"


def _number(state: DirectoryState) -> int:
    return state.world.workloads[0].workload.ports[0].number


def in_place(root: Path) -> None:
    (root / "a.yaml").write_text(workload(number=81))


def by_rename(root: Path) -> None:
    (root / ".a.yaml.tmp").write_text(workload(number=81))
    (root / ".a.yaml.tmp").rename(root / "a.yaml")


def like_vim(root: Path) -> None:
    (root / "a.yaml").rename(root / "a.yaml~")
    (root / "a.yaml").write_text(workload(number=81))
    (root / "a.yaml~").unlink()


@both
@pytest.mark.asyncio
@pytest.mark.parametrize("save", [in_place, by_rename, like_vim])
async def test_a_change_is_picked_up_however_it_is_saved(root: Path, events: bool, save) -> None:
    await _saved(root, events, save)


@pytest.mark.asyncio
async def test_a_file_in_the_middle_of_being_written_is_not_applied(root: Path) -> None:
    async def slowly(where: Path) -> None:
        text = workload(number=81)
        with (where / "a.yaml").open("w") as stream:
            for part in (text[:20], text[20:]):
                stream.write(part)
                stream.flush()
                await asyncio.sleep(0.15)  # longer than the debounce: the writer is still at it

    await _saved(root, True, slowly)


@both
@pytest.mark.asyncio
async def test_new_directories_and_deletions_are_seen(root: Path, events: bool) -> None:
    (root / "a.yaml").write_text(workload("a"))
    async with watching(root, use_inotify=events) as states:
        (root / "sub").mkdir()
        (root / "sub" / "b.yaml").write_text(workload("b", 81))
        await nodeagent_until(lambda: names(states[-1]) == ["a", "b"])
        (root / "sub" / "c.yaml").write_text(workload("c", 82))
        await nodeagent_until(lambda: names(states[-1]) == ["a", "b", "c"])
        (root / "a.yaml").unlink()
        await nodeagent_until(lambda: names(states[-1]) == ["b", "c"])


@pytest.mark.asyncio
async def test_a_burst_is_applied_at_once(root: Path) -> None:
    async with watching(root) as states:
        before = len(states)
        for n in range(50):
            (root / f"{n}.yaml").write_text(workload(f"w{n}", 1000 + n))
        await nodeagent_until(lambda: len(states[-1].world.workloads) == 50)
        assert len(states) - before <= 2


@pytest.mark.asyncio
async def test_a_key_file_elsewhere_is_watched_too(root: Path) -> None:
    (root / "k.yaml").write_text(KEY_SET)
    async with watching(root) as states:
        assert states[-1].key_sets == {}
        (root.parent / "keys" / "k.json").write_text(jwks())
        await nodeagent_until(lambda: states[-1].key_sets)


def test_inotify_reports_names_and_ends(tmp_path: Path) -> None:
    watch = inotify.open_inotify()
    assert watch is not None
    assert watch.add(tmp_path)
    assert not watch.add(tmp_path / "none")
    assert watch.read() == []
    (tmp_path / "x").write_text("1")
    events = watch.read()
    assert {e.name for e in events} == {"x"}
    assert all(e.directory == tmp_path for e in events)
    assert any(e.mask & inotify.CLOSE_WRITE for e in events)
    tmp_path.rename(tmp_path.with_name(f"{tmp_path.name}-other"))
    assert any(e.mask & inotify.MOVE_SELF for e in watch.read())
    watch.close()
