"""Two workloads in the mesh, on different nodes: what most tests start from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests.cluster.kubectl import Kubectl
from tests.cluster.objects import account, deployment, pod, service
from tests.cluster.run import wait_for
from tests.cluster.under_test import ClusterUnderTest

PORT = 9080
PROBES: dict[str, Any] = {
    "readinessProbe": {
        "httpGet": {"path": "/health", "port": PORT},
        "periodSeconds": 1,
        "failureThreshold": 2,
    },
    "livenessProbe": {
        "httpGet": {"path": "/health", "port": PORT},
        "periodSeconds": 2,
        "failureThreshold": 3,
    },
}
# For many pods on few processors: they are asked seldom, and are not killed for answering late.
PATIENT: dict[str, Any] = {
    "readinessProbe": {"httpGet": {"path": "/health", "port": PORT}, "periodSeconds": 2, "timeoutSeconds": 10}
}
# Many sidecars on two processors: what they ask for must not keep pods from being scheduled.
SMALL = {"sidecar.istio.io/proxyCPU": "1m", "sidecar.istio.io/proxyMemory": "16Mi"}


@dataclass(frozen=True, slots=True)
class Shop:
    """A `server` with its Service and a `client`, each with a service account of its own."""

    kubectl: Kubectl

    def get(self, path: str, *, host: str = "server", caller: str = "client") -> tuple[bool, str]:
        """Whether a GET from the caller's container answered 200, and what was said."""
        code, said = self.kubectl.execute(
            f"deploy/{caller}", "app", "python", "-m", "bookshop", "get", f"http://{host}:{PORT}{path}"
        )
        return code == 0, said

    def wait_answer(self, path: str = "/health", **where: str) -> str:
        """What a GET says, as soon as it answers 200."""
        said = ""

        def answers() -> bool:
            nonlocal said
            good, said = self.get(path, **where)
            return good

        wait_for(f"an answer of {where or 'server'} {path}", answers, seconds=60)
        return said

    def wait_refused(self, **where: str) -> str:
        """What a GET says, as soon as it is refused."""
        said = ""

        def refused() -> bool:
            nonlocal said
            good, said = self.get("/health", **where)
            return not good

        wait_for(f"a refusal of {where or 'server'}", refused, seconds=60)
        return said


def open_shop(kube: ClusterUnderTest, kubectl: Kubectl, *, replicas: int = 1) -> Shop:
    """Deploy server and client on different nodes and wait until they are Ready."""
    nodes = kube.nodes()
    kubectl.apply([account("server"), account("client"), service("server", PORT)])
    kubectl.apply(
        [
            workload(kube, "server", nodes[0], replicas=replicas),
            workload(kube, "client", nodes[1]),
        ]
    )
    kubectl.wait_ready(count=1 + replicas)
    return Shop(kubectl)


def workload(
    kube: ClusterUnderTest,
    name: str,
    node: str = "",
    *,
    replicas: int = 1,
    probes: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """A Deployment that serves the bookshop's `details`."""
    template = pod(
        name,
        kube.image("bookshop"),
        args=["details"],
        node=node,
        account=name,
        ports=[PORT],
        annotations=SMALL,
        container=PROBES if probes is None else probes,
    )
    return deployment(template, replicas)


def peer_authentication(mode: str, name: str = "default") -> dict[str, Any]:
    """A rule for the whole namespace."""
    return {
        "apiVersion": "security.istio.io/v1beta1",
        "kind": "PeerAuthentication",
        "metadata": {"name": name},
        "spec": {"mtls": {"mode": mode}},
    }
