"""The probe listener of an injected pod, in a real Envoy, with a kubelet's requests (D10, D10a, b.8).

The bootstrap is the one that the injector writes; only the agent is taken out, because static listeners
open after the first configuration.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import os
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest

from mesh.envoy.render import ProxyInput, render
from mesh.policy.effective import EffectivePolicy, MtlsMode, TransportPolicy
from mesh.topology import AppProtocol, SocketAddress, Workload, WorkloadPort
from tests.fakes.envoy_lab import MESH, MESH_ALPN, request
from tests.fakes.envoy_pki import Pki, spiffe
from tests.fakes.envoy_process import EnvoyProcess, find_envoy, validate
from tests.fakes.envoy_static import as_data, decode, inline
from tests.fakes.injector_pods import CLASSIC, a_pod, bootstrap_of, container, injected, proxy_arguments

pytestmark = [pytest.mark.envoy, pytest.mark.xdist_group("envoy-probes")]

# One loopback network for each process: the ports of a pod are fixed numbers.
_NET = f"127.{64 + os.getpid() // 250 % 64}.{1 + os.getpid() % 250}"
POD, ELSEWHERE = f"{_NET}.1", f"{_NET}.2"
HTTP, HTTPS, GRPC, TCP, DEAD = 18080, 18443, 19000, 19999, 18081
PEERS = 10_000
"""Added to a port: where peers come in. No rules capture here, so the proxy has ports of its own."""
DEADLINE = 40.0


class _App(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    connections = 0
    healthy = True

    def setup(self) -> None:
        super().setup()
        type(self).connections += 1

    def do_GET(self) -> None:
        if self.path == "/metrics":
            self.answer(200, b"app_requests_total 7\n# EOF\n")
        elif self.path.startswith("/moved"):
            self.answer(302, b"", location="/login")
        elif self.path == "/health" and not type(self).healthy:
            self.answer(503, b"sick")
        else:
            seen = {"path": self.path, "peer": self.client_address[0], "headers": dict(self.headers.items())}
            self.answer(200, json.dumps(seen).encode())

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class _Health:
    """`grpc.health.v1.Health/Check` with the two messages written by hand."""

    serving = True

    def __call__(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        if request != b"\x0a\x04shop":  # field 1, "shop"
            context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
        return b"\x08\x01" if self.serving else b"\x08\x02"


@contextlib.contextmanager
def http_app(port: int, tls: ssl.SSLContext | None = None) -> Iterator[type[_App]]:
    handler = type("App", (_App,), {})
    server = ThreadingHTTPServer((POD, port), handler)
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield handler
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def grpc_app() -> Iterator[_Health]:
    health = _Health()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    method = grpc.unary_unary_rpc_method_handler(health)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": method}),)
    )
    server.add_insecure_port(f"{POD}:{GRPC}")
    server.start()
    try:
        yield health
    finally:
        server.stop(0).wait()


@contextlib.contextmanager
def tcp_app() -> Iterator[None]:
    with socket.create_server((POD, TCP)) as server:
        accepting = threading.Thread(target=_accept, args=(server,))
        accepting.start()
        try:
            yield
        finally:
            server.shutdown(socket.SHUT_RDWR)
            accepting.join()


def _accept(server: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            server.accept()[0].close()


def http_get(path: str, port: int, **fields: Any) -> dict[str, Any]:
    return {"httpGet": {"path": path, "port": port, **fields}}


EXEC = {"exec": {"command": ["cat", "/tmp/healthy"]}, "periodSeconds": 5}


def the_pod() -> dict[str, Any]:
    headers = [{"name": "Host", "value": "shop.example"}, {"name": "X-Probe", "value": "$(POD_NAME)"}]
    return a_pod(
        container(
            "web",
            ports=[{"name": "http", "containerPort": HTTP}],
            livenessProbe=http_get("/health", HTTP),
            readinessProbe={"httpGet": {"path": "deep/$(POD_IP)?q=1&r=a b#f", "port": "http"}},
            startupProbe=http_get("/moved", HTTP),
            lifecycle={"preStop": http_get("/bye", HTTP), "postStart": http_get("/hello", HTTP)},
        ),
        container(
            "other",
            livenessProbe={**http_get("/x", HTTP, httpHeaders=headers), "timeoutSeconds": 3},
            readinessProbe=http_get("/secure", HTTPS, scheme="HTTPS"),
            startupProbe=http_get("/gone", DEAD),
        ),
        container(
            "kinds",
            livenessProbe={"tcpSocket": {"port": TCP}},
            readinessProbe={"grpc": {"port": GRPC, "service": "shop"}},
            startupProbe=EXEC,
        ),
        annotations={
            "prometheus.istio.io/scrape-targets": f"{HTTP}:/metrics,{DEAD}",
            "sidecar.istio.io/terminationDelaySeconds": "1",
        },
    )


def live(pod: dict[str, Any]) -> dict[str, Any]:
    """The pod's own bootstrap, without the agent and with an admin socket that the helper can reach."""
    bootstrap = json.loads(json.dumps(bootstrap_of(pod, POD)).replace('"127.0.0.1"', f'"{ELSEWHERE}"'))
    del bootstrap["dynamic_resources"]
    static = bootstrap["static_resources"]
    static["clusters"] = [c for c in static["clusters"] if c["name"] != "node-agent"]
    return bootstrap


def strict(pki: Pki) -> dict[str, list[dict[str, Any]]]:
    """What the agent would send for the pod under STRICT, as static resources."""
    kinds = {HTTP: AppProtocol.HTTP, GRPC: AppProtocol.HTTP2, TCP: AppProtocol.TCP}
    ports = tuple(
        WorkloadPort(number=number + PEERS, protocol=kind, app=SocketAddress(POD, number))
        for number, kind in kinds.items()
    )
    pod = Workload(uid="web", namespace="demo", name="web", service_account="web", address=POD, ports=ports)
    policy = EffectivePolicy(transport=TransportPolicy(MtlsMode.STRICT))
    found = inline(render(ProxyInput(pod, policy, (), MESH)))
    return {
        "listeners": [as_data(listener) for listener in found.listeners],
        "clusters": [as_data(cluster) for cluster in found.clusters],
        "secrets": [as_data(decode(s)) for s in (pki.leaf(spiffe("web")).secret(), pki.roots())],
    }


@dataclasses.dataclass
class Running:
    envoy: EnvoyProcess
    app: type[_App]
    health: _Health
    peer: ssl.SSLContext

    def get(
        self, path: str, *, method: str = "GET", headers: dict[str, str] | None = None, address: str = POD
    ) -> tuple[int, str, http.client.HTTPMessage]:
        connection = http.client.HTTPConnection(address, 15020, timeout=10)
        with contextlib.closing(connection):
            connection.request(method, path, headers={"Connection": "close", **(headers or {})})
            response = connection.getresponse()
            return response.status, response.read().decode(), response.headers

    def until(self, path: str, status: int) -> float:
        begin = time.monotonic()
        return wait_for(lambda: self.get(path)[0] == status, f"{path} to be {status}") - begin


def wait_for(condition: Callable[[], bool], what: str) -> float:
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        if condition():
            return time.monotonic()
        time.sleep(0.02)
    raise AssertionError(f"waited {DEADLINE} s for {what}")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    directory = tmp_path_factory.mktemp("probes")
    pki = Pki()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(*pki.leaf(spiffe("web", namespace="shop")).write(directory))
    peer = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    peer.check_hostname, peer.verify_mode = False, ssl.CERT_NONE
    peer.set_alpn_protocols(list(MESH_ALPN))
    peer.load_cert_chain(*pki.leaf(spiffe("client")).write(directory))
    bootstrap = live(injected(the_pod(), CLASSIC))
    for kind, items in strict(pki).items():
        bootstrap["static_resources"].setdefault(kind, []).extend(items)
    with contextlib.ExitStack() as stack:
        app = stack.enter_context(http_app(HTTP))
        stack.enter_context(http_app(HTTPS, tls))
        health = stack.enter_context(grpc_app())
        text = json.dumps(bootstrap).replace("@gatehouse-admin", f"@gh-probes-{os.getpid()}")
        data = json.loads(text)
        envoy = stack.enter_context(_Abstract(data, directory / "envoy"))
        yield Running(envoy, app, health, peer)


class _Abstract(EnvoyProcess):
    """The helper for an admin on an abstract socket, which Python writes with a leading NUL."""

    def _admin(self) -> tuple[str, str, int]:
        path, host, port = super()._admin()
        return path.replace("@", "\0", 1), host, port


def test_what_the_injector_writes_is_accepted(tmp_path: Path) -> None:
    """b.8, D10: the whole bootstrap, for both address families."""
    for address in (POD, "fd00::1"):
        found = validate(bootstrap_of(injected(the_pod(), CLASSIC), address))
        assert found.ok, found.output
        assert "work-in-progress" not in found.output


def test_the_arguments_are_envoys() -> None:
    arguments = proxy_arguments(injected(the_pod(), CLASSIC), POD)
    done = subprocess.run(
        [str(find_envoy()), *arguments, "--mode", "validate"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_known_loggers_are_envoys(running: Running) -> None:
    from injector.core.values import COMPONENTS

    with EnvoyProcess(
        {"admin": {"address": {"socket_address": {"address": ELSEWHERE, "port_value": 0}}}},
        running.envoy.log_path.parent / "loggers",
    ) as envoy:
        lines = envoy.get("/logging", method="POST")[1].splitlines()
    assert {line.split(":")[0].strip() for line in lines if line.startswith("  ")} == COMPONENTS


def test_an_http_probe_reaches_the_application(running: Running) -> None:
    status, body, _ = running.get("/app-health/web/livez", headers={"User-Agent": "kube-probe/1.30"})
    seen = json.loads(body)
    assert status == 200
    assert seen["path"] == "/health"
    headers = {name.lower(): value for name, value in seen["headers"].items()}
    assert headers["host"] == f"{POD}:{HTTP}", "the status port is swapped for the real one"
    assert headers["user-agent"] == "kube-probe/1.30"
    assert not [name for name in headers if name.startswith("x-envoy") or name == "x-request-id"]
    assert seen["peer"] == "127.0.0.6", "the capture rules know the probe by its source"


def test_the_status_of_the_application_is_the_probes(running: Running) -> None:
    running.app.healthy = False
    try:
        assert running.get("/app-health/web/livez")[:2] == (503, "sick")
    finally:
        running.app.healthy = True
    assert running.get("/app-health/web/livez")[0] == 200


def test_path_query_and_dollars_arrive_as_the_kubelet_would_send_them(running: Running) -> None:
    """Trap: the kubelet expands `$(NAME)` in arguments, and a probe's path is in one."""
    seen = json.loads(running.get("/app-health/web/readyz")[1])
    assert seen["path"] == "/deep/$(POD_IP)?q=1&r=a%20b"


def test_a_host_header_of_the_author_is_kept(running: Running) -> None:
    _, body, _ = running.get("/app-health/other/livez", headers={"Host": "shop.example", "X-Probe": "1"})
    headers = {name.lower(): value for name, value in json.loads(body)["headers"].items()}
    assert headers["host"] == "shop.example"
    assert headers["x-probe"] == "1"


def test_a_redirection_is_success_and_leads_nowhere(running: Running) -> None:
    status, _, headers = running.get("/app-health/web/startupz")
    assert status == 200
    assert "location" not in headers


def test_an_https_probe_does_not_verify(running: Running) -> None:
    status, body, _ = running.get("/app-health/other/readyz")
    assert status == 200
    assert json.loads(body)["path"] == "/secure"


def test_a_dead_port_fails(running: Running) -> None:
    assert running.get("/app-health/other/startupz")[0] == 503


def test_each_request_has_a_connection_of_its_own(running: Running) -> None:
    before = running.app.connections
    for _ in range(3):
        running.get("/app-health/web/livez")
    assert running.app.connections == before + 3


def test_a_tcp_probe_follows_the_port(running: Running) -> None:
    """Also: a cluster whose statistics are trimmed would never be healthy."""
    path = "/app-health/kinds/livez"
    assert running.get(path)[0] == 503, "nobody listens yet"
    with tcp_app():
        assert running.until(path, 200) < 5
    assert running.until(path, 503) < 5


def test_a_grpc_probe_follows_the_health_service(running: Running) -> None:
    path = "/app-health/kinds/readyz"
    running.until(path, 200)
    running.health.serving = False
    running.until(path, 503)
    running.health.serving = True
    running.until(path, 200)


def test_p20_probes_pass_where_strict_shuts_plaintext_out(running: Running) -> None:
    """P-20: http, tcp and gRPC pass while the same ports answer nobody without an identity; exec stays."""
    for port in (HTTP, GRPC, TCP):
        with socket.create_connection((POD, port + PEERS), timeout=DEADLINE) as plain:
            plain.sendall(b"GET /health HTTP/1.1\r\nHost: web\r\n\r\n")
            assert received(plain) == b"", port
    with (
        socket.create_connection((POD, HTTP + PEERS), timeout=DEADLINE) as raw,
        running.peer.wrap_socket(raw) as mutual,
    ):
        assert request(mutual, "/health").status == 200, "the port itself is alive"
    with tcp_app():
        for path in ("/app-health/web/livez", "/app-health/kinds/livez", "/app-health/kinds/readyz"):
            running.until(path, 200)
    running.until("/app-health/kinds/livez", 503)
    containers = injected(the_pod(), CLASSIC)["spec"]["containers"]
    assert next(c for c in containers if c["name"] == "kinds")["startupProbe"] == EXEC


def received(connection: socket.socket) -> bytes:
    """What a peer answers before it ends the connection."""
    try:
        return connection.recv(4096)
    except ConnectionResetError:
        return b""


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/health",
        "/app-health/web/nope",
        "/app-health/unknown/livez",
        "/app-health/web/livez/",
        "/app-health/web/livez/../../../health",
        "/prestop/2",
        "/metrics",
        "/stats",
        "/ready",
        "/quitquitquit",
    ],
)
def test_nothing_else_is_exposed(running: Running, path: str) -> None:
    assert running.get(path)[0] == 404


@pytest.mark.parametrize("method", ["POST", "DELETE", "HEAD"])
def test_only_get(running: Running, method: str) -> None:
    assert running.get("/app-health/web/livez", method=method)[0] == 404
    assert running.get("/prestop/1", method=method)[0] == 404


@pytest.mark.parametrize(("path", "target"), [("prestopz", "/bye"), ("poststartz", "/hello")])
def test_hooks_reach_the_application(running: Running, path: str, target: str) -> None:
    """The kubelet joins host, "/" and path, so the request has two slashes."""
    status, body, _ = running.get(f"//app-lifecycle/web/{path}")
    assert (status, json.loads(body)["path"]) == (200, target)


@pytest.mark.parametrize("path", ["/prestop/1", "//prestop/1"])
def test_the_delay_before_termination(running: Running, path: str) -> None:
    """Row S8: without merged slashes the route would not match and Envoy would die at once."""
    begin = time.monotonic()
    status, body, _ = running.get(path)
    assert (status, body) == (200, "waited\n")
    assert 0.95 < time.monotonic() - begin < 20


def test_metrics_are_merged(running: Running) -> None:
    """b.11: one scrape has both, a target that fails does not fail the scrape."""
    status, body, headers = running.get("/stats/prometheus")
    assert status == 200
    assert headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = body.splitlines()
    assert "app_requests_total 7" in lines
    assert "# EOF" not in lines, "an end mark in the middle would hide the rest"
    assert any(line.startswith("envoy_server_live") for line in lines)
    assert 'gatehouse_scrape_up{target="proxy"} 1' in lines
    assert f'gatehouse_scrape_up{{target=":{HTTP}"}} 1' in lines
    assert f'gatehouse_scrape_up{{target=":{DEAD}"}} 0' in lines


def test_the_listener_answers_on_loopback_too(running: Running) -> None:
    """For `kubectl port-forward` (the test stands for 127.0.0.1 with another loopback address)."""
    assert running.get("/app-health/web/livez", address=ELSEWHERE)[0] == 200


def test_without_a_first_configuration_nothing_listens(tmp_path: Path) -> None:
    """The restart trap, written down: an Envoy that *starts* while the agent is away answers no probe."""
    bootstrap = live(injected(the_pod(), CLASSIC))
    whole = json.loads(
        json.dumps(bootstrap_of(injected(the_pod(), CLASSIC), POD)).replace('"127.0.0.1"', f'"{ELSEWHERE}"')
    )
    bootstrap["dynamic_resources"] = whole["dynamic_resources"]
    bootstrap["static_resources"]["clusters"] = whole["static_resources"]["clusters"]
    text = json.dumps(bootstrap).replace("@gatehouse-admin", f"@gh-away-{os.getpid()}")
    for old, new in (("15020", "15920"), ("15021", "15921"), ("15090", "15990")):
        text = text.replace(f'"port_value": {old}', f'"port_value": {new}')
    text = text.replace("/run/gatehouse/agent.sock", str(tmp_path / "none.sock")[-100:])
    with _Abstract(json.loads(text), tmp_path / "envoy", wait_ready=False) as envoy:
        assert envoy.get("/ready")[0] == 503
        with pytest.raises(ConnectionRefusedError):
            http.client.HTTPConnection(POD, 15920, timeout=2).request("GET", "/app-health/web/livez")
