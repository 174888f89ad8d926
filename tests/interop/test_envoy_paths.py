"""Paths and headers in a real Envoy: table b.4, and the rows of f that a client can try."""

from __future__ import annotations

import time

import pytest

from mesh.meshconfig import MeshConfig, PathNormalization
from mesh.policy.effective import (
    AuthzPolicy,
    EffectivePolicy,
    MtlsMode,
    ObjectRef,
    Rule,
    RuleSets,
    TransportPolicy,
)
from mesh.policy.predicates import Always, Header, MatchKind, Path, PathTemplate, StringMatch
from tests.fakes.envoy_lab import MESH, Lab, request
from tests.fakes.envoy_tokens import Issuer, bearer, jwt_policy
from tests.fakes.policy_corpus import allow, deny, what
from tests.fakes.policy_objects import effective

pytestmark = [pytest.mark.envoy, pytest.mark.xdist_group("envoy-paths")]

REF = ObjectRef("AuthorizationPolicy", "demo", "p")
NONE, BASE, MERGE, DECODE = PathNormalization
ISSUER = Issuer()


def exact(value: str) -> StringMatch:
    return StringMatch(MatchKind.EXACT, value)


def rule(permission) -> tuple[Rule, ...]:
    return (Rule("ns[demo]-policy[p]-rule[0]", Always(), permission, REF),)


class World:
    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        denied = EffectivePolicy(authz=AuthzPolicy(http=RuleSets(deny=rule(Path(exact("/admin"))))))
        allowed = EffectivePolicy(
            authz=AuthzPolicy(http=RuleSets(allow=rule(Path(StringMatch(MatchKind.PREFIX, "/pub")))))
        )

        def mesh(option):
            return MeshConfig(trust_domain=MESH.trust_domain, path_normalization=option)

        self.deny = {option: lab.workload(denied, mesh=mesh(option)) for option in PathNormalization}
        self.allow = {option: lab.workload(allowed, mesh=mesh(option)) for option in PathNormalization}
        beside = effective(deny(**what(paths=["/admin"])), allow(**what(paths=["/*"])))
        self.beside = {option: lab.workload(beside, mesh=mesh(option)) for option in (NONE, DECODE)}
        self.template = lab.workload(
            EffectivePolicy(authz=AuthzPolicy(http=RuleSets(deny=rule(PathTemplate("/t/{**}")))))
        )
        self.open = lab.workload(EffectivePolicy())
        self.header = lab.workload(
            EffectivePolicy(authz=AuthzPolicy(http=RuleSets(deny=rule(Header("x", exact("admin"))))))
        )
        self.jwt = lab.workload(EffectivePolicy(jwt=jwt_policy(ISSUER.provider())))
        self.websocket = lab.workload(EffectivePolicy(), [lab.port(8080, app="websocket")])
        self.short = lab.workload(
            EffectivePolicy(transport=TransportPolicy(MtlsMode.DISABLE)),
            mesh=MeshConfig(trust_domain=MESH.trust_domain, max_connection_seconds=1),
        )


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    lab = Lab(tmp_path_factory.mktemp("paths"))
    found = World(lab)
    with lab:
        yield found


ROWS = [
    ("/admin", 403, 403, 403, 403),
    ("/admin?x", 403, 403, 403, 403),
    ("/./admin", 200, 403, 403, 403),
    ("/x/../admin", 200, 403, 403, 403),
    ("/x\\..\\admin", 200, 403, 403, 403),
    ("/x/%2e%2e/admin", 200, 403, 403, 403),
    ("/%61dmin", 200, 403, 403, 403),
    ("//admin", 200, 200, 403, 403),
    ("/x/..//admin", 200, 200, 403, 403),
    ("/%2fadmin", 200, 200, 200, 403),
    ("/%5Cadmin", 200, 200, 200, 403),
    ("/x%2f..%2fadmin", 200, 200, 200, 403),
    ("/x//../admin", 200, 200, 200, 200),
    ("/%252fadmin", 200, 200, 200, 200),
    ("/admin/", 200, 200, 200, 200),
    ("/admin%2f", 200, 200, 200, 200),
    ("/ADMIN", 200, 200, 200, 200),
    ("/admin;a=b", 200, 200, 200, 200),
    ("/admin%23", 200, 200, 200, 200),
    ("/admin%3fx", 200, 200, 200, 200),
    ("/admin%00", 200, 400, 400, 400),
    ("/admin#f", 400, 400, 400, 400),
    ("\\admin", 400, 400, 400, 400),
]


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_b4_deny_admin(world, row):
    target, *expected = row
    got = [world.lab.http(world.deny[option], target).status for option in (NONE, BASE, MERGE, DECODE)]
    assert got == expected


@pytest.mark.parametrize("target", ["//admin", "/%2fadmin", "/x%2f..%2fadmin"])
def test_p45_a_deny_beside_an_allow_of_everything(world, target):
    """P-45, with objects as people write them; without normalization the same path is another path."""
    reply = world.lab.http(world.beside[DECODE], target)
    assert (reply.status, reply.body) == (403, "RBAC: access denied")
    assert world.lab.http(world.beside[DECODE], "/ok").status == 200
    assert world.lab.http(world.beside[NONE], target).status == 200


@pytest.mark.parametrize(
    ("option", "target", "seen"),
    [
        pytest.param(NONE, "/a/../b", "/a/../b", id="none-forwards-as-it-is"),
        pytest.param(BASE, "/a/../b//c", "/b//c", id="base"),
        pytest.param(MERGE, "/a/../b//c%2fd", "/b/c%2fd", id="merge"),
        pytest.param(DECODE, "/a/../b//c%2fd%5ce?q=//", "/b/c/d/e?q=//", id="decode"),
    ],
)
def test_b4_what_was_checked_is_forwarded(world, option, target, seen):
    assert world.lab.http(world.deny[option], target).seen["target"] == seen


def test_b4_trap_of_an_allowed_prefix(world):
    """Under BASE an encoded slash gets past a prefix; the default decodes it first."""
    target = "/pub/%2e%2e%2fpriv"
    assert world.lab.http(world.allow[BASE], target).status == 200
    assert world.lab.http(world.allow[DECODE], target).status == 403
    assert world.lab.http(world.allow[DECODE], "/pub/x").status == 200


@pytest.mark.parametrize(
    "target",
    [
        "/t/a*b",
        "/t/a/b",
        "/t/a:b",
        "/t/a$b",
        "/t/%E2%82%AC",
        "/t/a[b",
        "/t/a|b",
        '/t/a"b',
        "/t/a]b",
        "/t/[",
        "/t/a%5Bb",
    ],
)
def test_cve_2025_46821_template_catches_odd_characters(world, target):
    assert world.lab.http(world.template, target).status in {400, 403}


@pytest.mark.parametrize(
    "values", [("admin",), ("admin", "user"), ("user", "admin"), (" admin ",)], ids="+".join
)
def test_cve_2020_25017_repeated_headers(world, values):
    assert world.lab.http(world.header, headers=[("x", value) for value in values]).status == 403


def test_one_line_with_a_comma_is_one_value(world):
    assert world.lab.http(world.header, headers=[("x", "user,admin")]).status == 200


def test_cve_2023_27487_original_path_decides_nothing(world):
    """A forged `x-envoy-original-path` changes no verdict and does not reach the application."""
    forged = [("x-envoy-original-path", "/pub")]
    assert world.lab.http(world.allow[DECODE], "/priv", headers=forged).status == 403
    assert world.lab.http(world.deny[DECODE], "/admin", headers=forged).status == 403
    assert world.lab.http(world.jwt, "/", headers=[*forged, *bearer("garbage")]).status == 401
    assert world.lab.http(world.open, headers=forged).header_seen("x-envoy-original-path") == []


@pytest.mark.parametrize(
    "name",
    [
        "x-envoy-upstream-rq-timeout-ms",
        "x-envoy-retry-on",
        "x-envoy-max-retries",
        "x-envoy-internal",
        "x-envoy-external-address",
        "x-envoy-force-trace",
        "x-envoy-decorator-operation",
        "x-envoy-original-host",
        "x-envoy-peer-metadata",
        "x-envoy-expected-rq-timeout-ms",
        "x-envoy-attempt-count",
        "X-Envoy-Anything-New",
    ],
)
def test_cve_2024_45806_steering_headers_do_not_pass(world, name):
    headers = [(name, "1"), ("x-forwarded-for", "10.0.0.1")]
    assert world.lab.http(world.open, headers=headers).header_seen(name) == []


def test_no_header_of_envoy_in_the_answer(world):
    reply = world.lab.http(world.open)
    assert not [name for name in reply.headers if name.startswith("x-envoy")]


def test_server_header_of_the_application_is_kept_and_ours_tells_no_version(world):
    assert world.lab.http(world.open).headers["server"].startswith("BaseHTTP")
    assert world.lab.http(world.deny[DECODE], "/admin").headers["server"] == "gatehouse"


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"GET / HTTP/1.1\r\nHost: s\r\nx: a\x00b\r\n\r\n", id="CVE-2019-9900-nul-in-header"),
        pytest.param(b"GET /a\x00b HTTP/1.1\r\nHost: s\r\n\r\n", id="CVE-2019-9900-nul-in-path"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: s\r\nx y: a\r\n\r\n", id="CVE-2023-27491-space-in-name"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", id="no-host"),
        pytest.param(
            b"POST / HTTP/1.1\r\nHost: s\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            id="length-and-chunked",
        ),
    ],
)
def test_malformed_requests(world, raw):
    with world.lab.connect(world.open, 8080) as connection:
        connection.sendall(raw)
        answer = connection.recv(1000)
    assert answer.startswith(b"HTTP/1.1 400")


def test_http_1_0_is_told_to_upgrade(world):
    with world.lab.connect(world.open, 8080) as connection:
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 426")


def test_age_of_connections_is_bounded_by_an_option(world):
    """`max_connection_seconds`: the proxy says `Connection: close`, and cuts nothing."""
    with world.lab.connect(world.short, 8080) as connection:
        end = time.monotonic() + 30
        while "connection" not in (reply := request(connection)).headers:
            assert reply.status == 200
            assert time.monotonic() < end, "the connection was not told to end"
        assert reply.headers["connection"] == "close"
        assert reply.status == 200


def test_websocket_upgrade_reaches_the_application(world):
    head = "GET / HTTP/1.1\r\nHost: s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    with world.lab.connect(world.websocket, 8080) as connection:
        connection.sendall(head.encode())
        assert connection.recv(4096).startswith(b"HTTP/1.1 101")
        connection.sendall(b"frame")
        assert connection.recv(4096) == b"frame"


def test_callers_cannot_shorten_the_time_of_a_request(world):
    """Sidecars have no time limit of their own on a route."""
    headers = [("x-envoy-upstream-rq-timeout-ms", "1"), ("x-envoy-upstream-rq-per-try-timeout-ms", "1")]
    assert world.lab.http(world.open, headers=headers).status == 200


def test_carriage_return_in_a_value_is_taken_out(world):
    """CVE-2023-27493: what the rules saw is what the application gets."""
    with world.lab.connect(world.open, 8080) as connection:
        assert request(connection, headers=[("x", "a\rb")]).header_seen("x") == ["ab"]
