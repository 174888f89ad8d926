"""`meshctl identity --agent` against the real agent: the contract between the two, held from both sides."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from nodeagent.agent import Agent
from nodeagent.core.snapshot import Svid
from tests.fakes.meshctl_cli import ctl
from tests.fakes.nodeagent_tree import NodeagentTree, nodeagent_workload
from tests.fakes.nodeagent_wait import nodeagent_until


def svid(agent: Agent) -> Svid | None:
    entry = agent.running.get("demo/web")
    return entry.cache.snapshot.identity.svid if entry is not None else None


@pytest.mark.asyncio
async def test_the_real_agent(tmp_path: Path) -> None:
    tree = NodeagentTree(tmp_path)
    tree.write("a.yaml", nodeagent_workload("web", 8080))
    async with tree.ca.serve() as port:
        agent = Agent(tree.configure(port))
        stop = asyncio.Event()
        async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
            task = tasks.create_task(agent.run(stop))
            try:
                await nodeagent_until(lambda: svid(agent) is not None)
                url = f"http://{agent.http.address}"
                ran = await asyncio.to_thread(ctl, "identity", "-n", "demo", "web", "--agent", url)
                data = await asyncio.to_thread(
                    ctl, "identity", "-n", "demo", "web", "--agent", url, "-o", "json"
                )
                snapshot = svid(agent)
            finally:
                stop.set()
                await task
    assert snapshot is not None
    assert ran.code == 0
    assert ran.out.startswith("demo/web: valid\n  spiffe://cluster.local/ns/demo/sa/web\n  ends in ")
    assert f"[serial {snapshot.serial}]" in ran.out
    found = json.loads(data.out)
    assert (found["state"], found["issued"], found["failures"]) == ("valid", 1, 0)
    assert found["chain"][0]["serial"] == snapshot.serial
    assert found["renew_at"] < found["chain"][0]["not_after"]
