"""What a node's agent knows of a cluster becomes the world that the compiler takes (docs/csi.md).

Pure: the shell (`nodeagent.kube_source`) brings records that watches keep current. Everything is derived
anew at each change; parts whose records are the same objects as before keep their old value, so that the
layers behind find equal parts by identity.

- A workload is a volume that the kubelet published. Its identity comes from the volume alone; what it
  serves comes from the pod's record, once there is one. Until then its address is empty and nothing is
  rendered for it.
- An endpoint whose pod is not known yet is left out: by ignorance no call may go out in plaintext.
- A policy that is refused leaves its last good form in force.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from mesh.errors import Code, MeshError
from mesh.meshconfig import MeshConfig
from mesh.policy.effective import Finding, ObjectRef, Severity
from mesh.policy.jwks import parse_key_set
from mesh.policy.model import Policy
from mesh.topology import (
    AppProtocol,
    Endpoint,
    Interception,
    Service,
    ServicePort,
    SocketAddress,
    Workload,
    WorkloadPort,
)
from nodeagent.core.directory import STAYS, World
from nodeagent.core.documents import WorkloadSpec
from nodeagent.core.kube_objects import (
    MAX_PORTS,
    EndpointRecord,
    Key,
    KeySetsRecord,
    PodRecord,
    PolicyRecord,
    PortRecord,
    ServiceRecord,
    SliceRecord,
)
from nodeagent.core.kube_protocols import protocol_of
from nodeagent.core.volume import Volume

KEY_SETS_NAME: Final = "gatehouse-jwks"
PolicyKey = tuple[str, str, str]
"""Kind, namespace and name."""


class KubeCode(Code):
    """Remarks about objects of the cluster."""

    PORT_CONFLICT = "kube_port_conflict"
    KEY_SETS = "kube_key_sets"


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Records of the cluster at one moment.

    Attributes:
        volumes: published on this node.
        key_sets: None when upkeep has not published any.
        complete: False while a first list is still missing: then nothing is rendered.
    """

    volumes: tuple[Volume, ...] = ()
    pods: Mapping[Key, PodRecord] = field(default_factory=dict)
    services: Mapping[Key, ServiceRecord] = field(default_factory=dict)
    slices: Mapping[Key, SliceRecord] = field(default_factory=dict)
    policies: Mapping[PolicyKey, PolicyRecord] = field(default_factory=dict)
    key_sets: KeySetsRecord | None = None
    complete: bool = True


@dataclass(frozen=True, slots=True)
class KubeState:
    """The world, and the key sets by address."""

    world: World
    key_sets: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Built:
    """A value and the very objects that it was made from."""

    inputs: tuple[object, ...]
    service: Service


@dataclass(frozen=True, slots=True)
class _Ports:
    pod: PodRecord
    services: tuple[ServiceRecord, ...]
    ports: tuple[WorkloadPort, ...]
    findings: tuple[Finding, ...]


class KubeWorld:
    """Derives one world after another.

    Args:
        mesh: mesh-wide options.
        cluster_domain: of the names of services, e.g. `cluster.local`.
    """

    def __init__(self, mesh: MeshConfig, *, cluster_domain: str = "cluster.local") -> None:
        self._mesh = mesh
        self._domain = cluster_domain
        self._services: dict[Key, _Built] = {}
        self._ports: dict[str, _Ports] = {}
        self._workloads: dict[str, WorkloadSpec] = {}
        self._good_policies: dict[PolicyKey, Policy] = {}
        self._good_key_sets: dict[str, str] = {}
        self._key_sets_seen: KeySetsRecord | None = None
        self._key_set_findings: tuple[Finding, ...] = ()

    def update(self, snapshot: Snapshot) -> KubeState:
        """The world that follows from the records."""
        if not snapshot.complete:
            specs = tuple(_spec(volume, None, ()) for volume in snapshot.volumes)
            return KubeState(World(mesh=self._mesh, workloads=specs), {})
        findings: list[Finding] = []
        policies = self._policies(snapshot.policies, findings)
        workloads = self._workload_specs(snapshot, findings)
        services = self._build_services(snapshot)
        key_sets = self._read_key_sets(snapshot.key_sets)
        findings += self._key_set_findings
        world = World(
            mesh=self._mesh,
            workloads=workloads,
            known_services=services,
            policies=policies,
            findings=tuple(findings),
        )
        return KubeState(world, key_sets)

    # --- policies -----------------------------------------------------------------------------------

    def _policies(
        self, records: Mapping[PolicyKey, PolicyRecord], findings: list[Finding]
    ) -> tuple[Policy, ...]:
        good: dict[PolicyKey, Policy] = {}
        for key in sorted(records):
            record = records[key]
            before = self._good_policies.get(key)
            chosen = record.policy if record.policy is not None else before
            if chosen is not None:
                good[key] = chosen
            stays = record.policy is None and before is not None
            findings += [
                replace(f, message=f"{f.message}; {STAYS}") if stays and f.severity is Severity.ERROR else f
                for f in record.findings
            ]
        self._good_policies = good
        return tuple(good.values())

    # --- workloads ----------------------------------------------------------------------------------

    def _workload_specs(self, snapshot: Snapshot, findings: list[Finding]) -> tuple[WorkloadSpec, ...]:
        by_namespace = _selecting(snapshot.services.values())
        ports: dict[str, _Ports] = {}
        specs: dict[str, WorkloadSpec] = {}
        for volume in snapshot.volumes:
            pod = snapshot.pods.get((volume.namespace, volume.pod))
            if pod is not None and pod.uid != volume.pod_uid:
                pod = None  # another pod of the same name: the old one is still being taken down
            found: tuple[WorkloadPort, ...] = ()
            if pod is not None:
                known = self._ports_of(pod, by_namespace.get(pod.namespace, ()))
                ports[pod.uid] = known
                found = known.ports
                findings += known.findings
            spec = _spec(volume, pod, found)
            before = self._workloads.get(volume.uid)
            specs[volume.uid] = before if before is not None and before == spec else spec
        self._ports, self._workloads = ports, specs
        return tuple(specs.values())

    def _ports_of(self, pod: PodRecord, services: tuple[ServiceRecord, ...]) -> _Ports:
        before = self._ports.get(pod.uid)
        if before is not None and before.pod is pod and _same(before.services, services):
            return before
        ports, findings = workload_ports(pod, services)
        return _Ports(pod, services, ports, findings)

    # --- services -----------------------------------------------------------------------------------

    def _build_services(self, snapshot: Snapshot) -> tuple[Service, ...]:
        pods = snapshot.pods
        by_address = {
            pod.ip: pod for pod in pods.values() if pod.ip and not pod.finished and not pod.host_network
        }
        slices: dict[Key, list[SliceRecord]] = {}
        for key in sorted(snapshot.slices):
            record = snapshot.slices[key]
            slices.setdefault(record.service, []).append(record)
        built: dict[Key, _Built] = {}
        for key in sorted(snapshot.services):
            service = snapshot.services[key]
            own = _of_family(slices.get(key, ()), ipv6=service.ipv6_first)
            behind = [
                [_pod_behind(endpoint, key[0], pods, by_address) for endpoint in record.endpoints]
                for record in own
            ]
            inputs = (service, *own, *(pod for group in behind for pod in group))
            before = self._services.get(key)
            if before is not None and _same(before.inputs, inputs):
                built[key] = before
            else:
                built[key] = _Built(inputs, self._service(service, own, behind))
        self._services = built
        return tuple(item.service for item in built.values())

    def _service(
        self, record: ServiceRecord, slices: Iterable[SliceRecord], behind: list[list[PodRecord | None]]
    ) -> Service:
        groups = list(zip(slices, behind, strict=True))
        return Service(
            host=f"{record.name}.{record.namespace}.svc.{self._domain}",
            namespace=record.namespace,
            addresses=record.addresses,
            headless=record.headless,
            ports=tuple(
                ServicePort(
                    number=port.number,
                    protocol=port.protocol,
                    name=port.name,
                    endpoints=_endpoints(record.namespace, port, groups),
                )
                for port in record.ports
            ),
        )

    # --- key sets -----------------------------------------------------------------------------------

    def _read_key_sets(self, record: KeySetsRecord | None) -> Mapping[str, str]:
        if record is self._key_sets_seen:
            return self._good_key_sets
        if record is not None and not record.published:
            # As installed, or emptied by somebody: upkeep fills it in a moment, and good sets stay so long.
            self._key_sets_seen, self._key_set_findings = record, ()
            return self._good_key_sets
        self._key_sets_seen = record
        findings: list[Finding] = []
        good: dict[str, str] = {}
        if record is not None and record.key_sets is None:
            # Nothing can be told of what is in it: the last good sets stay.
            findings.append(_about_key_sets(f"data['keysets.json'] is not a map of key sets; {STAYS}"))
            good = self._good_key_sets
        for uri, text in sorted((record.key_sets or {}).items()) if record is not None else ():
            try:
                good[uri] = parse_key_set(text.encode()).json
            except MeshError as error:
                before = self._good_key_sets.get(uri)
                kept = STAYS if before is not None else "tokens of this issuer are refused"
                findings.append(_about_key_sets(f"{uri[:200]}: {error.public}; {kept}"))
                if before is not None:
                    good[uri] = before
        self._good_key_sets, self._key_set_findings = good, tuple(findings)
        return good


def workload_ports(
    pod: PodRecord, services: Iterable[ServiceRecord]
) -> tuple[tuple[WorkloadPort, ...], tuple[Finding, ...]]:
    """The ports of a pod: those that services lead to, and those that its containers declare.

    Args:
        pod: of this node.
        services: of its namespace, the oldest first; those that do not select it are passed over.
    """
    named = {port.name: port.number for port in pod.ports if port.name}
    found: dict[int, WorkloadPort] = {}
    decided: dict[int, ServiceRecord] = {}
    findings: list[Finding] = []
    for service in services:
        if any(pod.labels.get(name) != value for name, value in service.selector.items()):
            continue
        for port in service.ports:
            number = named.get(port.target) if isinstance(port.target, str) else port.target
            if number is None or len(found) >= MAX_PORTS:
                continue
            first = decided.setdefault(number, service)
            if number not in found:
                found[number] = _port(pod, number, port.name, port.protocol, server_first=port.server_first)
            elif found[number].protocol is not port.protocol:
                findings.append(_conflict(service, port, first, number, found[number].protocol))
    for declared in pod.ports:
        if declared.number not in found and len(found) < MAX_PORTS:
            said = protocol_of(declared.number, declared.name)
            found[declared.number] = _port(
                pod, declared.number, declared.name, said.protocol, server_first=said.server_first
            )
    return tuple(found[number] for number in sorted(found)), tuple(findings)


def _port(
    pod: PodRecord, number: int, name: str, protocol: AppProtocol, *, server_first: bool
) -> WorkloadPort:
    return WorkloadPort(
        number=number,
        protocol=protocol,
        app=SocketAddress(pod.ip, number),
        name=name,
        server_first=server_first,
    )


def _spec(volume: Volume, pod: PodRecord | None, ports: tuple[WorkloadPort, ...]) -> WorkloadSpec:
    served = pod is not None and pod.in_mesh and not pod.host_network and not pod.finished
    return WorkloadSpec(
        Workload(
            uid=volume.uid,
            namespace=volume.namespace,
            name=volume.pod,
            service_account=volume.service_account,
            address=pod.ip if pod is not None and served else "",
            labels=pod.labels if pod is not None else {},
            ports=ports if pod is not None and pod.ip else (),
            interception=Interception.REDIRECT,
            draining=pod is not None and pod.deleting,
        ),
        token_file="",
    )


def _selecting(services: Iterable[ServiceRecord]) -> Mapping[str, tuple[ServiceRecord, ...]]:
    """Services with a selector by namespace, the oldest first."""
    found: dict[str, list[ServiceRecord]] = {}
    for service in services:
        if service.selector:
            found.setdefault(service.namespace, []).append(service)
    return {
        namespace: tuple(sorted(group, key=lambda service: (service.created, service.name)))
        for namespace, group in found.items()
    }


def _of_family(slices: Iterable[SliceRecord], *, ipv6: bool) -> list[SliceRecord]:
    """Slices of one address family: those of the other one have the same pods once more."""
    everything = list(slices)
    return [record for record in everything if record.ipv6 is ipv6] or everything


def _pod_behind(
    endpoint: EndpointRecord,
    namespace: str,
    pods: Mapping[Key, PodRecord],
    by_address: Mapping[str, PodRecord],
) -> PodRecord | None:
    if not endpoint.pod:
        return by_address.get(endpoint.address)
    return pods.get((namespace, endpoint.pod))


def _endpoints(
    namespace: str, port: PortRecord, groups: Iterable[tuple[SliceRecord, list[PodRecord | None]]]
) -> tuple[Endpoint, ...]:
    found: dict[SocketAddress, Endpoint] = {}
    for record, behind in groups:
        number = record.ports.get(port.name)
        if number is None:
            continue
        for endpoint, pod in zip(record.endpoints, behind, strict=True):
            if endpoint.pod and pod is None:
                continue  # its record has not come yet
            address = SocketAddress(endpoint.address, number)
            found[address] = Endpoint(
                address=address,
                namespace=pod.namespace if pod is not None else namespace,
                service_account=pod.service_account if pod is not None else "",
                labels=pod.labels if pod is not None else {},
                in_mesh=pod is not None and pod.in_mesh and not pod.host_network,
                healthy=endpoint.ready,
            )
    return tuple(found[address] for address in sorted(found, key=lambda a: (a.host, a.port)))


def _same(old: tuple[object, ...], new: tuple[object, ...]) -> bool:
    """True when both hold the very same objects: records are replaced, never changed."""
    return len(old) == len(new) and all(a is b for a, b in zip(old, new, strict=True))


def _conflict(
    service: ServiceRecord, port: PortRecord, first: ServiceRecord, number: int, protocol: AppProtocol
) -> Finding:
    message = (
        f"says that port {number} of its pods speaks {port.protocol.value}, but the older Service"
        f" {first.namespace}/{first.name} says {protocol.value}, which counts; let both say the same"
    )
    ref = ObjectRef("Service", service.namespace, service.name)
    return Finding(
        KubeCode.PORT_CONFLICT, Severity.WARNING, ref, f"spec.ports[{port.name or port.number}]", message
    )


def _about_key_sets(message: str) -> Finding:
    ref = ObjectRef("ConfigMap", "", KEY_SETS_NAME)
    return Finding(KubeCode.KEY_SETS, Severity.ERROR, ref, "data", message)
