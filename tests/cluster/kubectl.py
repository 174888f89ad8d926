"""kubectl, as the tests use it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cluster.run import ClusterError, run, wait_for

Object = dict[str, Any]

PATIENCE = 180.0
"""How long the pods of a test may take, seconds. Kubelets up to 1.20 let a deleted pod of several containers
go only when their next collection of dead containers comes, once a minute: a minute is no deadline for it.
"""


@dataclass(frozen=True, slots=True)
class Kubectl:
    """Commands against one cluster, in one namespace.

    Args:
        kubeconfig: the cluster.
        namespace: where commands without `-n` work; "" leaves it to the kubeconfig.
    """

    kubeconfig: Path
    namespace: str = ""

    def within(self, namespace: str) -> Kubectl:
        """The same for another namespace."""
        return Kubectl(self.kubeconfig, namespace)

    def command(self, *words: str) -> list[str]:
        """The whole command line, for a process of the caller's own."""
        place = [f"--namespace={self.namespace}"] if self.namespace else []
        return ["kubectl", f"--kubeconfig={self.kubeconfig}", *place, *words]

    def __call__(self, *words: str, stdin: str | None = None, timeout: float = 60) -> str:
        """Output of a kubectl command.

        Raises:
            ClusterError: it failed.
        """
        return run(self.command(*words), stdin=stdin, timeout=timeout)

    def get(self, *words: str) -> Object:
        """`kubectl get ... -o json`."""
        found: Object = json.loads(self("get", *words, "-o", "json"))
        return found

    def items(self, *words: str) -> list[Object]:
        """The objects of a list."""
        found: list[Object] = self.get(*words)["items"]
        return found

    def apply(self, objects: Iterable[Mapping[str, Any]]) -> str:
        """Apply objects; what kubectl said, warnings of webhooks included."""
        document = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
        return self("apply", "-f", "-", stdin=document)

    def execute(self, pod: str, container: str, *words: str, timeout: float = 60) -> tuple[int, str]:
        """Exit code and output (both streams) of a command in a container."""
        command = self.command("exec", pod, "-c", container, "--", *words)
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
        return done.returncode, done.stdout + done.stderr

    def pods(self, selector: str = "") -> list[Object]:
        """The pods that are not on their way out."""
        found = self.items("pods", *([f"--selector={selector}"] if selector else []))
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def pod(self, selector: str) -> str:
        """The name of the one pod that matches.

        Raises:
            ClusterError: there is none, or more than one.
        """
        names = [pod["metadata"]["name"] for pod in self.pods(selector)]
        if len(names) != 1:
            raise ClusterError(
                f"pods with {selector} in {self.namespace}: {names or 'none'}, one was expected"
            )
        return str(names[0])

    def wait_ready(self, selector: str = "", *, count: int = 1, seconds: float = PATIENCE) -> list[Object]:
        """Wait until at least `count` pods match and all that match are Ready; returns them.

        Raises:
            ClusterError: with what hinders each of them.
        """
        found: list[Object] = []

        def all_ready() -> bool:
            found[:] = self.pods(selector)
            return len(found) >= count and all(map(is_ready, found))

        self._wait(f"Ready pods {selector} in {self.namespace}", all_ready, seconds)
        return found

    def wait_gone(self, *words: str, seconds: float = PATIENCE) -> None:
        """Wait until `kubectl get ...` finds nothing."""
        self._wait(
            f"the end of {' '.join(words)}", lambda: not self("get", *words, "-o", "name").strip(), seconds
        )

    def _wait(self, what: str, condition: Callable[[], bool], seconds: float) -> None:
        try:
            wait_for(what, condition, seconds=seconds, every=0.3)
        except ClusterError as error:
            raise ClusterError(f"{error}\n{self.story()}") from error

    def story(self) -> str:
        """What a person would look at next: pods and events of the namespace."""
        pods = self("get", "pods", "-o", "wide")
        events = self("get", "events", "--sort-by=.lastTimestamp").splitlines()
        return "\n".join([pods, *events[-30:]])


def is_ready(pod: Object) -> bool:
    """Whether the pod's condition Ready is True."""
    conditions: Sequence[Object] = pod["status"].get("conditions", [])
    return any(item["type"] == "Ready" and item["status"] == "True" for item in conditions)
