"""A directory, a configuration and an authority for agent tests, all real but small."""

from __future__ import annotations

from pathlib import Path

from mesh.clock import SystemClock
from mesh.spiffe import SpiffeId
from nodeagent.config import AgentSettings, load_settings
from tests.fakes.nodeagent_ca import NodeagentCa, NodeagentGrpcCa

WEB = SpiffeId.parse("spiffe://cluster.local/ns/demo/sa/web")


def nodeagent_workload(name: str, number: int, *, account: str = "web", uid: str = "") -> str:
    """A `Workload` document; every account is `web`, which is whom the authority believes."""
    return (
        "---\napiVersion: gatehouse.dev/v1alpha1\nkind: Workload\n"
        f"metadata: {{namespace: demo, name: {name}, labels: {{app: {name}}}}}\n"
        f"spec:\n  serviceAccount: {account}\n  tokenFile: ../token\n  address: 127.0.10.1\n"
        + (f"  uid: {uid}\n" if uid else "")
        + f'  ports: [{{number: {number}, protocol: HTTP, app: "127.0.0.1:{number + 1}"}}]\n'
    )


class NodeagentTree:
    """Files of one agent below a directory.

    Attributes:
        docs: the watched directory.
        config: the agent's configuration file.
    """

    def __init__(self, base: Path) -> None:
        self.base = base
        self.docs = base / "docs"
        self.docs.mkdir()
        (base / "token").write_text("token")
        self.core = NodeagentCa(SystemClock(), WEB)
        self.ca = NodeagentGrpcCa(self.core)
        (base / "root.pem").write_text(self.core.hierarchy.roots_pem)
        self.config = base / "agent.yaml"

    def write(self, name: str, text: str) -> None:
        """Write a document file the safe way."""
        temporary = self.docs / f".{name}"
        temporary.write_text(text)
        temporary.rename(self.docs / name)

    def configure(self, port: int, listen: str = "127.0.0.1:0", *, syncs: bool = False) -> AgentSettings:
        """Write the configuration, with relative paths, and load it.

        Args:
            syncs: with a token of the agent's own.
        """
        own = ", token_file: agent-token" if syncs else ""
        (self.base / "agent-token").write_text("agent-token")
        self.config.write_text(
            f"directory: docs\nsockets: s\nlisten: {listen}\n"
            f"ca: {{address: '127.0.0.1:{port}', root_file: root.pem, server_name: localhost{own}}}\n"
        )
        return load_settings(self.config, {}, {})
