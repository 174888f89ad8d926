"""The capture agent: whom it asks for, how often, what it tells; and the process as a whole."""

from __future__ import annotations

import datetime as dt
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from injector.capture_agent import Agent, ask, run
from injector.config import ConfigError, InjectorConfig
from injector.core.capture import CaptureConfig
from injector.core.capture_messages import Answer, MessageCode, MessageError, NamespaceCode, Request
from injector.core.inject import InjectorSettings
from injector.core.node_capture import Wanted, read_wanted
from injector.events import EventSink
from injector.metrics import CaptureMetrics
from mesh.kube.store import Store
from tests.fakes.capture_worker import APPLIED, IN_PLACE, FakeWorker
from tests.fakes.injector_pods import a_pod, find, injected
from tests.fakes.injector_running import REPOSITORY, wait_for
from tests.fakes.kube_api import FakeKube
from tests.fakes.ports import claim_port
from tests.fakes.rights import compare

UID, SECOND = "0b7d1e5c-3f2a-4c7e-9a41-6d5b8f0e2c11", "1c8e2f6d-4a3b-4d8f-8b52-7e6c9a1f3d22"
SETTINGS = InjectorSettings(node_capture=True)


def on_node(uid: str = UID, name: str = "web", *, node: str = "node1", **status: Any) -> dict[str, Any]:
    pod = injected(a_pod(), config=SETTINGS)
    pod["metadata"] |= {"uid": uid, "name": name}
    pod["spec"]["nodeName"] = node
    return {**pod, "status": {"phase": "Pending", **status}}


def started(exit_code: int | None = None, container: str = "a") -> dict[str, Any]:
    state = {"running": {}} if exit_code is None else {"terminated": {"exitCode": exit_code}}
    found = {"name": "istio-validation", "state": state, "containerID": container}
    return {"initContainerStatuses": [found], "podIP": "10.1.0.7"}


class World:
    """An agent without threads of its own: each step is waited for."""

    def __init__(self, kube: FakeKube, worker: FakeWorker) -> None:
        self.kube, self.worker = kube, worker
        self.now = 1000.0
        self.store: Store[Wanted] = Store()
        self.registry = CollectorRegistry()
        self.events = EventSink(kube.api(), component="gatehouse-capture", monotonic=lambda: self.now)
        self.agent = Agent(
            self.store,
            lambda request: ask(worker.path, request, 10.0),
            events=self.events,
            metrics=CaptureMetrics(self.registry),
            recheck=dt.timedelta(seconds=300),
            threads=2,
            wake=threading.Event(),
            monotonic=lambda: self.now,
        )

    def put(self, item: dict[str, Any]) -> None:
        wanted = read_wanted(item, node="node1")
        assert wanted is not None
        self.store.put((wanted.namespace, wanted.name), wanted)

    def step(self, seconds: float = 0.0) -> float:
        """Move time, look, and wait for what that began."""
        self.now += seconds
        pause = self.agent.step()
        wait_for(lambda: not self.agent._busy, "the end of what is under way")
        return pause

    def metric(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"gatehouse_capture_{name}", labels)


@pytest.fixture
def worker() -> Iterator[FakeWorker]:
    path = Path(f"/tmp/gh-agent-{os.getpid()}.sock")
    path.unlink(missing_ok=True)
    with FakeWorker(path) as found:
        yield found


@pytest.fixture
def world(worker: FakeWorker) -> Iterator[World]:
    with FakeKube() as kube:
        kube.add({"kind": "Namespace", "metadata": {"name": "shop"}})
        found = World(kube, worker)
        found.events.start()
        with found.agent:
            yield found
        found.events.stop()


def test_a_pod_is_captured_once_and_looked_at_again_later(world: World) -> None:
    world.put(on_node())
    world.step()
    assert [request.uid for request in world.worker.asked] == [UID]
    assert world.worker.asked[0].config == CaptureConfig()
    world.worker.answer = lambda _: IN_PLACE
    world.step(5.0)
    assert len(world.worker.asked) == 2, "until the pod has seen its rules, they are looked at often"
    world.put(on_node(**started(exit_code=0)))
    world.step()
    assert len(world.worker.asked) == 3, "the pod has changed"
    for seconds, asked in ((299.0, 3), (1.0, 4)):
        world.step(seconds)
        assert len(world.worker.asked) == asked
    assert world.metric("tries_total", result="applied") == 1
    assert world.metric("tries_total", result="unchanged") == 3
    assert (world.metric("pods"), world.metric("waiting_pods")) == (1, 0)
    assert world.metric("wait_seconds_count") == 1


def test_a_sandbox_that_is_not_there_yet_is_waited_for_quietly(world: World) -> None:
    world.worker.answer = lambda _: Answer(code=NamespaceCode.NO_SANDBOX.value, message="no process")
    world.put(on_node())
    for _ in range(10):
        world.step(5.0)
    assert len(world.worker.asked) == 10
    assert world.metric("waiting_pods") == 0, "it waits for its sandbox"
    world.put(on_node(**started()))
    world.step()
    assert world.metric("waiting_pods") == 1
    world.worker.answer = lambda _: APPLIED
    world.step(1.0)
    assert world.metric("waiting_pods") == 0
    world.events.stop()
    assert world.kube.all("Event") == []


def test_another_sandbox_of_the_same_pod_is_captured_at_once(world: World) -> None:
    world.put(on_node(**started(exit_code=0)))
    world.step()
    world.worker.answer = lambda _: Answer(network="4:2", backend="nft")
    world.put(on_node(**started(container="b")))
    world.step(1.0)
    assert len(world.worker.asked) == 2


def test_a_failure_is_told_on_the_pod_and_tried_again(world: World) -> None:
    world.worker.answer = lambda _: Answer(code="init_apply_failed", message="nft failed; next: look")
    world.put(on_node(**started()))
    for seconds in (0.0, 1.0, 1.0, 2.0):
        world.step(seconds)
    assert len(world.worker.asked) == 4
    wait_for(lambda: world.kube.all("Event"), "the Event")
    [event] = world.kube.all("Event")
    assert (event["reason"], event["type"]) == ("CaptureFailed", "Warning")
    assert event["message"] == "init_apply_failed: nft failed; next: look"
    assert event["involvedObject"]["kind"] == "Pod"
    assert (event["involvedObject"]["name"], event["involvedObject"]["uid"]) == ("web", UID)
    assert event["source"] == {"component": "gatehouse-capture"}
    assert world.metric("tries_total", result="init_apply_failed") == 4


def test_what_cannot_become_rules_is_told_and_the_worker_is_not_asked(world: World) -> None:
    item = on_node(**started())
    find(item, "istio-validation")["args"] = ["--config", '{"proxy_uid":0}']
    world.put(item)
    for _ in range(3):
        world.step(60.0)
    assert world.worker.asked == []
    wait_for(lambda: world.kube.all("Event"), "the Event")
    assert [event["message"].partition(":")[0] for event in world.kube.all("Event")] == ["capture_format"]


def test_pods_do_not_wait_for_each_other(world: World) -> None:
    """Threads bound how many are worked on; one that hangs holds up nobody else."""
    hangs = threading.Event()

    def answer(request: Request) -> Answer:
        if request.uid == UID:
            hangs.wait(20)
        return APPLIED

    world.worker.answer = answer
    world.put(on_node())
    world.put(on_node(SECOND, "other"))
    world.agent.step()
    wait_for(lambda: world.metric("tries_total", result="applied") == 1, "the other pod")
    world.agent.step()
    assert [request.uid for request in world.worker.asked].count(UID) == 1, "it is under way already"
    hangs.set()
    world.step()
    assert world.metric("tries_total", result="applied") == 2


def test_what_is_gone_is_forgotten(world: World) -> None:
    world.put(on_node())
    world.step()
    world.store.remove(("shop", "web"))
    world.step()
    assert world.agent._tried == {}
    assert (world.metric("pods"), world.metric("waiting_pods")) == (0, 0)


def test_a_worker_that_is_away(
    world: World, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert world.agent.away, "until it has answered"
    world.step()
    wait_for(lambda: not world.agent.away, "the worker has answered")
    with monkeypatch.context() as patch:
        patch.setattr(worker, "path", tmp_path / "none.sock")
        world.put(on_node())
        world.step()
        assert "does not answer" in world.agent.away
        world.step(1.0)
        assert world.metric("tries_total", result=MessageCode.AWAY) == 2
    world.step(1.0)
    wait_for(lambda: not world.agent.away, "the worker is back")
    wait_for(lambda: world.metric("waiting_pods") == 0 or world.step(), "the pod is captured")
    assert world.metric("tries_total", result="applied") == 1


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [(b"", MessageCode.AWAY, "broke off"), (b"{}\n", MessageCode.ANSWER, "not the fields")],
)
def test_a_worker_that_answers_something_else(line: bytes, code: MessageCode, said: str) -> None:
    path = Path(f"/tmp/gh-odd-{os.getpid()}.sock")
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(line)

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(MessageError, match=said) as caught:
            ask(path, Request(None, CaptureConfig()), 10.0)
        assert caught.value.code is code
        thread.join()
    path.unlink()


def test_a_node_must_have_a_name() -> None:
    with pytest.raises(ConfigError, match="CAPTURE_AGENT__NODE_NAME"):
        run(InjectorConfig())


def test_the_process(worker: FakeWorker, tmp_path: Path) -> None:
    """One node's pods only; ready when the pods are listed and the worker answers; ends on TERM."""
    port = claim_port()
    with FakeKube() as kube:
        kube.add({"kind": "Namespace", "metadata": {"name": "shop"}})
        kube.add(on_node(), on_node(SECOND, "elsewhere", node="node2"))
        odd = on_node(UID.replace("0b", "0c"), "odd")
        find(odd, "istio-validation")["args"] = []
        kube.add(odd)
        settings = {
            "kubeconfig": str(kube.kubeconfig(tmp_path)),
            "listen": {"plain": f"127.0.0.1:{port}"},
            "capture_agent": {"socket": str(worker.path)},
        }
        file = tmp_path / "injector.yaml"
        file.write_text(yaml.safe_dump(settings))
        process = subprocess.Popen(
            [sys.executable, "-m", "injector", "capture", f"--config={file}"],
            cwd=REPOSITORY,
            env={**os.environ, "GATEHOUSE_INJECTOR_CAPTURE_AGENT__NODE_NAME": "node1"},
        )
        try:
            wait_for(lambda: _page(port, "/readyz")[0] == 200, "it is ready")
            wait_for(lambda: worker.asked, "the pod is captured")
            assert {request.uid for request in worker.asked} == {UID}
            kube.add(on_node(SECOND, "new"))
            wait_for(lambda: SECOND in {request.uid for request in worker.asked}, "the new pod")
            wait_for(lambda: kube.all("Event"), "the Event about the pod that says nothing")
            assert b'gatehouse_capture_tries_total{result="applied"}' in _page(port, "/metrics")[1]
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
        finally:
            process.kill()
            process.wait()
    lists = [r for r in kube.requests if r.path == "/api/v1/pods"]
    assert lists
    assert all(r.query.get("fieldSelector") == "spec.nodeName=node1" for r in lists)
    refused, unused = compare("capture", kube.requests, {"capture": {"mode": "node"}})
    assert (refused, unused) == (set(), set())


def _page(port: int, path: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
    except OSError:
        return 0, b""
