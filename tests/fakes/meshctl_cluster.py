"""A fake cluster with Gatehouse installed, all well; tests then break one thing."""

from __future__ import annotations

import base64
import datetime as dt
import functools
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from injector.core.inject import ClusterFeatures, inject
from injector.core.patch import apply_patch
from injector.core.policies import decide_policy
from injector.core.settings import InjectorSettings
from meshctl.cluster import load_config
from tests.fakes.ca_status import status_map
from tests.fakes.kube_answers import Request
from tests.fakes.kube_api import FakeKube
from tests.fakes.kube_store import Resource

NAMESPACE = "istio-system"
WEBHOOK = "gatehouse-sidecar-injector"
VALIDATION = "gatehouse-policy-validator"
POLICIES = "/apis/security.istio.io/v1/namespaces/default/peerauthentications"
CONFIG = "namespace: istio-system\nservice: gatehouse-injector\ninjection: {version: 0.1.0}\n"
WEBHOOKS: Mapping[str, tuple[Any, Any]] = {
    "namespace": (
        [{"key": "istio-injection", "operator": "In", "values": ["enabled"]}],
        [{"key": "sidecar.istio.io/inject", "operator": "NotIn", "values": ["false"]}],
    ),
    "object": (
        [
            {"key": "istio-injection", "operator": "DoesNotExist"},
            {"key": "istio.io/rev", "operator": "DoesNotExist"},
        ],
        [
            {"key": "sidecar.istio.io/inject", "operator": "In", "values": ["true"]},
            {"key": "istio.io/rev", "operator": "DoesNotExist"},
        ],
    ),
    "rev.namespace": (
        [
            {"key": "istio.io/rev", "operator": "In", "values": ["default"]},
            {"key": "istio-injection", "operator": "DoesNotExist"},
        ],
        [{"key": "sidecar.istio.io/inject", "operator": "NotIn", "values": ["false"]}],
    ),
    "rev.object": (
        [
            {"key": "istio.io/rev", "operator": "DoesNotExist"},
            {"key": "istio-injection", "operator": "DoesNotExist"},
        ],
        [
            {"key": "sidecar.istio.io/inject", "operator": "NotIn", "values": ["false"]},
            {"key": "istio.io/rev", "operator": "In", "values": ["default"]},
        ],
    ),
}
"""Namespace and pod requirements of the chart's webhooks, by the first part of their names."""


@functools.cache
def root_pem(name: str = "Gatehouse root", year: int = 2090) -> str:
    """A root that is valid until the end of a year."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = x509.CertificateBuilder(
        issuer_name=subject,
        subject_name=subject,
        public_key=key.public_key(),
        serial_number=7,
        not_valid_before=dt.datetime(2020, 1, 1, tzinfo=dt.UTC),
        not_valid_after=dt.datetime(year, 12, 31, tzinfo=dt.UTC),
    ).add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode("ascii")


def webhook_configuration(bundle: str = "") -> dict[str, Any]:
    """The chart's configuration with a caBundle."""
    excluded = {"key": "kubernetes.io/metadata.name", "operator": "NotIn"}
    part_of = {"key": "app.kubernetes.io/part-of", "operator": "NotIn", "values": ["gatehouse"]}
    client: dict[str, Any] = {
        "service": {"name": "gatehouse-injector", "namespace": NAMESPACE, "path": "/inject/v1", "port": 443}
    }
    if bundle:
        client["caBundle"] = base64.b64encode(bundle.encode()).decode()
    rules = [
        {
            "operations": ["CREATE"],
            "apiGroups": [""],
            "apiVersions": ["v1"],
            "resources": ["pods"],
            "scope": "Namespaced",
        }
    ]
    webhooks = [
        {
            "name": f"{name}.sidecar-injector.gatehouse.dev",
            "clientConfig": client,
            "rules": rules,
            "failurePolicy": "Fail",
            "namespaceSelector": {
                "matchExpressions": [*around, {**excluded, "values": ["kube-system", NAMESPACE]}]
            },
            "objectSelector": {"matchExpressions": [*own, part_of]},
        }
        for name, (around, own) in WEBHOOKS.items()
    ]
    return {
        "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": WEBHOOK, "labels": {"app": "gatehouse"}},
        "webhooks": webhooks,
    }


def validating_configuration(bundle: str = "") -> dict[str, Any]:
    """The chart's configuration for policies."""
    client: dict[str, Any] = {"service": {"name": "gatehouse-injector", "namespace": NAMESPACE}}
    if bundle:
        client["caBundle"] = base64.b64encode(bundle.encode()).decode()
    return {
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": VALIDATION, "labels": {"app": "gatehouse"}},
        "webhooks": [{"name": "policies.policy-validator.gatehouse.dev", "clientConfig": client}],
    }


def istio_configuration() -> dict[str, Any]:
    """Istio's own, which answers to the same label."""
    ours = webhook_configuration()
    webhook = {**ours["webhooks"][0], "name": "namespace.sidecar-injector.istio.io"}
    webhook["namespaceSelector"] = {"matchLabels": {"istio-injection": "enabled"}}
    return {
        "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": "istio-sidecar-injector", "labels": {"app": "sidecar-injector"}},
        "webhooks": [webhook],
    }


def namespace(name: str, **labels: str) -> dict[str, Any]:
    return {
        "kind": "Namespace",
        "metadata": {
            "name": name,
            "labels": {key.replace("__", "/").replace("_", "-"): v for key, v in labels.items()},
        },
    }


def pod(name: str, *, node: str = "node1", ready: bool = True, **metadata: Any) -> dict[str, Any]:
    """A pod of namespace shop, owned by deployment web."""
    return {
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": "shop",
            "creationTimestamp": "2026-06-01T12:00:00Z",
            "labels": {"app": "web", "pod-template-hash": "5d9c"},
            "ownerReferences": [{"kind": "ReplicaSet", "name": "web-5d9c", "controller": True}],
            **metadata,
        },
        "spec": {"nodeName": node, "containers": [{"name": "web", "image": "web:1"}]},
        "status": {
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
            "containerStatuses": [{"name": "web", "ready": ready, "state": {"running": {}}}],
        },
    }


def injected(plain: Mapping[str, Any], settings: InjectorSettings | None = None) -> dict[str, Any]:
    """The pod as the webhook makes it, in classic mode."""
    result = inject(
        plain,
        namespace="shop",
        namespace_labels={"istio-injection": "enabled"},
        namespace_annotations={},
        config=settings or settings_of_cluster(),
        capabilities=ClusterFeatures(native_sidecars=False),
    )
    assert result.patch, result.decision
    found = apply_patch(plain, result.patch)
    ready = plain["status"]["conditions"][0]["status"] == "True"
    state = {"name": "istio-proxy", "ready": ready, "state": {"running": {}}}
    found["status"]["containerStatuses"].append(state)
    return found


@functools.cache
def settings_of_cluster() -> InjectorSettings:
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "injector.yaml"
        path.write_text(CONFIG)
        return load_config(path).settings()


def agent_pod(node: str) -> dict[str, Any]:
    """The agent of a node."""
    found = pod(f"gatehouse-nodeagent-{node}", node=node, namespace=NAMESPACE, labels=component("nodeagent"))
    del found["metadata"]["ownerReferences"]
    return found


def component(name: str) -> dict[str, str]:
    return {"app.kubernetes.io/part-of": "gatehouse", "app.kubernetes.io/component": name}


def node(name: str) -> dict[str, Any]:
    return {
        "kind": "Node",
        "metadata": {"name": name},
        "status": {
            "nodeInfo": {"operatingSystem": "linux", "kubeletVersion": "v1.20.2"},
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


def root_map(where: str, pem: str | None = None) -> dict[str, Any]:
    return {
        "kind": "ConfigMap",
        "metadata": {"name": "istio-ca-root-cert", "namespace": where},
        "data": {"root-cert.pem": root_pem() if pem is None else pem},
    }


def csi_driver(**spec: Any) -> dict[str, Any]:
    wanted = {"tokenRequests": [{"audience": "istio-ca"}], "requiresRepublish": True}
    return {"kind": "CSIDriver", "metadata": {"name": "csi.gatehouse.dev"}, "spec": {**wanted, **spec}}


def csi_node(name: str, *drivers: str) -> dict[str, Any]:
    return {
        "kind": "CSINode",
        "metadata": {"name": name},
        "spec": {"drivers": [{"name": driver} for driver in drivers]},
    }


def empty(kube: FakeKube) -> None:
    """A cluster of two nodes where nothing is installed."""
    kube.resources.append(Resource("storage.k8s.io", ("v1",), "csinodes", "CSINode", False))
    now = dt.datetime.now(dt.UTC).isoformat()
    for name in ("node1", "node2"):
        kube.add(node(name))
        kube.add(
            {
                "kind": "Lease",
                "metadata": {"name": name, "namespace": "kube-node-lease"},
                "spec": {"renewTime": now},
            }
        )
    kube.documents["/openid/v1/jwks"] = {"keys": [{"kid": "a"}]}


def install(kube: FakeKube) -> None:
    """Gatehouse, a labelled namespace, and one injected pod."""
    empty(kube)
    kube.add(webhook_configuration(root_pem()), validating_configuration(root_pem()), csi_driver())
    kube.add(namespace("shop", istio_injection="enabled"))
    for name in ("default", "kube-system", NAMESPACE, "shop"):
        kube.add(root_map(name))
    kube.add(
        {
            "kind": "ConfigMap",
            "metadata": {"name": "gatehouse-injector-config", "namespace": NAMESPACE},
            "data": {"injector.yaml": CONFIG},
        }
    )
    kube.add(status_map(NAMESPACE))
    for name, replicas in (("ca", 2), ("injector", 2), ("upkeep", 1)):
        kube.add(deployment(name, replicas, replicas))
    for name in ("node1", "node2"):
        kube.add(agent_pod(name), csi_node(name, "csi.gatehouse.dev"))
    kube.add(injected(pod("web-5d9c-a")))
    kube.routes["POST", "/api/v1/namespaces/shop/pods"] = dry_run
    kube.routes["POST", POLICIES] = judged


def deployment(name: str, replicas: int, ready: int) -> dict[str, Any]:
    return {
        "kind": "Deployment",
        "metadata": {"name": f"gatehouse-{name}", "namespace": NAMESPACE, "labels": component(name)},
        "spec": {
            "replicas": replicas,
            "template": {"spec": {"containers": [{"name": name, "image": "gatehouse/control:0.1.0"}]}},
        },
        "status": {"readyReplicas": ready},
    }


def dry_run(request: Request) -> tuple[int, Any]:
    """What the API server answers after it has called the webhook."""
    assert request.query["dryRun"] == "All"
    return 201, {**injected({**pod("x"), **request.body}), "kind": "Pod", "apiVersion": "v1"}


def judged(request: Request) -> tuple[int, Any]:
    """What the API server answers to a policy after it has called the webhook."""
    assert request.query["dryRun"] == "All"
    meta = {"name": "meshctl-check-x", "namespace": "default"}
    decision = decide_policy({**request.body, "metadata": meta}, None, request.body["kind"])
    if decision.allowed:
        return 201, request.body
    message = "\n".join([f"{decision.reason}: {decision.message}", *decision.problems])
    said = f'admission webhook "policies.policy-validator.gatehouse.dev" denied the request: {message}'
    return 400, {"kind": "Status", "status": "Failure", "code": 400, "reason": "BadRequest", "message": said}


@contextmanager
def installed(change: Callable[[FakeKube], None] | None = None) -> Iterator[FakeKube]:
    """A running fake cluster with Gatehouse."""
    with FakeKube() as kube:
        install(kube)
        if change:
            change(kube)
        yield kube


def status_annotation(item: Mapping[str, Any]) -> dict[str, Any]:
    """The status that the injector wrote."""
    return dict(json.loads(item["metadata"]["annotations"]["sidecar.istio.io/status"]))
