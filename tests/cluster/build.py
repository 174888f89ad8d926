"""Builds the Kubernetes servers from Debian's own source package with Debian's Go: minutes, once.

Debian ships `kubectl` only. The binaries go into the cache.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path

from tests.cluster import apt_sources, packages
from tests.cluster.layout import SERVERS, Layout
from tests.cluster.run import ClusterError, run

_MODULE = "k8s.io/kubernetes"
_PAUSE = """package main

import (
	"os"
	"os/signal"
	"syscall"
)

func main() {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGCHLD)
	for received := range signals {
		if received != syscall.SIGCHLD {
			os.Exit(0)
		}
		for {
			if pid, _ := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); pid <= 0 {
				break
			}
		}
	}
}
"""


def build(place: Layout) -> Path:
    """The directory with all server binaries and `pause`; builds what is missing.

    Raises:
        ClusterError: a step failed; its output is in the text.
    """
    place.binaries.mkdir(parents=True, exist_ok=True)
    if missing := [name for name in SERVERS if not (place.binaries / name).exists()]:
        with tempfile.TemporaryDirectory(prefix="gatehouse-kube-") as directory:
            _build_servers(Path(directory), place.binaries, missing)
    if not (place.binaries / "pause").exists():
        with tempfile.TemporaryDirectory(prefix="gatehouse-pause-") as directory:
            _build_pause(Path(directory), place.binaries)
    return place.binaries


def _install(binary: Path, directory: Path) -> None:
    """Copy under another name first: an interrupted copy must not look complete."""
    part = directory / f".{binary.name}.part"
    shutil.copy2(binary, part)
    part.rename(directory / binary.name)


def _need_go() -> None:
    if not shutil.which("go"):
        packages.install(extra=("golang-go",))


def _build_pause(work: Path, target: Path) -> None:
    _need_go()
    (work / "pause.go").write_text(_PAUSE, encoding="ascii")
    settings = {"CGO_ENABLED": "0", "GO111MODULE": "off", "GOFLAGS": "", "GOCACHE": str(work / "cache")}
    run(["go", "build", "-ldflags", "-s -w", "-o", work / "pause", work / "pause.go"], environment=settings)
    _install(work / "pause", target)


def _build_servers(work: Path, target: Path, names: list[str]) -> None:
    _need_go()
    version = _fetch_source(work)
    source = work / "gopath" / "src" / _MODULE
    # Debian's source has no go.mod that works offline: GOPATH mode with its vendor directory.
    environment = {
        "GOPATH": str(work / "gopath"),
        "GO111MODULE": "off",
        "CGO_ENABLED": "0",
        "GOFLAGS": "",
        "GOCACHE": os.environ.get("GOCACHE", str(work / "cache")),
    }
    _fix_map_iteration(source)
    _generate_openapi(work, source, environment)
    major, minor, _ = version.split(".")
    stamps = {"gitVersion": f"v{version}", "gitMajor": major, "gitMinor": minor}
    # Without the stamps at the vendored paths, clients are told v0.0.0.
    vendored = [f"{_MODULE}/vendor/k8s.io/{part}/version" for part in ("component-base", "client-go/pkg")]
    flags = ["-s", "-w", *(f"-X {path}.{key}={value}" for path in vendored for key, value in stamps.items())]
    output = work / "bin"
    output.mkdir()
    commands = [f"./cmd/{name}" for name in names]
    run(
        # providerless: without the clients of public clouds, which are half of what is compiled.
        ["go", "build", "-tags", "providerless", "-ldflags", " ".join(flags), "-o", f"{output}/", *commands],
        timeout=3600,
        environment=environment,
        directory=source,
    )
    for name in names:
        _install(output / name, target)


def _fetch_source(work: Path) -> str:
    """Download, unpack and patch; returns the upstream version."""
    parts = work / "apt" / "parts"
    parts.mkdir(parents=True)
    (work / "apt" / "lists" / "partial").mkdir(parents=True)
    _write_sources(parts)
    # Lists of their own: nothing of the machine's is changed.
    apt = [
        "apt-get",
        *("-o", f"Dir::State::Lists={work}/apt/lists", "-o", "Dir::Etc::sourcelist=/dev/null"),
        *(
            "-o",
            f"Dir::Etc::sourceparts={parts}",
            "-o",
            "Dir::Cache::pkgcache=",
            "-o",
            "Dir::Cache::srcpkgcache=",
        ),
    ]
    run([*apt, "update", "-qq"], timeout=300)
    run([*apt, "source", "-qq", "--download-only", "kubernetes"], timeout=600, directory=work)
    (original,) = work.glob("kubernetes_*.orig.tar.gz")
    (debian,) = work.glob("kubernetes_*.debian.tar.xz")
    found = re.fullmatch(
        r"kubernetes_.*really([0-9.]+)\.orig\.tar\.gz|kubernetes_([0-9.]+)\.orig\.tar\.gz", original.name
    )
    if found is None:
        raise ClusterError(f"{original.name} names no version")
    home = work / "gopath" / "src" / "k8s.io"
    home.mkdir(parents=True)
    run(["tar", "-xzf", original, "-C", home])
    (unpacked,) = home.iterdir()
    unpacked.rename(home / "kubernetes")
    run(["tar", "-xJf", debian, "-C", work])
    for line in (work / "debian" / "patches" / "series").read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            run(
                ["patch", "-s", "-p1", "-i", work / "debian" / "patches" / line.strip()],
                directory=home / "kubernetes",
            )
    return found[1] or found[2]


def _write_sources(parts: Path) -> None:
    """The machine's own Debian archives as `deb-src`, into a directory of source parts."""
    codename = packages.release().get("VERSION_CODENAME", "")
    lines, stanzas = apt_sources.source_entries(codename, apt_sources.lists())
    if not lines and not stanzas:
        raise ClusterError(
            f"no archive of Debian {codename or '(of which release?)'} with `main` under /etc/apt to take the"
            " source of Kubernetes from; next: add one to /etc/apt/sources.list"
        )
    for name, text in (("source.list", lines), ("source.sources", stanzas)):
        if text:
            (parts / name).write_text(text, encoding="utf-8")


def _fix_map_iteration(source: Path) -> None:
    """Let the vendored reflect2 1.0.1 call Go's map iterator as Go 1.18 and newer have it.

    It declares `reflect.mapiterinit` as it was before: the runtime then writes an iterator of twelve words
    through a stray pointer, and servers die with "fatal error: fault" in the first webhook call. Pointers
    come first and numbers after, as in the runtime: the garbage collector reads them.
    """
    call = "mapiterinit(type2.rtype, *(*unsafe.Pointer)(obj), iter.hiter)"
    package = source / "vendor" / "github.com" / "modern-go" / "reflect2"
    _edit(
        package / "unsafe_link.go",
        (
            "mapiterinit(rtype unsafe.Pointer, m unsafe.Pointer) *hiter",
            "mapiterinit(rtype, m unsafe.Pointer, it *hiter)",
        ),
        ("\t// rest fields are ignored\n", "\t_ [6]unsafe.Pointer\n\t_ [8]uintptr\n"),
    )
    _edit(
        package / "unsafe_map.go",
        ("\treturn &UnsafeMapIterator{\n", "\titer := &UnsafeMapIterator{\n"),
        ("mapiterinit(type2.rtype, *(*unsafe.Pointer)(obj)),", "new(hiter),"),
        ("\t}\n}\n\ntype UnsafeMapIterator", f"\t}}\n\t{call}\n\treturn iter\n}}\n\ntype UnsafeMapIterator"),
    )


def _edit(file: Path, *changes: tuple[str, str]) -> None:
    text = file.read_text(encoding="utf-8")
    for old, new in changes:
        if text.count(old) != 1:
            raise ClusterError(f"{file} is not what it was: {old!r} is there {text.count(old)} times")
        text = text.replace(old, new)
    file.write_text(text, encoding="utf-8")


def _generate_openapi(work: Path, source: Path, environment: dict[str, str]) -> None:
    """The OpenAPI definitions are generated, not shipped."""
    generator = work / "openapi-gen"
    tool = "./vendor/k8s.io/kube-openapi/cmd/openapi-gen"
    run(["go", "build", "-o", generator, tool], timeout=900, environment=environment, directory=source)
    marked = run(
        ["grep", "-rl", "--include=*.go", "+k8s:openapi-gen=", "staging/src/k8s.io", "pkg", "cmd"],
        directory=source,
    )
    directories = {str(Path(file).parent) for file in marked.split()}
    inputs = sorted(
        f"{_MODULE}/" + re.sub(r"^staging/src/", "vendor/", directory)
        for directory in directories
        if not re.search(r"code-generator|sample-apiserver|/_", directory)
    )
    run(
        [
            generator,
            *("--logtostderr", "-i", ",".join(inputs), "-p", f"{_MODULE}/pkg/generated/openapi"),
            *("-O", "zz_generated.openapi", "-r", work / "violations"),
            *("-h", "vendor/k8s.io/code-generator/hack/boilerplate.go.txt"),
        ],
        timeout=900,
        environment=environment,
        directory=source,
    )
