"""The objects of `meshctl check --traffic`: one server, three callers, and the rules between them.

Values in, values out. All selectors name this run only, so that nothing else in the namespace is touched.
Pods fit Pod Security `restricted`, apart from what injection adds.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from injector.core.keys import ENABLED, INJECT, NAMESPACE_LABEL, POD_SECURITY, REVISION, SIDECAR
from injector.core.policies import plural_of
from mesh.policy.model import (
    API_VERSIONS,
    AUTHORIZATION_POLICY,
    PEER_AUTHENTICATION,
    REQUEST_AUTHENTICATION,
)
from meshctl.traffic.probe import CLOSED, Ask, write_requests

Json = dict[str, Any]

PORT: Final = 8080
NAME: Final = "meshctl-traffic"
NAME_LABEL: Final = "app.kubernetes.io/name"
RUN_LABEL: Final = "app.kubernetes.io/instance"
ROLE_LABEL: Final = "app.kubernetes.io/component"
_MANAGED: Final = {"app.kubernetes.io/managed-by": "meshctl"}
OPEN, LOCKED, READY = "/identity", "/token", "/ready"
"""Paths: who you are is enough; a token is needed too; for the kubelet."""
GARBAGE: Final = "garbage"
"""No token at all."""
MAX_CLIENT_SECONDS: Final = 30.0


class Role(enum.Enum):
    """Pods, and the first part of their names."""

    SERVER = "server"
    ALLOWED = "allowed"
    OTHER = "other"
    OUTSIDE = "outside"


CLIENTS: Final = (Role.ALLOWED, Role.OTHER, Role.OUTSIDE)
INJECTED: Final = frozenset({Role.SERVER, Role.ALLOWED, Role.OTHER})


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run is made of.

    Attributes:
        run: random suffix of all names.
        own: the namespace is made for this run, and removed with it.
        image: the control image; `pull_policy` and `pull_secrets` (names of Secrets) as the control plane
            has them.
        revision: of the installation; "default" answers to `istio-injection=enabled`.
        jwks: keys of this run's token issuer; `token` is a good token of it. Both are of use for this run's
            server only: the key is forgotten at once.
        client_seconds: how long a client asks, seconds.
        life_seconds: after which the kubelet ends the pods, should nobody else; None = never (`--keep`).
    """

    run: str
    namespace: str
    own: bool
    image: str
    pull_policy: str = ""
    pull_secrets: tuple[str, ...] = ()
    revision: str = "default"
    trust_domain: str = "cluster.local"
    issuer: str
    jwks: str
    token: str
    client_seconds: float = MAX_CLIENT_SECONDS
    life_seconds: int | None = None

    def name(self, role: Role) -> str:
        """Of the pod, its service account and, of the server, its Service."""
        return f"{role.value}-{self.run}"

    def asks(self, role: Role) -> tuple[Ask, ...]:
        """What a client asks, and what it should get."""
        match role:
            case Role.ALLOWED:
                return (
                    Ask(name="identity", path=OPEN, status=200, text=self.run),
                    _denied("no token", LOCKED),
                    # The text is that of Envoy's jwt_authn filter: the server itself knows no 401.
                    Ask(name="garbage token", path=LOCKED, token=GARBAGE, status=401, text="Jwt "),
                    Ask(name="good token", path=LOCKED, token=self.token, status=200, text=self.run),
                )
            case Role.OTHER:
                return (_denied("other identity", OPEN),)
            case Role.OUTSIDE:
                return (Ask(name="plaintext", path=OPEN, error=CLOSED),)
            case Role.SERVER:
                return ()


@dataclass(frozen=True, slots=True)
class Made:
    """An object, and the collection that it is created in."""

    path: str
    body: Json

    @property
    def item(self) -> str:
        """The path of the object."""
        return f"{self.path}/{self.body['metadata']['name']}"

    @property
    def title(self) -> str:
        """For messages."""
        return f"{self.body['kind']} {self.body['metadata']['name']}"


def namespace_of(plan: Plan) -> Made:
    """The namespace of this run: labelled for injection, and open for what injection adds."""
    default = plan.revision == "default"
    injected = {NAMESPACE_LABEL: ENABLED} if default else {REVISION: plan.revision}
    # Some clusters enforce `baseline` where a namespace says nothing; istio-init needs NET_ADMIN.
    labels = {**_labels(plan), **injected, POD_SECURITY: "privileged"}
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": plan.namespace, "labels": labels}}
    return Made("/api/v1/namespaces", body)


def before_pods(plan: Plan) -> Sequence[Made]:
    """Service accounts, the Service, and the rules."""
    accounts = [
        _core(plan, "serviceaccounts", "ServiceAccount", plan.name(role), automountServiceAccountToken=False)
        for role in Role
    ]
    port = {"name": "http", "port": PORT, "targetPort": PORT}
    spec = {"selector": _labels(plan, Role.SERVER), "ports": [port]}
    service = _core(plan, "services", "Service", plan.name(Role.SERVER), spec=spec)
    caller = f"{plan.trust_domain}/ns/{plan.namespace}/sa/{plan.name(Role.ALLOWED)}"
    by_identity = {"principals": [caller]}
    by_token = {**by_identity, "requestPrincipals": [f"{plan.issuer}/*"]}
    rules = [
        {"from": [{"source": source}], "to": [{"operation": {"paths": [path], "methods": ["GET"]}}]}
        for source, path in ((by_identity, OPEN), (by_token, LOCKED))
    ]
    return (
        *accounts,
        service,
        _policy(plan, PEER_AUTHENTICATION, {"mtls": {"mode": "STRICT"}}),
        _policy(plan, REQUEST_AUTHENTICATION, {"jwtRules": [{"issuer": plan.issuer, "jwks": plan.jwks}]}),
        _policy(plan, AUTHORIZATION_POLICY, {"action": "ALLOW", "rules": rules}),
    )


def server(plan: Plan) -> Made:
    """The pod that is asked."""
    command = ["serve", f"--port={PORT}", f"--answer={plan.run}"]
    probe = {"httpGet": {"path": READY, "port": PORT}, "periodSeconds": 1, "timeoutSeconds": 5}
    extra = {"ports": [{"name": "http", "containerPort": PORT}], "readinessProbe": probe}
    return _pod(plan, Role.SERVER, command, extra, {"restartPolicy": "Always"})


def client(plan: Plan, role: Role) -> Made:
    """A pod that asks, on another node than the server where there is one, and ends."""
    command = [
        "ask",
        f"--host={plan.name(Role.SERVER)}.{plan.namespace}",
        f"--port={PORT}",
        f"--seconds={plan.client_seconds:g}",
        f"--requests={write_requests(plan.asks(role))}",
    ]
    term = {
        "topologyKey": "kubernetes.io/hostname",
        "labelSelector": {"matchLabels": _labels(plan, Role.SERVER)},
    }
    apart = {
        "podAntiAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm": term}]
        }
    }
    return _pod(plan, role, command, {}, {"restartPolicy": "Never", "affinity": apart})


def selector(run: str = "") -> str:
    """Label selector of the objects of a run, or of all runs."""
    return f"{NAME_LABEL}={NAME}" + (f",{RUN_LABEL}={run}" if run else "")


# --- parts ---------------------------------------------------------------------------------------------


def _denied(name: str, path: str) -> Ask:
    """Refused by an access rule of a proxy, which says so; any other 403 is not the proof."""
    return Ask(name=name, path=path, status=403, text="RBAC: access denied")


def _labels(plan: Plan, role: Role | None = None) -> Json:
    found = {NAME_LABEL: NAME, RUN_LABEL: plan.run}
    return {**found, ROLE_LABEL: role.value} if role else {**found, **_MANAGED}


def _core(plan: Plan, plural: str, kind: str, name: str, **fields: Any) -> Made:
    metadata = {"name": name, "namespace": plan.namespace, "labels": _labels(plan)}
    body = {"apiVersion": "v1", "kind": kind, "metadata": metadata, **fields}
    return Made(f"/api/v1/namespaces/{plan.namespace}/{plural}", body)


def _policy(plan: Plan, kind: str, spec: Json) -> Made:
    chosen = {"selector": {"matchLabels": _labels(plan, Role.SERVER)}, **spec}
    made = _core(plan, plural_of(kind), kind, f"traffic-{plan.run}", spec=chosen)
    path = f"/apis/{API_VERSIONS[0]}/namespaces/{plan.namespace}/{plural_of(kind)}"
    return Made(path, {**made.body, "apiVersion": API_VERSIONS[0]})


def _pod(
    plan: Plan, role: Role, words: Sequence[str], extra: Mapping[str, Any], spec: Mapping[str, Any]
) -> Made:
    container: Json = {
        "name": "app",
        "image": plan.image,
        "command": ["python", "-m", "meshctl.traffic.probe", *words],
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"memory": "128Mi"}},
        **extra,
    }
    if plan.pull_policy:
        container["imagePullPolicy"] = plan.pull_policy
    body: Json = {
        "serviceAccountName": plan.name(role),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 2,
        # No user is named: the image has one, and some clusters give pods their own.
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
        **spec,
    }
    if plan.pull_secrets:
        body["imagePullSecrets"] = [{"name": name} for name in plan.pull_secrets]
    if plan.life_seconds is not None:
        body["activeDeadlineSeconds"] = plan.life_seconds
    made = _core(plan, "pods", "Pod", plan.name(role), spec=body)
    # A pod that asks by its own label is injected whatever the installation does with those that do not.
    asks = {INJECT: "true" if role in INJECTED else "false"}
    made.body["metadata"]["labels"] = {**_labels(plan), **_labels(plan, role), **asks}
    if role in INJECTED:
        # Three sidecars that carry ten requests: a full cluster has room for them.
        made.body["metadata"]["annotations"] = {
            f"{SIDECAR}proxyCPU": "10m",
            f"{SIDECAR}proxyMemory": "64Mi",
        }
    return made
