"""A real authority as a process of its own, with the limits of a benchmark."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from ca.core.profile import SelfCheck
from tests.fakes import ca_tokens


@dataclass(frozen=True, slots=True)
class RealCa:
    """Where it listens and how to trust it."""

    directory: Path
    port: int
    pid: int

    @property
    def roots(self) -> Path:
        """PEM file of the roots."""
        return self.directory / "state" / "root-cert.pem"

    def token(self, **changes: object) -> str:
        """A good token; see `ca_tokens.claims`."""
        return ca_tokens.token(dt.datetime.now(dt.UTC), **changes)


def free_port() -> int:
    """A TCP port on loopback that nobody uses now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextlib.contextmanager
def real_ca(directory: Path, *, self_check: SelfCheck = SelfCheck.ALWAYS) -> Iterator[RealCa]:
    """`python -m ca serve` on free loopback ports, until the block ends."""
    (directory / "jwks.json").write_bytes(ca_tokens.jwks())
    grpc_port, http_port, plain_port = free_port(), free_port(), free_port()
    config = {
        "state_dir": "state",
        "listen": {
            "grpc": f"127.0.0.1:{grpc_port}",
            "http": f"127.0.0.1:{http_port}",
            "plain": f"127.0.0.1:{plain_port}",
        },
        "token": {"issuer": ca_tokens.ISSUER, "audiences": [ca_tokens.AUDIENCE], "jwks_file": "jwks.json"},
        "serving": {"names": ["localhost", "127.0.0.1"]},
        "issue": {"self_check": str(self_check)},
        "limits": {"threads": 32, "caller_rate": 1e6, "caller_burst": 100000, "caller_in_flight": 24},
    }
    path = directory / "ca.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    with (directory / "ca.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "ca", "serve", "--config", str(path)], stderr=log, stdout=log
        )
        try:
            _wait_listening(grpc_port, process)
            yield RealCa(directory, grpc_port, _worker(process.pid))
        finally:
            process.terminate()
            process.wait(timeout=30)


def _wait_listening(port: int, process: subprocess.Popen[bytes]) -> None:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    end = time.monotonic() + 30
    while time.monotonic() < end and process.poll() is None:
        try:
            with socket.create_connection(("127.0.0.1", port), 1) as sock, context.wrap_socket(sock):
                return
        except OSError:
            continue
    raise RuntimeError("the authority did not come up")


def _worker(pid: int) -> int:
    """The process that serves: gunicorn's one child."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    return int(children[0]) if children else pid


def write_json(path: Path, value: object) -> None:
    """YAML readers read JSON."""
    path.write_text(json.dumps(value), encoding="utf-8")
