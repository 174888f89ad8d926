"""Authority, keeper, webhook and upkeep together, as processes: from nothing to a trusted webhook."""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import http.client
import json
import signal
import socket
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ca import config as ca_configuration
from ca.runtime import Runtime
from injector.config import CertificateConfig
from injector.csr_client import CertificateCode, CertificateError, issue
from injector.serving import read_pair
from mesh.x509.certs import read_certificate
from tests.fakes import ca_running, ca_tokens
from tests.fakes import injector_reviews as reviews
from tests.fakes.injector_pki import NAMES, Root
from tests.fakes.injector_running import REPOSITORY, shop, wait_for
from tests.fakes.kube_api import FakeKube
from tests.fakes.ports import claim_port
from tests.fakes.rights import compare

CONFIGURATION = "gatehouse-sidecar-injector"
VALIDATION = "gatehouse-policy-validator"
POLICIES = ("peerauthentications", "requestauthentications", "authorizationpolicies")
UPKEEP_NAME, CAPTURE_NAME = (f"gatehouse-{name}.istio-system.svc" for name in ("upkeep", "capture"))


class Command:
    """A running `python -m injector COMMAND`."""

    def __init__(self, command: str, config: Path) -> None:
        self.log = config.with_name(f"{command}.log")
        with self.log.open("wb") as out:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "injector", command, "--config", str(config)],
                stdout=out,
                stderr=out,
                cwd=REPOSITORY,
            )

    def said(self, message: str) -> bool:
        if self.popen.poll() is not None:
            raise AssertionError(self.log.read_text())
        return message in self.log.read_text()

    def stop(self) -> int:
        self.popen.send_signal(signal.SIGTERM)
        return self.popen.wait(30)


class World:
    """An authority and an API server; processes are started by the tests."""

    def __init__(self, directory: Path, kube: FakeKube, ca: ca_running.RunningCa) -> None:
        self.directory, self.kube, self.ca = directory, kube, ca
        self.https, self.plain, self.keeper_port, self.upkeep_port = (claim_port() for _ in range(4))
        self.capture_port = claim_port()
        (directory / "token").write_text(self.token())
        self.root_file = ca.runtime.config.state_dir / "root-cert.pem"
        self.config = directory / "injector.yaml"
        self.upkeep_config = directory / "upkeep.yaml"
        found = {
            "serving_dir": "serving",
            "kubeconfig": str(kube.kubeconfig(directory)),
            "listen": {"https": f"127.0.0.1:{self.https}", "plain": f"127.0.0.1:{self.plain}"},
            "reload_interval": "100ms",
            "limits": {"drain": "100ms"},
            "certificate": {
                "ca_address": f"localhost:{ca.runtime.grpc.port}",
                "token_file": "token",
                "root_file": str(self.root_file),
                "listen": f"127.0.0.1:{self.keeper_port}",
            },
            "upkeep": {
                "lease": "gatehouse-upkeep",
                "verify_address": f"127.0.0.1:{self.https}",
                "interval": "500ms",
            },
        }
        self.config.write_text(yaml.safe_dump(found))
        found["listen"]["plain"] = f"127.0.0.1:{self.upkeep_port}"  # type: ignore[index] # a dict
        self.upkeep_config.write_text(yaml.safe_dump(found))
        self.capture_config = directory / "capture.yaml"
        found["listen"]["plain"] = f"127.0.0.1:{self.capture_port}"  # type: ignore[index] # a dict
        self.capture_config.write_text(yaml.safe_dump({**found, "capture_agent": {"node_name": "node1"}}))
        service = {"namespace": "istio-system", "name": "gatehouse-injector"}
        kube.add(
            {"kind": "Namespace", "metadata": {"name": "istio-system"}},
            {
                "kind": "MutatingWebhookConfiguration",
                "metadata": {"name": CONFIGURATION, "labels": {"app": "gatehouse"}},
                "webhooks": [{"name": "w.gatehouse.dev", "clientConfig": {"service": service}}],
            },
            {
                "kind": "ValidatingWebhookConfiguration",
                "metadata": {"name": VALIDATION, "labels": {"app": "gatehouse"}},
                "webhooks": [{"name": "v.gatehouse.dev", "clientConfig": {"service": service}}],
            },
        )
        self.roots(self.root_file.read_text())
        shop(kube, **{"istio-injection": "enabled"})

    def token(self, account: str = "gatehouse-injector") -> str:
        return ca_tokens.token(dt.datetime.now(dt.UTC), namespace="istio-system", name=account)

    def roots(self, pem: str) -> None:
        self.kube.add(
            {
                "kind": "ConfigMap",
                "metadata": {"name": "istio-ca-root-cert", "namespace": "istio-system"},
                "data": {"root-cert.pem": pem},
            }
        )

    def bundle(self) -> str:
        """What both configurations have; empty while they differ."""
        found = [
            self.kube.find("MutatingWebhookConfiguration", CONFIGURATION),
            self.kube.find("ValidatingWebhookConfiguration", VALIDATION),
        ]
        bundles = {c["webhooks"][0]["clientConfig"].get("caBundle", "") for c in found if c is not None}
        return base64.b64decode(bundles.pop()).decode() if len(bundles) == 1 else ""

    def policy(self, generation: int, mode: str) -> None:
        meta = {"name": "default", "namespace": "shop", "uid": "u1", "generation": generation}
        self.kube.add(
            {
                "apiVersion": "security.istio.io/v1",
                "kind": "PeerAuthentication",
                "metadata": meta,
                "spec": {"mtls": {"mode": mode}},
            }
        )

    def condition(self) -> dict[str, Any] | None:
        """The condition of that policy."""
        found = self.kube.find("PeerAuthentication", "default", "shop")
        conditions = ((found or {}).get("status") or {}).get("conditions") or [None]
        only: dict[str, Any] | None = conditions[0]
        return only

    def secure_page(self, port: int, path: str, name: str) -> str:
        """By TLS, verified with the roots for that name, as a scraper does."""
        context = ssl.create_default_context(cafile=str(self.root_file))
        try:
            plain = socket.create_connection(("127.0.0.1", port), timeout=10)
            connection = http.client.HTTPConnection(name)
            with context.wrap_socket(plain, server_hostname=name) as connection.sock:
                connection.request("GET", path)
                return connection.getresponse().read().decode()
        except (OSError, http.client.HTTPException):
            return ""

    def page(self, port: int, path: str) -> str:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as response:
                return str(response.read().decode())
        except OSError:
            return ""

    @contextlib.contextmanager
    def running(self, *commands: str) -> Iterator[dict[str, Command]]:
        own = {"upkeep": self.upkeep_config, "capture": self.capture_config}
        started = {name: Command(name, own.get(name, self.config)) for name in commands}
        try:
            yield started
        finally:
            codes = {name: c.stop() for name, c in started.items() if c.popen.poll() is None}
            assert set(codes.values()) <= {0}, codes


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    grants = [
        {"service_account": "istio-system/gatehouse-injector", "dns": list(NAMES)},
        {"service_account": "istio-system/gatehouse-upkeep", "dns": [UPKEEP_NAME]},
        {"service_account": "istio-system/gatehouse-capture", "dns": [CAPTURE_NAME]},
    ]
    file = tmp_path / "ca.yaml"
    file.write_text(yaml.safe_dump({"serving_grants": grants}))
    config = ca_configuration.load(file, {}, ca_running.settings(tmp_path))
    ca = ca_running.RunningCa(Runtime(config))
    ca.runtime.start()
    try:
        with FakeKube() as kube:
            yield World(tmp_path, kube, ca)
    finally:
        ca.close()


def test_from_nothing_to_a_trusted_webhook(world: World) -> None:
    """d.5: certificate from our CA, caBundle patched and tried by a real TLS call; nobody did it by hand."""
    with world.running("serve", "certificate", "upkeep"):
        wait_for(lambda: world.page(world.plain, "/readyz").endswith("\nok\n"), "the webhook is ready")
        wait_for(lambda: world.bundle() == world.root_file.read_text(), "caBundle is published")
        metric = "gatehouse_injector_published_ca_bundle_mismatched_entries 0.0"
        wait_for(
            lambda: (
                metric in world.page(world.upkeep_port, "/metrics")
                and "ok ca_bundle" in world.page(world.upkeep_port, "/readyz")
            ),
            "the TLS call with the published bundle succeeds",
        )
        leaf = read_pair(world.directory / "serving").leaf
        assert leaf.uris == ("spiffe://cluster.local/ns/istio-system/sa/gatehouse-injector",)
        assert "gatehouse_injector_leader_ready 1.0" in world.page(world.upkeep_port, "/metrics")
        keeper = world.page(world.keeper_port, "/metrics")
        assert 'gatehouse_injector_cert_renewals_total{result="written"} 1.0' in keeper
    lease = world.kube.find("Lease", "gatehouse-upkeep", "istio-system")
    assert lease is not None
    assert lease["spec"]["holderIdentity"] == "", "released at the end"


def test_metrics_by_tls_only(world: World) -> None:
    """`metrics.tls` of the chart: each process with a certificate of its own name; plain ports are health."""
    webhook, keeper, upkeep, capture = (claim_port() for _ in range(4))
    for name in ("upkeep", "capture"):
        (world.directory / f"{name}-token").write_text(world.token(f"gatehouse-{name}"))
    for file, metrics, more in (
        (world.config, webhook, {"certificate": {"metrics": f"127.0.0.1:{keeper}"}}),
        (world.upkeep_config, upkeep, {"certificate": {"token_file": "upkeep-token"}}),
        (world.capture_config, capture, {"certificate": {"token_file": "capture-token"}}),
    ):
        found = yaml.safe_load(file.read_text())
        found["listen"]["metrics"] = f"127.0.0.1:{metrics}"
        found["certificate"] |= more["certificate"]
        if file is not world.config:
            found["serving_dir"] = f"{file.stem}-serving"
        file.write_text(yaml.safe_dump(found))
    with world.running("serve", "certificate", "upkeep", "capture"):
        for port, name, metric in (
            (webhook, NAMES[0], "gatehouse_injector_ready 1.0"),
            (keeper, NAMES[0], 'gatehouse_injector_cert_renewals_total{result="written"} 1.0'),
            (upkeep, UPKEEP_NAME, 'gatehouse_injector_cert_renewals_total{result="written"} 1.0'),
            (capture, CAPTURE_NAME, "gatehouse_capture_pods 0.0"),
        ):
            wait_for(
                lambda port=port, name=name, metric=metric: (
                    metric in world.secure_page(port, "/metrics", name)
                ),
                f"{metric} by TLS from {name}",
            )
            assert world.secure_page(port, "/livez", name).endswith("ok\n")
            assert world.page(port, "/metrics") == "", "nothing without TLS"
            assert world.secure_page(port, "/metrics", "kubernetes.default.svc") == "", "for that name only"
        for port in (world.plain, world.keeper_port, world.upkeep_port, world.capture_port):
            assert world.page(port, "/livez").endswith("ok\n")
            assert world.page(port, "/metrics") == "", "metrics are not served without TLS beside"


def test_a_second_root_is_published_before_any_leaf_needs_it(world: World) -> None:
    with world.running("serve", "certificate", "upkeep"):
        wait_for(lambda: world.bundle() == world.root_file.read_text(), "caBundle is published")
        second = Root()
        both = world.root_file.read_text() + second.pem
        world.roots(both)
        wait_for(lambda: world.bundle() == both, "both roots are published within a moment")


def test_upkeep_needs_no_more_rights_than_the_chart_gives(world: World) -> None:
    with world.running("serve", "certificate"):
        wait_for(lambda: world.page(world.plain, "/readyz").endswith("\nok\n"), "the webhook is ready")
    world.kube.requests.clear()
    world.policy(1, "STRICKT")
    with world.running("upkeep"):
        wait_for(world.bundle, "caBundle is published")
        wait_for(world.condition, "the policy's status is written")
    asked = {(resource, verb) for _, _, resource, verb in world.kube.verbs() if not resource.startswith("/")}
    configurations = {"mutatingwebhookconfigurations", "validatingwebhookconfigurations"}
    assert asked <= {
        *((kind, verb) for kind in configurations for verb in ("list", "watch")),
        *((kind, "patch") for kind in configurations),
        ("peerauthentications/status", "patch"),
        ("events", "create"),
        *(("leases", verb) for verb in ("get", "create", "update")),
        *(("configmaps", verb) for verb in ("get", "list", "watch", "create", "patch")),
        *((kind, verb) for kind in (*POLICIES, "nodes") for verb in ("list", "watch")),
    }
    refused, unused = compare("upkeep", world.kube.requests)
    assert refused == set()
    assert unused <= {
        "create /configmaps",  # when somebody has deleted the chart's
        "create coordination.k8s.io/leases",
        "patch /configmaps gatehouse-jwks gatehouse-nodes",  # when they have another content
        "patch security.istio.io/authorizationpolicies/status",  # this test has a policy of one kind
        "patch security.istio.io/requestauthentications/status",
    }
    touched = {(r.method, r.path) for r in world.kube.requests if r.method in {"PATCH", "PUT", "POST"}}
    assert {path.rpartition("/")[2] for _, path in touched} <= {
        CONFIGURATION,
        VALIDATION,
        "status",
        "events",
        "gatehouse-upkeep",
        "leases",
        "gatehouse-jwks",
        "gatehouse-nodes",
        "configmaps",
    }


def test_kubelets_decide_about_native_sidecars(world: World) -> None:
    """An API server that knows them, a new node, then an old one: native while all nodes can."""

    def mode() -> str:
        context = ssl.create_default_context(cadata=world.root_file.read_text())
        plain = socket.create_connection(("127.0.0.1", world.https), timeout=10)
        connection = http.client.HTTPConnection(NAMES[0])
        with context.wrap_socket(plain, server_hostname=NAMES[0]) as connection.sock:
            connection.request("POST", "/inject/v1", reviews.body(), {"Content-Type": "application/json"})
            response = json.loads(connection.getresponse().read())["response"]
        text = base64.b64decode(response["patch"]).decode()
        return "native" if '"restartPolicy":"Always"' in text else "classic"

    def node(name: str, version: str) -> None:
        world.kube.add(
            {"kind": "Node", "metadata": {"name": name}, "status": {"nodeInfo": {"kubeletVersion": version}}}
        )

    world.kube.minor = 31
    with world.running("serve", "certificate"):
        wait_for(lambda: world.page(world.plain, "/readyz").endswith("\nok\n"), "the webhook is ready")
        assert mode() == "classic", "nothing is known of the nodes"
        with world.running("upkeep"):
            node("new", "v1.31.0")
            wait_for(lambda: mode() == "native", "all nodes can")
            node("old", "v1.28.3")
            wait_for(lambda: mode() == "classic", "one cannot")


def test_a_policy_that_is_not_in_force_says_so_on_itself(world: World) -> None:
    def told() -> list[dict[str, Any]]:
        return [e for e in world.kube.all("Event") if e["involvedObject"]["kind"] == "PeerAuthentication"]

    world.policy(1, "STRICKT")
    with world.running("upkeep"):
        wait_for(told, "it is told")
        world.policy(2, "STRICT")
        world.policy(3, "ALWAYS")
        wait_for(lambda: len(told()) == 2, "another mistake is told too")
    first = told()[0]
    assert first["involvedObject"] | {"apiVersion": ""} == {
        "apiVersion": "",
        "kind": "PeerAuthentication",
        "namespace": "shop",
        "name": "default",
        "uid": "u1",
    }
    assert (first["reason"], first["type"]) == ("PolicyRefused", "Warning")
    assert "spec.mtls.mode" in first["message"]
    assert "what was accepted before stays" in first["message"]


def test_a_policy_has_a_condition_that_follows_it(world: World) -> None:
    """One that was there before the webhook: refused, then repaired, then broken again."""

    def seen(status: str, generation: int) -> bool:
        found = world.condition() or {}
        return (found.get("status"), found.get("observedGeneration")) == (status, generation)

    world.policy(1, "STRICKT")
    with world.running("upkeep"):
        wait_for(lambda: seen("False", 1), "Accepted is False")
        refused = world.condition()
        world.policy(2, "STRICT")
        wait_for(lambda: seen("True", 2), "Accepted is True")
        world.policy(3, "ALWAYS")
        wait_for(lambda: seen("False", 3), "Accepted is False again")
        metric = "gatehouse_injector_refused_policies 1.0"
        wait_for(lambda: metric in world.page(world.upkeep_port, "/metrics"), "it is counted")
        assert "ok policies" in world.page(world.upkeep_port, "/readyz")
    assert refused is not None
    assert (refused["type"], refused["reason"]) == ("Accepted", "PolicyBadValue")
    assert "spec.mtls.mode" in refused["message"]


def test_addresses_inside_the_cluster_are_not_fetched_from(world: World) -> None:
    """SSRF through a RequestAuthentication: refused, counted, and nothing is published for it."""
    world.kube.add(
        {
            "apiVersion": "security.istio.io/v1",
            "kind": "RequestAuthentication",
            "metadata": {"name": "evil", "namespace": "shop"},
            "spec": {"jwtRules": [{"issuer": "x", "jwksUri": "https://localhost:1/jwks"}]},
        }
    )
    with world.running("upkeep"):
        wait_for(
            lambda: (
                'jwks_fetches_total{result="jwks_blocked_address"}'
                in world.page(world.upkeep_port, "/metrics")
            ),
            "it is refused",
        )
    assert world.kube.find("ConfigMap", "gatehouse-jwks", "istio-system") is None


def test_the_authority_grants_names_to_nobody_else(world: World) -> None:
    (world.directory / "other").write_text(world.token("web"))
    config = certificate_config(world, "other")
    with pytest.raises(CertificateError) as caught:
        issue(config, NAMES, dt.datetime.now(dt.UTC))
    assert caught.value.code is CertificateCode.REFUSED


def test_names_that_are_not_granted_are_refused(world: World) -> None:
    with pytest.raises(CertificateError) as caught:
        issue(certificate_config(world), ("kubernetes.default.svc",), dt.datetime.now(dt.UTC))
    assert caught.value.code is CertificateCode.REFUSED


def test_an_authority_that_is_away_is_told_apart(world: World) -> None:
    config = certificate_config(world)
    world.ca.runtime.stop()
    with pytest.raises(CertificateError) as caught:
        issue(config, NAMES, dt.datetime.now(dt.UTC))
    assert caught.value.code is CertificateCode.UNREACHABLE


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        pytest.param("token", None, "token file", id="no-token"),
        pytest.param("token", "two words", "one token", id="bad-token"),
        pytest.param("token", "", "empty", id="empty-token"),
        pytest.param("roots", None, "root file", id="no-roots"),
        pytest.param("roots", "rubbish", "root file", id="bad-roots"),
    ],
)
def test_files_that_are_missing_or_wrong(world: World, name: str, content: str | None, text: str) -> None:
    roots = world.directory / "roots"
    roots.write_text(world.root_file.read_text())
    file = world.directory / name
    file.unlink() if content is None else file.write_text(content)
    config = CertificateConfig(
        ca_address=certificate_config(world).ca_address,
        token_file=world.directory / "token",
        root_file=roots,
        listen=None,
    )
    with pytest.raises(CertificateError, match=text) as caught:
        issue(config, NAMES, dt.datetime.now(dt.UTC))
    assert caught.value.code is CertificateCode.FILE


def certificate_config(world: World, token: str = "token") -> CertificateConfig:
    from injector.config_parts import Address

    return CertificateConfig(
        ca_address=Address("localhost", world.ca.runtime.grpc.port),
        token_file=world.directory / token,
        root_file=world.root_file,
        listen=None,
    )


def test_an_issued_pair_is_for_servers_and_names_the_service(world: World) -> None:
    found = issue(certificate_config(world), NAMES, dt.datetime.now(dt.UTC))
    from mesh.x509 import pem

    leaf = read_certificate(pem.decode_certificates(found.chain_pem.decode())[0])
    assert leaf.not_after == found.not_after
    assert world.root_file.read_text().strip() not in found.chain_pem.decode(), "no root in the chain"


def test_the_webhook_can_be_called_with_the_published_bundle(world: World) -> None:
    """What an API server does: caBundle, the service's DNS name, POST."""
    with world.running("serve", "certificate", "upkeep"):
        wait_for(lambda: world.page(world.plain, "/readyz").endswith("\nok\n"), "the webhook is ready")
        wait_for(world.bundle, "caBundle is published")
        context = ssl.create_default_context(cadata=world.bundle())
        plain = socket.create_connection(("127.0.0.1", world.https), timeout=10)
        connection = http.client.HTTPConnection(NAMES[0])
        connection.sock = context.wrap_socket(plain, server_hostname=NAMES[0])
        connection.request("POST", "/inject/v1", reviews.body(), {"Content-Type": "application/json"})
        found: dict[str, Any] = json.loads(connection.getresponse().read())
        connection.close()
    assert found["response"]["allowed"] is True
