"""The real Prometheus and promtool: found on the machine, or taken once out of the system's package."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.fakes.helm import ROOT
from tests.fakes.ports import claim_port

CACHE = ROOT / ".cache" / "prometheus"
_PACKAGE = "prometheus"
_SECONDS = 60.0
_DOWNLOAD_SECONDS = 300
_START_SECONDS = 40.0


@functools.cache
def program(name: str) -> Path:
    """`prometheus` or `promtool`: `$PROMETHEUS` or `$PROMTOOL`, one on the path, or the one of the cache.

    The package is unpacked, not installed: no service is started and no root is needed.

    Raises:
        AssertionError: it cannot be had; the text says what to do.
    """
    chosen = os.environ.get(name.upper(), "")
    if chosen:
        found = shutil.which(chosen)
        assert found, f"{name.upper()}={chosen}: there is no such program"
        return Path(found)
    if found := shutil.which(name):
        return Path(found)
    binary = CACHE / "usr" / "bin" / name
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:  # tests run in several processes
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not binary.exists():
            _unpack()
    assert binary.exists(), f"the package {_PACKAGE} has no {name}; next: set {name.upper()}=/path/to/{name}"
    return binary


def _unpack() -> None:
    """apt checks the archive's signature and the package's digest."""
    hint = f"next: apt-get install {_PACKAGE}, or set PROMTOOL= and PROMETHEUS=/path/to/program"
    assert shutil.which("apt-get"), f"no promtool on this machine; {hint}"
    fetch = ["apt-get", "-q", "download", _PACKAGE]
    for command in (fetch, ["apt-get", "-q", "update"], fetch):
        done = subprocess.run(
            command, cwd=CACHE, capture_output=True, text=True, timeout=_DOWNLOAD_SECONDS, check=False
        )
        packages = sorted(CACHE.glob(f"{_PACKAGE}_*.deb"))
        if packages:
            break
    else:
        raise AssertionError(f"apt-get download {_PACKAGE} failed: {done.stderr}; {hint}")
    subprocess.run(["dpkg-deb", "-x", packages[-1], CACHE / "new"], timeout=_SECONDS, check=True)
    shutil.copytree(CACHE / "new" / "usr" / "bin", CACHE / "usr" / "bin", dirs_exist_ok=True)
    shutil.rmtree(CACHE / "new")
    for package in packages:
        package.unlink()


def promtool(*words: str | Path, stdin: str | None = None) -> str:
    """Output of a promtool command.

    Raises:
        AssertionError: it failed; the text is what it said.
    """
    done = subprocess.run(
        [program("promtool"), *words],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@dataclass(frozen=True, slots=True)
class Prometheus:
    """A running server."""

    port: int

    def _get(self, path: str, **query: str) -> Any:
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        try:
            with urllib.request.urlopen(url, timeout=_SECONDS) as response:
                return json.load(response)["data"]
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(f"{query}: {error.read().decode()}") from error

    def query(self, expression: str, *, at: float | None = None) -> list[dict[str, Any]]:
        """The series of an instant query, each with `metric` (labels) and `value` (time, number).

        Args:
            at: Unix time; now when it is None.

        Raises:
            AssertionError: the expression is wrong.
        """
        moment = {} if at is None else {"time": str(at)}
        found: list[dict[str, Any]] = self._get("query", query=expression, **moment)["result"]
        return found

    def label_values(self, label: str, selector: str) -> list[str]:
        """Values of a label over all series that match, as a dashboard's variables ask."""
        found: list[str] = self._get(f"label/{label}/values", **{"match[]": selector})
        return found

    def targets(self) -> list[dict[str, Any]]:
        """What is scraped, with `health` and `lastError`."""
        found: list[dict[str, Any]] = self._get("targets")["activeTargets"]
        return found


@contextlib.contextmanager
def running(directory: Path, config: str, *, ready: float = _START_SECONDS) -> Iterator[Prometheus]:
    """A server with this configuration; its data are kept below `directory`."""
    file, data, log = directory / "prometheus.yml", directory / "data", directory / "prometheus.log"
    file.write_text(config)
    promtool("check", "config", file)
    port = claim_port()
    options = [
        f"--config.file={file}",
        f"--storage.tsdb.path={data}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--storage.tsdb.retention.time=30d",
    ]
    with log.open("wb") as out:
        process = subprocess.Popen([program("prometheus"), *options], stdout=out, stderr=out)
    try:
        _wait_ready(process, port, log, ready)
        yield Prometheus(port)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(20)


def _wait_ready(process: subprocess.Popen[bytes], port: int, log: Path, seconds: float) -> None:
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        assert process.poll() is None, log.read_text()
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{port}/-/ready", timeout=5) as response,
        ):
            if response.status == 200:
                return
        time.sleep(0.05)
    raise AssertionError(f"Prometheus is not ready within {seconds} s: {log.read_text()}")
