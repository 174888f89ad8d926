"""Addresses, ports and files of one run.

Every part has an address of its own in one block 127.0.N.0/24, so the ports can be the ones that
people expect, and two demos on one machine only differ in N.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from examples.demo.model import DemoError

NAMESPACE = "demo"
TRUST_DOMAIN = "cluster.local"
WORKLOADS = ("web", "reviews", "ratings", "intruder")
BLOCKS = range(10, 60)

_HOSTS = {
    "web": 1,
    "reviews": 2,
    "ratings": 3,
    "intruder": 4,
    "ca": 10,
    "agent": 11,
    "impostor": 20,
    "claim": 254,
}
_CLAIM_PORT = 4747

HTTP = {"web": 8080, "reviews": 9080, "ratings": 9080, "intruder": 9080}
"""Port of each workload's HTTP service, at its proxy."""
DATABASE = 5432
"""TCP port of ratings: the server speaks first."""
EGRESS_REVIEWS = 7080
EGRESS_RATINGS = 7081
EGRESS_WEB = 7082
EGRESS_DATABASE = 7432
"""Where each application finds its dependencies, at its own address."""
APP_OFFSET = 10_000
"""The application itself listens at the same address, on the proxy's port plus this."""
ADMIN = 15000
CA_GRPC = 15012
CA_HTTPS = 15014
CA_HTTP = 15080
AGENT_HTTP = 15020


def spiffe_id(workload: str) -> str:
    """The identity that a workload of the demo has."""
    return f"spiffe://{TRUST_DOMAIN}/ns/{NAMESPACE}/sa/{workload}"


def principal(workload: str) -> str:
    """The same identity as policies write it."""
    return f"{TRUST_DOMAIN}/ns/{NAMESPACE}/sa/{workload}"


@dataclass(frozen=True, slots=True)
class Layout:
    """One run: the third number of its addresses, and its directory."""

    block: int
    root: Path

    def host(self, part: str) -> str:
        """Address of a workload or of `ca`, `agent`."""
        return f"127.0.{self.block}.{_HOSTS[part]}"

    def proxy(self, workload: str) -> tuple[str, int]:
        """Where peers reach a workload's HTTP service: its proxy."""
        return self.host(workload), HTTP[workload]

    def app(self, workload: str) -> tuple[str, int]:
        """Where the application itself listens; only its proxy should connect there."""
        return self.host(workload), HTTP[workload] + APP_OFFSET

    def database(self) -> tuple[str, int]:
        """The database's port at ratings' proxy."""
        return self.host("ratings"), DATABASE

    @property
    def state(self) -> Path:
        """What the authority keeps."""
        return self.root / "ca"

    @property
    def mesh(self) -> Path:
        """The file-mode directory that the agent reads."""
        return self.root / "mesh"

    @property
    def policies(self) -> Path:
        """Policy files, part of `mesh`."""
        return self.mesh / "policies"

    @property
    def tokens(self) -> Path:
        """Workload tokens, as a kubelet would project them."""
        return self.root / "tokens"

    @property
    def keys(self) -> Path:
        """Public keys of the token issuers."""
        return self.root / "keys"

    @property
    def logs(self) -> Path:
        """One log for each process."""
        return self.root / "logs"

    @property
    def sockets(self) -> Path:
        """Workload sockets; short, because a socket's path ends at 107 bytes."""
        return self.root / "s"

    def socket(self, workload: str) -> Path:
        """The socket that is a workload's identity."""
        return self.sockets / f"{NAMESPACE}_{workload}" / "agent.sock"

    def log(self, process: str) -> Path:
        """Log of one process."""
        return self.logs / f"{process}.log"


@contextlib.contextmanager
def claim_block() -> Iterator[int]:
    """Find a block of loopback addresses that no other demo uses, and hold it.

    Raises:
        DemoError: when all blocks are taken.
    """
    for block in BLOCKS:
        claim = socket.socket()
        try:
            claim.bind((f"127.0.{block}.{_HOSTS['claim']}", _CLAIM_PORT))
            claim.listen(1)
        except OSError:
            claim.close()
            continue
        with claim:
            busy = _busy_ports(block)
            if not busy:
                yield block
                return
    raise DemoError(
        f"no free block of loopback addresses: 127.0.{BLOCKS[0]}.x to 127.0.{BLOCKS[-1]}.x all have busy"
        " ports; next: stop demos that still run (`ss -ltnp | grep 127.0.`), then start again"
    )


def _busy_ports(block: int) -> list[str]:
    """Addresses of the block where somebody listens already."""
    layout = Layout(block, Path("/nonexistent"))
    wanted = [
        (layout.host("ca"), CA_GRPC),
        (layout.host("ca"), CA_HTTP),
        (layout.host("ca"), CA_HTTPS),
        (layout.host("agent"), AGENT_HTTP),
    ]
    wanted += [layout.database(), (layout.host("ratings"), DATABASE + APP_OFFSET)]
    egress = (EGRESS_REVIEWS, EGRESS_RATINGS, EGRESS_WEB, EGRESS_DATABASE)
    for workload in WORKLOADS:
        wanted += [layout.proxy(workload), layout.app(workload)]
        wanted += [(layout.host(workload), port) for port in (ADMIN, *egress)]
    return [f"{host}:{port}" for host, port in wanted if not _free(host, port)]


def _free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
