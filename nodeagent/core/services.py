"""Services of a world: selectors become endpoints, and a workload sees what it declares."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from mesh.policy.effective import Finding, ObjectRef, Severity
from mesh.topology import Endpoint, Service, ServicePort, SocketAddress, Workload
from nodeagent.core.directory import World
from nodeagent.core.documents import DocumentKey, ServicePortSpec, ServiceSpec
from nodeagent.core.fields import DocumentCode

_LOST_EGRESS: Final = "the listener is not opened until there is one"


def build_services(world: World) -> tuple[Service, ...]:
    """Services with their endpoints, in the order of the world."""
    by_namespace: dict[str, list[Workload]] = {}
    for spec in world.workloads:
        by_namespace.setdefault(spec.workload.namespace, []).append(spec.workload)
    return tuple(
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


def scope(workload: Workload, services: Iterable[Service]) -> tuple[Service, ...]:
    """The services that a workload's proxy gets: those that its egress list names (D8c)."""
    wanted = {listener.service for listener in workload.egress}
    return tuple(service for service in services if service.host in wanted)


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
    for service_spec, service in zip(world.services, services, strict=True):
        for index, port in enumerate(service.ports):
            if not port.endpoints:
                key = DocumentKey("Service", service_spec.namespace, service_spec.name)
                message = f"port {port.number} has no endpoint: no workload has these labels and that port"
                found.append(_warning(world, key, f"spec.ports[{index}]", message))
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
