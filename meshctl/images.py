"""`meshctl images`: the images of a release into an archive, and out of it, for clusters without internet.

The work is done by a tool of the machine; here it is found and called without a shell, and what it reads is
checked against its SHA-256. `make release` makes the same archive from a checkout (docs/images.md).
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from mesh.errors import Category
from meshctl.errors import CtlCode, CtlError, bad_argument
from meshctl.exits import EXIT_OK
from meshctl.terminal import Screen

TOOLS: Final = ("docker", "podman", "nerdctl", "ctr")
"""Looked for in this order; ctr works on the node that it runs on."""
MAX_IMAGES: Final = 64
MAX_LIST_BYTES: Final = 64 << 10
SUMS: Final = "SHA256SUMS"
_CTR: Final = ("ctr", "--namespace=k8s.io", "images")
"""The kubelet's images are in that namespace of containerd."""
# A registry and a path, a tag and a digest (distribution, reference): never an option.
_IMAGE = re.compile(r"[a-z0-9][a-zA-Z0-9._/:-]{0,400}(@sha256:[0-9a-f]{64})?")
_PREFIX = re.compile(r"[a-z0-9][a-z0-9.-]*(:[0-9]{1,5})?(/[a-z0-9][a-z0-9._-]*)*")
_SUM = re.compile(r"([0-9a-f]{64}) [ *](.+)")


def run_images(options: argparse.Namespace, screen: Screen) -> int:
    """Save images, or load them."""
    tool = _tool(options.tool)
    if options.action == "save":
        return _save(tool, _named(options), Path(options.archive), screen)
    return _load(tool, Path(options.archive), _named(options), options.to, screen)


def _tool(wanted: str) -> str:
    found = [name for name in ((wanted,) if wanted else TOOLS) if shutil.which(name)]
    if not found:
        raise CtlError(
            CtlCode.TOOL,
            f"no {wanted or ', '.join(TOOLS)} is on the PATH; next: install one of {', '.join(TOOLS)}, or"
            " copy the archive to a machine that has one",
            category=Category.FAILED_PRECONDITION,
        )
    return found[0]


def _named(options: argparse.Namespace) -> list[str]:
    """Names of the images: arguments, then lines of the file."""
    names = list(options.images)
    if options.list:
        names += _lines(Path(options.list))
    names = list(dict.fromkeys(names))
    if len(names) > MAX_IMAGES:
        raise bad_argument(f"{len(names)} images; allowed are {MAX_IMAGES}")
    for name in names:
        if not _IMAGE.fullmatch(name):
            raise bad_argument(
                f"{name[:80]!r} is no name of an image, e.g. registry.example.com/team/gatehouse/proxy:0.1.0"
            )
    return names


def _lines(path: Path) -> list[str]:
    try:
        with path.open(encoding="utf-8") as stream:
            text = stream.read(MAX_LIST_BYTES + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise CtlError(CtlCode.FILE, f"{path}: {error}; give the images.txt of a release") from error
    if len(text) > MAX_LIST_BYTES:
        raise CtlError(CtlCode.FILE, f"{path} is longer than {MAX_LIST_BYTES} bytes: it is no images.txt")
    return [line.strip() for line in text.splitlines() if line.strip()]


# --- save ----------------------------------------------------------------------------------------------


def _save(tool: str, names: Sequence[str], archive: Path, screen: Screen) -> int:
    if not names:
        raise bad_argument("give images, or -f images.txt; next: meshctl images save --help")
    if archive.exists():
        raise bad_argument(f"{archive} is there already; next: another --archive, or remove it")
    base = [tool] if tool != "ctr" else list(_CTR)
    for name in names:
        _run(screen, [*base, "pull", name])
    command = [tool, "save", "--output", str(archive)] if tool != "ctr" else [*_CTR, "export", str(archive)]
    try:
        _run(screen, [*command, *names])
    except CtlError:
        archive.unlink(missing_ok=True)  # a half of an archive is none
        raise
    digest = _digest(archive)
    archive.with_name(f"{archive.name}.sha256").write_text(f"{digest}  {archive.name}\n", encoding="utf-8")
    screen.say(str(archive))
    screen.say(f"{archive}.sha256")
    screen.remark(f"next: copy both, then: meshctl images load --archive {archive.name} --to REGISTRY")
    return EXIT_OK


# --- load ----------------------------------------------------------------------------------------------


def _load(tool: str, archive: Path, names: Sequence[str], to: str, screen: Screen) -> int:
    if to and not _PREFIX.fullmatch(to):
        raise bad_argument(f"--to {to[:80]!r}: give a registry and a path, e.g. registry.example.com/team")
    if to and not names:
        raise bad_argument("--to needs the names of the images; next: add -f images.txt of the release")
    if not archive.is_file():
        raise CtlError(CtlCode.FILE, f"{archive} is not there; give the archive of `save` or of a release")
    _verify(archive, screen)
    load = [tool, "load", "--input", str(archive)] if tool != "ctr" else [*_CTR, "import", str(archive)]
    _run(screen, load)
    if not to:
        screen.remark("next: helm install ... --set image.registry=THE_SAME --set image.pullPolicy=Never")
        return EXIT_OK
    base = [tool] if tool != "ctr" else list(_CTR)
    for name in names:
        new = f"{to}/{_path(name)}"
        _run(screen, [*base, "tag", name, new])
        _run(screen, [*base, "push", new])
        screen.say(new)
    screen.remark(f"next: helm install ... --set image.registry={to}")
    return EXIT_OK


def _path(name: str) -> str:
    """The last two parts of a name, without a digest: what the chart puts behind its registry."""
    return "/".join(name.partition("@")[0].split("/")[-2:])


def _verify(archive: Path, screen: Screen) -> None:
    """Against the sums beside it; without any it is said.

    Raises:
        CtlError: it is another file than the one that was written.
    """
    for sums in (archive.with_name(f"{archive.name}.sha256"), archive.with_name(SUMS)):
        if not sums.is_file():
            continue
        found = [m[1] for line in _lines(sums) if (m := _SUM.fullmatch(line)) and m[2] == archive.name]
        if not found:
            continue
        if _digest(archive) != found[0]:
            raise CtlError(
                CtlCode.CHECKSUM,
                f"{archive} is not what {sums.name} says: cut or changed on its way; next: copy it again",
                category=Category.INTERNAL,
            )
        return
    screen.remark(
        f"{archive.name}: there is no {archive.name}.sha256 and no {SUMS} beside it; it is loaded unchecked"
    )


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _run(screen: Screen, command: Sequence[str]) -> None:
    """Run a tool; its own output is progress, and goes to standard error.

    Raises:
        CtlError: it failed; its last words were shown.
    """
    screen.remark(f"$ {' '.join(command)}")
    done = subprocess.run(  # noqa: S603 - no shell; names are checked, and none begins like an option
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    for line in done.stdout.splitlines()[-20:]:
        screen.remark(f"  {line}")
    if done.returncode != 0:
        raise CtlError(
            CtlCode.TOOL,
            f"{command[0]} ended with {done.returncode}; next: see what it says above",
            category=Category.INTERNAL,
        )
