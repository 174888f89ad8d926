"""Routes: inline ones of inbound and explicit listeners, and RDS of captured outbound ports."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from envoy.config.route.v3 import route_components_pb2, route_pb2

from mesh.envoy import messages as m
from mesh.envoy.clusters import PASSTHROUGH
from mesh.envoy.resources import ROUTE, Resource
from mesh.meshconfig import OutboundPolicy
from mesh.topology import Service, SocketAddress

_UNKNOWN_STATUS: Final = 502
INTERNAL_HEADER: Final = "x-envoy-internal"
"""Written by Envoy itself; a caller's `x-envoy-*` are dropped before (`mesh.envoy.filters`)."""

_RETRIES: Final = 2
_RETRY_ON: Final = "connect-failure,refused-stream,reset-before-request"
"""Only where the server cannot have seen the request: a retry then never repeats an effect."""


def inbound(name: str, cluster: str) -> Any:
    """Everything to the application, without a time limit: that is the caller's to set."""
    route = _route(cluster)
    return route_pb2.RouteConfiguration(
        name=name,
        virtual_hosts=[_host(name, ["*"], [route])],
        request_headers_to_remove=[INTERNAL_HEADER],
    )


def egress(name: str, cluster: str, bind: SocketAddress, host: str, port: int) -> Any:
    """Everything to one service.

    An application that only knows the bind address writes it into the Host header; rules on hosts
    at the server want the name of the service, so exactly that header is rewritten.
    """
    literal = f"[{bind.host}]" if ":" in bind.host else bind.host
    plain = _route(cluster, retry=True)
    rewritten = _route(cluster, retry=True)
    rewritten.route.host_rewrite_literal = f"{host}:{port}"
    return route_pb2.RouteConfiguration(
        name=name,
        virtual_hosts=[
            _host("by-address", [literal, f"{literal}:{bind.port}"], [rewritten]),
            _host("by-name", ["*"], [plain]),
        ],
        request_headers_to_remove=[INTERNAL_HEADER],
    )


def one_cluster(name: str, cluster: str) -> Any:
    """Everything to one service, as it is."""
    return route_pb2.RouteConfiguration(
        name=name,
        virtual_hosts=[_host(name, ["*"], [_route(cluster, retry=True)])],
        request_headers_to_remove=[INTERNAL_HEADER],
    )


def port_name(port: int) -> str:
    """Name of the route configuration of a captured outbound port."""
    return str(port)


def captured_port(
    port: int, services: Sequence[tuple[Service, str]], namespace: str, unknown: OutboundPolicy
) -> Resource:
    """Routes by Host header to the services of a port.

    Args:
        services: with the cluster of each; sorted by the function, so their order does not matter.
        namespace: of the caller; services in it may be called by their first name alone.
        unknown: what happens to any other Host.
    """
    ordered = sorted(services, key=lambda item: item[0].host)
    taken: set[str] = set()
    domains: dict[str, list[str]] = {service.host: [] for service, _ in ordered}
    # Full names first: a short form of one service never takes the name of another.
    for names in (_full_names, _short_names):
        for service, _ in ordered:
            for name in names(service, namespace):
                if name not in taken:
                    taken.add(name)
                    domains[service.host].append(name)
    hosts = [
        _host(service.host, domains[service.host], [_route(cluster, retry=True)])
        for service, cluster in ordered
        if domains[service.host]
    ]
    if unknown is OutboundPolicy.ALLOW_ANY:
        hosts.append(_host("allow-any", ["*"], [_route(PASSTHROUGH)]))
    else:
        refusal = route_components_pb2.Route(
            match=route_components_pb2.RouteMatch(prefix="/"),
            direct_response=route_components_pb2.DirectResponseAction(status=_UNKNOWN_STATUS),
        )
        hosts.append(_host("block-all", ["*"], [refusal]))
    found = route_pb2.RouteConfiguration(
        name=port_name(port),
        virtual_hosts=hosts,
        ignore_port_in_host_matching=True,
        request_headers_to_remove=[INTERNAL_HEADER],
    )
    return Resource.of(ROUTE, found.name, m.encode(found))


def _full_names(service: Service, _namespace: str) -> list[str]:
    literals = [f"[{address}]" if ":" in address else address for address in service.addresses]
    return [service.host, f"{service.host}.", *literals]


def _short_names(service: Service, namespace: str) -> list[str]:
    """`reviews.demo.svc`, `reviews.demo` and, in its own namespace, `reviews`."""
    name, _, rest = service.host.partition(".")
    if not rest.startswith(f"{service.namespace}.svc."):
        return []
    short = [f"{name}.{service.namespace}.svc", f"{name}.{service.namespace}"]
    return [*short, name] if service.namespace == namespace else short


def _route(cluster: str, *, retry: bool = False) -> Any:
    action = route_components_pb2.RouteAction(cluster=cluster, timeout=m.seconds(0))
    if retry:
        action.retry_policy.CopyFrom(
            route_components_pb2.RetryPolicy(retry_on=_RETRY_ON, num_retries=m.uint32(_RETRIES))
        )
    return route_components_pb2.Route(match=route_components_pb2.RouteMatch(prefix="/"), route=action)


def _host(name: str, domains: Iterable[str], routes: Iterable[Any]) -> Any:
    return route_components_pb2.VirtualHost(name=name, domains=domains, routes=routes)
