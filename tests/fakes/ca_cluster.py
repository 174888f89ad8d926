"""The authority on a fake API server: real keys, real tokens, real pods in its watch."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ca import config as configuration
from ca.runtime import Runtime
from tests.fakes import ca_tokens
from tests.fakes.ca_running import RunningCa
from tests.fakes.kube_api import FakeKube

ISSUER = "https://kubernetes.default.svc.cluster.local"
NAMESPACE = "istio-system"


def prepare(kube: FakeKube) -> None:
    """What a cluster has before the authority comes."""
    kube.add({"kind": "Namespace", "metadata": {"name": NAMESPACE}})
    kube.documents["/openid/v1/jwks"] = json.loads(ca_tokens.jwks())
    kube.documents["/.well-known/openid-configuration"] = {"issuer": ISSUER, "jwks_uri": "https://x/y"}


def pod(
    name: str = "web-1", *, uid: str = ca_tokens.POD_UID, account: str = "web", **changes: Any
) -> dict[str, Any]:
    """A running pod; `meta`, `spec` and `status` add fields."""
    return {
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "demo", "uid": uid, **changes.get("meta", {})},
        "spec": {"serviceAccountName": account, "nodeName": "node-17", **changes.get("spec", {})},
        "status": {"phase": "Running", **changes.get("status", {})},
    }


def load(
    kube: FakeKube, directory: Path, *, file: Path | None = None, **overrides: object
) -> configuration.CaConfig:
    """Settings for loopback and this API server."""
    return configuration.load(
        file,
        {},
        {
            "state_dir": str(directory / "state"),
            "token.audiences": ca_tokens.AUDIENCE,
            "listen.grpc": "127.0.0.1:0",
            "listen.http": "127.0.0.1:0",
            "listen.plain": "127.0.0.1:0",
            "limits.caller_in_flight": 16,
            "reload_interval": "100ms",
            "drain": "1s",
            "cluster.kubernetes": "true",
            "cluster.kubeconfig": str(kube.kubeconfig(directory)),
            "cluster.replica": "ca-0",
            "cluster.pod_wait": "200ms",
            "serving.names": "localhost,127.0.0.1",
            **{name.replace("__", "."): value for name, value in overrides.items()},
        },
    )


class RunningClusterCa(RunningCa):
    """A started `Runtime` whose roots come from its own memory."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.roots = "".join(runtime._authority._roots_pem).encode()
        self._clients = []

    def token(self, **changes: Any) -> tuple[str, str]:
        return super().token(**{"iss": ISSUER, **changes})


@contextlib.contextmanager
def cluster_ca(
    kube: FakeKube, directory: Path, *, start: bool = True, file: Path | None = None, **overrides: object
) -> Iterator[RunningClusterCa]:
    """An authority that serves until the block ends."""
    running = RunningClusterCa(Runtime(load(kube, directory, file=file, **overrides)))
    if start:
        running.runtime.start()
    try:
        yield running
    finally:
        running.close()


def until(condition: Callable[[], object], what: str, seconds: float = 10.0) -> None:
    """Wait for a condition that other threads bring about."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"{what}: not after {seconds} s")
        time.sleep(0.01)


def rfc3339(at: dt.datetime) -> str:
    return at.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
