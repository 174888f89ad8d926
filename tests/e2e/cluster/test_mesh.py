"""Label a namespace, and its pods have identity: the whole path on two nodes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest

from tests.cluster.kubectl import Kubectl
from tests.cluster.marks import CLUSTER
from tests.cluster.mesh import TRUST_DOMAIN, Mesh
from tests.cluster.objects import account, pod
from tests.cluster.run import wait_for
from tests.cluster.shop import open_shop, peer_authentication, workload

pytestmark = CLUSTER


def containers(item: dict[str, object]) -> list[str]:
    spec = item["spec"]
    assert isinstance(spec, dict)
    return [container["name"] for container in spec["containers"]]


def test_a_labelled_namespace_gives_two_of_two(mesh: Mesh, injected: Kubectl) -> None:
    """INJ-01, INJ-09, INJ-12, INJ-15, INJ-23."""
    said = injected.apply([account("server"), workload(mesh.kube, "server")])
    assert "Warning" not in said
    (item,) = injected.wait_ready()
    assert sorted(containers(item)) == ["app", "istio-proxy"]
    assert [container["name"] for container in item["spec"]["initContainers"]] == ["istio-init"]
    assert [(status["ready"], status["restartCount"]) for status in item["status"]["containerStatuses"]] == [
        (True, 0),
        (True, 0),
    ]
    status = json.loads(item["metadata"]["annotations"]["sidecar.istio.io/status"])
    assert status["reason"] == "injected"
    described = injected("describe", "pod", item["metadata"]["name"])
    assert re.search(r"istio-init:.*istio-proxy:", described, re.DOTALL)
    assert mesh.kube.image("proxy") in described


def test_no_label_no_sidecar(mesh: Mesh, namespace: Kubectl) -> None:
    """INJ-05."""
    namespace.apply([account("server"), workload(mesh.kube, "server")])
    (item,) = namespace.wait_ready()
    assert containers(item) == ["app"]


@pytest.mark.parametrize("where", ["annotations", "labels"])
def test_a_pod_that_opts_out_is_left_alone_and_says_why(mesh: Mesh, injected: Kubectl, where: str) -> None:
    """INJ-04: an Event tells of an annotation; a label is the API server's affair, `meshctl` tells."""
    item = pod("loner", mesh.kube.image("bookshop"), args=["details"])
    item["metadata"][where]["sidecar.istio.io/inject"] = "false"
    injected.apply([item])
    (found,) = injected.wait_ready()
    assert containers(found) == ["app"]
    if where == "annotations":
        wait_for("the Event", lambda: "pod_opt_out" in json.dumps(injected.items("events")), seconds=60)
    code, said = mesh.meshctl("explain", "inject", "loner", f"--namespace={injected.namespace}")
    assert (code, "pod_opt_out" in said) == (1, True), said


def test_calls_between_nodes_are_mutual_tls_with_the_right_identities(mesh: Mesh, injected: Kubectl) -> None:
    """ID-01, ID-06, ID-07: what the server is told of its caller, and of itself."""
    shop = open_shop(mesh.kube, injected)
    pods = {item["metadata"]["labels"]["app"]: item["spec"]["nodeName"] for item in injected.pods()}
    assert pods["server"] != pods["client"]
    headers = json.loads(shop.wait_answer("/headers"))["headers"]
    base = f"spiffe://{TRUST_DOMAIN}/ns/{injected.namespace}/sa"
    peer = headers["x-forwarded-client-cert"]
    assert f"By={base}/server" in peer
    assert f"URI={base}/client" in peer
    assert re.search(r"Hash=[0-9a-f]{64}", peer)


def test_a_spoofed_identity_header_does_not_arrive(mesh: Mesh, injected: Kubectl) -> None:
    shop = open_shop(mesh.kube, injected)
    shop.wait_answer()
    script = (
        "import urllib.request as u; print(u.urlopen(u.Request('http://server:9080/headers',"
        " headers={'X-Forwarded-Client-Cert': 'URI=spiffe://evil'})).read().decode())"
    )
    code, said = injected.execute("deploy/client", "app", "python", "-c", script)
    assert code == 0, said
    assert "evil" not in said
    assert "/sa/client" in said


def test_strict_shuts_out_a_pod_without_a_sidecar(
    mesh: Mesh, injected: Kubectl, new_namespace: Callable[..., Kubectl]
) -> None:
    """AN-06, AN-08, AN-12: PERMISSIVE lets it in, STRICT does not, and the mesh's own calls go on."""
    shop = open_shop(mesh.kube, injected)
    outside = new_namespace()
    outside.apply([pod("plain", mesh.kube.image("bookshop"), args=["details"])])
    outside.wait_ready()
    host = f"server.{injected.namespace}"
    get = ("python", "-m", "bookshop", "get", f"http://{host}:9080/headers")

    def plain() -> tuple[bool, str]:
        code, said = outside.execute("plain", "app", *get)
        return code == 0, said

    wait_for("a plaintext answer under PERMISSIVE", lambda: plain()[0], seconds=60)
    assert "x-forwarded-client-cert" not in plain()[1]
    injected.apply([peer_authentication("STRICT")])
    wait_for("no plaintext under STRICT", lambda: not plain()[0], seconds=60)
    assert re.search(r"reset|closed|RemoteDisconnected", plain()[1], re.IGNORECASE)
    assert "/sa/client" in shop.wait_answer("/headers")
    injected("delete", "peerauthentication", "default")
    wait_for("a plaintext answer again", lambda: plain()[0], seconds=60)


def test_probes_pass_under_strict(mesh: Mesh, injected: Kubectl) -> None:
    """INJ-28, P-20: pods that are made and live under STRICT become Ready and stay so, without a restart."""
    injected.apply([peer_authentication("STRICT")])
    shop = open_shop(mesh.kube, injected)
    shop.wait_answer()
    checks = ("python", "-m", "bookshop", "get", "http://127.0.0.1:9080/health")

    def checked() -> bool:
        _, said = injected.execute("deploy/server", "app", *checks)
        return int(json.loads(said)["checks"]) >= 20

    wait_for("twenty probes", checked, seconds=120)
    for item in injected.pods():
        assert all(status["restartCount"] == 0 for status in item["status"]["containerStatuses"])
        assert all(status["ready"] for status in item["status"]["containerStatuses"])


def test_deleting_an_injected_pod_leaves_nothing_terminating(mesh: Mesh, injected: Kubectl) -> None:
    injected.apply([account("server"), workload(mesh.kube, "server")])
    injected.wait_ready()
    injected("delete", "deployment", "server")
    injected.wait_gone("pods")


def test_meshctl_finds_nothing_wrong_and_knows_who_a_pod_is(mesh: Mesh, injected: Kubectl) -> None:
    injected.apply([account("server"), workload(mesh.kube, "server")])
    (item,) = injected.wait_ready()
    code, said = mesh.meshctl("check")
    assert code == 0, said
    name = item["metadata"]["name"]
    code, said = mesh.meshctl("identity", name, f"--namespace={injected.namespace}")
    assert code == 0, said
    assert f"spiffe://{TRUST_DOMAIN}/ns/{injected.namespace}/sa/server" in said
    code, said = mesh.meshctl("explain", "inject", name, f"--namespace={injected.namespace}")
    assert code == 0, said
