"""The authority on a real API server: one root of five processes, real tokens, real pods, real reviews."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509

from ca import config as configuration
from ca.authn import AuthnCode
from ca.runtime import Runtime
from mesh.kube.access import from_kubeconfig
from mesh.kube.api import KubeError
from mesh.kube.client import KubeClient
from tests.cluster.marks import CLUSTER
from tests.fakes.ca_cluster import RunningClusterCa, until
from tests.fakes.ca_running import audit_lines, bearer

pytestmark = CLUSTER
STARTER = """
import datetime as dt, hashlib, sys
from pathlib import Path
from ca.keystore import KeyStoreConfig
from ca.keystore_secret import SecretKeyStore, SecretPlace
from mesh.kube.access import from_kubeconfig
from mesh.kube.client import KubeClient
from mesh.spiffe import TrustDomain
api = KubeClient(from_kubeconfig(Path(sys.argv[1])), user_agent="race")
config = KeyStoreConfig(trust_domain=TrustDomain("cluster.local"), state_dir=Path("/never"))
# Another authority may publish its roots in every namespace of this cluster, ours included.
place = SecretPlace(namespace=sys.argv[2], root_config_map="roots-" + sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
now = dt.datetime.now(dt.UTC)
store = SecretKeyStore.open(api, place, config, now, may_renew=lambda: False)
print(hashlib.sha256(b"".join(store.roots) + store.issuer(now).certificate.der).hexdigest(), flush=True)
"""


@pytest.fixture
def api(kubeconfig: Path) -> Iterator[KubeClient]:
    client = KubeClient(from_kubeconfig(kubeconfig), user_agent="contract")
    yield client
    client.close()


@pytest.fixture
def namespace(api: KubeClient) -> Iterator[str]:
    name = f"contract-{uuid.uuid4().hex[:8]}"
    api.create("/api/v1/namespaces", {"metadata": {"name": name}})
    yield name
    with suppress(KubeError):
        api.delete(f"/api/v1/namespaces/{name}")


def test_five_processes_at_once_have_one_root(namespace: str) -> None:
    """G-04."""
    arguments = [sys.executable, "-c", STARTER, os.environ["KUBECONFIG"], namespace]
    starters = [
        subprocess.Popen(
            arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ}
        )
        for _ in range(5)
    ]
    try:
        for starter in starters:
            assert starter.stdout is not None
            assert starter.stdout.readline() == "ready\n"
        for starter in starters:
            assert starter.stdin is not None
            starter.stdin.write("go\n")
            starter.stdin.flush()
        found = [starter.communicate(timeout=50)[0].strip() for starter in starters]
    finally:
        for starter in starters:
            with starter:  # closes the pipes and waits
                starter.kill()
    assert len(found) == 5
    assert len(set(found)) == 1
    assert len(found[0]) == 64


@contextmanager
def _authority(
    api: KubeClient, namespace: str, directory: Path, **overrides: object
) -> Iterator[RunningClusterCa]:
    """With a ConfigMap name and a ClusterRole of its own: other tests use this cluster at the same time."""
    roles = "/apis/rbac.authorization.k8s.io/v1/clusterroles"
    api.create(roles, {"metadata": {"name": namespace}, "rules": []})
    config = configuration.load(
        None,
        {},
        {
            "state_dir": str(directory / "state"),
            "token.audiences": "istio-ca",
            "listen.grpc": "127.0.0.1:0",
            "listen.http": "127.0.0.1:0",
            "cluster.kubernetes": "true",
            "cluster.kubeconfig": os.environ["KUBECONFIG"],
            "cluster.namespace": namespace,
            "cluster.root_config_map": f"roots-{namespace}",
            "cluster.owner_cluster_role": namespace,
            "serving.names": "localhost,127.0.0.1",
            **{name.replace("__", "."): value for name, value in overrides.items()},
        },
    )
    running = RunningClusterCa(Runtime(config))
    running.runtime.start()
    try:
        yield running
    finally:
        running.close()
        api.delete(f"{roles}/{namespace}")


def _pod(api: KubeClient, namespace: str) -> dict[str, Any]:
    """A pod that no node takes: alive as far as the API server knows."""
    accounts = f"/api/v1/namespaces/{namespace}/serviceaccounts"
    with suppress(KubeError):
        api.create(accounts, {"metadata": {"name": "web"}})
    body = {
        "metadata": {"generateName": "web-"},
        "spec": {
            "serviceAccountName": "web",
            "nodeSelector": {"nowhere": "at-all"},
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "c", "image": "none"}],
        },
    }
    made: list[dict[str, Any]] = []

    def create() -> bool:
        with suppress(KubeError):  # old clusters first have to give the account a token of its own
            made.append(api.create(f"/api/v1/namespaces/{namespace}/pods", body))
        return bool(made)

    until(create, "a pod", 30)
    return made[0]


def _token(
    api: KubeClient, namespace: str, pod: dict[str, Any], audience: str = "istio-ca"
) -> tuple[str, str]:
    reference = {
        "kind": "Pod",
        "apiVersion": "v1",
        "name": pod["metadata"]["name"],
        "uid": pod["metadata"]["uid"],
    }
    spec = {"audiences": [audience], "expirationSeconds": 600, "boundObjectRef": reference}
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
    made = api.create(f"/api/v1/namespaces/{namespace}/serviceaccounts/web/token", body)
    return bearer(made["status"]["token"])


@pytest.mark.parametrize("strict", ["false", "true"], ids=["local", "token-review"])
def test_real_tokens_of_real_pods(api: KubeClient, namespace: str, tmp_path: Path, strict: str) -> None:
    pod = _pod(api, namespace)
    with _authority(api, namespace, tmp_path, cluster__token_review=strict) as ca, audit_lines() as lines:
        until(lambda: ca.runtime.health.ready().ok, "ready", 30)
        token = _token(api, namespace, pod)
        answer = ca.client().create([token], ca.csr())
        assert answer.code is grpc.StatusCode.OK, (answer, lines)
        san = answer.leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        wanted = f"spiffe://cluster.local/ns/{namespace}/sa/web"
        assert san.get_values_for_type(x509.UniformResourceIdentifier) == [wanted]

        other = _token(api, namespace, pod, "another-audience")  # F-42
        assert ca.client().create([other], ca.csr()).code is grpc.StatusCode.UNAUTHENTICATED

        late = _pod(api, namespace)  # was not there when the pods were listed
        assert ca.client().create([_token(api, namespace, late)], ca.csr()).ok

        path = f"/api/v1/namespaces/{namespace}/pods/{pod['metadata']['name']}"
        known = len(ca.runtime.cluster.pods)  # type: ignore[union-attr]  # on a cluster
        api.delete(path, gracePeriodSeconds="0")
        until(lambda: len(ca.runtime.cluster.pods) < known or _gone(api, path), "deleted", 30)
        end = time.monotonic() + 10
        while ca.client().create([token], ca.csr()).ok:  # F-45: until our watch has seen it
            assert time.monotonic() < end
        assert lines[-1]["code"] == AuthnCode.POD_GONE


def _gone(api: KubeClient, path: str) -> bool:
    try:
        api.get(path)
    except KubeError:
        return True
    return False


def test_roots_are_in_every_namespace_and_go_with_their_owner(
    api: KubeClient, namespace: str, tmp_path: Path
) -> None:
    maps = f"/api/v1/namespaces/{namespace}/configmaps"
    name = f"roots-{namespace}"
    with _authority(api, namespace, tmp_path) as ca:
        until(lambda: not _gone(api, f"{maps}/{name}"), "published", 30)
        assert api.get(f"{maps}/{name}")["data"]["root-cert.pem"].encode() == ca.roots
        until(lambda: not _gone(api, f"/api/v1/namespaces/kube-system/configmaps/{name}"), "kube-system", 30)
        assert _gone(api, f"/api/v1/namespaces/kube-public/configmaps/{name}")
        time_left = ca.runtime.cluster._distributor
        assert time_left is not None
        api.delete(f"{maps}/{name}")
        until(lambda: not _gone(api, f"{maps}/{name}"), "repaired", 30)
    until(lambda: _gone(api, f"/api/v1/namespaces/kube-system/configmaps/{name}"), "collected", 50)
