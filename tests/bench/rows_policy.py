"""Compiling policy and rendering configuration for a node."""

from __future__ import annotations

import time
from collections.abc import Iterator

from mesh.envoy.cache import RenderCache
from mesh.envoy.render import ProxyInput, render
from mesh.policy.model import Policy
from mesh.policy.policyset import PolicySet
from mesh.policy.resolve import resolve
from mesh.topology import AppProtocol, SocketAddress, Workload, WorkloadPort
from tests.bench.measure import ROUNDS, Row, at_most
from tests.fakes.policy_objects import FALLBACK, MESH, authz, parsed

PODS, POLICIES = 100, 200


def workload(i: int) -> Workload:
    """One of the pods; they share ten labels and five namespaces."""
    address = f"10.1.{i // 200}.{i % 200 + 1}"
    ports = tuple(
        WorkloadPort(number=n, protocol=AppProtocol.HTTP, app=SocketAddress("127.0.0.1", n))
        for n in (8080, 9090)
    )
    return Workload(
        uid=f"u{i}",
        namespace=f"ns{i % 5}",
        name=f"pod-{i}",
        service_account=f"sa{i % 20}",
        address=address,
        labels={"app": f"app{i % 10}"},
        ports=ports,
    )


def policy(i: int, path: str = "/api") -> Policy:
    """A policy of three rules with everything that people usually write."""
    rule = {
        "from": [{"source": {"principals": [f"cluster.local/ns/ns{i % 5}/sa/sa{j}" for j in range(4)]}}],
        "to": [{"operation": {"methods": ["GET", "POST"], "paths": [f"{path}/{i}/*", "/health"]}}],
        "when": [{"key": "request.headers[x-tenant]", "values": ["a", "b*"]}],
    }
    spec = {
        "action": "DENY" if i % 4 == 0 else "ALLOW",
        "selector": {"matchLabels": {"app": f"app{i % 10}"}},
        "rules": [rule, rule | {"to": [{"operation": {"ports": ["8080"]}}]}, {"from": rule["from"]}],
    }
    return parsed(authz(spec, name=f"p{i}", namespace=f"ns{i % 5}"))


def rows() -> Iterator[Row]:
    """Row 15 of the goals, and what an edit costs on a full node."""
    policies = [policy(i) for i in range(POLICIES)]
    pods = [workload(i) for i in range(PODS)]
    cold, edited, warm = [], [], []
    for round_ in range(ROUNDS):
        fresh = [policy(i) for i in range(POLICIES)]  # nothing remembered from another round
        cache, rules = RenderCache(), PolicySet(tuple(fresh))
        cold.append(_compile(pods, rules, cache))
        fresh[0] = policy(0, f"/edit{round_}")
        edited.append(_compile(pods, PolicySet(tuple(fresh), previous=rules), cache))
        warm.append(_compile(pods, rules, cache))
    per_pod = f"{PODS} pods, {POLICIES} policies"
    yield at_most(f"one policy edited / all compiled, {per_pod}", edited, cold, "ms", 0.5)
    yield at_most(f"nothing changed / all compiled, {per_pod}", warm, cold, "ms", 0.1)
    yield _cached(policies)


def _compile(pods: list[Workload], rules: PolicySet, cache: RenderCache) -> float:
    started = time.process_time()
    for pod in pods:
        effective = resolve(rules, pod, MESH, key_sets={}, fallback_jwks=FALLBACK)
        render(ProxyInput(workload=pod, policy=effective, services=(), mesh=MESH), cache)
    return (time.process_time() - started) * 1000


def _cached(policies: list[Policy]) -> Row:
    """1,000 listeners that share one policy, against building each anew."""
    rules = PolicySet(tuple(policies[:8]))
    pods = [workload(i) for i in range(1000)]
    effective = resolve(rules, pods[0], MESH, key_sets={}, fallback_jwks=FALLBACK)
    inputs = [ProxyInput(workload=pod, policy=effective, services=(), mesh=MESH) for pod in pods]
    cold, cached = [], []
    for _ in range(ROUNDS):
        started = time.process_time()
        for one in inputs[:100]:
            render(one, RenderCache())
        cold.append((time.process_time() - started) * 1e6 / 100)
        cache = RenderCache()
        for one in inputs:
            render(one, cache)
        started = time.process_time()
        for one in inputs:
            render(one, cache)
        cached.append((time.process_time() - started) * 1e6 / len(inputs))
    return at_most("configuration of a pod, unchanged policy / anew", cached, cold, "us", 0.1)
