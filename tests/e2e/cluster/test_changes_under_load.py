"""What may happen to the mesh while it carries traffic: no request may notice."""

from __future__ import annotations

from tests.cluster.kubectl import Kubectl
from tests.cluster.load import Outcome, load
from tests.cluster.marks import CLUSTER
from tests.cluster.mesh import RELEASE, Mesh
from tests.cluster.outage import api_server_hangs, last, node_agents_hang, own
from tests.cluster.shop import PORT, open_shop, peer_authentication

pytestmark = CLUSTER

OUTAGE_SECONDS = 10


def no_failure(outcome: Outcome) -> None:
    assert outcome.failed == []
    assert outcome.ok > 100


def test_the_load_notices_a_failure(mesh: Mesh, injected: Kubectl) -> None:
    """The measure itself: without a server there are failures."""
    open_shop(mesh.kube, injected).wait_answer()
    with load(injected, "deploy/client", "app", "server", PORT) as outcome:
        injected("scale", "deployment/server", "--replicas=0")
        injected.wait_gone("pods", "--selector=app=server")
    assert outcome.ok > 0
    assert len(outcome.failed) > 1


def test_node_agents_restart(mesh: Mesh, injected: Kubectl) -> None:
    """G-03: and pods that are made afterwards get their identity."""
    shop = open_shop(mesh.kube, injected)
    shop.wait_answer()
    with load(injected, "deploy/client", "app", "server", PORT) as outcome:
        mesh.restart_agents()
    no_failure(outcome)
    injected("rollout", "restart", "deployment/client")
    injected("rollout", "status", "deployment/client", "--timeout=90s", timeout=100)
    shop.wait_answer()


def test_helm_upgrade_and_rollback(mesh: Mesh, injected: Kubectl) -> None:
    """Every process of the control plane is replaced, twice; the data plane does not care."""
    shop = open_shop(mesh.kube, injected)
    shop.wait_answer()
    with load(injected, "deploy/client", "app", "server", PORT) as outcome:
        mesh.install("--set=log.level=debug")
        mesh.helm("rollback", RELEASE)
        mesh.wait()
    no_failure(outcome)


def test_a_rollout_of_the_server(mesh: Mesh, injected: Kubectl) -> None:
    """Termination in classic mode: neither kept nor new connections lose a request (prototype-cluster S8)."""
    shop = open_shop(mesh.kube, injected, replicas=2)
    shop.wait_answer()
    with load(injected, "deploy/client", "app", "server", PORT) as outcome:
        injected("rollout", "restart", "deployment/server")
        injected("rollout", "status", "deployment/server", "--timeout=120s", timeout=130)
        injected.wait_gone("pods", "--selector=app=server", "--field-selector=status.phase=Failed")
    no_failure(outcome)


def test_the_authority_is_away(mesh: Mesh, injected: Kubectl) -> None:
    """G-01: traffic goes on without it, and a pod made meanwhile starts when it is back."""
    shop = open_shop(mesh.kube, injected)
    shop.wait_answer()
    ca = "deployment/gatehouse-ca"
    replicas = mesh.kubectl.get(ca)["spec"]["replicas"]
    with load(injected, "deploy/client", "app", "server", PORT) as outcome:
        mesh.kubectl("scale", ca, "--replicas=0")
        mesh.kubectl.wait_gone("pods", "--selector=app.kubernetes.io/component=ca")
        injected("scale", "deployment/client", "--replicas=2")
        mesh.kubectl("scale", ca, f"--replicas={replicas}")
        mesh.wait()
        injected.wait_ready("app=client", count=2)
    no_failure(outcome)


def test_the_api_server_hangs(mesh: Mesh, injected: Kubectl) -> None:
    """G-08: the data plane does not ask it."""
    own(mesh.kube)
    shop = open_shop(mesh.kube, injected)
    shop.wait_answer()
    with load(injected, "deploy/client", "app", "server", PORT) as outcome:
        with api_server_hangs(mesh.kube):
            last(OUTAGE_SECONDS)
        mesh.wait()
    no_failure(outcome)


def test_node_agents_hang(mesh: Mesh, injected: Kubectl) -> None:
    """G-03, the worse way: they are there and do not answer. Configuration follows when they are back."""
    own(mesh.kube)
    shop = open_shop(mesh.kube, injected)
    shop.wait_answer()
    with load(injected, "deploy/client", "app", "server", PORT) as outcome:
        with node_agents_hang(mesh.kube):
            injected.apply([peer_authentication("STRICT")])
            last(OUTAGE_SECONDS)
        mesh.wait()
    no_failure(outcome)
    assert "/sa/client" in shop.wait_answer("/headers")
