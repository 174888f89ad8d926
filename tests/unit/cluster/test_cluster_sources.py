"""Where the source of Kubernetes comes from, on each kind of Debian."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster import packages
from tests.cluster.apt_sources import binaries_of, lists, source_entries

IMAGE = """# made for the image
Types: deb
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://other.example/node
Suites: nodistro
Components: main
"""
INSTALLER = """deb cdrom:[Debian]/ sid main
deb [arch=amd64] http://mirror.example/debian bookworm main non-free-firmware
#deb http://mirror.example/debian bookworm-backports main
deb http://mirror.example/debian-security bookworm-security main
deb-src http://mirror.example/debian bookworm main
deb https://other.example/linux bookworm stable
deb https://other.example/apt cloud-bookworm main
"""


def test_stanzas_of_an_image(tmp_path: Path) -> None:
    file = tmp_path / "debian.sources"
    file.write_text(IMAGE)
    lines, stanzas = source_entries("bookworm", [file])
    assert lines == ""
    assert stanzas.count("Types: deb-src\n") == 1
    assert "Suites: bookworm bookworm-updates\n" in stanzas
    assert "other.example" not in stanzas


def test_lines_of_an_installer(tmp_path: Path) -> None:
    file = tmp_path / "sources.list"
    file.write_text(INSTALLER)
    lines, stanzas = source_entries("bookworm", [file])
    assert lines.splitlines() == [
        "deb-src [arch=amd64] http://mirror.example/debian bookworm main non-free-firmware",
        "deb-src http://mirror.example/debian-security bookworm-security main",
    ]
    assert stanzas == ""


def test_both_places_are_read(tmp_path: Path) -> None:
    (tmp_path / "sources.list.d").mkdir()
    for name in ("debian.sources", "old.list", "x.save"):
        (tmp_path / "sources.list.d" / name).write_text("")
    (tmp_path / "sources.list").write_text("")
    assert [file.name for file in lists(tmp_path)] == ["sources.list", "debian.sources", "old.list"]


@pytest.mark.parametrize(
    ("system", "codename", "here"),
    [("debian", "bookworm", True), ("debian", "trixie", False), ("ubuntu", "noble", False), ("", "", False)],
)
def test_only_debian_12_can_build_it(
    system: str, codename: str, here: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "release", lambda: {"ID": system, "VERSION_CODENAME": codename})
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert (packages.why_not_here() == "") is here


def test_names_of_a_system(tmp_path: Path) -> None:
    file = tmp_path / "os-release"
    file.write_text('# x\nID=debian\nVERSION_CODENAME="bookworm"\n')
    assert packages.release(file) == {"ID": "debian", "VERSION_CODENAME": "bookworm"}
    assert packages.release(tmp_path / "none") == {}


def test_another_release_is_asked_of_the_archive_that_has_this_one(tmp_path: Path) -> None:
    stanzas, lines = tmp_path / "debian.sources", tmp_path / "sources.list"
    stanzas.write_text(
        IMAGE + "\nTypes: deb\nURIs: http://sec.example\nSuites: bookworm-security\nComponents: main\n"
    )
    lines.write_text(INSTALLER)
    found_lines, found_stanzas = binaries_of("sid", "bookworm", [stanzas, lines])
    assert found_lines.splitlines() == ["deb [arch=amd64] http://mirror.example/debian sid main"]
    assert found_stanzas.splitlines()[:3] == [
        "Types: deb",
        "URIs: http://mirror.example/debian",
        "Suites: sid",
    ]
    assert "sec.example" not in found_stanzas
    assert binaries_of("sid", "trixie", [stanzas, lines]) == ("", "")
