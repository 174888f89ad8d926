"""Routes: inline ones of inbound and explicit listeners, and RDS of captured outbound ports."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from envoy.config.route.v3 import route_components_pb2, route_pb2

from mesh.envoy import messages as m
from mesh.topology import SocketAddress

_RETRIES: Final = 2
_RETRY_ON: Final = "connect-failure,refused-stream,reset-before-request"
"""Only where the server cannot have seen the request: a retry then never repeats an effect."""

ENVOY_HEADERS: Final = (
    "x-envoy-attempt-count",
    "x-envoy-decorator-operation",
    "x-envoy-expected-rq-timeout-ms",
    "x-envoy-external-address",
    "x-envoy-force-trace",
    "x-envoy-internal",
    "x-envoy-ip-tags",
    "x-envoy-max-retries",
    "x-envoy-original-dst-host",
    "x-envoy-original-host",
    "x-envoy-original-path",
    "x-envoy-peer-metadata",
    "x-envoy-peer-metadata-id",
    "x-envoy-retry-grpc-on",
    "x-envoy-retry-on",
    "x-envoy-upstream-alt-stat-name",
    "x-envoy-upstream-rq-per-try-timeout-ms",
    "x-envoy-upstream-rq-timeout-alt-response",
    "x-envoy-upstream-rq-timeout-ms",
)
"""Headers that steer Envoy; a client may not set them, and an application never sees a forged one."""


def inbound(name: str, cluster: str) -> Any:
    """Everything to the application, without a time limit: that is the caller's to set."""
    route = _route(cluster)
    return route_pb2.RouteConfiguration(
        name=name,
        virtual_hosts=[_host(name, ["*"], [route])],
        request_headers_to_remove=ENVOY_HEADERS,
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
        request_headers_to_remove=ENVOY_HEADERS,
    )


def _route(cluster: str, *, retry: bool = False) -> Any:
    action = route_components_pb2.RouteAction(cluster=cluster, timeout=m.seconds(0))
    if retry:
        action.retry_policy.CopyFrom(
            route_components_pb2.RetryPolicy(retry_on=_RETRY_ON, num_retries=m.uint32(_RETRIES))
        )
    return route_components_pb2.Route(match=route_components_pb2.RouteMatch(prefix="/"), route=action)


def _host(name: str, domains: Iterable[str], routes: Iterable[Any]) -> Any:
    return route_components_pb2.VirtualHost(name=name, domains=domains, routes=routes)
