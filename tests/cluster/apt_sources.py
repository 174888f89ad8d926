"""The machine's own Debian archives as archives of sources; both forms of apt's lists (sources.list(5))."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

_APT = Path("/etc/apt")
_LINE = re.compile(r"deb\s+(\[[^\]]*\]\s+)?(\S+)\s+(\S+)\s+(.+)")


def lists(apt: Path = _APT) -> Iterator[Path]:
    """Every file that names archives: the one-line form of an installer, and the stanzas of newer images."""
    for file in [apt / "sources.list", *sorted((apt / "sources.list.d").glob("*"))]:
        if file.suffix in {".list", ".sources"} and file.is_file():
            yield file


def source_entries(codename: str, files: Iterable[Path]) -> tuple[str, str]:
    """Debian's `main` of a release as `deb-src`: lines of `.list` files, and stanzas of `.sources` files.

    Archives of others are left out: they need not have any source.
    """
    lines, stanzas = [], []
    for file in files:
        text = re.sub(r"(?m)^\s*#.*$\n?", "", file.read_text(encoding="utf-8"))
        if file.suffix == ".list":
            for line in map(str.strip, text.splitlines()):
                found = _LINE.fullmatch(line)
                if found and _is_debian(codename, found[3].split(), found[4].split()):
                    lines.append(re.sub(r"^deb\b", "deb-src", line))
            continue
        for stanza in re.split(r"\n\s*\n", text.strip()):
            fields = dict(re.findall(r"(?m)^([A-Za-z-]+):\s*(.*)$", stanza))
            if _is_debian(codename, fields.get("Suites", "").split(), fields.get("Components", "").split()):
                stanzas.append(re.sub(r"(?m)^Types:.*$", "Types: deb-src", stanza))
    return "".join(f"{line}\n" for line in lines), "\n\n".join(stanzas) + "\n" * bool(stanzas)


def _is_debian(codename: str, suites: list[str], components: list[str]) -> bool:
    ours = {codename, f"{codename}-updates", f"{codename}-security"}
    return bool(suites) and set(suites) <= ours and "main" in components


def binaries_of(release: str, codename: str, files: Iterable[Path]) -> tuple[str, str]:
    """The machine's archive of Debian `codename` as one of another release's binaries, in both forms."""
    lines, stanzas = source_entries(codename, files)
    # Updates and security may have entries of their own; their archives need not have the other release.
    lines = re.sub(rf"(?m)^.* {codename}-\S+ .*\n", "", lines)
    lines = re.sub(rf"(?m)^deb-src\b(.*) {codename} .*$", rf"deb\1 {release} main", lines)
    kept = [
        re.sub(r"(?m)^Types:.*$", "Types: deb", re.sub(r"(?m)^Suites:.*$", f"Suites: {release}", stanza))
        for stanza in stanzas.strip().split("\n\n")
        if re.search(rf"(?m)^Suites:(.*\s)?{codename}(\s|$)", stanza)
    ]
    return lines, "\n\n".join(kept) + "\n" * bool(kept)
