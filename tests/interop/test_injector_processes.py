"""The webhook's processes: rotation under load, reload, drain, several workers."""

from __future__ import annotations

import concurrent.futures
import signal
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from injector.keeper import write_pair
from tests.fakes import injector_reviews as reviews
from tests.fakes.injector_pki import Root
from tests.fakes.injector_running import REPOSITORY, Webhook, running, shop, wait_for
from tests.fakes.kube_api import FakeKube


@pytest.fixture(scope="module")
def kube() -> Iterator[FakeKube]:
    with FakeKube() as kube:
        shop(kube, **{"istio-injection": "enabled"})
        yield kube


def test_certificates_rotate_under_load_without_a_failed_admission(kube: FakeKube, tmp_path: Path) -> None:
    """e.2 (8): 20 rotations, every second one from another root; bundle of the client = both roots."""
    with running(tmp_path, kube) as webhook:
        other, failures, done = Root(name="other"), [], threading.Event()
        served: set[str] = set()

        def load(keep: bool) -> int:
            count = 0
            while not done.is_set():
                try:
                    connection = webhook.client(webhook.root, other)
                    assert isinstance(connection.sock, ssl.SSLSocket)
                    certificate: Any = connection.sock.getpeercert()
                    served.add(certificate["serialNumber"])
                    for _ in range(10 if keep else 1):
                        connection.request(
                            "POST", "/inject/v1", reviews.body(), {"Content-Type": "application/json"}
                        )
                        response = connection.getresponse()
                        if response.status != 200 or b'"allowed":true' not in response.read():
                            failures.append(str(response.status))
                        count += 1
                    connection.close()
                except OSError as error:
                    failures.append(repr(error))
            return count

        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            loads = [pool.submit(load, keep) for keep in (True, False, True, False)]
            for number in range(20):
                issued = (other if number % 2 else webhook.root).issue()
                loaded = webhook.metric("gatehouse_injector_serving_cert_loads_total")
                write_pair(webhook.directory / "serving", issued.key_pem, issued.chain_pem)
                wait_for(
                    lambda before=loaded: (
                        webhook.metric("gatehouse_injector_serving_cert_loads_total") > before
                    ),
                    "the new pair is loaded",
                )
            done.set()
            total = sum(future.result() for future in loads)
        assert failures == []
        assert total > 100
        assert len(served) > 5


def test_a_bad_pair_is_not_served(kube: FakeKube, tmp_path: Path) -> None:
    with running(tmp_path, kube) as webhook:
        write_pair(webhook.directory / "serving", Root().issue().key_pem, Root().issue().chain_pem)
        wait_for(lambda: webhook.said("the serving pair is not used"), "it is told")
        assert webhook.review(reviews.body())["allowed"] is True
        assert webhook.metric('gatehouse_injector_serving_cert_loads_total{result="refused"}') == 1


def test_configuration_is_taken_over_and_a_bad_one_is_not(kube: FakeKube, tmp_path: Path) -> None:
    with running(tmp_path, kube) as webhook:
        webhook.config["injection"] = {"selection": {"never": [{"matchLabels": {"app": "web"}}]}}
        webhook.write_config()
        wait_for(lambda: webhook.metric("gatehouse_injector_config_generations") == 1, "it is taken over")
        assert webhook.review(reviews.body())["auditAnnotations"]["reason"] == "never_selector"
        webhook.config["injection"] = {"selektion": {}}
        webhook.write_config()
        wait_for(lambda: webhook.metric("gatehouse_injector_config_ready") == 0, "it is refused")
        assert webhook.review(reviews.body())["auditAnnotations"]["reason"] == "never_selector"
        assert webhook.ready(), "one bad file must not take all replicas away"
        assert "did you mean 'selection'" in str(
            webhook.said("the configuration is refused, the last good one stays in force")
        )


def test_term_fails_readiness_first_and_finishes_what_is_under_way(kube: FakeKube, tmp_path: Path) -> None:
    with running(tmp_path, kube, {"limits": {"drain": "2s"}}) as webhook:
        connection = webhook.client()
        webhook.popen.send_signal(signal.SIGTERM)
        wait_for(lambda: "draining" in webhook.get("/readyz")[1], "readiness fails")
        connection.request("POST", "/inject/v1", reviews.body(), {"Content-Type": "application/json"})
        assert connection.getresponse().status == 200
        connection.close()
        assert webhook.review(reviews.body())["allowed"] is True, "new connections are served too"
        assert webhook.popen.wait(30) == 0


def test_not_ready_without_certificate_or_namespaces(tmp_path: Path) -> None:
    with FakeKube() as kube:
        kube.fail(500, times=10_000, path="/api/v1/namespaces")
        webhook = Webhook(tmp_path, kube)
        try:
            (tmp_path / "serving" / "tls.crt").unlink()
            wait_for(lambda: "namespaces: not listed yet" in _page(webhook), "it says what is missing")
            assert webhook.get("/livez")[0] == 200
            assert webhook.get("/readyz")[0] == 503
            kube.faults.clear()
            issued = webhook.root.issue()
            write_pair(tmp_path / "serving", issued.key_pem, issued.chain_pem)
            wait_for(webhook.ready, "it is ready as soon as everything is there")
        finally:
            webhook.stop()


def _page(webhook: Webhook) -> str:
    try:
        return webhook.get("/readyz")[1]
    except OSError:
        return ""


def test_several_workers_show_one_set_of_metrics(kube: FakeKube, tmp_path: Path) -> None:
    with running(tmp_path, kube, {"workers": 2}) as webhook:
        wait_for(lambda: len(webhook.workers()) == 2, "two workers")
        for _ in range(30):
            webhook.review(reviews.body())
        assert webhook.metric("gatehouse_injector_admission_duration_seconds_count") == 30
        # The least of both: the second worker may still be reading the cluster.
        wait_for(lambda: webhook.metric("gatehouse_injector_ready") == 1, "both workers to be ready")
        assert "pid=" not in webhook.get("/metrics")[1]


def test_the_webhook_loads_neither_grpc_nor_kubernetes() -> None:
    code = (
        "import sys, injector.__main__, injector.gunicorn_conf, injector.runtime;"
        "print([m for m in ('grpc', 'kubernetes') if m in sys.modules])"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "[]"


def test_the_parent_starts_no_thread(kube: FakeKube, tmp_path: Path) -> None:
    """A fork takes only the calling thread along."""
    with running(tmp_path, kube) as webhook:
        assert len(list(Path(f"/proc/{webhook.popen.pid}/task").iterdir())) == 1
