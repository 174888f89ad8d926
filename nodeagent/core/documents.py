"""File mode: `Mesh`, `Workload`, `Service` and `KeySet` documents become values (docs/file-mode.md).

Pure: text has been read and parsed by the caller, and file names in documents stay as they are written.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from mesh.errors import MeshError
from mesh.meshconfig import ForwardClientCert, MeshConfig, OutboundPolicy, PathNormalization
from mesh.policy.effective import Finding, ObjectRef
from mesh.policy.oidc import discovery_address
from mesh.spiffe import SpiffeId, TrustDomain
from mesh.topology import (
    AppProtocol,
    EgressListener,
    Endpoint,
    SocketAddress,
    Workload,
    WorkloadPort,
)
from mesh.yamldoc import Document
from nodeagent.core.fields import MAX_PORT, DocumentCode, Fields, Problem, findings_of

API_VERSION: Final = "gatehouse.dev/v1alpha1"
POLICY_API_PREFIX: Final = "security.istio.io/"
DEFAULT_TRUST_DOMAIN: Final = "cluster.local"

_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_NAMESPACE = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_PORT_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_HOST = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_UID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,252}")
_NAME_RULE = "lower-case letters, digits, '-' and '.', at most 253"
_NAMESPACE_RULE = "lower-case letters, digits and '-', at most 63"
_T = TypeVar("_T")
_TRUST_DOMAIN_OF_CHECKS = TrustDomain(DEFAULT_TRUST_DOMAIN)


@dataclass(frozen=True, slots=True)
class WorkloadSpec:
    """A `Workload` document: the workload, and where its token is (as written)."""

    workload: Workload
    token_file: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServicePortSpec:
    """A port of a `Service` document.

    Attributes:
        target: workload port by number or name; used with a selector only.
        endpoints: written by hand; None = the service's selector decides.
    """

    number: int
    protocol: AppProtocol
    name: str
    target: int | str
    endpoints: tuple[Endpoint, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSpec:
    """A `Service` document; endpoints of a selector are found later."""

    namespace: str
    name: str
    host: str
    ports: tuple[ServicePortSpec, ...]
    selector: Mapping[str, str] = field(default_factory=dict)
    external: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySetSpec:
    """A `KeySet` document: the keys of a token issuer.

    Attributes:
        address: what policies name the keys by (`JwtRule.keys_address`): the `jwksUri`, or the address
            of the issuer's description for rules that have neither `jwksUri` nor `jwks`.
        file: as written.
    """

    name: str
    issuer: str
    address: str
    file: str


Spec = MeshConfig | WorkloadSpec | ServiceSpec | KeySetSpec


@dataclass(frozen=True, slots=True)
class DocumentKey:
    """What identifies an object among all documents of a directory."""

    kind: str
    namespace: str
    name: str


def identify(document: Document) -> DocumentKey | None:
    """Kind, namespace and name of a document, of any kind; None when it does not say."""
    data = document.data
    metadata = data.get("metadata") if isinstance(data, dict) else None
    if not isinstance(metadata, dict):
        return None
    parts = (data.get("kind"), metadata.get("namespace", ""), metadata.get("name"))
    if not all(isinstance(part, str) for part in parts) or not parts[0] or not parts[2]:
        return None
    return DocumentKey(*(sys.intern(str(part)) for part in parts))


def is_policy(document: Document) -> bool:
    """True for a document of Istio's policy API, which `mesh.policy.parse` reads."""
    data = document.data
    version = data.get("apiVersion") if isinstance(data, dict) else None
    return isinstance(version, str) and version.startswith(POLICY_API_PREFIX)


def parse_document(document: Document) -> tuple[Spec | None, tuple[Finding, ...]]:
    """Parse one document of ours.

    Returns:
        The value, or None with at least one finding; a finding names file, line and field.
    """
    problems: list[Problem] = []
    key = identify(document)
    ref = ObjectRef(key.kind, key.namespace, key.name) if key else ObjectRef("document", "", "")
    spec = _parse(Fields(document, (), document.data, problems))
    if problems:
        return None, findings_of(problems, document, ref)
    return spec, ()


def _parse(top: Fields) -> Spec | None:
    if top.problems:
        return None
    top.only("apiVersion", "kind", "metadata", "spec")
    kind = top.text("kind")
    reader = _READERS.get(kind)
    if reader is None:
        top.report(
            DocumentCode.KIND,
            ("kind",),
            f"kind is {kind[:80]!r}; known are {', '.join(_READERS)} of {API_VERSION}, and the policy kinds"
            " of security.istio.io/v1",
        )
        return None
    version = top.text("apiVersion")
    if version != API_VERSION:
        top.report(
            DocumentCode.API_VERSION,
            ("apiVersion",),
            f"apiVersion is {version[:80]!r}; for a {kind} it must be {API_VERSION}",
        )
        return None
    metadata = top.sub("metadata")
    metadata.required("name", "every document has a name")
    metadata.text("name", pattern=_NAME, allowed=_NAME_RULE)
    return reader(metadata, top.sub("spec"))


def _namespaced(metadata: Fields) -> tuple[str, str]:
    metadata.only("namespace", "name", "labels", "annotations")
    metadata.required("namespace", "it is part of the identity")
    namespace = metadata.text("namespace", pattern=_NAMESPACE, allowed=_NAMESPACE_RULE)
    return namespace, metadata.text("name", pattern=_NAME, allowed=_NAME_RULE)


# --- Mesh -----------------------------------------------------------------------------------------


def _mesh(metadata: Fields, spec: Fields) -> MeshConfig | None:
    metadata.only("name", "labels", "annotations")
    spec.only(
        "trustDomain",
        "trustDomainAliases",
        "rootNamespace",
        "pathNormalization",
        "outboundPolicy",
        "forwardClientCert",
        "jwtRequireExpiration",
        "jwtClockSkewSeconds",
        "drainSeconds",
        "maxConnectionSeconds",
    )
    spec.required("trustDomain", "identities are issued in it, for example cluster.local")
    own = _trust_domain(spec, ("trustDomain",), spec.text("trustDomain", DEFAULT_TRUST_DOMAIN))
    aliases = [
        _trust_domain(spec, ("trustDomainAliases", index), name)
        for index, name in enumerate(spec.strings("trustDomainAliases"))
    ]
    config = MeshConfig(
        trust_domain=own or _TRUST_DOMAIN_OF_CHECKS,
        trust_domain_aliases=tuple(alias for alias in aliases if alias is not None),
        root_namespace=spec.text(
            "rootNamespace", "istio-system", pattern=_NAMESPACE, allowed=_NAMESPACE_RULE
        ),
        path_normalization=spec.choice(
            "pathNormalization", PathNormalization, PathNormalization.DECODE_AND_MERGE_SLASHES
        ),
        outbound_policy=spec.choice("outboundPolicy", OutboundPolicy, OutboundPolicy.ALLOW_ANY),
        forward_client_cert=spec.choice(
            "forwardClientCert", ForwardClientCert, ForwardClientCert.SANITIZE_SET
        ),
        jwt_require_expiration=spec.boolean("jwtRequireExpiration", False),
        jwt_clock_skew_seconds=spec.integer("jwtClockSkewSeconds", 60, 0, 3600),
        drain_seconds=spec.integer("drainSeconds", 30, 1, 3600),
        max_connection_seconds=spec.integer("maxConnectionSeconds", 43_200, 0, 31_536_000),
    )
    return None if spec.problems else config


def _trust_domain(spec: Fields, steps: tuple[str | int, ...], name: str) -> TrustDomain | None:
    try:
        return TrustDomain(name)
    except MeshError as error:
        spec.report(DocumentCode.VALUE, steps, error.public)
        return None


# --- Workload -------------------------------------------------------------------------------------


def _workload(metadata: Fields, spec: Fields) -> WorkloadSpec | None:
    namespace, name = _namespaced(metadata)
    labels = metadata.labels("labels")
    spec.only("uid", "serviceAccount", "tokenFile", "address", "ports", "egress")
    spec.required("serviceAccount", "the workload's identity is spiffe://<trust domain>/ns/<ns>/sa/<this>")
    spec.required("tokenFile", "the file that holds the token which proves the identity to the authority")
    spec.required("address", "the IP address at which peers connect to the workload's proxy")
    account = spec.text("serviceAccount")
    if account and namespace:
        try:
            SpiffeId.for_service_account(_TRUST_DOMAIN_OF_CHECKS, namespace, account)
        except MeshError as error:
            spec.report(DocumentCode.VALUE, ("serviceAccount",), error.public)
    address = spec.address("address")
    ports = _unique(spec, "ports", _workload_port)
    egress = _unique(spec, "egress", _egress)
    if spec.problems:
        return None
    _clashes(spec, address, ports, egress)
    workload = Workload(
        uid=spec.text(
            "uid", f"{namespace}/{name}", pattern=_UID, allowed="letters, digits, '.', '_', '/', '-'"
        ),
        namespace=namespace,
        name=name,
        service_account=account,
        address=address,
        labels=labels,
        ports=ports,
        egress=egress,
    )
    return WorkloadSpec(workload, spec.text("tokenFile"))


def _workload_port(item: Fields) -> tuple[Any, WorkloadPort] | None:
    item.only("number", "protocol", "name", "app", "serverFirst")
    item.required("number", "the port that peers connect to")
    item.required("app", "where the application itself listens, for example 127.0.0.1:18080")
    number = item.integer("number", 0, 1, MAX_PORT)
    app = item.socket_address("app")
    protocol = item.choice("protocol", AppProtocol, AppProtocol.AUTO)
    name = item.text("name", pattern=_PORT_NAME, allowed=_NAMESPACE_RULE)
    server_first = item.boolean("serverFirst", False)
    if not number or app is None:
        return None
    return number, WorkloadPort(
        number=number, protocol=protocol, app=app, name=name, server_first=server_first
    )


def _egress(item: Fields) -> tuple[Any, EgressListener] | None:
    item.only("bind", "service", "port")
    item.required("bind", "the address at which the application finds the service")
    item.required("service", "the host name of a Service")
    item.required("port", "the port of the Service")
    bind = item.socket_address("bind")
    service = item.text("service", pattern=_HOST, allowed=_NAME_RULE)
    port = item.integer("port", 0, 1, MAX_PORT)
    if bind is None or not service or not port:
        return None
    return bind, EgressListener(bind=bind, service=service, port=port)


def _clashes(
    spec: Fields, address: str, ports: tuple[WorkloadPort, ...], egress: tuple[EgressListener, ...]
) -> None:
    """The proxy binds all of them: two equal addresses would fail in Envoy, far from this file."""
    taken = {SocketAddress(address, port.number): f"port {port.number}" for port in ports}
    for index, listener in enumerate(egress):
        if listener.bind in taken:
            spec.report(
                DocumentCode.DUPLICATE,
                ("egress", index, "bind"),
                f"bind {listener.bind} is already taken by {taken[listener.bind]} of this workload",
            )
    for index, port in enumerate(ports):
        if port.app == SocketAddress(address, port.number):
            spec.report(
                DocumentCode.VALUE,
                ("ports", index, "app"),
                f"app {port.app} is the address that the proxy itself binds; the application must listen"
                " elsewhere",
            )


# --- Service --------------------------------------------------------------------------------------


def _service(metadata: Fields, spec: Fields) -> ServiceSpec | None:
    namespace, name = _namespaced(metadata)
    spec.only("host", "selector", "ports", "external")
    host = spec.text("host", f"{name}.{namespace}.svc.cluster.local", pattern=_HOST, allowed=_NAME_RULE)
    selector = spec.labels("selector")
    external = spec.boolean("external", False)
    spec.required("ports", "a service has at least one port")
    ports = _unique(spec, "ports", lambda item: _service_port(item, namespace, external=external))
    for index, port in enumerate(ports):
        if (port.endpoints is None) == (not selector):
            spec.report(
                DocumentCode.VALUE,
                ("ports", index, "endpoints"),
                "the service has a selector, or else each of its ports has endpoints; not both, not neither",
            )
    if spec.problems:
        return None
    return ServiceSpec(
        namespace=namespace, name=name, host=host, ports=ports, selector=selector, external=external
    )


def _service_port(item: Fields, namespace: str, *, external: bool) -> tuple[Any, ServicePortSpec] | None:
    item.only("number", "protocol", "name", "targetPort", "endpoints")
    item.required("number", "clients connect to the service by this number")
    number = item.integer("number", 0, 1, MAX_PORT)
    endpoints = None
    if item.has("endpoints"):
        endpoints = _unique(item, "endpoints", lambda e: _endpoint(e, namespace, external=external))
    protocol = item.choice("protocol", AppProtocol, AppProtocol.AUTO)
    name = item.text("name", pattern=_PORT_NAME, allowed=_NAMESPACE_RULE)
    target = _target(item, number)
    if not number:
        return None
    return number, ServicePortSpec(
        number=number, protocol=protocol, name=name, target=target, endpoints=endpoints
    )


def _target(item: Fields, number: int) -> int | str:
    if item.is_text("targetPort"):
        return item.text("targetPort", pattern=_PORT_NAME, allowed="the name or number of a workload port")
    return item.integer("targetPort", number, 1, MAX_PORT)


def _endpoint(item: Fields, namespace: str, *, external: bool) -> tuple[Any, Endpoint] | None:
    item.only("address", "serviceAccount", "namespace", "inMesh", "labels", "healthy")
    item.required("address", "the address of the endpoint, for example 127.0.10.2:9080")
    address = item.socket_address("address")
    account = item.text("serviceAccount", pattern=_NAME, allowed=_NAME_RULE)
    in_mesh = item.boolean("inMesh", bool(account) and not external)
    if in_mesh and not account:
        item.required("serviceAccount", "an endpoint in the mesh must prove an identity")
    endpoint_namespace = item.text("namespace", namespace, pattern=_NAMESPACE, allowed=_NAMESPACE_RULE)
    labels = item.labels("labels")
    healthy = item.boolean("healthy", True)
    if address is None:
        return None
    return address, Endpoint(
        address=address,
        namespace=endpoint_namespace,
        service_account=account,
        labels=labels,
        in_mesh=in_mesh,
        healthy=healthy,
    )


# --- KeySet ---------------------------------------------------------------------------------------


def _key_set(metadata: Fields, spec: Fields) -> KeySetSpec | None:
    metadata.only("name", "labels", "annotations")
    spec.only("issuer", "jwksUri", "file")
    spec.required("file", "the JSON Web Key Set, relative to this file")
    issuer, address = spec.text("issuer"), spec.text("jwksUri")
    if not address and spec.has("issuer"):
        address = discovery_address(issuer)
        if not address:
            spec.report(
                DocumentCode.VALUE,
                ("issuer",),
                f"issuer is {issuer[:80]!r}; allowed without jwksUri: an http:// or https:// address",
            )
    elif not address:
        spec.required("jwksUri", "policies name the key set by it, or by an issuer that is a URL")
    if spec.problems:
        return None
    return KeySetSpec(name=metadata.text("name"), issuer=issuer, address=address, file=spec.text("file"))


def _unique(spec: Fields, key: str, read: Callable[[Fields], tuple[Any, _T] | None]) -> tuple[_T, ...]:
    """The items of a list whose first parts must differ."""
    found: dict[Any, _T] = {}
    for index, item in enumerate(spec.mappings(key)):
        pair = read(item)
        if pair is None:
            continue
        if pair[0] in found:
            spec.report(DocumentCode.DUPLICATE, (key, index), f"{pair[0]} is listed twice in {key}")
        found[pair[0]] = pair[1]
    return tuple(found.values())


_READERS: Final[Mapping[str, Callable[[Fields, Fields], Spec | None]]] = {
    "Mesh": _mesh,
    "Workload": _workload,
    "Service": _service,
    "KeySet": _key_set,
}
