"""The CSI driver on a real kubelet: an agent as a process of the node, a driver name of its own.

The authority is not reachable on purpose: nothing here may wait for it.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nodeagent.config import Listen
from nodeagent.status_client import StatusError, fetch_status
from tests.cluster.kubectl import Kubectl
from tests.cluster.layout import NodePlace
from tests.cluster.objects import pod
from tests.cluster.outage import own
from tests.cluster.run import wait_for
from tests.cluster.servers import node_tree
from tests.cluster.under_test import ClusterUnderTest

pytestmark = [pytest.mark.cluster, pytest.mark.xdist_group("cluster"), pytest.mark.timeout(900)]
ROOT = Path(__file__).resolve().parents[3]
CONNECT = "import socket; socket.socket(socket.AF_UNIX).connect('/run/gatehouse/agent.sock')"
WRITE = "open('/run/gatehouse/x', 'w')"


class NodeProcess:
    """An agent in the namespaces of a node, killed and started at will."""

    def __init__(self, kube: ClusterUnderTest, node: NodePlace, directory: Path) -> None:
        self.driver = f"csi-{os.getpid()}.gatehouse.dev"
        self.node = node
        self.kubectl = kube.kubectl
        self.directory = directory
        self.listen = Listen.parse(f"unix:{directory}/status.sock")
        self.state = f"/run/gatehouse-e2e-{os.getpid()}"
        self.process: subprocess.Popen[bytes] | None = None
        (directory / "root.pem").write_text("")

    def start(self, *, audience: str = "istio-ca") -> None:
        """Start, and wait until the caches are complete and the kubelet has registered the driver."""
        settings = {
            "mode": "kubernetes",
            "listen": str(self.listen),
            "ca": {"address": "127.0.0.1:1", "root_file": str(self.directory / "root.pem")},
            "kubernetes": {
                "node_name": self.node.name,
                "kubeconfig": str(self.kubectl.kubeconfig),
                "driver_name": self.driver,
                "state_dir": self.state,
                "audience": audience,
            },
        }
        file = self.directory / "agent.yaml"
        file.write_text(json.dumps(settings))
        with (self.directory / "agent.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(
                        "nsenter",
                        "--target",
                        str(node_tree(self.node).init_pid()),
                        "-m",
                        "-p",
                        "-n",
                        f"-w{ROOT}",
                    ),
                    *(sys.executable, "-m", "nodeagent", "serve", "--config", str(file)),
                ],
                stdout=log,
                stderr=log,
            )

    def kill(self) -> None:
        """SIGKILL: nothing is tidied up."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM: sockets and registration go."""
        self._end(signal.SIGTERM)

    def _end(self, how: signal.Signals) -> None:
        process, self.process = self.process, None
        if process is not None:
            # nsenter stands before the agent, which is in the node's process namespace.
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="ascii")
            for child in children.split():
                os.kill(int(child), how)
            process.wait(30)

    def status(self) -> dict[str, Any]:
        try:
            return fetch_status(self.listen)
        except StatusError:
            return {"ready": False, "workloads": []}

    def wait_ready(self, seconds: float = 60) -> None:
        wait_for("a ready agent", lambda: self.status()["ready"], seconds=seconds)

    def workload(self, name: str) -> dict[str, Any] | None:
        return next((w for w in self.status()["workloads"] if w["workload"] == name), None)

    def volume_files(self) -> list[dict[str, Any]]:
        """What the state directory holds; it is on the node's own tmpfs."""
        with contextlib.suppress(Exception):
            names = node_tree(self.node).enter(["find", self.state, "-name", "*.json"]).split()
            return [json.loads(node_tree(self.node).enter(["cat", name])) for name in names]
        return []


@pytest.fixture
def agent(kube: ClusterUnderTest, short_dir: Path) -> Iterator[NodeProcess]:
    found = NodeProcess(kube, own(kube).places[0], short_dir)
    driver = {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "CSIDriver",
        "metadata": {"name": found.driver},
        "spec": {
            "attachRequired": False,
            "podInfoOnMount": True,
            "volumeLifecycleModes": ["Ephemeral"],
            "fsGroupPolicy": "None",
            "requiresRepublish": True,
            "tokenRequests": [{"audience": "istio-ca", "expirationSeconds": 3600}],
        },
    }
    kube.kubectl.apply([driver])
    yield found
    found.stop()
    kube.kubectl("delete", "csidriver", found.driver)


@pytest.fixture
def pods(kube: ClusterUnderTest, agent: NodeProcess, namespace: Kubectl) -> Iterator[Kubectl]:
    """A namespace whose pods are gone before their driver is."""
    yield namespace
    if agent.process is None:
        agent.start()
    namespace("delete", "pod", "--all", "--wait=true", "--grace-period=1", timeout=120)


def mounting_pod(
    kube: ClusterUnderTest, agent: NodeProcess, name: str, *, readonly: bool = True
) -> dict[str, Any]:
    found = pod(
        name,
        kube.image("bookshop"),
        command=["sleep", "infinity"],
        node=agent.node.name,
        container={"volumeMounts": [{"name": "gatehouse", "mountPath": "/run/gatehouse", "readOnly": True}]},
    )
    forged = {  # F-78: a pod's author asks to be somebody else
        "csi.storage.k8s.io/serviceAccount.name": "admin",
        "csi.storage.k8s.io/pod.namespace": "kube-system",
    }
    csi = {"driver": agent.driver, "readOnly": readonly, "volumeAttributes": forged}
    found["spec"]["volumes"] = [{"name": "gatehouse", "csi": csi}]
    found["spec"]["terminationGracePeriodSeconds"] = 1
    return found


def connects(kubectl: Kubectl, name: str) -> bool:
    return kubectl.execute(name, "app", "python", "-c", CONNECT)[0] == 0


def events(kubectl: Kubectl) -> str:
    return kubectl("get", "events", "--field-selector=reason=FailedMount", "-o", "json")


def claims(token: str) -> dict[str, Any]:
    part = token.split(".")[1]
    found: dict[str, Any] = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    return found


def until(what: str, condition: Callable[[], object], seconds: float = 60) -> None:
    wait_for(what, lambda: bool(condition()), seconds=seconds)


def test_publish_kill_restart_republish_unpublish(
    kube: ClusterUnderTest, agent: NodeProcess, pods: Kubectl
) -> None:
    """F-78, F-80, G-08, G-09, R1, R2 on a real kubelet."""
    agent.start()
    agent.wait_ready()
    pods.apply([mounting_pod(kube, agent, "web")])
    pods.wait_ready("app=web")
    workload = f"{pods.namespace}/web"
    found = agent.workload(workload)
    assert found is not None
    assert found["spiffe_id"] == f"spiffe://cluster.local/ns/{pods.namespace}/sa/default"
    assert found["socket"].endswith("/volumes/kubernetes.io~csi/gatehouse/mount/agent.sock")
    assert connects(pods, "web")
    assert pods.execute("web", "app", "python", "-c", WRITE)[0] != 0

    (file,) = agent.volume_files()
    token = claims(file["token"])
    uid = pods.get("pod", "web")["metadata"]["uid"]
    assert token["aud"] == ["istio-ca"]
    assert token["sub"] == f"system:serviceaccount:{pods.namespace}:default"
    assert token["kubernetes.io"]["pod"]["uid"] == file["volume"]["pod_uid"] == uid

    agent.kill()
    assert not connects(pods, "web")
    agent.start()
    started = time.monotonic()
    until("the socket of a running pod", lambda: connects(pods, "web"), seconds=15)
    assert time.monotonic() - started < 10  # the exec into the pod is most of it; the agent's goal is 5 s

    # The kubelet has no token for this audience: each republish is refused, and the pod keeps its directory.
    agent.kill()
    agent.start(audience="other")
    until("a refused republish", lambda: "the volume stays as it is" in events(pods), seconds=180)
    assert connects(pods, "web")
    state = pods.get("pod", "web")["status"]["containerStatuses"][0]
    assert (state["ready"], state["restartCount"]) == (True, 0)

    agent.kill()
    pods("delete", "pod", "web", "--wait=false")
    agent.start()
    pods.wait_gone("pods")
    until("an agent without volumes", lambda: agent.status()["ready"] and not agent.volume_files())
    assert agent.workload(workload) is None


@pytest.mark.parametrize(
    ("audience", "readonly", "message"),
    [
        pytest.param("other", True, "no token for the audience", id="f82-no-token"),
        pytest.param("istio-ca", False, "readOnly: true", id="writable"),
    ],
)
def test_a_new_pod_that_is_refused_says_why(
    kube: ClusterUnderTest,
    agent: NodeProcess,
    pods: Kubectl,
    audience: str,
    readonly: bool,
    message: str,
) -> None:
    agent.start(audience=audience)
    agent.wait_ready()
    pods.apply([mounting_pod(kube, agent, "refused", readonly=readonly)])
    until("the reason in an event", lambda: message in events(pods))
    assert pods.get("pod", "refused")["status"]["phase"] == "Pending"
    assert agent.volume_files() == []
    pods("delete", "pod", "refused", "--wait=true", "--grace-period=1")


def test_g09_a_pod_that_starts_while_the_agent_is_away_waits_for_it(
    kube: ClusterUnderTest, agent: NodeProcess, pods: Kubectl
) -> None:
    agent.start()
    agent.wait_ready()
    agent.kill()
    pods.apply([mounting_pod(kube, agent, "early")])
    until("a mount that failed", lambda: agent.driver in events(pods))
    agent.start()
    pods.wait_ready("app=early")
    assert connects(pods, "early")
