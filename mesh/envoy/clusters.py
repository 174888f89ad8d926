"""Clusters and endpoints: where traffic may go, and who must answer there.

A service of the mesh has a cluster whose *own* transport socket never succeeds. Each endpoint says by
metadata which socket is meant for it, mutual TLS or none, so that no mistake in metadata can end in
plaintext. Names that the server must prove are listed per service: a changed list has to reach the
proxy before the endpoints that need it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Any, Final

from envoy.config.cluster.v3 import circuit_breaker_pb2, cluster_pb2
from envoy.config.core.v3 import address_pb2, base_pb2, health_check_pb2, protocol_pb2
from envoy.config.endpoint.v3 import endpoint_components_pb2, endpoint_pb2
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2
from envoy.type.v3 import percent_pb2
from google.protobuf import struct_pb2

from mesh import ports
from mesh.envoy import messages as m
from mesh.envoy import tls
from mesh.envoy.resources import CLUSTER, ENDPOINT, Resource
from mesh.meshconfig import MeshConfig
from mesh.spiffe import SpiffeId, SpiffeIdError, TrustDomain
from mesh.topology import AppProtocol, Endpoint, Service, ServicePort, SocketAddress, WorkloadPort

BLACKHOLE: Final = "BlackHoleCluster"
PASSTHROUGH: Final = "PassthroughCluster"
INBOUND_PASSTHROUGH: Final = "InboundPassthroughCluster"

CONNECT_TIMEOUT_SECONDS: Final = 5
PASSTHROUGH_SOURCE_V4: Final = ports.PASSTHROUGH_V4
PASSTHROUGH_SOURCE_V6: Final = ports.PASSTHROUGH_V6
"""Source addresses by which the capture rules know the proxy's own calls to the application."""

_MATCH: Final = "envoy.transport_socket_match"
_TLS_MODE: Final = "tlsMode"
_MTLS: Final = "istio"
_PLAIN: Final = "disabled"
_HTTP_OPTIONS: Final = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_UNLIMITED: Final = 2**32 - 1
_KEEPALIVE_SECONDS: Final = 300


def inbound_name(port: int) -> str:
    """Cluster of the application behind a workload port."""
    return f"inbound|{port}||"


def outbound_name(host: str, port: int) -> str:
    """Cluster of a service port; also the name of its endpoints."""
    return f"outbound|{port}||{host}"


def direct_name(host: str, port: int) -> str:
    """Cluster of the pods of a headless service port, for connections to the very pod that was asked for."""
    return f"outbound|{port}|direct|{host}"


def identities(port: ServicePort, trust_domains: Iterable[TrustDomain]) -> tuple[str, ...]:
    """SPIFFE IDs that the endpoints of a service port may prove, sorted.

    An endpoint whose names cannot form an identity adds none; it can then prove nothing.
    """
    accounts = {(e.namespace, e.service_account) for e in port.endpoints if e.in_mesh}
    found: list[str] = []
    for trust_domain in trust_domains:
        for namespace, name in accounts:
            try:
                found.append(str(SpiffeId.for_service_account(trust_domain, namespace, name)))
            except SpiffeIdError:
                continue
    return tuple(sorted(found))


def service_cluster(service: Service, port: ServicePort, mesh: MeshConfig) -> Resource:
    """Cluster of a service port, with endpoints by EDS."""
    name = outbound_name(service.host, port.number)
    cluster = _cluster(name)
    cluster.type = cluster_pb2.Cluster.EDS
    cluster.eds_cluster_config.CopyFrom(cluster_pb2.Cluster.EdsClusterConfig(eds_config=m.ads()))
    cluster.lb_policy = cluster_pb2.Cluster.LEAST_REQUEST
    # Never to an endpoint that is known not to be ready, not even when no other is left.
    cluster.common_lb_config.healthy_panic_threshold.CopyFrom(percent_pb2.Percent(value=0))
    cluster.upstream_connection_options.tcp_keepalive.keepalive_time.value = _KEEPALIVE_SECONDS
    _set_protocol(cluster, port.protocol)
    if service.external:
        cluster.transport_socket.CopyFrom(tls.raw())
    else:
        _set_transport(cluster, service, port, mesh)
    return Resource.of(CLUSTER, name, m.encode(cluster))


def endpoints(service: Service, port: ServicePort, mtls: frozenset[SocketAddress]) -> Resource:
    """Endpoints of a service port.

    Args:
        mtls: addresses that are spoken to with mutual TLS.
    """
    name = outbound_name(service.host, port.number)
    assignment = endpoint_pb2.ClusterLoadAssignment(cluster_name=name)
    if port.endpoints:
        assignment.endpoints.add(
            lb_endpoints=[_lb_endpoint(e, e.address in mtls, service.external) for e in port.endpoints]
        )
    return Resource.of(ENDPOINT, name, m.encode(assignment))


def direct_cluster(service: Service, port: ServicePort, mesh: MeshConfig) -> Resource:
    """Cluster of the pods of a headless service port that are in the mesh: mutual TLS to the original
    destination. The listener of each pod's address decides who comes here, so every peer has a proxy.
    """
    name = direct_name(service.host, port.number)
    cluster = _cluster(name)
    cluster.type = cluster_pb2.Cluster.ORIGINAL_DST
    cluster.lb_policy = cluster_pb2.Cluster.CLUSTER_PROVIDED
    cluster.upstream_connection_options.tcp_keepalive.keepalive_time.value = _KEEPALIVE_SECONDS
    _set_protocol(cluster, port.protocol)
    cluster.transport_socket.CopyFrom(
        tls.upstream(identities(port, mesh.trust_domains), _alpn(port.protocol), _sni(service, port))
    )
    return Resource.of(CLUSTER, name, m.encode(cluster))


def inbound_cluster(port: WorkloadPort, *, captured: bool = False) -> Resource:
    """Cluster of the application behind a workload port.

    Args:
        captured: capture rules are in force, so that a call to the pod's own address must be told from
            others by its source.
    """
    name = inbound_name(port.number)
    cluster = _cluster(name)
    cluster.type = cluster_pb2.Cluster.STATIC
    _set_protocol(cluster, port.protocol)
    cluster.load_assignment.cluster_name = name
    cluster.load_assignment.endpoints.add().lb_endpoints.add().endpoint.address.CopyFrom(
        m.socket_address(port.app)
    )
    if captured and not ipaddress.ip_address(port.app.host).is_loopback:
        _bind_source(cluster, port.app.host)
    return Resource.of(CLUSTER, name, m.encode(cluster))


def blackhole() -> Resource:
    """A cluster without endpoints: connections to it are closed."""
    cluster = _cluster(BLACKHOLE)
    cluster.type = cluster_pb2.Cluster.STATIC
    return Resource.of(CLUSTER, BLACKHOLE, m.encode(cluster))


def passthrough(name: str, *, inbound_to: str | None = None) -> Resource:
    """A cluster that connects to the original destination, without TLS.

    Args:
        inbound_to: address of the workload, when the destination is the application beside us: the
            connection is then bound to the source that the capture rules let through.
    """
    cluster = _cluster(name)
    cluster.type = cluster_pb2.Cluster.ORIGINAL_DST
    cluster.lb_policy = cluster_pb2.Cluster.CLUSTER_PROVIDED
    _set_protocol(cluster, AppProtocol.AUTO)
    if inbound_to is not None:
        _bind_source(cluster, inbound_to)
    return Resource.of(CLUSTER, name, m.encode(cluster))


def _cluster(name: str) -> Any:
    """A cluster without Envoy's default of 1,024 connections: the limit is the application's."""
    limits = circuit_breaker_pb2.CircuitBreakers.Thresholds(
        max_connections=m.uint32(_UNLIMITED),
        max_pending_requests=m.uint32(_UNLIMITED),
        max_requests=m.uint32(_UNLIMITED),
        max_retries=m.uint32(_UNLIMITED),
    )
    return cluster_pb2.Cluster(
        name=name,
        connect_timeout=m.seconds(CONNECT_TIMEOUT_SECONDS),
        circuit_breakers=circuit_breaker_pb2.CircuitBreakers(thresholds=[limits]),
    )


def _set_protocol(cluster: Any, protocol: AppProtocol) -> None:
    options = http_protocol_options_pb2.HttpProtocolOptions()
    match protocol:
        case AppProtocol.HTTP:
            options.explicit_http_config.http_protocol_options.SetInParent()
        case AppProtocol.HTTP2:
            options.explicit_http_config.http2_protocol_options.CopyFrom(_http2())
        case AppProtocol.AUTO:
            options.use_downstream_protocol_config.http_protocol_options.SetInParent()
            options.use_downstream_protocol_config.http2_protocol_options.CopyFrom(_http2())
        case AppProtocol.TCP:
            return
    cluster.typed_extension_protocol_options[_HTTP_OPTIONS].CopyFrom(m.pack(options))


def _http2() -> Any:
    return protocol_pb2.Http2ProtocolOptions()


def _alpn(protocol: AppProtocol) -> tuple[str, ...]:
    """Tokens that a client offers; a port of kind AUTO overrides them per connection."""
    match protocol:
        case AppProtocol.HTTP:
            return tls.ALPN_CLIENT_HTTP1
        case AppProtocol.HTTP2:
            return tls.ALPN_CLIENT_HTTP2
        case AppProtocol.TCP | AppProtocol.AUTO:
            return tls.ALPN_CLIENT_TCP


def _set_transport(cluster: Any, service: Service, port: ServicePort, mesh: MeshConfig) -> None:
    alpn, sni = _alpn(port.protocol), _sni(service, port)
    for name, mode, socket in (
        ("tlsMode-istio", _MTLS, tls.upstream(identities(port, mesh.trust_domains), alpn, sni)),
        ("tlsMode-disabled", _PLAIN, tls.raw()),
    ):
        match = cluster.transport_socket_matches.add(name=name, transport_socket=socket)
        match.match.fields[_TLS_MODE].string_value = mode
    # What an endpoint without metadata gets: a handshake that nobody can pass.
    cluster.transport_socket.CopyFrom(tls.upstream((), alpn, sni))


def _sni(service: Service, port: ServicePort) -> str:
    return f"outbound_.{port.number}_._.{service.host}"


def _lb_endpoint(endpoint: Endpoint, mtls: bool, external: bool) -> Any:
    found = endpoint_components_pb2.LbEndpoint(
        endpoint=endpoint_components_pb2.Endpoint(address=m.socket_address(endpoint.address)),
        health_status=health_check_pb2.HEALTHY if endpoint.healthy else health_check_pb2.UNHEALTHY,
    )
    if not external:
        mode = struct_pb2.Value(string_value=_MTLS if mtls else _PLAIN)
        found.metadata.CopyFrom(
            base_pb2.Metadata(filter_metadata={_MATCH: struct_pb2.Struct(fields={_TLS_MODE: mode})})
        )
    return found


def _bind_source(cluster: Any, towards: str) -> None:
    source = PASSTHROUGH_SOURCE_V6 if ":" in towards else PASSTHROUGH_SOURCE_V4
    cluster.upstream_bind_config.CopyFrom(
        address_pb2.BindConfig(source_address=address_pb2.SocketAddress(address=source, port_value=0))
    )
