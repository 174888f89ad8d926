"""AdmissionReviews about policies, and policies that are broken in one way or another."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

Object = dict[str, Any]
PLURALS = {
    "PeerAuthentication": "peerauthentications",
    "RequestAuthentication": "requestauthentications",
    "AuthorizationPolicy": "authorizationpolicies",
}
GOOD_SPECS: Mapping[str, Any] = {
    "PeerAuthentication": {"mtls": {"mode": "STRICT"}},
    "RequestAuthentication": {
        "jwtRules": [{"issuer": "https://issuer.example", "jwksUri": "https://issuer.example/jwks"}]
    },
    "AuthorizationPolicy": {
        "rules": [
            {
                "from": [{"source": {"principals": ["cluster.local/ns/shop/sa/web"]}}],
                "to": [{"operation": {"methods": ["GET"], "paths": ["/api/*"]}}],
                "when": [{"key": "request.headers[x-team]", "values": ["a", "b*"]}],
            }
        ]
    },
}


def when(*keys: str) -> Object:
    """The spec of an AuthorizationPolicy with such conditions."""
    return {"rules": [{"when": [{"key": key, "values": ["a"]} for key in keys]}]}


def stored(kind: str, spec: Any = None, *, version: str = "v1", **metadata: Any) -> Object:
    """A policy as an API server shows it to a webhook."""
    meta = {
        "name": "probe",
        "namespace": "shop",
        "uid": "8d1c3a9e-1111-2222-3333-444455556666",
        "generation": 1,
        "creationTimestamp": "2026-06-01T12:00:00Z",
        "managedFields": [{"manager": "kubectl", "operation": "Apply"}],
    }
    return {
        "apiVersion": f"security.istio.io/{version}",
        "kind": kind,
        "metadata": meta | metadata,
        "spec": GOOD_SPECS[kind] if spec is None else spec,
    }


def review(item: Any, old: Any = None, **changes: Any) -> Object:
    """A review of the creation of an object, or with `old` of its change."""
    kind, version = "AuthorizationPolicy", "v1"
    if isinstance(item, dict):
        kind = item.get("kind", kind)
        version = str(item.get("apiVersion", "")).rpartition("/")[2] or version
    request = {
        "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
        "kind": {"group": "security.istio.io", "version": version, "kind": kind},
        "resource": {"group": "security.istio.io", "version": version, "resource": PLURALS.get(kind, "x")},
        "name": "probe",
        "namespace": "shop",
        "operation": "CREATE" if old is None else "UPDATE",
        "object": item,
        "oldObject": old,
        "dryRun": False,
    } | changes
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}


def body(item: Any, old: Any = None, **changes: Any) -> bytes:
    return json.dumps(review(item, old, **changes)).encode()
