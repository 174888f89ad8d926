"""What the mesh stands on: two real nodes, and images that run under the strictest settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster.images import ImageStore
from tests.cluster.kubectl import Kubectl
from tests.cluster.marks import CLUSTER
from tests.cluster.objects import pod, service
from tests.cluster.outage import own
from tests.cluster.run import run, wait_for
from tests.cluster.under_test import ClusterUnderTest

pytestmark = CLUSTER

BOOKSHOP = Path(__file__).resolve().parents[3] / "examples" / "bookshop" / "bookshop.yaml"


def run_once(kubectl: Kubectl, name: str, image: str, command: list[str]) -> tuple[str, str]:
    """Phase and log of a restricted pod that runs a command to its end."""
    kubectl.apply([pod(name, image, command=command, restart="Never")])
    phase = ""

    def ended() -> bool:
        nonlocal phase
        phase = kubectl.get("pod", name)["status"]["phase"]
        return phase in ("Succeeded", "Failed")

    wait_for(f"the end of {name}", ended, seconds=60)
    return phase, kubectl("logs", name)


def test_two_nodes_are_ready(kube: ClusterUnderTest) -> None:
    nodes = kube.kubectl.items("nodes")
    ready = [
        node["metadata"]["name"]
        for node in nodes
        if any(item["type"] == "Ready" and item["status"] == "True" for item in node["status"]["conditions"])
    ]
    assert len(ready) == len(nodes) >= 2


def test_pods_reach_each_other_across_nodes(kube: ClusterUnderTest, namespace: Kubectl) -> None:
    first, second = kube.nodes()[:2]
    image = kube.image("bookshop")
    namespace.apply(
        [
            pod("details", image, args=["details"], node=first, ports=[9080]),
            pod("caller", image, args=["details"], node=second),
            service("details", 9080),
        ]
    )
    pods = namespace.wait_ready(count=2)
    assert {item["spec"]["nodeName"] for item in pods} == {first, second}
    (address,) = [item["status"]["podIP"] for item in pods if item["metadata"]["name"] == "details"]

    for host in (address, "details", f"details.{namespace.namespace}.svc.cluster.local"):

        def answers(host: str = host) -> bool:
            get = ("python", "-m", "bookshop", "get", f"http://{host}:9080/health")
            code, said = namespace.execute("caller", "app", *get)
            return code == 0 and "details is healthy" in said

        wait_for(f"an answer from {host}", answers, seconds=60)


@pytest.mark.parametrize(
    ("image", "command", "says"),
    [
        ("control", ["python", "-m", "ca", "--help"], "usage: ca"),
        ("control", ["python", "-m", "nodeagent", "--help"], "usage: nodeagent"),
        ("control", ["python", "-m", "injector", "--help"], "usage: "),
        ("control", ["id"], "uid=65532(gatehouse) gid=65532"),
        ("proxy", ["envoy", "--version"], "envoy  version:"),
        ("proxy", ["id"], "uid=1337(istio-proxy) gid=1337"),
        ("proxy", ["python3", "-m", "injector.istio_init", "--dry-run"], "redirect to :15006"),
        (
            "proxy",
            ["python3", "-m", "injector.wait_ready", "--timeout", "0"],
            "the proxy is not ready after 0 s",
        ),
        ("proxy", ["ip", "-V"], "iproute2"),
        ("proxy", ["python3", "-m", "injector.istio_validation", "--help"], "usage: istio-validation"),
        ("proxy", ["python3", "-m", "injector.capture_worker", "--help"], "usage: capture-worker"),
    ],
    ids=[
        "ca",
        "nodeagent",
        "injector",
        "control-user",
        "envoy",
        "proxy-user",
        "istio-init",
        "wait-ready",
        "ip",
        "istio-validation",
        "capture-worker",
    ],
)
def test_images_run_restricted_on_a_read_only_root(
    kube: ClusterUnderTest, namespace: Kubectl, image: str, command: list[str], says: str
) -> None:
    phase, log = run_once(namespace, "once", kube.image(image), command)
    assert (phase, says in log) == ("Succeeded", True), log


def test_a_release_is_all_that_a_node_without_a_registry_needs(
    kube: ClusterUnderTest, tmp_path: Path
) -> None:
    """The sums are right, and containerd finds in the archive every image that the chart asks for."""
    layout = own(kube)
    files = {file.name: file for file in ImageStore(layout).release(tmp_path)}
    archive = files["gatehouse-images-e2e.tar"]
    assert set(files) == {"images.txt", "gatehouse-0.1.0.tgz", archive.name, "SHA256SUMS"}
    run(["sha256sum", "--strict", "-c", "SHA256SUMS"], directory=tmp_path)
    wanted = set(files["images.txt"].read_text().split())
    assert wanted == {kube.image("control"), kube.image("proxy")}
    # A name space of its own: the node's has them already.
    ctr = ["ctr", "-a", layout.places[0].containerd_socket, "-n", "release-test", "images"]
    try:
        run([*ctr, "import", archive], timeout=300)
        assert set(run([*ctr, "list", "-q"]).split()) == wanted
        complete = run([*ctr, "check", "-q"]).split()
        assert set(complete) == wanted
    finally:
        run([*ctr, "rm", *sorted(wanted)])


def test_proxy_image_has_no_code_that_it_does_not_need(kube: ClusterUnderTest, namespace: Kubectl) -> None:
    listing = ["find", "/opt/gatehouse", "-name", "*.py"]
    _, log = run_once(namespace, "once", kube.image("proxy"), listing)
    files = {line.removeprefix("/opt/gatehouse/") for line in log.split()}
    assert "injector/istio_init.py" in files
    assert not {file for file in files if file.startswith(("ca/", "nodeagent/", "mesh/kube", "injector/app"))}
    assert len(files) < 18


def test_the_bookshop_works_without_a_mesh(kube: ClusterUnderTest, namespace: Kubectl) -> None:
    text = BOOKSHOP.read_text(encoding="utf-8")
    image = "gatehouse/bookshop:0.1.0"
    assert image in text
    namespace("apply", "-f", "-", stdin=text.replace(image, kube.image("bookshop")))
    namespace.wait_ready(count=6)
    page = ("python", "-m", "bookshop", "get", "http://productpage:9080/productpage")

    def whole() -> bool:
        code, said = namespace.execute("deploy/details-v1", "details", *page)
        return code == 0 and "Book Details" in said and "Book Reviews" in said and "Error" not in said

    wait_for("the whole page", whole, seconds=60)
