"""The webhook as a process, with a fake API server, its own certificate and a client that is one."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from injector.keeper import write_pair
from tests.fakes.injector_pki import NAMES, Root
from tests.fakes.kube_api import FakeKube
from tests.fakes.ports import claim_port

DEADLINE_SECONDS = 40.0
REPOSITORY = Path(__file__).resolve().parents[2]


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    """Poll until the condition is true; fails with `what`."""
    ends = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < ends:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError(f"not within {DEADLINE_SECONDS} s: {what}")


class Webhook:
    """A running `python -m injector serve`.

    Args:
        settings: nested, as in the file; merged over what a test needs.
    """

    def __init__(self, directory: Path, kube: FakeKube, settings: Mapping[str, Any] | None = None) -> None:
        self.directory = directory
        self.root = Root()
        self.port, self.plain = claim_port(), claim_port()
        write_pair(directory / "serving", *_pair(self.root))
        self.config: dict[str, Any] = {
            "serving_dir": "serving",
            "metrics_dir": "metrics",
            "kubeconfig": str(kube.kubeconfig(directory)),
            "listen": {"https": f"127.0.0.1:{self.port}", "plain": f"127.0.0.1:{self.plain}"},
            "limits": {"drain": "200ms", **(settings or {}).get("limits", {})},
            "reload_interval": "100ms",
            **{k: v for k, v in (settings or {}).items() if k != "limits"},
        }
        self.file = directory / "injector.yaml"
        self.write_config()
        self.log = directory / "injector.log"
        with self.log.open("wb") as out:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "injector", "serve", "--config", str(self.file)],
                stdout=out,
                stderr=out,
                cwd=REPOSITORY,
            )

    def write_config(self) -> None:
        fresh = self.file.with_suffix(".new")
        fresh.write_text(yaml.safe_dump(self.config))
        fresh.replace(self.file)

    def context(self, *roots: Root) -> ssl.SSLContext:
        context = ssl.create_default_context(cadata="".join(r.pem for r in roots or (self.root,)))
        context.set_alpn_protocols(["h2", "http/1.1"])
        return context

    def connect(self, *roots: Root) -> ssl.SSLSocket:
        plain = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        # As API servers do: head and body are two writes, which must not wait for each other.
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self.context(*roots).wrap_socket(plain, server_hostname=NAMES[0])

    def client(self, *roots: Root) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection(NAMES[0])
        connection.sock = self.connect(*roots)
        return connection

    def ask(
        self, body: bytes, *, path: str = "/inject/v1?timeout=5s", method: str = "POST", **headers: str
    ) -> tuple[int, bytes]:
        """One request on a connection of its own: status and body."""
        connection = self.client()
        try:
            named = {"Content-Type": "application/json"} | {
                k.replace("_", "-"): v for k, v in headers.items()
            }
            connection.request(method, path, body, named)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def raw(self, data: bytes) -> bytes:
        """What comes back for some bytes, until the connection is closed."""
        with self.connect() as tls:
            tls.sendall(data)
            found = b""
            with contextlib.suppress(OSError):
                while part := tls.recv(65536):
                    found += part
            return found

    def review(self, body: bytes) -> dict[str, Any]:
        status, answer = self.ask(body)
        assert status == 200, answer
        found: dict[str, Any] = json.loads(answer)["response"]
        return found

    def get(self, path: str) -> tuple[int, str]:
        """From the plain port."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.plain}{path}", timeout=10) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def ready(self) -> bool:
        if self.popen.poll() is not None:
            raise AssertionError(self.log.read_text())
        try:
            return self.get("/readyz")[0] == 200
        except OSError:
            return False

    def metric(self, name: str) -> float:
        """Sum of the samples of that name; with labels as they are written, of one sample."""
        values = [
            float(line.rpartition(" ")[2])
            for line in self.get("/metrics")[1].splitlines()
            if line.rpartition(" ")[0] == name or line.startswith(name + "{")
        ]
        return sum(values)

    def said(self, message: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if line["msg"] == message]

    def workers(self) -> list[int]:
        children = Path(f"/proc/{self.popen.pid}/task/{self.popen.pid}/children").read_text()
        return [int(pid) for pid in children.split()]

    def stop(self) -> int:
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)
        try:
            return self.popen.wait(30)
        except subprocess.TimeoutExpired:
            os.kill(self.popen.pid, signal.SIGKILL)
            raise


def _pair(root: Root) -> tuple[bytes, bytes]:
    issued = root.issue()
    return issued.key_pem, issued.chain_pem


@contextlib.contextmanager
def running(directory: Path, kube: FakeKube, settings: Mapping[str, Any] | None = None) -> Iterator[Webhook]:
    """A webhook that is ready; it is ended afterwards."""
    webhook = Webhook(directory, kube, settings)
    try:
        wait_for(webhook.ready, "the webhook is ready")
        yield webhook
    finally:
        webhook.stop()


def shop(kube: FakeKube, **labels: str) -> None:
    """The namespace that the pods of these tests are in."""
    kube.add({"kind": "Namespace", "metadata": {"name": "shop", "labels": labels}})
