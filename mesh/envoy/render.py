"""Effective policy and topology of one workload -> every resource of its proxy but the secrets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from mesh.envoy import clusters, listeners, redirect, routes
from mesh.envoy.cache import Context, RenderCache
from mesh.envoy.extensions import http_policy
from mesh.envoy.resources import Resource, ResourceSet
from mesh.meshconfig import MeshConfig, OutboundPolicy
from mesh.policy.effective import EffectivePolicy
from mesh.topology import EgressListener, Interception, Service, ServicePort, SocketAddress, Workload


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
    explicit = proxy.workload.interception is Interception.EXPLICIT
    structure = _explicit if explicit else _redirect
    return ResourceSet([*http_policy(proxy.policy, context), *structure(proxy, context)])


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
    workload, rules = proxy.workload, proxy.policy.authz.tcp
    for port in workload.ports:
        mode = proxy.policy.transport.for_port(port.number)
        yield context.cache.by_identity(
            ("inbound", port, workload.address, workload.draining, mode, context.mesh),
            rules,
            partial(listeners.explicit_inbound, port, workload, mode, rules, context),
        )
        yield context.cache.by_value(("inbound-cluster", port), partial(clusters.inbound_cluster, port))


def _redirect(proxy: ProxyInput, context: Context) -> Iterator[Resource]:
    workload, mesh, rules = proxy.workload, proxy.mesh, proxy.policy.authz.tcp
    transport = proxy.policy.transport
    modes = (transport.mode, tuple(sorted((n, mode.value) for n, mode in transport.ports.items())))
    yield context.cache.by_identity(
        ("virtual-inbound", workload.ports, ":" in workload.address, workload.draining, modes, mesh),
        rules,
        lambda: redirect.virtual_inbound(workload, transport, rules, context),
    )
    yield redirect.virtual_outbound(workload, context)
    for port in workload.ports:
        yield context.cache.by_value(
            ("captured-cluster", port), partial(clusters.inbound_cluster, port, captured=True)
        )
    yield clusters.blackhole()
    yield clusters.passthrough(clusters.INBOUND_PASSTHROUGH, inbound_to=workload.address)
    yield clusters.passthrough(clusters.PASSTHROUGH)
    by_port: dict[int, list[Service]] = {}
    # A pod's address belongs to the first service that has it; its own is never captured.
    taken: set[SocketAddress] = {SocketAddress(workload.address, port.number) for port in workload.ports}
    for outbound in proxy.services:
        for service_port in outbound.service.ports:
            if outbound.service.headless:
                yield from _headless_port(outbound, service_port, taken, context)
            if not outbound.service.headless or service_port.protocol.is_http:
                yield from _service_port(outbound, service_port, context)
            if service_port.protocol.is_http:
                by_port.setdefault(service_port.number, []).append(outbound.service)
                continue
            for address in outbound.service.addresses:
                yield context.cache.by_identity(
                    ("service-address", outbound.service.host, address, mesh),
                    service_port,
                    partial(redirect.service_address, outbound.service, service_port, address, context),
                )
    for number, services in by_port.items():
        yield redirect.http_port(workload, number, context)
        named = tuple((s.host, s.namespace, s.addresses) for s in services)
        yield context.cache.by_value(
            ("routes", number, named, workload.namespace, mesh.outbound_policy),
            partial(_routes, number, services, workload.namespace, context),
        )


def _headless_port(
    outbound: OutboundService, port: ServicePort, taken: set[SocketAddress], context: Context
) -> Iterator[Resource]:
    """One listener for each pod, and one cluster for those of them that are in the mesh.

    Where no pod is, and any destination is allowed, nothing is needed: they are reached like strangers, and
    a service of all nodes costs no proxy anything.
    """
    service, mesh = outbound.service, context.mesh
    free = [e.address for e in port.endpoints if e.address not in taken]
    meshed = any(address in outbound.mtls for address in free)
    if not meshed and mesh.outbound_policy is OutboundPolicy.ALLOW_ANY:
        return
    taken.update(free)
    if meshed:
        yield context.cache.by_identity(
            ("direct", service.host, mesh), port, partial(clusters.direct_cluster, service, port, mesh)
        )
    for address in free:
        mtls = address in outbound.mtls
        yield context.cache.by_value(
            ("pod-address", service.host, port.number, port.protocol, address, mtls, mesh),
            partial(redirect.pod_address, service, port, address, mtls=mtls, context=context),
        )


def _routes(number: int, services: list[Service], namespace: str, context: Context) -> Resource:
    named = [(service, clusters.outbound_name(service.host, number)) for service in services]
    return routes.captured_port(number, named, namespace, context.mesh.outbound_policy)


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
