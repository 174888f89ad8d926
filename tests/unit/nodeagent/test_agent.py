"""The agent as a whole: real files, real sockets, real gRPC and TLS to the authority's code."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from mesh.envoy.resources import LISTENER, SDS_SVID, SECRET
from mesh.errors import Category
from nodeagent.agent import Agent
from nodeagent.config import Listen
from nodeagent.status_client import StatusCode, StatusError, fetch_status
from nodeagent.workloads import socket_directory
from tests.fakes.nodeagent_tree import NodeagentTree, nodeagent_workload
from tests.fakes.nodeagent_wait import nodeagent_until

pytestmark = pytest.mark.asyncio
DENY = (
    "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n"
    "metadata: {namespace: demo, name: deny}\nspec: {action: DENY, rules: [{}]}\n"
)


@pytest.fixture
def tree(tmp_path: Path) -> NodeagentTree:
    return NodeagentTree(tmp_path)


@asynccontextmanager
async def running(tree: NodeagentTree, *, ca: bool = True, listen: str = "127.0.0.1:0"):
    async with tree.ca.serve() as port:
        agent = Agent(tree.configure(port if ca else 1, listen))
        stop = asyncio.Event()
        async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
            task = tasks.create_task(agent.run(stop))
            try:
                await nodeagent_until(lambda: agent.revision > 0)
                yield agent
            finally:
                stop.set()
                await task


def served(agent: Agent, uid: str) -> bool:
    entry = agent.running.get(uid)
    return entry is not None and entry.cache.snapshot.identity.svid is not None and entry.socket.path.exists()


async def test_a_directory_of_workloads_is_served(tree: NodeagentTree) -> None:
    tree.write("a.yaml", nodeagent_workload("web", 8080) + nodeagent_workload("api", 8090) + DENY)
    async with running(tree) as agent:
        await nodeagent_until(lambda: served(agent, "demo/web") and served(agent, "demo/api"))
        snapshot = agent.running["demo/web"].cache.snapshot
        assert snapshot.secrets.of_type(SECRET)[SDS_SVID]
        assert snapshot.config is not None
        assert len(snapshot.config.of_type(LISTENER)) == 1
        await nodeagent_until(lambda: agent.http.address and fetch_ok(agent))
    assert not (tree.base / "s" / "demo_web" / "agent.sock").exists()


def fetch_ok(agent: Agent) -> bool:
    agent.update_identities()
    return agent.health.ready().ok


async def status_of(agent: Agent) -> dict[str, object]:
    return await asyncio.to_thread(fetch_status, Listen.parse(agent.http.address))


async def get(agent: Agent, path: str, method: str = "GET") -> tuple[int, str]:
    host, _, port = agent.http.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"{method} {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
    answer = (await reader.read()).decode()
    writer.close()
    await writer.wait_closed()
    head, _, body = answer.partition("\r\n\r\n")
    return int(head.split()[1]), body


async def test_status_health_and_metrics(tree: NodeagentTree) -> None:
    tree.write("a.yaml", nodeagent_workload("web", 8080))
    tree.write("b.yaml", "]")
    async with running(tree) as agent:
        await nodeagent_until(lambda: served(agent, "demo/web"))
        status = await status_of(agent)
        (workload,) = status["workloads"]
        assert workload["workload"] == "demo/web"
        assert workload["state"] == "valid"
        assert workload["spiffe_id"] == "spiffe://cluster.local/ns/demo/sa/web"
        assert workload["socket"].endswith("/s/demo_web/agent.sock")
        assert (workload["issued"], workload["config_revision"], workload["refused"]) == (1, 1, [])
        assert [(f["place"], f["code"]) for f in status["findings"]] == [("b.yaml:1", "document_yaml")]
        assert (await get(agent, "/livez"))[0] == 200
        await nodeagent_until(lambda: fetch_ok(agent))
        assert await get(agent, "/readyz") == (200, "ok directory\nok identities\nok sockets\nok\n")
        code, text = await get(agent, "/metrics")
        assert code == 200
        assert 'gatehouse_agent_svid_remaining_seconds{workload="demo/web"}' in text
        assert 'gatehouse_agent_findings{severity="error"} 1.0' in text
        assert "gatehouse_agent_ready 1.0" in text
        assert "process_resident_memory_bytes" in text
        assert (await get(agent, "/status", "HEAD"))[1] == ""
        assert (await get(agent, "/nothing"))[0] == 404
        assert (await get(agent, "/status", "POST"))[0] == 405
        secret = agent.running["demo/web"].cache.snapshot.identity.svid.key_pkcs8
        assert secret.hex() not in json.dumps(status)
        code, text = await get(agent, "/identities")
        (identity,) = json.loads(text)["workloads"]
        assert (code, identity["workload"], identity["state"]) == (200, "demo/web", "valid")
        assert identity["chain"].count("BEGIN CERTIFICATE") == text.count("BEGIN") - identity["roots"].count(
            "BEGIN"
        )
        assert "KEY" not in text


async def test_an_agent_without_an_authority_serves_and_says_what_is_missing(tree: NodeagentTree) -> None:
    tree.write("a.yaml", nodeagent_workload("web", 8080))
    async with running(tree, ca=False) as agent:
        await nodeagent_until(lambda: agent.running["demo/web"].rotator.status().failures > 0)
        code, text = await get(agent, "/readyz")
        assert code == 503
        assert "failed identities: demo/web waiting (ca_unreachable)" in text
        assert (await get(agent, "/livez"))[0] == 200  # a restart would not help
        assert agent.running["demo/web"].cache.snapshot.config is not None


async def test_an_edit_is_applied_live(tree: NodeagentTree) -> None:
    tree.write("a.yaml", nodeagent_workload("web", 8080))
    async with running(tree) as agent:
        await nodeagent_until(lambda: served(agent, "demo/web"))
        entry = agent.running["demo/web"]
        issued = entry.rotator.status().issued
        tree.write("p.yaml", DENY)
        await nodeagent_until(lambda: entry.revision == 2)
        tree.write("a.yaml", nodeagent_workload("web", 8081))
        await nodeagent_until(lambda: entry.revision == 3)
        assert agent.running["demo/web"] is entry
        assert entry.rotator.status().issued == issued  # policy and ports are no reason for a new key
        assert entry.workload.ports[0].number == 8081


async def test_a_broken_edit_is_reported_and_cleared(tree: NodeagentTree) -> None:
    tree.write("p.yaml", DENY)
    async with running(tree) as agent:
        tree.write("p.yaml", DENY.replace("DENY", "DENNY"))
        await nodeagent_until(lambda: agent.findings)
        assert "stays in force" in agent.findings[0].message
        tree.write("p.yaml", DENY)
        await nodeagent_until(lambda: not agent.findings)


async def test_a_removed_workload_loses_socket_and_key(tree: NodeagentTree) -> None:
    tree.write("a.yaml", nodeagent_workload("web", 8080))
    tree.write("b.yaml", nodeagent_workload("api", 8090))
    async with running(tree) as agent:
        await nodeagent_until(lambda: served(agent, "demo/web") and served(agent, "demo/api"))
        entry = agent.running["demo/api"]
        (tree.docs / "b.yaml").unlink()
        await nodeagent_until(lambda: "demo/api" not in agent.running)
        assert not entry.socket.directory.exists()
        assert entry.cache.snapshot.identity.svid is None
        assert "demo/api" not in (await get(agent, "/metrics"))[1]
        assert served(agent, "demo/web")


@pytest.mark.parametrize("change", ["uid", "account"])
async def test_d4_another_uid_or_account_is_another_workload(tree: NodeagentTree, change: str) -> None:
    tree.write("a.yaml", nodeagent_workload("web", 8080, uid="one"))
    async with running(tree) as agent:
        await nodeagent_until(lambda: served(agent, "one"))
        entry = agent.running["one"]
        old_key = entry.cache.snapshot.identity.svid
        more = {"uid": {"uid": "two"}, "account": {"uid": "one", "account": "other"}}[change]
        tree.write("a.yaml", nodeagent_workload("web", 8080, **more))
        await nodeagent_until(lambda: agent.running.get(more["uid"]) not in {None, entry})
        assert entry.cache.snapshot.identity.svid is None
        fresh = agent.running[more["uid"]]
        await nodeagent_until(fresh.socket.path.exists)
        if change == "uid":
            await nodeagent_until(lambda: served(agent, "two"))
            assert fresh.cache.snapshot.identity.svid != old_key
        else:  # the token proves another account: the authority's certificate is for nobody here
            await nodeagent_until(lambda: fresh.rotator.status().failures > 0)
            assert fresh.cache.snapshot.identity.svid is None


async def test_f77_a_socket_directory_that_is_not_ours_stops_only_its_workload(tree: NodeagentTree) -> None:
    tree.write("a.yaml", nodeagent_workload("web", 8080) + nodeagent_workload("api", 8090))
    sockets = tree.base / "s"
    sockets.mkdir(mode=0o711)
    (sockets / socket_directory("demo", "api")).symlink_to(tree.base)
    async with running(tree) as agent:
        await nodeagent_until(lambda: served(agent, "demo/web"))
        await nodeagent_until(lambda: agent.running["demo/api"].problem is not None)
        code, text = await get(agent, "/readyz")
        assert code == 503
        assert "failed sockets: cannot be served: demo/api" in text
        (sockets / socket_directory("demo", "api")).unlink()
        await agent._check()
        assert agent.running["demo/api"].problem is None
        assert agent.running["demo/api"].socket.path.exists()


async def test_g08_a_socket_that_was_removed_is_made_again(tree: NodeagentTree) -> None:
    tree.write("a.yaml", nodeagent_workload("web", 8080))
    async with running(tree) as agent:
        await nodeagent_until(lambda: served(agent, "demo/web"))
        agent.running["demo/web"].socket.path.unlink()
        await agent._check()
        assert agent.running["demo/web"].socket.path.exists()


async def test_g08_what_a_killed_agent_left_is_swept(tree: NodeagentTree) -> None:
    tree.write("a.yaml", nodeagent_workload("web", 8080))
    sockets = tree.base / "s"
    sockets.mkdir(mode=0o711)
    (sockets / "demo_gone").mkdir()
    (sockets / "demo_gone" / ".gatehouse").touch()
    async with running(tree) as agent:
        await nodeagent_until(lambda: served(agent, "demo/web"))
        assert not (sockets / "demo_gone").exists()


async def test_status_over_a_unix_socket(tree: NodeagentTree) -> None:
    path = tree.base / "status.sock"
    async with running(tree, listen=f"unix:{path}") as agent:
        assert (await status_of(agent))["revision"] == 1
        assert path.stat().st_mode & 0o777 == 0o600
    assert not path.exists()
    with pytest.raises(StatusError) as caught:
        fetch_status(Listen.parse(f"unix:{path}"))
    assert (caught.value.code, caught.value.category) == (StatusCode.UNREACHABLE, Category.UNAVAILABLE)


async def test_a_page_that_fails_does_not_end_the_agent(tree: NodeagentTree) -> None:
    async with running(tree) as agent:
        agent._ca = None  # type: ignore[assignment]  # a fault that nobody foresaw
        try:
            assert (await get(agent, "/status"))[0] == 500
            with pytest.raises(StatusError) as caught:
                await status_of(agent)
            assert caught.value.code is StatusCode.UNEXPECTED
        finally:
            agent._ca = agent._shared.signer


async def test_garbage_on_the_status_port_is_answered_or_dropped(tree: NodeagentTree) -> None:
    async with running(tree) as agent:
        host, _, port = agent.http.address.rpartition(":")
        for garbage in (b"x\r\n\r\n", b"GET / HTTP/1.1\r\n" + b"a" * 20_000 + b"\r\n\r\n", b"\x00\xff"):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(garbage)
            writer.write_eof()
            answer = await reader.read()
            assert answer == b"" or answer.startswith(b"HTTP/1.1 400 ")
            writer.close()
        assert (await get(agent, "/livez"))[0] == 200
