"""What exists in the mesh: workloads, services and endpoints, as immutable values.

The node agent fills these from a directory (file mode) or from watches (Kubernetes); policy
resolution and Envoy rendering only ever see these types.

Mappings held by the dataclasses must not be changed after construction.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field


class AppProtocol(enum.Enum):
    """What a port speaks; selects the filter chain that serves it."""

    HTTP = "HTTP"  # HTTP/1.1, and HTTP/2 where the client negotiates it
    HTTP2 = "HTTP2"  # HTTP/2 with prior knowledge, gRPC
    TCP = "TCP"
    AUTO = "AUTO"  # not declared: sniffed, HTTP when it looks like HTTP

    @property
    def is_http(self) -> bool:
        """True when requests, and not only connections, can be told apart."""
        return self in {AppProtocol.HTTP, AppProtocol.HTTP2}


class Interception(enum.Enum):
    """How traffic reaches the proxy."""

    EXPLICIT = "EXPLICIT"  # the proxy binds each port and each egress address itself (Istio: NONE)
    REDIRECT = "REDIRECT"  # capture rules redirect to 15006 and 15001 (Istio: REDIRECT)


@dataclass(frozen=True, slots=True)
class SocketAddress:
    """An IP address literal and a TCP port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadPort:
    """A port of a workload, by its own (container) number.

    Attributes:
        number: the workload port; policies name ports by this number.
        app: where the application listens. In EXPLICIT mode it differs from
            `Workload.address:number`, which the proxy binds; in REDIRECT mode it is the pod's own
            address and the same number.
        server_first: the server speaks before the client (SMTP, MySQL): sniffing would wait.
    """

    number: int
    protocol: AppProtocol
    app: SocketAddress
    name: str = ""
    server_first: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class EgressListener:
    """EXPLICIT mode only: an address at which the workload's application reaches a service."""

    bind: SocketAddress
    service: str  # host name of the service (`Service.host`)
    port: int  # service port number


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One workload instance (in Kubernetes: a pod) with a proxy of ours.

    Attributes:
        uid: unique for ever; a re-created pod of the same name has another.
        address: IP address literal that peers connect to.
        ports: unique by number.
        draining: it is being deleted: inbound connections end after one more request, and the port
            stays open until the proxy ends (soft drain).
    """

    uid: str
    namespace: str
    name: str
    service_account: str
    address: str
    labels: Mapping[str, str] = field(default_factory=dict)
    ports: tuple[WorkloadPort, ...] = ()
    egress: tuple[EgressListener, ...] = ()
    interception: Interception = Interception.EXPLICIT
    draining: bool = False

    def port(self, number: int) -> WorkloadPort | None:
        """The declared port of that number."""
        return next((p for p in self.ports if p.number == number), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One address behind a service port.

    Attributes:
        address: address and *workload* port.
        in_mesh: the endpoint has a proxy of ours, so mutual TLS can be spoken to it.
        service_account: identity that the endpoint must prove; in the endpoint's own namespace.
    """

    address: SocketAddress
    namespace: str
    service_account: str
    labels: Mapping[str, str] = field(default_factory=dict)
    in_mesh: bool = True
    healthy: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ServicePort:
    """A port of a service and what stands behind it."""

    number: int
    protocol: AppProtocol
    name: str = ""
    endpoints: tuple[Endpoint, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A service by its host name, e.g. `reviews.demo.svc.cluster.local`.

    Attributes:
        addresses: virtual IPs (Kubernetes clusterIPs); empty in file mode and for headless services.
        external: outside the mesh: never mutual TLS by default.
        headless: without a virtual IP: clients choose an endpoint and connect to its own address.
    """

    host: str
    namespace: str
    ports: tuple[ServicePort, ...]
    addresses: tuple[str, ...] = ()
    external: bool = False
    headless: bool = False

    def port(self, number: int) -> ServicePort | None:
        """The service port of that number."""
        return next((p for p in self.ports if p.number == number), None)
