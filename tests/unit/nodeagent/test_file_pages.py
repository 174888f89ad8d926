"""Only what can be read again from its file is unmapped, and everything works afterwards."""

from __future__ import annotations

import json
import logging
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.file_pages import PAUSE, WORTH_IT, FilePages, clean_mappings

ROOT = Path(__file__).resolve().parents[3]


def mapping(
    *,
    start: int = 0x7F0000000000,
    size: int = 0x3000,
    rights: str = "r-xp",
    inode: int = 42,
    path: str = "/usr/lib/libx.so",
    rss: int = 8,
    anonymous: int = 0,
) -> list[str]:
    """One entry of /proc/PID/smaps."""
    return [
        f"{start:x}-{start + size:x} {rights} 00001000 fe:01 {inode}                   {path}\n",
        f"Size:           {size // 1024:8} kB\n",
        f"Rss:            {rss:8} kB\n",
        f"Private_Dirty:  {anonymous:8} kB\n",
        f"Anonymous:      {anonymous:8} kB\n",
        "VmFlags: rd ex mr mw me\n",
    ]


def test_text_and_constants_of_a_library_are_let_go() -> None:
    text, constants = mapping(), mapping(start=0x7F0000010000, rights="r--p", rss=4)
    assert list(clean_mappings([*text, *constants])) == [
        (0x7F0000000000, 0x3000, 8),
        (0x7F0000010000, 0x3000, 4),
    ]


@pytest.mark.parametrize(
    "kept",
    [
        pytest.param(mapping(rights="rw-p"), id="data"),
        pytest.param(mapping(rights="r--p", anonymous=4), id="relocated-and-protected"),
        pytest.param(mapping(rights="rw-s"), id="shared-memory-of-a-file"),
        pytest.param(mapping(inode=0, path=""), id="anonymous"),
        pytest.param(mapping(inode=0, path="[vdso]"), id="the-kernel-s"),
        pytest.param(mapping(path="/usr/lib/libx.so (deleted)"), id="replaced-on-disk"),
        pytest.param(mapping(rss=0), id="nothing-resident"),
    ],
)
def test_everything_else_stays(kept: list[str]) -> None:
    assert list(clean_mappings([*kept, *mapping(start=0x10000)])) == [(0x10000, 0x3000, 8)]


@given(
    st.lists(
        st.builds(
            mapping,
            rights=st.sampled_from(["r-xp", "r--p", "rw-p", "rwxp", "---p", "rw-s"]),
            inode=st.sampled_from([0, 7]),
            path=st.sampled_from(["", "/lib/a b.so", "[heap]", "/x (deleted)"]),
            anonymous=st.integers(0, 8),
        ),
        max_size=6,
    )
)
def test_nothing_that_was_written_is_ever_let_go(entries: list[list[str]]) -> None:
    lines = [line for entry in entries for line in entry]
    count = sum(
        "w" not in entry[0].split()[1] and " 7  " in entry[0] and "deleted" not in entry[0]
        and "/" in entry[0].split(" 7 ")[1] and entry[4].split()[1] == "0"
        for entry in entries
    )  # fmt: skip
    assert len(list(clean_mappings(lines))) == count


PROCESS = """
import json, time
import grpc, orjson, ssl
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from nodeagent.file_pages import FilePages
def resident():
    return int(open("/proc/self/statm").read().split()[2]) * 4096
key = ec.generate_private_key(ec.SECP256R1())
before, pages = resident(), FilePages()
given = pages.idle(time.monotonic())
after = resident()
signature = key.sign(b"x", ec.ECDSA(hashes.SHA256()))
key.public_key().verify(signature, b"x", ec.ECDSA(hashes.SHA256()))
channel = grpc.insecure_channel("unix:/nowhere")
channel.close()
again = pages.idle(time.monotonic())
print(json.dumps({"before": before, "after": after, "given": given, "again": again}))
"""


def test_a_process_works_on_without_its_pages_and_does_not_do_it_again_at_once() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROCESS], capture_output=True, text=True, timeout=60, check=True, cwd=ROOT
    )
    found = json.loads(done.stdout)
    assert found["given"] > 10 * 1024
    assert found["after"] < found["before"] / 2
    assert found["again"] == 0


def test_where_the_system_does_not_tell_nothing_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nodeagent.file_pages._PROCESS", tmp_path)
    pages = FilePages()
    assert (pages.idle(0.0), pages.idle(1e9)) == (0, 0)


class Proc:
    """A directory that says of a process what a test wants; its one mapping lies where nothing is mapped."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        (directory / "smaps").write_text("".join(mapping(start=0x1000, size=0x1000)))

    def shared(self, kib: int) -> None:
        pages = kib * 1024 // resource.getpagesize()
        (self._directory / "statm").write_text(f"9999 9999 {pages} 1 0 1 0\n")

    def break_smaps(self) -> None:
        (self._directory / "smaps").unlink()


def test_it_is_done_again_after_a_pause_and_only_for_pages_that_came_since(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "nodeagent.file_pages")
    monkeypatch.setattr("nodeagent.file_pages._PROCESS", tmp_path)
    proc, pages = Proc(tmp_path), FilePages()
    proc.shared(WORTH_IT - 4)
    pages.idle(0.0)
    assert caplog.messages == [], "too little"
    proc.shared(3 * WORTH_IT)
    assert pages.idle(1.0) == 0, "a mapping that the kernel refuses does not count"
    assert caplog.messages == ["pages of files are no longer mapped"]
    pages.idle(1.0 + 2 * PAUSE)
    proc.shared(4 * WORTH_IT - 4)
    pages.idle(1.0 + 3 * PAUSE)
    assert len(caplog.messages) == 1, "what stayed the last time is not tried again"
    proc.shared(4 * WORTH_IT)
    pages.idle(1.0 + 4 * PAUSE)
    proc.shared(9 * WORTH_IT)
    pages.idle(1.0 + 4.5 * PAUSE)
    assert len(caplog.messages) == 2, "a burst of work keeps its pages"
    proc.break_smaps()
    pages.idle(1.0 + 6 * PAUSE)
    pages.idle(1.0 + 60 * PAUSE)
    assert caplog.messages[2:] == ["pages of files stay mapped"], "told once, not tried for ever"
