"""A rotation of roots on a cluster under load: told, acknowledged, switched, retired; no request notices."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from mesh.ca_status import CONFIG_MAP, Phase
from tests.cluster.kubectl import Kubectl
from tests.cluster.load import load
from tests.cluster.marks import CLUSTER
from tests.cluster.mesh import Mesh
from tests.cluster.outage import node_agents_hang, own
from tests.cluster.run import wait_for
from tests.cluster.shop import PORT, Shop, open_shop, peer_authentication

pytestmark = CLUSTER

PATIENCE = 180


@pytest.fixture(scope="module")
def hasty(mesh: Mesh) -> Iterator[Mesh]:
    """The mesh, with an authority that waits no hour before it uses a root."""
    mesh.install("--set=ca.rotation.hold=5s")
    yield mesh
    mesh.install()


def status(mesh: Mesh) -> dict[str, Any]:
    """What `meshctl ca status` says, for programs."""
    code, said = mesh.meshctl("ca", "status", "--output=json")
    if not said.startswith("{"):  # nobody leads yet
        return {"phase": f"{code}: {said}"}
    found = json.loads(said)
    assert isinstance(found, dict)
    return found


def ask(mesh: Mesh, *words: str) -> tuple[int, str]:
    return mesh.meshctl("ca", *words)


def wait_status(mesh: Mesh, what: str, **wanted: Any) -> dict[str, Any]:
    """The status, as soon as it has these values."""
    found: dict[str, Any] = {}

    def there() -> bool:
        nonlocal found
        found = status(mesh)
        return all(found.get(name) == value for name, value in wanted.items())

    wait_for(f"a rotation that is {what}", there, seconds=PATIENCE, every=1)
    return found


def identity(mesh: Mesh, shop: Kubectl, app: str) -> dict[str, Any]:
    """What the agent serves to a pod."""
    namespace = shop.get("serviceaccount/default")["metadata"]["namespace"]
    code, said = mesh.meshctl("identity", shop.pod(f"app={app}"), f"--namespace={namespace}", "--output=json")
    assert code == 0, said
    found = json.loads(said)
    assert isinstance(found, dict)
    return found


def roots(found: dict[str, Any]) -> list[str]:
    return sorted(root["serial"] for root in found["roots"])


def published(kubectl: Kubectl) -> int:
    text = kubectl.get("configmap/istio-ca-root-cert")["data"]["root-cert.pem"]
    return int(text.count("BEGIN CERTIFICATE"))


def test_roots_rotate_under_load(hasty: Mesh, injected: Kubectl) -> None:
    """The whole of it: no request fails, nothing is restarted, and nothing of the former root is left."""
    shop = open_shop(hasty.kube, injected)
    injected.apply([peer_authentication("STRICT")])
    shop.wait_answer()
    before = wait_status(hasty, "stable", phase=Phase.STABLE)
    agents = len(hasty.kube.nodes())
    held = identity(hasty, injected, "client")
    assert len(held["roots"]) == 1
    with load(injected, "deploy/client", "app", "server", PORT) as outcome:
        code, said = ask(hasty, "prepare")
        assert code == 0, said

        # It goes on by itself, once every agent has acknowledged the roots.
        active = wait_status(hasty, "active", phase=Phase.ACTIVE)
        assert active["epoch"] == before["epoch"] + 1
        assert active["agents"]["acked"] == active["agents"]["expected"] == agents
        assert active["agents"]["outdated"] >= 2
        told = identity(hasty, injected, "client")
        assert len(told["roots"]) == 2
        assert told["chain"][0]["serial"] == held["chain"][0]["serial"], "a bundle made a certificate"
        assert published(injected) == 2

        # A replica of the authority that starts now, and a pod that starts now, fit in.
        hasty.kubectl("rollout", "restart", "deployment/gatehouse-ca")
        hasty.wait()
        injected("scale", "deployment/server", "--replicas=2")
        injected.wait_ready("app=server", count=2)

        code, said = ask(hasty, "retire")
        assert code == 1, said
        assert "rotation_leaves" in said
        code, said = ask(hasty, "taint", "--within=5s")
        assert code == 0, said
        wait_outdated(hasty, 0)
        moved = identity(hasty, injected, "client")
        assert moved["chain"][0]["serial"] != held["chain"][0]["serial"]
        assert len(moved["chain"]) == 3, "leaf, intermediate, and the new root signed by the former one"

        # Every workload has moved: what is waited for is time, and a person may shorten it.
        code, said = ask(hasty, "retire", "--force", "--yes")
        assert code == 0, said
        after = wait_status(hasty, "stable again", phase=Phase.STABLE)
        wait_for(
            "the new root alone", lambda: len(identity(hasty, injected, "client")["roots"]) == 1, seconds=90
        )
        wait_for("it in the namespace", lambda: published(injected) == 1, seconds=60)
    assert outcome.failed == []
    assert outcome.ok > 100
    assert after["generation"] > active["generation"]
    assert after["epoch"] == active["epoch"]
    assert [root["role"] for root in after["roots"]] == ["signing"]
    assert roots(identity(hasty, injected, "client")) != roots(held)
    assert former_keys(hasty) == []
    # The webhook, the agents and the authority go on with it.
    hasty.restart_agents()
    injected("rollout", "restart", "deployment/client")
    injected("rollout", "status", "deployment/client", "--timeout=120s", timeout=130)
    shop.wait_answer()
    code, said = hasty.meshctl("check")
    assert code == 0, said


def wait_outdated(mesh: Mesh, number: int) -> None:
    wait_for(
        f"{number} certificates of the former root",
        lambda: status(mesh)["agents"]["outdated"] == number,
        seconds=PATIENCE,
        every=1,
    )


def former_keys(mesh: Mesh) -> list[str]:
    """Files of the Secret that a rotation needs and a stable authority does not."""
    data = mesh.kubectl.get(f"secret/{CONFIG_MAP}")["data"]
    return sorted(name for name in data if name.startswith("next-") or name == "cross-cert.pem")


def test_an_agent_that_does_not_answer_holds_it_up(hasty: Mesh, injected: Kubectl) -> None:
    """Nothing is used that somebody has not acknowledged; it is named, and can be taken back."""
    own(hasty.kube)
    shop: Shop = open_shop(hasty.kube, injected)
    shop.wait_answer()
    before = wait_status(hasty, "stable", phase=Phase.STABLE)
    with load(injected, "deploy/client", "app", "server", PORT) as outcome:
        with node_agents_hang(hasty.kube):
            code, said = ask(hasty, "prepare")
            assert code == 0, said
            code, said = ask(hasty, "activate")
            assert code == 1, said
            waiting = wait_waiting(hasty, "rotation_agents")
            assert waiting["phase"] == Phase.PREPARED
            assert waiting["agents"]["acked"] == 0
            assert len(waiting["agents"]["missing"]) == len(hasty.kube.nodes())
            code, said = ask(hasty, "abort")
            assert code == 0, said
        hasty.wait()
    assert outcome.failed == []
    after = wait_status(hasty, "stable", phase=Phase.STABLE)
    assert after["roots"] == before["roots"]
    assert after["epoch"] == before["epoch"]
    assert after["generation"] == before["generation"] + 2
    assert former_keys(hasty) == []


def wait_waiting(mesh: Mesh, code: str) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def there() -> bool:
        nonlocal found
        found = status(mesh)
        return code in {item["code"] for item in found.get("waiting", ())}

    wait_for(f"a rotation that waits: {code}", there, seconds=60, every=1)
    return found
