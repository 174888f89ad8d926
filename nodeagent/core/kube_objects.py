"""API server objects, trimmed to records: what compiling needs, interned, a hundredth of the object.

Readers cope with any object that a server may hold: a field of an unforeseen type reads as absent, and an
object that cannot be used reads as None. `docs/csi.md` says what each object contributes.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeGuard

from mesh.policy.effective import Finding
from mesh.policy.model import Policy
from mesh.policy.parse import parse_policy
from mesh.topology import AppProtocol
from nodeagent.core.kube_protocols import protocol_of

PROXY_CONTAINER: Final = "istio-proxy"
STATUS_ANNOTATION: Final = "sidecar.istio.io/status"
TLS_MODE_LABEL: Final = "security.istio.io/tlsMode"
SERVICE_NAME_LABEL: Final = "kubernetes.io/service-name"
KEY_SETS_ENTRY: Final = "keysets.json"
MAX_KEY_SETS: Final = 1 << 20
MAX_PORTS: Final = 256
_MAX_PORT: Final = 65535
_MAX_POOL: Final = 50_000
_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
Key = tuple[str, str]
"""Namespace and name."""


@dataclass(frozen=True, slots=True)
class PodPort:
    """A TCP port that a container declares."""

    number: int
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PodRecord:
    """A pod.

    Attributes:
        ip: empty until it has one.
        in_mesh: it carries a proxy of ours.
        deleting: it has a deletion timestamp.
        finished: its containers have ended for good; its address may belong to another pod by now.
        apps_ended: all its containers but the proxy have, so the proxy may end (jobs without native
            sidecars); of pods of this node only.
        ports: of pods of this node only; none of the proxy's own.
    """

    uid: str
    namespace: str
    name: str
    ip: str
    service_account: str
    labels: Mapping[str, str]
    in_mesh: bool
    host_network: bool
    deleting: bool
    finished: bool
    apps_ended: bool = False
    ports: tuple[PodPort, ...] = ()


@dataclass(frozen=True, slots=True)
class PortRecord:
    """A TCP port of a service.

    Attributes:
        target: number or name of the port of the pods.
    """

    name: str
    number: int
    target: int | str
    protocol: AppProtocol
    server_first: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceRecord:
    """A service that has pods or endpoints behind it.

    Attributes:
        addresses: its virtual addresses; none when it is headless.
        selector: empty when its endpoints are kept by hand.
        ipv6_first: the first address family.
        created: the oldest of services that disagree is right.
    """

    namespace: str
    name: str
    addresses: tuple[str, ...]
    headless: bool
    selector: Mapping[str, str]
    ports: tuple[PortRecord, ...]
    ipv6_first: bool
    created: dt.datetime


@dataclass(frozen=True, slots=True)
class EndpointRecord:
    """One endpoint.

    Attributes:
        pod: name of the pod, empty when there is none behind it.
    """

    address: str
    ready: bool
    pod: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceRecord:
    """A part of a service's endpoints.

    Attributes:
        ports: number by name of the service's port; unnamed is "".
    """

    service: Key
    ipv6: bool
    ports: Mapping[str, int]
    endpoints: tuple[EndpointRecord, ...]


@dataclass(frozen=True, slots=True)
class PolicyRecord:
    """A policy object: as parsed, or why not."""

    policy: Policy | None
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True, slots=True)
class KeySetsRecord:
    """The published key sets, as written: key set JSON by jwksUri; None when that cannot be read.

    Attributes:
        published: False while the ConfigMap, which comes with the chart, holds nothing at all.
    """

    key_sets: Mapping[str, str] | None = field(repr=False)
    published: bool = True


class Interner:
    """Lets equal strings and label sets be one object: pods of one workload differ in very little."""

    def __init__(self) -> None:
        self._labels: dict[tuple[tuple[str, str], ...], Mapping[str, str]] = {}

    def labels(self, value: object) -> Mapping[str, str]:
        """The one mapping that is equal to this one."""
        pairs: list[tuple[object, object]] = list(_map(value).items())
        found = {
            sys.intern(name): sys.intern(text)
            for name, text in pairs
            if isinstance(name, str) and isinstance(text, str)
        }
        key = tuple(sorted(found.items()))
        if len(self._labels) >= _MAX_POOL:
            self._labels.clear()  # label sets of pods long gone; those in use are only shared less
        return self._labels.setdefault(key, found)


def read_pod(item: Mapping[str, Any], *, node: str, interner: Interner) -> PodRecord | None:
    """A pod, of any node.

    Args:
        node: ports are kept of this node's pods only.
    """
    meta, spec, status = _map(item.get("metadata")), _map(item.get("spec")), _map(item.get("status"))
    uid, namespace, name = _text(meta, "uid"), _text(meta, "namespace"), _text(meta, "name")
    if not uid or not namespace or not name:
        return None
    labels = interner.labels(meta.get("labels"))
    annotations = _map(meta.get("annotations"))
    return PodRecord(
        uid=uid,
        namespace=sys.intern(namespace),
        name=name,
        ip=_address(_text(status, "podIP")),
        service_account=sys.intern(_text(spec, "serviceAccountName") or "default"),
        labels=labels,
        in_mesh=labels.get(TLS_MODE_LABEL) == "istio" or bool(annotations.get(STATUS_ANNOTATION)),
        host_network=spec.get("hostNetwork") is True,
        deleting=bool(meta.get("deletionTimestamp")),
        finished=_text(status, "phase") in {"Succeeded", "Failed"},
        apps_ended=_text(spec, "nodeName") == node and _apps_ended(spec, status),
        ports=tuple(_pod_ports(spec)) if _text(spec, "nodeName") == node else (),
    )


def _apps_ended(spec: Mapping[str, Any], status: Mapping[str, Any]) -> bool:
    """True when every container but the proxy has ended and the kubelet will not start it again."""
    policy = _text(spec, "restartPolicy")
    if policy not in {"Never", "OnFailure"}:
        return False
    names = {_text(c, "name") for c in map(_map, _list(spec.get("containers")))} - {PROXY_CONTAINER}
    ended = {
        _text(entry, "name")
        for entry in map(_map, _list(status.get("containerStatuses")))
        if _has_ended(_map(_map(entry.get("state")).get("terminated")), policy)
    }
    return bool(names) and names <= ended


def _has_ended(terminated: Mapping[str, Any], policy: str) -> bool:
    return bool(terminated) and (policy == "Never" or terminated.get("exitCode") == 0)


def read_service(item: Mapping[str, Any], *, interner: Interner) -> ServiceRecord | None:
    """A service; None for one without TCP ports, or that is another name for something outside."""
    meta, spec = _map(item.get("metadata")), _map(item.get("spec"))
    namespace, name = _text(meta, "namespace"), _text(meta, "name")
    ports = tuple(_service_ports(spec))
    if not namespace or not name or not ports or _text(spec, "type") == "ExternalName":
        return None
    listed = [a for a in _list(spec.get("clusterIPs")) if isinstance(a, str)] or [_text(spec, "clusterIP")]
    addresses = tuple(filter(None, map(_address, listed)))
    families = [f for f in _list(spec.get("ipFamilies")) if isinstance(f, str)]
    first_ipv6 = families[0] == "IPv6" if families else bool(addresses) and ":" in addresses[0]
    return ServiceRecord(
        namespace=sys.intern(namespace),
        name=sys.intern(name),
        addresses=addresses,
        headless=not addresses,
        selector=interner.labels(spec.get("selector")),
        ports=ports,
        ipv6_first=first_ipv6,
        created=_time(_text(meta, "creationTimestamp")),
    )


def read_slice(item: Mapping[str, Any]) -> SliceRecord | None:
    """An EndpointSlice of `v1` or `v1beta1`; None when no service owns it, or it holds names."""
    meta = _map(item.get("metadata"))
    service = _text(_map(meta.get("labels")), SERVICE_NAME_LABEL)
    kind = _text(item, "addressType")
    if not service or kind not in {"IPv4", "IPv6"}:
        return None
    ports = {
        sys.intern(_text(port, "name")): port["port"]
        for port in map(_map, _list(item.get("ports")))
        if _is_port(port.get("port")) and _is_tcp(port)
    }
    endpoints = []
    for entry in map(_map, _list(item.get("endpoints"))):
        # The addresses of one endpoint mean the same; the first one is the one to use.
        first = next((a for a in _list(entry.get("addresses")) if isinstance(a, str)), "")
        address = _address(first)
        if address:
            reference = _map(entry.get("targetRef"))
            pod = _text(reference, "name") if _text(reference, "kind") == "Pod" else ""
            ready = _map(entry.get("conditions")).get("ready") is not False
            endpoints.append(EndpointRecord(address, ready, sys.intern(pod)))
    return SliceRecord(
        service=(sys.intern(_text(meta, "namespace")), sys.intern(service)),
        ipv6=kind == "IPv6",
        ports=ports,
        endpoints=tuple(endpoints),
    )


def read_policy(item: Mapping[str, Any], *, kind: str, version: str) -> PolicyRecord:
    """A policy object; items of a list need not name their kind."""
    named = {"apiVersion": f"security.istio.io/{version}", "kind": kind, **item}
    parsed = parse_policy(named)
    return PolicyRecord(parsed.policy, parsed.findings)


def read_key_sets(item: Mapping[str, Any]) -> KeySetsRecord:
    """The ConfigMap of key sets that upkeep publishes: `data["keysets.json"]` maps jwksUri to key set."""
    data = _map(item.get("data"))
    if KEY_SETS_ENTRY not in data:
        return KeySetsRecord({}, published=False)
    text = _text(data, KEY_SETS_ENTRY)
    try:
        found = json.loads(text) if len(text) <= MAX_KEY_SETS else None
    except (ValueError, RecursionError):
        found = None
    good = isinstance(found, dict) and all(isinstance(value, str) for value in found.values())
    return KeySetsRecord(found if good else None)


def _pod_ports(spec: Mapping[str, Any]) -> Iterator[PodPort]:
    seen: set[int] = set()
    for container in map(_map, _list(spec.get("containers"))):
        if container.get("name") == PROXY_CONTAINER:
            continue
        for port in map(_map, _list(container.get("ports"))):
            number = port.get("containerPort")
            if _is_port(number) and _is_tcp(port) and number not in seen and len(seen) < MAX_PORTS:
                seen.add(number)
                yield PodPort(number, sys.intern(_text(port, "name")))


def _service_ports(spec: Mapping[str, Any]) -> Iterator[PortRecord]:
    for port in map(_map, _list(spec.get("ports"))[:MAX_PORTS]):
        number, target = port.get("port"), port.get("targetPort")
        if not _is_port(number) or not _is_tcp(port):
            continue
        name = _text(port, "name")
        to: int | str = number
        if _is_port(target) or (isinstance(target, str) and target):
            to = target
        chosen = protocol_of(number, name, _text(port, "appProtocol"))
        yield PortRecord(sys.intern(name), number, to, chosen.protocol, chosen.server_first)


def _map(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _text(owner: Mapping[str, Any], key: str) -> str:
    value = owner.get(key)
    return value if isinstance(value, str) else ""


def _is_port(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _MAX_PORT


def _is_tcp(port: Mapping[str, Any]) -> bool:
    return port.get("protocol", "TCP") in {"TCP", None}


def _address(text: str) -> str:
    """An IP address in its usual form; empty for anything else, such as `None` of a headless service."""
    try:
        return sys.intern(str(ipaddress.ip_address(text)))
    except ValueError:
        return ""


def _time(text: str) -> dt.datetime:
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        return _EPOCH
    return moment if moment.tzinfo is not None else _EPOCH
