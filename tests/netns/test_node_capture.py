"""Rules from outside of the pod: the real worker, processes in namespaces that stand for pods, real packets.

A directory stands for the node's `/proc`: the processes in it are real, their control groups are written by
hand. The other half is `istio-validation`, inside of the pod and without any right.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from injector.capture_agent import ask
from injector.capture_namespaces import NamespaceError, Node, Process
from injector.core.capture import CaptureConfig, parse_ports
from injector.core.capture_messages import Answer, NamespaceCode, Request
from tests.netns.netns_lab import REPO, connect, inside, run

pytestmark = [
    pytest.mark.netns,
    pytest.mark.xdist_group("netns"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for network namespaces"),
]

NUMBER = os.getpid()
POD, AGAIN, NODE, WORKER = (f"gh-{name}-{NUMBER}" for name in ("sand", "again", "node", "work"))
POD4, NODE4, AGAIN4 = "192.0.2.2", "192.0.2.1", "198.51.100.2"  # TEST-NET-1 and -2 (RFC 5737)
POD6, NODE6 = "2001:db8::2", "2001:db8::1"
UID, OTHER = "0b7d1e5c-3f2a-4c7e-9a41-6d5b8f0e2c11", "1c8e2f6d-4a3b-4d8f-8b52-7e6c9a1f3d22"
PROXY = 1337


@pytest.fixture(scope="module")
def namespaces() -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for name in (POD, AGAIN, NODE, WORKER):
            run("ip", "netns", "add", name)
            stack.callback(run, "ip", "netns", "delete", name, check=False)
            inside(name, "ip", "link", "set", "lo", "up")
        for name, link, address, other in (
            (POD, "pod", POD4, NODE4),
            (AGAIN, "again", AGAIN4, "198.51.100.1"),
        ):
            run(
                "ip",
                "link",
                "add",
                "eth0",
                "netns",
                name,
                "type",
                "veth",
                "peer",
                "name",
                link,
                "netns",
                NODE,
            )
            for place, device, own in ((name, "eth0", address), (NODE, link, other)):
                inside(place, "ip", "addr", "add", f"{own}/24", "dev", device)
                inside(place, "ip", "link", "set", device, "up")
        for place, device, own in ((POD, "eth0", POD6), (NODE, "pod", NODE6)):
            inside(place, "ip", "addr", "add", f"{own}/64", "dev", device, "nodad")
        stack.enter_context(listening(NODE, "0.0.0.0:9000", "[::]:9000"))
        yield


@contextlib.contextmanager
def listening(namespace: str, *addresses: str) -> Iterator[None]:
    echo = [sys.executable, "tests/netns/netns_echo.py", *addresses]
    command = ["nsenter", f"--net=/run/netns/{namespace}", *echo]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=REPO) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == b"ready\n"
            yield
        finally:
            server.kill()


@dataclass
class Place:
    """A node: the directory of its processes, and the worker's socket."""

    proc: Path
    socket: Path
    ends: contextlib.ExitStack

    def process(self, namespace: str, cgroup: str, *, pid: int | None = None) -> int:
        """A process that stays, in a network and a control group; `pid` is the number that the node sees."""
        child = subprocess.Popen(["nsenter", f"--net=/run/netns/{namespace}", "sleep", "600"])
        self.ends.callback(child.wait)
        self.ends.callback(child.kill)
        wanted = Path(f"/run/netns/{namespace}").stat().st_ino
        network = Path(f"/proc/{child.pid}/ns/net")
        until(lambda: network.stat().st_ino == wanted, "the process is in its network")
        self.show(child.pid if pid is None else pid, child.pid, cgroup)
        return child.pid

    def show(self, number: int, pid: int, cgroup: str) -> None:
        entry = self.proc / str(number)
        (entry / "ns").mkdir(parents=True)
        (entry / "stat").symlink_to(f"/proc/{pid}/stat")
        (entry / "ns" / "net").symlink_to(f"/proc/{pid}/ns/net")
        (entry / "cgroup").write_text(cgroup)

    def show_own(self) -> None:
        """What a process finds about itself."""
        (self.proc / "self" / "ns").mkdir(parents=True)
        (self.proc / "self" / "cgroup").write_text("0::/\n")
        (self.proc / "self" / "ns" / "net").symlink_to("/proc/self/ns/net")

    def hide(self, number: int) -> None:
        (self.proc / str(number) / "stat").unlink()

    def capture(self, uid: str = UID, config: CaptureConfig | None = None) -> Answer:
        return ask(self.socket, Request(uid, config or CaptureConfig()), timeout=30)


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def group(uid: str) -> str:
    return f"0::/kubepods/burstable/pod{uid}/{'3c1f' * 16}\n"


@pytest.fixture
def place(namespaces: None, tmp_path: Path) -> Iterator[Place]:
    for name in (POD, AGAIN, NODE, WORKER):
        inside(name, "nft", "flush", "ruleset")
    with contextlib.ExitStack() as ends:
        # Short: the path of a Unix socket is bounded.
        found = Place(tmp_path, Path(f"/tmp/gh-capture-{NUMBER}.sock"), ends)
        found.process(NODE, "0::/init.scope\n", pid=1)
        yield found


@pytest.fixture
def worker(place: Place) -> Iterator[Place]:
    with a_worker(place):
        yield place


@contextlib.contextmanager
def a_worker(place: Place, *privileges: str) -> Iterator[subprocess.Popen[bytes]]:
    place.show_own()
    program = [sys.executable, "-m", "injector.capture_worker"]
    options = [f"--socket={place.socket}", f"--proc={place.proc}"]
    command = ["nsenter", f"--net=/run/netns/{WORKER}", *privileges, *program, *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=REPO)
    try:
        assert process.stdout is not None
        assert b"listening" in process.stdout.readline()
        yield process
    finally:
        process.terminate()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
        place.socket.unlink(missing_ok=True)


def rules(namespace: str) -> str:
    return inside(namespace, "nft", "-s", "list", "ruleset").stdout


def captured(namespace: str = POD, peer: str = NODE4) -> bool:
    """Outgoing connections are led to a port where nobody listens yet."""
    said = connect(namespace, peer, 9000)
    assert said in {"9000", "ConnectionRefusedError"}
    return said != "9000"


# --- the worker


def test_rules_from_outside_are_those_from_inside(worker: Place) -> None:
    worker.process(POD, group(UID))
    config = CaptureConfig(exclude_outbound_ports=parse_ports("9001") or ())
    assert not captured()
    answer = worker.capture(config=config)
    assert (answer.code, answer.backend) == ("", "nft")
    assert captured()
    assert captured(peer=NODE6)
    assert connect(POD, NODE4, 9000, uid=PROXY) == "9000"
    outside = rules(POD)
    inside(POD, "nft", "flush", "ruleset")
    inside(POD, sys.executable, "-m", "injector.istio_init", "--config", config.to_json())
    assert outside == rules(POD)
    assert rules(NODE) == rules(WORKER) == "", "nobody else's network was touched"


def test_rules_that_are_there_are_left_alone_and_lost_ones_come_back(worker: Place) -> None:
    worker.process(POD, group(UID))
    first = worker.capture()
    assert captured()
    counted = inside(POD, "nft", "list", "ruleset").stdout
    again = worker.capture()
    assert (again.code, again.backend, again.network) == ("", "", first.network)
    assert inside(POD, "nft", "list", "ruleset").stdout == counted, "counters went on"
    inside(POD, "nft", "flush", "ruleset")
    assert worker.capture().backend == "nft"
    assert captured()


def test_a_new_sandbox_of_the_same_pod_gets_rules_of_its_own(worker: Place) -> None:
    old = worker.process(POD, group(UID))
    first = worker.capture()
    worker.hide(old)
    assert worker.capture().code == NamespaceCode.NO_SANDBOX
    worker.process(AGAIN, group(UID))
    assert not captured(AGAIN, "198.51.100.1")
    second = worker.capture()
    assert (second.code, second.backend) == ("", "nft")
    assert second.network != first.network
    assert captured(AGAIN, "198.51.100.1")


def test_the_network_of_the_node_is_never_touched(worker: Place) -> None:
    worker.process(NODE, group(UID))
    answer = worker.capture()
    assert answer.code == NamespaceCode.NODE_NETWORK
    assert "never touched" in answer.message
    worker.process(WORKER, group(OTHER))
    assert worker.capture(OTHER).code == NamespaceCode.NODE_NETWORK, "nor its own"
    assert rules(NODE) == rules(WORKER) == ""


def test_a_network_of_two_pods_is_not_touched(worker: Place) -> None:
    worker.process(POD, group(UID))
    worker.process(POD, group(OTHER))
    answer = worker.capture()
    assert (answer.code, OTHER in answer.message) == (NamespaceCode.SHARED, True)
    assert rules(POD) == ""


def test_the_oldest_process_of_a_pod_is_its_sandbox(worker: Place) -> None:
    """Containers may make networks of their own, and runtimes keep monitors in the pod's control group."""
    worker.process(NODE, group(UID))  # a monitor
    worker.process(POD, group(UID))
    time_of_start_moves_on()
    worker.process(AGAIN, group(UID))
    assert worker.capture().code == ""
    assert rules(POD)
    assert rules(AGAIN) == ""


def time_of_start_moves_on() -> None:
    """Processes' times of start are told apart by 10 ms."""
    tick = time.monotonic() + 2 / os.sysconf("SC_CLK_TCK")
    until(lambda: time.monotonic() > tick, "time passes")


def test_a_number_that_is_reused_is_noticed(place: Place) -> None:
    pid = place.process(POD, group(UID))
    node = Node(place.proc, frozenset(), None)
    real = next(p for p in node.processes() if p.pid == pid)
    os.close(node._open(real))
    for stale in (Process(pid, real.start - 1, UID), Process(pid, real.start, OTHER)):
        with pytest.raises(NamespaceError, match="another's by now") as caught:
            node._open(stale)
        assert caught.value.code is NamespaceCode.NO_SANDBOX


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"\n", "capture_bad_request"),
        (b'{"uid":"/etc","config":"{}"}\n', "capture_bad_request"),
        (b'{"uid":"%s","config":"{\\"proxy_uid\\":0}"}\n' % UID.encode(), "capture_format"),
        (b'{"uid":"%s","config":"{}"}\n' % UID.encode(), "capture_no_sandbox"),
    ],
    ids=["nothing", "path", "root-exempt", "nobody-there"],
)
def test_what_the_worker_is_told_is_not_believed(worker: Place, line: bytes, code: str) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(worker.socket))
        connection.sendall(line)
        assert Answer.of_line(connection.makefile("rb").readline()).code == code


def test_without_the_right_to_enter_it_says_so(place: Place) -> None:
    place.process(POD, group(UID))
    with a_worker(place, "setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"):
        answer = place.capture()
    assert answer.code == NamespaceCode.ENTER
    assert "SYS_ADMIN" in answer.message
    assert rules(POD) == ""


def test_it_does_not_start_where_it_cannot_see_what_it_must_not_touch(place: Place) -> None:
    """Without hostPID, process 1 is in the container's own network."""
    place.show_own()
    command = [
        sys.executable,
        "-m",
        "injector.capture_worker",
        f"--socket={place.socket}",
        f"--proc={place.proc}",
    ]
    done = inside(NODE, *command, check=False)
    assert done.returncode == 1
    assert NamespaceCode.NO_HOST in done.stderr


# --- inside of the pod


def validation(*arguments: str, addresses: str = POD4, uid: int = PROXY) -> subprocess.Popen[str]:
    user = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--bounding-set=-all"]
    program = [sys.executable, "-m", "injector.istio_validation", *arguments]
    return subprocess.Popen(
        ["nsenter", f"--net=/run/netns/{POD}", *user, *program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPO,
        env={**os.environ, "POD_IPS": addresses, "NODE_NAME": "node1"},
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=30)
    return process.returncode, out, err


def test_without_rules_the_pod_does_not_start_and_says_why(place: Place) -> None:
    code, _, said = ended(validation("--timeout", "0.3"))
    assert code == 1
    for part in ("validation_not_captured", POD4, "15002", "node1", "component=capture", "next:"):
        assert part in said


def test_it_goes_on_as_soon_as_the_rules_are_there(worker: Place) -> None:
    worker.process(POD, group(UID))
    waiting = validation("--timeout", "25")
    listens = f":{15006:04X} 00000000:0000 0A"
    until(lambda: listens in inside(POD, "cat", "/proc/self/net/tcp").stdout, "it listens")
    assert waiting.poll() is None
    assert worker.capture().code == ""
    code, out, _ = ended(waiting)
    assert code == 0
    assert f"proved at {POD4}, {POD6}" in out


@pytest.mark.parametrize("family", ["ip", "ip6"])
def test_one_family_is_not_enough(place: Place, family: str) -> None:
    script = (
        f"table {family} half {{ chain output {{ type nat hook output priority -100;"
        " meta l4proto tcp redirect to :15006; }; }"
    )
    inside(POD, "nft", "-f", "-", stdin=script)
    code, _, said = ended(validation("--timeout", "0.3"))
    assert code == 1
    missing, there = (POD6, POD4) if family == "ip" else (POD4, POD6)
    assert f"a connection to {missing} port 15002" in said
    assert f"to {there}" not in said


def test_that_somebody_answers_is_no_proof(place: Place) -> None:
    """Only an arrival at its own listener is one."""
    with listening(POD, f"{POD4}:15002", f"[{POD6}]:15002"):
        code, _, said = ended(validation("--timeout", "0.3"))
    assert (code, "validation_not_captured" in said) == (1, True)


@pytest.mark.parametrize(
    "config",
    [
        CaptureConfig(include_inbound=(), include_outbound_cidrs=()),
        CaptureConfig(exclude_outbound_ports=parse_ports("1-15010") or ()),
        CaptureConfig(exclude_interfaces=("eth0",)),
        CaptureConfig(proxy_uid=1_000_680_001),
    ],
    ids=["nothing-captured", "port-excluded", "interface", "openshift"],
)
def test_whatever_is_captured_it_can_tell(worker: Place, config: CaptureConfig) -> None:
    worker.process(POD, group(UID))
    options = ("--config", config.to_json(), "--timeout", "0.3")
    assert ended(validation(*options, uid=config.proxy_uid))[0] == 1
    assert worker.capture(config=config).code == ""
    assert ended(validation(*options, uid=config.proxy_uid))[0] == 0


def test_rules_for_another_user_are_no_proof(worker: Place) -> None:
    worker.process(POD, group(UID))
    assert worker.capture(config=CaptureConfig(proxy_uid=4242)).code == ""
    assert ended(validation("--timeout", "0.3"))[0] == 1
