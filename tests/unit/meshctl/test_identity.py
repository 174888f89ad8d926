"""`meshctl identity`: through the API server, directly, and what is told when there is none."""

from __future__ import annotations

import http.server
import json
import re
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mesh.x509.pem import encode_certificates
from tests.fakes.ca_factory import make_hierarchy
from tests.fakes.kube_api import FakeKube
from tests.fakes.meshctl_cli import Ran, ctl, golden_script
from tests.fakes.meshctl_cluster import NAMESPACE, injected, install, pod

NOW = "2026-06-01T12:10:00Z"
PROXY = f"/api/v1/namespaces/{NAMESPACE}/pods/gatehouse-nodeagent-node1:15014/proxy/identities"


def workload(name: str = "shop/web-5d9c-a", **changes: Any) -> dict[str, Any]:
    """What the agent tells about a workload."""
    hierarchy = make_hierarchy()
    leaf = hierarchy.leaf("/ns/shop/sa/default")
    return {
        "workload": name,
        "spiffe_id": "spiffe://cluster.local/ns/shop/sa/default",
        "state": "valid",
        "renew_at": "2026-06-01T12:40:00Z",
        "issued": 3,
        "failures": 0,
        "code": "",
        "error": "",
        "chain": encode_certificates(leaf.chain),
        "roots": encode_certificates([hierarchy.root_der]),
        **changes,
    }


def page(*workloads: dict[str, Any]) -> dict[str, Any]:
    return {"schema": 1, "time": NOW, "workloads": list(workloads)}


@pytest.fixture
def kube() -> Iterator[FakeKube]:
    with FakeKube() as found:
        install(found)
        yield found


def identity(kube: FakeKube, tmp_path: Path, *arguments: str) -> Ran:
    return ctl("identity", *arguments, "--kubeconfig", str(kube.kubeconfig(tmp_path)))


def hidden(tmp_path: Path, ran: Ran) -> dict[str, str]:
    """Serial numbers and names of authorities are random, and so replaced."""
    names = {f" --kubeconfig {tmp_path}/kubeconfig": ""}
    for line in ran.out.splitlines():
        if "[serial " in line:
            names[line.partition("[serial ")[2].rstrip("]")] = "SERIAL"
    for role, number in re.findall(r"CN=Gatehouse (issuing|root) ([0-9a-f]{8})", ran.out):
        names[f"{role} {number}"] = role
    return names


def test_through_the_api_server(kube: FakeKube, tmp_path: Path) -> None:
    kube.documents[PROXY] = page(workload(), workload("shop/other"))
    ran = identity(kube, tmp_path, "-n", "shop", "web-5d9c-a")
    golden_script("identity", ran, names=hidden(tmp_path, ran))
    assert ran.code == 0
    ran = identity(kube, tmp_path, "-n", "shop", "web-5d9c-a", "--pem")
    assert ran.out == kube.documents[PROXY]["workloads"][0]["chain"]


def test_by_tls_where_the_agent_says_so(kube: FakeKube, tmp_path: Path) -> None:
    agent = kube.find("Pod", "gatehouse-nodeagent-node1", NAMESPACE)
    assert agent is not None
    ports = [
        {"name": "http-health", "containerPort": 15014},
        {"name": "https-metrics", "containerPort": 15015},
    ]
    (container,) = agent["spec"]["containers"]
    kube.add(
        {**agent, "kind": "Pod", "spec": {**agent["spec"], "containers": [{**container, "ports": ports}]}}
    )
    path = f"/api/v1/namespaces/{NAMESPACE}/pods/https:gatehouse-nodeagent-node1:15015/proxy/identities"
    kube.documents[path] = page(workload())
    assert identity(kube, tmp_path, "-n", "shop", "web-5d9c-a").code == 0


def test_everybody_on_a_node(kube: FakeKube, tmp_path: Path) -> None:
    late = workload(
        "shop/late", state="waiting", chain="", roots="", renew_at=None, failures=4, code="ca_refused"
    )
    kube.documents[PROXY] = page(workload(), late)
    ran = identity(kube, tmp_path, "--node", "node1")
    assert ran.code == 1
    lines = ran.out.splitlines()
    assert lines[0].split() == [
        "WORKLOAD",
        "STATE",
        "SERIAL",
        "ENDS",
        "IN",
        "RENEWS",
        "IN",
        "FAILURES",
        "LAST",
    ]
    assert lines[1].split()[0:2] == ["shop/web-5d9c-a", "valid"]
    assert lines[2].split() == ["shop/late", "waiting", "-", "-", "-", "4", "ca_refused"]
    found = json.loads(identity(kube, tmp_path, "--node", "node1", "-o", "json").out)
    assert [item["workload"] for item in found] == ["shop/web-5d9c-a", "shop/late"]


def test_json_is_stable(kube: FakeKube, tmp_path: Path) -> None:
    kube.documents[PROXY] = page(workload())
    found = json.loads(identity(kube, tmp_path, "-n", "shop", "web-5d9c-a", "-o", "json").out)
    assert set(found) == {
        "workload",
        "spiffe_id",
        "state",
        "time",
        "renew_at",
        "issued",
        "failures",
        "code",
        "error",
        "chain",
        "roots",
    }
    certificate = {"serial", "subject", "issuer", "uris", "not_before", "not_after", "key", "ca"}
    assert {frozenset(c) for c in (*found["chain"], *found["roots"])} == {frozenset(certificate)}
    assert found["chain"][0]["uris"] == ["spiffe://cluster.local/ns/shop/sa/default"]
    assert (found["chain"][0]["ca"], found["roots"][0]["ca"]) == (False, True)


def test_no_certificate_yet(kube: FakeKube, tmp_path: Path) -> None:
    changes = {"state": "waiting", "chain": "", "roots": "", "renew_at": None, "issued": 0}
    failure = {"failures": 4, "code": "ca_unavailable", "error": "the authority does not answer"}
    kube.documents[PROXY] = page(workload(**changes, **failure))
    ran = identity(kube, tmp_path, "-n", "shop", "web-5d9c-a")
    golden_script("identity-waiting", ran, names=hidden(tmp_path, ran))
    assert ran.code == 1


@pytest.mark.parametrize(
    ("arguments", "code", "fragment"),
    [
        ((), 2, "give a pod, --node NODE or --agent URL"),
        (("p", "--node", "n"), 2, "give a pod, --node NODE or --agent URL"),
        (("p", "-n", "shop"), 2, "there is no pod shop/p"),
        (("plain", "-n", "shop"), 2, "pod shop/plain has no sidecar of Gatehouse"),
        (("pending", "-n", "shop"), 2, "pod shop/pending is on no node yet"),
        (("web-5d9c-a", "-n", "shop"), 3, "has no page /identities"),
        (("--node", "node9"), 2, "no node agent runs on node 'node9'"),
        (("p", "--agent", "x"), 2, "--agent asks without a cluster"),
    ],
    ids=["nothing", "both", "no-pod", "no-sidecar", "no-node", "no-answer", "no-agent", "two-ways"],
)
def test_what_cannot_be_answered(
    kube: FakeKube, tmp_path: Path, arguments: tuple[str, ...], code: int, fragment: str
) -> None:
    kube.add(pod("plain"), injected(pod("pending", node="")))
    ran = identity(kube, tmp_path, *arguments)
    assert (ran.code, ran.out) == (code, "")
    assert fragment in ran.err


def test_not_allowed(kube: FakeKube, tmp_path: Path) -> None:
    kube.fail(403, times=9, path=PROXY, reason="Forbidden")
    ran = identity(kube, tmp_path, "-n", "shop", "web-5d9c-a")
    assert ran.code == 3
    assert "next: have a role with `get` on pods/proxy in namespace istio-system" in ran.err


def test_an_agent_that_is_down(kube: FakeKube, tmp_path: Path) -> None:
    kube.fail(503, times=9, path=PROXY)
    ran = identity(kube, tmp_path, "-n", "shop", "web-5d9c-a")
    assert ran.code == 3
    assert "does not answer through the API server" in ran.err
    assert "next: kubectl -n istio-system logs gatehouse-nodeagent-node1" in ran.err


def test_the_agent_does_not_serve_it(kube: FakeKube, tmp_path: Path) -> None:
    kube.documents[PROXY] = page(workload("shop/other"))
    ran = identity(kube, tmp_path, "-n", "shop", "web-5d9c-a")
    assert (ran.code, "the agent of node1 does not serve shop/web-5d9c-a" in ran.err) == (2, True)


@pytest.mark.parametrize(
    ("answer", "fragment"),
    [
        ([], "does not answer as a node agent"),
        ({"schema": 2, "workloads": []}, "does not answer as a node agent"),
        (page(workload(chain="garbage")), "the agent's answer"),
        ({**page(workload()), "time": "noon"}, "the agent's answer"),
    ],
    ids=["list", "schema", "pem", "time"],
)
def test_strange_answers(kube: FakeKube, tmp_path: Path, answer: Any, fragment: str) -> None:
    kube.documents[PROXY] = answer
    ran = identity(kube, tmp_path, "-n", "shop", "web-5d9c-a")
    assert (ran.code in {2, 3}, ran.out) == (True, "")
    assert fragment in ran.err


class Pages(http.server.BaseHTTPRequestHandler):
    """An agent that serves one page."""

    body = b""
    code = 200

    def do_GET(self) -> None:
        assert self.path == "/identities"
        self.send_response(self.code)
        self.send_header("content-length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_: object) -> None:
        """Silence."""

    def address_string(self) -> str:
        return "local"


@contextmanager
def serving(server: socketserver.BaseServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def handler(body: bytes, code: int = 200) -> type[Pages]:
    return type("Handler", (Pages,), {"body": body, "code": code})


def test_directly_by_tcp() -> None:
    body = json.dumps(page(workload("default/web"), workload("demo/web"))).encode()
    server = http.server.HTTPServer(("127.0.0.1", 0), handler(body))
    with serving(server):
        url = f"http://127.0.0.1:{server.server_port}"
        assert ctl("identity", "web", "--agent", url).out.startswith("default/web: valid\n")
        assert ctl("identity", "-n", "demo", "web", "--agent", url).out.startswith("demo/web: valid\n")
        assert ctl("identity", "--agent", url).out.count("valid") == 2


def test_directly_by_unix_socket(short_dir: Path) -> None:
    path = short_dir / "s"
    server = socketserver.UnixStreamServer(str(path), handler(json.dumps(page(workload())).encode()))
    with serving(server):
        ran = ctl("identity", "-n", "shop", "web-5d9c-a", "--agent", f"unix:{path}")
    assert (ran.code, ran.err) == (0, "")


@pytest.mark.parametrize(
    ("body", "status"), [(b"{", 200), (b"no", 404), (b"[]", 200)], ids=["not-json", "404", "no-page"]
)
def test_somebody_else_answers(body: bytes, status: int) -> None:
    server = http.server.HTTPServer(("127.0.0.1", 0), handler(body, status))
    with serving(server):
        ran = ctl("identity", "--agent", f"http://127.0.0.1:{server.server_port}")
    assert (ran.code, "does not answer as a node agent" in ran.err) == (3, True)


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("https://127.0.0.1:1", 2),
        ("127.0.0.1:15094", 2),
        ("http://127.0.0.1", 2),
        ("http://127.0.0.1:99999", 2),
        ("http://127.0.0.1:1/x", 2),
        ("unix:/nowhere/s", 3),
        ("http://127.0.0.1:1", 3),
    ],
)
def test_addresses(url: str, code: int) -> None:
    ran = ctl("identity", "--agent", url)
    assert (ran.code, ran.out) == (code, "")
    assert ("next: is it running?" in ran.err) is (code == 3)
