"""A whole node: cold start, 110 pods, memory."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import yaml

from tests.bench.h2client import Fleet
from tests.bench.measure import ROUNDS, Row, at_most, memory_split, rss_mb
from tests.bench.real_ca import RealCa, free_port, real_ca, write_json
from tests.bench.rows_agent import subscribe

PODS, SERVICES = 110, 1000
IDLE_SECONDS = 15  # some of the agent's checks, which come every 5 s when nothing happens
_IMPORTS = (
    "import grpc.aio, cryptography.x509, envoy.service.discovery.v3.ads_pb2_grpc, yaml, prometheus_client"
)


@contextlib.contextmanager
def agent(
    base: Path, ca: RealCa, pods: int, services: int
) -> Iterator[tuple[subprocess.Popen[bytes], int, Path]]:
    """`python -m nodeagent serve` over a directory of that many workloads and services."""
    mesh, sockets = base / "mesh", base / "s"
    mesh.mkdir()
    for i in range(pods):
        token = base / f"{i}.jwt"
        token.write_text(ca.token(namespace="demo", name=f"sa{i}", uid=f"uid-{i}"), encoding="ascii")
        egress = [
            {
                "bind": f"127.1.{i}.1:{7000 + j}",
                "service": f"svc{(i + j) % services}.demo.svc.cluster.local",
                "port": 80,
            }
            for j in range(min(3, services))
        ]
        spec = {
            "serviceAccount": f"sa{i}",
            "tokenFile": str(token),
            "address": f"127.1.{i}.1",
            "ports": [{"number": 8080, "protocol": "HTTP", "app": "127.0.0.1:18080"}],
            "egress": egress,
        }
        _write(mesh / f"w{i}.yaml", "Workload", f"pod{i}", spec)
    for i in range(services):
        endpoints = [
            {"address": f"127.1.{j % 110}.1:8080", "serviceAccount": f"sa{j % 110}", "namespace": "demo"}
            for j in (i, i + 1)
        ]
        _write(
            mesh / f"s{i}.yaml",
            "Service",
            f"svc{i}",
            {"ports": [{"number": 80, "protocol": "HTTP", "endpoints": endpoints}]},
        )
    port = free_port()
    config = {
        "directory": str(mesh),
        "sockets": str(sockets),
        "listen": f"127.0.0.1:{port}",
        "ca": {"address": f"localhost:{ca.port}", "root_file": str(ca.roots)},
    }
    path = base / "agent.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    with (base / "agent.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "nodeagent", "serve", "--config", str(path)], stderr=log, stdout=log
        )
        try:
            yield process, port, sockets
        finally:
            process.terminate()
            process.wait(timeout=30)


def _write(path: Path, kind: str, name: str, spec: dict[str, object]) -> None:
    metadata = {"namespace": "demo", "name": name}
    write_json(
        path, {"apiVersion": "gatehouse.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec}
    )


def rows() -> Iterator[Row]:
    """Rows 12 and 13 of the goals, and the cold start."""
    with tempfile.TemporaryDirectory(prefix="gh-", dir="/tmp") as directory, real_ca(Path(directory)) as ca:
        yield from _starts(Path(directory), ca)
        yield from _full_node(Path(directory) / "full", ca)


def _starts(base: Path, ca: RealCa) -> Iterator[Row]:
    cold, imports, bare, version, usage = [], [], [], [], []
    for round_ in range(ROUNDS):
        bare.append(_wall("-c", "pass"))
        version.append(_wall("-m", "nodeagent", "--version"))
        usage.append(_wall("-m", "meshctl", "--help"))
        imports.append(_wall("-c", _IMPORTS))
        here = base / f"cold{round_}"
        here.mkdir()
        started = time.perf_counter()
        with agent(here, ca, 1, 3) as (_, _, sockets):
            path = sockets / "demo_pod0" / "agent.sock"
            while not path.exists():
                time.sleep(0.001)
            fleet = Fleet([subscribe(str(path))])
            cold.append((fleet.wait(1) - started) * 1000)
            fleet.close()
    yield at_most("agent: start to first SVID / imports alone", cold, imports, "ms", 3.0)
    yield at_most("agent --version / bare python", version, bare, "ms", 3.0)
    yield at_most("meshctl --help / bare python", usage, bare, "ms", 3.0)


def _full_node(base: Path, ca: RealCa) -> Iterator[Row]:
    base.mkdir()
    with agent(base, ca, PODS, SERVICES) as (process, port, sockets):
        paths = [sockets / f"demo_pod{i}" / "agent.sock" for i in range(PODS)]
        while not all(path.exists() for path in paths):
            time.sleep(0.01)
        started = time.perf_counter()
        fleet = Fleet([subscribe(str(path)) for path in paths])
        first = (fleet.wait(1, 120) - started) * 1000
        _ready(port)
        busy, busy_split = rss_mb(process.pid), memory_split(process.pid)
        time.sleep(IDLE_SECONDS)
        memory = rss_mb(process.pid)
        split = f"idle: {memory_split(process.pid)}; busy: {busy:.1f} MB, {busy_split}"
        fleet.close()
    yield Row(
        f"agent memory, idle, {PODS} pods, {SERVICES:,} services",
        memory,
        "MB",
        60.0,
        memory / 60.0,
        "<= 1",
        memory <= 60.0,
        split,
    )
    yield Row(f"{PODS} first SVIDs, sockets up to last served", first, "ms", first, 1.0, "(told)", ok=True)


def _ready(port: int) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2),
        ):
            return
        time.sleep(0.05)
    raise RuntimeError("the agent did not become ready")


def _wall(*arguments: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return (time.perf_counter() - started) * 1000
