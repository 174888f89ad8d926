"""The bootstrap of a proxy: one thing to know, the socket of its node agent.

The document goes on Envoy's command line (`--config-yaml`), so that no file is needed. Nothing in it is
secret. Built from messages and printed as JSON.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from envoy.config.bootstrap.v3 import bootstrap_pb2
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import (
    backoff_pb2,
    base_pb2,
    config_source_pb2,
    grpc_service_pb2,
)
from envoy.config.listener.v3 import listener_components_pb2, listener_pb2
from envoy.config.metrics.v3 import stats_pb2
from envoy.config.overload.v3 import overload_pb2
from envoy.config.route.v3 import route_components_pb2, route_pb2
from envoy.extensions.filters.http.router.v3 import router_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2 as hcm_pb2
from envoy.extensions.resource_monitors.downstream_connections.v3 import downstream_connections_pb2
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2
from envoy.type.matcher.v3 import string_pb2
from google.protobuf import json_format, struct_pb2

from mesh.envoy import messages as m
from mesh.topology import SocketAddress

AGENT_CLUSTER: Final = "node-agent"
ADMIN_CLUSTER: Final = "envoy-admin"
READY_PATH: Final = "/healthz/ready"
STATS_PATH: Final = "/stats/prometheus"

_HTTP_OPTIONS: Final = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_RECONNECT_BASE_MS: Final = 100
_RECONNECT_MAX_SECONDS: Final = 2
_RE2_PROGRAM_SIZE: Final = 1_000_000
_MAX_XDS_BYTES: Final = 256 * 1024 * 1024

_KEPT_STATS: Final = (
    "cluster_manager.",
    "control_plane.",
    "extension_config_discovery.",
    "http.inbound",
    "http.outbound",
    "listener_manager.",
    "listener.inbound",
    "listener.virtualInbound",
    "main_thread.",
    "sds.",
    "server.",
    "tcp.",
    "inbound|",
)
"""Statistics by prefix; 131 names for each of 1,000 clusters would cost 30 MB."""

_KEPT_SUFFIXES: Final = (
    "upstream_rq_total",
    "upstream_rq_5xx",
    "upstream_cx_total",
    "upstream_cx_connect_fail",
    "ssl.fail_verify_san",
    "ssl.fail_verify_error",
    "ssl.handshake",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BootstrapOptions:
    """What differs between the proxies of a node.

    Attributes:
        node_id: unique among the proxies; the agent trusts the socket, not this.
        agent_socket: path of the Unix socket of the node agent, at most 107 bytes.
        node_cluster: service name of the node in statistics.
        metadata: strings that the agent and the logs may show.
        admin: a Unix socket path, or a loopback address for demonstration and debugging, or None.
        admin_unrestricted: allow every admin path; otherwise only `/ready` and `/stats`.
        stats: serves `/stats/prometheus` and nothing else; needs `admin`.
        readiness: serves `/healthz/ready`. Envoy opens it only after its first configuration, so an
            answer means that there is one.
        max_connections: bound on open downstream connections of all listeners.
    """

    node_id: str
    agent_socket: str
    node_cluster: str = "gatehouse"
    metadata: Mapping[str, str] = field(default_factory=dict)
    admin: str | SocketAddress | None = None
    admin_unrestricted: bool = False
    stats: SocketAddress | None = None
    readiness: SocketAddress | None = None
    max_connections: int = 50_000


def bootstrap(options: BootstrapOptions) -> str:
    """The bootstrap as JSON.

    Raises:
        RenderError: when a socket path is too long, or statistics are wanted without the admin.
    """
    return json_format.MessageToJson(
        bootstrap_message(options), preserving_proto_field_name=True, indent=None
    )


def bootstrap_message(options: BootstrapOptions) -> Any:
    """The bootstrap as a message; see `bootstrap`."""
    _check(options)
    found = bootstrap_pb2.Bootstrap(
        node=base_pb2.Node(
            id=options.node_id,
            cluster=options.node_cluster,
            metadata=struct_pb2.Struct(
                fields={k: struct_pb2.Value(string_value=v) for k, v in sorted(options.metadata.items())}
            ),
        ),
        dynamic_resources=_dynamic_resources(),
        stats_config=_stats(),
        overload_manager=_overload(options.max_connections),
    )
    runtime = found.layered_runtime.layers.add(name="gatehouse").static_layer
    # An over-long regular expression would make Envoy refuse a whole listener (prototype P6).
    runtime.fields["re2.max_program_size.error_level"].number_value = _RE2_PROGRAM_SIZE
    clusters = found.static_resources.clusters
    clusters.append(_agent_cluster(options.agent_socket))
    if options.admin is not None:
        _set_admin(found, options.admin, unrestricted=options.admin_unrestricted)
        clusters.append(_admin_cluster(options.admin))
    listeners = found.static_resources.listeners
    if options.stats is not None:
        listeners.append(_listener("stats", options.stats, _to_admin(STATS_PATH, STATS_PATH)))
    if options.readiness is not None:
        answer = _to_admin(READY_PATH, "/ready") if options.admin is not None else _answer(READY_PATH)
        listeners.append(_listener("readiness", options.readiness, answer))
    return found


def envoy_arguments(
    config: str,
    *,
    is_path: bool = False,
    drain_seconds: int = 30,
    concurrency: int = 2,
    log_level: str = "warning",
    component_log_levels: Mapping[str, str] | None = None,
    log_format: str | None = None,
    service_node: str | None = None,
) -> Sequence[str]:
    """Arguments of the `envoy` command for a bootstrap.

    Args:
        config: the bootstrap itself, or with `is_path` the path of a file that holds it.
        drain_seconds: how long old TCP connections live after a change of their chain. They are told
            at once (`immediate`): a quiet connection would otherwise keep its old rules for as long.
        concurrency: number of worker threads; 0 = one per core.
        component_log_levels: levels that differ, e.g. `{"config": "info"}`.
    """
    arguments = ["--config-path" if is_path else "--config-yaml", config, "--disable-hot-restart"]
    arguments += ["--drain-time-s", str(drain_seconds), "--drain-strategy", "immediate"]
    if concurrency:
        arguments += ["--concurrency", str(concurrency)]
    arguments += ["--log-level", log_level]
    if component_log_levels:
        levels = ",".join(f"{name}:{level}" for name, level in sorted(component_log_levels.items()))
        arguments += ["--component-log-level", levels]
    if log_format is not None:
        arguments += ["--log-format", log_format]
    if service_node is not None:
        arguments += ["--service-node", service_node]
    return arguments


def _check(options: BootstrapOptions) -> None:
    pipes = [options.agent_socket, *([options.admin] if isinstance(options.admin, str) else [])]
    for path in pipes:
        if not 0 < len(path.encode()) <= 107:
            raise m.RenderError(
                m.RenderCode.OPTION,
                f"socket path {path[:120]!r} has {len(path.encode())} bytes; allowed are 1 to 107 (sun_path)",
            )
    if options.stats is not None and options.admin is None:
        raise m.RenderError(
            m.RenderCode.OPTION, "a statistics listener needs the admin endpoint: set `admin`"
        )


def _dynamic_resources() -> Any:
    service = grpc_service_pb2.GrpcService(
        envoy_grpc=grpc_service_pb2.GrpcService.EnvoyGrpc(cluster_name=AGENT_CLUSTER)
    )
    backoff = backoff_pb2.BackoffStrategy(max_interval=m.seconds(_RECONNECT_MAX_SECONDS))
    backoff.base_interval.nanos = _RECONNECT_BASE_MS * 1_000_000
    service.envoy_grpc.retry_policy.retry_back_off.CopyFrom(backoff)
    service.envoy_grpc.max_receive_message_length.value = _MAX_XDS_BYTES
    return bootstrap_pb2.Bootstrap.DynamicResources(
        lds_config=m.ads(),
        cds_config=m.ads(),
        ads_config=config_source_pb2.ApiConfigSource(
            api_type=config_source_pb2.ApiConfigSource.GRPC,
            transport_api_version=config_source_pb2.V3,
            grpc_services=[service],
            set_node_on_first_message_only=True,
        ),
    )


def _agent_cluster(socket: str) -> Any:
    options = http_protocol_options_pb2.HttpProtocolOptions()
    # No HTTP/2 pings: a dead agent closes a Unix socket, and a gRPC server hangs up on frequent pings.
    options.explicit_http_config.http2_protocol_options.SetInParent()
    cluster = _static_cluster(AGENT_CLUSTER, m.pipe_address(socket))
    cluster.typed_extension_protocol_options[_HTTP_OPTIONS].CopyFrom(m.pack(options))
    return cluster


def _admin_cluster(admin: str | SocketAddress) -> Any:
    address = m.pipe_address(admin) if isinstance(admin, str) else m.socket_address(admin)
    return _static_cluster(ADMIN_CLUSTER, address)


def _static_cluster(name: str, address: Any) -> Any:
    cluster = cluster_pb2.Cluster(name=name, type=cluster_pb2.Cluster.STATIC, connect_timeout=m.seconds(1))
    cluster.load_assignment.cluster_name = name
    cluster.load_assignment.endpoints.add().lb_endpoints.add().endpoint.address.CopyFrom(address)
    return cluster


def _set_admin(found: Any, admin: str | SocketAddress, *, unrestricted: bool) -> None:
    address = m.pipe_address(admin) if isinstance(admin, str) else m.socket_address(admin)
    found.admin.address.CopyFrom(address)
    found.admin.ignore_global_conn_limit = True
    if not unrestricted:
        found.admin.allow_paths.extend(
            [string_pb2.StringMatcher(exact="/ready"), string_pb2.StringMatcher(prefix="/stats")]
        )


def _stats() -> Any:
    matcher = stats_pb2.StatsMatcher()
    patterns = matcher.inclusion_list.patterns
    patterns.extend(string_pb2.StringMatcher(prefix=text) for text in _KEPT_STATS)
    patterns.extend(string_pb2.StringMatcher(suffix=text) for text in _KEPT_SUFFIXES)
    return stats_pb2.StatsConfig(stats_matcher=matcher)


def _overload(max_connections: int) -> Any:
    limit = downstream_connections_pb2.DownstreamConnectionsConfig(
        max_active_downstream_connections=max_connections
    )
    return overload_pb2.OverloadManager(
        resource_monitors=[
            overload_pb2.ResourceMonitor(
                name="envoy.resource_monitors.global_downstream_max_connections",
                typed_config=m.pack(limit),
            )
        ]
    )


def _to_admin(path: str, admin_path: str) -> Any:
    action = route_components_pb2.RouteAction(cluster=ADMIN_CLUSTER, prefix_rewrite=admin_path)
    return route_components_pb2.Route(match=route_components_pb2.RouteMatch(path=path), route=action)


def _answer(path: str) -> Any:
    reply = route_components_pb2.DirectResponseAction(
        status=200, body=base_pb2.DataSource(inline_string="ready\n")
    )
    return route_components_pb2.Route(match=route_components_pb2.RouteMatch(path=path), direct_response=reply)


def _listener(name: str, address: SocketAddress, route: Any) -> Any:
    """A static listener with one route; any other path is 404."""
    routes = route_pb2.RouteConfiguration(
        name=name,
        virtual_hosts=[route_components_pb2.VirtualHost(name=name, domains=["*"], routes=[route])],
    )
    router = hcm_pb2.HttpFilter(
        name="envoy.filters.http.router",
        typed_config=m.pack(router_pb2.Router(suppress_envoy_headers=True)),
    )
    manager = hcm_pb2.HttpConnectionManager(
        stat_prefix=name, route_config=routes, http_filters=[router], normalize_path=m.boolean(True)
    )
    chain = listener_components_pb2.FilterChain(
        filters=[
            listener_components_pb2.Filter(
                name="envoy.filters.network.http_connection_manager", typed_config=m.pack(manager)
            )
        ]
    )
    return listener_pb2.Listener(
        name=name,
        address=m.socket_address(address),
        filter_chains=[chain],
        ignore_global_conn_limit=True,
    )
