"""What a Kubernetes API server says of definitions and objects: its own code, compiled once into the cache.

Debian's development archive has that code as Go packages (`golang-k8s-apiextensions-apiserver-dev`), and a
Go that is new enough. They are unpacked into a directory of their own, and nothing is installed. There are no
storage, no admission and no network in it: this is what the server does between the two.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cluster import apt_sources, packages
from tests.cluster.layout import Layout
from tests.cluster.run import ClusterError, run

SOURCE = Path(__file__).with_suffix(".go")
NOT_HERE = "needs Debian's development archive"
"""Begins the reason why the code cannot be had."""
_RELEASE = "sid"
_WANTED = ("golang-k8s-apiextensions-apiserver-dev", "golang-go")


class NotHereError(Exception):
    """The code cannot be had on this machine; the text begins with NOT_HERE."""


@dataclass(frozen=True, slots=True)
class Question:
    """An object to be created; with `old`, an update, of the status alone if so said."""

    item: Mapping[str, Any]
    old: Mapping[str, Any] | None = None
    status: bool = False


@dataclass(frozen=True, slots=True)
class Answers:
    """What the server says.

    Attributes:
        server: its version.
        definitions: errors of each definition.
        costs: of each rule of each definition: what the server estimates that it costs at most.
        objects: errors of each object.
    """

    server: str
    definitions: list[list[str]]
    costs: list[dict[str, int]]
    objects: list[list[str]]


def ask(
    definitions: Sequence[Mapping[str, Any]], questions: Iterable[Question] = (), *, version: str = ""
) -> Answers:
    """Put definitions, and objects of their kinds, to the server.

    Args:
        version: behave as this one, e.g. `1.30`.

    Raises:
        NotHereError: there is no server.
    """
    text = json.dumps(
        {
            "version": version,
            "definitions": definitions,
            "objects": [
                {
                    "object": _stored(question.item),
                    "old": question.old and _stored(question.old),
                    "status": question.status,
                }
                for question in questions
            ],
        }
    )
    said = json.loads(run([binary()], stdin=text))
    found = said["definitions"]
    return Answers(
        said["server"], [one["errors"] for one in found], [one["costs"] for one in found], said["objects"]
    )


def _stored(item: Mapping[str, Any]) -> dict[str, Any]:
    """With the metadata that a server has given an object before it looks at it."""
    return {**item, "metadata": {"uid": "u", "resourceVersion": "1", **item["metadata"]}}


@functools.cache
def binary() -> Path:
    """The program, compiled if need be: three minutes on two cores, six beside other tests, once."""
    place = Layout.default().cache / f"crd-server-{hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]}"
    program = place / "crd-server"
    place.mkdir(parents=True, exist_ok=True)
    with (place / "lock").open("w") as lock:  # tests run in several processes
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            with tempfile.TemporaryDirectory(prefix="gatehouse-crd-server-") as directory:
                try:
                    built = _build(Path(directory))
                except ClusterError as error:
                    raise NotHereError(f"{NOT_HERE}: {error}") from error
                part = place / ".part"
                shutil.copy2(built, part)
                part.rename(program)
    return program


def _build(work: Path) -> Path:
    if not shutil.which("apt-get"):
        raise ClusterError("this is no Debian")
    apt = _apt(work)
    run(["apt-get", *apt, "update", "-qq"], timeout=120)
    only = [
        f"--no-{word}" for word in ("recommends", "suggests", "conflicts", "breaks", "replaces", "enhances")
    ]
    told = run(["apt-cache", *apt, "depends", "--recurse", *only, *_WANTED])
    # What is compiled is Go alone: C libraries that packages name are not.
    names = sorted({line for line in told.splitlines() if re.fullmatch(r"golang-[a-z0-9.+-]+", line)})
    debs, root = work / "debs", work / "root"
    debs.mkdir()
    run(
        ["apt-get", *apt, "download", "-qq", *(f"{name}/{_RELEASE}" for name in names)],
        timeout=300,
        directory=debs,
    )
    for deb in sorted(debs.glob("*.deb")):
        run(["dpkg-deb", "-x", deb, root])
        deb.unlink()
    go = sorted((root / "usr" / "lib").glob("go-*"))
    if not go:
        raise ClusterError("golang-go brought no Go")
    (work / "gopath").mkdir()
    (work / "gopath" / "src").symlink_to(root / "usr" / "share" / "gocode" / "src")
    program = work / "crd-server"
    run(
        # Other tests run meanwhile, and some of them measure time.
        ["nice", "-n", "19", go[-1] / "bin" / "go", "build", "-ldflags", "-s -w", "-o", program, SOURCE],
        timeout=900,
        environment={
            "GOROOT": str(go[-1]),
            "GOPATH": str(work / "gopath"),
            "GOCACHE": str(work / "gocache"),
            "GO111MODULE": "off",
            "GOTOOLCHAIN": "local",
            "GOFLAGS": "",
            "CGO_ENABLED": "0",
        },
    )
    return program


def _apt(work: Path) -> list[str]:
    """Options of apt with lists of their own: nothing of the machine's is changed."""
    parts = work / "apt" / "parts"
    parts.mkdir(parents=True)
    (work / "apt" / "lists" / "partial").mkdir(parents=True)
    codename = packages.release().get("VERSION_CODENAME", "")
    lines, stanzas = apt_sources.binaries_of(_RELEASE, codename, apt_sources.lists())
    if not lines and not stanzas:
        raise ClusterError("/etc/apt names no archive of Debian")
    (parts / "binary.list").write_text(lines, encoding="utf-8")
    (parts / "binary.sources").write_text(stanzas, encoding="utf-8")
    options = {
        "APT::Sandbox::User": "root",  # the directory is ours alone
        "Dir::State::Lists": str(work / "apt" / "lists"),
        "Dir::Etc::sourcelist": "/dev/null",
        "Dir::Etc::sourceparts": str(parts),
        "Dir::Cache::pkgcache": "",
        "Dir::Cache::srcpkgcache": "",
    }
    return [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
