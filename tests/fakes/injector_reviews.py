"""AdmissionReviews for tests of the webhook."""

from __future__ import annotations

import copy
import json
from typing import Any

POD: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {
        "generateName": "web-7d9c5b8f6-",
        "labels": {"app": "web", "pod-template-hash": "7d9c5b8f6"},
        "ownerReferences": [
            {
                "apiVersion": "apps/v1",
                "kind": "ReplicaSet",
                "name": "web-7d9c5b8f6",
                "uid": "3e2f1d0c-9b8a-4756-8453-21fedcba0987",
                "controller": True,
            }
        ],
    },
    "spec": {
        "serviceAccountName": "web",
        "containers": [
            {"name": "web", "image": "registry.example/web:1", "ports": [{"containerPort": 8080}]}
        ],
    },
}


def pod(**metadata: Any) -> dict[str, Any]:
    """The pod with further metadata, e.g. `annotations={...}`."""
    made = copy.deepcopy(POD)
    made["metadata"] |= metadata
    return made


def request(**changes: Any) -> dict[str, Any]:
    """An AdmissionRequest; a change to None removes the field."""
    made: dict[str, Any] = {
        "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
        "kind": {"group": "", "version": "v1", "kind": "Pod"},
        "resource": {"group": "", "version": "v1", "resource": "pods"},
        "namespace": "shop",
        "operation": "CREATE",
        "object": pod(),
        "oldObject": None,
        "dryRun": False,
    } | changes
    return made


def review(**changes: Any) -> dict[str, Any]:
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request(**changes)}


def body(**changes: Any) -> bytes:
    return json.dumps(review(**changes)).encode()
