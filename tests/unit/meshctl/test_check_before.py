"""`meshctl check --pre`: what is said before the installation, row by row."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fakes.kube_api import FakeKube
from tests.fakes.meshctl_check import check, rows
from tests.fakes.meshctl_cluster import (
    NAMESPACE,
    empty,
    istio_configuration,
    namespace,
    root_map,
    webhook_configuration,
)

Change = Callable[[FakeKube], object]


@pytest.fixture
def kube() -> Iterator[FakeKube]:
    with FakeKube() as found:
        yield found


def keeps_no_tokens(kube: FakeKube) -> None:
    kube.routes["POST", "/apis/storage.k8s.io/v1/csidrivers"] = lambda r: (201, {**r.body, "spec": {}})


def lease_ahead(kube: FakeKube) -> None:
    item = {"name": "node1", "namespace": "kube-node-lease"}
    now = "2099-01-01T00:00:00.000000Z"
    kube.add({"kind": "Lease", "metadata": item, "spec": {"renewTime": now}})


def leases_old(kube: FakeKube) -> None:
    for name in ("node1", "node2"):
        item = {"name": name, "namespace": "kube-node-lease"}
        kube.add({"kind": "Lease", "metadata": item, "spec": {"renewTime": "2020-01-01T00:00:00.000000Z"}})


def node_with(name: str, system: str = "linux", version: str = "v1.20.2", ready: str = "True") -> Change:
    info = {"operatingSystem": system, "kubeletVersion": version}
    state = {"nodeInfo": info, "conditions": [{"type": "Ready", "status": ready}]}
    return lambda kube: kube.add({"kind": "Node", "metadata": {"name": name}, "status": state})


def no_rights(kube: FakeKube) -> None:
    kube.access_review = lambda spec: {"allowed": spec["resourceAttributes"]["resource"] != "clusterroles"}


def no_keys(kube: FakeKube) -> None:
    del kube.documents["/openid/v1/jwks"]


CRD = {"kind": "CustomResourceDefinition", "metadata": {"name": "peerauthentications.security.istio.io"}}

PRE_CASES: list[tuple[str, Change, str, str, str]] = [
    ("tokens-dropped", keeps_no_tokens, "csi-tokens", "fail", "drops tokenRequests"),
    ("no-keys", no_keys, "token-keys", "fail", "publishes no keys"),
    ("rights", no_rights, "rights", "fail", "may not create 1 of"),
    ("windows", node_with("win", "windows"), "nodes-os", "warn", "1 node without Linux"),
    ("old-kubelet", node_with("node1", version="v1.19.4"), "nodes-version", "fail", "before 1.20"),
    ("not-ready", node_with("node1", ready="False"), "nodes", "warn", "1 of 2 nodes not"),
    ("clock", lease_ahead, "node-clocks", "warn", "1 clock ahead"),
    ("no-lease", leases_old, "node-clocks", "skip", "no node has renewed"),
    (
        "psa",
        lambda k: k.add(namespace(NAMESPACE, **{"pod_security.kubernetes.io__enforce": "baseline"})),
        "release-namespace",
        "fail",
        "enforces pod security 'baseline'",
    ),
    (
        "empty-namespace",
        lambda k: k.add(namespace(NAMESPACE)),
        "release-namespace",
        "ok",
        "exists and allows",
    ),
    ("istio", lambda k: k.add(istio_configuration()), "other-meshes", "fail", "two sidecars"),
    ("crds", lambda k: k.add(CRD), "policy-kinds", "warn", "not from this chart"),
    ("leftovers", lambda k: k.add(root_map("default")), "leftovers", "warn", "1 namespace with root"),
    ("twice", lambda k: k.add(webhook_configuration()), "installed", "warn", "installed already"),
]


@pytest.mark.parametrize(
    ("change", "name", "want", "text"), [c[1:] for c in PRE_CASES], ids=[c[0] for c in PRE_CASES]
)
def test_what_would_go_wrong_is_said(
    kube: FakeKube, tmp_path: Path, change: Change, name: str, want: str, text: str
) -> None:
    empty(kube)
    change(kube)
    ran = check(kube, tmp_path, "--pre", "-o", "json")
    row = rows(ran)[name]
    assert (row["status"], text in row["message"]) == (want, True), row
    assert row["next"] or want == "ok"


def test_kubelets_without_native_sidecars_are_named(tmp_path: Path) -> None:
    with FakeKube(minor=31) as kube:
        empty(kube)
        node_with("node1", version="v1.31.0")(kube)
        node_with("node2", version="v1.28.3")(kube)
        row = rows(check(kube, tmp_path, "--pre", "-o", "json"))["nodes-native"]
    assert (row["status"], row["objects"]) == ("warn", ["node2 (v1.28.3)"])
    assert "1 kubelet before 1.29: sidecars are ordinary containers" in row["message"]


def test_an_old_cluster_is_refused(tmp_path: Path) -> None:
    with FakeKube(minor=19) as kube:
        empty(kube)
        ran = check(kube, tmp_path, "--pre", "-o", "json")
    assert (ran.code, rows(ran)["api-version"]["status"]) == (1, "fail")
    assert "too old" in str(rows(ran)["api-version"]["message"])
