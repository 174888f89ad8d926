"""The chart's objects as a real API server sees them; what a render alone cannot tell."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.cluster.kubectl import Kubectl
from tests.cluster.mesh import NAMESPACE, RELEASE, Mesh
from tests.cluster.run import ClusterError
from tests.cluster.under_test import ClusterUnderTest
from tests.fakes.helm import CHART, HelmError, helm, render
from tests.fakes.helm4 import helm4_path, why_not_here

pytestmark = [pytest.mark.cluster, pytest.mark.xdist_group("cluster"), pytest.mark.timeout(900)]

EVERYTHING: dict[str, Any] = {
    "metrics": {"tls": True},
    "ca": {"tokenReview": True, "existingSecret": "cacerts"},
    "networkPolicy": {"egress": {"enabled": True}},
    "injector": {"config": {"injection": {"selection": {"pods_override_disabled": True}}}},
}


def _version(kube: ClusterUnderTest) -> str:
    found: str = json.loads(kube.kubectl("version", "-o", "json"))["serverVersion"]["gitVersion"]
    return found.removeprefix("v")


@pytest.mark.parametrize("values", [{}, EVERYTHING], ids=["defaults", "everything"])
def test_the_server_accepts_every_object(
    kube: ClusterUnderTest, namespace: Kubectl, values: dict[str, Any]
) -> None:
    chart = render(values=values, namespace=namespace.namespace, kube=_version(kube))
    said = namespace("apply", "--dry-run=server", "-f", "-", stdin=chart.text).splitlines()
    assert len([line for line in said if line.endswith("(server dry run)")]) == len(chart.objects)


def test_a_second_release_is_refused_by_the_name_of_the_first(mesh: Mesh) -> None:
    with pytest.raises(HelmError) as refused:
        mesh.helm("install", "second", str(CHART))
    assert "release gatehouse of namespace istio-system is a Gatehouse already" in str(refused.value)
    assert "second" not in mesh.helm("list", "--all", "--short").split()


@pytest.mark.skipif(bool(why_not_here()), reason=why_not_here())
def test_helm_4_takes_a_release_over_and_leaves_alone_what_the_processes_wrote(mesh: Mesh) -> None:
    """Server-side apply, the way of Helm 4, of objects that the chart renders empty and processes fill."""
    before = _filled(mesh)
    assert all(before.values())
    place = (f"--kubeconfig={mesh.kube.kubectl.kubeconfig}", f"--namespace={NAMESPACE}")
    change = ("upgrade", RELEASE, str(CHART), "--reuse-values", "--set=log.level=debug")
    back = ("rollback", RELEASE, str(json.loads(mesh.helm("status", RELEASE, "--output=json"))["version"]))
    options = ("--server-side=true", "--wait=watcher")
    try:
        # The second one finds fields that are Helm 4's already; the third takes what others own, too.
        for words in (change, change, (*change, "--force-conflicts"), back):
            helm(*words, *options, *place, timeout=200, program=helm4_path())
            assert _filled(mesh) == before, words
        assert json.loads(mesh.helm("status", RELEASE, "--output=json"))["info"]["status"] == "deployed"
    finally:
        mesh.install()  # by Helm 3 again
    assert _filled(mesh) == before


def _filled(mesh: Mesh) -> dict[str, Any]:
    """What the processes have written into objects of the chart."""
    webhooks = mesh.kubectl.get("mutatingwebhookconfiguration/gatehouse-sidecar-injector")["webhooks"]
    record = mesh.kubectl.get("configmap/gatehouse-ca")["data"]
    return {
        "keys": mesh.kubectl.get("secret/gatehouse-ca")["data"],
        "bundles": [webhook["clientConfig"].get("caBundle") for webhook in webhooks],
        "record": record["root-sha256"],
        "status": "status.json" in record,
        "nodes": mesh.kubectl.get("configmap/gatehouse-nodes")["data"],
    }


def _policy(kind: str, spec: dict[str, Any], version: str = "v1") -> dict[str, Any]:
    return {
        "apiVersion": f"security.istio.io/{version}",
        "kind": kind,
        "metadata": {"name": "probe"},
        "spec": spec,
    }


@pytest.mark.parametrize("version", ["v1", "v1beta1"])
@pytest.mark.usefixtures("mesh")
def test_policy_kinds_keep_unknown_fields_until_they_are_judged(namespace: Kubectl, version: str) -> None:
    """A dropped `method` (for `methods`) would let every method in: the webhook sees it, and refuses it.

    The server drops what a schema does not know before it asks a webhook, so naming the field is the proof.
    """
    rules = [{"to": [{"operation": {"method": ["GET"]}}]}]
    document = json.dumps(_policy("AuthorizationPolicy", {"rules": rules}, version))
    with pytest.raises(ClusterError) as refused:
        namespace("apply", "--validate=false", "-f", "-", stdin=document)
    assert "spec.rules[0].to[0].operation.method: unknown field" in str(refused.value)
    assert "[policy_unknown_field]" in str(refused.value)


@pytest.mark.parametrize("version", ["v1", "v1beta1"])
@pytest.mark.usefixtures("mesh")
def test_policy_kinds_are_served_in_both_versions(namespace: Kubectl, version: str) -> None:
    rules = [{"to": [{"operation": {"methods": ["GET"]}}]}]
    document = json.dumps(_policy("AuthorizationPolicy", {"rules": rules}, version))
    namespace("apply", "--validate=false", "-f", "-", stdin=document)
    for served in ("v1", "v1beta1"):
        found = namespace.get(f"authorizationpolicies.{served}.security.istio.io", "probe")
        assert found["spec"]["rules"] == rules


@pytest.mark.parametrize(
    ("kind", "spec", "message"),
    [
        ("AuthorizationPolicy", {"action": "CUSTOM"}, "spec.action: Unsupported value"),
        ("AuthorizationPolicy", {"rules": {}}, "spec.rules: Invalid value"),
        ("PeerAuthentication", {"mtls": {"mode": "strict"}}, "spec.mtls.mode: Unsupported value"),
        ("RequestAuthentication", {"jwtRules": [{"issuer": 1}]}, "spec.jwtRules.*issuer: Invalid value"),
    ],
    ids=["custom", "rules", "mode", "issuer"],
)
@pytest.mark.usefixtures("mesh")
def test_the_server_refuses_what_cannot_be_meant(
    namespace: Kubectl, kind: str, spec: dict[str, Any], message: str
) -> None:
    with pytest.raises(ClusterError) as refused:
        namespace("apply", "--validate=false", "-f", "-", stdin=json.dumps(_policy(kind, spec)))
    assert re.search(message, str(refused.value))


def _allowed(mesh: Mesh, process: str, verb: str, *what: str) -> bool:
    account = f"system:serviceaccount:{mesh.kubectl.namespace}:gatehouse-{process}"
    try:
        return mesh.kube.kubectl("auth", "can-i", verb, *what, f"--as={account}").strip() == "yes"
    except ClusterError:  # kubectl says no by its exit code, too
        return False


ALLOWED = [
    ("ca", "get", "secrets/gatehouse-ca", "-n", "istio-system"),
    ("ca", "patch", "configmaps/istio-ca-root-cert", "-n", "default"),
    ("injector", "create", "events", "-n", "default"),
    ("upkeep", "patch", "mutatingwebhookconfigurations/gatehouse-sidecar-injector"),
    ("upkeep", "patch", "validatingwebhookconfigurations/gatehouse-policy-validator"),
    ("upkeep", "patch", "authorizationpolicies", "--subresource=status", "-n", "default"),
    ("nodeagent", "list", "pods", "--all-namespaces"),
]
FORBIDDEN = [
    ("ca", "list", "secrets", "-n", "istio-system"),
    ("ca", "get", "secrets/other", "-n", "istio-system"),
    ("ca", "patch", "configmaps/other", "-n", "default"),
    ("ca", "create", "pods", "-n", "default"),
    ("injector", "patch", "mutatingwebhookconfigurations/gatehouse-sidecar-injector"),
    ("injector", "get", "secrets/gatehouse-ca", "-n", "istio-system"),
    ("injector", "patch", "pods", "-n", "default"),
    ("injector", "patch", "validatingwebhookconfigurations/gatehouse-policy-validator"),
    ("injector", "patch", "authorizationpolicies", "--subresource=status", "-n", "default"),
    ("upkeep", "patch", "mutatingwebhookconfigurations/other"),
    ("upkeep", "patch", "validatingwebhookconfigurations/other"),
    ("upkeep", "patch", "authorizationpolicies", "-n", "default"),
    ("upkeep", "get", "secrets/gatehouse-ca", "-n", "istio-system"),
    ("nodeagent", "get", "secrets/gatehouse-ca", "-n", "istio-system"),
    ("nodeagent", "create", "serviceaccounts/token", "-n", "default"),
    ("nodeagent", "patch", "pods", "-n", "default"),
]


@pytest.mark.parametrize("question", ALLOWED, ids=" ".join)
def test_processes_may_do_their_work(mesh: Mesh, question: tuple[str, ...]) -> None:
    assert _allowed(mesh, question[0], *question[1:])


@pytest.mark.parametrize("question", FORBIDDEN, ids=" ".join)
def test_processes_may_do_nothing_else(mesh: Mesh, question: tuple[str, ...]) -> None:
    assert not _allowed(mesh, question[0], *question[1:])
