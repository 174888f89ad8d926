"""Access rules in a real Envoy: each predicate allows what it says and nothing else."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from mesh.policy.effective import AuthzPolicy, EffectivePolicy, ObjectRef, Rule, RuleSets
from mesh.policy.predicates import (
    NEVER,
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
    Predicate,
    RemoteIp,
    Sni,
    StringMatch,
)
from mesh.spiffe import TrustDomain
from mesh.topology import AppProtocol
from tests.fakes.envoy_lab import MESH, TCP_ALPN, Closed, Lab
from tests.fakes.envoy_pki import spiffe
from tests.fakes.envoy_tokens import Issuer, bearer, jwt_policy

pytestmark = [pytest.mark.envoy, pytest.mark.xdist_group("envoy-rbac")]

REF = ObjectRef("AuthorizationPolicy", "demo", "p")
ISSUER = Issuer()
ALIASED = replace(MESH, trust_domain_aliases=(TrustDomain("old.example"),))


def exact(value: str) -> StringMatch:
    return StringMatch(MatchKind.EXACT, value)


def prefix(value: str) -> StringMatch:
    return StringMatch(MatchKind.PREFIX, value)


def suffix(value: str) -> StringMatch:
    return StringMatch(MatchKind.SUFFIX, value)


PRESENT = StringMatch(MatchKind.PRESENT)


def rule(principal: Predicate, permission: Predicate, name: str = "p") -> Rule:
    return Rule(f"ns[demo]-policy[{name}]-rule[0]", principal, permission, REF)


@dataclass(frozen=True)
class As:
    """A request: by whom, and with what."""

    who: str | None = "web"  # service account, or None for plaintext
    namespace: str = "demo"
    trust_domain: str = "cluster.local"
    target: str = "/"
    method: str = "GET"
    host: str = "server"
    headers: tuple[tuple[str, str], ...] = ()
    sni: str | None = None
    source: str | None = None
    claims: dict[str, Any] | None = field(default=None, hash=False)


@dataclass(frozen=True)
class Case:
    name: str
    principal: Predicate
    permission: Predicate
    allowed: tuple[As, ...]
    denied: tuple[As, ...]


def who(name: str, predicate: Predicate, allowed: tuple[As, ...], denied: tuple[As, ...]) -> Case:
    return Case(name, predicate, Always(), allowed, denied)


def what(name: str, predicate: Predicate, allowed: tuple[As, ...], denied: tuple[As, ...]) -> Case:
    return Case(name, Always(), predicate, allowed, denied)


def target(*paths: str) -> tuple[As, ...]:
    return tuple(As(target=path) for path in paths)


def host(*names: str) -> tuple[As, ...]:
    return tuple(As(host=name) for name in names)


def claim(**claims: Any) -> As:
    return As(claims=claims)


WEB, PLAIN = As(), As(who=None)
OTHER_NS, OTHER_SA, OLD = As(namespace="bar"), As(who="intruder"), As(trust_domain="old.example")

CASES = [
    # Identities. PLAIN is denied by each: no leaf about a peer is true of plaintext.
    who(
        "P-42-uri-exact",
        PeerUri(exact(spiffe("web"))),
        (WEB,),
        (OTHER_SA, OTHER_NS, OLD, PLAIN, As(who="web2")),
    ),
    who(
        "uri-prefix",
        PeerUri(prefix("spiffe://cluster.local/ns/demo/sa/w")),
        (WEB, As(who="w")),
        (OTHER_SA, PLAIN),
    ),
    who(
        "CVE-2020-16844-uri-suffix", PeerUri(suffix("/sa/web")), (WEB, OTHER_NS, OLD), (As(who="xweb"), PLAIN)
    ),
    who("uri-suffix-is-quoted", PeerUri(suffix("/sa/a.b")), (As(who="a.b"),), (As(who="axb"),)),
    who("uri-present", PeerUri(PRESENT), (WEB, OTHER_NS, OLD), (PLAIN,)),
    who(
        "P-43-namespace-exact",
        PeerNamespace(exact("demo")),
        (WEB, OLD),
        (OTHER_NS, As(namespace="demo2"), PLAIN),
    ),
    who("namespace-prefix", PeerNamespace(prefix("de")), (WEB, As(namespace="de")), (OTHER_NS, PLAIN)),
    who("namespace-suffix", PeerNamespace(suffix("mo")), (WEB,), (OTHER_NS, As(namespace="mo2"), PLAIN)),
    who("namespace-present", PeerNamespace(PRESENT), (WEB, OTHER_NS), (PLAIN,)),
    who("namespace-with-slash-is-never", PeerNamespace(exact("demo/sa")), (), (WEB, PLAIN)),
    who("service-account", PeerServiceAccount("demo", "web"), (WEB, OLD), (OTHER_SA, OTHER_NS, PLAIN)),
    who(
        "CVE-2026-39350-dots-of-a-service-account",
        PeerServiceAccount("demo", "a.b"),
        (As(who="a.b"),),
        (As(who="axb"), PLAIN),
    ),
    who("trust-domain", PeerTrustDomain(exact("old.example")), (OLD,), (WEB, PLAIN)),
    who("trust-domain-suffix", PeerTrustDomain(suffix(".local")), (WEB,), (OLD, PLAIN)),
    who("trust-domain-foreign-is-never", PeerTrustDomain(exact("foreign")), (), (WEB, OLD, PLAIN)),
    who("P-48-not-namespace-lets-plaintext-in", Not(PeerNamespace(exact("bar"))), (WEB, PLAIN), (OTHER_NS,)),
    # Addresses
    who("source-ip", DirectSourceIp("127.1.2.0/24"), (As(source="127.1.2.9"),), (As(source="127.1.3.9"),)),
    who(
        "source-ip-host-bits",
        DirectSourceIp("127.1.2.9/24"),
        (As(source="127.1.2.1"),),
        (As(source="127.1.3.9"),),
    ),
    who(
        "source-ip-single", DirectSourceIp("127.1.2.9"), (As(source="127.1.2.9"),), (As(source="127.1.2.8"),)
    ),
    who(
        "remote-ip-follows-xff",
        RemoteIp("10.9.0.0/16"),
        (As(headers=(("x-forwarded-for", "1.2.3.4, 10.9.1.1"),)),),
        (As(headers=(("x-forwarded-for", "10.9.1.1, 1.2.3.4"),)), WEB),
    ),
    who(
        "source-ip-ignores-xff",
        DirectSourceIp("10.9.0.0/16"),
        (),
        (As(headers=(("x-forwarded-for", "10.9.1.1"),)),),
    ),
    # Claims
    who("P-31-claim-exact", Claim(("sub",), exact("alice")), (claim(),), (claim(sub="bob"), WEB)),
    who(
        "claim-in-list",
        Claim(("groups",), exact("dev")),
        (claim(groups=["x", "dev"]), claim(groups="dev")),
        (claim(groups=["ops"]), claim(groups=[]), claim(), claim(groups=[["dev"]])),
    ),
    who("P-30-claim-present", Claim(("sub",), PRESENT), (claim(), claim(sub="a\nb")), (claim(sub=None), WEB)),
    who(
        "P-36-claim-nested",
        Claim(("nested", "role"), exact("admin")),
        (claim(nested={"role": ["admin", "x"]}), claim(nested={"role": "admin"})),
        (claim(nested={"role": "user"}), claim(nested="admin")),
    ),
    who("claim-prefix", Claim(("sub",), prefix("al")), (claim(),), (claim(sub="bob"),)),
    who("claim-suffix", Claim(("sub",), suffix("ce")), (claim(),), (claim(sub="bob"),)),
    who(
        "P-35-claim-scope-is-split",
        Claim(("scope",), exact("write")),
        (claim(scope="read write"),),
        (claim(scope="read"), claim(scope="rewrite")),
    ),
    who("claim-number-is-no-string", Claim(("level",), exact("5")), (claim(level="5"),), (claim(level=5),)),
    # Requests
    what(
        "P-44-path-exact",
        Path(exact("/admin")),
        target("/admin", "/admin?x=1"),
        target("/admin/", "/Admin", "/"),
    ),
    what("path-prefix", Path(prefix("/info")), target("/info", "/info/1"), target("/x", "/inf")),
    what(
        "path-suffix", Path(suffix(".html")), target("/a.html", "/a.html?x"), target("/a.htm", "/a?x=.html")
    ),
    what("path-present", Path(PRESENT), target("/", "/x"), ()),
    what(
        "P-50-template-one-segment",
        PathTemplate("/foo/{*}"),
        target("/foo/a", "/foo/a?q=/b"),
        target("/foo/a/b", "/foo/"),
    ),
    what(
        "template-rest",
        PathTemplate("/foo/{**}"),
        target("/foo/a", "/foo/a/b"),
        target(
            "/fo/a",
        ),
    ),
    what("template-inner", PathTemplate("/a/{*}/c"), target("/a/b/c"), target("/a/b/d", "/a/b/x/c")),
    what("method", Method(exact("GET")), (WEB,), (As(method="POST"), As(method="PUT"))),
    what("method-prefix", Method(prefix("P")), (As(method="POST"), As(method="PUT")), (WEB,)),
    what("method-present", Method(PRESENT), (WEB, As(method="DELETE")), ()),
    what(
        "P-46-host-exact",
        Host(exact("api.foo.example")),
        host(
            "api.foo.example",
            "API.foo.Example",
            "api.foo.example:80",
            "api.foo.example.",
            "api.foo.example.:80",
        ),
        host("api.foo.example2", "xapi.foo.example", "api.foo"),
    ),
    what("host-with-port", Host(exact("api:8080")), host("api:8080", "API:8080"), host("api", "api:80")),
    what(
        "CVE-2021-39155-host-suffix",
        Host(suffix(".foo.example")),
        host("a.foo.example", "A.FOO.example:80", "a.foo.example."),
        host("afoo.example", "a.foo.example.evil", "a.foo.example:80.evil"),
    ),
    what(
        "host-prefix",
        Host(prefix("api.")),
        host("api.x", "API.x:80"),
        host(
            "xapi.x",
        ),
    ),
    what("host-present", Host(PRESENT), host("anything"), ()),
    what(
        "P-49-header-exact",
        Header("x-r", exact("a")),
        (As(headers=(("x-r", "a"),)), As(headers=(("X-R", " a "),))),
        (As(headers=(("x-r", "b"),)), WEB, As(headers=(("x-r", "a,b"),))),
    ),
    what(
        "header-present",
        Header("x-r", PRESENT),
        (As(headers=(("x-r", "a"),)), As(headers=(("x-r", ""),))),
        (WEB,),
    ),
    what(
        "header-prefix",
        Header("x-r", prefix("a")),
        (As(headers=(("x-r", "ab"),)),),
        (As(headers=(("x-r", "ba"),)),),
    ),
    what(
        "CVE-2026-26308-repeated-header",
        Header("x-r", exact("a")),
        (As(headers=(("x-r", "a"), ("x-r", "b"))), As(headers=(("x-r", "b"), ("x-r", "a")))),
        (As(headers=(("x-r", "b"), ("x-r", "c"))),),
    ),
    what("destination-port", DestinationPort(8080), (WEB,), ()),
    what("destination-port-other", DestinationPort(8081), (), (WEB,)),
    what("destination-ip", DestinationIp("127.0.0.0/8"), (WEB,), ()),
    what("destination-ip-other", DestinationIp("10.0.0.0/8"), (), (WEB,)),
    what("sni", Sni(exact("a.example")), (As(sni="a.example"),), (As(sni="b.example"), WEB, PLAIN)),
    what("sni-suffix", Sni(suffix(".example")), (As(sni="a.example"),), (As(sni="a.test"),)),
    what("sni-present", Sni(PRESENT), (As(sni="a.example"),), (WEB,)),
    what(
        "filter-metadata-of-a-filter-that-does-not-run",
        FilterMetadata("envoy.filters.network.mongo_proxy", ("db.coll",), exact("find")),
        (),
        (WEB,),
    ),
    # Combinators
    what(
        "all-of",
        AllOf((Path(exact("/a")), Method(exact("GET")))),
        target("/a"),
        (As(target="/a", method="POST"), WEB),
    ),
    what("any-of", AnyOf((Path(exact("/a")), Path(exact("/b")))), target("/a", "/b"), target("/c")),
    what("not", Not(Path(prefix("/a"))), target("/b"), target("/a")),
    what("never", NEVER, (), (WEB, PLAIN)),
    what("not-never-is-always", Not(NEVER), (WEB, PLAIN), ()),
    who("never-principal", NEVER, (), (WEB, PLAIN)),
    who(
        "any-of-all-of",
        AnyOf(
            (
                AllOf((PeerNamespace(exact("demo")), Not(PeerServiceAccount("demo", "web")))),
                PeerTrustDomain(exact("old.example")),
            )
        ),
        (OTHER_SA, OLD),
        (WEB, PLAIN),
    ),
    Case(
        "principal-and-permission",
        PeerUri(exact(spiffe("web"))),
        Path(exact("/a")),
        target("/a"),
        (WEB, As(who="intruder", target="/a")),
    ),
]


class World:
    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.allow = {
            case.name: self.http(RuleSets(allow=(rule(case.principal, case.permission),))) for case in CASES
        }
        self.deny = {
            case.name: self.http(RuleSets(deny=(rule(case.principal, case.permission),))) for case in CASES
        }
        self.none = self.http(RuleSets())
        self.default_deny = self.http(RuleSets(allow=()))
        path = Path(exact("/x"))
        self.order = self.http(
            RuleSets(
                audit=(rule(Always(), Always(), "audit"),),
                deny=(rule(Always(), path, "deny"),),
                allow=(rule(Always(), AnyOf((path, Path(exact("/ok")))), "allow"),),
            )
        )
        self.dry_deny = self.http(RuleSets(dry_run_deny=(rule(Always(), path, "dry"),)))
        self.dry_allow = self.http(RuleSets(dry_run_allow=(rule(Always(), path, "dry"),)))
        self.audit = self.http(RuleSets(audit=(rule(Always(), Always(), "audit"),)))
        ports = (lab.port(9000, AppProtocol.TCP), lab.port(9001, AppProtocol.TCP))
        self.tcp = {
            name: lab.workload(EffectivePolicy(authz=AuthzPolicy(tcp=rules)), ports)
            for name, rules in TCP_RULES.items()
        }

    def http(self, rules: RuleSets) -> str:
        policy = EffectivePolicy(jwt=jwt_policy(ISSUER.provider()), authz=AuthzPolicy(http=rules))
        return self.lab.workload(policy, mesh=ALIASED)

    def ask(self, address: str, who: As):
        lab = self.lab
        tls = lab.client(who.who, namespace=who.namespace, trust_domain=who.trust_domain) if who.who else None
        headers = list(who.headers)
        if who.claims is not None:
            headers += bearer(ISSUER.token(**who.claims))
        return lab.http(
            address,
            who.target,
            method=who.method,
            headers=headers,
            host=who.host,
            tls=tls,
            sni=who.sni,
            source=who.source,
        )


TCP_RULES = {
    "P-52-allow-port": RuleSets(allow=(rule(Always(), DestinationPort(9000)),)),
    "P-54-deny-namespace-and-port": RuleSets(
        deny=(rule(PeerNamespace(exact("bar")), DestinationPort(9001)),)
    ),
    "P-53-nothing-allowed": RuleSets(allow=()),
    "CVE-2020-16844-deny-suffix": RuleSets(deny=(rule(PeerUri(suffix("/sa/intruder")), Always()),)),
    "CVE-2019-12243-deny-all": RuleSets(deny=(rule(Always(), Always()),)),
    "P-47-deny-plaintext": RuleSets(deny=(rule(Not(PeerUri(PRESENT)), Always()),)),
    "deny-source": RuleSets(deny=(rule(DirectSourceIp("127.0.0.0/8"), DestinationPort(9001)),)),
    "audit-and-dry-run-change-nothing": RuleSets(
        audit=(rule(Always(), Always()),), dry_run_allow=(), dry_run_deny=(rule(Always(), Always()),)
    ),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    lab = Lab(tmp_path_factory.mktemp("rbac"))
    found = World(lab)
    with lab:
        yield found


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_predicate(world, case):
    """ALLOW lets exactly the matching requests pass; DENY with the same rule exactly the others."""
    for who in case.allowed:
        assert world.ask(world.allow[case.name], who).status == 200, who
        refused = world.ask(world.deny[case.name], who)
        assert (refused.status, refused.body) == (403, "RBAC: access denied"), who
    for who in case.denied:
        refused = world.ask(world.allow[case.name], who)
        assert (refused.status, refused.body) == (403, "RBAC: access denied"), who
        assert world.ask(world.deny[case.name], who).status == 200, who


def test_no_policy_allows_everything(world):
    assert world.ask(world.none, WEB).status == 200
    assert world.ask(world.none, PLAIN).status == 200


def test_p41_empty_allow_set_denies_everything(world):
    assert world.ask(world.default_deny, WEB).status == 403
    assert world.ask(world.default_deny, PLAIN).status == 403


def test_deny_beats_allow_and_audit_decides_nothing(world):
    assert world.ask(world.order, As(target="/ok")).status == 200
    assert world.ask(world.order, As(target="/x")).status == 403
    assert world.ask(world.order, As(target="/other")).status == 403
    assert world.ask(world.audit, WEB).status == 200


def test_p55_dry_run_never_changes_a_verdict_but_counts(world):
    before = dry_runs(world)
    assert world.ask(world.dry_deny, As(target="/x")).status == 200
    assert world.ask(world.dry_allow, As(target="/other")).status == 200
    after = dry_runs(world)
    assert [a - b for a, b in zip(after, before, strict=True)] == [1, 1]


def dry_runs(world):
    """How often dry runs would have denied, by deny and by allow rules; of the whole Envoy: compare two."""
    stats = world.lab.envoy.stats("shadow_denied")
    return [sum(v for k, v in stats.items() if f"istio_dry_run_{kind}_" in k) for kind in ("deny", "allow")]


class TestTcp:
    def reach(self, world, name, *, port=9000, who="web", namespace="demo"):
        tls = world.lab.client(who, namespace=namespace, alpn=TCP_ALPN) if who else None
        try:
            return world.lab.tcp(world.tcp[name], b"ping pong", port=port, tls=tls) == b"ping pong"
        except Closed:
            return False

    def test_p52_ports(self, world):
        name = "P-52-allow-port"
        assert self.reach(world, name, port=9000)
        assert self.reach(world, name, port=9000, who=None)
        assert not self.reach(world, name, port=9001)

    def test_p53_nothing_allowed(self, world):
        assert not self.reach(world, "P-53-nothing-allowed")
        assert not self.reach(world, "P-53-nothing-allowed", who=None)

    def test_p54_deny_by_namespace_and_port(self, world):
        name = "P-54-deny-namespace-and-port"
        assert not self.reach(world, name, port=9001, namespace="bar")
        assert self.reach(world, name, port=9000, namespace="bar")
        assert self.reach(world, name, port=9001, namespace="demo")

    def test_suffix_deny(self, world):
        name = "CVE-2020-16844-deny-suffix"
        assert not self.reach(world, name, who="intruder")
        assert self.reach(world, name, who="web")

    @pytest.mark.parametrize("who", ["web", None])
    def test_each_chain_has_the_rules(self, world, who):
        assert not self.reach(world, "CVE-2019-12243-deny-all", who=who)

    def test_own_tls_of_the_application_has_the_rules_too(self, world):
        hello = b"\x16\x03\x01\x00\xc8\x01\x00\x00\xc4\x03\x03" + bytes(194)
        with socket.create_connection((world.tcp["CVE-2019-12243-deny-all"], 9000), 20) as raw:
            raw.sendall(hello)
            assert raw.recv(100) == b""

    def test_plaintext_can_be_denied(self, world):
        assert self.reach(world, "P-47-deny-plaintext")
        assert not self.reach(world, "P-47-deny-plaintext", who=None)

    def test_source_address(self, world):
        assert self.reach(world, "deny-source", port=9000)
        assert not self.reach(world, "deny-source", port=9001)

    def test_audit_and_dry_run(self, world):
        assert self.reach(world, "audit-and-dry-run-change-nothing")
        assert self.reach(world, "audit-and-dry-run-change-nothing", who=None)
