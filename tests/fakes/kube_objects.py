"""Objects as an API server holds them, for the node agent's view of a cluster."""

from __future__ import annotations

from typing import Any

Object = dict[str, Any]


def kube_pod(
    name: str = "web",
    *,
    namespace: str = "demo",
    uid: str = "",
    ip: str = "10.0.0.1",
    node: str = "node1",
    account: str = "web",
    mesh: bool = True,
    labels: dict[str, str] | None = None,
    ports: tuple[tuple[int, str], ...] = ((8080, "http"),),
    **status: Any,
) -> Object:
    marks = {"security.istio.io/tlsMode": "istio"} if mesh else {}
    proxy = [{"name": "istio-proxy", "ports": [{"containerPort": 15090}]}] if mesh else []
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "namespace": namespace,
            "name": name,
            "uid": uid or f"uid-{name}",
            "labels": {"app": name, **marks, **(labels or {})},
        },
        "spec": {
            "nodeName": node,
            "serviceAccountName": account,
            "containers": [
                {"name": "app", "ports": [{"containerPort": n, "name": p} for n, p in ports]},
                *proxy,
            ],
        },
        "status": {"phase": "Running", "podIP": ip, **status},
    }


def kube_service(
    name: str = "web",
    *,
    namespace: str = "demo",
    address: str = "10.96.0.10",
    ports: tuple[tuple[str, int, int | str], ...] = (("http", 80, 8080),),
    selector: dict[str, str] | None = None,
    created: str = "2026-01-01T00:00:00Z",
    **spec: Any,
) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"namespace": namespace, "name": name, "creationTimestamp": created},
        "spec": {
            "clusterIP": address,
            "selector": {"app": name} if selector is None else selector,
            "ports": [{"name": n, "port": p, "targetPort": t, "protocol": "TCP"} for n, p, t in ports],
            **spec,
        },
    }


def kube_slice(
    service: str = "web",
    *endpoints: tuple[str, str],
    namespace: str = "demo",
    name: str = "",
    port: int = 8080,
    port_name: str = "http",
    family: str = "IPv4",
    ready: bool = True,
) -> Object:
    """A slice; endpoints are address and pod, an empty pod has no reference."""
    return {
        "apiVersion": "discovery.k8s.io/v1beta1",
        "kind": "EndpointSlice",
        "metadata": {
            "namespace": namespace,
            "name": name or f"{service}-{family.lower()}",
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": family,
        "ports": [{"name": port_name, "port": port, "protocol": "TCP"}],
        "endpoints": [
            {
                "addresses": [address],
                "conditions": {"ready": ready},
                **({"targetRef": {"kind": "Pod", "name": pod, "namespace": namespace}} if pod else {}),
            }
            for address, pod in endpoints
        ],
    }


def kube_policy(kind: str = "PeerAuthentication", name: str = "strict", **spec: Any) -> Object:
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": kind,
        "metadata": {"namespace": "demo", "name": name},
        "spec": spec or {"mtls": {"mode": "STRICT"}},
    }
