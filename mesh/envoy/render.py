"""Effective policy and topology of one workload -> every resource of its proxy but the secrets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from mesh.envoy import clusters, listeners
from mesh.envoy.cache import Context, RenderCache
from mesh.envoy.extensions import http_policy
from mesh.envoy.resources import Resource, ResourceSet
from mesh.meshconfig import MeshConfig
from mesh.policy.effective import EffectivePolicy
from mesh.topology import EgressListener, Service, ServicePort, SocketAddress, Workload


@dataclass(frozen=True, slots=True)
class OutboundService:
    """A service as one workload sees it.

    Attributes:
        mtls: endpoint addresses that are spoken to with mutual TLS: in the mesh, and on a port whose
            mode is not DISABLE. Every other endpoint gets plaintext.
    """

    service: Service
    mtls: frozenset[SocketAddress] = frozenset()


@dataclass(frozen=True, slots=True)
class ProxyInput:
    """Everything that the configuration of one proxy is made from.

    Attributes:
        services: those in the workload's scope; each costs memory in the proxy.
    """

    workload: Workload
    policy: EffectivePolicy
    services: tuple[OutboundService, ...]
    mesh: MeshConfig


def render(proxy: ProxyInput, cache: RenderCache | None = None) -> ResourceSet:
    """Listeners, clusters, endpoints, routes and HTTP policy of a workload's proxy.

    Args:
        cache: parts rendered before, for this or another workload; parts are reused for objects that
            are the same (`is`) as before. Without one everything is rendered anew; the result is equal.

    Raises:
        RenderError: when a rule or option has no Envoy form.
    """
    context = Context(proxy.mesh, cache if cache is not None else RenderCache(0))
    return ResourceSet([*http_policy(proxy.policy, context), *_explicit(proxy, context)])


def missing_services(proxy: ProxyInput) -> tuple[EgressListener, ...]:
    """Egress listeners whose service or port does not exist: they are not opened."""
    known = {(o.service.host, port.number) for o in proxy.services for port in o.service.ports}
    return tuple(e for e in proxy.workload.egress if (e.service, e.port) not in known)


def _explicit(proxy: ProxyInput, context: Context) -> Iterator[Resource]:
    yield from _explicit_inbound(proxy, context)
    services = {outbound.service.host: outbound for outbound in proxy.services}
    used: dict[tuple[str, int], tuple[OutboundService, ServicePort]] = {}
    for egress in proxy.workload.egress:
        outbound = services.get(egress.service)
        target = outbound.service.port(egress.port) if outbound is not None else None
        if outbound is None or target is None:
            continue
        used[egress.service, egress.port] = outbound, target
        yield context.cache.by_value(
            ("outbound", egress, target.protocol, context.mesh),
            partial(listeners.explicit_outbound, egress, target.protocol, context),
        )
    for outbound, target in used.values():
        yield from _service_port(outbound, target, context)


def _explicit_inbound(proxy: ProxyInput, context: Context) -> Iterator[Resource]:
    address, rules = proxy.workload.address, proxy.policy.authz.tcp
    for port in proxy.workload.ports:
        mode = proxy.policy.transport.for_port(port.number)
        yield context.cache.by_identity(
            ("inbound", port, address, mode, context.mesh),
            rules,
            partial(listeners.explicit_inbound, port, address, mode, rules, context),
        )
        yield context.cache.by_value(("inbound-cluster", port), partial(clusters.inbound_cluster, port))


def _service_port(
    outbound: OutboundService, port: ServicePort, context: Context
) -> tuple[Resource, Resource]:
    service = outbound.service
    return context.cache.by_identity(
        ("service", service.host, service.external, outbound.mtls, context.mesh),
        port,
        lambda: (
            clusters.service_cluster(service, port, context.mesh),
            clusters.endpoints(service, port, outbound.mtls),
        ),
    )
