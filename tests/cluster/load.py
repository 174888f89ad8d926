"""Requests from inside a pod, for as long as a test wants, counted one by one."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.cluster.kubectl import Kubectl
from tests.cluster.run import ClusterError

# Runs in the application's container: standard library, two loops - one connection for all requests and a
# new one for each - until standard input closes.
_SCRIPT = """
import http.client, json, sys, threading, time
host, port, path = sys.argv[1], int(sys.argv[2]), sys.argv[3]
stop, result = threading.Event(), {}
def loop(name, keep):
    ok, failed, connection = 0, [], None
    while not stop.is_set():
        try:
            connection = connection or http.client.HTTPConnection(host, port, timeout=10)
            connection.request("GET", path)
            response = connection.getresponse()
            body = response.read()
            if response.status == 200:
                ok += 1
            else:
                failed.append("%d %s" % (response.status, body[:120].decode(errors="replace")))
        except (OSError, http.client.HTTPException) as error:
            failed.append(repr(error))
            connection = None
        if connection and (not keep or response.will_close):
            connection.close()
            connection = None
        time.sleep(0.005)
    result[name] = {"ok": ok, "failed": failed}
threads = [threading.Thread(target=loop, args=names) for names in (("kept", True), ("new", False))]
for thread in threads: thread.start()
print("started", flush=True)
sys.stdin.read()
stop.set()
for thread in threads: thread.join()
print(json.dumps(result))
"""


@dataclass(slots=True)
class Outcome:
    """What became of the requests, filled when the load ends."""

    ok: int = 0
    failed: list[str] = field(default_factory=list)


@contextlib.contextmanager
def load(
    kubectl: Kubectl, pod: str, container: str, host: str, port: int, path: str = "/health"
) -> Iterator[Outcome]:
    """Send GET requests from a pod while the block runs.

    Raises:
        ClusterError: the load could not be started, or broke off.
    """
    outcome = Outcome()
    command = kubectl.command("exec", "-i", pod, "-c", container, "--", "python3", "-c", _SCRIPT)
    process = subprocess.Popen(
        [*command, host, str(port), path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout
        if process.stdout.readline().strip() != "started":
            raise ClusterError(f"no load from {pod}: {process.communicate(timeout=10)[1]}")
        yield outcome
        said, complaint = process.communicate(timeout=60)  # closes its standard input
        if process.returncode:
            raise ClusterError(f"the load from {pod} broke off: {complaint}")
        for counts in json.loads(said).values():
            outcome.ok += counts["ok"]
            outcome.failed += counts["failed"]
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
