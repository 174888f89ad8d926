"""meshctl on a real cluster, named by KUBECONFIG: what the fake API server cannot prove.

Reads and dry runs only, so it may run beside anything; rows about an installation need one.
"""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import pytest

from tests.fakes.meshctl_cli import Ran, ctl

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]


@pytest.fixture(autouse=True)
def kubeconfig() -> str:
    found = os.environ.get("KUBECONFIG", "")
    if not found:
        pytest.skip("KUBECONFIG names no cluster")
    return found


def rows(ran: Ran) -> dict[str, dict[str, object]]:
    return {row["check"]: row for row in json.loads(ran.out)["rows"]}


@pytest.fixture
def installed() -> dict[str, dict[str, object]]:
    """Rows of a check, once an installation that has just begun is complete."""
    end = time.monotonic() + 60
    while True:
        ran = ctl("check", "-o", "json")
        found = rows(ran)
        if found.get("installed", {}).get("status") != "ok":
            pytest.skip("Gatehouse is not installed in this cluster")
        if ran.code == 0 or time.monotonic() > end:
            return found
        threading.Event().wait(1)


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
