"""A client behind capture rules and the pods of headless services (policy d.6): each by its own address.

Where the rules sent a connection is told by the PROXY protocol instead of the kernel; from there on
everything is as it is rendered: the listener of the pod's address takes over.
"""

from __future__ import annotations

import contextlib
import socket

import pytest
from envoy.config.listener.v3 import listener_components_pb2, listener_pb2
from envoy.extensions.filters.listener.proxy_protocol.v3 import proxy_protocol_pb2

from mesh.envoy import messages as m
from mesh.envoy.redirect import VIRTUAL_INBOUND, VIRTUAL_OUTBOUND
from mesh.envoy.render import OutboundService, ProxyInput, render
from mesh.envoy.resources import LISTENER, ResourceSet
from mesh.meshconfig import MeshConfig, OutboundPolicy
from mesh.policy.effective import AuthzPolicy, EffectivePolicy, MtlsMode, RuleSets, TransportPolicy
from mesh.policy.predicates import Always
from mesh.spiffe import TrustDomain
from mesh.topology import (
    AppProtocol,
    Endpoint,
    Interception,
    Service,
    ServicePort,
    SocketAddress,
    Workload,
)
from tests.fakes.envoy_lab import GREETING, TIMEOUT, Closed, Lab, request
from tests.fakes.envoy_pki import spiffe
from tests.fakes.envoy_process import EnvoyProcess
from tests.fakes.envoy_static import bootstrap_json, inline
from tests.interop.test_envoy_outbound import rule

pytestmark = [pytest.mark.envoy, pytest.mark.xdist_group("envoy-headless")]

HTTP, HTTP2, TCP, AUTO = AppProtocol
STRICT = TransportPolicy(MtlsMode.STRICT)
ENTRY = SocketAddress("127.86.0.1", 15001)


class Client:
    """A proxy of its own for one workload, reached as if capture rules had brought us there."""

    def __init__(
        self, lab: Lab, services: list[OutboundService], policy: OutboundPolicy, entry: SocketAddress
    ) -> None:
        self.entry = entry
        workload = Workload(
            uid="client",
            namespace="demo",
            name="client",
            service_account="client",
            address="127.86.9.9",
            interception=Interception.REDIRECT,
        )
        mesh = MeshConfig(trust_domain=TrustDomain("cluster.local"), outbound_policy=policy)
        rendered = render(ProxyInput(workload, EffectivePolicy(), tuple(services), mesh))
        inlined = inline(ResourceSet(r for r in rendered if r.name != VIRTUAL_INBOUND))
        (outbound,) = (found for found in inlined.listeners if found.name == VIRTUAL_OUTBOUND)
        outbound.address.CopyFrom(m.socket_address(entry))
        told = listener_components_pb2.ListenerFilter(name="envoy.filters.listener.proxy_protocol")
        told.typed_config.Pack(proxy_protocol_pb2.ProxyProtocol())
        outbound.listener_filters.append(told)
        secrets = [lab.pki.leaf(spiffe("client")).secret(), lab.pki.roots()]
        name = f"client-{entry.host}"
        self.process = EnvoyProcess(bootstrap_json([inlined], secrets), lab.directory / name)

    @contextlib.contextmanager
    def to(self, address: SocketAddress):
        try:
            with socket.create_connection((self.entry.host, self.entry.port), timeout=TIMEOUT) as connection:
                head = f"PROXY TCP4 127.86.9.9 {address.host} 5555 {address.port}\r\n"
                connection.sendall(head.encode())
                yield connection
        except ConnectionError as error:
            raise Closed(str(error)) from error

    def tcp(self, address: SocketAddress, data: bytes = b"ping") -> bytes:
        with self.to(address) as connection:
            if data:
                connection.sendall(data)
            answer = connection.recv(4096)
        if not answer:
            raise Closed("end of stream")
        return answer

    def get(self, address: SocketAddress, host: str):
        with self.to(address) as connection:
            return request(connection, host=host)


class World:
    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        ports = [
            lab.port(8080),
            lab.port(9000, TCP),
            lab.port(7000, AUTO, "echo"),
            lab.port(7001, AUTO, "http"),
            lab.port(2525, TCP, "greeter", server_first=True),
        ]
        nobody = RuleSets(deny=rule(Always(), Always()))
        self.open = lab.workload(EffectivePolicy(transport=STRICT), ports)
        self.shut = lab.workload(EffectivePolicy(transport=STRICT, authz=AuthzPolicy(nobody, nobody)), ports)
        self.plain = lab.app("echo")
        self.plain_http = lab.app("http")
        self.stranger = lab.app("websocket")

    def services(self) -> list[OutboundService]:
        meshed = (self.open, self.shut)
        return [
            self._service("db", TCP, 9000, meshed, plain=self.plain),
            self._service("web", HTTP, 8080, meshed, plain=self.plain_http),
            self._service("auto-tcp", AUTO, 7000, meshed),
            self._service("auto-http", AUTO, 7001, meshed),
            self._service("greeter", TCP, 2525, meshed),
        ]

    def _service(self, name, protocol, port, meshed, *, plain=None, account="server"):
        pods = [
            Endpoint(address=SocketAddress(host, port), namespace="demo", service_account=account)
            for host in meshed
        ]
        if plain is not None:
            pods.append(Endpoint(address=plain, namespace="demo", service_account="", in_mesh=False))
        service = Service(
            host=f"{name}.demo.svc.cluster.local",
            namespace="demo",
            headless=True,
            ports=(ServicePort(number=port, protocol=protocol, endpoints=tuple(pods)),),
        )
        return OutboundService(service, frozenset(e.address for e in pods if e.in_mesh))

    def impostor(self) -> list[OutboundService]:
        return [self._service("db", TCP, 9000, (self.open,), account="reviews")]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    lab = Lab(tmp_path_factory.mktemp("headless"))
    found = World(lab)
    with contextlib.ExitStack() as stack:
        stack.enter_context(lab)
        for number, (name, services, policy) in enumerate(
            (
                ("client", found.services(), OutboundPolicy.ALLOW_ANY),
                ("listed", found.services(), OutboundPolicy.REGISTRY_ONLY),
                ("without", [], OutboundPolicy.ALLOW_ANY),
                ("fooled", found.impostor(), OutboundPolicy.ALLOW_ANY),
            )
        ):
            client = Client(lab, services, policy, SocketAddress(f"127.86.0.{number + 1}", 15001))
            stack.enter_context(client.process)
            setattr(found, name, client)
        yield found


def at(host: str, port: int) -> SocketAddress:
    return SocketAddress(host, port)


@pytest.mark.parametrize(
    ("port", "data", "answer"),
    [(9000, b"ping", b"ping"), (7000, b"ping pong", b"ping pong"), (2525, b"", GREETING)],
    ids=["tcp", "unknown-protocol", "server-first"],
)
def test_tcp_to_a_pod_of_a_strict_workload(world, port: int, data: bytes, answer: bytes) -> None:
    """The peers of a StatefulSet: by pod address, over mutual TLS."""
    assert world.client.tcp(at(world.open, port), data) == answer


def test_without_the_services_the_same_call_is_plaintext_and_refused(world) -> None:
    """What makes the difference is the listener of the pod's address."""
    with pytest.raises(Closed):
        world.without.tcp(at(world.open, 9000), b"no handshake of TLS begins like this")


def test_the_client_gets_the_very_pod_that_it_asked_for(world) -> None:
    """One pod denies everything: no balancing between them, whatever the Host header says."""
    for host in ("web.demo.svc.cluster.local", "web-0.web.demo.svc.cluster.local", "10.0.0.7"):
        for port in (8080, 7001):
            assert world.client.get(at(world.open, port), host).status == 200
            assert world.client.get(at(world.shut, port), host).status == 403
    with pytest.raises(Closed):
        world.client.tcp(at(world.shut, 9000))


def test_the_server_knows_who_calls(world) -> None:
    reply = world.client.get(at(world.open, 8080), "web-0.web.demo.svc.cluster.local")
    (seen,) = reply.header_seen("x-forwarded-client-cert")
    assert "URI=spiffe://cluster.local/ns/demo/sa/client" in seen


def test_a_pod_outside_the_mesh_of_the_same_service_is_spoken_to_in_plaintext(world) -> None:
    assert world.client.tcp(world.plain) == b"ping"
    assert world.client.get(world.plain_http, "web-2.web.demo.svc").status == 200


def test_a_pod_with_another_identity_gets_nothing(world) -> None:
    """Secure naming holds for the pods of headless services too."""
    with pytest.raises(Closed):
        world.fooled.tcp(at(world.open, 9000))
    assert sum(world.fooled.process.stats("fail_verify_san").values()) == 1


def test_only_known_destinations_where_the_mesh_says_so(world) -> None:
    """REGISTRY_ONLY: the pods of headless services are known."""
    assert world.listed.tcp(at(world.open, 9000)) == b"ping"
    assert world.listed.tcp(world.plain) == b"ping"
    with pytest.raises(Closed):
        world.listed.tcp(world.stranger)
    assert world.client.tcp(world.stranger, b"GET / HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 101")


def test_the_rendered_listeners_bind_no_port(world) -> None:
    services = tuple(world.services())
    workload = Workload(
        uid="c",
        namespace="demo",
        name="c",
        service_account="c",
        address=world.open,
        interception=Interception.REDIRECT,
        ports=(world.lab.port(9000, TCP),),
    )
    mesh = MeshConfig(trust_domain=TrustDomain("cluster.local"))
    found = render(ProxyInput(workload, EffectivePolicy(), services, mesh)).of_type(LISTENER)
    own = f"{world.open}_9000"
    assert own not in found, "its own address is never captured"
    listener = listener_pb2.Listener.FromString(found[f"{world.shut}_9000"].body)
    assert listener.bind_to_port.value is False
