"""Kubeconfig variants, in-cluster access, credentials that change while a process runs (G-13)."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mesh.kube import access as module
from mesh.kube.access import Access, find, from_kubeconfig, in_cluster
from mesh.kube.api import KubeCode, KubeError
from mesh.kube.client import KubeClient
from tests.fakes.kube_api import FakeKube
from tests.fakes.kube_pki import serving_pair


@pytest.fixture
def kube() -> Iterator[FakeKube]:
    with FakeKube(tokens={"one", "two"}) as server:
        yield server


def _config(cluster: dict[str, Any] | None = None, user: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "clusters": [{"name": "c", "cluster": {"server": "https://kube.test:6443", **(cluster or {})}}],
        "users": [{"name": "u", "user": user or {}}],
        "contexts": [
            {"name": "x", "context": {"cluster": "c", "user": "u"}},
            {"name": "lost", "context": {"cluster": "none", "user": "u"}},
        ],
        "current-context": "x",
    }


def _write(directory: Path, config: Any) -> Path:
    path = directory / "config"
    path.write_text(config if isinstance(config, str) else json.dumps(config))
    return path


def _b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def test_token_file_is_read_again_for_each_request(kube: FakeKube, tmp_path: Path) -> None:
    """G-13: the kubelet replaces the token; nothing has to be restarted."""
    token = tmp_path / "token"
    token.write_text("one\n")
    access = Access("127.0.0.1", kube.port, ca_pem=kube.ca_pem, token_file=token, token="never")
    client = KubeClient(access, user_agent="t")
    client.get("/version")
    token.write_text("expired")
    with pytest.raises(KubeError) as e:
        client.get("/api/v1/pods")
    assert e.value.code is KubeCode.UNAUTHORIZED
    token.write_text("two")
    client.get("/api/v1/pods")
    client.close()
    assert [r.token for r in kube.requests] == ["one", "expired", "two"]


@pytest.mark.parametrize("text", ["", "  \n", "a b", "a\r\nX-Other: 1", "ä"], ids=repr)
def test_token_that_does_not_fit_a_header(tmp_path: Path, text: str) -> None:
    path = tmp_path / "token"
    path.write_text(text)
    with pytest.raises(KubeError, match="no bearer token") as e:
        Access("h", 1, token_file=path).bearer()
    assert e.value.code is KubeCode.CONFIG
    assert text.strip() == "" or text not in str(e.value).replace(str(path), "")


def test_no_token_is_sent_without_one(tmp_path: Path) -> None:
    assert Access("h", 1).bearer() is None
    with pytest.raises(KubeError, match="cannot be read"):
        Access("h", 1, token_file=tmp_path / "none").bearer()


def test_secrets_are_not_shown() -> None:
    assert "s3cret" not in repr(Access("h", 1, token="s3cret", client_key_pem="s3cret"))


def test_in_cluster(kube: FakeKube, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("one")
    (tmp_path / "ca.crt").write_text(kube.ca_pem)
    environ = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(kube.port)}
    client = KubeClient(in_cluster(environ, tmp_path), user_agent="t")
    assert client.get("/version")["major"] == "1"
    client.close()


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({}, "not in a cluster"),
        ({"KUBERNETES_SERVICE_HOST": "h"}, "no service account token"),
        ({"KUBERNETES_SERVICE_HOST": "h", "KUBERNETES_SERVICE_PORT": "tcp://1"}, "not a port number"),
        ({"KUBERNETES_SERVICE_HOST": "h", "KUBERNETES_SERVICE_PORT": "70000"}, "not a port number"),
    ],
)
def test_in_cluster_refusals(tmp_path: Path, environ: dict[str, str], message: str) -> None:
    with pytest.raises(KubeError, match=message) as e:
        in_cluster(environ, tmp_path)
    assert e.value.code is KubeCode.CONFIG


def test_kubeconfig_with_files_beside_it(kube: FakeKube, tmp_path: Path) -> None:
    (tmp_path / "tok").write_text("one")
    access = from_kubeconfig(kube.kubeconfig(tmp_path, "two"))
    assert (access.host, access.port, access.token) == ("127.0.0.1", kube.port, "two")
    assert access.ca_pem == kube.ca_pem
    found = from_kubeconfig(_write(tmp_path, _config({}, {"tokenFile": "tok"})))
    assert (found.bearer(), found.ca_pem) == ("one", None)


def test_kubeconfig_with_everything_inline(tmp_path: Path) -> None:
    certificate, key = serving_pair()
    cluster = {
        "server": "https://kube.test/k8s/clusters/c-1/",
        "certificate-authority-data": _b64(certificate),
        "tls-server-name": "other.test",
    }
    user = {"client-certificate-data": _b64(certificate), "client-key-data": _b64(key)}
    access = from_kubeconfig(_write(tmp_path, _config(cluster, user)))
    assert (access.host, access.port, access.prefix) == ("kube.test", 443, "/k8s/clusters/c-1")
    assert (access.server_name, access.client_key_pem) == ("other.test", key)
    access.tls()  # takes the pair, from memory


def test_client_certificate_is_shown_to_the_server(kube: FakeKube, tmp_path: Path) -> None:
    certificate, key = serving_pair("client.test")
    kube.ask_client_certificate(certificate)
    (tmp_path / "c.crt").write_text(certificate)
    (tmp_path / "c.key").write_text(key)
    (tmp_path / "ca.crt").write_text(kube.ca_pem)
    cluster = {"server": f"https://127.0.0.1:{kube.port}", "certificate-authority": "ca.crt"}
    user = {"client-certificate": "c.crt", "client-key": "c.key", "token": "one"}
    client = KubeClient(from_kubeconfig(_write(tmp_path, _config(cluster, user))), user_agent="t")
    assert client.get("/api/v1/pods")["items"] == []
    client.close()


def test_pair_that_does_not_belong_together(tmp_path: Path) -> None:
    access = Access("h", 1, client_cert_pem=serving_pair()[0], client_key_pem=serving_pair("b")[1])
    with pytest.raises(KubeError, match="cannot be used") as e:
        KubeClient(access, user_agent="t").get("/version")
    assert "PRIVATE KEY" not in str(e.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{not: [yaml", "not YAML"),
        ("- list", "not a kubeconfig"),
        ({**_config(), "current-context": ""}, "current-context is not set"),
        ({**_config(), "current-context": "lost"}, "no entry 'none' in clusters"),
        ({**_config(), "contexts": None}, "no entry 'x' in contexts"),
        (_config(user={"exec": {"command": "aws"}}), "credential plugin"),
        (_config(user={"auth-provider": {"name": "gcp"}}), "credential plugin"),
        (_config({"insecure-skip-tls-verify": True}), "insecure-skip-tls-verify is refused"),
        (_config({"proxy-url": "http://p"}), "proxy-url is not supported"),
        (_config({"server": "http://kube.test"}), "not an https address"),
        (_config({"server": "https://kube.test:port"}), "not an https address"),
        (_config({"server": "https://kube.test?x=1"}), "not an https address"),
        (_config({"certificate-authority": "none.crt"}), "cannot be read"),
        (_config({"certificate-authority-data": "*"}), "certificate-authority-data is not base64"),
        (_config({"certificate-authority-data": _b64("ä")}), "not base64 of a PEM text"),
        (_config(user={"client-key-data": _b64("x")}), "only one of client-certificate and client-key"),
    ],
)
def test_kubeconfig_refusals(tmp_path: Path, config: Any, message: str) -> None:
    with pytest.raises(KubeError, match=message) as e:
        from_kubeconfig(_write(tmp_path, config))
    assert e.value.code is KubeCode.CONFIG


def test_file_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_FILE", 100)
    with pytest.raises(KubeError, match="more than 100 characters"):
        from_kubeconfig(_write(tmp_path, "#" * 101))


def test_order_of_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two, home = tmp_path / "1", tmp_path / "2", tmp_path / "home"
    for directory, token in ((one, "1"), (two, "2"), (home / ".kube", "home")):
        directory.mkdir(parents=True)
        _write(directory, _config(user={"token": token}))
    monkeypatch.setenv("HOME", str(home))
    environ = {"KUBECONFIG": f"{two / 'config'}:{one / 'config'}", "KUBERNETES_SERVICE_HOST": "h"}
    assert find(one / "config", environ).token == "1"
    assert find(None, environ).token == "2"
    assert find(None, {}).token == "home"
    with pytest.raises(KubeError, match="service account token"):
        find(None, {"KUBERNETES_SERVICE_HOST": "h"})
