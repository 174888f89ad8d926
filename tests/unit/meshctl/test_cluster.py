"""The cluster as meshctl sees it: connections, pages of lists, the installation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mesh.kube.api import KubeCode, KubeError
from meshctl import cluster as module
from meshctl.cluster import Cluster, find_installation
from tests.fakes.kube_api import FakeKube
from tests.fakes.meshctl_cli import ctl
from tests.fakes.meshctl_cluster import NAMESPACE, empty, install, namespace, webhook_configuration


def test_lists_come_in_pages_and_are_read_once() -> None:
    with FakeKube() as kube:
        kube.add(*(namespace(f"n{i:04}") for i in range(1100)))
        found = Cluster(kube.api(), "default", NAMESPACE)
        assert len(found.namespaces()) == 1104
        assert len(found.namespaces()) == 1104
        assert len(kube.asked("GET", "/api/v1/namespaces")) == 3


def test_refusals_are_remembered_too() -> None:
    with FakeKube() as kube:
        kube.fail(403, times=1, path="/api/v1/nodes")
        found = Cluster(kube.api(), "default", NAMESPACE)
        for _ in range(2):
            with pytest.raises(KubeError) as refused:
                found.items("/api/v1/nodes")
            assert refused.value.code is KubeCode.FORBIDDEN
        assert len(kube.asked("GET", "/api/v1/nodes")) == 1


def test_more_objects_than_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ITEMS", 3)
    with FakeKube() as kube:
        with pytest.raises(KubeError) as refused:
            Cluster(kube.api(), "default", NAMESPACE).namespaces()
        assert "not a list of at most 3 objects" in refused.value.public


def test_something_else_than_a_list() -> None:
    with FakeKube() as kube:
        kube.documents["/api/v1/nodes"] = ["x"]
        with pytest.raises(KubeError) as refused:
            Cluster(kube.api(), "default", NAMESPACE).items("/api/v1/nodes")
        assert refused.value.code is KubeCode.RESPONSE


def test_other_failures_of_a_single_read() -> None:
    with FakeKube() as kube:
        kube.fail(500, times=9, path="/api/v1/namespaces/x")
        found = Cluster(kube.api(), "default", NAMESPACE)
        with pytest.raises(KubeError):
            found.get("/api/v1/namespaces/x")
        assert found.get("/api/v1/namespaces/y") is None


def test_settings_that_may_not_be_read() -> None:
    with FakeKube() as kube:
        install(kube)
        path = f"/api/v1/namespaces/{NAMESPACE}/configmaps/gatehouse-injector-config"
        kube.fail(403, times=1, path=path)
        found = find_installation(Cluster(kube.api(), "default", NAMESPACE))
        assert found is not None
        assert found.config is None
        assert "ConfigMap istio-system/gatehouse-injector-config: GET" in found.problem
        kube.remove("ConfigMap", "gatehouse-injector-config", NAMESPACE)
        found = find_installation(Cluster(kube.api(), "default", NAMESPACE))
        assert found is not None
        assert found.problem == "ConfigMap istio-system/gatehouse-injector-config has no injector.yaml"


def test_a_webhook_by_address() -> None:
    with FakeKube() as kube:
        empty(kube)
        item = webhook_configuration()
        for webhook in item["webhooks"]:
            webhook["clientConfig"] = {"url": "https://example.test/inject"}
        kube.add(item)
        found = find_installation(Cluster(kube.api(), "default", NAMESPACE))
        assert found is not None
        assert found.problem == "no webhook names a Service"


def test_which_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeKube() as kube:
        install(kube)
        path = kube.kubeconfig(tmp_path)
        monkeypatch.setenv("KUBECONFIG", f"{path}:/nowhere")
        assert ctl("check").code == 0
        assert ctl("check", "--context", "fake").code == 0
        assert ctl("explain", "inject", "web-5d9c-a").err.startswith(
            "meshctl: there is no Pod default/web-5d9c-a"
        )
        config = json.loads(path.read_text())
        config["contexts"] = []
        path.write_text(json.dumps(config))
        assert (ctl("check").code, "no entry 'fake' in contexts" in ctl("check").err) == (2, True)
        monkeypatch.delenv("KUBECONFIG")
        monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
        monkeypatch.setenv("HOME", str(tmp_path))
        assert "[kube_config]" in ctl("check").err
