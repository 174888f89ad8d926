"""`meshctl images`: the right tool gets the right arguments, and a damaged archive goes nowhere."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from meshctl.images import MAX_IMAGES, TOOLS
from tests.fakes.meshctl_cli import Ran, ctl

CONTROL = "registry.example.com:5000/team/gatehouse/control:0.1.0"
PROXY = "registry.example.com:5000/team/gatehouse/proxy:0.1.0"
# Notes its arguments, fails when told to, and writes what it is told to write.
_FAKE = """#!/bin/sh
echo "$(basename "$0") $*" >>"$CALLS"
case " $* " in *" ${FAIL:-nothing} "*) echo "no space left"; exit 3 ;; esac
for word; do case $word in *.tar) [ "$1" = load ] || [ "$3" = import ] || echo archive >"$word" ;; esac; done
"""


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All tools, each a script that notes what it is called with."""
    directory = tmp_path / "bin"
    directory.mkdir()
    for name in TOOLS:
        (directory / name).write_text(_FAKE)
        (directory / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:/usr/bin:/bin")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    return directory


def calls(directory: Path) -> list[str]:
    file = directory / "calls"
    return file.read_text().splitlines() if file.exists() else []


def images(*words: str) -> Ran:
    return ctl("images", *words)


def listed(directory: Path, *names: str) -> str:
    file = directory / "images.txt"
    file.write_text("".join(f"{name}\n" for name in names))
    return f"--list={file}"


@pytest.mark.usefixtures("tools")
def test_images_are_pulled_and_saved_with_their_sum(tmp_path: Path) -> None:
    archive = tmp_path / "gatehouse.tar"
    ran = images("save", f"--archive={archive}", listed(tmp_path, CONTROL, PROXY, CONTROL))
    assert ran.code == 0, ran.err
    assert calls(tmp_path) == [
        f"docker pull {CONTROL}",
        f"docker pull {PROXY}",
        f"docker save --output {archive} {CONTROL} {PROXY}",
    ]
    assert ran.out.splitlines() == [str(archive), f"{archive}.sha256"]
    sums = Path(f"{archive}.sha256").read_text()
    assert sums == f"{hashlib.sha256(archive.read_bytes()).hexdigest()}  gatehouse.tar\n"


@pytest.mark.usefixtures("tools")
def test_the_archive_goes_into_a_registry_under_the_chart_s_names(tmp_path: Path) -> None:
    archive = tmp_path / "gatehouse.tar"
    images("save", f"--archive={archive}", CONTROL)
    (tmp_path / "calls").unlink()
    ran = images("load", f"--archive={archive}", CONTROL, "--to=r.local:5000/x", "--tool=podman")
    assert ran.code == 0, ran.err
    new = "r.local:5000/x/gatehouse/control:0.1.0"
    assert calls(tmp_path) == [
        f"podman load --input {archive}",
        f"podman tag {CONTROL} {new}",
        f"podman push {new}",
    ]
    assert ran.out.splitlines() == [new]
    assert "next: helm install ... --set image.registry=r.local:5000/x" in ran.err


@pytest.mark.usefixtures("tools")
def test_a_node_needs_no_registry(tmp_path: Path) -> None:
    """As the kubelet looks for images: in containerd's namespace k8s.io."""
    archive = tmp_path / "gatehouse.tar"
    assert images("save", f"--archive={archive}", PROXY, "--tool=ctr").code == 0
    ran = images("load", f"--archive={archive}", "--tool=ctr")
    assert ran.code == 0, ran.err
    base = "ctr --namespace=k8s.io images"
    assert calls(tmp_path) == [
        f"{base} pull {PROXY}",
        f"{base} export {archive} {PROXY}",
        f"{base} import {archive}",
    ]
    assert "image.pullPolicy=Never" in ran.err


@pytest.mark.usefixtures("tools")
@pytest.mark.parametrize("sums", ["gatehouse.tar.sha256", "SHA256SUMS"])
def test_a_damaged_archive_is_not_loaded(tmp_path: Path, sums: str) -> None:
    archive = tmp_path / "gatehouse.tar"
    archive.write_bytes(b"whole")
    (tmp_path / sums).write_text(f"{hashlib.sha256(b'whole').hexdigest()}  gatehouse.tar\n")
    assert images("load", f"--archive={archive}").code == 0
    archive.write_bytes(b"half")
    before = calls(tmp_path)
    ran = images("load", f"--archive={archive}")
    assert (ran.code, "[ctl_checksum]" in ran.err) == (1, True)
    assert calls(tmp_path) == before


@pytest.mark.usefixtures("tools")
def test_an_archive_without_a_sum_is_loaded_and_that_is_said(tmp_path: Path) -> None:
    archive = tmp_path / "gatehouse.tar"
    archive.write_bytes(b"x")
    (tmp_path / "SHA256SUMS").write_text(f"{'0' * 64}  another.tar\n")
    ran = images("load", f"--archive={archive}")
    assert (ran.code, "loaded unchecked" in ran.err) == (0, True)


@pytest.mark.usefixtures("tools")
@pytest.mark.parametrize("step", ["pull", "save"])
def test_a_tool_that_fails_leaves_no_half_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    monkeypatch.setenv("FAIL", step)
    archive = tmp_path / "gatehouse.tar"
    ran = images("save", f"--archive={archive}", CONTROL)
    assert (ran.code, "[ctl_tool]" in ran.err) == (1, True)
    assert "docker ended with 3" in ran.err
    assert "  no space left" in ran.err
    assert not archive.exists()


@pytest.mark.usefixtures("tools")
@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("save",), "ctl_argument"),
        (("save", "--", "--privileged"), "ctl_argument"),
        (("save", "Registry/x:1 && rm"), "ctl_argument"),
        (("save", *(f"r.local/x:{n}" for n in range(MAX_IMAGES + 1))), "ctl_argument"),
        (("save", "--list=/does/not/exist"), "ctl_file"),
        (("load", "--to=r.local"), "ctl_argument"),
        (("load", "--to=-x/y", CONTROL), "ctl_argument"),
        (("load",), "ctl_file"),
    ],
)
def test_what_cannot_be_meant_calls_nothing(tmp_path: Path, words: tuple[str, ...], code: str) -> None:
    action, *rest = words
    ran = images(action, f"--archive={tmp_path}/a.tar", *rest)
    assert (ran.code, f"[{code}]" in ran.err) == (2, True), ran.err
    assert calls(tmp_path) == []


@pytest.mark.usefixtures("tools")
def test_an_archive_is_not_written_over(tmp_path: Path) -> None:
    archive = tmp_path / "a.tar"
    archive.write_text("mine")
    assert images("save", f"--archive={archive}", CONTROL).code == 2
    assert archive.read_text() == "mine"


def test_without_a_tool_it_says_which_are_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    ran = images("save", f"--archive={tmp_path}/a.tar", CONTROL)
    assert (ran.code, "[ctl_tool]" in ran.err) == (2, True)
    assert "no docker, podman, nerdctl, ctr is on the PATH" in ran.err
