"""The client side of a real Envoy: mutual TLS by endpoint, secure naming, ALPN, protocols (d.4, c.7)."""

from __future__ import annotations

import concurrent.futures
import contextlib
import http.server
import json
import ssl
import threading

import grpc
import pytest

from mesh.envoy.render import OutboundService
from mesh.policy.effective import (
    AuthzPolicy,
    EffectivePolicy,
    MtlsMode,
    ObjectRef,
    Rule,
    RuleSets,
    TransportPolicy,
)
from mesh.policy.predicates import Always, Claim, MatchKind, Path, PeerUri, StringMatch
from mesh.topology import (
    AppProtocol,
    EgressListener,
    Endpoint,
    Service,
    ServicePort,
    SocketAddress,
    WorkloadPort,
)
from tests.fakes.envoy_lab import GREETING, Closed, Lab
from tests.fakes.envoy_pki import spiffe
from tests.fakes.envoy_tokens import Issuer, bearer, jwt_policy

pytestmark = [pytest.mark.envoy, pytest.mark.xdist_group("envoy-outbound")]

HTTP, HTTP2, TCP, AUTO = AppProtocol
STRICT, PERMISSIVE = MtlsMode.STRICT, MtlsMode.PERMISSIVE
REF = ObjectRef("AuthorizationPolicy", "demo", "p")
ISSUER = Issuer()
HOST = "reviews.demo.svc.cluster.local"


def exact(value: str) -> StringMatch:
    return StringMatch(MatchKind.EXACT, value)


def rule(who, what) -> tuple[Rule, ...]:
    return (Rule("ns[demo]-policy[p]-rule[0]", who, what, REF),)


class _Echo(grpc.GenericRpcHandler):
    def service(self, details):
        metadata = dict(details.invocation_metadata)
        return grpc.unary_unary_rpc_method_handler(
            lambda request, _: json.dumps(
                {"got": request.decode(), "xfcc": metadata.get("x-forwarded-client-cert")}
            ).encode()
        )


class _Reporter(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        assert isinstance(self.connection, ssl.SSLSocket)
        body = json.dumps(
            {
                "alpn": self.connection.selected_alpn_protocol(),
                "sni": self.server.sni,
                "host": self.headers["host"],
            }
        ).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


class _TlsServer(http.server.ThreadingHTTPServer):
    """A server of the mesh without a proxy of ours: shows what a client sends."""

    daemon_threads = True
    sni = None

    def __init__(self, lab: Lab, identity: str, alpn: list[str]) -> None:
        super().__init__(("127.0.0.1", 0), _Reporter)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*lab.pki.leaf(identity).write(lab.directory))
        context.set_alpn_protocols(alpn)
        context.sni_callback = lambda _socket, name, _context: setattr(self, "sni", name)
        self.socket = context.wrap_socket(self.socket, server_side=True)

    def handle_error(self, *args):
        pass


class World:
    def __init__(self, lab: Lab, stack: contextlib.ExitStack) -> None:
        self.lab = lab
        self.serve = _TlsServer(lab, spiffe("server"), ["istio-http/1.1", "istio", "http/1.1"])
        self.impostor = _TlsServer(lab, spiffe("intruder"), ["istio-http/1.1", "istio", "http/1.1"])
        pool = concurrent.futures.ThreadPoolExecutor(2)
        self.grpc = grpc.server(pool, handlers=[_Echo()])
        grpc_port = self.grpc.add_insecure_port("127.0.0.1:0")
        self.grpc.start()
        stack.callback(pool.shutdown)
        stack.callback(lambda: self.grpc.stop(None).wait())
        for server in (self.serve, self.impostor):
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
            stack.callback(server.server_close)
            stack.callback(server.shutdown)

        def grpc_app(number, protocol):
            return WorkloadPort(number=number, protocol=protocol, app=SocketAddress("127.0.0.1", grpc_port))

        ports = [
            lab.port(8080),
            lab.port(9000, TCP),
            lab.port(7000, AUTO, "echo"),
            lab.port(7001, AUTO, "http"),
            lab.port(2525, TCP, "greeter", server_first=True),
            grpc_app(5000, HTTP2),
            grpc_app(5001, AUTO),
        ]
        deny = RuleSets(deny=rule(Always(), Path(exact("/test.Echo/Denied"))))
        who = Claim(("sub",), StringMatch(MatchKind.PRESENT))
        policies = {
            "strict": EffectivePolicy(transport=TransportPolicy(STRICT), authz=AuthzPolicy(deny)),
            "permissive": EffectivePolicy(transport=TransportPolicy(PERMISSIVE)),
            "nobody": EffectivePolicy(
                authz=AuthzPolicy(RuleSets(allow=rule(PeerUri(exact(spiffe("x"))), Always())))
            ),
            "jwt": EffectivePolicy(
                jwt=jwt_policy(ISSUER.provider()), authz=AuthzPolicy(RuleSets(allow=rule(who, Always())))
            ),
        }
        self.servers = {name: lab.workload(policy, ports) for name, policy in policies.items()}
        self.count = 9000
        self.services: list[OutboundService] = []
        self.egress: dict[str, EgressListener] = {}

    def service(
        self, name, address, protocol=HTTP, *, mtls=True, account="server", external=False, healthy=True
    ) -> None:
        """A service with one endpoint, and the egress listener for it."""
        self.count += 1
        endpoint = Endpoint(
            address=address, namespace="demo", service_account=account, in_mesh=not external, healthy=healthy
        )
        service = Service(
            host=f"{name}.demo.svc.cluster.local",
            namespace="demo",
            ports=(ServicePort(number=80, protocol=protocol, endpoints=(endpoint,)),),
            external=external,
        )
        self.services.append(OutboundService(service, frozenset({address} if mtls else ())))
        bind = SocketAddress("127.0.0.1", self.count)
        self.egress[name] = EgressListener(bind=bind, service=service.host, port=80)

    def build(self) -> None:
        self.client = self.lab.workload(
            EffectivePolicy(), services=self.services, egress=list(self.egress.values())
        )

    def get(self, name, target="/", **options):
        return self.lab.http(self.client, target, port=self.egress[name].bind.port, **options)

    def tcp(self, name, data=b"ping pong"):
        return self.lab.tcp(self.client, data, port=self.egress[name].bind.port)

    def call(self, name, method="Echo", metadata=()):
        with grpc.insecure_channel(f"{self.client}:{self.egress[name].bind.port}") as channel:
            answer = channel.unary_unary(f"/test.Echo/{method}")(b"hello", timeout=30, metadata=metadata)
            return json.loads(answer)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    lab = Lab(tmp_path_factory.mktemp("outbound"))
    with contextlib.ExitStack() as stack:
        found = World(lab, stack)
        at = {name: lambda port, a=address: SocketAddress(a, port) for name, address in found.servers.items()}
        for name in ("strict", "permissive", "nobody", "jwt"):
            found.service(f"http-{name}", at[name](8080))
        found.service("plain-to-strict", at["strict"](8080), mtls=False)
        found.service("plain-to-permissive", at["permissive"](8080), mtls=False)
        found.service("wrong-name", at["strict"](8080), account="reviews")
        found.service("no-name", at["strict"](8080), account="Not_A_Name")
        found.service("http2-strict", at["strict"](8080), HTTP2)
        found.service("grpc", at["strict"](5000), HTTP2)
        found.service("grpc-jwt", at["jwt"](5000), HTTP2)
        found.service("grpc-auto", at["permissive"](5001), AUTO)
        found.service("tcp-strict", at["strict"](9000), TCP)
        found.service("tcp-permissive", at["permissive"](9000), TCP)
        found.service("tcp-wrong-name", at["strict"](9000), TCP, account="reviews")
        found.service("greeter", at["strict"](2525), TCP)
        for mode in ("strict", "permissive"):
            found.service(f"auto-tcp-{mode}", at[mode](7000), AUTO)
            found.service(f"auto-http-{mode}", at[mode](7001), AUTO)
        found.service("direct", SocketAddress(*found.serve.server_address))
        found.service("impostor", SocketAddress(*found.impostor.server_address))
        found.service("external", lab.app("http"), mtls=False, external=True)
        found.service("unhealthy", at["strict"](8080), healthy=False)
        found.service("no-metadata", at["permissive"](8080))
        found.build()
        _forget_metadata(lab, "no-metadata")
        stack.enter_context(lab)
        yield found


def _forget_metadata(lab: Lab, name: str) -> None:
    """What a mistake would look like: an endpoint that says nothing about its socket."""
    (cluster,) = [c for c in lab.sets[-1].clusters if f"||{name}." in c.name]
    (locality,) = cluster.load_assignment.endpoints
    (endpoint,) = locality.lb_endpoints
    assert endpoint.HasField("metadata")
    endpoint.ClearField("metadata")


@pytest.mark.parametrize("mode", ["strict", "permissive"])
def test_mutual_tls_between_two_proxies(world, mode):
    (xfcc,) = world.get(f"http-{mode}").header_seen("x-forwarded-client-cert")
    assert xfcc.endswith(f"URI={spiffe('server')}")


def test_rules_of_the_server_reach_the_caller(world):
    reply = world.get("http-nobody")
    assert (reply.status, reply.body) == (403, "RBAC: access denied")
    assert world.get("http-jwt").status == 403
    assert world.get("http-jwt", headers=bearer("garbage")).status == 401
    assert world.get("http-jwt", headers=bearer(ISSUER.token())).status == 200


def test_c7_plaintext_to_strict_is_503(world):
    reply = world.get("plain-to-strict")
    assert reply.status == 503
    assert "reset reason: connection termination" in reply.body


def test_plaintext_to_permissive(world):
    assert world.get("plain-to-permissive").header_seen("x-forwarded-client-cert") == []


@pytest.mark.parametrize("name", ["wrong-name", "impostor", "no-name", "no-metadata"])
def test_p19_secure_naming(world, name):
    """Another identity, one that cannot exist, an endpoint without metadata: 503 and never plaintext."""
    reply = world.get(name)
    assert reply.status == 503
    assert "reset reason: remote connection failure" in reply.body


def test_secure_naming_of_tcp(world):
    with pytest.raises(Closed):
        world.tcp("tcp-wrong-name")


def test_alpn_sni_and_host(world):
    seen = world.get("direct", host="anything.example").seen
    assert seen["alpn"] == "istio-http/1.1"
    assert seen["sni"] == "outbound_.80_._.direct.demo.svc.cluster.local"
    assert seen["host"] == "anything.example"


@pytest.mark.parametrize("form", ["{address}", "{address}:{port}"])
def test_host_of_the_bind_address_becomes_the_service(world, form):
    port = world.egress["direct"].bind.port
    seen = world.get("direct", host=form.format(address=world.client, port=port)).seen
    assert seen["host"] == "direct.demo.svc.cluster.local:80"


def test_http2_between_proxies_for_an_http1_application(world):
    assert world.get("http2-strict").header_seen("x-forwarded-client-cert")


@pytest.mark.parametrize("name", ["grpc", "grpc-auto"])
def test_grpc(world, name):
    answer = world.call(name)
    assert answer["got"] == "hello"
    assert answer["xfcc"].endswith(f"URI={spiffe('server')}")


def test_grpc_status_of_a_denied_call(world):
    with pytest.raises(grpc.RpcError) as caught:
        world.call("grpc", "Denied")
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


def test_grpc_status_of_a_bad_token(world):
    with pytest.raises(grpc.RpcError) as caught:
        world.call("grpc-jwt", metadata=[("authorization", "Bearer garbage")])
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert world.call("grpc-jwt", metadata=[("authorization", f"Bearer {ISSUER.token()}")])["got"] == "hello"


@pytest.mark.parametrize("name", ["tcp-strict", "tcp-permissive", "auto-tcp-strict", "auto-tcp-permissive"])
def test_tcp(world, name):
    assert world.tcp(name) == b"ping pong"


@pytest.mark.parametrize("name", ["auto-http-strict", "auto-http-permissive"])
def test_sniffed_http_keeps_its_identity(world, name):
    assert world.get(name).header_seen("x-forwarded-client-cert")


def test_server_first_through_two_proxies(world):
    assert world.tcp("greeter", b"") == GREETING


def test_external_service_gets_no_tls_of_ours(world):
    reply = world.get("external")
    assert reply.status == 200
    assert reply.header_seen("x-forwarded-client-cert") == []


def test_outbound_xfcc_of_the_application_is_dropped(world):
    forged = [("x-forwarded-client-cert", "URI=spiffe://cluster.local/ns/demo/sa/admin")]
    assert world.get("external", headers=forged).header_seen("x-forwarded-client-cert") == []


def test_endpoint_that_is_not_ready_is_not_used(world):
    reply = world.get("unhealthy")
    assert (reply.status, reply.body) == (503, "no healthy upstream")
