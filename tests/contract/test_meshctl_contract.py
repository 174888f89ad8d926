"""meshctl on a real cluster: what the fake API server cannot prove. Reads and dry runs only."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cluster.marks import CLUSTER
from tests.cluster.mesh import Mesh
from tests.fakes.meshctl_cli import Ran, ctl

pytestmark = [*CLUSTER, pytest.mark.usefixtures("kubeconfig")]


def rows(ran: Ran) -> dict[str, dict[str, object]]:
    return {row["check"]: row for row in json.loads(ran.out)["rows"]}


@pytest.fixture
def installed(mesh: Mesh) -> dict[str, dict[str, object]]:
    """Rows of a check of a complete installation."""
    ran = ctl("check", "-o", "json")
    assert ran.code == 0, ran.out
    return rows(ran)


def test_before_the_installation() -> None:
    found = rows(ctl("check", "--pre", "-o", "json"))
    for name in ("api-version", "csi-tokens", "token-keys", "rights", "nodes", "node-clocks"):
        assert found[name]["status"] == "ok", found[name]


def test_dry_runs_leave_nothing() -> None:
    from mesh.kube.access import find
    from mesh.kube.api import KubeError
    from mesh.kube.client import KubeClient

    ctl("check", "--pre")
    api = KubeClient(find(), user_agent="meshctl-test")
    try:
        with pytest.raises(KubeError) as refused:
            api.get("/apis/storage.k8s.io/v1/csidrivers/meshctl-check.csi.gatehouse.dev")
        assert refused.value.status == 404
        pods = api.get("/api/v1/pods")["items"]
    finally:
        api.close()
    assert not [p for p in pods if p["metadata"]["name"].startswith("meshctl-check-")]


def test_after_the_installation(installed: dict[str, dict[str, object]]) -> None:
    for name in (
        "ca-bundle",
        "webhook-call",
        "policy-webhook",
        "policies",
        "csi-driver",
        "node-agents",
        "roots",
        "root-lifetime",
        "protected",
    ):
        assert installed[name]["status"] == "ok", installed[name]


def test_explain_and_identity_of_every_kind_of_pod(
    installed: dict[str, dict[str, object]], tmp_path: Path
) -> None:
    file = tmp_path / "pod.yaml"
    file.write_text(
        "kind: Pod\nmetadata: {name: p, labels: {sidecar.istio.io/inject: 'true'}}\n"
        "spec: {containers: [{name: a, image: b}]}\n"
    )
    found = json.loads(ctl("explain", "inject", "-n", "default", "-f", str(file), "-o", "json").out)[0]
    assert found["injected"], found
    assert [w["webhook"] for w in found["webhooks"] if w["called"]] == [
        "object.sidecar-injector.gatehouse.dev"
    ]
    kept = ctl("explain", "inject", "-n", "kube-system", "-f", str(file), "-o", "json")
    assert (kept.code, json.loads(kept.out)[0]["decision"]["code"]) == (1, "system_namespace")
