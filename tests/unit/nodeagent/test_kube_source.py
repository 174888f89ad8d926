"""The agent in a cluster: a fake API server, a fake kubelet on real sockets, the authority's real code."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio
import pytest

from mesh._proto import csi_pb2 as csi
from mesh._proto import csi_pb2_grpc
from mesh.clock import SystemClock
from mesh.envoy.resources import CLUSTER, LISTENER
from mesh.spiffe import SpiffeId
from nodeagent.agent import CHECK_EVERY, Agent
from nodeagent.ca_client import CaCode
from nodeagent.config import AgentSettings, load_settings
from nodeagent.core.kube_world import KubeCode
from nodeagent.sockets import FINISHED_NAME, MARKER_NAME
from tests.fakes.csi_kubelet import (
    CSI_UID,
    CsiKubelet,
    csi_context,
    csi_request,
    csi_target,
    csi_tokens,
)
from tests.fakes.kube_api import FakeKube
from tests.fakes.kube_objects import kube_pod, kube_policy, kube_service, kube_slice
from tests.fakes.nodeagent_ca import NodeagentCa, NodeagentGrpcCa
from tests.fakes.nodeagent_wait import nodeagent_until
from tests.fakes.rights import compare

pytestmark = pytest.mark.asyncio
WEB = SpiffeId.parse("spiffe://cluster.local/ns/demo/sa/web")


@pytest.fixture
def kube() -> Iterator[FakeKube]:
    with FakeKube() as server:
        yield server


class CsiNode:
    """One node: kubelet, authority, configuration; agents come and go."""

    def __init__(self, base: Path, kube: FakeKube) -> None:
        self.base = base
        self.kube = kube
        self.kubelet = CsiKubelet(base / "kubelet")
        self.core = NodeagentCa(SystemClock(), WEB)
        self.ca = NodeagentGrpcCa(self.core)
        (base / "root.pem").write_text(self.core.hierarchy.roots_pem)
        kube.kubeconfig(base)
        self.target = csi_target(self.kubelet.pods)
        self.request = csi_request(self.target)
        self.place = Path(self.target)

    def settings(self, port: int, **more: str) -> AgentSettings:
        file = self.base / "agent.yaml"
        kubernetes = {
            "node_name": "node1",
            "kubeconfig": "kubeconfig",
            "kubelet_dir": "kubelet",
            "state_dir": "state",
            **more,
        }
        ca = {"address": f"127.0.0.1:{port}", "root_file": "root.pem", "server_name": "localhost"}
        whole = {
            "mode": "kubernetes",
            "listen": "127.0.0.1:0",
            "debounce": "10ms",
            "ca": ca,
            "kubernetes": kubernetes,
        }
        file.write_text(json.dumps(whole))
        return load_settings(file, {}, {})

    @asynccontextmanager
    async def agent(
        self, *, ca: bool = True, register: bool = True, kind: type[Agent] = Agent, **more: str
    ) -> AsyncIterator[Agent]:
        """An agent whose driver the kubelet has registered."""
        async with self.ca.serve() as port:
            agent = kind(self.settings(port if ca else 1, **more))
            stop = asyncio.Event()
            async with asyncio.timeout(40), asyncio.TaskGroup() as tasks:
                task = tasks.create_task(agent.run(stop))
                try:
                    if register:
                        await nodeagent_until(
                            (self.kubelet.registry / f"{self.kubelet.driver}-reg.sock").exists
                        )
                        assert await self.kubelet.register() == self.kubelet.endpoint()
                    yield agent
                finally:
                    stop.set()
                    await task

    def entry(self, agent: Agent):
        return agent.running.get(CSI_UID)

    def identified(self, agent: Agent) -> bool:
        entry = self.entry(agent)
        return entry is not None and entry.cache.snapshot.identity.svid is not None

    def configured(self, agent: Agent) -> bool:
        entry = self.entry(agent)
        return entry is not None and entry.cache.snapshot.config is not None

    def listeners(self, agent: Agent) -> dict[str, bytes]:
        config = self.entry(agent).cache.snapshot.config
        return {name: resource.body for name, resource in config.of_type(LISTENER).items()}

    def clusters(self, agent: Agent) -> set[str]:
        return set(self.entry(agent).cache.snapshot.config.of_type(CLUSTER))


@pytest.fixture
def node(short_dir: Path, kube: FakeKube) -> CsiNode:
    return CsiNode(short_dir, kube)


def cluster(kube: FakeKube) -> None:
    kube.add(kube_pod(uid=CSI_UID), kube_service(), kube_slice("web", ("10.0.0.1", "web")))


async def test_pods_that_come_together_are_not_all_checked_for_each_of_them(node: CsiNode) -> None:
    class Counting(Agent):
        checks = 0

        def update_identities(self) -> None:
            self.checks += 1

    async with node.agent(kind=Counting) as agent:
        started = asyncio.get_running_loop().time()
        for number in range(10):
            uid = f"{number:08d}-0d5c-4b5e-9a35-0c9f8f2f6a10"
            context = csi_context(pod__name=f"web-{number}", pod__uid=uid)
            request = csi_request(csi_target(node.kubelet.pods, uid), context, volume_id=uid)
            assert await node.kubelet.publish(request) == "OK"
        assert len(agent.running) == 10
        assert agent.checks <= 2 + (asyncio.get_running_loop().time() - started) / CHECK_EVERY


async def test_a_pod_from_publish_to_unpublish(node: CsiNode, kube: FakeKube) -> None:
    cluster(kube)
    async with node.agent() as agent:
        assert await node.kubelet.publish(node.request) == "OK"
        assert (node.place / "agent.sock").is_socket()
        assert (node.place / MARKER_NAME).exists()
        await nodeagent_until(lambda: node.identified(agent) and node.configured(agent))
        assert node.entry(agent).cache.snapshot.identity.svid.spiffe_id == WEB
        assert {"virtualInbound", "virtualOutbound", "0.0.0.0_80"} <= set(node.listeners(agent))
        assert "outbound|80||web.demo.svc.cluster.local" in node.clusters(agent)
        assert node.ca.tokens == ["Bearer tok-1"]
        assert agent.health.ready().ok
        assert await node.kubelet.unpublish("csi-1", node.target) == "OK"
        assert agent.running == {}
        assert not node.place.exists()
        assert await node.kubelet.unpublish("csi-1", node.target) == "OK"
    refused, unused = compare("nodeagent", kube.requests)
    assert refused == set()
    assert unused == set()


async def test_the_proxy_of_a_finished_job_is_told(node: CsiNode, kube: FakeKube) -> None:
    item = kube_pod(uid=CSI_UID)
    item["spec"]["restartPolicy"] = "Never"
    kube.add(item)
    async with node.agent() as agent:
        assert await node.kubelet.publish(node.request) == "OK"
        await nodeagent_until(lambda: node.configured(agent))
        assert not (node.place / FINISHED_NAME).exists()
        ended = [{"name": "app", "state": {"terminated": {"exitCode": 0}}}]
        item["status"]["containerStatuses"] = ended
        kube.add(item)
        await nodeagent_until((node.place / FINISHED_NAME).exists)
        assert await node.kubelet.unpublish("csi-1", node.target) == "OK"
        assert not node.place.exists(), "the kubelet removes empty directories only"


async def test_the_mount_never_waits_for_the_authority_nor_for_the_api_server(
    node: CsiNode, kube: FakeKube
) -> None:
    kube.stop()
    async with node.agent(ca=False) as agent:
        assert await node.kubelet.publish(node.request) == "OK"
        assert (node.place / "agent.sock").is_socket()
        await nodeagent_until(lambda: node.entry(agent).rotator.status().failures > 0)
        assert not node.configured(agent)
        assert not agent.health.ready().ok
        assert any("cluster" in reason for reason in agent.health.ready().reasons())


async def test_g01_configuration_comes_when_the_api_server_does(node: CsiNode, kube: FakeKube) -> None:
    cluster(kube)
    kube.stop()
    async with node.agent() as agent:
        assert await node.kubelet.publish(node.request) == "OK"
        await nodeagent_until(lambda: node.identified(agent))
        kube.restart()
        await nodeagent_until(lambda: node.configured(agent))
        await nodeagent_until(lambda: agent.health.ready().ok)


async def test_a_republished_token_ends_a_failure(node: CsiNode) -> None:
    async with node.agent() as agent:
        node.ca.script = [(grpc.StatusCode.UNAUTHENTICATED, "expired")] * 2
        assert await node.kubelet.publish(node.request) == "OK"
        await nodeagent_until(lambda: node.entry(agent).rotator.status().failures > 0)
        fresh = csi_request(node.target, csi_context(serviceAccount__tokens=csi_tokens("tok-2")))
        assert await node.kubelet.publish(fresh) == "OK"
        await nodeagent_until(lambda: node.identified(agent))
        assert node.ca.tokens[-1] == "Bearer tok-2"


@pytest.fixture
def memory() -> Iterator[str]:
    """A directory on tmpfs."""
    with tempfile.TemporaryDirectory(prefix="gh", dir="/dev/shm") as directory:
        yield f"{directory}/state"


async def test_g08_a_killed_agent_comes_back(node: CsiNode, kube: FakeKube, memory: str) -> None:
    """Sockets before the driver, identity from the kept token, configuration only from complete lists."""
    cluster(kube)
    async with node.agent(state_dir=memory) as agent:
        assert await node.kubelet.publish(node.request) == "OK"
        await nodeagent_until(lambda: node.configured(agent))
        before = node.place.stat().st_ino
    kube.stop()
    node.ca.tokens.clear()
    async with node.agent(state_dir=memory, register=False) as agent:
        await nodeagent_until(node.kubelet.endpoint().exists)
        assert (node.place / "agent.sock").is_socket()
        assert node.place.stat().st_ino == before
        await nodeagent_until(lambda: node.identified(agent))
        assert node.ca.tokens == ["Bearer tok-1"]
        assert not node.configured(agent)
        assert await node.kubelet.unpublish("csi-1", node.target) == "OK"


async def test_without_tmpfs_sockets_come_back_and_the_token_with_the_next_republish(node: CsiNode) -> None:
    async with node.agent():
        assert await node.kubelet.publish(node.request) == "OK"
    files = [file.read_bytes() for file in (node.base / "state").iterdir()]
    assert files
    assert b"tok-1" not in b"".join(files)
    async with node.agent() as agent:
        assert (node.place / "agent.sock").is_socket()
        await nodeagent_until(lambda: node.entry(agent).rotator.status().code == "token_missing")
        assert await node.kubelet.publish(node.request) == "OK"
        await nodeagent_until(lambda: node.identified(agent))


async def test_a_socket_that_was_removed_is_made_again_by_a_republish(node: CsiNode) -> None:
    async with node.agent():
        assert await node.kubelet.publish(node.request) == "OK"
        (node.place / "agent.sock").unlink()
        assert await node.kubelet.publish(node.request) == "OK"
        assert (node.place / "agent.sock").is_socket()


async def test_the_soft_drain_starts_with_the_deletion_timestamp(node: CsiNode, kube: FakeKube) -> None:
    cluster(kube)
    async with node.agent() as agent:
        assert await node.kubelet.publish(node.request) == "OK"
        await nodeagent_until(lambda: node.configured(agent))
        pod = kube_pod(uid=CSI_UID)
        pod["metadata"]["deletionTimestamp"] = dt.datetime.now(dt.UTC).isoformat()
        kube.add(pod)
        await nodeagent_until(lambda: node.entry(agent).workload.draining)
        assert "virtualInbound" in node.listeners(agent)


async def test_a_deleted_pod_keeps_its_configuration_until_it_is_unpublished(
    node: CsiNode, kube: FakeKube
) -> None:
    cluster(kube)
    async with node.agent() as agent:
        assert await node.kubelet.publish(node.request) == "OK"
        await nodeagent_until(lambda: node.configured(agent))
        before, revision = node.listeners(agent), agent.revision
        kube.remove("Pod", "web", "demo")
        await nodeagent_until(lambda: agent.revision > revision)
        assert node.listeners(agent)["virtualInbound"] == before["virtualInbound"]


async def test_policies_are_watched_and_their_mistakes_told(node: CsiNode, kube: FakeKube) -> None:
    cluster(kube)
    async with node.agent() as agent:
        assert await node.kubelet.publish(node.request) == "OK"
        await nodeagent_until(lambda: node.configured(agent))
        permissive = node.listeners(agent)["virtualInbound"]
        kube.add(kube_policy())
        await nodeagent_until(lambda: node.listeners(agent)["virtualInbound"] != permissive)
        strict = node.listeners(agent)["virtualInbound"]
        kube.add(kube_policy(mtls={"mode": "LOUD"}))
        await nodeagent_until(lambda: any("LOUD" in finding.message for finding in agent.findings))
        assert node.listeners(agent)["virtualInbound"] == strict
        kube.remove("PeerAuthentication", "strict", "demo")
        await nodeagent_until(lambda: node.listeners(agent)["virtualInbound"] == permissive)
        await nodeagent_until(lambda: agent.findings == ())


async def test_key_sets_are_watched(node: CsiNode, kube: FakeKube) -> None:
    async with node.agent() as agent:
        await nodeagent_until(lambda: agent.health.ready().ok)
        kube.add(
            {
                "kind": "ConfigMap",
                "metadata": {"namespace": "istio-system", "name": "gatehouse-jwks"},
                "data": {"keysets.json": "no"},
            }
        )
        await nodeagent_until(lambda: [f.code for f in agent.findings] == [KubeCode.KEY_SETS])


async def test_two_volumes_of_one_pod_are_served_apart(node: CsiNode) -> None:
    own = csi_request(csi_target(node.kubelet.pods, name="own"), volume_id="csi-2")
    async with node.agent() as agent:
        assert await node.kubelet.publish(node.request) == "OK"
        assert await node.kubelet.publish(own) == "OK"
        assert set(agent.running) == {CSI_UID, f"{CSI_UID}/own"}
        assert await node.kubelet.unpublish("csi-2", own.target_path) == "OK"
        assert set(agent.running) == {CSI_UID}


async def test_refusals_on_the_wire(node: CsiNode) -> None:
    bare = csi_request(node.target, csi_context(serviceAccount__tokens=""))
    async with node.agent() as agent:
        answer = await node.kubelet.publish(bare)
        assert answer.startswith("FAILED_PRECONDITION: ")
        assert "static pods" in answer
        assert answer.endswith("[csi_no_token]")
        assert (await node.kubelet.unpublish("", node.target)).startswith("INVALID_ARGUMENT: volume_id")
        assert await node.kubelet.publish(node.request) == "OK"
        assert (await node.kubelet.publish(bare)).startswith("UNAVAILABLE: the volume stays as it is")
        counts = {
            (sample.labels["call"], sample.labels["result"]): sample.value
            for metric in agent.metrics.registry.collect()
            if metric.name == "gatehouse_agent_csi_calls"
            for sample in metric.samples
            if sample.name.endswith("_total")
        }
        assert counts == {
            ("publish", "csi_no_token"): 2,
            ("unpublish", "csi_volume_id"): 1,
            ("publish", "ok"): 1,
        }


async def test_what_the_kubelet_asks_a_driver(node: CsiNode) -> None:
    async with node.agent(), grpc.aio.insecure_channel(f"unix:{node.kubelet.endpoint()}") as channel:
        identity = csi_pb2_grpc.IdentityStub(channel)  # type: ignore[no-untyped-call]  # generated
        calls = csi_pb2_grpc.NodeStub(channel)  # type: ignore[no-untyped-call]  # generated
        info = await identity.GetPluginInfo(csi.GetPluginInfoRequest())
        assert (info.name, bool(info.vendor_version)) == ("csi.gatehouse.dev", True)
        assert (await identity.Probe(csi.ProbeRequest())).ready.value
        await identity.GetPluginCapabilities(csi.GetPluginCapabilitiesRequest())
        await calls.NodeGetCapabilities(csi.NodeGetCapabilitiesRequest())
        assert (await calls.NodeGetInfo(csi.NodeGetInfoRequest())).node_id == "node1"
        stage = channel.unary_unary("/csi.v1.Node/NodeStageVolume")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stage(b"")
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_refused_registration_is_not_ready(node: CsiNode) -> None:
    async with node.agent() as agent:
        await node.kubelet.register(accept=False)
        assert "driver: version is not supported" in agent.health.ready().reasons()
        await node.kubelet.register()
        await nodeagent_until(lambda: agent.health.ready().ok)


async def test_sockets_are_for_root_and_go_with_the_agent(node: CsiNode) -> None:
    async with node.agent():
        for path in (node.kubelet.endpoint(), node.kubelet.registry / "csi.gatehouse.dev-reg.sock"):
            assert path.stat().st_mode & 0o777 == 0o600
    assert not node.kubelet.endpoint().parent.exists()
    assert list(node.kubelet.registry.iterdir()) == []


async def test_without_the_kubelets_directory_the_agent_says_so(node: CsiNode) -> None:
    agent = Agent(node.settings(1, kubelet_dir="nowhere"))
    with pytest.raises(BaseExceptionGroup) as caught:
        async with asyncio.timeout(20):
            await agent.run(asyncio.Event())
    assert "kubernetes.kubelet_dir" in str(caught.value.exceptions)
    assert not (node.base / "nowhere").exists()


async def test_an_authority_that_fails_is_no_reason_to_be_unready(node: CsiNode) -> None:
    async with node.agent(ca=False) as agent:
        assert await node.kubelet.publish(node.request) == "OK"
        await nodeagent_until(lambda: node.entry(agent).rotator.status().code == CaCode.UNREACHABLE)
        await nodeagent_until(lambda: agent.health.ready().ok)


async def test_a_known_volume_that_cannot_be_served_does_not_stop_the_others(
    node: CsiNode, caplog: pytest.LogCaptureFixture
) -> None:
    own = csi_request(csi_target(node.kubelet.pods, name="own"), volume_id="csi-2")
    async with node.agent():
        assert await node.kubelet.publish(node.request) == "OK"
        assert await node.kubelet.publish(own) == "OK"
    node.place.chmod(0o777)
    async with node.agent() as agent:
        assert "a known volume is not served" in caplog.text
        assert agent.running[f"{CSI_UID}/own"].problem is None
        assert (await node.kubelet.publish(node.request)).startswith("UNAVAILABLE: ")
        node.place.chmod(0o755)
        assert await node.kubelet.publish(node.request) == "OK"


async def test_a_cluster_without_endpoint_slices_is_said(
    short_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with FakeKube() as kube:
        kube.resources = [resource for resource in kube.resources if resource.kind != "EndpointSlice"]
        node = CsiNode(short_dir, kube)
        async with node.agent() as agent:
            await nodeagent_until(lambda: "the cluster cannot be watched" in caplog.text)
            await nodeagent_until(lambda: "EndpointSlices" in " ".join(agent.health.ready().reasons()))
            assert await node.kubelet.publish(node.request) == "OK"


async def test_a_list_that_is_forbidden_is_named(node: CsiNode, kube: FakeKube) -> None:
    fault = kube.fail(403, times=1000, path="/api/v1/pods.*")
    async with node.agent() as agent:

        def only_pods() -> bool:
            reasons = " ".join(agent.health.ready().reasons())
            return "pods (" in reasons and "services" not in reasons

        await nodeagent_until(only_pods)
        fault.times = 0


async def test_watches_are_counted(node: CsiNode, kube: FakeKube) -> None:
    async with node.agent() as agent:
        await nodeagent_until(lambda: agent.health.ready().ok)
        kube.add(kube_pod("other"))
        read = agent.metrics.registry.get_sample_value
        labels = {"resource": "pods"}
        await nodeagent_until(lambda: read("gatehouse_agent_watch_events_total", labels))
        assert read("gatehouse_agent_watch_lists_total", labels) == 1
        assert read("gatehouse_agent_volumes") == 0
