"""Listeners of a proxy behind capture rules: everything inbound on 15006, everything outbound on 15001.

Each inbound chain, declared port or not, carries the transport mode and the access rules: a port that
nobody declared is a TCP port of the workload. The two capture ports themselves lead nowhere, or a
connection to them would loop.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from envoy.config.core.v3 import base_pb2
from envoy.config.listener.v3 import listener_components_pb2, listener_pb2
from envoy.extensions.filters.listener.http_inspector.v3 import http_inspector_pb2
from envoy.extensions.filters.listener.original_dst.v3 import original_dst_pb2
from envoy.extensions.filters.listener.tls_inspector.v3 import tls_inspector_pb2
from envoy.type.v3 import range_pb2

from mesh import ports as pod_ports
from mesh.envoy import clusters, filters, listeners, routes
from mesh.envoy import messages as m
from mesh.envoy.cache import Context
from mesh.envoy.listeners import InboundPort
from mesh.envoy.resources import LISTENER, Resource
from mesh.meshconfig import OutboundPolicy
from mesh.policy.effective import MtlsMode, RuleSets, TransportPolicy
from mesh.topology import AppProtocol, Service, ServicePort, SocketAddress, Workload

INBOUND_PORT: Final = pod_ports.INBOUND
OUTBOUND_PORT: Final = pod_ports.OUTBOUND
VIRTUAL_INBOUND: Final = "virtualInbound"
VIRTUAL_OUTBOUND: Final = "virtualOutbound"


def inbound_ports(workload: Workload, transport: TransportPolicy, rules: RuleSets) -> list[InboundPort]:
    """Declared ports, then undeclared ones with a mode of their own, then any other port."""
    found = [
        InboundPort(
            label=f"inbound|{port.number}",
            kind=listeners.column(port.protocol, server_first=port.server_first),
            mode=transport.for_port(port.number),
            cluster=clusters.inbound_name(port.number),
            rules=rules,
            number=port.number,
            match=True,
            draining=workload.draining,
        )
        for port in workload.ports
    ]
    declared = {port.number for port in workload.ports}
    found += [
        _undeclared(f"inbound|{number}", transport.for_port(number), rules, number)
        for number in sorted(transport.ports)
        if number not in declared
    ]
    return [*found, _undeclared("inbound|other", transport.mode, rules, 0)]


def _undeclared(label: str, mode: MtlsMode, rules: RuleSets, number: int) -> InboundPort:
    return InboundPort(
        label=label,
        kind="tcp",
        mode=mode,
        cluster=clusters.INBOUND_PASSTHROUGH,
        rules=rules,
        number=number,
        match=number != 0,
    )


def virtual_inbound(
    workload: Workload, transport: TransportPolicy, rules: RuleSets, context: Context
) -> Resource:
    """The one listener to which the capture rules send what comes in."""
    ports = inbound_ports(workload, transport, rules)
    chains = [_loop_guard(INBOUND_PORT)]
    for port in ports:
        chains += listeners.inbound_chains(port, context)
    listener = listener_pb2.Listener(
        name=VIRTUAL_INBOUND,
        stat_prefix=VIRTUAL_INBOUND,
        address=_any_address(workload, INBOUND_PORT),
        traffic_direction=base_pb2.INBOUND,
        filter_chains=chains,
        listener_filters=_inbound_filters(ports),
    )
    waits = any(port.mode is MtlsMode.PERMISSIVE or port.sniffs_http for port in ports)
    listeners.set_sniff_timeout(listener, wait_for_plaintext=waits)
    return Resource.of(LISTENER, VIRTUAL_INBOUND, m.encode(listener))


def virtual_outbound(workload: Workload, context: Context) -> Resource:
    """The listener to which the capture rules send what goes out; others take over by address."""
    listener = listener_pb2.Listener(
        name=VIRTUAL_OUTBOUND,
        stat_prefix=VIRTUAL_OUTBOUND,
        address=_any_address(workload, OUTBOUND_PORT),
        traffic_direction=base_pb2.OUTBOUND,
        use_original_dst=m.boolean(True),
        filter_chains=[_loop_guard(OUTBOUND_PORT), _unknown_destination(context)],
    )
    return Resource.of(LISTENER, VIRTUAL_OUTBOUND, m.encode(listener))


def http_port(workload: Workload, port: int, context: Context) -> Resource:
    """Outbound HTTP to any address on a port: the service is chosen by the Host header.

    What is not HTTP goes where an unknown destination goes, so that a service of one team does not
    break the TCP traffic of another on the same port.
    """
    label = f"0.0.0.0_{port}"
    manager = filters.outbound_http(f"outbound|{port}", context.mesh, rds=routes.port_name(port))
    match = listener_components_pb2.FilterChainMatch(application_protocols=listeners.SNIFFED_HTTP)
    http = listener_components_pb2.FilterChain(name="http", filter_chain_match=match, filters=[manager])
    listener = _captured(label, _any_address(workload, port), [http, _unknown_destination(context)])
    return Resource.of(LISTENER, label, m.encode(listener))


def service_address(service: Service, port: ServicePort, address: str, context: Context) -> Resource:
    """Outbound connections to the virtual IP of a service that is not (only) HTTP."""
    label = f"{address}_{port.number}"
    cluster = clusters.outbound_name(service.host, port.number)
    stat_prefix = f"outbound|{port.number}|{service.host}"
    if port.protocol is AppProtocol.TCP:
        chains = [
            listener_components_pb2.FilterChain(name="tcp", filters=[filters.tcp_proxy(stat_prefix, cluster)])
        ]
    else:
        routing = routes.one_cluster(label, cluster)
        chains = listeners.sniffed_chains(stat_prefix, cluster, routing, context)
    where = m.socket_address(SocketAddress(address, port.number))
    listener = _captured(label, where, chains, sniff=port.protocol is not AppProtocol.TCP)
    return Resource.of(LISTENER, label, m.encode(listener))


def pod_address(
    service: Service, port: ServicePort, address: SocketAddress, *, mtls: bool, context: Context
) -> Resource:
    """Outbound connections to one pod of a headless service: the client has chosen it, and gets it.

    Args:
        mtls: the pod is spoken to with mutual TLS, else as it is.
    """
    label = f"{address.host}_{address.port}"
    if not mtls:
        proxy = filters.tcp_proxy(f"direct|{port.number}|{service.host}", clusters.PASSTHROUGH)
        chains = [listener_components_pb2.FilterChain(name="plain", filters=[proxy])]
        listener = _captured(label, m.socket_address(address), chains, sniff=False)
        return Resource.of(LISTENER, label, m.encode(listener))
    cluster = clusters.direct_name(service.host, port.number)
    stat_prefix = f"direct|{port.number}|{service.host}"
    routing = routes.one_cluster(label, cluster)
    match port.protocol:
        case AppProtocol.TCP:
            proxy = filters.tcp_proxy(stat_prefix, cluster)
            chains = [listener_components_pb2.FilterChain(name="tcp", filters=[proxy])]
        case AppProtocol.AUTO:
            chains = listeners.sniffed_chains(stat_prefix, cluster, routing, context)
        case _:
            manager = filters.outbound_http(stat_prefix, context.mesh, routes=routing)
            chains = [listener_components_pb2.FilterChain(name="http", filters=[manager])]
    sniff = port.protocol is AppProtocol.AUTO
    listener = _captured(label, m.socket_address(address), chains, sniff=sniff)
    return Resource.of(LISTENER, label, m.encode(listener))


def _captured(label: str, address: Any, chains: Sequence[Any], *, sniff: bool = True) -> Any:
    listener = listener_pb2.Listener(
        name=label,
        stat_prefix=f"outbound_{label}",
        address=address,
        traffic_direction=base_pb2.OUTBOUND,
        bind_to_port=m.boolean(False),
        filter_chains=chains,
    )
    if sniff:
        inspector = http_inspector_pb2.HttpInspector()
        listener.listener_filters.append(listeners.listener_filter(listeners.HTTP_INSPECTOR, inspector))
        listeners.set_sniff_timeout(listener, wait_for_plaintext=True)
    return listener


def _loop_guard(port: int) -> Any:
    match = listener_components_pb2.FilterChainMatch(destination_port=m.uint32(port))
    proxy = filters.tcp_proxy("loop-guard", clusters.BLACKHOLE)
    return listener_components_pb2.FilterChain(name="loop-guard", filter_chain_match=match, filters=[proxy])


def _unknown_destination(context: Context) -> Any:
    allowed = context.mesh.outbound_policy is OutboundPolicy.ALLOW_ANY
    cluster = clusters.PASSTHROUGH if allowed else clusters.BLACKHOLE
    return listener_components_pb2.FilterChain(
        name="unknown-destination", filters=[filters.tcp_proxy(cluster, cluster)]
    )


def _any_address(workload: Workload, port: int) -> Any:
    if ":" not in workload.address:
        return m.socket_address(SocketAddress("0.0.0.0", port))  # noqa: S104 - capture rules bring any address here
    address = m.socket_address(SocketAddress("::", port))
    address.socket_address.ipv4_compat = True
    return address


def _inbound_filters(ports: Sequence[InboundPort]) -> list[Any]:
    """Inspectors run where their answer counts: a ClientHello on a port without TLS of ours, or a
    greeting on a port that is not sniffed, would only be waited for.
    """
    found = [listeners.listener_filter("envoy.filters.listener.original_dst", original_dst_pb2.OriginalDst())]
    for name, config, wanted in (
        (listeners.TLS_INSPECTOR, tls_inspector_pb2.TlsInspector(), [p.sniffs_tls for p in ports]),
        (listeners.HTTP_INSPECTOR, http_inspector_pb2.HttpInspector(), [p.sniffs_http for p in ports]),
    ):
        if not any(wanted):
            continue
        inspector = listeners.listener_filter(name, config)
        others = wanted[-1]  # what holds for undeclared ports is the rule, the rest are exceptions
        exceptions = [p.number for p, want in zip(ports, wanted, strict=True) if want is not others]
        predicate = _ports(exceptions)
        if not others:
            inspector.filter_disabled.not_match.CopyFrom(predicate)
        elif exceptions:
            inspector.filter_disabled.CopyFrom(predicate)
        found.append(inspector)
    return found


def _ports(numbers: Iterable[int]) -> Any:
    kind = listener_components_pb2.ListenerFilterChainMatchPredicate
    each = [kind(destination_port_range=range_pb2.Int32Range(start=n, end=n + 1)) for n in numbers]
    return each[0] if len(each) == 1 else kind(or_match=kind.MatchSet(rules=each))
