"""Transport of a real Envoy: chains by mode and protocol (table d.2), handshakes, sessions, XFCC."""

from __future__ import annotations

import datetime as dt
import re
import ssl

import pytest

from mesh.meshconfig import ForwardClientCert, MeshConfig
from mesh.policy.effective import (
    AuthzPolicy,
    EffectivePolicy,
    MtlsMode,
    ObjectRef,
    Rule,
    RuleSets,
    TransportPolicy,
)
from mesh.policy.predicates import Always, MatchKind, PeerUri, StringMatch
from mesh.spiffe import TrustDomain
from mesh.topology import AppProtocol
from tests.fakes.envoy_lab import GREETING, MESH, MESH_ALPN, TCP_ALPN, Closed, Lab, request
from tests.fakes.envoy_pki import CLIENT_AUTH, SERVER_AUTH, Pki, spiffe

pytestmark = [pytest.mark.envoy, pytest.mark.xdist_group("envoy-transport")]

REF = ObjectRef("AuthorizationPolicy", "demo", "p")
HTTP, TCP, AUTO = AppProtocol.HTTP, AppProtocol.TCP, AppProtocol.AUTO
STRICT, PERMISSIVE, DISABLE = MtlsMode.STRICT, MtlsMode.PERMISSIVE, MtlsMode.DISABLE
PORTS = {HTTP: 8080, TCP: 9000, AUTO: 7000}


def only(name: str) -> tuple[Rule, ...]:
    who = PeerUri(StringMatch(MatchKind.EXACT, spiffe(name)))
    return (Rule("ns[demo]-policy[p]-rule[0]", who, Always(), REF),)


def policy(mode: MtlsMode, rules: RuleSets = RuleSets()) -> EffectivePolicy:  # noqa: B008 - frozen
    return EffectivePolicy(transport=TransportPolicy(mode), authz=AuthzPolicy(rules, rules))


class World:
    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        ports = [lab.port(number, protocol) for protocol, number in PORTS.items()]
        self.modes = {mode: lab.workload(policy(mode), ports) for mode in (STRICT, PERMISSIVE, DISABLE)}
        self.greeter = lab.workload(
            policy(PERMISSIVE),
            [
                lab.port(2525, TCP, "greeter", server_first=True),
                lab.port(2526, AUTO, "greeter", server_first=True),
            ],
        )
        self.deny_intruder = lab.workload(policy(STRICT, RuleSets(deny=only("intruder"))), ports)
        self.allow_web = lab.workload(policy(STRICT, RuleSets(allow=only("web"))), ports)
        guard = [lab.port(2525, TCP, "greeter", server_first=True)]
        self.guarded = {
            "strict": lab.workload(policy(STRICT, RuleSets(allow=only("web"))), guard),
            "permissive": lab.workload(policy(PERMISSIVE, RuleSets(allow=only("web"))), guard),
        }
        self.append = lab.workload(
            policy(PERMISSIVE),
            mesh=MeshConfig(
                trust_domain=MESH.trust_domain, forward_client_cert=ForwardClientCert.APPEND_FORWARD
            ),
        )
        self.alias = lab.workload(
            policy(STRICT),
            mesh=MeshConfig(
                trust_domain=MESH.trust_domain, trust_domain_aliases=(TrustDomain("old.example"),)
            ),
        )


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    lab = Lab(tmp_path_factory.mktemp("transport"))
    found = World(lab)
    with lab:
        yield found


def outcome(call):
    """`closed`, or what the call returned."""
    try:
        return call()
    except Closed:
        return "closed"


def answered_by(reply):
    return "app" if reply.headers.get("server", "").startswith("BaseHTTP") else f"proxy {reply.status}"


def client_hello(alpn):
    """The first bytes of a TLS client, as data."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(list(alpn))
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing).do_handshake()
    return outgoing.read()


# The table d.2 as a caller meets it, row by row: what he sends, and who answers.
ROWS = [
    (STRICT, HTTP, "mtls-http", "app"),  # P-09
    (STRICT, HTTP, "mtls-own-alpn", "app"),  # P-08
    (STRICT, HTTP, "plain-http", "closed"),  # P-02
    (STRICT, TCP, "mtls-tcp", "echo"),
    (STRICT, TCP, "mtls-own-alpn-tcp", "echo"),
    (STRICT, TCP, "plain-tcp", "closed"),  # P-12
    (STRICT, AUTO, "mtls-http", "app"),
    (STRICT, AUTO, "plain-http", "closed"),
    (PERMISSIVE, HTTP, "mtls-http", "app"),
    (PERMISSIVE, HTTP, "mtls-tcp-alpn", "app"),
    (PERMISSIVE, HTTP, "mtls-own-alpn", "closed"),
    (PERMISSIVE, HTTP, "plain-http", "app"),  # P-01
    (PERMISSIVE, TCP, "mtls-tcp", "echo"),
    (PERMISSIVE, TCP, "own-hello", "echo"),
    (PERMISSIVE, TCP, "plain-tcp", "echo"),
    (PERMISSIVE, AUTO, "mtls-http", "app"),
    (PERMISSIVE, AUTO, "plain-http", "app"),
    (DISABLE, HTTP, "plain-http", "app"),  # P-03
    (DISABLE, TCP, "plain-tcp", "echo"),
    (DISABLE, TCP, "own-hello", "echo"),
    (DISABLE, TCP, "mesh-hello", "echo"),
    (DISABLE, AUTO, "plain-http", "app"),
]


@pytest.mark.parametrize(
    ("mode", "protocol", "kind", "expected"),
    [pytest.param(*row, id=f"{row[0].value}-{row[1].value}-{row[2]}".lower()) for row in ROWS],
)
def test_d2_rows(world, mode, protocol, kind, expected):
    lab, address, port = world.lab, world.modes[mode], PORTS[protocol]
    alpn = {"mtls-tcp": TCP_ALPN, "mtls-tcp-alpn": ("istio", "http/1.1"), "mtls-http": MESH_ALPN}
    tls = None
    if kind.startswith("mtls"):
        tls = lab.client(alpn=alpn.get(kind, ("http/1.1",)))
    if kind.endswith("http") or kind in {"mtls-own-alpn", "mtls-tcp-alpn"}:
        assert outcome(lambda: answered_by(lab.http(address, port=port, tls=tls))) == expected
        return
    hello = {"own-hello": ("h2", "http/1.1"), "mesh-hello": MESH_ALPN}
    data = client_hello(hello[kind]) if kind in hello else b"\x01ping"
    answer = outcome(lambda: lab.tcp(address, data, port=port, tls=tls))
    assert answer == (data if expected == "echo" else expected)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=lambda v: v.name)
@pytest.mark.parametrize("mode", [STRICT, PERMISSIVE], ids=lambda m: m.value)
def test_cve_2020_8660_both_tls_versions_reach_the_mtls_chain(world, mode, version):
    reply = world.lab.http(world.modes[mode], tls=world.lab.client(version=version))
    assert reply.status == 200
    assert len(reply.header_seen("x-forwarded-client-cert")) == 1


def test_tls_1_1_is_refused(world):
    hello = bytearray(client_hello(("istio",)))
    assert hello[:3] == b"\x16\x03\x01"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with world.lab.connect(world.modes[STRICT], 8080) as raw:
        # A ClientHello that stops at TLS 1.1: the version field of a TLS 1.2 hello, lowered by hand.
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        with pytest.raises(ssl.SSLWantReadError):
            context.wrap_bio(incoming, outgoing).do_handshake()
        old = bytearray(outgoing.read())
        old[9:11] = b"\x03\x02"
        raw.sendall(bytes(old))
        answer = raw.recv(100)
    assert answer[:1] == b"\x15"  # an alert
    assert answer[6] == 70  # protocol_version


# --- handshakes that fail (d.2, CVE rows of f) ----------------------------------------

REFUSED = {
    "P-10-no-certificate": lambda pki: None,
    "P-11-other-authority": lambda _: Pki("another root").leaf(spiffe("web")),
    "P-11-other-trust-domain": lambda pki: pki.leaf(spiffe("web", trust_domain="other.example")),
    "P-11-look-alike-trust-domain": lambda pki: pki.leaf(spiffe("web", trust_domain="cluster.localx")),
    "P-11-longer-trust-domain": lambda pki: pki.leaf(spiffe("web", trust_domain="cluster.local.evil")),
    "expired": lambda pki: pki.leaf(spiffe("web"), lifetime=dt.timedelta(hours=-1)),
    "CVE-2022-21656-identity-in-a-dns-name": lambda pki: pki.leaf(dns=["cluster.local"]),
    "identity-in-the-subject": lambda pki: pki.leaf(subject=spiffe("web")[:60]),
    "no-name-at-all": lambda pki: pki.leaf(subject="web"),
    "CVE-2022-21657-server-only-key-usage": lambda pki: pki.leaf(spiffe("web"), usages=[SERVER_AUTH]),
}


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=lambda v: v.name)
@pytest.mark.parametrize("mode", [STRICT, PERMISSIVE], ids=lambda m: m.value)
@pytest.mark.parametrize("make", REFUSED.values(), ids=REFUSED.keys())
def test_refused_in_the_handshake(world, make, mode, version):
    context = world.lab.context(make(world.lab.pki), version=version)
    with pytest.raises(Closed):
        world.lab.http(world.modes[mode], tls=context)


def test_client_only_key_usage_is_enough(world):
    context = world.lab.context(world.lab.pki.leaf(spiffe("web"), usages=[CLIENT_AUTH]))
    assert world.lab.http(world.modes[STRICT], tls=context).status == 200


def test_peer_of_an_alias_is_accepted_only_where_it_is_one(world):
    old = world.lab.client(trust_domain="old.example")
    assert world.lab.http(world.alias, tls=old).status == 200
    with pytest.raises(Closed):
        world.lab.http(world.modes[STRICT], tls=old)


# --- P1: no session is resumed ----------------------------------------


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=lambda v: v.name)
@pytest.mark.parametrize(
    ("workload", "who", "expected"),
    [
        pytest.param("deny_intruder", "intruder", 403, id="deny-stays-deny"),
        pytest.param("allow_web", "web", 200, id="allow-stays-allow"),
    ],
)
def test_p1_http_answer_is_the_same_with_a_session_offered(world, version, workload, who, expected):
    lab, address = world.lab, getattr(world, workload)
    tls = lab.client(who, version=version)
    with lab.connect(address, 8080, tls=tls) as first:
        assert request(first).status == expected
        session = first.session
    with lab.connect(address, 8080, tls=tls, session=session) as second:
        reply = request(second)
        assert second.session_reused is False
    assert reply.status == expected
    if expected == 403:
        assert reply.body == "RBAC: access denied"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=lambda v: v.name)
def test_p1_tcp_deny_stays_a_deny(world, version):
    lab = world.lab
    tls = lab.client("intruder", alpn=TCP_ALPN, version=version)
    session = None
    for _ in range(2):
        with lab.connect(world.deny_intruder, 9000, tls=tls, session=session) as connection:
            session = connection.session
            connection.sendall(b"ping")
            assert connection.recv(100) == b""


# --- TCP by identity ----------------------------------------


def test_tcp_allow_by_identity(world):
    lab = world.lab
    assert lab.tcp(world.allow_web, tls=lab.client("web", alpn=TCP_ALPN)) == b"ping"
    with pytest.raises(Closed):
        lab.tcp(world.allow_web, tls=lab.client("intruder", alpn=TCP_ALPN))


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=lambda v: v.name)
@pytest.mark.parametrize("mode", ["strict", "permissive"])
def test_p9_no_byte_and_no_connection_for_a_wrong_peer(world, mode, version):
    """A server that speaks first: refused peers get nothing, and the application does not even see them."""
    lab, app = world.lab, world.lab.apps["greeter"]
    address = world.guarded[mode]
    before = app.connections
    for tls in (
        lab.client("intruder", alpn=TCP_ALPN, version=version),
        lab.context(None, alpn=TCP_ALPN),
        None,
    ):
        with pytest.raises(Closed):
            lab.tcp(address, b"" if tls else b"plain text", port=2525, tls=tls)
    assert app.connections == before
    assert lab.tcp(address, b"", port=2525, tls=lab.client("web", alpn=TCP_ALPN, version=version)) == GREETING
    assert app.connections == before + 1


@pytest.mark.parametrize("port", [2525, 2526], ids=["declared-tcp", "undeclared-protocol"])
def test_server_first_on_a_permissive_port(world, port):
    """Plaintext pays the sniffing time, once; mutual TLS does not; nobody hangs (prototype 6)."""
    before = sniffed_in_vain(world)
    assert world.lab.tcp(world.greeter, b"", port=port, tls=world.lab.client(alpn=TCP_ALPN)) == GREETING
    assert sniffed_in_vain(world) == before
    assert world.lab.tcp(world.greeter, b"", port=port) == GREETING
    assert sniffed_in_vain(world) == before + 1


def sniffed_in_vain(world):
    """Connections of the whole Envoy whose first bytes did not come in time."""
    return sum(world.lab.envoy.stats("downstream_pre_cx_timeout").values())


# --- XFCC ----------------------------------------

FORGED = ("x-forwarded-client-cert", "By=x;Hash=00;URI=spiffe://cluster.local/ns/demo/sa/admin")


def test_xfcc_is_one_true_element(world):
    reply = world.lab.http(world.modes[PERMISSIVE], headers=[FORGED, FORGED], tls=world.lab.client("web"))
    (element,) = reply.header_seen(FORGED[0])
    assert "admin" not in element
    assert "," not in element
    pattern = rf'By={spiffe("server")};Hash=[0-9a-f]{{64}};Subject="";URI={spiffe("web")}'
    assert re.fullmatch(pattern, element), "as Istio's sidecars write it"


def test_xfcc_is_removed_on_plaintext(world):
    for address in (world.modes[PERMISSIVE], world.modes[DISABLE], world.append):
        assert world.lab.http(address, headers=[FORGED]).header_seen(FORGED[0]) == []


def test_xfcc_append_puts_the_true_element_last(world):
    (value,) = world.lab.http(world.append, headers=[FORGED], tls=world.lab.client("web")).header_seen(
        FORGED[0]
    )
    assert value.startswith(FORGED[1])
    assert value.endswith(f"URI={spiffe('web')}")
