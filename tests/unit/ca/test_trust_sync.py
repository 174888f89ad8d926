"""The Sync API over real TLS, with a fake API server: callers, hostile messages, and the leader's count."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from ca.agent_sharing import CONFIG_MAP
from ca.authn import AuthnCode
from ca.core.acknowledged import ClaimCode
from ca.grpc_server import EPOCH_KEY, GENERATION_KEY
from ca.trust_handler import METHOD
from ca.trust_service import SyncCode
from mesh.clock import SystemClock
from mesh.x509.bundles import bundle_digest
from mesh.x509.pem import decode_certificates
from tests.fakes.ca_cluster import NAMESPACE, RunningClusterCa, cluster_ca, pod, prepare, until
from tests.fakes.ca_factory import key_pem, make_hierarchy, new_key
from tests.fakes.ca_running import audit_lines, make_csr, running_ca
from tests.fakes.ca_sync import AGENT_CLAIMS, AGENT_UID, AGENTS, agent_pod, sync
from tests.fakes.kube_api import FakeKube

S = grpc.StatusCode
OTHER_UID = "aaaaaaaa-0000-4000-8000-0000000000a2"


@pytest.fixture
def kube() -> Iterator[FakeKube]:
    with FakeKube() as server:
        prepare(server)
        server.add({"kind": "ConfigMap", "metadata": {"name": CONFIG_MAP, "namespace": NAMESPACE}})
        server.add(pod(), agent_pod())
        yield server


def ready(ca: RunningClusterCa) -> None:
    until(lambda: ca.runtime.health.ready().ok, "ready")


def test_an_agent_hears_of_the_roots_and_the_leader_counts_it(kube: FakeKube, tmp_path: Path) -> None:
    with cluster_ca(kube, tmp_path, cluster__agents=AGENTS) as ca:
        ready(ca)
        runtime = ca.runtime
        assert runtime.cluster is not None
        answer, told = sync(ca.client(), [ca.token(**AGENT_CLAIMS)])
        assert answer.ok, answer.text
        roots = [der for text in told.roots for der in decode_certificates(text)]
        assert tuple(roots) == runtime.keystore.roots
        assert "gatehouse-server-time-ms" in answer.trailers
        assert 1000 <= told.poll_after_ms <= 60_000
        digest = bundle_digest(roots)

        def counts() -> Any:
            return runtime.cluster.agents.counts(digest, 0, runtime.clock.now())

        assert (counts().expected, counts().acked, counts().missing) == (
            1,
            0,
            ("node-17: has no bundle yet",),
        )
        answer, told = sync(ca.client(), [ca.token(**AGENT_CLAIMS)], bundle_digest=digest, workloads=2)
        assert answer.ok
        assert told.poll_after_ms in {2000, 60_000}, "within a second of the last look"
        assert counts().acked == 1
        until(lambda: "data" in (kube.find("ConfigMap", CONFIG_MAP, NAMESPACE) or {}), "shared")
        assert AGENT_UID in str(kube.find("ConfigMap", CONFIG_MAP, NAMESPACE))
        runtime.refresh_gauges()
        assert runtime.registry.get_sample_value("gatehouse_ca_trust_syncs_total") == 2


@pytest.mark.parametrize(
    ("agents", "claims", "status", "code"),
    [
        pytest.param("", AGENT_CLAIMS, S.PERMISSION_DENIED, SyncCode.NO_AGENTS, id="nobody may"),
        pytest.param(AGENTS, {}, S.PERMISSION_DENIED, SyncCode.NOT_AN_AGENT, id="a workload's token"),
        pytest.param(
            "demo/web", AGENT_CLAIMS, S.PERMISSION_DENIED, SyncCode.NOT_AN_AGENT, id="another account is set"
        ),
        pytest.param(
            AGENTS,
            {**AGENT_CLAIMS, "namespace": "demo"},
            S.UNAVAILABLE,
            AuthnCode.POD_UNKNOWN,
            id="the same name in another namespace, without such a pod",
        ),
        pytest.param(
            AGENTS,
            {**AGENT_CLAIMS, "uid": OTHER_UID},
            S.UNAUTHENTICATED,
            AuthnCode.POD_OTHER,
            id="another UID",
        ),
        pytest.param(
            AGENTS,
            {**AGENT_CLAIMS, "pod": "agent-2", "uid": OTHER_UID},
            S.UNAUTHENTICATED,
            AuthnCode.POD_GONE,
            id="ended pod",
        ),
        pytest.param(
            AGENTS,
            {**AGENT_CLAIMS, "kubernetes.io": None},
            S.UNAUTHENTICATED,
            AuthnCode.TOKEN_NOT_POD_BOUND,
            id="not bound to a pod",
        ),
        pytest.param(
            AGENTS,
            {**AGENT_CLAIMS, "aud": ["kubernetes"]},
            S.UNAUTHENTICATED,
            AuthnCode.TOKEN_AUDIENCE,
            id="aud",
        ),
    ],
)
def test_who_may_not_ask(
    kube: FakeKube, tmp_path: Path, agents: str, claims: dict[str, Any], status: S, code: str
) -> None:
    kube.add(agent_pod("agent-2", uid=OTHER_UID, phase="Failed"))
    with cluster_ca(kube, tmp_path, cluster__agents=agents) as ca, audit_lines() as lines:
        ready(ca)
        answer, _ = sync(ca.client(), [ca.token(**claims)])
        until(lambda: lines, "audited")
        assert answer.code is status
        assert answer.reason == ("" if status is S.UNAUTHENTICATED else code)
        assert [(line["decision"], str(line["code"]), line["hostile"]) for line in lines] == [
            ("refused", code, False)
        ]
        assert ca.runtime.cluster is not None
        assert ca.runtime.cluster.agents.own(ca.runtime.clock.now()) == ()
        found = ca.runtime.registry.get_sample_value
        category = {S.PERMISSION_DENIED: "permission_denied", S.UNAVAILABLE: "unavailable"}.get(
            status, "unauthenticated"
        )
        assert found("gatehouse_ca_refused_total", {"code": code, "category": category}) == 1


def test_the_same_account_name_in_another_namespace(kube: FakeKube, tmp_path: Path) -> None:
    kube.add(pod("fake-agent", uid=OTHER_UID, account="gatehouse-nodeagent"))
    claims = {**AGENT_CLAIMS, "namespace": "demo", "pod": "fake-agent", "uid": OTHER_UID}
    with cluster_ca(kube, tmp_path, cluster__agents=AGENTS) as ca:
        ready(ca)
        answer, _ = sync(ca.client(), [ca.token(**claims)])
    assert (answer.code, answer.reason) == (S.PERMISSION_DENIED, SyncCode.NOT_AN_AGENT)
    assert "spiffe://cluster.local/ns/demo/sa/gatehouse-nodeagent may not ask" in answer.text


def test_a_client_certificate_alone_speaks_for_no_node(kube: FakeKube, tmp_path: Path) -> None:
    overrides = {"cluster__agents": AGENTS, "listen__mtls": "127.0.0.1:0"}
    with cluster_ca(kube, tmp_path, **overrides) as ca:
        ready(ca)
        key = new_key()
        issued = ca.client().create([ca.token(**AGENT_CLAIMS)], make_csr(key))
        chain = "".join(issued.chain[:-1]).encode()
        with_certificate = ca.client(key=key_pem(key).encode(), chain=chain)
        answer, _ = sync(with_certificate, [])
        assert (answer.code, answer.reason) == (S.PERMISSION_DENIED, SyncCode.NO_POD)
        assert sync(with_certificate, [ca.token(**AGENT_CLAIMS)])[0].ok, "with a token it does"


HOSTILE = [
    pytest.param(b"\x32\x03a/b" * 4000, ClaimCode.TOO_LARGE, id="huge"),
    pytest.param(b"\x32\x03a/b" * 21, ClaimCode.NAMES, id="too many names"),
    pytest.param(b"\x0a\x02\xff\xfe", ClaimCode.MALFORMED, id="not UTF-8"),
    pytest.param(b"\x18" + b"\xff" * 9 + b"\x01", ClaimCode.COUNT, id="workloads -1"),
]


def test_hostile_messages_and_no_message(kube: FakeKube, tmp_path: Path) -> None:
    with cluster_ca(kube, tmp_path, cluster__agents=AGENTS, limits__receive_wait="300ms") as ca:
        ready(ca)
        client, token = ca.client(), ca.token(**AGENT_CLAIMS)
        for case in HOSTILE:
            answer, _ = sync(client, [token], case.values[0])
            assert (answer.code, answer.reason) == (S.INVALID_ARGUMENT, case.values[1])
        beyond, _ = sync(client, [token], b"\x0a" + b"\x00" * 70_000)
        assert beyond.code is S.RESOURCE_EXHAUSTED, "gRPC's own bound"
        silent = client.channel.stream_unary(METHOD)
        with pytest.raises(grpc.RpcError) as nothing:
            silent(iter(()), metadata=[token], timeout=10)
        assert nothing.value.code() is S.INVALID_ARGUMENT
        assert ca.runtime.cluster is not None
        assert ca.runtime.cluster.agents.own(ca.runtime.clock.now()) == ()


def test_without_a_cluster_nobody_may_ask(tmp_path: Path) -> None:
    with running_ca(tmp_path) as ca:
        answer, _ = sync(ca.client(), [ca.token()])
    assert (answer.code, answer.reason) == (S.PERMISSION_DENIED, SyncCode.NO_AGENTS)


def test_syncs_take_nothing_from_the_budget_of_certificates(kube: FakeKube, tmp_path: Path) -> None:
    overrides = {"cluster__agents": AGENTS, "limits__caller_burst": 1, "limits__caller_rate": 0.01}
    with cluster_ca(kube, tmp_path, **overrides) as ca:
        ready(ca)
        client, token = ca.client(), ca.token(**AGENT_CLAIMS)
        answers = [sync(client, [token])[0] for _ in range(15)]
        assert answers[0].ok
        assert answers[-1].reason == "limit_caller_rate"
        assert answers[-1].retry_seconds > 0
        assert client.create([token], ca.csr()).ok


def test_trouble_with_the_config_map_is_a_warning(kube: FakeKube, tmp_path: Path) -> None:
    kube.fail(403, times=1000, path=".*" + CONFIG_MAP)
    with cluster_ca(kube, tmp_path, cluster__agents=AGENTS) as ca:
        ready(ca)
        until(lambda: CONFIG_MAP in ca.runtime.health.ready().text(), "named")
        assert ca.runtime.health.ready().ok
        assert sync(ca.client(), [ca.token(**AGENT_CLAIMS)])[0].ok
        assert ca.client().create([ca.token()], ca.csr()).ok


def test_a_plugged_in_ca_counts_its_agents_too(kube: FakeKube, tmp_path: Path) -> None:
    plugged = tmp_path / "plugged"
    plugged.mkdir()
    first, second = make_hierarchy(now=SystemClock().now()), make_hierarchy(now=SystemClock().now())
    first.write_cacerts(plugged)
    overrides = {"cluster__agents": AGENTS, "ca_dir": str(plugged), "multi_root": "true"}
    with cluster_ca(kube, tmp_path, **overrides) as ca:
        ready(ca)
        client, token = ca.client(), ca.token(**AGENT_CLAIMS)
        assert [len(sync(client, [token])[1].roots), len(sync(client, [token])[1].roots)] == [1, 1]
        (plugged / "root-cert.pem").write_text(first.roots_pem + second.roots_pem)
        until(lambda: len(ca.runtime.keystore.roots) == 2, "reloaded")
        _, told = sync(client, [token], bundle_digest=bundle_digest(first.roots), workloads=1)
        assert (len(told.roots), told.bundle_generation, told.issuer_epoch) == (2, 0, 0)
        assert told.poll_after_ms == 2000


# --- the trailers of certificates ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("generation", "epoch", "trailers"),
    [
        (0, 0, {}),
        (3, 0, {GENERATION_KEY: "3"}),
        (12, 5, {GENERATION_KEY: "12", EPOCH_KEY: "5"}),
    ],
)
def test_certificates_say_which_bundle_and_root_they_came_with(
    kube: FakeKube, tmp_path: Path, generation: int, epoch: int, trailers: dict[str, str]
) -> None:
    with cluster_ca(kube, tmp_path, reload_interval="1h") as ca:
        until(lambda: ca.runtime.cluster and ca.runtime.cluster.pods.synced, "pods")
        held = ca.runtime._authority.issuer
        numbered = dataclasses.replace(held, generation=generation, epoch=epoch)
        ca.runtime.keystore.issuer = lambda _now: numbered  # type: ignore[method-assign]  # as a rotation would
        found = ca.client().create([ca.token()], ca.csr())
        assert found.ok
        assert {k: v for k, v in found.trailers.items() if k in {GENERATION_KEY, EPOCH_KEY}} == trailers
        refused = ca.client().create([], ca.csr())
        assert GENERATION_KEY not in refused.trailers
