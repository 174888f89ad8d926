"""Nodes capture: injected pods have no right at all, and do not start where nobody captures."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from injector.core.capture_messages import NamespaceCode
from injector.core.psa import violations
from tests.cluster.kubectl import Kubectl
from tests.cluster.load import load
from tests.cluster.marks import CLUSTER
from tests.cluster.mesh import RELEASE, Mesh
from tests.cluster.objects import account, pod, service
from tests.cluster.outage import own
from tests.cluster.run import wait_for
from tests.cluster.servers import node_tree
from tests.cluster.shop import PORT, Shop, open_shop, peer_authentication, workload

pytestmark = CLUSTER

DAEMONS = f"daemonset/{RELEASE}-capture"
NODE_MODE = (
    "--set=capture.mode=node",
    "--set=injector.config.injection.capture_seconds=8",
    "--set=injector.config.capture_agent.recheck=2s",
)
HOSTNAME = r"capture.nodeSelector.kubernetes\.io/hostname"


@pytest.fixture(scope="module")
def nodes_capture(mesh: Mesh) -> Iterator[Mesh]:
    """The release with the value; afterwards as it was."""
    mesh.install(*NODE_MODE)
    yield mesh
    mesh.install()


@pytest.fixture
def restricted(nodes_capture: Mesh, new_namespace: Callable[..., Kubectl]) -> Kubectl:
    """A namespace with sidecars that enforces Pod Security `restricted` (where the API server knows it)."""
    made = new_namespace(istio_injection="enabled")
    made("label", "namespace", made.namespace, "pod-security.kubernetes.io/enforce=restricted")
    return made


def inits(item: dict[str, Any]) -> list[str]:
    return [container["name"] for container in item["spec"]["initContainers"]]


def waiting(item: dict[str, Any]) -> dict[str, Any]:
    """The status of the container that waits for the rules."""
    statuses = item["status"].get("initContainerStatuses", [])
    return next((dict(status) for status in statuses if status["name"] == "istio-validation"), {})


def test_injected_pods_are_restricted_and_in_the_mesh(
    nodes_capture: Mesh, restricted: Kubectl, new_namespace: Callable[..., Kubectl]
) -> None:
    shop = open_shop(nodes_capture.kube, restricted)
    assert "/sa/client" in shop.wait_answer("/headers")
    for item in restricted.pods():
        spec = item["spec"]
        assert inits(item) == ["istio-validation"]
        assert violations("restricted", [*spec["initContainers"], *spec["containers"]], spec["volumes"]) == []
        assert "traffic is captured, proved at" in restricted(
            "logs", item["metadata"]["name"], "-c", "istio-validation"
        )
    outside = new_namespace()
    outside.apply([pod("plain", nodes_capture.kube.image("bookshop"), args=["details"])])
    outside.wait_ready()
    get = ("python", "-m", "bookshop", "get", f"http://server.{restricted.namespace}:{PORT}/health")

    def plain() -> tuple[bool, str]:
        code, said = outside.execute("plain", "app", *get)
        return code == 0, said

    wait_for("a plaintext answer under PERMISSIVE", lambda: plain()[0], seconds=60)
    restricted.apply([peer_authentication("STRICT")])
    wait_for("no plaintext under STRICT", lambda: not plain()[0], seconds=60)
    assert re.search(r"reset|closed|RemoteDisconnected", plain()[1], re.IGNORECASE)
    assert "/sa/client" in shop.wait_answer("/headers")
    code, said = nodes_capture.meshctl("check")
    assert (code, "write capture rules" in said) == (0, True), said


def test_init_containers_of_the_author_still_reach_the_network(
    nodes_capture: Mesh, restricted: Kubectl, namespace: Kubectl
) -> None:
    """Classic sidecars: they run before the proxy, so the rules come after them, as with istio-init."""
    image = nodes_capture.kube.image("bookshop")
    namespace.apply([pod("plain", image, args=["details"]), service("plain", PORT)])
    namespace.wait_ready()
    target = f"http://plain.{namespace.namespace}:{PORT}/health"
    item = pod("fetches", image, args=["details"])
    get = f"until python -m bookshop get {target}; do sleep 0.2; done"
    item["spec"]["initContainers"] = [{**item["spec"]["containers"][0], "name": "fetch"}]
    item["spec"]["initContainers"][0] |= {"command": ["timeout", "40", "sh", "-c", get], "args": []}
    restricted.apply([item])
    (found,) = restricted.wait_ready()
    assert inits(found)[0] == "fetch"
    fetch = next(s for s in found["status"]["initContainerStatuses"] if s["name"] == "fetch")
    assert fetch["restartCount"] == 0


def test_a_pod_on_a_node_without_an_agent_does_not_start_and_says_why(
    nodes_capture: Mesh, restricted: Kubectl
) -> None:
    with_agent, without = nodes_capture.kube.nodes()[:2]
    nodes_capture.install(*NODE_MODE, f"--set={HOSTNAME}={with_agent}")
    nodes_capture.kubectl.wait_gone(
        "pods", "--selector=app.kubernetes.io/component=capture", f"--field-selector=spec.nodeName={without}"
    )
    restricted.apply([account("server"), account("client"), service("server", PORT)])
    restricted.apply([workload(nodes_capture.kube, "server", without)])

    def failed() -> dict[str, Any]:
        for item in restricted.pods("app=server"):
            found = waiting(item)
            ended = found.get("lastState", {}).get("terminated") or found.get("state", {}).get("terminated")
            if ended:
                assert item["status"]["phase"] == "Pending"
                assert not [s for s in item["status"]["containerStatuses"] if "running" in s["state"]]
                return dict(ended)
        return {}

    wait_for("the end of the wait", lambda: bool(failed()), seconds=60)
    ended = failed()
    assert ended["exitCode"] == 1
    for part in ("validation_not_captured", f"capture agent of node {without}", "next:"):
        assert part in ended["message"]
    code, said = nodes_capture.meshctl("check")
    assert (code, without in said, "capture" in said) == (1, True, True), said
    nodes_capture.install(*NODE_MODE)
    restricted.wait_ready("app=server")
    restricted.apply([workload(nodes_capture.kube, "client", with_agent)])
    restricted.wait_ready("app=client")
    assert "/sa/client" in Shop(restricted).wait_answer("/headers")


def test_agents_restart_under_load(nodes_capture: Mesh, restricted: Kubectl) -> None:
    shop = open_shop(nodes_capture.kube, restricted)
    shop.wait_answer()
    with load(restricted, "deploy/client", "app", "server", PORT) as outcome:
        nodes_capture.kubectl("rollout", "restart", DAEMONS)
        nodes_capture.kubectl("rollout", "status", DAEMONS, "--timeout=120s", timeout=130)
    assert outcome.failed == []
    assert outcome.ok > 100
    restricted("rollout", "restart", "deployment/client")
    restricted("rollout", "status", "deployment/client", "--timeout=90s", timeout=100)
    shop.wait_answer()


# Runs in the process namespace of a node: prints or kills processes of a pod.
_FIND = """
import os, pathlib, sys
uid, command, signal = sys.argv[1], sys.argv[2], int(sys.argv[3])
for entry in pathlib.Path("/proc").iterdir():
    try:
        if entry.name.isdecimal() and f"pod{uid}" in (entry / "cgroup").read_text():
            if (entry / "comm").read_text().strip() == command:
                os.kill(int(entry.name), signal)
                print(entry.name)
    except OSError:
        pass
"""


def processes(mesh: Mesh, item: dict[str, Any], command: str, signal: int = 0) -> list[str]:
    place = next(p for p in own(mesh.kube).places if p.name == item["spec"]["nodeName"])
    uid = item["metadata"]["uid"]
    return node_tree(place).enter([sys.executable, "-I", "-c", _FIND, uid, command, str(signal)]).split()


def in_network(mesh: Mesh, item: dict[str, Any], *words: str) -> str:
    """A command in the pod's network, as the node could run it."""
    place = next(p for p in own(mesh.kube).places if p.name == item["spec"]["nodeName"])
    (pause,) = processes(mesh, item, "pause")
    return node_tree(place).enter(["nsenter", "--target", pause, "--net", *words])


def test_a_new_sandbox_is_captured_too(nodes_capture: Mesh, restricted: Kubectl) -> None:
    """The same pod, another network: init containers run again, and wait again."""
    shop = open_shop(nodes_capture.kube, restricted)
    shop.wait_answer()
    (before,) = restricted.pods("app=client")
    assert processes(nodes_capture, before, "pause", signal=9)

    def again() -> bool:
        (item,) = restricted.pods("app=client")
        assert item["metadata"]["uid"] == before["metadata"]["uid"]
        return waiting(item).get("containerID") not in {None, waiting(before)["containerID"]}

    wait_for("the container that waits, once more", again, seconds=90)
    (after,) = restricted.wait_ready("app=client")
    assert "table inet gatehouse" in in_network(nodes_capture, after, "nft", "list", "tables")
    assert "/sa/client" in shop.wait_answer("/headers")


def test_rules_that_are_gone_come_back(nodes_capture: Mesh, restricted: Kubectl) -> None:
    open_shop(nodes_capture.kube, restricted)
    (item,) = restricted.pods("app=client")
    in_network(nodes_capture, item, "nft", "flush", "ruleset")
    wait_for(
        "the rules",
        lambda: "table inet gatehouse" in in_network(nodes_capture, item, "nft", "list", "tables"),
        seconds=60,
    )


def test_what_cannot_be_captured_is_told_on_the_pod(nodes_capture: Mesh, namespace: Kubectl) -> None:
    """A container written by hand: its arguments are not believed."""
    image = nodes_capture.kube.image("proxy")
    wait = {
        "name": "istio-validation",
        "image": image,
        "command": ["python3", "-m", "injector.istio_validation"],
        "args": ["--config", '{"include_outbound_cidrs":["fe80::%x} ; flush ruleset"]}', "--timeout", "5"],
    }
    by_hand = pod("by-hand", nodes_capture.kube.image("bookshop"), args=["details"], init=[wait])
    by_hand["spec"]["securityContext"] = {"runAsUser": 1337, "runAsNonRoot": True}
    namespace.apply([by_hand])

    def told() -> bool:
        events = namespace.items("events", "--field-selector=reason=CaptureFailed")
        return any(
            e["message"].startswith("capture_cidrs:") and e["involvedObject"]["name"] == "by-hand"
            for e in events
        )

    wait_for("the Event", told, seconds=60)


def test_pods_of_the_nodes_network_are_never_touched(nodes_capture: Mesh, namespace: Kubectl) -> None:
    """The agent does not ask; and the worker, asked by hand, refuses."""
    image = nodes_capture.kube.image("bookshop")
    node = nodes_capture.kube.nodes()[0]
    host = pod("host", image, command=["sleep", "600"], node=node)
    host["spec"]["hostNetwork"] = True
    namespace.apply([host])
    (item,) = namespace.wait_ready()
    (agent,) = [
        p
        for p in nodes_capture.kubectl.pods("app.kubernetes.io/component=capture")
        if p["spec"]["nodeName"] == node
    ]
    request = json.dumps({"uid": item["metadata"]["uid"], "config": "{}"})
    script = (
        "import socket; s = socket.socket(socket.AF_UNIX); s.connect('/run/gatehouse-capture/worker.sock');"
        f" s.sendall({request!r}.encode() + b'\\n'); print(s.makefile().readline())"
    )
    code, said = nodes_capture.kubectl.execute(agent["metadata"]["name"], "agent", "python", "-c", script)
    assert (code, NamespaceCode.NODE_NETWORK in said) == (0, True), said
    place = next(p for p in own(nodes_capture.kube).places if p.name == node)
    assert "gatehouse" not in node_tree(place).enter(["nft", "list", "tables"])
