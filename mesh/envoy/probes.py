"""The listener on 15020: the kubelet's probes and hooks, the delay before termination, merged metrics.

All of it is known when the pod is injected, so it is static in the bootstrap and needs no agent: it
goes on while the agent is away, and it never changes during the life of a pod. What is not listed here is
answered with 404; the listener can reach nothing that was not recorded.

How a kind of probe is answered:

=====  =============================================================================================
http   one route to the application; each request on a connection of its own, as the kubelet does it;
       any redirection counts as success, because a `Location` would lead back to this listener
https  the same over TLS without verification, as the kubelet does it
tcp    Envoy's own health check connects every second; the `health_check` filter tells the result
grpc   likewise with `grpc.health.v1`
=====  =============================================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import (
    address_pb2,
    base_pb2,
    health_check_pb2,
    protocol_pb2,
)
from envoy.config.listener.v3 import listener_components_pb2, listener_pb2
from envoy.config.route.v3 import route_components_pb2, route_pb2
from envoy.extensions.filters.common.fault.v3 import fault_pb2 as fault_common_pb2
from envoy.extensions.filters.http.fault.v3 import fault_pb2
from envoy.extensions.filters.http.health_check.v3 import health_check_pb2 as health_filter_pb2
from envoy.extensions.filters.http.lua.v3 import lua_pb2
from envoy.extensions.filters.http.router.v3 import router_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2 as hcm_pb2
from envoy.extensions.transport_sockets.tls.v3 import common_pb2, tls_pb2
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2
from envoy.type.matcher.v3 import string_pb2
from envoy.type.v3 import percent_pb2
from google.protobuf import struct_pb2

from mesh import ports
from mesh.envoy import messages as m
from mesh.envoy.bootstrap import ADMIN_CLUSTER, STATS_PATH
from mesh.topology import SocketAddress

LISTENER_NAME: Final = "probes"
PRESTOP_PATH: Final = "/prestop/"
CHECK_INTERVAL_SECONDS: Final = 1
CONNECT_TIMEOUT_SECONDS: Final = 5
HEADERS_TIMEOUT_SECONDS: Final = 10
IDLE_SECONDS: Final = 60
SCRAPE_TIMEOUT_SECONDS: Final = 10

_CHECKED: Final = ("probe|tcp|", "probe|grpc|")
_HTTP_OPTIONS: Final = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_FAULT: Final = "envoy.filters.http.fault"
_LUA: Final = "envoy.filters.http.lua"

# Constant: what differs between pods comes as data of the route, never as text of the script.
_SCRIPT: Final = """\
local function fetch(handle, target, timeout)
  local headers = {[":method"] = "GET", [":path"] = target["path"], [":authority"] = target["host"],
                   ["accept"] = "text/plain;version=0.0.4"}
  local answer, body = handle:httpCall(target["cluster"], headers, nil, timeout)
  if answer == nil or answer[":status"] ~= "200" or body == nil then return nil end
  if body ~= "" and body:sub(-1) ~= "\\n" then body = body .. "\\n" end
  return (body:gsub("# EOF\\n$", ""))
end

local function merge(handle, targets, timeout)
  local parts, up = {}, {"# TYPE gatehouse_scrape_up gauge\\n"}
  for _, target in ipairs(targets) do
    local text = fetch(handle, target, timeout)
    local name = "gatehouse_scrape_up{target=\\"" .. target["label"] .. "\\"} "
    up[#up + 1] = name .. (text and "1" or "0") .. "\\n"
    parts[#parts + 1] = text
  end
  local headers = {[":status"] = "200", ["content-type"] = "text/plain; version=0.0.4; charset=utf-8"}
  handle:respond(headers, table.concat(parts) .. table.concat(up))
end

function envoy_on_request(handle)
  local context = handle:filterContext()
  if context:get("targets") ~= nil then
    merge(handle, context:get("targets"), context:get("timeout_ms"))
  elseif context:get("port") ~= nil then
    local host = handle:headers():get(":authority"):gsub(":%d+$", "") .. ":" .. context:get("port")
    handle:headers():replace(":authority", host)
  end
end

function envoy_on_response(handle)
  if handle:headers():get(":status"):sub(1, 1) == "3" then
    handle:headers():replace(":status", "200")
    handle:headers():remove("location")
  end
end
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpProbe:
    """An HTTP GET of the application.

    Attributes:
        path: on our listener.
        port: of the application.
        target: path and query at the application, ready to be sent (percent-encoded).
        tls: the application speaks HTTPS; its certificate is not verified.
        loopback: literal to connect to instead of the pod's address, or empty.
        host: `Host` to send; empty = `<address>:<port>`. None = what the caller sent.
        timeout_seconds: 0 = as long as the caller waits (hooks).
    """

    path: str
    port: int
    target: str
    tls: bool = False
    loopback: str = ""
    host: str | None = ""
    timeout_seconds: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TcpProbe:
    """A TCP connection to the application."""

    path: str
    port: int
    loopback: str = ""
    timeout_seconds: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpcProbe:
    """A `grpc.health.v1.Health/Check` of the application; an empty service is the whole server."""

    path: str
    port: int
    service: str = ""
    timeout_seconds: int = 1


Probe = HttpProbe | TcpProbe | GrpcProbe


@dataclass(frozen=True, slots=True)
class MetricsTarget:
    """Where the application serves metrics in Prometheus' text format."""

    port: int
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeServer:
    """Everything that the listener does for one pod.

    Attributes:
        addresses: the listener binds the first and also each of the others.
        application: address of the pod.
        probes: unique by path.
        captured: rules redirect what goes to the pod's own address, so calls of the application carry
            the source address by which the rules know them.
        prestop_seconds: answer `/prestop/<N>` after so many seconds; None = no such path.
        metrics: merge the proxy's metrics with these; None = no such path.
    """

    addresses: Sequence[str]
    application: str
    probes: Sequence[Probe] = ()
    captured: bool = True
    prestop_seconds: int | None = None
    metrics: Sequence[MetricsTarget] | None = None


def install(bootstrap: Any, server: ProbeServer) -> None:
    """Add the listener, its clusters and the statistics that it needs to a bootstrap message."""
    bootstrap.static_resources.listeners.append(listener(server))
    bootstrap.static_resources.clusters.extend(clusters(server))
    patterns = bootstrap.stats_config.stats_matcher.inclusion_list.patterns
    # The filter reads the gauges of membership: a cluster whose statistics are trimmed is never healthy.
    patterns.extend(string_pb2.StringMatcher(prefix=f"cluster.{prefix}") for prefix in _CHECKED)


def listener(server: ProbeServer) -> Any:
    """The listener; the same bytes for the same server."""
    checks = [p for p in server.probes if not isinstance(p, HttpProbe)]
    filters = [_check_filter(probe) for probe in checks]
    routes = [_http_route(p) for p in server.probes if isinstance(p, HttpProbe)]
    if server.prestop_seconds is not None:
        filters.append(_http_filter(_FAULT, fault_pb2.HTTPFault()))
        routes.append(_prestop_route(server.prestop_seconds))
    if server.metrics is not None:
        routes.append(_metrics_route(server.metrics))
    if any(_LUA in route.typed_per_filter_config for route in routes):
        code = base_pb2.DataSource(inline_string=_SCRIPT)
        filters.append(_http_filter(_LUA, lua_pb2.Lua(source_codes={LISTENER_NAME: code})))
    filters.append(_http_filter("envoy.filters.http.router", router_pb2.Router(suppress_envoy_headers=True)))
    host = route_components_pb2.VirtualHost(name=LISTENER_NAME, domains=["*"], routes=routes)
    kind = hcm_pb2.HttpConnectionManager
    manager = kind(
        stat_prefix=LISTENER_NAME,
        route_config=route_pb2.RouteConfiguration(name=LISTENER_NAME, virtual_hosts=[host]),
        http_filters=filters,
        normalize_path=m.boolean(True),
        # The kubelet asks for `//prestop/5`: it joins host, "/" and the path of a hook.
        merge_slashes=True,
        generate_request_id=m.boolean(False),
        skip_xff_append=True,
        # A hook may take as long as the grace period; half-sent requests may not.
        stream_idle_timeout=m.seconds(0),
        request_headers_timeout=m.seconds(HEADERS_TIMEOUT_SECONDS),
        common_http_protocol_options=protocol_pb2.HttpProtocolOptions(idle_timeout=m.seconds(IDLE_SECONDS)),
    )
    chain = listener_components_pb2.FilterChain(
        filters=[
            listener_components_pb2.Filter(
                name="envoy.filters.network.http_connection_manager", typed_config=m.pack(manager)
            )
        ]
    )
    first, *others = [m.socket_address(SocketAddress(a, ports.PROBE)) for a in server.addresses]
    return listener_pb2.Listener(
        name=LISTENER_NAME,
        address=first,
        additional_addresses=[listener_pb2.AdditionalAddress(address=a) for a in others],
        filter_chains=[chain],
        ignore_global_conn_limit=True,
    )


def clusters(server: ProbeServer) -> list[Any]:
    """Clusters of the application that the listener needs, sorted by name."""
    found: dict[str, Any] = {}
    for probe in server.probes:
        found.setdefault(_cluster_name(probe), _probe_cluster(probe, server))
    for target in server.metrics or ():
        name = _metrics_cluster(target)
        cluster = _cluster(name, SocketAddress(server.application, target.port), server)
        _fresh_connections(cluster, tls=False)
        found[name] = cluster
    return [found[name] for name in sorted(found)]


def _cluster_name(probe: Probe) -> str:
    where = f"{getattr(probe, 'loopback', '')}|{probe.port}"
    match probe:
        case HttpProbe():
            return f"probe|{'https' if probe.tls else 'http'}|{where}"
        case TcpProbe():
            return f"probe|tcp|{where}|{probe.timeout_seconds}"
        case GrpcProbe():
            return f"probe|grpc|{where}|{probe.timeout_seconds}|{probe.service}"


def _metrics_cluster(target: MetricsTarget) -> str:
    return f"metrics|{target.port}"


def _probe_cluster(probe: Probe, server: ProbeServer) -> Any:
    host = getattr(probe, "loopback", "") or server.application
    cluster = _cluster(_cluster_name(probe), SocketAddress(host, probe.port), server)
    match probe:
        case HttpProbe():
            _fresh_connections(cluster, tls=probe.tls)
            if probe.tls:
                cluster.transport_socket.CopyFrom(_unverified_tls())
        case TcpProbe():
            check = _health_check(probe.timeout_seconds)
            check.tcp_health_check.SetInParent()
            cluster.health_checks.append(check)
        case GrpcProbe():
            check = _health_check(probe.timeout_seconds)
            check.grpc_health_check.service_name = probe.service
            cluster.health_checks.append(check)
            options = http_protocol_options_pb2.HttpProtocolOptions()
            options.explicit_http_config.http2_protocol_options.SetInParent()
            cluster.typed_extension_protocol_options[_HTTP_OPTIONS].CopyFrom(m.pack(options))
    return cluster


def _cluster(name: str, address: SocketAddress, server: ProbeServer) -> Any:
    cluster = cluster_pb2.Cluster(
        name=name,
        type=cluster_pb2.Cluster.STATIC,
        connect_timeout=m.seconds(CONNECT_TIMEOUT_SECONDS),
    )
    cluster.load_assignment.cluster_name = name
    cluster.load_assignment.endpoints.add().lb_endpoints.add().endpoint.address.CopyFrom(
        m.socket_address(address)
    )
    if server.captured and address.host == server.application:
        # Envoy picks the one of the family of the pod's address, which nobody knows at injection.
        bind = address_pb2.BindConfig(
            source_address=address_pb2.SocketAddress(address=ports.PASSTHROUGH_V4, port_value=0)
        )
        bind.extra_source_addresses.add(
            address=address_pb2.SocketAddress(address=ports.PASSTHROUGH_V6, port_value=0)
        )
        cluster.upstream_bind_config.CopyFrom(bind)
    return cluster


def _fresh_connections(cluster: Any, *, tls: bool) -> None:
    """Each request on a new connection: one that the application is just closing would fail a probe."""
    options = http_protocol_options_pb2.HttpProtocolOptions(
        common_http_protocol_options=protocol_pb2.HttpProtocolOptions(max_requests_per_connection=m.uint32(1))
    )
    if tls:
        options.auto_config.SetInParent()
    else:
        options.explicit_http_config.http_protocol_options.SetInParent()
    cluster.typed_extension_protocol_options[_HTTP_OPTIONS].CopyFrom(m.pack(options))


def _unverified_tls() -> Any:
    parameters = common_pb2.TlsParameters(
        tls_minimum_protocol_version=common_pb2.TlsParameters.TLSv1_2,
        tls_maximum_protocol_version=common_pb2.TlsParameters.TLSv1_3,
    )
    context = tls_pb2.UpstreamTlsContext(
        common_tls_context=tls_pb2.CommonTlsContext(tls_params=parameters, alpn_protocols=["h2", "http/1.1"])
    )
    return m.transport_socket("envoy.transport_sockets.tls", context)


def _health_check(timeout_seconds: int) -> Any:
    """Every second, also without traffic: the kubelet does the counting, not Envoy."""
    interval = m.seconds(CHECK_INTERVAL_SECONDS)
    return health_check_pb2.HealthCheck(
        timeout=m.seconds(timeout_seconds),
        interval=interval,
        no_traffic_interval=interval,
        unhealthy_threshold=m.uint32(1),
        healthy_threshold=m.uint32(1),
        reuse_connection=m.boolean(False),
    )


def _http_filter(name: str, config: Any) -> Any:
    return hcm_pb2.HttpFilter(name=name, typed_config=m.pack(config))


def _check_filter(probe: Probe) -> Any:
    healthy = {_cluster_name(probe): percent_pb2.Percent(value=100)}
    return _http_filter(
        "envoy.filters.http.health_check",
        health_filter_pb2.HealthCheck(
            pass_through_mode=m.boolean(False),
            headers=_exactly(probe.path),
            cluster_min_healthy_percentages=healthy,
        ),
    )


def _exactly(path: str) -> list[Any]:
    return [
        route_components_pb2.HeaderMatcher(
            name=":path",
            string_match=string_pb2.StringMatcher(exact=path),
            treat_missing_header_as_empty=True,
        )
    ]


def _get_only(path: str) -> Any:
    method = route_components_pb2.HeaderMatcher(
        name=":method", string_match=string_pb2.StringMatcher(exact="GET")
    )
    return route_components_pb2.RouteMatch(path=path, headers=[method])


def _http_route(probe: HttpProbe) -> Any:
    action = route_components_pb2.RouteAction(
        cluster=_cluster_name(probe),
        prefix_rewrite=probe.target,
        timeout=m.seconds(probe.timeout_seconds),
    )
    if probe.host:
        action.host_rewrite_literal = probe.host
    route = route_components_pb2.Route(name=probe.path, match=_get_only(probe.path), route=action)
    _run_script(route, {"port": str(probe.port)} if probe.host == "" else {})
    return route


def _prestop_route(seconds: int) -> Any:
    path = f"{PRESTOP_PATH}{seconds}"
    route = route_components_pb2.Route(
        name=path,
        match=_get_only(path),
        direct_response=route_components_pb2.DirectResponseAction(
            status=200, body=base_pb2.DataSource(inline_string="waited\n")
        ),
    )
    delay = fault_common_pb2.FaultDelay(fixed_delay=m.seconds(seconds))
    delay.percentage.numerator = 100
    route.typed_per_filter_config[_FAULT].CopyFrom(m.pack(fault_pb2.HTTPFault(delay=delay)))
    return route


def _metrics_route(targets: Sequence[MetricsTarget]) -> Any:
    route = route_components_pb2.Route(
        name=STATS_PATH,
        match=_get_only(STATS_PATH),
        direct_response=route_components_pb2.DirectResponseAction(status=503),
    )
    found = [{"cluster": ADMIN_CLUSTER, "path": STATS_PATH, "host": "proxy", "label": "proxy"}]
    found += [
        {
            "cluster": _metrics_cluster(target),
            "path": target.path,
            "host": f"localhost:{target.port}",
            "label": f":{target.port}",
        }
        for target in targets
    ]
    _run_script(route, {"timeout_ms": SCRAPE_TIMEOUT_SECONDS * 1000, "targets": found})
    return route


def _run_script(route: Any, context: dict[str, Any]) -> None:
    values = struct_pb2.Struct()
    values.update(context)
    route.typed_per_filter_config[_LUA].CopyFrom(
        m.pack(lua_pb2.LuaPerRoute(name=LISTENER_NAME, filter_context=values))
    )
