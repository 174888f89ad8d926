"""The init container on a real kubelet: what it may, what it does, and that it fails when it must."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.cluster.kubectl import Kubectl
from tests.cluster.marks import CLUSTER
from tests.cluster.objects import RESTRICTED, pod
from tests.cluster.run import wait_for
from tests.cluster.under_test import ClusterUnderTest

pytestmark = CLUSTER

# As root, with this one capability and nothing else.
CAPTURE: dict[str, Any] = {
    "runAsUser": 0,
    "runAsGroup": 0,
    "runAsNonRoot": False,
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN"]},
}


def istio_init(
    image: str, security: dict[str, Any], *, name: str = "istio-init", **config: Any
) -> dict[str, Any]:
    return {
        "name": name,
        "image": image,
        "command": ["python3", "-m", "injector.istio_init", "--config", json.dumps(config)],
        "securityContext": security,
    }


def connects(namespace: Kubectl, container: str, host: str, port: int) -> bool:
    """Whether a TCP connection from the container is taken by anyone."""
    script = f"import socket; socket.create_connection(({host!r}, {port}), 3)"
    code, _ = namespace.execute("captured", container, "python3", "-c", script)
    return code == 0


def test_captures_with_net_admin_alone_and_twice(kube: ClusterUnderTest, namespace: Kubectl) -> None:
    """X-rows of prototype-cluster 2: NET_ADMIN only, no new privileges, read-only root; safe to repeat."""
    bookshop, proxy = kube.image("bookshop"), kube.image("proxy")
    captured = pod(
        "captured",
        bookshop,
        args=["details"],
        init=[istio_init(proxy, CAPTURE), istio_init(proxy, CAPTURE, name="again")],
    )
    # A second container with the proxy's user, which the rules let through.
    captured["spec"]["containers"].append(
        {
            "name": "istio-proxy",
            "image": proxy,
            "command": ["sleep", "600"],
            "securityContext": {**RESTRICTED, "runAsUser": 1337, "runAsGroup": 1337},
        }
    )
    namespace.apply([captured, pod("server", bookshop, args=["details"])])
    pods = {item["metadata"]["name"]: item for item in namespace.wait_ready(count=2)}
    server = pods["server"]["status"]["podIP"]
    for init in ("istio-init", "again"):
        assert "capture is in place and verified (nft" in namespace("logs", "captured", "-c", init)
    wait_for("the server", lambda: connects(namespace, "istio-proxy", server, 9080), seconds=60)
    # No Envoy listens on 15001 and 15006: what is captured finds nobody.
    assert not connects(namespace, "app", server, 9080)
    assert connects(namespace, "app", "127.0.0.1", 9080)
    script = f"import socket; socket.create_connection(({pods['captured']['status']['podIP']!r}, 9080), 3)"
    code, said = namespace.execute("server", "app", "python3", "-c", script)
    assert (code, "Connection refused" in said) == (1, True)


@pytest.mark.parametrize(
    ("change", "config", "status", "says"),
    [
        ({"capabilities": {"drop": ["ALL"]}}, {}, 1, "neither nft nor iptables works here"),
        ({"runAsUser": 1337, "runAsGroup": 1337}, {}, 1, "neither nft nor iptables works here"),
        ({}, {"nonsense": 1}, 2, "allowed keys are"),
    ],
    ids=["no-capability", "not-root", "unknown-option"],
)
def test_a_pod_without_capture_does_not_start(
    kube: ClusterUnderTest,
    namespace: Kubectl,
    change: dict[str, Any],
    config: dict[str, Any],
    status: int,
    says: str,
) -> None:
    """Test list 15 of prototype-cluster: a failing nft must fail the container."""
    init = istio_init(kube.image("proxy"), {**CAPTURE, **change}, **config)
    namespace.apply([pod("captured", kube.image("bookshop"), args=["details"], init=[init], restart="Never")])

    def ended() -> bool:
        states = namespace.get("pod", "captured")["status"].get("initContainerStatuses", [{}])
        return "terminated" in states[0].get("state", {})

    wait_for("the end of istio-init", ended, seconds=60)
    found = namespace.get("pod", "captured")["status"]
    assert found["initContainerStatuses"][0]["state"]["terminated"]["exitCode"] == status
    assert says in namespace("logs", "captured", "-c", "istio-init")
    assert "running" not in found["containerStatuses"][0]["state"]
