"""`meshctl check`: every row, good and bad, against the fake API server."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mesh.ca_status import Phase, Step, Waiting
from meshctl.check import AFTER
from meshctl.checks.before import BEFORE
from tests.fakes.ca_status import status_map
from tests.fakes.kube_api import FakeKube
from tests.fakes.meshctl_check import check, rows
from tests.fakes.meshctl_cli import golden_script
from tests.fakes.meshctl_cluster import (
    NAMESPACE,
    POLICIES,
    VALIDATION,
    agent_pod,
    csi_driver,
    csi_node,
    deployment,
    empty,
    injected,
    install,
    istio_configuration,
    namespace,
    pod,
    root_map,
    root_pem,
    validating_configuration,
    webhook_configuration,
)
from tests.fakes.policy_reviews import stored, when

Change = Callable[[FakeKube], object]


@pytest.fixture
def kube() -> Iterator[FakeKube]:
    with FakeKube() as found:
        yield found


def names(tmp_path: Path) -> dict[str, str]:
    return {f" --kubeconfig {tmp_path}/kubeconfig": ""}


def test_all_is_well_after_the_installation(kube: FakeKube, tmp_path: Path) -> None:
    install(kube)
    ran = check(kube, tmp_path)
    golden_script("check-good", ran, names=names(tmp_path))
    assert ran.code == 0


def test_all_is_well_before_the_installation(kube: FakeKube, tmp_path: Path) -> None:
    empty(kube)
    ran = check(kube, tmp_path, "--pre")
    golden_script("check-pre-good", ran, names=names(tmp_path))
    writes = [r for r in kube.requests if r.method != "GET"]
    assert all(r.query.get("dryRun") == "All" or "accessreview" in r.path for r in writes)
    assert kube.find("CSIDriver", "meshctl-check.csi.gatehouse.dev") is None


def test_everything_is_wrong(kube: FakeKube, tmp_path: Path) -> None:
    install(kube)
    kube.add(webhook_configuration(), istio_configuration(), csi_driver(tokenRequests=None))
    kube.add(validating_configuration())
    kube.routes["POST", POLICIES] = lambda request: (201, request.body)
    kube.add(
        deployment("injector", 2, 0), root_map("shop", "other"), namespace("odd", istio_injection="true")
    )
    kube.remove("Pod", "gatehouse-nodeagent-node1", NAMESPACE)
    kube.add(pod("web-5d9c-plain"), pod("web-5d9c-plain2"))
    text = 'failed calling webhook "namespace.sidecar-injector.gatehouse.dev": x509: unknown authority'
    kube.routes["POST", "/api/v1/namespaces/shop/pods"] = lambda _request: (500, status(500, text))
    ran = check(kube, tmp_path)
    golden_script("check-bad", ran, names=names(tmp_path))
    assert ran.code == 1


def status(code: int, message: str, reason: str = "") -> dict[str, object]:
    return {"kind": "Status", "status": "Failure", "code": code, "message": message, "reason": reason}


def refuse_pods(code: int, message: str) -> Change:
    def change(kube: FakeKube) -> None:
        kube.routes["POST", "/api/v1/namespaces/shop/pods"] = lambda _r: (code, status(code, message))

    return change


def answer_policies(code: int, message: str) -> Change:
    def change(kube: FakeKube) -> None:
        kube.routes["POST", POLICIES] = lambda r: (code, status(code, message) if message else r.body)

    return change


def only_without_sidecar(kube: FakeKube) -> None:
    kube.routes["POST", "/api/v1/namespaces/shop/pods"] = lambda r: (201, r.body)


def broken(container: dict[str, object], **more: object) -> Change:
    def change(kube: FakeKube) -> None:
        item = injected(pod("web-5d9c-b", ready=False))
        item["status"]["containerStatuses"] = [container] if container else []
        kube.add({**item, **more})

    return change


def stale(kube: FakeKube) -> None:
    item = injected(pod("web-5d9c-b"))
    notes = item["metadata"]["annotations"]
    notes["sidecar.istio.io/status"] = notes["sidecar.istio.io/status"].replace('"0.1.0"', '"0.0.9"')
    kube.add(item)


def settings_broken(kube: FakeKube) -> None:
    kube.add(
        {
            "kind": "ConfigMap",
            "metadata": {"name": "gatehouse-injector-config", "namespace": NAMESPACE},
            "data": {"injector.yaml": "injection: {proxy_imge: x}"},
        }
    )


def unscheduled_injector(kube: FakeKube) -> None:
    kube.add(deployment("injector", 2, 1))
    labels = {"app.kubernetes.io/part-of": "gatehouse", "app.kubernetes.io/component": "injector"}
    item = pod("gatehouse-injector-x", ready=False, namespace=NAMESPACE, labels=labels)
    item["status"] = {
        "conditions": [{"type": "PodScheduled", "status": "False", "message": "0/2 nodes: Insufficient cpu"}]
    }
    kube.add(item)


def image_missing(kube: FakeKube) -> None:
    kube.add(deployment("ca", 2, 0))
    labels = {"app.kubernetes.io/part-of": "gatehouse", "app.kubernetes.io/component": "ca"}
    item = pod("gatehouse-ca-x", ready=False, namespace=NAMESPACE, labels=labels)
    item["status"]["containerStatuses"] = [
        {"name": "ca", "state": {"waiting": {"reason": "ImagePullBackOff"}}}
    ]
    kube.add(item)


CASES: list[tuple[str, Change, str, str, str]] = [
    ("no-bundle", lambda k: k.add(webhook_configuration()), "ca-bundle", "fail", "no caBundle"),
    (
        "other-bundle",
        lambda k: k.add(webhook_configuration(root_pem("other"))),
        "ca-bundle",
        "fail",
        "not the current root",
    ),
    (
        "bundle-not-pem",
        lambda k: k.add(webhook_configuration("x")),
        "ca-bundle",
        "fail",
        "not the current root",
    ),
    ("settings", settings_broken, "installed", "fail", "proxy_imge"),
    (
        "replicas",
        unscheduled_injector,
        "deployment-injector",
        "warn",
        "1 of 2 ready (gatehouse-injector-x: 0/2 nodes",
    ),
    ("image", image_missing, "deployment-ca", "fail", "ca: ImagePullBackOff"),
    (
        "no-upkeep",
        lambda k: k.remove("Deployment", "gatehouse-upkeep", NAMESPACE),
        "deployments",
        "fail",
        "missing",
    ),
    (
        "root-differs",
        lambda k: k.add(root_map("shop", root_pem("b"))),
        "roots",
        "fail",
        "1 namespace with other",
    ),
    (
        "root-missing",
        lambda k: k.remove("ConfigMap", "istio-ca-root-cert", "shop"),
        "roots",
        "fail",
        "or none",
    ),
    (
        "no-root",
        lambda k: k.remove("ConfigMap", "istio-ca-root-cert", NAMESPACE),
        "roots",
        "fail",
        "missing or empty",
    ),
    (
        "root-ended",
        lambda k: k.add(root_map(NAMESPACE, root_pem("old", 2021))),
        "root-lifetime",
        "fail",
        "ended on 2021-12-31",
    ),
    (
        "no-status",
        lambda k: k.remove("ConfigMap", "gatehouse-ca", NAMESPACE),
        "rotation",
        "warn",
        "has no status.json",
    ),
    (
        "rotation-held-up",
        lambda k: k.add(
            status_map(
                phase=Phase.PREPARED,
                next_step=Step.ACTIVATE,
                next_at=dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
                waiting=(Waiting(code="rotation_agents", text="1 of 2 node agents has not acknowledged"),),
            )
        ),
        "rotation",
        "warn",
        "activate could be since 2026-01-01T00:00:00Z and waits",
    ),
    ("root-garbage", lambda k: k.add(root_map(NAMESPACE, "x")), "root-lifetime", "fail", "cannot be read"),
    (
        "webhook-down",
        refuse_pods(500, 'failed calling webhook "x": connection refused'),
        "webhook-call",
        "fail",
        "connection refused",
    ),
    ("not-called", only_without_sidecar, "webhook-call", "fail", "gets none"),
    (
        "denied",
        refuse_pods(403, 'admission webhook "namespace.sidecar-injector.gatehouse.dev" denied the request'),
        "webhook-call",
        "warn",
        "refuses a pod",
    ),
    (
        "validator-without-bundle",
        lambda k: k.add(validating_configuration()),
        "ca-bundle",
        "fail",
        "and so are policies",
    ),
    (
        "validator-with-another-root",
        lambda k: k.add(validating_configuration(root_pem("other"))),
        "ca-bundle",
        "fail",
        "not the current root",
    ),
    (
        "no-validator",
        lambda k: k.remove("ValidatingWebhookConfiguration", VALIDATION),
        "policy-webhook",
        "warn",
        "there is no validating webhook",
    ),
    ("validator-not-called", answer_policies(201, ""), "policy-webhook", "fail", "does not call the webhook"),
    (
        "validator-down",
        answer_policies(500, 'failed calling webhook "policies...": connection refused'),
        "policy-webhook",
        "fail",
        "no policy can be changed",
    ),
    (
        "no-right-to-policies",
        answer_policies(403, 'User "dev" cannot create resource "peerauthentications"'),
        "policy-webhook",
        "skip",
        "may not create policies",
    ),
    ("no-kinds", answer_policies(404, "not found"), "policy-webhook", "fail", "does not serve"),
    ("foreign-validator", answer_policies(403, "OPA says no"), "policy-webhook", "warn", "OPA says no"),
    (
        "refused-policy",
        lambda k: k.add(stored("AuthorizationPolicy", when("request.headers"))),
        "policies",
        "fail",
        "1 policy not in force",
    ),
    ("accepted-policy", lambda k: k.add(stored("AuthorizationPolicy")), "policies", "ok", "1 policy, none"),
    ("quota", refuse_pods(403, "exceeded quota"), "webhook-call", "warn", "exceeded quota"),
    ("no-driver", lambda k: k.remove("CSIDriver", "csi.gatehouse.dev"), "csi-driver", "fail", "is missing"),
    ("no-tokens", lambda k: k.add(csi_driver(tokenRequests=None)), "csi-driver", "fail", "no tokenRequests"),
    (
        "no-republish",
        lambda k: k.add(csi_driver(requiresRepublish=False)),
        "csi-driver",
        "fail",
        "never renewed",
    ),
    (
        "no-agent-beside-pods",
        lambda k: k.remove("Pod", "gatehouse-nodeagent-node1", NAMESPACE),
        "node-agents",
        "fail",
        "1 of them with injected pods",
    ),
    (
        "no-agent-on-an-idle-node",
        lambda k: k.remove("Pod", "gatehouse-nodeagent-node2", NAMESPACE),
        "node-agents",
        "warn",
        "cannot start there",
    ),
    (
        "driver-not-registered",
        lambda k: k.add(csi_node("node2")),
        "node-drivers",
        "fail",
        "do not know the driver",
    ),
    ("no-label", lambda k: k.add(namespace("shop")), "namespaces", "warn", "no namespace asks"),
    (
        "odd-label",
        lambda k: k.add(namespace("odd", istio_injection="yes")),
        "namespace-labels",
        "warn",
        "means no",
    ),
    (
        "unknown-revision",
        lambda k: k.add(namespace("rev", istio__io_rev="x")),
        "namespaces",
        "ok",
        "1 namespace",
    ),
    (
        "pod-without",
        lambda k: k.add(pod("web-5d9c-b")),
        "pods-without",
        "warn",
        "1 pod without a sidecar",
    ),
    ("stale", stale, "pods-stale", "warn", "1 of 2 sidecars"),
    (
        "crash",
        broken({"name": "istio-proxy", "state": {"waiting": {"reason": "CrashLoopBackOff"}}}),
        "pods-broken",
        "fail",
        "1 sidecar not running",
    ),
    (
        "init-failed",
        broken({"name": "istio-init", "state": {"terminated": {"exitCode": 2}}}),
        "pods-broken",
        "fail",
        "1 sidecar not running",
    ),
    (
        "no-certificate",
        broken({"name": "istio-proxy", "ready": False, "state": {"running": {}}}),
        "pods-broken",
        "fail",
        "1 sidecar not running",
    ),
    (
        "not-mounted",
        broken({"name": "istio-proxy", "state": {"waiting": {"reason": "ContainerCreating"}}}),
        "pods-broken",
        "fail",
        "1 sidecar not running",
    ),
    ("no-containers-yet", broken({}), "pods-broken", "fail", "1 sidecar not running"),
    (
        "application-not-ready",
        broken({"name": "istio-proxy", "ready": True, "state": {"running": {}}}),
        "pods-broken",
        "ok",
        "2 sidecars running",
    ),
    ("istio-too", lambda k: k.add(istio_configuration()), "two-meshes", "fail", "several meshes"),
]


@pytest.mark.parametrize(
    ("change", "name", "want", "text"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_what_is_wrong_is_said(
    kube: FakeKube, tmp_path: Path, change: Change, name: str, want: str, text: str
) -> None:
    install(kube)
    change(kube)
    ran = check(kube, tmp_path, "-o", "json")
    row = rows(ran)[name]
    assert (row["status"], text in row["message"]) == (want, True), row
    assert row["next"] or want == "ok"
    assert ran.code == int(any(r["status"] == "fail" for r in rows(ran).values()))


def test_not_installed(kube: FakeKube, tmp_path: Path) -> None:
    ran = check(kube, tmp_path)
    golden_script("check-not-installed", ran, names=names(tmp_path))
    assert ran.code == 1


@pytest.mark.parametrize("pre", [True, False], ids=["pre", "after"])
def test_what_may_not_be_read_is_skipped(kube: FakeKube, tmp_path: Path, pre: bool) -> None:
    install(kube)
    kube.fail(403, times=1000, path=r"/api/v1/(nodes|pods|configmaps)|.*/leases", reason="Forbidden")
    ran = check(kube, tmp_path, *(["--pre"] if pre else []), "-o", "json")
    found = [row["status"] for row in rows(ran).values()]
    assert "skip" in found
    assert "run it as a user who may read this" in ran.out


def test_a_server_that_stumbles_is_a_warning(kube: FakeKube, tmp_path: Path) -> None:
    install(kube)
    kube.fail(500, times=1000, path="/api/v1/nodes")
    ran = check(kube, tmp_path, "-o", "json")
    assert rows(ran)["nodes"]["status"] == "warn"
    assert "cannot be checked" in str(rows(ran)["nodes"]["message"])


def test_users_who_may_not_create_pods(kube: FakeKube, tmp_path: Path) -> None:
    install(kube)
    text = 'pods is forbidden: User "dev" cannot create resource "pods" in API group ""'
    refuse_pods(403, text)(kube)
    path = f"/api/v1/namespaces/{NAMESPACE}/services/https:gatehouse-injector:443/proxy/readyz"
    kube.documents[path] = b"ok\n"
    assert "its certificate is not checked" in str(
        rows(check(kube, tmp_path, "-o", "json"))["webhook-call"]["message"]
    )
    del kube.documents[path]
    row = rows(check(kube, tmp_path, "-o", "json"))["webhook-call"]
    assert (row["status"], "does not answer" in str(row["message"])) == ("fail", True)
    kube.fail(403, times=1000, path=path)
    row = rows(check(kube, tmp_path, "-o", "json"))["webhook-call"]
    assert (row["status"], "neither create pods nor proxy" in str(row["message"])) == ("skip", True)


def test_no_server_is_exit_code_3(kube: FakeKube, tmp_path: Path) -> None:
    install(kube)
    kube.stop()
    for arguments in (("--pre",), ()):
        ran = check(kube, tmp_path, *arguments)
        assert (ran.code, ran.out) == (3, "")
        assert "[kube_unreachable]" in ran.err


def test_one_namespace_only(kube: FakeKube, tmp_path: Path) -> None:
    install(kube)
    kube.add(pod("web-5d9c-b"))
    assert rows(check(kube, tmp_path, "-o", "json"))["pods-without"]["status"] == "warn"
    assert rows(check(kube, tmp_path, "-n", "other", "-o", "json"))["pods-without"]["status"] == "ok"


def test_pods_that_end_do_not_count(kube: FakeKube, tmp_path: Path) -> None:
    install(kube)
    done = pod("web-5d9c-done")
    done["status"]["phase"] = "Succeeded"
    kube.add(done, pod("web-5d9c-no", labels={"sidecar.istio.io/inject": "false"}))
    assert rows(check(kube, tmp_path, "-o", "json"))["pods-without"]["status"] == "ok"


def test_json_is_stable(kube: FakeKube, tmp_path: Path) -> None:
    install(kube)
    found = json.loads(check(kube, tmp_path, "-o", "json").out)
    assert set(found) == {"ok", "summary", "rows"}
    assert set(found["summary"]) == {"ok", "warn", "fail", "skip"}
    for row in found["rows"]:
        assert set(row) == {"section", "check", "status", "message", "next", "objects"}


def test_lines_fit_and_names_are_one_line(kube: FakeKube, tmp_path: Path) -> None:
    install(kube)
    kube.add(deployment("injector", 2, 0), agent_pod("node3"))
    for i in range(9):
        kube.add(namespace(f"odd{i}", istio_injection="no\x1b[31m"))
    ran = check(kube, tmp_path)
    assert max(map(len, ran.out.splitlines())) <= 100
    assert "\x1b" not in ran.out
    assert "- and 4 more; all of them: -o json" in ran.out


def test_every_check_has_a_name_of_its_own() -> None:
    for sections in (BEFORE, AFTER):
        found = [name for checks in sections.values() for name in checks]
        assert len(found) == len(set(found))
