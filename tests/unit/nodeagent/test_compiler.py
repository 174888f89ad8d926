"""Worlds become resources, and only what changed is made anew."""

from __future__ import annotations

import pytest
from envoy.config.endpoint.v3 import endpoint_pb2
from prometheus_client import CollectorRegistry

from mesh.envoy.resources import CLUSTER, ENDPOINT, EXTENSION_CONFIG, LISTENER
from mesh.policy.codes import PolicyCode
from mesh.policy.effective import Severity
from mesh.policy.jwks import parse_key_set
from nodeagent import compiler as compiler_module
from nodeagent.compiler import CompileCode, Compiler, throw_away_key_set
from nodeagent.core.directory import Directory, World
from nodeagent.metrics import AgentMetrics

MESH = (
    "---\napiVersion: gatehouse.dev/v1alpha1\nkind: Mesh\nmetadata: {name: m}\n"
    "spec: {trustDomain: cluster.local}\n"
)


def workload(name: str, number: int, *, egress: str = "") -> str:
    return (
        "---\napiVersion: gatehouse.dev/v1alpha1\nkind: Workload\n"
        f"metadata: {{namespace: demo, name: {name}, labels: {{app: {name}}}}}\n"
        f"spec:\n  serviceAccount: {name}\n  tokenFile: t\n  address: 127.0.10.1\n"
        f'  ports: [{{number: {number}, protocol: HTTP, app: "127.0.0.1:{number + 1}"}}]\n' + egress
    )


def service(name: str, number: int) -> str:
    return (
        "---\napiVersion: gatehouse.dev/v1alpha1\nkind: Service\n"
        f"metadata: {{namespace: demo, name: {name}}}\n"
        f"spec: {{selector: {{app: {name}}}, ports: [{{number: {number}, protocol: HTTP}}]}}\n"
    )


def allow(name: str, target: str, account: str) -> str:
    return (
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n"
        f"metadata: {{namespace: demo, name: {name}}}\n"
        f"spec: {{selector: {{matchLabels: {{app: {target}}}}}, action: ALLOW,"
        f" rules: [{{from: [{{source: {{principals: [cluster.local/ns/demo/sa/{account}]}}}}]}}]}}\n"
    )


def transport(mode: str, target: str) -> str:
    return (
        "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\n"
        f"metadata: {{namespace: demo, name: {target}}}\n"
        f"spec: {{selector: {{matchLabels: {{app: {target}}}}}, mtls: {{mode: {mode}}}}}\n"
    )


EGRESS = '  egress: [{bind: "127.0.10.1:9", service: reviews.demo.svc.cluster.local, port: 9080}]\n'
BASE = {
    "mesh.yaml": MESH,
    "web.yaml": workload("web", 8080, egress=EGRESS),
    "reviews.yaml": workload("reviews", 9080),
    "services.yaml": service("reviews", 9080) + service("web", 8080),
    "policy.yaml": allow("a", "reviews", "web"),
}


class CompilerBench:
    def __init__(self) -> None:
        self.directory = Directory()
        self.metrics = AgentMetrics(CollectorRegistry())
        self.compiler = Compiler(self.metrics)
        self.world = World()

    def apply(self, changed: dict[str, str | None], key_sets: dict[str, str] | None = None):
        self.world = self.directory.update(changed)
        assert self.world.findings == ()
        return self.compiler.compile(self.world, key_sets or {})


@pytest.fixture
def bench() -> CompilerBench:
    return CompilerBench()


def test_every_workload_gets_its_configuration(bench: CompilerBench) -> None:
    made = bench.apply(BASE)
    assert made.findings == ()
    assert made.rendered == set(made.configs) == {"demo/web", "demo/reviews"}
    web, reviews = made.configs["demo/web"], made.configs["demo/reviews"]
    assert len(web.of_type(LISTENER)) == 2
    assert len(reviews.of_type(LISTENER)) == 1
    assert reviews.of_type(EXTENSION_CONFIG)


def test_d8c_only_declared_services_reach_a_proxy(bench: CompilerBench) -> None:
    made = bench.apply(BASE)
    assert len(made.configs["demo/web"].of_type(ENDPOINT)) == 1
    assert len(made.configs["demo/reviews"].of_type(ENDPOINT)) == 0


def test_the_same_world_again_makes_nothing_anew(bench: CompilerBench) -> None:
    first = bench.apply(BASE)
    again = bench.apply({})
    assert again.rendered == frozenset()
    assert all(again.configs[uid] is first.configs[uid] for uid in first.configs)
    assert bench.metrics.registry.get_sample_value("gatehouse_agent_compiled_total", {"changed": "no"}) == 2


def test_a_policy_changes_only_whom_it_selects(bench: CompilerBench) -> None:
    first = bench.apply(BASE)
    made = bench.apply({"policy.yaml": allow("a", "reviews", "other")})
    assert made.rendered == {"demo/reviews"}
    before, after = first.configs["demo/reviews"], made.configs["demo/reviews"]
    assert {n: r.version for n, r in before.of_type(LISTENER).items()} == {
        n: r.version for n, r in after.of_type(LISTENER).items()
    }
    assert before.of_type(EXTENSION_CONFIG) != after.of_type(EXTENSION_CONFIG)


def test_a_comment_above_a_policy_changes_no_byte(bench: CompilerBench) -> None:
    first = bench.apply(BASE)
    made = bench.apply({"policy.yaml": "# a comment\n" + BASE["policy.yaml"]})
    for uid, config in made.configs.items():
        assert {(r.type_url, r.name, r.version) for r in config} == {
            (r.type_url, r.name, r.version) for r in first.configs[uid]
        }


def test_a_new_endpoint_reaches_those_who_use_the_service(bench: CompilerBench) -> None:
    bench.apply(BASE)
    second = workload("reviews-2", 9080).replace("app: reviews-2", "app: reviews").replace("10.1\n", "10.9\n")
    made = bench.apply({"second.yaml": second})
    assert made.rendered == {"demo/web", "demo/reviews-2"}
    (endpoints,) = made.configs["demo/web"].of_type(ENDPOINT).values()
    assignment = endpoint_pb2.ClusterLoadAssignment.FromString(endpoints.body)
    found = [
        e.endpoint.address.socket_address.address for loc in assignment.endpoints for e in loc.lb_endpoints
    ]
    assert sorted(found) == ["127.0.10.1", "127.0.10.9"]


def test_a_removed_workload_is_gone(bench: CompilerBench) -> None:
    bench.apply(BASE)
    made = bench.apply({"web.yaml": None})
    assert set(made.configs) == {"demo/reviews"}


def outbound_bytes(made) -> set[str]:
    return {r.version for url in (CLUSTER, ENDPOINT) for r in made.configs["demo/web"].of_type(url).values()}


def test_the_server_side_mode_decides_how_it_is_called(bench: CompilerBench) -> None:
    plain = bench.apply(BASE | {"peer.yaml": transport("DISABLE", "reviews")})
    strict = bench.apply({"peer.yaml": transport("STRICT", "reviews")})
    assert strict.rendered == {"demo/web", "demo/reviews"}
    assert outbound_bytes(plain) != outbound_bytes(strict)
    permissive = bench.apply({"peer.yaml": transport("PERMISSIVE", "reviews")})
    assert outbound_bytes(permissive) == outbound_bytes(strict)


JWT = (
    "---\napiVersion: security.istio.io/v1\nkind: RequestAuthentication\n"
    "metadata: {namespace: demo, name: jwt}\n"
    'spec: {jwtRules: [{issuer: "https://i", jwksUri: "https://i/jwks"}]}\n'
)


def test_d14_without_keys_a_throw_away_set_is_used(bench: CompilerBench) -> None:
    without = bench.apply(BASE | {"jwt.yaml": JWT})
    assert [f.code for f in without.findings] == [PolicyCode.JWKS_UNAVAILABLE]
    assert without.findings[0].severity is Severity.WARNING
    body = b"".join(r.body for r in without.configs["demo/web"].of_type(EXTENSION_CONFIG).values())
    assert b"unavailable" in body
    with_keys = bench.apply({}, {"https://i/jwks": throw_away_key_set().replace("unavailable", "real-key")})
    assert with_keys.findings == ()
    body = b"".join(r.body for r in with_keys.configs["demo/web"].of_type(EXTENSION_CONFIG).values())
    assert b"real-key" in body
    assert b"unavailable" not in body


def test_d14_throw_away_sets_are_public_and_differ() -> None:
    first, second = throw_away_key_set(), throw_away_key_set()
    assert first != second
    assert not parse_key_set(first).had_private


def test_one_workload_that_cannot_be_made_does_not_hold_up_the_others(
    bench: CompilerBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = bench.apply(BASE)
    real = compiler_module.render

    def render(proxy, cache):
        if proxy.workload.name == "reviews":
            raise ZeroDivisionError
        return real(proxy, cache)

    monkeypatch.setattr(compiler_module, "render", render)
    made = bench.apply({"policy.yaml": allow("a", "reviews", "other"), "web.yaml": workload("web", 8081)})
    assert made.rendered == {"demo/web"}
    assert made.configs["demo/reviews"] is first.configs["demo/reviews"]
    failures = [f for f in made.findings if f.code is CompileCode.FAILED]
    assert [str(f.ref) for f in failures] == ["Workload demo/reviews"]
    assert "keeps what it has" in failures[0].message
    monkeypatch.undo()
    healed = bench.apply({})
    assert healed.rendered == {"demo/reviews"}
    assert not [f for f in healed.findings if f.code is CompileCode.FAILED]


def test_a_refusal_of_the_renderer_is_reported_with_its_words(
    bench: CompilerBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mesh.envoy.messages import RenderCode, RenderError

    def render(proxy, cache):
        raise RenderError(RenderCode.OPTION, "this cannot be said to Envoy")

    monkeypatch.setattr(compiler_module, "render", render)
    made = bench.apply(BASE)
    assert made.configs == {}
    assert {f.code for f in made.findings} == {CompileCode.RENDER}
    assert "this cannot be said to Envoy" in made.findings[0].message
