"""No policy is ignored in silence: it is refused when it is applied, or its status says what is wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mesh.kube import access
from mesh.kube.api import PatchType
from mesh.kube.client import KubeClient
from tests.cluster.kubectl import Kubectl, Object
from tests.cluster.marks import CLUSTER
from tests.cluster.mesh import Mesh
from tests.cluster.run import ClusterError, wait_for

pytestmark = CLUSTER

CONFIGURATION = "validatingwebhookconfiguration/gatehouse-policy-validator"
DENIED, NOT_CALLED = "denied the request", "failed calling webhook"
POLICY = "authorizationpolicy"


def policy(name: str, *keys: str) -> Object:
    """An AuthorizationPolicy with such conditions."""
    conditions: list[dict[str, Any]] = [{"key": key, "values": ["a"]} for key in keys]
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": name},
        # Selects nobody: the tests are about the object.
        "spec": {"selector": {"matchLabels": {"app": "nobody"}}, "rules": [{"when": conditions}]},
    }


def refusal(namespace: Kubectl, item: Object, *options: str) -> str:
    """What kubectl says about an object that must not be stored."""
    with pytest.raises(ClusterError) as refused:
        namespace("apply", *options, "-f", "-", stdin=json.dumps(item))
    return str(refused.value)


@pytest.fixture
def api(kubeconfig: Path) -> Iterator[KubeClient]:
    """For what older kubectl cannot do: a patch of the status."""
    client = KubeClient(access.find(kubeconfig), user_agent="policy-test")
    yield client
    client.close()


def condition(namespace: Kubectl, name: str) -> Object | None:
    """The condition Accepted of a policy."""
    status: Object = namespace.get(POLICY, name).get("status", {})
    found: list[Object] = [item for item in status.get("conditions", []) if item["type"] == "Accepted"]
    return found[0] if found else None


def minor(mesh: Mesh) -> int:
    """Of the API server's version 1.x."""
    found = json.loads(mesh.kube.kubectl("version", "-o", "json"))["serverVersion"]["minor"]
    return int(found.rstrip("+"))


def wait_condition(namespace: Kubectl, name: str, status: str, generation: int) -> Object:
    """The condition, once it is about that form of the object."""
    found: Object = {}

    def seen() -> bool:
        found.clear()
        found.update(condition(namespace, name) or {})
        return (found.get("status"), found.get("observedGeneration")) == (status, generation)

    wait_for(f"Accepted={status} of generation {generation}", seen, seconds=60)
    return found


@pytest.mark.parametrize("key", ["source.nonsense", "request.headers"])
@pytest.mark.usefixtures("mesh")
def test_a_broken_policy_is_refused_with_code_and_field(namespace: Kubectl, key: str) -> None:
    said = refusal(namespace, policy("broken", "source.namespace", key))
    assert DENIED in said
    assert "policy_bad_condition_key: AuthorizationPolicy" in said
    assert f'spec.rules[0].when[1].key: found "{key}"' in said
    assert "nothing was stored" in said
    assert namespace.items(POLICY) == []


@pytest.mark.usefixtures("mesh")
def test_every_problem_is_told_at_once(namespace: Kubectl) -> None:
    said = refusal(namespace, policy("broken", "request.headers", "source.nonsense"))
    for field in ("spec.rules[0].when[0].key", "spec.rules[0].when[1].key"):
        assert field in said


@pytest.mark.parametrize("place", ["istio-system", "kube-system"])
def test_policies_of_every_namespace_are_judged(mesh: Mesh, place: str) -> None:
    """The root namespace above all: what is in it concerns the whole mesh. A dry run is judged too."""
    said = refusal(mesh.kube.kubectl.within(place), policy("broken", "request.headers"), "--dry-run=server")
    assert DENIED in said
    assert "[policy_bad_condition_key]" in said


@pytest.mark.usefixtures("mesh")
def test_a_good_policy_is_accepted_and_each_form_of_it_is_judged(namespace: Kubectl) -> None:
    namespace.apply([policy("good", "request.headers[x-team]")])
    namespace("wait", f"{POLICY}/good", "--for=condition=Accepted", "--timeout=60s", timeout=70)
    first = wait_condition(namespace, "good", "True", 1)
    assert first["reason"] == "Accepted"
    namespace.apply([policy("good", "request.headers[x-other]")])
    second = wait_condition(namespace, "good", "True", 2)
    assert second["lastTransitionTime"] == first["lastTransitionTime"], "the status did not change"
    assert "True" in namespace("get", POLICY, "good").splitlines()[-1].split(), "the column Accepted"
    version = namespace.get(POLICY, "good")["metadata"]["resourceVersion"]
    namespace.apply([policy("good", "request.headers[x-other]")])
    assert namespace.get(POLICY, "good")["metadata"]["resourceVersion"] == version, "nothing is written anew"


def test_a_policy_that_came_unseen_is_not_accepted_and_can_be_repaired(
    mesh: Mesh, namespace: Kubectl
) -> None:
    """One from before the installation: its status has the reason; only what makes it worse is refused."""

    def stored() -> bool:
        """The API server takes a moment to forget a configuration."""
        try:
            namespace.apply([policy("old", "request.headers", "source.nonsense")])
        except ClusterError as error:
            if DENIED not in str(error):
                raise
            return False
        return True

    mesh.kube.kubectl("delete", CONFIGURATION)
    try:
        wait_for("an API server that asks nobody", stored, seconds=60)
        found = wait_condition(namespace, "old", "False", 1)
    finally:
        mesh.install()  # brings the configuration back
    assert found["reason"] == "PolicyBadConditionKey"
    assert "spec.rules[0].when[0].key" in found["message"]
    assert "[policy_bad_condition_key]" in found["message"]
    events = namespace.items("events", "--field-selector=reason=PolicyRefused")
    assert {event["involvedObject"]["name"] for event in events} == {"old"}

    def judged() -> bool:
        """And a moment to know it again."""
        try:
            namespace(
                "apply", "--dry-run=server", "-f", "-", stdin=json.dumps(policy("other", "source.nonsense"))
            )
        except ClusterError as error:
            return DENIED in str(error)
        return False

    wait_for("an API server that asks again", judged, seconds=60)
    namespace("label", POLICY, "old", "team=a")
    assert DENIED in refusal(namespace, policy("old", "request.headers", "source.nonsense", "worse"))
    namespace.apply([policy("old", "request.headers", "source.namespace")])
    wait_condition(namespace, "old", "False", 2)
    namespace.apply([policy("old", "request.headers[x-team]", "source.namespace")])
    wait_condition(namespace, "old", "True", 3)


def test_a_lost_webhook_prevents_no_repair(mesh: Mesh, namespace: Kubectl, api: KubeClient) -> None:
    """`failurePolicy: Fail`: nothing is stored unseen; deletion, status and labels are not held up."""
    injector = "deployment/gatehouse-injector"
    replicas = mesh.kubectl.get(injector)["spec"]["replicas"]
    namespace.apply([policy("shut", "source.namespace")])
    wait_condition(namespace, "shut", "True", 1)
    mesh.kubectl("scale", injector, "--replicas=0")
    try:
        mesh.kubectl.wait_gone("pods", "--selector=app.kubernetes.io/component=injector")
        assert NOT_CALLED in refusal(namespace, policy("late", "source.namespace"))
        if minor(mesh) >= 30:
            namespace("label", POLICY, "shut", "team=a")
        path = (
            f"/apis/security.istio.io/v1/namespaces/{namespace.namespace}/authorizationpolicies/shut/status"
        )
        api.patch(path, {"status": {"conditions": []}}, PatchType.MERGE)
        wait_condition(namespace, "shut", "True", 1)
        namespace("delete", POLICY, "shut")
    finally:
        mesh.kubectl("scale", injector, f"--replicas={replicas}")
        mesh.wait()
    namespace.apply([policy("late", "source.namespace")])
    wait_condition(namespace, "late", "True", 1)
