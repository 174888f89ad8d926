"""Capture rules against real packets: a pod and a peer in network namespaces of their own.

Every listener answers with its port, so a connection tells where the rules sent it. Rows c.2 of the
capture table and the traps of the neighbours: group escape, hairpin, IPv6 leak, rerun, half-applied.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from injector.core.capture import CaptureConfig, parse_cidrs, parse_interfaces, parse_ports
from tests.netns.netns_lab import REPO, connect, inside, run

pytestmark = [
    pytest.mark.netns,
    pytest.mark.xdist_group("netns"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for network namespaces"),
]

POD4, PEER4, OTHER4 = "192.0.2.2", "192.0.2.1", "198.51.100.1"  # TEST-NET-1 and -2 (RFC 5737)
POD6, PEER6 = "2001:db8::2", "2001:db8::1"
POD, PEER = f"gh-pod-{os.getpid()}", f"gh-peer-{os.getpid()}"
APP, PROXY = 1000, 1337


@pytest.fixture(scope="module")
def namespaces() -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for namespace in (POD, PEER):
            run("ip", "netns", "add", namespace)
            stack.callback(run, "ip", "netns", "delete", namespace, check=False)
            inside(namespace, "ip", "link", "set", "lo", "up")
        run("ip", "link", "add", "eth0", "netns", POD, "type", "veth", "peer", "name", "eth0", "netns", PEER)
        for namespace, v4, v6 in ((POD, POD4, POD6), (PEER, PEER4, PEER6)):
            inside(namespace, "ip", "addr", "add", f"{v4}/24", "dev", "eth0")
            inside(namespace, "ip", "addr", "add", f"{v6}/64", "dev", "eth0", "nodad")
            inside(namespace, "ip", "link", "set", "eth0", "up")
        inside(PEER, "ip", "addr", "add", f"{OTHER4}/32", "dev", "lo")
        inside(POD, "ip", "route", "add", "default", "via", PEER4)
        for namespace, listen in (
            (POD, (8080, 9090, 15001, 15006, 15020, 15021, 15090)),
            (PEER, (80, 443, 9000)),
        ):
            server = subprocess.Popen(
                ["nsenter", f"--net=/run/netns/{namespace}", sys.executable, "tests/netns/netns_echo.py"]
                + [f"{host}:{port}" for port in listen for host in ("0.0.0.0", "[::]")],
                stdout=subprocess.PIPE,
                cwd=REPO,
            )
            stack.callback(server.wait)
            stack.callback(server.kill)
            assert server.stdout is not None
            stack.callback(server.stdout.close)
            assert server.stdout.readline() == b"ready\n"
        yield


def apply(config: CaptureConfig, backend: str) -> None:
    inside(
        POD, sys.executable, "-m", "injector.istio_init", "--config", config.to_json(), "--backend", backend
    )


def reset() -> None:
    inside(POD, "nft", "flush", "ruleset")


@pytest.fixture(params=["nft", "iptables"])
def backend(request: pytest.FixtureRequest, namespaces: None) -> Iterator[str]:
    reset()
    yield request.param
    reset()


def reached(
    host: str, port: int, uid: int = APP, *, gid: int | None = None, source: str = "", of: str = POD
) -> str:
    return connect(of, host, port, uid=uid, gid=gid, source=source)


def test_without_rules_nothing_is_captured(namespaces: None) -> None:
    reset()
    assert reached(PEER4, 9000) == "9000"
    assert reached(POD4, 8080, of=PEER) == "8080"


@pytest.mark.parametrize(("pod", "peer"), [(POD4, PEER4), (POD6, PEER6)], ids=["ipv4", "ipv6"])
def test_defaults_capture_both_families(backend: str, pod: str, peer: str) -> None:
    apply(CaptureConfig(), backend)
    # inbound
    assert reached(pod, 8080, of=PEER) == "15006"
    assert reached(pod, 4444, of=PEER) == "15006", "a port nobody declared is captured as well"
    for port in (15020, 15021, 15090):
        assert reached(pod, port, of=PEER) == str(port), "the kubelet and Prometheus have no identity"
    # outbound
    assert reached(peer, 9000) == "15001"
    assert reached(peer, 9000, uid=0) == "15001", "root in the application container is captured too"
    assert reached(peer, 9000, uid=PROXY) == "9000", "the proxy's own connections leave"
    assert reached(peer, 9000, uid=APP, gid=PROXY) == "15001", "no escape through the proxy's group"
    # on loopback
    assert reached("127.0.0.1" if ":" not in pod else "::1", 8080) == "8080"
    assert reached(pod, 8080) == "8080", "a call to the pod's own address stays direct"
    assert reached(pod, 8080, uid=PROXY) == "15006", "hairpin enters through the inbound side"
    assert reached(pod, 15021, uid=PROXY) == "15021"
    source = "127.0.0.6" if ":" not in pod else "::6"
    assert reached(pod, 8080, uid=PROXY, source=source) == "8080", "delivery to the application must not loop"


def test_inbound_lists(backend: str) -> None:
    apply(
        CaptureConfig(include_inbound=parse_ports("8080,9000-9090"), exclude_inbound=parse_ports("9090")),
        backend,
    )
    assert reached(POD4, 8080, of=PEER) == "15006"
    assert reached(POD4, 9090, of=PEER) == "9090", "an exclusion counts with an explicit list too"
    apply(CaptureConfig(include_inbound=parse_ports("8080")), backend)
    assert reached(POD4, 9090, of=PEER) == "9090"
    apply(CaptureConfig(include_inbound=()), backend)
    assert reached(POD4, 8080, of=PEER) == "8080", "an empty list is no inbound capture"
    assert reached(PEER4, 9000) == "15001"


def test_outbound_lists(backend: str) -> None:
    apply(CaptureConfig(exclude_outbound_cidrs=parse_cidrs("198.51.100.0/24,2001:db8::/32") or ()), backend)
    assert (reached(PEER4, 80), reached(OTHER4, 80), reached(PEER6, 80)) == ("15001", "80", "80")
    apply(CaptureConfig(include_outbound_cidrs=parse_cidrs("198.51.100.0/24")), backend)
    assert (reached(PEER4, 80), reached(OTHER4, 80)) == ("80", "15001")
    only_443 = CaptureConfig(include_outbound_cidrs=(), include_outbound_ports=parse_ports("443") or ())
    apply(only_443, backend)
    assert (reached(PEER4, 443), reached(PEER4, 80)) == ("15001", "80")
    apply(CaptureConfig(exclude_outbound_ports=parse_ports("9000") or ()), backend)
    assert (reached(PEER4, 9000), reached(PEER4, 80)) == ("9000", "15001")
    both = CaptureConfig(
        include_outbound_ports=parse_ports("80") or (),
        exclude_outbound_cidrs=parse_cidrs(f"{PEER4}/32") or (),
    )
    apply(both, backend)
    assert reached(PEER4, 80) == "80", "excluded addresses beat included ports"


def test_interfaces(backend: str) -> None:
    apply(CaptureConfig(exclude_interfaces=parse_interfaces("eth0")), backend)
    assert (reached(PEER4, 9000), reached(POD4, 8080, of=PEER)) == ("9000", "8080")
    apply(CaptureConfig(reroute_interfaces=parse_interfaces("eth0")), backend)
    assert reached(POD4, 8080, of=PEER) == "15001", "what a guest sends through the bridge is client traffic"


def test_applying_twice_changes_nothing(backend: str) -> None:
    listing = ["nft", "-s", "list", "ruleset"]
    apply(CaptureConfig(exclude_inbound=parse_ports("9090") or ()), backend)
    first = inside(POD, *listing).stdout
    apply(CaptureConfig(exclude_inbound=parse_ports("9090") or ()), backend)
    assert inside(POD, *listing).stdout == first
    assert reached(POD4, 8080, of=PEER) == "15006"


def test_rules_of_others_survive(backend: str) -> None:
    inside(POD, "nft", "-f", "-", stdin="table inet other { chain c { tcp dport 7 drop; }; }")
    apply(CaptureConfig(), backend)
    assert "table inet other" in inside(POD, "nft", "list", "ruleset").stdout


def test_a_failing_transaction_leaves_the_old_rules(backend: str) -> None:
    if backend != "nft":
        return  # iptables is atomic for one table of one family only; nft is the default for this reason
    apply(CaptureConfig(), backend)
    broken = (
        "table inet gatehouse\ndelete table inet gatehouse\ntable inet gatehouse { chain x { bogus; }; }\n"
    )
    assert inside(POD, "nft", "-f", "-", stdin=broken, check=False).returncode
    assert reached(PEER4, 9000) == "15001"


def test_without_the_right_to_write_rules_the_container_fails(namespaces: None) -> None:
    reset()
    command = [
        "setpriv",
        "--bounding-set=-net_admin",
        "--inh-caps=-net_admin",
        "--reuid=1337",
        "--clear-groups",
    ]
    done = inside(POD, *command, sys.executable, "-m", "injector.istio_init", check=False)
    assert done.returncode == 1
    assert "init_apply_failed" in done.stderr
    assert "CAP_NET_ADMIN" in done.stderr
    assert reached(PEER4, 9000) == "9000", "nothing was half applied"
