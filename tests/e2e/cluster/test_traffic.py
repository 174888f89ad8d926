"""`meshctl check --traffic` and `helm test`: does identity work in this cluster right now?"""

from __future__ import annotations

import json
from typing import Any

from tests.cluster.marks import CLUSTER
from tests.cluster.mesh import RELEASE, Mesh

pytestmark = CLUSTER

ROWS = ("pods", "identity", "rules", "plaintext", "tokens", "finished")
MADE = (
    "services,serviceaccounts,roles,rolebindings,"
    "peerauthentications,requestauthentications,authorizationpolicies"
)


def try_traffic(mesh: Mesh) -> tuple[int, dict[str, dict[str, Any]]]:
    """Exit code and rows of `meshctl check --traffic`, by their names without `traffic-`."""
    code, said = mesh.meshctl("check", "--traffic", "-o", "json")
    rows = [row for row in json.loads(said)["rows"] if row["section"] == "traffic"]
    return code, {row["check"].removeprefix("traffic-"): row for row in rows}


def test_all_is_well_and_nothing_is_left(mesh: Mesh) -> None:
    code, rows = try_traffic(mesh)
    assert {name: row["status"] for name, row in rows.items()} == dict.fromkeys(ROWS, "ok")
    assert code == 0
    namespace = rows["pods"]["message"].partition(" in ")[2].partition(",")[0]
    mesh.kubectl.wait_gone("namespaces", f"--field-selector=metadata.name={namespace}")


def test_a_rule_that_lets_nobody_in_is_found_and_named(mesh: Mesh) -> None:
    deny = {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": "nobody"},
        "spec": {"action": "DENY", "rules": [{}]},
    }
    mesh.kubectl.apply([deny])
    try:
        code, rows = try_traffic(mesh)
    finally:
        mesh.kubectl("delete", "authorizationpolicy", "nobody")
    assert {name: row["status"] for name, row in rows.items()} == {
        **dict.fromkeys(ROWS, "ok"),
        "identity": "fail",
        "tokens": "fail",
    }
    assert code == 1
    assert "got 403 RBAC: access denied; wanted 200" in rows["identity"]["objects"][0]
    assert "kubectl -n istio-system get authorizationpolicies" in rows["identity"]["next"]


def test_helm_test_is_content_twice_and_leaves_nothing(mesh: Mesh) -> None:
    """One right after the other: the second does not stumble over what the first takes away."""
    own = mesh.kubectl.within(f"{RELEASE}-test")
    for _ in range(2):
        said = mesh.helm("test", RELEASE, "--timeout=180s", timeout=200)
        assert "Succeeded" in said
        assert "Failed" not in said
        names = mesh.kubectl(
            "get", "pods,serviceaccounts,clusterroles,clusterrolebindings", "-o", "name"
        ).split()
        assert not [name for name in names if name.endswith(f"/{RELEASE}-test")]
        left = own("get", MADE, "-o", "name").split()
        assert [name for name in left if name != "serviceaccount/default"] == []
    own.wait_gone("pods")
