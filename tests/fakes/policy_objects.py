"""Short ways to write policy objects and the workload they are resolved for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from mesh.meshconfig import MeshConfig
from mesh.policy.effective import EffectivePolicy, Severity
from mesh.policy.model import Policy
from mesh.policy.parse import Parsed, parse_policy
from mesh.policy.policyset import PolicySet
from mesh.policy.resolve import resolve
from mesh.spiffe import TrustDomain
from mesh.topology import AppProtocol, SocketAddress, Workload, WorkloadPort

ROOT = "mesh-system"
MESH = MeshConfig(trust_domain=TrustDomain("cluster.local"), root_namespace=ROOT)
FALLBACK = '{"keys":[{"kty":"fallback"}]}'


def policy_object(
    kind: str,
    spec: Mapping[str, Any] | str | None = None,
    *,
    name: str = "p",
    namespace: str = "foo",
    version: str = "v1",
    **metadata: Any,
) -> dict[str, Any]:
    """An object as an API server would send it; `spec` may be YAML."""
    data: dict[str, Any] = {
        "apiVersion": f"security.istio.io/{version}",
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace, **metadata},
    }
    if spec is not None:
        data["spec"] = yaml.safe_load(spec) if isinstance(spec, str) else spec
    return data


def peer_auth(spec: Mapping[str, Any] | str | None = None, **kwargs: Any) -> dict[str, Any]:
    return policy_object("PeerAuthentication", spec, **kwargs)


def request_auth(spec: Mapping[str, Any] | str | None = None, **kwargs: Any) -> dict[str, Any]:
    return policy_object("RequestAuthentication", spec, **kwargs)


def authz(spec: Mapping[str, Any] | str | None = None, **kwargs: Any) -> dict[str, Any]:
    return policy_object("AuthorizationPolicy", spec, **kwargs)


def parsed(data: dict[str, Any]) -> Policy:
    return parse_policy(data).unwrap()


def errors(result: Parsed) -> list[tuple[str, str]]:
    """(code, field) of every error."""
    return [(str(f.code), f.field) for f in result.findings if f.severity is Severity.ERROR]


def warnings(result: Parsed) -> list[tuple[str, str]]:
    return [(str(f.code), f.field) for f in result.findings if f.severity is Severity.WARNING]


def workload(
    *,
    namespace: str = "foo",
    labels: Mapping[str, str] | None = None,
    http: Iterable[int] = (8080,),
    tcp: Iterable[int] = (),
    auto: Iterable[int] = (),
) -> Workload:
    ports = [(n, AppProtocol.HTTP) for n in http]
    ports += [(n, AppProtocol.TCP) for n in tcp]
    ports += [(n, AppProtocol.AUTO) for n in auto]
    return Workload(
        uid="1",
        namespace=namespace,
        name="httpbin",
        service_account="httpbin",
        address="10.2.0.2",
        labels={"app": "httpbin"} if labels is None else labels,
        ports=tuple(
            WorkloadPort(number=number, protocol=protocol, app=SocketAddress("127.0.0.1", number))
            for number, protocol in ports
        ),
    )


def policy_set(*objects: dict[str, Any]) -> PolicySet:
    return PolicySet(parsed(data) for data in objects)


def effective(
    *objects: dict[str, Any],
    pod: Workload | None = None,
    mesh: MeshConfig = MESH,
    key_sets: Mapping[str, str] | None = None,
) -> EffectivePolicy:
    return resolve(
        policy_set(*objects),
        pod or workload(),
        mesh,
        key_sets={"https://i1.example/jwks": "K1", "https://i2.example/jwks": "K2"}
        if key_sets is None
        else key_sets,
        fallback_jwks=FALLBACK,
    )
