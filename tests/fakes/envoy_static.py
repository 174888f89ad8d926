"""A static bootstrap with the same meaning as a ResourceSet and its secrets.

Everything that a node agent would send by LDS, CDS, EDS, RDS, ECDS and SDS is put inline, so that a real
Envoy can check and run it without an agent. The messages are otherwise untouched.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import extension_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2 as hcm_pb2
from envoy.extensions.transport_sockets.tls.v3 import secret_pb2, tls_pb2
from google.protobuf import any_pb2, json_format

from mesh.envoy.bootstrap import BootstrapOptions, bootstrap_message
from mesh.envoy.resources import (
    CLUSTER,
    ENDPOINT,
    EXTENSION_CONFIG,
    LISTENER,
    ROUTE,
    SECRET,
    Resource,
    ResourceSet,
)
from mesh.topology import SocketAddress

_MESSAGES = {
    LISTENER: listener_pb2.Listener,
    CLUSTER: cluster_pb2.Cluster,
    ENDPOINT: endpoint_pb2.ClusterLoadAssignment,
    ROUTE: route_pb2.RouteConfiguration,
    EXTENSION_CONFIG: extension_pb2.TypedExtensionConfig,
    SECRET: secret_pb2.Secret,
}
LOOPBACK = SocketAddress("127.0.0.1", 0)
_HCM = hcm_pb2.HttpConnectionManager
_CONTEXTS = (tls_pb2.DownstreamTlsContext, tls_pb2.UpstreamTlsContext)


def decode(resource: Resource) -> Any:
    """The message of a resource."""
    return _MESSAGES[resource.type_url].FromString(resource.body)


def as_data(message: Any) -> dict[str, Any]:
    """A message as JSON-like data, with what is inside its Any fields."""
    data: dict[str, Any] = json_format.MessageToDict(message, preserving_proto_field_name=True)
    return data


def resources_as_data(resources: ResourceSet) -> dict[str, dict[str, Any]]:
    """A whole set, by short type name and resource name; for golden files."""
    found: dict[str, dict[str, Any]] = {}
    for resource in resources:
        kind = resource.type_url.rpartition(".")[2]
        found.setdefault(kind, {})[resource.name] = as_data(decode(resource))
    return found


def static_bootstrap(
    resources: Iterable[Resource],
    secrets: Iterable[Resource],
    *,
    admin: SocketAddress | str = LOOPBACK,
) -> str:
    """Bootstrap JSON that holds the resources and the secrets.

    Several workloads may be given at once when their listeners and clusters differ by name; extension
    resources are then found in the set that comes with the listener: see `inline`.
    """
    return bootstrap_json([inline(ResourceSet(resources))], secrets, admin=admin)


class Inlined:
    """Listeners and clusters of one ResourceSet that refer to nothing but static secrets."""

    def __init__(self, listeners: list[Any], clusters: list[Any]) -> None:
        self.listeners = listeners
        self.clusters = clusters


def inline(resources: ResourceSet, *, suffix: str = "") -> Inlined:
    """Resolve every reference in a set.

    Args:
        suffix: added to the names of listeners and clusters, so that sets of several workloads fit
            into one process.
    """
    resolver = _Resolver(resources, suffix)
    listeners = [resolver.listener(decode(r)) for r in resources.of_type(LISTENER).values()]
    clusters = [resolver.cluster(decode(r)) for r in resources.of_type(CLUSTER).values()]
    return Inlined(listeners, clusters)


def bootstrap_json(
    sets: Iterable[Inlined],
    secrets: Iterable[Resource],
    *,
    admin: SocketAddress | str = LOOPBACK,
) -> str:
    """Our own bootstrap without its dynamic part, plus the sets."""
    found = bootstrap_message(
        BootstrapOptions(node_id="static", agent_socket="/unused", admin=admin, admin_unrestricted=True)
    )
    found.ClearField("dynamic_resources")
    found.ClearField("stats_config")
    del found.static_resources.clusters[:]
    for item in sets:
        found.static_resources.listeners.extend(item.listeners)
        found.static_resources.clusters.extend(item.clusters)
    found.static_resources.secrets.extend(decode(secret) for secret in secrets)
    return json.dumps(as_data(found))


class _Resolver:
    def __init__(self, resources: ResourceSet, suffix: str) -> None:
        self._resources = resources
        self._suffix = suffix

    def listener(self, listener: Any) -> Any:
        listener.name += self._suffix
        chains = [*listener.filter_chains]
        if listener.HasField("default_filter_chain"):
            chains.append(listener.default_filter_chain)
        for chain in chains:
            self._socket(chain)
            for item in chain.filters:
                if item.typed_config.Is(_HCM.DESCRIPTOR):
                    manager = _HCM.FromString(item.typed_config.value)
                    self._manager(manager)
                    item.typed_config.Pack(manager)
                elif item.typed_config.type_url.endswith("TcpProxy"):
                    self._tcp(item.typed_config)
        return listener

    def cluster(self, cluster: Any) -> Any:
        if cluster.type == cluster_pb2.Cluster.EDS:
            cluster.type = cluster_pb2.Cluster.STATIC
            cluster.ClearField("eds_cluster_config")
            endpoints = self._resources.of_type(ENDPOINT)[cluster.name]
            cluster.load_assignment.CopyFrom(decode(endpoints))
        for match in cluster.transport_socket_matches:
            self._socket(match)
        self._socket(cluster)
        cluster.name += self._suffix
        if cluster.HasField("load_assignment"):
            cluster.load_assignment.cluster_name = cluster.name
        return cluster

    def _socket(self, owner: Any) -> None:
        if not owner.HasField("transport_socket"):
            return
        config = owner.transport_socket.typed_config
        for kind in _CONTEXTS:
            if config.Is(kind.DESCRIPTOR):
                context = kind.FromString(config.value)
                common = context.common_tls_context
                for secret in common.tls_certificate_sds_secret_configs:
                    secret.ClearField("sds_config")
                common.combined_validation_context.validation_context_sds_secret_config.ClearField(
                    "sds_config"
                )
                config.Pack(context)

    def _tcp(self, config: any_pb2.Any) -> None:
        from envoy.extensions.filters.network.tcp_proxy.v3 import tcp_proxy_pb2

        proxy = tcp_proxy_pb2.TcpProxy.FromString(config.value)
        proxy.cluster += self._suffix
        config.Pack(proxy)

    def _manager(self, manager: Any) -> None:
        for item in manager.http_filters:
            if item.HasField("config_discovery"):
                extension = decode(self._resources.of_type(EXTENSION_CONFIG)[item.name])
                assert item.config_discovery.type_urls == [extension.typed_config.type_url]
                item.typed_config.CopyFrom(extension.typed_config)
        if manager.HasField("rds"):
            found = self._resources.of_type(ROUTE)[manager.rds.route_config_name]
            manager.route_config.CopyFrom(decode(found))
        for host in manager.route_config.virtual_hosts:
            for route in host.routes:
                if route.route.cluster:
                    route.route.cluster += self._suffix
