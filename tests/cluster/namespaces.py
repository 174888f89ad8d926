"""Network namespaces with the links between them, and the process trees that live in them.

```text
 machine --ghk-host--- ghk-control (bridge 10.253.0.1: etcd, API server, DNS) --- ghk-node1, ghk-node2
```
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cluster import layout
from tests.cluster.layout import Layout
from tests.cluster.run import ClusterError, run, wait_for, works

_HERE = Path(__file__).resolve().parent
_BRIDGE = "nodes"


def create_network(place: Layout) -> None:
    """All namespaces, links, addresses and routes."""
    control = layout.CONTROL_NAMESPACE
    for name in [control, *(node.namespace for node in place.places)]:
        run(["ip", "netns", "add", name])
        run(["ip", "-n", name, "link", "set", "lo", "up"])
        _sysctl(name, "net.ipv4.ip_forward=1", required=True)
        _sysctl(name, "net.ipv6.conf.all.forwarding=1", required=False)
        # Without it, answers that stay on a pod bridge would miss the translation of Service addresses.
        _sysctl(name, "net.bridge.bridge-nf-call-iptables=1", required=False)
    _batch(
        control,
        f"link add {_BRIDGE} type bridge",
        f"addr add {layout.API_ADDRESS}/{layout.NODE_NETWORK_PREFIX} dev {_BRIDGE}",
        f"link set {_BRIDGE} up",
    )
    for node in place.places:
        link = f"to-{node.name}"
        _batch(control, f"link add {link} type veth peer name eth0 netns {node.namespace}")
        _batch(control, f"link set {link} master {_BRIDGE}", f"link set {link} up")
        others = [other for other in place.places if other.number != node.number]
        _batch(
            node.namespace,
            f"addr add {node.address}/{layout.NODE_NETWORK_PREFIX} dev eth0",
            "link set eth0 up",
            f"route add default via {layout.API_ADDRESS}",
            *(f"route add {other.pod_network} via {other.address}" for other in others),
        )
        _batch(control, f"route add {node.pod_network} via {node.address}")
    _batch(control, f"route add {layout.SERVICE_NETWORK} via {place.places[0].address}")
    run(["ip", "link", "add", layout.HOST_LINK, "type", "veth", "peer", "name", "machine", "netns", control])
    _batch(control, f"addr add {layout.HOST_PEER}/30 dev machine", "link set machine up")
    run(["ip", "addr", "add", f"{layout.HOST_ADDRESS}/30", "dev", layout.HOST_LINK])
    run(["ip", "link", "set", layout.HOST_LINK, "up"])
    for network in layout.CLUSTER_NETWORKS:
        run(["ip", "route", "add", network, "via", layout.HOST_PEER])


def remove_network(place: Layout) -> None:
    """Undo `create_network`, as far as it is there; routes and peers go with their link."""
    works(["ip", "link", "del", layout.HOST_LINK])
    for name in [layout.CONTROL_NAMESPACE, *(node.namespace for node in place.places)]:
        works(["ip", "netns", "del", name])


def _batch(namespace: str, *lines: str) -> None:
    run(["ip", "-n", namespace, "-batch", "-"], stdin="\n".join(lines) + "\n")


def _sysctl(namespace: str, setting: str, *, required: bool) -> None:
    command = ["nsenter", f"--net=/run/netns/{namespace}", "sysctl", "-qw", setting]
    if required:
        run(command)
    else:
        works(command)  # a kernel without IPv6 or without the bridge module


@dataclass(frozen=True, slots=True)
class Tree:
    """A process tree in a network, mount and process namespace of its own."""

    name: str
    state: Path

    @property
    def _pid_file(self) -> Path:
        return self.state / f"{self.name}.pid"

    def start(
        self,
        *,
        namespace: str,
        mounts: list[list[str]],
        directories: list[str],
        programs: dict[str, list[str]],
    ) -> None:
        """Start `programs`; they are restarted when they end, and killed with `stop`."""
        logs = self.state / "log"
        logs.mkdir(parents=True, exist_ok=True)
        specification = self.state / f"{self.name}.json"
        content: dict[str, Any] = {
            "mounts": mounts,
            "directories": directories,
            "programs": programs,
            "logs": str(logs),
        }
        specification.write_text(json.dumps(content, indent=1), encoding="utf-8")
        command = [
            *("nsenter", f"--net=/run/netns/{namespace}"),
            *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
            *(sys.executable, "-I", str(_HERE / "init.py"), str(specification)),
        ]
        with (logs / f"{self.name}.log").open("ab") as log:
            # Not subprocess.Popen: it complains when it is forgotten before its process ends.
            pid = os.posix_spawnp(
                command[0],
                command,
                os.environ,
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_DUP2, log.fileno(), 1),
                    (os.POSIX_SPAWN_DUP2, log.fileno(), 2),
                ],
                setsid=True,
            )
        self._pid_file.write_text(f"{pid} {_started(pid)}", encoding="ascii")

    def outer_pid(self) -> int | None:
        """The process that holds the tree, or None when it is gone (and not when its number was reused)."""
        try:
            pid, started = self._pid_file.read_text(encoding="ascii").split(" ", 1)
            return int(pid) if _started(int(pid)) == started else None
        except (OSError, ValueError):
            return None

    def init_pid(self) -> int:
        """Process 1 of the tree, as the machine sees it: what `nsenter --target` takes.

        Raises:
            ClusterError: the tree does not run.
        """
        outer = self.outer_pid()
        try:
            return int(Path(f"/proc/{outer}/task/{outer}/children").read_text(encoding="ascii").split()[0])
        except (OSError, IndexError) as error:
            raise ClusterError(
                f"{self.name} does not run; its log: {self.state}/log/{self.name}.log"
            ) from error

    def enter(self, command: list[str], *, timeout: float = 60) -> str:
        """Run a command inside the tree's namespaces."""
        return run(["nsenter", "--target", str(self.init_pid()), "-m", "-p", "-n", *command], timeout=timeout)

    def stop(self) -> None:
        """Kill the tree and wait for its end; nothing to do when it is gone."""
        pid = self.outer_pid()
        if pid is None:
            return
        inner: int | None = None
        with contextlib.suppress(ClusterError):
            inner = self.init_pid()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        gone = [number for number in (pid, inner) if number]
        wait_for(f"the end of {self.name}", lambda: not any(map(_alive, gone)), seconds=30, every=0.05)


def _started(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[19]


def _alive(pid: int) -> bool:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)  # it may be our own child
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
