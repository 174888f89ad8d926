"""A root is added at the real authority: the real agent hands it to a real Envoy and reports who has it.

Everything is real but the API server. Where the CA is plugged in, a root is added by writing a file; in the
last test the authority rotates a root of its own.
"""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import json
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from ca.agent_sharing import CONFIG_MAP
from ca.rotator import rotation_of
from mesh.ca_status import REQUEST_ANNOTATION, AgentCounts, Phase, Step
from mesh.clock import SystemClock
from mesh.envoy.resources import SDS_ROOTS, Resource
from mesh.envoy.secrets import roots_secret
from mesh.kube.api import PatchType
from mesh.x509.bundles import bundle_digest
from nodeagent.agent import Agent
from nodeagent.config import load_settings
from nodeagent.core import trust
from nodeagent.status import status_of
from tests.fakes.ca_cluster import NAMESPACE, RunningClusterCa, cluster_ca, pod, prepare
from tests.fakes.ca_factory import DAY, Hierarchy, make_hierarchy
from tests.fakes.ca_sync import AGENT_CLAIMS, AGENTS, agent_pod
from tests.fakes.envoy_process import EnvoyProcess
from tests.fakes.kube_api import FakeKube
from tests.fakes.nodeagent_tree import nodeagent_workload
from tests.interop.test_sds_envoy import FORMS, bootstrap

DEADLINE = 40.0
pytestmark = [pytest.mark.asyncio, pytest.mark.envoy]


@dataclass
class Mesh:
    """One node: an authority, an agent with one workload, and its Envoy."""

    kube: FakeKube
    ca: RunningClusterCa
    agent: Agent
    envoy: EnvoyProcess
    plugged: Path
    first: Hierarchy
    second: Hierarchy

    async def until(self, what: str, condition: Callable[[], object]) -> None:
        try:
            async with asyncio.timeout(DEADLINE):
                while not await asyncio.to_thread(condition):  # noqa: ASYNC110 - other processes and threads
                    await asyncio.sleep(0.01)
        except TimeoutError:
            view = self.agent.trust.view() if self.agent.trust else None
            pytest.fail(f"never: {what}; {self.counts()}; {view}; {self.envoy.log()[-1500:]}")

    def add_root(self) -> None:
        (self.plugged / "root-cert.pem").write_text(self.first.roots_pem + self.second.roots_pem)
        self.ca.runtime.reload()

    def remove_root(self) -> None:
        self.first.write_cacerts(self.plugged)
        self.ca.runtime.reload()

    def counts(self) -> AgentCounts:
        """What the leader would say now of the bundle as it is."""
        runtime = self.ca.runtime
        assert runtime.cluster is not None
        issuer = runtime.keystore.issuer(runtime.clock.now())
        return runtime.cluster.agents.counts(bundle_digest(issuer.roots), issuer.epoch, runtime.clock.now())

    def acked(self, roots: int) -> Callable[[], bool]:
        return lambda: len(self.ca.runtime.keystore.roots) == roots and self.counts().acked == 1

    def ask(self, step: Step, **others: str) -> None:
        """Ask for a step of the rotation, as `meshctl ca` does."""
        wanted = {f"{REQUEST_ANNOTATION}-{key}": text for key, text in others.items()}
        annotations = {REQUEST_ANNOTATION: step.value, f"{REQUEST_ANNOTATION}-id": step.value, **wanted}
        path = f"/api/v1/namespaces/{NAMESPACE}/configmaps/gatehouse-ca"
        self.kube.api().patch(path, {"metadata": {"annotations": annotations}}, PatchType.MERGE)

    def state(self) -> tuple[Phase, int, int]:
        found = rotation_of(self.ca.runtime.keystore)
        return found.phase, found.generation, found.epoch

    def secrets(self) -> dict[str, dict[str, Any]]:
        dump = self.envoy.config_dump()["configs"]
        found = [s for c in dump for s in c.get("dynamic_active_secrets", ())]
        return {s["name"]: s["secret"] for s in found}

    def roots_of_envoy(self) -> set[int]:
        """Serial numbers of the roots that Envoy has by SDS."""
        secret = self.secrets().get(SDS_ROOTS)
        if secret is None:
            return set()
        pem = base64.b64decode(secret["validation_context"]["trusted_ca"]["inline_bytes"])
        return {c.serial_number for c in x509.load_pem_x509_certificates(pem)}

    def serials_of_envoy(self) -> list[str]:
        """Serial numbers of the chain that Envoy presents, as its admin page says."""
        certificates = json.loads(self.envoy.get("/certs")[1])["certificates"]
        return [item["serial_number"] for found in certificates for item in found["cert_chain"]]

    def anchors_of_envoy(self) -> set[int]:
        """Serial numbers of the roots that are in force."""
        certificates = json.loads(self.envoy.get("/certs")[1])["certificates"]
        return {int(item["serial_number"], 16) for found in certificates for item in found["ca_cert"]}

    def status(self) -> dict[str, Any]:
        return status_of(self.agent._view(), self.agent.health)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Agents are asked to come each second also when nothing changes."""
    monkeypatch.setattr("ca.agents.QUIET", dt.timedelta(seconds=1))


def serial(hierarchy: Hierarchy) -> int:
    return x509.load_der_x509_certificate(hierarchy.root_der).serial_number


@asynccontextmanager
async def mesh(
    tmp_path: Path, form: str = "GRPC", own: Mapping[str, str] | None = None
) -> AsyncIterator[Mesh]:
    """With a plugged-in CA, or with `own` settings and a root that the authority makes."""
    made = SystemClock().now() - DAY
    first, second = make_hierarchy(now=made), make_hierarchy(now=made)
    plugged = tmp_path / "plugged"
    plugged.mkdir()
    first.write_cacerts(plugged)
    settings = own if own is not None else {"ca_dir": str(plugged), "multi_root": "true"}
    with FakeKube() as kube, tempfile.TemporaryDirectory(prefix="gh-", dir="/tmp") as short:
        prepare(kube)
        kube.add({"kind": "ConfigMap", "metadata": {"name": CONFIG_MAP, "namespace": NAMESPACE}})
        kube.add(pod(), agent_pod())
        with cluster_ca(kube, tmp_path, cluster__agents=AGENTS, **settings) as ca:
            agent = Agent(load_settings(_configure(tmp_path, Path(short), ca), {}, {}))
            stop = asyncio.Event()
            async with asyncio.TaskGroup() as tasks:
                task = tasks.create_task(agent.run(stop))
                envoy: EnvoyProcess | None = None
                try:
                    socket = Path(short, "s", "demo_web-1", "agent.sock")
                    envoy = EnvoyProcess(bootstrap(socket, form), Path(short, "envoy"), wait_ready=False)
                    await asyncio.to_thread(envoy.start)
                    yield Mesh(kube, ca, agent, envoy, plugged, first, second)
                finally:
                    if envoy is not None:
                        await asyncio.to_thread(envoy.stop)
                    stop.set()
                    await task


def _configure(base: Path, short: Path, ca: RunningClusterCa) -> Path:
    docs = base / "docs"
    docs.mkdir()
    (docs / "web.yaml").write_text(nodeagent_workload("web-1", 8080))
    (base / "token").write_text(ca.token()[1].removeprefix("Bearer "))
    (base / "agent-token").write_text(ca.token(**AGENT_CLAIMS)[1].removeprefix("Bearer "))
    (base / "root.pem").write_bytes(ca.roots)
    config = base / "agent.yaml"
    config.write_text(
        f"directory: docs\nsockets: {short}/s\nlisten: 127.0.0.1:0\n"
        f"ca: {{address: 'localhost:{ca.runtime.grpc.port}', root_file: root.pem, token_file: agent-token}}\n"
    )
    return config


@pytest.mark.parametrize("form", FORMS)
async def test_a_new_root_reaches_envoy_without_a_new_certificate(tmp_path: Path, form: str) -> None:
    async with mesh(tmp_path, form) as node:
        await node.until("acknowledged at the start", node.acked(1))
        await node.until("Envoy presents", node.serials_of_envoy)
        before = node.serials_of_envoy()
        assert node.roots_of_envoy() == {serial(node.first)}
        issued = node.ca.runtime.registry.get_sample_value("gatehouse_ca_csr_total")
        node.add_root()
        await node.until("the leader counts it", node.acked(2))
        assert node.roots_of_envoy() == {serial(node.first), serial(node.second)}
        assert node.serials_of_envoy() == before
        assert node.ca.runtime.registry.get_sample_value("gatehouse_ca_csr_total") == issued
        assert node.counts() == AgentCounts(expected=1, reported=1, acked=1)
        status = node.status()
        (workload,) = status["workloads"]
        digest = bundle_digest((node.first.root_der, node.second.root_der))
        assert (workload["bundle_digest"], workload["bundle"], workload["issued"]) == (digest, "accepted", 1)
        assert (status["trust"]["digest"], status["trust"]["pending"]) == (digest, 0)
        node.remove_root()
        await node.until("taken away", node.acked(1))
        assert node.roots_of_envoy() == {serial(node.first)}
        assert node.serials_of_envoy() == before


async def test_a_proxy_that_refuses_the_roots_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(name: str, roots: tuple[bytes, ...]) -> Resource:
        return roots_secret(name, [b"no certificate"] if len(roots) == 2 else roots)

    monkeypatch.setattr("nodeagent.rotator.roots_secret", broken)
    async with mesh(tmp_path) as node:
        await node.until("acknowledged at the start", node.acked(1))
        node.add_root()
        await node.until("told", lambda: node.counts().missing)
        await node.until("refused", lambda: "refused it" in node.counts().missing[0])
        assert node.counts().missing == ("node-17: 1 workload pending (demo/web-1), 1 refused it",)
        assert node.anchors_of_envoy() == {serial(node.first)}, "the former roots stay in force"
        assert node.status()["trust"]["waiting_for"] == ["demo/web-1"]
        node.remove_root()
        await node.until("good bytes are accepted", node.acked(1))


async def test_a_proxy_that_is_killed_is_pending_and_then_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trust, "ABSENT_AFTER", 4.0)
    async with mesh(tmp_path) as node:
        await node.until("acknowledged at the start", node.acked(1))
        await node.until("connected", lambda: node.agent.running["demo/web-1"].socket.open_streams)
        await asyncio.to_thread(node.envoy.stop)
        node.add_root()
        pending = ("node-17: 1 workload pending (demo/web-1)",)
        await node.until("pending", lambda: node.counts().missing == pending)
        await node.until("absent", node.acked(2))


async def test_a_root_is_rotated_with_everybody_s_acknowledgement(tmp_path: Path) -> None:
    """ADR 14: told before it is used, acknowledged before it is relied on, renewed early only on request."""
    async with mesh(tmp_path, own={"rotation__hold": "1s"}) as node:
        await node.until("acknowledged at the start", node.acked(1))
        await node.until("Envoy presents", node.serials_of_envoy)
        before, former = node.serials_of_envoy(), node.roots_of_envoy()
        node.ask(Step.PREPARE)
        await node.until("two roots", lambda: len(node.roots_of_envoy()) == 2)
        assert node.serials_of_envoy() == before
        await node.until("activated by itself", lambda: node.state() == (Phase.ACTIVE, 2, 2))
        assert node.serials_of_envoy() == before, "certificates are renewed when they are due"
        await node.until("the certificate is of the former root", lambda: node.counts().outdated == 1)
        assert node.counts().acked == 1
        node.ask(Step.TAINT, within="1")
        await node.until("renewed", lambda: node.agent.running["demo/web-1"].rotator.status().epoch == 2)
        await node.until("Envoy presents it", lambda: node.serials_of_envoy() != before)
        await node.until("nobody is outdated", lambda: node.counts().outdated == 0)
        assert node.agent.running["demo/web-1"].rotator.status().issued == 2
        node.ask(Step.RETIRE, force="true")
        await node.until("the former root is gone", lambda: len(node.roots_of_envoy()) == 1)
        assert node.roots_of_envoy().isdisjoint(former)
        await node.until("acknowledged at the end", node.acked(1))
        assert node.status()["trust"]["epoch"] == 2
        assert node.agent.running["demo/web-1"].rotator.status().failures == 0


async def test_a_root_is_not_used_while_a_proxy_refuses_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(name: str, roots: tuple[bytes, ...]) -> Resource:
        return roots_secret(name, [b"no certificate"] if len(roots) == 2 else roots)

    monkeypatch.setattr("nodeagent.rotator.roots_secret", broken)
    async with mesh(tmp_path, own={"rotation__hold": "1s"}) as node:
        await node.until("acknowledged at the start", node.acked(1))
        node.ask(Step.PREPARE)
        named = ("node-17: 1 workload pending (demo/web-1), 1 refused it",)
        await node.until("refused", lambda: node.counts().missing == named)
        begun = node.ca.runtime.clock.now()
        long_after = begun + 2 * dt.timedelta(seconds=1)
        await node.until("the hold is over", lambda: node.ca.runtime.clock.now() > long_after)
        assert node.state() == (Phase.PREPARED, 2, 1)
        node.ask(Step.ABORT)
        await node.until("back again", lambda: node.state() == (Phase.STABLE, 3, 1))
        await node.until("acknowledged", node.acked(1))
