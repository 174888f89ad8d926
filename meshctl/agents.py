"""Asking node agents who they serve: directly, or through the API server's proxy.

The contract is the page `/identities` of the agent, schema 1 (`nodeagent.identities`).
"""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from mesh.errors import Category
from mesh.kube.api import KubeCode, KubeError
from meshctl.cluster import PART_OF, Cluster, name_of, namespace_of
from meshctl.errors import CtlCode, CtlError, bad_argument, not_found

SCHEMA: Final = 1
PATH: Final = "/identities"
PORT: Final = 15014
SECURE_PORT_NAME: Final = "https-metrics"
MAX_BYTES: Final = 16 << 20
_AGENTS: Final = f"{PART_OF},app.kubernetes.io/component=nodeagent"


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """One workload as its agent tells.

    Attributes:
        workload: namespace/name.
        state: waiting, valid, endangered or expired.
        chain: PEM, leaf first; empty while there is no valid certificate.
        renew_at: RFC 3339, None when nothing is planned.
        code: of the last failure, empty when the last attempt was good.
    """

    workload: str
    spiffe_id: str
    state: str
    chain: str
    roots: str
    renew_at: str | None
    issued: int
    failures: int
    code: str
    error: str


def read_page(page: object, where: str) -> tuple[str, Sequence[Served]]:
    """Time and workloads of the page.

    Raises:
        CtlError: it is not the page of an agent.
    """
    if (
        not isinstance(page, dict)
        or page.get("schema") != SCHEMA
        or not isinstance(page.get("workloads"), list)
    ):
        raise CtlError(
            CtlCode.AGENT_ANSWER,
            f"{where} does not answer as a node agent of this version; next: meshctl version --cluster",
            category=Category.UNAVAILABLE,
        )
    return str(page.get("time")), [_served(item) for item in page["workloads"] if isinstance(item, dict)]


def _served(item: Mapping[str, Any]) -> Served:
    def text(key: str) -> str:
        return str(item.get(key) or "")

    def number(key: str) -> int:
        value = item.get(key)
        return value if isinstance(value, int) else 0

    return Served(
        workload=text("workload"),
        spiffe_id=text("spiffe_id"),
        state=text("state"),
        chain=text("chain"),
        roots=text("roots"),
        renew_at=text("renew_at") or None,
        issued=number("issued"),
        failures=number("failures"),
        code=text("code"),
        error=text("error"),
    )


# --- directly ------------------------------------------------------------------------------------------


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def ask_directly(url: str, timeout: float) -> object:
    """The page of the agent at `http://HOST:PORT` or `unix:/path`.

    Raises:
        CtlError: another form, no answer, or another answer.
    """
    connection = _connection(url, timeout)
    try:
        connection.request("GET", PATH)
        response = connection.getresponse()
        body = response.read(MAX_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise CtlError(
            CtlCode.AGENT,
            f"no agent answers at {url} ({error}); next: is it running? where does its `listen` point?",
            category=Category.UNAVAILABLE,
        ) from error
    finally:
        connection.close()
    try:
        return json.loads(body) if response.status == http.client.OK else None
    except ValueError:
        return None


def _connection(url: str, timeout: float) -> http.client.HTTPConnection:
    if url.startswith("unix:/"):
        return _UnixConnection(url.removeprefix("unix:"), timeout)
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port, parts = None, None, urlsplit("")
    if parts.scheme != "http" or host is None or port is None or parts.path not in {"", "/"}:
        raise bad_argument(f"--agent {url!r}: written http://HOST:PORT or unix:/path")
    return http.client.HTTPConnection(host, port, timeout=timeout)


# --- through the API server ----------------------------------------------------------------------------


def agent_on(cluster: Cluster, node: str) -> Mapping[str, Any]:
    """The agent's pod on a node.

    Raises:
        CtlError: there is none.
        KubeError: not allowed or no answer.
    """
    namespace = cluster.mesh_namespace
    for pod in cluster.items(f"/api/v1/namespaces/{namespace}/pods", _AGENTS):
        if (pod.get("spec") or {}).get("nodeName") == node:
            return pod
    raise not_found(
        f"no node agent runs on node {node!r}; next: kubectl -n {namespace} get pods -l {_AGENTS} -o wide"
    )


def ask_through(cluster: Cluster, agent: Mapping[str, Any]) -> object:
    """The page of an agent, through the API server's proxy for pods.

    Raises:
        CtlError: the proxy is not allowed, or the agent does not answer.
        KubeError: the API server does not answer.
    """
    namespace, name = namespace_of(agent), name_of(agent)
    scheme, port = _page_port(agent)
    try:
        return cluster.api.get(f"/api/v1/namespaces/{namespace}/pods/{scheme}{name}:{port}/proxy{PATH}")
    except KubeError as error:
        if error.code is KubeCode.FORBIDDEN:
            raise CtlError(
                CtlCode.AGENT,
                f"you may not ask node agents through the API server: {error.public}; next: have a role with"
                f" `get` on pods/proxy in namespace {namespace}, or use --agent on the node itself",
                category=Category.PERMISSION_DENIED,
            ) from error
        if error.code is KubeCode.NOT_FOUND:
            raise CtlError(
                CtlCode.AGENT_ANSWER,
                f"the agent {namespace}/{name} has no page {PATH}: it is older than this command, or gone;"
                " next: meshctl version --cluster",
                category=Category.UNAVAILABLE,
            ) from error
        if error.status:
            raise CtlError(
                CtlCode.AGENT,
                f"the agent {namespace}/{name} does not answer through the API server: {error.public};"
                f" next: kubectl -n {namespace} logs {name}",
                category=Category.UNAVAILABLE,
            ) from error
        raise


def _page_port(agent: Mapping[str, Any]) -> tuple[str, int]:
    """Scheme for the proxy, and port: where the agent's metrics are, the page is too."""
    for container in (agent.get("spec") or {}).get("containers") or ():
        for port in container.get("ports") or ():
            if port.get("name") == SECURE_PORT_NAME:
                return "https:", int(port.get("containerPort", PORT))
    return "", PORT
