"""One real Envoy in front of small applications, with as many workloads as a test file needs.

    lab = Lab(tmp_path)
    web = lab.workload("web", policy, ports=[HTTP_PORT])
    with lab:
        reply = lab.http(web, client=lab.client("web"))

Each workload has a loopback address of its own, so that port numbers (which policies name) are free to
choose. Configuration is rendered as for an agent and made static by `tests.fakes.envoy_static`.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import socket
import socketserver
import ssl
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mesh.envoy.render import OutboundService, ProxyInput, render
from mesh.meshconfig import MeshConfig
from mesh.policy.effective import EffectivePolicy
from mesh.spiffe import TrustDomain
from mesh.topology import AppProtocol, EgressListener, SocketAddress, Workload, WorkloadPort
from tests.fakes.envoy_pki import Credential, Pki, spiffe
from tests.fakes.envoy_process import EnvoyProcess
from tests.fakes.envoy_static import Inlined, bootstrap_json, inline

MESH = MeshConfig(trust_domain=TrustDomain("cluster.local"))
UPGRADED = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"
GREETING = b"220 hello\r\n"
MESH_ALPN = ("istio-http/1.1", "istio", "http/1.1")
TCP_ALPN = ("istio-peer-exchange", "istio")
TIMEOUT = 20.0


class Closed(Exception):  # noqa: N818 - an outcome, not a fault
    """The server ended the connection without an answer, or refused the handshake."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP answer."""

    status: int
    body: str
    headers: dict[str, str]

    @property
    def seen(self) -> dict[str, Any]:
        """What the application saw: `method`, `target`, `headers` (name, value pairs)."""
        found: dict[str, Any] = json.loads(self.body)
        return found

    def header_seen(self, name: str) -> list[str]:
        return [value for key, value in self.seen["headers"] if key.lower() == name.lower()]


class _App(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        length = int(self.headers.get("content-length", 0))
        self.rfile.read(length)
        body = json.dumps(
            {"method": self.command, "target": self.path, "headers": list(self.headers.items())}
        ).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):  # any method
            return self._answer
        raise AttributeError(name)

    def log_message(self, *args: object) -> None:
        pass


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


class _Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        server = self.server
        assert isinstance(server, _Tcp)
        server.connections += 1
        with contextlib.suppress(OSError):
            if server.greeting:
                self.request.sendall(server.greeting)
            if server.upgrades:
                while not self.request.recv(4096).endswith(b"\r\n\r\n"):
                    pass
                self.request.sendall(UPGRADED)
            while data := self.request.recv(4096):
                self.request.sendall(data)


class _Tcp(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, *, greeting: bytes = b"", upgrades: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), _Echo)
        self.greeting = greeting
        self.upgrades = upgrades
        self.connections = 0

    def handle_error(self, *args: object) -> None:
        pass


@dataclass(slots=True)
class Lab:
    """See the module."""

    directory: Path
    mesh: MeshConfig = MESH
    pki: Pki = field(default_factory=Pki)
    identity: str = spiffe("server")
    sets: list[Inlined] = field(default_factory=list)
    _stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    _contexts: dict[Any, ssl.SSLContext] = field(default_factory=dict)
    _base: tuple[int, int] = (0, 0)
    _count: int = 0
    apps: dict[str, Any] = field(default_factory=dict)
    envoy: EnvoyProcess | None = None

    def __post_init__(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        chance = random.Random(os.getpid() ^ id(self))
        self._base = (chance.randrange(16, 250), chance.randrange(240))
        self.apps = {
            "http": _Http(("127.0.0.1", 0), _App),
            "echo": _Tcp(),
            "greeter": _Tcp(greeting=GREETING),
            "websocket": _Tcp(upgrades=True),
        }

    def app(self, name: str) -> SocketAddress:
        """Address of `http`, `echo`, `greeter` or `websocket`."""
        return SocketAddress(*self.apps[name].server_address)

    def port(
        self,
        number: int,
        protocol: AppProtocol = AppProtocol.HTTP,
        app: str = "",
        *,
        server_first: bool = False,
    ) -> WorkloadPort:
        name = app or ("echo" if protocol is AppProtocol.TCP else "http")
        return WorkloadPort(number=number, protocol=protocol, app=self.app(name), server_first=server_first)

    def workload(
        self,
        policy: EffectivePolicy,
        ports: Sequence[WorkloadPort] = (),
        *,
        mesh: MeshConfig | None = None,
        services: Sequence[OutboundService] = (),
        egress: Sequence[EgressListener] = (),
    ) -> str:
        """Add a workload; its address. Egress listeners bind to the same address."""
        self._count += 1
        name = f"w{self._count}"
        beyond, last = divmod(self._count, 250)
        address = f"127.{self._base[0]}.{self._base[1] + beyond}.{last + 1}"
        workload = Workload(
            uid=name,
            namespace="demo",
            name=name,
            service_account="server",
            address=address,
            ports=tuple(ports) or (self.port(8080),),
            egress=tuple(replace(e, bind=SocketAddress(address, e.bind.port)) for e in egress),
        )
        proxy = ProxyInput(workload, policy, tuple(services), mesh or self.mesh)
        self.sets.append(inline(render(proxy), suffix=f"@{name}"))
        return address

    def __enter__(self) -> Self:
        for server in self.apps.values():
            thread = threading.Thread(
                target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
            )
            thread.start()
            self._stack.callback(server.server_close)
            self._stack.callback(server.shutdown)
        secrets = [self.pki.leaf(self.identity).secret(), self.pki.roots()]
        process = EnvoyProcess(
            bootstrap_json(self.sets, secrets), self.directory / "envoy", log_level="warning"
        )
        self.envoy = self._stack.enter_context(process)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    # --- clients -----------------------------------------------------------------------------------

    def client(
        self,
        name: str = "web",
        *,
        namespace: str = "demo",
        trust_domain: str = "cluster.local",
        alpn: Sequence[str] = MESH_ALPN,
        version: ssl.TLSVersion | None = None,
    ) -> ssl.SSLContext:
        """TLS context of a workload of the mesh."""
        key = (name, namespace, trust_domain, tuple(alpn), version)
        if key not in self._contexts:
            uri = spiffe(name, namespace=namespace, trust_domain=trust_domain)
            self._contexts[key] = self.context(self.pki.leaf(uri), alpn=alpn, version=version)
        return self._contexts[key]

    def context(
        self,
        credential: Credential | None,
        *,
        alpn: Sequence[str] = MESH_ALPN,
        version: ssl.TLSVersion | None = None,
    ) -> ssl.SSLContext:
        """TLS context with any credential, or none. The server is not verified."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        if alpn:
            context.set_alpn_protocols(list(alpn))
        if version is not None:
            context.minimum_version = context.maximum_version = version
        if credential is not None:
            context.load_cert_chain(*credential.write(self.directory))
        return context

    @contextlib.contextmanager
    def connect(
        self,
        address: str,
        port: int = 8080,
        *,
        tls: ssl.SSLContext | None = None,
        session: ssl.SSLSession | None = None,
        sni: str | None = None,
        source: str | None = None,
    ) -> Iterator[socket.socket]:
        """An open connection; refusals of any kind become `Closed`."""
        try:
            origin = (source, 0) if source else None
            with contextlib.ExitStack() as stack:
                raw = stack.enter_context(
                    socket.create_connection((address, port), timeout=TIMEOUT, source_address=origin)
                )
                if tls is None:
                    yield raw
                else:
                    yield stack.enter_context(tls.wrap_socket(raw, server_hostname=sni, session=session))
        except (ssl.SSLError, ConnectionError, http.client.BadStatusLine) as error:
            raise Closed(str(error)) from error

    def http(
        self,
        address: str,
        target: str = "/",
        *,
        port: int = 8080,
        method: str = "GET",
        headers: Sequence[tuple[str, str]] = (),
        host: str = "server",
        tls: ssl.SSLContext | None = None,
        sni: str | None = None,
        source: str | None = None,
    ) -> Reply:
        """One request on a connection of its own; the target and headers go out as they are."""
        with self.connect(address, port, tls=tls, sni=sni, source=source) as connection:
            return request(connection, target, method=method, headers=headers, host=host)

    def tcp(
        self, address: str, data: bytes = b"ping", *, port: int = 9000, tls: ssl.SSLContext | None = None
    ) -> bytes:
        """Send bytes and read an answer; with empty data only read. `Closed` when there is none."""
        with self.connect(address, port, tls=tls) as connection:
            if data:
                connection.sendall(data)
            answer = connection.recv(4096)
        if not answer:
            raise Closed("end of stream")
        return answer


def request(
    connection: socket.socket,
    target: str = "/",
    *,
    method: str = "GET",
    headers: Sequence[tuple[str, str]] = (),
    host: str = "server",
) -> Reply:
    """One HTTP/1.1 request on an open connection."""
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", *(f"{n}: {v}" for n, v in headers), "", ""]
    connection.sendall("\r\n".join(lines).encode("latin-1"))
    response = http.client.HTTPResponse(connection, method=method)
    with contextlib.closing(response):
        response.begin()
        body = response.read().decode()
        return Reply(response.status, body, {k.lower(): v for k, v in response.getheaders()})
