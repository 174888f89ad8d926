"""The file-mode directory of the scenario: what exists, and who may do what.

The policies are text, as a person would write them for a cluster: these files are part of what the
demo shows, and `--keep` invites to edit them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from examples.demo import layout as at
from examples.demo.issuer import AUDIENCE, USERS, USERS_JWKS, Issuer, workload_token, write_atomically
from examples.demo.layout import NAMESPACE, WORKLOADS, Layout, principal

DRAIN_SECONDS = 3
"""How long old connections live after a change of their listener."""

_OURS = "gatehouse.dev/v1alpha1"

MTLS = f"""\
# Everything in the namespace speaks mutual TLS and nothing else ...
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{namespace: {NAMESPACE}, name: default}}
spec:
  mtls: {{mode: STRICT}}
---
# ... but web is the front door: people come to it with curl.
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{namespace: {NAMESPACE}, name: web}}
spec:
  selector: {{matchLabels: {{app: web}}}}
  mtls: {{mode: STRICT}}
  portLevelMtls:
    "{at.HTTP["web"]}": {{mode: PERMISSIVE}}
"""

REVIEWS_MTLS = f"""\
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{namespace: {NAMESPACE}, name: reviews}}
spec:
  selector: {{matchLabels: {{app: reviews}}}}
  mtls: {{mode: STRICT}}
"""

REVIEWS = f"""\
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {{namespace: {NAMESPACE}, name: reviews-users}}
spec:
  selector: {{matchLabels: {{app: reviews}}}}
  jwtRules:
    - issuer: {USERS}
      audiences: [{AUDIENCE}]
      jwksUri: {USERS_JWKS}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{namespace: {NAMESPACE}, name: reviews-callers}}
spec:
  selector: {{matchLabels: {{app: reviews}}}}
  action: ALLOW
  rules:
    # Anybody may ask how it is; note that this needs no identity.
    - to: [{{operation: {{methods: [GET], paths: [/health]}}}}]
    # web may read everything but the account pages,
    - from: [{{source: {{principals: [{principal("web")}]}}}}]
      to: [{{operation: {{methods: [GET], notPaths: [/account, /account/*]}}}}]
    # for these it must bring a token of a person,
    - from: [{{source: {{principals: [{principal("web")}], requestPrincipals: ["{USERS}/*"]}}}}]
      to: [{{operation: {{methods: [GET], paths: [/account, /account/*]}}}}]
    # and deleting is for administrators.
    - from: [{{source: {{principals: [{principal("web")}]}}}}]
      to: [{{operation: {{methods: [DELETE], paths: [/reviews/*]}}}}]
      when: [{{key: "request.auth.claims[groups]", values: [admin]}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{namespace: {NAMESPACE}, name: reviews-no-admin}}
spec:
  selector: {{matchLabels: {{app: reviews}}}}
  action: DENY
  rules:
    - to: [{{operation: {{paths: [/admin]}}}}]
"""

RATINGS = f"""\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{namespace: {NAMESPACE}, name: ratings-callers}}
spec:
  selector: {{matchLabels: {{app: ratings}}}}
  action: ALLOW
  rules:
    - from: [{{source: {{principals: [{principal("reviews")}]}}}}]
      to: [{{operation: {{methods: [GET], ports: ["{at.HTTP["ratings"]}"]}}}}]
    # The database is for ratings itself.
    - from: [{{source: {{principals: [{principal("ratings")}]}}}}]
      to: [{{operation: {{ports: ["{at.DATABASE}"]}}}}]
"""

WEB = f"""\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{namespace: {NAMESPACE}, name: web-private}}
spec:
  selector: {{matchLabels: {{app: web}}}}
  action: DENY
  rules:
    - from: [{{source: {{principals: [{principal("intruder")}]}}}}]
      to: [{{operation: {{paths: [/private]}}}}]
"""

LIVE = f"""\
# Edit me while the demo runs: the proxies obey within a second.
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{namespace: {NAMESPACE}, name: reviews-live}}
spec:
  selector: {{matchLabels: {{app: reviews}}}}
  action: DENY
  rules:
    - to:
        - operation:
            paths: [/closed]
"""

POLICIES = {
    "mtls.yaml": MTLS,
    "mtls-reviews.yaml": REVIEWS_MTLS,
    "reviews.yaml": REVIEWS,
    "ratings.yaml": RATINGS,
    "web.yaml": WEB,
    "live.yaml": LIVE,
}

_EGRESS = {
    "web": {"reviews": at.EGRESS_REVIEWS},
    "reviews": {"ratings": at.EGRESS_RATINGS, "database": at.EGRESS_DATABASE},
    "ratings": {"database": at.EGRESS_DATABASE, "reviews": at.EGRESS_REVIEWS},
    "intruder": {
        "web": at.EGRESS_WEB,
        "reviews": at.EGRESS_REVIEWS,
        "ratings": at.EGRESS_RATINGS,
        "database": at.EGRESS_DATABASE,
    },
}


def host_name(service: str) -> str:
    """Name of a service in the mesh."""
    return f"{service}.{NAMESPACE}.svc.{at.TRUST_DOMAIN}"


def write_all(layout: Layout, *, users: Issuer, cluster: Issuer) -> None:
    """Write the directory that the agent reads, the tokens and the key sets."""
    for directory in (layout.mesh, layout.policies, layout.tokens, layout.keys, layout.logs):
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_tokens(layout, cluster)
    write_atomically(layout.keys / "users.json", json.dumps(users.key_set(), indent=1))
    write_atomically(layout.keys / "cluster.json", json.dumps(cluster.key_set(), indent=1))
    _dump(layout.mesh / "mesh.yaml", [_mesh(), _key_set()])
    _dump(layout.mesh / "workloads.yaml", [_workload(layout, name) for name in WORKLOADS])
    for name in (*WORKLOADS, "database"):
        write_service(layout, name)
    for name, text in POLICIES.items():
        write_atomically(layout.policies / name, text)


def write_tokens(layout: Layout, cluster: Issuer) -> None:
    """Write fresh workload tokens, as a kubelet does from time to time."""
    for name in WORKLOADS:
        path = layout.tokens / f"{name}.jwt"
        write_atomically(path, workload_token(cluster, name))
        path.chmod(0o600)


def write_service(layout: Layout, name: str, endpoints: list[dict[str, Any]] | None = None) -> None:
    """Write one service; `endpoints` instead of the workloads that its selector finds."""
    database = name == "database"
    port: dict[str, Any] = {
        "number": at.DATABASE if database else at.HTTP[name],
        "protocol": "TCP" if database else "HTTP",
    }
    spec: dict[str, Any] = {"ports": [port]}
    if endpoints is None:
        spec["selector"] = {"app": "ratings" if database else name}
    else:
        port["endpoints"] = endpoints
    _dump(layout.mesh / f"service-{name}.yaml", [_document("Service", name, spec)])


def _mesh() -> dict[str, Any]:
    spec = {
        "trustDomain": at.TRUST_DOMAIN,
        "pathNormalization": "DECODE_AND_MERGE_SLASHES",
        "forwardClientCert": "SANITIZE_SET",
        "drainSeconds": DRAIN_SECONDS,
    }
    return {"apiVersion": _OURS, "kind": "Mesh", "metadata": {"name": "mesh"}, "spec": spec}


def _key_set() -> dict[str, Any]:
    spec = {"issuer": USERS, "jwksUri": USERS_JWKS, "file": "../keys/users.json"}
    return {"apiVersion": _OURS, "kind": "KeySet", "metadata": {"name": "users"}, "spec": spec}


def _workload(layout: Layout, name: str) -> dict[str, Any]:
    host = layout.host(name)
    ports: list[dict[str, Any]] = [
        {
            "number": at.HTTP[name],
            "protocol": "HTTP",
            "name": "http",
            "app": "{}:{}".format(*layout.app(name)),
        }
    ]
    if name == "ratings":
        ports.append(
            {
                "number": at.DATABASE,
                "protocol": "TCP",
                "name": "database",
                "serverFirst": True,
                "app": f"{host}:{at.DATABASE + at.APP_OFFSET}",
            }
        )
    egress = [
        {
            "bind": f"{host}:{port}",
            "service": host_name(service),
            "port": at.DATABASE if service == "database" else at.HTTP[service],
        }
        for service, port in _EGRESS[name].items()
    ]
    spec = {
        "serviceAccount": name,
        "tokenFile": f"../tokens/{name}.jwt",
        "address": host,
        "ports": ports,
        "egress": egress,
    }
    return {**_document("Workload", name, spec), "metadata": _metadata(name, labels={"app": name})}


def _document(kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": _OURS, "kind": kind, "metadata": _metadata(name), "spec": spec}


def _metadata(name: str, **more: Any) -> dict[str, Any]:
    return {"namespace": NAMESPACE, "name": name, **more}


def _dump(path: Path, documents: list[dict[str, Any]]) -> None:
    write_atomically(path, yaml.safe_dump_all(documents, sort_keys=False))
