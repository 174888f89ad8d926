"""Mode kubernetes: from NodePublishVolume to the first certificate on the pod's socket, one pod and a burst.

A real agent and a real authority as processes; the kubelet's call and the API server are this process's.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc

from mesh._proto import csi_pb2, csi_pb2_grpc, istio_ca_pb2, istio_ca_pb2_grpc
from mesh.spiffe import SpiffeId
from nodeagent.ca_client import MAX_IN_FLIGHT
from nodeagent.keys import new_request
from tests.bench.h2client import Fleet
from tests.bench.measure import ROUNDS, Row, at_most
from tests.bench.real_ca import RealCa, free_port, real_ca, write_json
from tests.bench.rows_agent import subscribe
from tests.fakes.csi_kubelet import (
    csi_context,
    csi_make_parent,
    csi_message,
    csi_request,
    csi_target,
    csi_tokens,
)
from tests.fakes.kube_api import FakeKube

BURST = 100
BURST_ROUNDS = 5
GOAL = 2.0
"""As for a rotation: what holds the parts together may cost as much again as they do."""
GOAL_BURST = 3.0
"""The parts have no server to start and no reply to verify, and in a burst nothing hides either."""
_WEB = SpiffeId.parse("spiffe://cluster.local/ns/demo/sa/web")


class Node:
    """An agent of mode kubernetes with its kubelet's side, and a bare client of the authority."""

    def __init__(self, base: Path, ca: RealCa, pid: int) -> None:
        self.pods = base / "k" / "pods"
        self.pid = pid
        self._ca = ca
        self._driver = grpc.insecure_channel(f"unix:{base}/k/plugins/csi.gatehouse.dev/csi.sock")
        self._csi: Any = csi_pb2_grpc.NodeStub(self._driver)  # type: ignore[no-untyped-call]  # generated code
        credentials = grpc.ssl_channel_credentials(ca.roots.read_bytes())
        self._authority = grpc.secure_channel(f"localhost:{ca.port}", credentials)
        stub = istio_ca_pb2_grpc.IstioCertificateServiceStub
        self._stub: Any = stub(self._authority)  # type: ignore[no-untyped-call]  # generated code

    def close(self) -> None:
        """Close the channels."""
        self._driver.close()
        self._authority.close()

    def scheduled(self) -> Volume:
        """A new pod, as far as a kubelet brings it before it calls the driver."""
        uid = str(uuid.uuid4())
        # A short name of the volume: this process binds no descriptor, and a path has 107 bytes.
        target = csi_target(self.pods, uid, "g")
        csi_make_parent(target)
        token = self._ca.token(namespace="demo", name="web", pod=f"web-{uid[:8]}", uid=uid)
        context = csi_context(pod__name=f"web-{uid[:8]}", pod__uid=uid)
        context["csi.storage.k8s.io/serviceAccount.tokens"] = csi_tokens(token)
        return Volume(target, token, csi_message(csi_request(target, context, volume_id=f"csi-{uid}")))

    def publish(self, volumes: list[Volume]) -> None:
        """The kubelet's calls, all at once; returns when all are answered."""
        for call in [self._csi.NodePublishVolume.future(v.message, timeout=30) for v in volumes]:
            call.result()

    def unpublish(self, volumes: list[Volume]) -> None:
        """The pods are gone."""
        for volume in volumes:
            request = csi_pb2.NodeUnpublishVolumeRequest(
                volume_id=volume.message.volume_id, target_path=volume.message.target_path
            )
            self._csi.NodeUnpublishVolume(request, timeout=30)

    def issue(self, token: str) -> None:
        """What the authority takes for one certificate, with a key of our own."""
        _, csr = new_request(_WEB)
        request = istio_ca_pb2.IstioCertificateRequest(csr=csr)
        self._stub.CreateCertificate(request, metadata=(("authorization", f"Bearer {token}"),), timeout=30)


class Volume:
    """A pod's volume.

    Args:
        target: where the kubelet wants it.
        token: the pod's.
        message: the kubelet's call.
    """

    def __init__(self, target: str, token: str, message: csi_pb2.NodePublishVolumeRequest) -> None:
        self.socket = f"{target}/agent.sock"
        self.token = token
        self.message = message


def rows() -> Iterator[Row]:
    """One pod, then a hundred at once."""
    with (
        tempfile.TemporaryDirectory(prefix="gh-", dir="/tmp") as directory,
        real_ca(Path(directory)) as ca,
        FakeKube() as kube,
        node(Path(directory), ca, kube) as running,
    ):
        yield _one(running)
        yield _burst(running)


@contextlib.contextmanager
def node(base: Path, ca: RealCa, kube: FakeKube) -> Iterator[Node]:
    """The agent as the chart runs it; its driver's socket answers when the block begins."""
    for name in ("pods", "plugins_registry"):
        (base / "k" / name).mkdir(parents=True)
    kubernetes = {
        "node_name": "node1",
        "kubeconfig": str(kube.kubeconfig(base)),
        "kubelet_dir": str(base / "k"),
        "state_dir": str(base / "agent-state"),
    }
    config = {
        "mode": "kubernetes",
        "listen": f"127.0.0.1:{free_port()}",
        "ca": {"address": f"localhost:{ca.port}", "root_file": str(ca.roots)},
        "kubernetes": kubernetes,
        "log_level": "warning",
    }
    file = base / "agent.yaml"
    write_json(file, config)
    with (base / "agent.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "nodeagent", "serve", "--config", str(file)], stdout=log, stderr=log
        )
    running = Node(base, ca, process.pid)
    try:
        end = time.monotonic() + 30
        while not (base / "k/plugins/csi.gatehouse.dev/csi.sock").exists():
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the agent did not come up: {(base / 'agent.log').read_text()[-2000:]}")
            time.sleep(0.01)
        yield running
    finally:
        running.close()
        process.terminate()
        process.wait(timeout=30)


def _one(running: Node) -> Row:
    """The parts: the same call for a volume that is served, one certificate, a stream on a served socket."""
    whole, parts = [], []
    for _ in range(ROUNDS + 1):
        volume = running.scheduled()
        started = time.perf_counter()
        running.publish([volume])
        whole.append((_served([volume]) - started) * 1e3)
        started = time.perf_counter()
        running.publish([volume])
        running.issue(volume.token)
        parts.append((_served([volume]) - started) * 1e3)
    return at_most("NodePublishVolume to first SVID / parts", whole[1:], parts[1:], "ms", GOAL)


def _burst(running: Node) -> Row:
    """The same parts, each for all volumes at once; as many certificates in flight as the agent has."""
    whole, parts = [], []
    with ThreadPoolExecutor(MAX_IN_FLIGHT) as threads:
        for _ in range(BURST_ROUNDS):
            volumes = [running.scheduled() for _ in range(BURST)]
            started = time.perf_counter()
            running.publish(volumes)
            whole.append((_served(volumes) - started) * 1e3)
            started = time.perf_counter()
            running.publish(volumes)
            list(threads.map(running.issue, [volume.token for volume in volumes]))
            parts.append((_served(volumes) - started) * 1e3)
            running.unpublish(volumes)
    return at_most(f"{BURST} volumes at once to last SVID / parts", whole, parts, "ms", GOAL_BURST)


def _served(volumes: list[Volume]) -> float:
    """When every socket has given a certificate."""
    fleet = Fleet([subscribe(volume.socket) for volume in volumes])
    try:
        return fleet.wait(1, 60)
    finally:
        fleet.close()
