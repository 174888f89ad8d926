"""Objects that the cluster tests create."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

RESTRICTED: dict[str, Any] = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "runAsNonRoot": True,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}
"""The securityContext of Pod Security's level `restricted`, with a read-only root on top."""


def pod(
    name: str,
    image: str,
    *,
    command: Sequence[str] = (),
    args: Sequence[str] = (),
    node: str = "",
    labels: dict[str, str] | None = None,
    annotations: dict[str, str] | None = None,
    account: str = "default",
    security: dict[str, Any] | None = None,
    ports: Sequence[int] = (),
    init: Sequence[dict[str, Any]] = (),
    restart: str = "Always",
    container: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """A pod with one container `app`; `container` adds fields to it."""
    app: dict[str, Any] = {
        "name": "app",
        "image": image,
        "securityContext": RESTRICTED if security is None else security,
        "ports": [{"containerPort": port} for port in ports],
        **({"command": list(command)} if command else {}),
        **({"args": list(args)} if args else {}),
        **(container or {}),
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels or {"app": name}, "annotations": annotations or {}},
        "spec": {
            "serviceAccountName": account,
            "automountServiceAccountToken": False,
            "restartPolicy": restart,
            "terminationGracePeriodSeconds": 15,
            "initContainers": list(init),
            "containers": [app],
            **({"nodeSelector": {"kubernetes.io/hostname": node}} if node else {}),
        },
    }


def deployment(pod_object: dict[str, Any], replicas: int = 1) -> dict[str, Any]:
    """A Deployment of such pods, selected by their label `app`."""
    meta = pod_object["metadata"]
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": meta["name"]},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": meta["labels"]["app"]}},
            "template": {
                "metadata": {"labels": meta["labels"], "annotations": meta["annotations"]},
                "spec": pod_object["spec"],
            },
        },
    }


def service(name: str, port: int, *, target: int | None = None, port_name: str = "http") -> dict[str, Any]:
    """A Service in front of the pods labelled `app: name`."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {
            "selector": {"app": name},
            "ports": [{"name": port_name, "port": port, "targetPort": target or port}],
        },
    }


def account(name: str) -> dict[str, Any]:
    """A service account."""
    return {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}}
