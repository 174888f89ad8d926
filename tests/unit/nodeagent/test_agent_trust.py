"""The agent as a whole and the bundle: with a token of its own it asks, without one it does as ever."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from mesh._proto import trust_pb2
from mesh.x509.bundles import bundle_digest
from nodeagent.agent import Agent
from nodeagent.core import trust
from nodeagent.core.trust import Verdict
from nodeagent.files import DirectoryState
from tests.fakes.ca_factory import Hierarchy, make_hierarchy
from tests.fakes.nodeagent_tree import NodeagentTree, nodeagent_workload
from tests.fakes.nodeagent_wait import nodeagent_until
from tests.unit.nodeagent.test_agent import get, served, status_of

pytestmark = pytest.mark.asyncio


@pytest.fixture
def tree(tmp_path: Path) -> NodeagentTree:
    made = NodeagentTree(tmp_path)
    made.write("a.yaml", nodeagent_workload("web", 8080) + nodeagent_workload("api", 8090))
    made.ca.answer.poll_after_ms = 1000
    return made


@asynccontextmanager
async def running(tree: NodeagentTree, *, syncs: bool = True) -> AsyncIterator[Agent]:
    async with tree.ca.serve() as port:
        agent = Agent(tree.configure(port, syncs=syncs))
        stop = asyncio.Event()
        async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
            task = tasks.create_task(agent.run(stop))
            try:
                await nodeagent_until(lambda: served(agent, "demo/web") and served(agent, "demo/api"))
                yield agent
            finally:
                stop.set()
                await task


def roots_of(agent: Agent, uid: str) -> tuple[bytes, ...]:
    bundle = agent.running[uid].cache.snapshot.identity.bundle
    return bundle.roots_der if bundle is not None else ()


def tell(tree: NodeagentTree, generation: int, epoch: int, *hierarchies: Hierarchy, within: int = 0) -> None:
    tree.ca.answer = trust_pb2.SyncResponse(
        roots=[h.roots_pem for h in hierarchies],
        bundle_generation=generation,
        issuer_epoch=epoch,
        poll_after_ms=1000,
        renew_within_s=within,
    )


async def test_new_roots_are_handed_to_every_workload_and_nobody_asks_for_a_certificate(
    tree: NodeagentTree,
) -> None:
    first, second = tree.core.hierarchy, make_hierarchy(now=tree.core.clock.now())
    tell(tree, 1, 0, first)
    async with running(tree) as agent:
        assert "Bearer agent-token" in tree.ca.tokens
        serials = {uid: e.rotator.status().serial for uid, e in agent.running.items()}
        tell(tree, 2, 0, first, second)
        both = (first.root_der, second.root_der)
        await nodeagent_until(lambda: {roots_of(agent, uid) for uid in agent.running} == {both})
        assert {uid: e.rotator.status().serial for uid, e in agent.running.items()} == serials
        await nodeagent_until(lambda: tree.ca.told[-1].bundle_digest == bundle_digest(both))
        report = tree.ca.told[-1]
        assert (report.workloads, report.pending, report.refused) == (2, 2, 0), "no proxy yet: maybe later"
        assert sorted(report.waiting_for) == ["demo/api", "demo/web"]
        status = await status_of(agent)
        assert (status["trust"]["generation"], status["trust"]["pending"]) == (2, 2)
        assert {w["bundle"] for w in status["workloads"]} == {"pending"}
        assert {w["bundle_generation"] for w in status["workloads"]} == {2}
        _, page = await get(agent, "/identities")
        (one, other) = json.loads(page)["workloads"]
        assert one["bundle_digest"] == other["bundle_digest"] == bundle_digest(both)
        assert (one["bundle_generation"], one["epoch"]) == (2, 0)
        _, page = await get(agent, "/metrics")
        assert "gatehouse_agent_bundle_generation 2.0" in page
        assert "gatehouse_agent_bundle_pending_workloads 2.0" in page
        assert 'gatehouse_agent_trust_syncs_total{result="ok"}' in page
        # A workload that comes now begins with both, although its certificate's reply has one.
        tree.ca.more = (("gatehouse-bundle-generation", "1"),)
        tree.write("b.yaml", nodeagent_workload("late", 8070))
        await nodeagent_until(lambda: served(agent, "demo/late"))
        assert roots_of(agent, "demo/late") == both


async def test_nothing_is_acknowledged_before_the_agent_has_read_its_workloads(tree: NodeagentTree) -> None:
    tell(tree, 1, 0, tree.core.hierarchy)
    read = asyncio.Event()
    async with tree.ca.serve() as port:
        agent = Agent(tree.configure(port, syncs=True))
        real, stop = agent._source, asyncio.Event()

        class Slow:
            async def run(self, apply: Callable[[DirectoryState], None]) -> None:
                await read.wait()
                await real.run(apply)

        agent._source = Slow()
        async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
            task = tasks.create_task(agent.run(stop))
            try:
                await nodeagent_until(lambda: len(tree.ca.told) >= 2)
                assert {(r.bundle_digest, r.workloads) for r in tree.ca.told} == {("", 0)}
                read.set()
                await nodeagent_until(lambda: tree.ca.told[-1].workloads == 2)
                assert {r.workloads for r in tree.ca.told if r.bundle_digest} == {2}
            finally:
                stop.set()
                await task


async def test_workloads_without_a_proxy_are_acknowledged_after_a_while(
    tree: NodeagentTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trust, "ABSENT_AFTER", 1.5)
    tell(tree, 1, 0, tree.core.hierarchy)
    async with running(tree) as agent:
        await nodeagent_until(lambda: bool(tree.ca.told) and tree.ca.told[-1].workloads == 2)
        await nodeagent_until(lambda: tree.ca.told[-1].pending == 0)
        assert {e.fact().verdict for e in agent.running.values()} == {Verdict.ACCEPTED}


async def test_a_taint_has_certificates_renewed_once(tree: NodeagentTree) -> None:
    tree.ca.more = (("gatehouse-issuer-epoch", "1"), ("gatehouse-bundle-generation", "1"))
    tell(tree, 1, 1, tree.core.hierarchy)
    async with running(tree) as agent:
        assert {e.rotator.status().epoch for e in agent.running.values()} == {1}
        tree.ca.more = (("gatehouse-issuer-epoch", "2"), ("gatehouse-bundle-generation", "2"))
        tell(tree, 2, 2, tree.core.hierarchy, within=1)
        await nodeagent_until(lambda: {e.rotator.status().epoch for e in agent.running.values()} == {2})
        calls = len(tree.ca.told)
        await nodeagent_until(lambda: len(tree.ca.told) > calls + 1)
        assert [e.rotator.status().issued for e in agent.running.values()] == [2, 2]
        assert tree.ca.told[-1].outdated == 0


async def test_without_a_token_of_its_own_the_agent_asks_nobody(tree: NodeagentTree) -> None:
    first, second = tree.core.hierarchy, make_hierarchy(now=tree.core.clock.now())
    async with running(tree, syncs=False) as agent:
        assert agent.trust is None
        assert (await status_of(agent))["trust"] is None
        web, api = agent.running["demo/web"], agent.running["demo/api"]
        assert web.rotator.trust is not api.rotator.trust, "each has what came with its certificate"
        tree.core.forge = lambda chain: [*chain[:-1], first.roots_pem + second.roots_pem]
        web.rotator._rotation.hurry("test", 0.0, 0.0)
        web.rotator.wake()
        await nodeagent_until(lambda: len(roots_of(agent, "demo/web")) == 2)
        assert len(roots_of(agent, "demo/api")) == 1
    assert tree.ca.told == []
