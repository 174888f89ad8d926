"""Inputs of rendering with something of everything, for golden files, validation and unit tests."""

from __future__ import annotations

from dataclasses import replace

from mesh.envoy.render import OutboundService, ProxyInput
from mesh.meshconfig import MeshConfig
from mesh.policy.effective import (
    AuthzPolicy,
    EffectivePolicy,
    JwtHeader,
    JwtPolicy,
    JwtProvider,
    JwtRegion,
    MtlsMode,
    ObjectRef,
    Rule,
    RuleSets,
    TransportPolicy,
)
from mesh.policy.predicates import (
    AllOf,
    Always,
    AnyOf,
    Claim,
    DestinationIp,
    DestinationPort,
    DirectSourceIp,
    FilterMetadata,
    Header,
    Host,
    MatchKind,
    Method,
    Not,
    Path,
    PathTemplate,
    PeerNamespace,
    PeerServiceAccount,
    PeerTrustDomain,
    PeerUri,
    RemoteIp,
    Sni,
    StringMatch,
)
from mesh.spiffe import TrustDomain
from mesh.topology import (
    AppProtocol,
    EgressListener,
    Endpoint,
    Interception,
    Service,
    ServicePort,
    SocketAddress,
    Workload,
    WorkloadPort,
)

MESH = MeshConfig(trust_domain=TrustDomain("cluster.local"))
JWKS = (
    '{"keys":[{"kty":"EC","crv":"P-256","kid":"k","alg":"ES256","x":"gI0GAILBdu7T53akrFmMyGcsF3n5dO7MmwNBHKW5SV0",'
    '"y":"SLW_xSffzlPWrHEVI30DHM_4egVwt3NQqeUD7nMFpps"}]}'
)
REVIEWS = "reviews.demo.svc.cluster.local"
REF = ObjectRef("AuthorizationPolicy", "demo", "p")


def exact(value: str) -> StringMatch:
    return StringMatch(MatchKind.EXACT, value)


def prefix(value: str) -> StringMatch:
    return StringMatch(MatchKind.PREFIX, value)


def suffix(value: str) -> StringMatch:
    return StringMatch(MatchKind.SUFFIX, value)


PRESENT = StringMatch(MatchKind.PRESENT)


def rule(principal, permission, name: str = "p") -> Rule:
    return Rule(f"ns[demo]-policy[{name}]-rule[0]", principal, permission, REF)


def workload(
    *protocols: AppProtocol, interception: Interception = Interception.EXPLICIT, **fields
) -> Workload:
    """A workload with a port per protocol: 8080, 8081, ..."""
    ports = tuple(
        WorkloadPort(number=8080 + i, protocol=protocol, app=SocketAddress("127.0.0.1", 18080 + i))
        for i, protocol in enumerate(protocols)
    )
    return Workload(
        uid="u-1",
        namespace="demo",
        name="web",
        service_account="web",
        address="127.0.10.1",
        ports=ports,
        interception=interception,
        **fields,
    )


def endpoint(address: str, port: int = 9080, account: str = "reviews", **fields) -> Endpoint:
    return Endpoint(address=SocketAddress(address, port), namespace="demo", service_account=account, **fields)


def service(*protocols: AppProtocol, **fields) -> Service:
    """A service with a port per protocol: 9080, 9081, ...; one endpoint with and one without mutual TLS."""
    ends = (endpoint("127.0.10.2"), endpoint("127.0.10.3", account="legacy", in_mesh=False))
    ports = tuple(
        ServicePort(number=9080 + i, protocol=protocol, endpoints=ends)
        for i, protocol in enumerate(protocols)
    )
    return Service(host=REVIEWS, namespace="demo", ports=ports, **fields)


def outbound(found: Service) -> OutboundService:
    """A service whose in-mesh endpoints speak mutual TLS."""
    mtls = {e.address for port in found.ports for e in port.endpoints if e.in_mesh}
    return OutboundService(found, frozenset(mtls))


def egress(count: int) -> tuple[EgressListener, ...]:
    return tuple(
        EgressListener(bind=SocketAddress("127.0.10.1", 9080 + i), service=REVIEWS, port=9080 + i)
        for i in range(count)
    )


JWT = JwtPolicy(
    (
        JwtProvider(
            key="jwt-1",
            issuer="https://i1.example",
            audiences=("a",),
            jwks=JWKS,
            from_headers=(JwtHeader("x-jwt", "J "),),
            from_params=("tok",),
            from_cookies=("c",),
            forward=True,
            output_payload_header="x-p",
            claim_headers=(("x-sub", "sub"),),
        ),
        JwtProvider(key="jwt-2", issuer="https://i2.example", jwks=JWKS),
    ),
    (
        JwtRegion(paths=(exact("/health"), suffix(".css"))),
        JwtRegion(paths=(prefix("/legacy"),), providers=("jwt-2",), allow_missing=False),
        JwtRegion(paths=(prefix("/optional"),), providers=("jwt-1",), allow_failed=True),
        JwtRegion(providers=("jwt-1", "jwt-2")),
    ),
)

EVERY_PRINCIPAL = AnyOf(
    (
        PeerUri(exact("spiffe://cluster.local/ns/demo/sa/web")),
        PeerUri(prefix("spiffe://cluster.local/ns/demo/")),
        PeerUri(suffix("/sa/a.b")),
        PeerUri(PRESENT),
        PeerNamespace(exact("demo")),
        PeerNamespace(prefix("de")),
        PeerNamespace(suffix("mo")),
        PeerNamespace(PRESENT),
        PeerServiceAccount("demo", "a.b"),
        PeerTrustDomain(exact("cluster.local")),
        AllOf((DirectSourceIp("10.0.0.0/8"), Not(RemoteIp("10.1.0.0/16")))),
        Claim(("sub",), exact("alice")),
        Claim(("realm", "roles"), PRESENT),
    )
)
EVERY_PERMISSION = AnyOf(
    (
        Path(exact("/a")),
        Path(PRESENT),
        PathTemplate("/a/{*}/b.c/{**}"),
        Method(exact("GET")),
        Host(exact("api.example")),
        Host(suffix(".api.example")),
        Header("x-r", exact("a")),
        Header("x-r", PRESENT),
        DestinationPort(8080),
        DestinationIp("127.0.0.0/8"),
        Sni(exact("a.example")),
        FilterMetadata("envoy.filters.network.mongo_proxy", ("db.coll",), exact("find")),
        Not(Path(prefix("/x"))),
    )
)
HTTP_RULES = RuleSets(
    audit=(rule(Always(), Always(), "audit"),),
    deny=(rule(Always(), Path(exact("/admin")), "deny"),),
    allow=(rule(EVERY_PRINCIPAL, EVERY_PERMISSION, "allow"),),
    dry_run_deny=(rule(Always(), Path(exact("/x")), "dry"),),
    dry_run_allow=(rule(PeerUri(PRESENT), Always(), "dry"),),
)
TCP_RULES = RuleSets(
    audit=(rule(Always(), Always(), "audit"),),
    deny=(rule(PeerNamespace(exact("bar")), DestinationPort(8081), "deny"),),
    allow=(rule(DirectSourceIp("10.0.0.0/8"), Always(), "allow"),),
)


def policy(mode: MtlsMode = MtlsMode.PERMISSIVE, *, rich: bool = False) -> EffectivePolicy:
    """An effective policy; `rich` has tokens and every kind of rule."""
    if not rich:
        return EffectivePolicy(transport=TransportPolicy(mode))
    return EffectivePolicy(
        transport=TransportPolicy(mode, {8081: MtlsMode.DISABLE, 9999: MtlsMode.STRICT}),
        jwt=JWT,
        authz=AuthzPolicy(HTTP_RULES, TCP_RULES),
    )


def everything(
    mode: MtlsMode = MtlsMode.PERMISSIVE, interception: Interception = Interception.EXPLICIT, **mesh
) -> ProxyInput:
    """Every protocol in and out, with every rule."""
    redirect = interception is Interception.REDIRECT
    found = service(*AppProtocol, addresses=("10.0.0.10",) if redirect else ())
    out = () if redirect else egress(len(AppProtocol))
    web = workload(*AppProtocol, interception=interception, egress=out)
    return ProxyInput(web, policy(mode, rich=True), (outbound(found),), replace(MESH, **mesh))
