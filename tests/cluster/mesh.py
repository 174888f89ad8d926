"""Gatehouse in the cluster under test: the chart, installed with the images of the working tree."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from tests.cluster.kubectl import Kubectl, Object
from tests.cluster.layout import REPOSITORY
from tests.cluster.run import ClusterError, wait_for
from tests.cluster.under_test import ClusterUnderTest
from tests.fakes.helm import CHART, helm

NAMESPACE, RELEASE = "istio-system", "gatehouse"
TRUST_DOMAIN = "cluster.local"
WEBHOOKS = ("mutatingwebhookconfigurations", "validatingwebhookconfigurations")
# Where a release may leave something: kinds of the cluster, and kinds in every namespace.
_KINDS = (
    *("clusterroles", "clusterrolebindings", *WEBHOOKS),
    *("csidrivers", "crds", "priorityclasses"),
    *("configmaps", "secrets", "services", "serviceaccounts", "deployments", "daemonsets", "pods", "leases"),
    *("roles", "rolebindings", "networkpolicies", "poddisruptionbudgets", "horizontalpodautoscalers"),
)
_LABELLED_BY_HAND = ("kube-system", "kube-public", "kube-node-lease", NAMESPACE)


@dataclass(frozen=True, slots=True)
class Mesh:
    """An installed release."""

    kube: ClusterUnderTest

    @property
    def kubectl(self) -> Kubectl:
        """In the release's namespace."""
        return self.kube.kubectl.within(NAMESPACE)

    def helm(self, *words: str, timeout: float = 180) -> str:
        """A helm command against the cluster, in the release's namespace."""
        place = (f"--kubeconfig={self.kube.kubectl.kubeconfig}", f"--namespace={NAMESPACE}")
        return helm(*words, *place, timeout=timeout)

    def meshctl(self, *words: str) -> tuple[int, str]:
        """Exit code and output (both streams) of a meshctl command against the cluster."""
        command = [sys.executable, "-m", "meshctl", *words, f"--kubeconfig={self.kube.kubectl.kubeconfig}"]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=200, check=False, cwd=REPOSITORY
        )
        return done.returncode, done.stdout + done.stderr

    def install(self, *options: str) -> None:
        """`helm upgrade --install`, and wait until everything is ready.

        Raises:
            ClusterError: with the state of the pods.
        """
        images = (f"--set=image.registry={self.kube.registry}", f"--set=image.tag={self.kube.tag}")
        self.helm("upgrade", "--install", "--create-namespace", RELEASE, str(CHART), *images, *options)
        self._label_namespaces()
        self.wait()

    def wait(self, seconds: float = 120) -> None:
        """Wait until all Deployments and DaemonSets have what they want, and the webhooks can be called."""
        try:
            wait_for("the control plane", self._settled, seconds=seconds, every=0.5)
        except ClusterError as error:
            raise ClusterError(f"{error}\n{self.kubectl.story()}\n{self._last_words()}") from error

    def uninstall(self) -> None:
        """`helm uninstall`; the release's namespace stays, as Helm leaves it.

        Waits for the namespace of `helm test`: one that is on its way out would be taken over by the next
        installation, and be gone a moment later.
        """
        self.helm("uninstall", RELEASE, "--wait")

    def leftovers(self) -> set[str]:
        """Every object whose name or label speaks of the release or the mesh, as kind/namespace/name."""
        found = set()
        for item in self.kube.kubectl.items(",".join(_KINDS), "--all-namespaces"):
            meta = item["metadata"]
            labels = {**meta.get("labels", {}), **meta.get("annotations", {})}
            ours = RELEASE in meta["name"] or meta["name"].startswith("istio-") or RELEASE in labels.values()
            if ours or meta["name"].endswith("security.istio.io"):
                found.add(f"{item['kind']}/{meta.get('namespace', '')}/{meta['name']}")
        return found

    def restart_agents(self) -> None:
        """Replace every node agent and wait until the new ones are ready."""
        self.kubectl("rollout", "restart", f"daemonset/{RELEASE}-nodeagent")
        self.kubectl("rollout", "status", f"daemonset/{RELEASE}-nodeagent", "--timeout=120s", timeout=130)

    def _label_namespaces(self) -> None:
        """What Kubernetes does by itself since 1.21, and the chart's notes ask for before."""
        for name in _LABELLED_BY_HAND:
            self.kube.kubectl(
                "label", "--overwrite", "namespace", name, f"kubernetes.io/metadata.name={name}"
            )

    def _settled(self) -> bool:
        selector = f"--selector=app.kubernetes.io/instance={RELEASE}"
        configurations = self.kube.kubectl.items(",".join(WEBHOOKS), selector)
        return all(map(_settled, self.kubectl.items("deployments,daemonsets", selector))) and all(
            webhook["clientConfig"].get("caBundle") for item in configurations for webhook in item["webhooks"]
        )

    def _last_words(self) -> str:
        said = []
        for item in self.kubectl.pods():
            name = item["metadata"]["name"]
            try:
                said.append(f"{name}: " + self.kubectl("logs", name, "--all-containers", "--tail=5"))
            except ClusterError as error:
                said.append(f"{name}: {error}")
        return "\n".join(said)


def _settled(item: Object) -> bool:
    status: dict[str, Any] = item["status"]
    if status.get("observedGeneration") != item["metadata"]["generation"]:
        return False
    if item["kind"] == "DaemonSet":
        wanted = status["desiredNumberScheduled"]
        return bool(wanted == status.get("numberReady", 0) == status.get("updatedNumberScheduled", 0))
    wanted = item["spec"]["replicas"]
    counts = {status.get(field, 0) for field in ("replicas", "updatedReplicas", "readyReplicas")}
    return counts == {wanted}
