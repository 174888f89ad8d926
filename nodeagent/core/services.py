"""Services of a world: selectors become endpoints, and a workload sees what it declares."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from mesh.policy.effective import Finding, ObjectRef, Severity
from mesh.topology import Endpoint, Interception, Service, ServicePort, SocketAddress, Workload
from nodeagent.core.directory import World
from nodeagent.core.documents import DocumentKey, ServicePortSpec, ServiceSpec
from nodeagent.core.fields import DocumentCode

_LOST_EGRESS: Final = "the listener is not opened until there is one"


def build_services(world: World) -> tuple[Service, ...]:
    """Services with their endpoints, in the order of the world; those of a directory come first."""
    by_namespace: dict[str, list[Workload]] = {}
    for spec in world.workloads:
        by_namespace.setdefault(spec.workload.namespace, []).append(spec.workload)
    written = tuple(
        Service(
            host=spec.host,
            namespace=spec.namespace,
            external=spec.external,
            ports=tuple(
                ServicePort(
                    number=port.number,
                    protocol=port.protocol,
                    name=port.name,
                    endpoints=_endpoints(spec, port, by_namespace.get(spec.namespace, ())),
                )
                for port in spec.ports
            ),
        )
        for spec in world.services
    )
    return (*written, *world.known_services)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """What a captured workload gets of the services of a cluster (D8c).

    Attributes:
        other_namespaces: False = services of its own namespace only.
        limit: services at most; those of its own namespace come first.
    """

    other_namespaces: bool = True
    limit: int = 1000


EVERYTHING: Final = Scope()


def scope(
    workload: Workload, services: Iterable[Service], options: Scope = EVERYTHING
) -> tuple[Service, ...]:
    """The services that a workload's proxy gets (D8c).

    A workload that binds its egress addresses itself gets the services that its egress list names. A
    captured one may call anything: it gets those of its own namespace, then others, up to a limit.
    """
    if workload.interception is Interception.EXPLICIT:
        wanted = {listener.service for listener in workload.egress}
        return tuple(service for service in services if service.host in wanted)
    own: list[Service] = []
    others: list[Service] = []
    for service in services:
        (own if service.namespace == workload.namespace else others).append(service)
    found = own + others if options.other_namespaces else own
    return tuple(found[: options.limit])


def check_references(world: World, services: Iterable[Service]) -> tuple[Finding, ...]:
    """Egress that leads nowhere, and services that select nothing."""
    known = {service.host: service for service in services}
    found: list[Finding] = []
    for spec in world.workloads:
        workload = spec.workload
        for index, listener in enumerate(workload.egress):
            service = known.get(listener.service)
            if service is None:
                message = f"there is no Service with the host {listener.service}; {_LOST_EGRESS}"
            elif service.port(listener.port) is None:
                ports = ", ".join(str(port.number) for port in service.ports)
                message = (
                    f"Service {listener.service} has no port {listener.port} (it has {ports}); {_LOST_EGRESS}"
                )
            else:
                continue
            key = DocumentKey("Workload", workload.namespace, workload.name)
            found.append(_warning(world, key, f"spec.egress[{index}]", message))
    for service_spec in world.services:
        service = known[service_spec.host]
        for index, port in enumerate(service.ports):
            if not port.endpoints:
                key = DocumentKey("Service", service_spec.namespace, service_spec.name)
                message = f"port {port.number} has no endpoint: no workload has these labels and that port"
                found.append(_warning(world, key, f"spec.ports[{index}]", message))
    return tuple(found)


def check_scope(
    world: World, services: Sequence[Service], options: Scope = EVERYTHING
) -> tuple[Finding, ...]:
    """Services that do not fit into the proxies of a namespace."""
    found: list[Finding] = []
    captured = (s.workload for s in world.workloads if s.workload.interception is Interception.REDIRECT)
    for namespace in sorted({workload.namespace for workload in captured}):
        own = sum(service.namespace == namespace for service in services)
        wanted = len(services) if options.other_namespaces else own
        if wanted > options.limit:
            message = (
                f"{wanted - options.limit} of {wanted} services are left out of this namespace's proxies;"
                " calls to them are plaintext; raise kubernetes.service_limit, at 0.11 MB each per proxy"
            )
            ref = ObjectRef("Namespace", "", namespace)
            found.append(Finding(DocumentCode.REFERENCE, Severity.WARNING, ref, "", message))
    return tuple(found)


def _endpoints(
    spec: ServiceSpec, port: ServicePortSpec, workloads: Iterable[Workload]
) -> tuple[Endpoint, ...]:
    if port.endpoints is not None:
        return port.endpoints
    found: list[Endpoint] = []
    for workload in workloads:
        if any(workload.labels.get(name) != value for name, value in spec.selector.items()):
            continue
        number = next((p.number for p in workload.ports if port.target in {p.number, p.name}), None)
        if number is not None:
            found.append(
                Endpoint(
                    address=SocketAddress(workload.address, number),
                    namespace=workload.namespace,
                    service_account=workload.service_account,
                    labels=workload.labels,
                )
            )
    return tuple(found)


def _warning(world: World, key: DocumentKey, field: str, message: str) -> Finding:
    place = world.places.get(key, "")
    ref = ObjectRef(key.kind, key.namespace, key.name, source=place)
    return Finding(DocumentCode.REFERENCE, Severity.WARNING, ref, field, message, place)
