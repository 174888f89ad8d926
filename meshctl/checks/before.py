"""Before the installation: can Gatehouse run here? Rows that hold afterwards too are used there again."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from injector.core.nodes import NATIVE_MINOR
from mesh.kube.api import KubeCode, KubeError
from meshctl.checks.rows import Check, Row, View, fail, many, ok, skip, warn
from meshctl.cluster import WEBHOOKS, full_name, is_ours, labels_of, name_of
from meshctl.webhooks import evaluate

MIN_MINOR: Final = 20
DRIVER: Final = "csi.gatehouse.dev"
ROOTS: Final = "istio-ca-root-cert"
_PSA: Final = "pod-security.kubernetes.io/enforce"
_MAX_SKEW: Final = dt.timedelta(seconds=10)
_LEASE_AGE: Final = dt.timedelta(seconds=90)
_KUBELET: Final = re.compile(r"v1\.([0-9]{1,3})\..*")
_CRDS: Final = tuple(
    f"{plural}.security.istio.io"
    for plural in ("authorizationpolicies", "peerauthentications", "requestauthentications")
)
_KINDS: Final = (
    ("", "namespaces", False),
    ("apiextensions.k8s.io", "customresourcedefinitions", False),
    ("rbac.authorization.k8s.io", "clusterroles", False),
    ("rbac.authorization.k8s.io", "clusterrolebindings", False),
    ("admissionregistration.k8s.io", "mutatingwebhookconfigurations", False),
    ("admissionregistration.k8s.io", "validatingwebhookconfigurations", False),
    ("storage.k8s.io", "csidrivers", False),
    ("scheduling.k8s.io", "priorityclasses", False),
    ("", "secrets", True),
    ("", "configmaps", True),
    ("", "services", True),
    ("", "serviceaccounts", True),
    ("apps", "deployments", True),
    ("apps", "daemonsets", True),
    ("rbac.authorization.k8s.io", "roles", True),
    ("rbac.authorization.k8s.io", "rolebindings", True),
    ("policy", "poddisruptionbudgets", True),
    ("networking.k8s.io", "networkpolicies", True),
)


def api_version(view: View) -> Iterator[Row]:
    """The API server is new enough, and says what it can do."""
    found = view.cluster.capabilities()
    if found.minor < MIN_MINOR:
        yield fail(
            "api-version",
            f"Kubernetes 1.{found.minor} is too old: 1.{MIN_MINOR} is needed",
            "upgrade the cluster",
        )
        return
    mode = "native sidecars" if found.native_sidecars else "sidecars as ordinary containers (before 1.29)"
    yield ok("api-version", f"Kubernetes 1.{found.minor}: {mode}")
    missing = [
        group for group in ("admissionregistration.k8s.io", "storage.k8s.io") if not found.serves(group, "v1")
    ]
    if not found.endpoint_slices:
        missing.append("discovery.k8s.io")
    if missing:
        yield fail(
            "api-groups",
            f"the API server does not serve {', '.join(missing)}",
            "enable them (--runtime-config of the API server)",
            missing,
        )


def csi_tokens(view: View) -> Iterator[Row]:
    """The API server keeps `tokenRequests` of a CSI driver; sent as a dry run."""
    body = {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "CSIDriver",
        "metadata": {"name": f"meshctl-check.{DRIVER}"},
        "spec": {
            "attachRequired": False,
            "podInfoOnMount": True,
            "volumeLifecycleModes": ["Ephemeral"],
            "requiresRepublish": True,
            "tokenRequests": [{"audience": "istio-ca", "expirationSeconds": 3600}],
        },
    }
    found = view.cluster.api.create("/apis/storage.k8s.io/v1/csidrivers", body, dryRun="All")
    if (found.get("spec") or {}).get("tokenRequests"):
        yield ok("csi-tokens", "CSI drivers get tokens of pods")
    else:
        yield fail(
            "csi-tokens",
            "the API server drops tokenRequests of CSI drivers, so no pod could get an identity",
            "start API server and kubelets with --feature-gates=CSIServiceAccountToken=true (the default"
            " since 1.21)",
        )


def token_keys(view: View) -> Iterator[Row]:
    """The cluster publishes the keys of its service account tokens; the authority checks tokens with them."""
    try:
        keys = view.cluster.api.get("/openid/v1/jwks")
    except KubeError as error:
        if error.code is not KubeCode.NOT_FOUND:
            raise
        keys = {}
    count = len(keys.get("keys") or ()) if isinstance(keys, dict) else 0
    if count:
        yield ok("token-keys", f"the cluster publishes {many(count, 'key')} of its tokens")
    else:
        yield fail(
            "token-keys",
            "the cluster publishes no keys of its service account tokens (/openid/v1/jwks)",
            "give the API server --service-account-issuer and --service-account-jwks-uri",
        )


def rights(view: View) -> Iterator[Row]:
    """The user may make what the chart makes."""
    namespace = view.cluster.mesh_namespace
    missing = [
        f"{resource}.{group}".rstrip(".") + (f" in {namespace}" if inside else "")
        for group, resource, inside in _KINDS
        if not _may_create(view, group, resource, namespace if inside else "")
    ]
    if missing:
        yield fail(
            "rights",
            f"you may not create {len(missing)} of the {len(_KINDS)} kinds of the chart",
            "install as cluster-admin",
            missing,
        )
    else:
        yield ok("rights", f"you may create all {len(_KINDS)} kinds of the chart")


def _may_create(view: View, group: str, resource: str, namespace: str) -> bool:
    wanted = {"verb": "create", "group": group, "resource": resource, "namespace": namespace}
    body = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": wanted},
    }
    found = view.cluster.api.create("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", body)
    return (found.get("status") or {}).get("allowed") is True


def nodes(view: View) -> Iterator[Row]:
    """Nodes that can run the agent: Linux, ready, kubelet new enough."""
    items = view.cluster.items("/api/v1/nodes")
    linux = [n for n in items if is_linux(n)]
    if len(linux) < len(items):
        names = [name_of(n) for n in items if n not in linux]
        yield warn(
            "nodes-os",
            f"{many(len(names), 'node')} without Linux: pods there never get a sidecar",
            "nothing, if that is as it should be",
            names,
        )
    old = [f"{name_of(n)} ({_info(n, 'kubeletVersion')})" for n in linux if _minor(n) < MIN_MINOR]
    if old:
        yield fail("nodes-version", f"kubelets before 1.{MIN_MINOR}", "upgrade these nodes", old)
    classic = [f"{name_of(n)} ({_info(n, 'kubeletVersion')})" for n in linux if _minor(n) < NATIVE_MINOR]
    if classic and view.cluster.capabilities().native_sidecars:
        yield warn(
            "nodes-native",
            f"{many(len(classic), 'kubelet')} before 1.{NATIVE_MINOR}: sidecars are ordinary containers,"
            " except in pods whose nodeSelector keeps them away from such nodes",
            "upgrade these nodes",
            classic,
        )
    unready = [name_of(n) for n in linux if not is_ready(n)]
    if unready:
        yield warn(
            "nodes", f"{len(unready)} of {many(len(linux), 'node')} not ready", "kubectl get nodes", unready
        )
    elif linux:
        yield ok("nodes", f"{many(len(linux), 'Linux node')}, all ready")
    else:
        yield fail("nodes", "the cluster has no Linux node", "add one")


def node_clocks(view: View) -> Iterator[Row]:
    """Clocks of nodes, told by the leases that kubelets renew every few seconds."""
    now = view.cluster.local_now()
    ahead, seen = [], 0
    for lease in view.cluster.items("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"):
        renewed = read_time((lease.get("spec") or {}).get("renewTime"))
        if renewed is None or now - renewed > _LEASE_AGE:
            continue  # a node that is gone, or whose clock is far behind: `nodes` tells
        seen += 1
        if renewed - now > _MAX_SKEW:
            ahead.append(f"{name_of(lease)} (+{int((renewed - now).total_seconds())} s)")
    if ahead:
        yield warn(
            "node-clocks",
            f"{many(len(ahead), 'clock')} ahead of this machine's: young certificates may not be valid yet"
            " elsewhere",
            "run NTP on all nodes, and here",
            ahead,
        )
    elif seen:
        yield ok("node-clocks", f"clocks of {many(seen, 'node')} agree with this machine's")
    else:
        yield skip(
            "node-clocks", "no node has renewed its lease by this machine's clock", "compare clocks (NTP)"
        )


def release_namespace(view: View) -> Iterator[Row]:
    """Pod security of the namespace of Gatehouse allows the node agent."""
    name = view.cluster.mesh_namespace
    item = view.cluster.get(f"/api/v1/namespaces/{name}")
    level = labels_of(item or {}).get(_PSA, "privileged")
    if level != "privileged":
        yield fail(
            "release-namespace",
            f"namespace {name} enforces pod security {level!r}; the node agent mounts node directories",
            f"kubectl label namespace {name} --overwrite {_PSA}=privileged",
        )
    elif item is None:
        yield ok("release-namespace", f"namespace {name} does not exist yet: --create-namespace makes it")
    else:
        yield ok("release-namespace", f"namespace {name} exists and allows the node agent")


def other_meshes(view: View) -> Iterator[Row]:
    """Webhooks of other meshes that would answer to the same label."""
    asked = evaluate(
        view.cluster.items(WEBHOOKS), namespace_labels={"istio-injection": "enabled"}, pod_labels={}
    )
    others = [w for w in asked if w.mesh not in {"", "gatehouse"}]
    clashing = [f"{w.configuration}: {w.name}" for w in others if w.called]
    if clashing:
        yield fail(
            "other-meshes",
            "another mesh injects where namespaces are labelled istio-injection=enabled: pods would get two"
            " sidecars",
            "uninstall it, or give Gatehouse a revision of its own (--set injector.revision=gatehouse) and"
            " label namespaces istio.io/rev=gatehouse",
            clashing,
        )
    elif others:
        names = sorted({f"{w.configuration} ({w.mesh})" for w in others})
        yield warn(
            "other-meshes",
            "another mesh is installed; it answers to other labels",
            "give no namespace the labels of both",
            names,
        )
    else:
        yield ok("other-meshes", "no other mesh injects sidecars here")


def policy_kinds(view: View) -> Iterator[Row]:
    """Definitions of the policy kinds that are not ours."""
    foreign = []
    for name in _CRDS:
        item = view.cluster.get(f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}")
        if item is not None and labels_of(item).get("app.kubernetes.io/part-of") != "gatehouse":
            foreign.append(name)
    if foreign:
        yield warn(
            "policy-kinds",
            "definitions of policy kinds are there already, and not from this chart",
            "install with --set crds.install=false",
            foreign,
        )
    else:
        yield ok("policy-kinds", "policy kinds of security.istio.io are free")


def leftovers(view: View) -> Iterator[Row]:
    """Roots of an earlier installation."""
    if any(is_ours(item) for item in view.cluster.items(WEBHOOKS)):
        return  # they are those of this one
    maps = view.cluster.items("/api/v1/configmaps", fields=f"metadata.name={ROOTS}")
    if maps:
        names = [full_name(item) for item in maps]
        yield warn(
            "leftovers",
            f"{many(len(maps), 'namespace')} with root certificates of an earlier installation, or of another"
            " mesh: the authority makes no second root beside them",
            f"restore the old root, or; kubectl delete configmap -A --field-selector metadata.name={ROOTS}",
            names,
        )
    else:
        yield ok("leftovers", "no roots of an earlier installation")


def not_yet(view: View) -> Iterator[Row]:
    """Gatehouse is not there already."""
    ours = [name_of(item) for item in view.cluster.items(WEBHOOKS) if is_ours(item)]
    if ours:
        yield warn(
            "installed",
            "Gatehouse is installed already",
            "meshctl check (without --pre), or helm upgrade",
            ours,
        )


BEFORE: Final[Mapping[str, Mapping[str, Check]]] = {
    "cluster": {
        "api-version": api_version,
        "csi-tokens": csi_tokens,
        "token-keys": token_keys,
        "rights": rights,
    },
    "nodes": {"nodes": nodes, "node-clocks": node_clocks},
    "room": {
        "installed": not_yet,
        "release-namespace": release_namespace,
        "other-meshes": other_meshes,
        "policy-kinds": policy_kinds,
        "leftovers": leftovers,
    },
}
"""Section -> check by name, in the order in which they are told."""


# --- reading objects -----------------------------------------------------------------------------------


def is_ready(node: Mapping[str, Any]) -> bool:
    """The node's condition Ready is True."""
    conditions = (node.get("status") or {}).get("conditions") or ()
    return any(c.get("type") == "Ready" and c.get("status") == "True" for c in conditions)


def is_linux(node: Mapping[str, Any]) -> bool:
    """The node runs Linux; a node that does not say so counts."""
    return _info(node, "operatingSystem") in {"linux", ""}


def read_time(text: object) -> dt.datetime | None:
    """A time of the API; None when it is none."""
    try:
        found = dt.datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return found if found.tzinfo is not None else None


def _info(node: Mapping[str, Any], name: str) -> str:
    return str(((node.get("status") or {}).get("nodeInfo") or {}).get(name) or "")


def _minor(node: Mapping[str, Any]) -> int:
    match = _KUBELET.fullmatch(_info(node, "kubeletVersion"))
    return int(match[1]) if match else MIN_MINOR  # a node that has not said it yet
