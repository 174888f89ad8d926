"""Listeners of a proxy that binds each port itself, and the inbound chains of both modes.

`CHAINS` is the table of filter chains by transport mode and protocol. What it leaves out is as
important as what it has: plaintext to a STRICT port matches no chain, and there is no default one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

from envoy.config.core.v3 import base_pb2
from envoy.config.listener.v3 import listener_components_pb2, listener_pb2
from envoy.extensions.filters.listener.http_inspector.v3 import http_inspector_pb2
from envoy.extensions.filters.listener.tls_inspector.v3 import tls_inspector_pb2

from mesh.envoy import clusters, filters, routes, tls
from mesh.envoy import messages as m
from mesh.envoy.cache import Context
from mesh.envoy.extensions import network_policy
from mesh.envoy.resources import LISTENER, Resource
from mesh.policy.effective import MtlsMode, RuleSets
from mesh.policy.peers import identity_only_peers
from mesh.policy.predicates import StringMatch
from mesh.topology import AppProtocol, EgressListener, SocketAddress, Workload, WorkloadPort

SNIFF_SECONDS: Final = 1
"""How long a port that has to look at the first bytes waits for them. A server that speaks first is
delayed by it on plaintext; with 0 it would hang for ever."""

HELLO_SECONDS: Final = 15
"""How long a STRICT port waits for the ClientHello before it hangs up."""

HANDSHAKE_SECONDS: Final = 15

TLS_INSPECTOR: Final = "envoy.filters.listener.tls_inspector"
HTTP_INSPECTOR: Final = "envoy.filters.listener.http_inspector"
SNIFFED_HTTP: Final = ("http/1.0", "http/1.1", "h2c")


@dataclass(frozen=True, slots=True)
class Chain:
    """One row of the table: what a connection looks like, and what becomes of it."""

    name: str
    transport: str
    alpn: tuple[str, ...]
    mtls: bool
    http: bool


def _tls(name: str, alpn: tuple[str, ...] = (), *, http: bool) -> Chain:
    return Chain(name, "tls", alpn, mtls=True, http=http)


def _raw(name: str, alpn: tuple[str, ...] = (), *, http: bool) -> Chain:
    return Chain(name, "raw_buffer", alpn, mtls=False, http=http)


_OWN_TLS: Final = Chain("app-tls", "tls", (), mtls=False, http=False)
"""TLS that is not the mesh's: the application's own, passed on as it is."""

CHAINS: Final[dict[tuple[MtlsMode, str], tuple[Chain, ...]]] = {
    (MtlsMode.STRICT, "http"): (_tls("mtls-http", http=True),),
    (MtlsMode.STRICT, "tcp"): (_tls("mtls-tcp", http=False),),
    (MtlsMode.STRICT, "auto"): (
        _tls("mtls-http", tls.ALPN_MESH_HTTP, http=True),
        _tls("mtls-tcp", http=False),
    ),
    (MtlsMode.PERMISSIVE, "http"): (_tls("mtls-http", tls.ALPN_MESH, http=True), _raw("http", http=True)),
    (MtlsMode.PERMISSIVE, "tcp"): (
        _tls("mtls-tcp", tls.ALPN_MESH, http=False),
        _OWN_TLS,
        _raw("tcp", http=False),
    ),
    (MtlsMode.PERMISSIVE, "auto"): (
        _tls("mtls-http", tls.ALPN_MESH_HTTP, http=True),
        _tls("mtls-tcp", tls.ALPN_MESH_TCP, http=False),
        _raw("http", SNIFFED_HTTP, http=True),
        _raw("tcp", http=False),
        _OWN_TLS,
    ),
    (MtlsMode.DISABLE, "http"): (_raw("http", http=True),),
    (MtlsMode.DISABLE, "tcp"): (_raw("tcp", http=False),),
    (MtlsMode.DISABLE, "auto"): (_raw("http", SNIFFED_HTTP, http=True), _raw("tcp", http=False)),
}


@dataclass(frozen=True, slots=True)
class InboundPort:
    """What the chains of a port are made from.

    Attributes:
        kind: `http`, `tcp` or `auto`: the column of the table.
        cluster: where allowed traffic goes.
        rules: for bare connections; those of requests come by ECDS.
        number: workload port, or 0 for any.
        match: the chains must look at the destination port: the listener has several.
        peers: when rules on bare connections only ask who calls, those who may; else None.
        draining: connections end after one more request.
    """

    label: str
    kind: str
    mode: MtlsMode
    cluster: str
    rules: RuleSets
    number: int = 0
    match: bool = False
    peers: tuple[StringMatch, ...] | None = None
    draining: bool = False

    @property
    def chains(self) -> tuple[Chain, ...]:
        """Rows of the table for this port.

        Where only certain identities may connect, plaintext never may. Its chain is left out: rules are
        asked at the first byte of the client, and a server that speaks first would have spoken.
        """
        rows = CHAINS[self.mode, self.kind]
        return rows if self.peers is None else tuple(row for row in rows if row.mtls or row.http)

    @property
    def sniffs_tls(self) -> bool:
        """Whether a ClientHello has to be told from other bytes."""
        return self.mode is not MtlsMode.DISABLE

    @property
    def sniffs_http(self) -> bool:
        """Whether plaintext HTTP has to be told from other plaintext."""
        return self.kind == "auto" and self.mode is not MtlsMode.STRICT


def column(protocol: AppProtocol, *, server_first: bool = False) -> str:
    """Column of the table. Sniffing a server that speaks first would only wait."""
    if protocol.is_http:
        return "http"
    return "tcp" if protocol is AppProtocol.TCP or server_first else "auto"


def inbound_chains(port: InboundPort, context: Context) -> list[Any]:
    """The filter chains of a port."""
    found = _with_peers(port, context)
    return [_chain(found, chain, context) for chain in found.chains]


def _with_peers(port: InboundPort, context: Context) -> InboundPort:
    """The port with the identities that a handshake can demand; port 0 stands for many, which may differ."""
    if port.kind == "http" or not port.sniffs_tls or not port.number:
        return port
    return replace(port, peers=identity_only_peers(port.rules, port.number, context.mesh.trust_domains))


def _chain(port: InboundPort, chain: Chain, context: Context) -> Any:
    mesh = context.mesh
    stat_prefix = f"{port.label}.{chain.name}"
    match = listener_components_pb2.FilterChainMatch(
        transport_protocol=chain.transport, application_protocols=chain.alpn
    )
    if port.match:
        match.destination_port.value = port.number
    found = listener_components_pb2.FilterChain(name=f"{port.label}|{chain.name}", filter_chain_match=match)
    if chain.mtls:
        if chain.http or port.peers is None:
            sans = tls.trust_domain_sans(mesh.trust_domains)
        else:
            sans = tls.peer_sans(port.peers, mesh.trust_domains)
        found.transport_socket.CopyFrom(tls.downstream(sans))
        found.transport_socket_connect_timeout.CopyFrom(m.seconds(HANDSHAKE_SECONDS))
    if chain.http:
        routing = routes.inbound(port.label, port.cluster)
        found.filters.append(filters.inbound_http(stat_prefix, routing, mesh, draining=port.draining))
    else:
        rules = network_policy(port.rules, context, f"{stat_prefix}.")
        found.filters.extend(filters.network_filter(name, config) for name, config in rules)
        connect = filters.Connect.AFTER_HANDSHAKE if chain.mtls else filters.Connect.AT_ONCE
        found.filters.append(filters.tcp_proxy(stat_prefix, port.cluster, connect))
    return found


def listener_filter(name: str, config: Any) -> Any:
    """A listener filter."""
    return listener_components_pb2.ListenerFilter(name=name, typed_config=m.pack(config))


def explicit_inbound(
    port: WorkloadPort, workload: Workload, mode: MtlsMode, rules: RuleSets, context: Context
) -> Resource:
    """The listener of one workload port, bound to the address that peers connect to."""
    draining = workload.draining
    name = f"inbound|{port.number}"
    head = listener_pb2.Listener(
        name=name, address=m.socket_address(SocketAddress(workload.address, port.number))
    )
    # All but the address is the same for each workload under the same rules: messages may be joined.
    kind = column(port.protocol, server_first=port.server_first)
    body = context.cache.by_identity(
        ("inbound-body", name, kind, mode, draining, context.mesh),
        rules,
        lambda: _inbound_body(
            InboundPort(
                name,
                kind,
                mode,
                clusters.inbound_name(port.number),
                rules,
                port.number,
                draining=draining,
            ),
            context,
        ),
    )
    return Resource.of(LISTENER, name, m.encode(head) + body)


def _inbound_body(port: InboundPort, context: Context) -> bytes:
    """Everything of a listener but its name and address."""
    listener = listener_pb2.Listener(
        stat_prefix=port.label,
        traffic_direction=base_pb2.INBOUND,
        filter_chains=inbound_chains(port, context),
    )
    if port.sniffs_tls:
        listener.listener_filters.append(listener_filter(TLS_INSPECTOR, tls_inspector_pb2.TlsInspector()))
    if port.sniffs_http:
        listener.listener_filters.append(listener_filter(HTTP_INSPECTOR, http_inspector_pb2.HttpInspector()))
    set_sniff_timeout(listener, wait_for_plaintext=port.mode is MtlsMode.PERMISSIVE or port.sniffs_http)
    return m.encode(listener)


def set_sniff_timeout(listener: Any, *, wait_for_plaintext: bool) -> None:
    """After the wait a port that takes plaintext goes on with it; one that does not hangs up."""
    listener.listener_filters_timeout.CopyFrom(
        m.seconds(SNIFF_SECONDS if wait_for_plaintext else HELLO_SECONDS)
    )
    listener.continue_on_listener_filters_timeout = wait_for_plaintext


def explicit_outbound(egress: EgressListener, protocol: AppProtocol, context: Context) -> Resource:
    """The listener at which the application finds one service."""
    label = f"outbound|{egress.bind}"
    cluster = clusters.outbound_name(egress.service, egress.port)
    routing = routes.egress(label, cluster, egress.bind, egress.service, egress.port)
    listener = listener_pb2.Listener(
        name=label,
        stat_prefix=label,
        address=m.socket_address(egress.bind),
        traffic_direction=base_pb2.OUTBOUND,
    )
    if protocol.is_http:
        listener.filter_chains.add(filters=[filters.outbound_http(label, context.mesh, routes=routing)])
    elif protocol is AppProtocol.TCP:
        listener.filter_chains.add(filters=[filters.tcp_proxy(label, cluster)])
    else:
        listener.filter_chains.extend(sniffed_chains(label, cluster, routing, context))
        listener.listener_filters.append(listener_filter(HTTP_INSPECTOR, http_inspector_pb2.HttpInspector()))
        set_sniff_timeout(listener, wait_for_plaintext=True)
    return Resource.of(LISTENER, label, m.encode(listener))


def sniffed_chains(label: str, cluster: str, routing: Any, context: Context) -> list[Any]:
    """Outbound chains of a port of unknown protocol; the ALPN offered tells the server what was found."""
    found = []
    for name, sniffed, alpn in (
        ("http1", ("http/1.0", "http/1.1"), tls.ALPN_CLIENT_HTTP1),
        ("http2", ("h2c",), tls.ALPN_CLIENT_HTTP2),
    ):
        manager = filters.outbound_http(f"{label}.{name}", context.mesh, routes=routing, alpn=alpn)
        match = listener_components_pb2.FilterChainMatch(application_protocols=sniffed)
        found.append(
            listener_components_pb2.FilterChain(
                name=f"{label}|{name}", filter_chain_match=match, filters=[manager]
            )
        )
    found.append(
        listener_components_pb2.FilterChain(
            name=f"{label}|tcp",
            filters=[filters.network_alpn(tls.ALPN_CLIENT_TCP), filters.tcp_proxy(f"{label}.tcp", cluster)],
        )
    )
    return found
