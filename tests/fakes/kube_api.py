"""An API server in this process, on loopback over HTTPS: the fake for everything that talks to Kubernetes.

    with FakeKube() as kube:
        kube.add({"kind": "Pod", "metadata": {"namespace": "demo", "name": "web-1"}, "spec": {...}})
        api = kube.api("test")                    # a real mesh.kube client
        kube.fail(500, times=2, path="/api/v1/pods")
        kube.expire()                             # old watches and continue tokens get 410
        kube.cut_watches()

What it answers is held against a real cluster by tests/contract/test_kube_contract.py.
"""

from __future__ import annotations

import datetime as dt
import json
import re
import ssl
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mesh.kube.access import Access
from mesh.kube.client import KubeClient
from tests.fakes.kube_answers import PATH, KubeAnswers, Request
from tests.fakes.kube_pki import serving_pair
from tests.fakes.kube_server import Fault, KubeServer, Slow
from tests.fakes.kube_store import ApiError, Obj, Resource


class FakeKube(KubeAnswers):
    """The server. Use it as a context manager; everything is safe from any thread.

    Args:
        minor: of the version 1.x that it claims to be; decides what is served.
        tokens: when given, other bearer tokens get 401.
    """

    def __init__(self, *, minor: int = 20, tokens: set[str] | None = None) -> None:
        super().__init__(minor, tokens)
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.close_after_answer = False
        self.trickle = threading.Event()
        self._clients: list[KubeClient] = []
        for name in ("default", "kube-system", "kube-public", "kube-node-lease"):
            self.add({"kind": "Namespace", "metadata": {"name": name}})
        self._server = KubeServer(self)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    # --- life ---

    def __enter__(self) -> FakeKube:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        for client in self._clients:
            client.close()

    def stop(self) -> None:
        """No answer from now on: connections are cut and new ones refused."""
        self.stopping = True
        self.released.set()
        with self.store.changed:
            self.store.changed.notify_all()
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()
        self._server.cut_all()

    def restart(self) -> None:
        """Come back after `stop`, at the same port with the same objects."""
        self.stopping = False
        self.released = threading.Event()
        self._server = KubeServer(self, self.port)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    # --- clients ---

    @property
    def ca_pem(self) -> str:
        return serving_pair()[0]

    def access(self, token: str | None = "test-token") -> Access:
        return Access("127.0.0.1", self.port, ca_pem=self.ca_pem, token=token)

    def api(self, user_agent: str = "test", *, timeout: float = 5.0, token: str = "test-token") -> KubeClient:
        """A client of ours on this server; closed with it."""
        client = KubeClient(self.access(token), user_agent=user_agent, timeout=dt.timedelta(seconds=timeout))
        self._clients.append(client)
        return client

    def kubeconfig(self, directory: Path, token: str = "test-token") -> Path:
        """Write a kubeconfig file, for processes."""
        (directory / "kube-ca.pem").write_text(self.ca_pem)
        cluster = {"server": f"https://127.0.0.1:{self.port}", "certificate-authority": "kube-ca.pem"}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "fake", "cluster": cluster}],
            "users": [{"name": "test", "user": {"token": token}}],
            "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "test"}}],
            "current-context": "fake",
        }
        path = directory / "kubeconfig"
        path.write_text(json.dumps(config))
        return path

    def ask_client_certificate(self, ca_pem: str) -> None:
        """Refuse connections without a certificate of this CA."""
        self._server.context.load_verify_locations(cadata=ca_pem)
        self._server.context.verify_mode = ssl.CERT_REQUIRED

    # --- objects, past all checks ---

    def add(self, *objects: Mapping[str, Any]) -> Obj:
        """Add or replace objects as they are, found by `kind`; the last one as stored."""
        stored: Obj = {}
        for item in objects:
            resource = self.resource(str(item["kind"]))
            namespace = item.get("metadata", {}).get("namespace", "default")
            if resource.namespaced and not self.find("Namespace", namespace):
                self.add({"kind": "Namespace", "metadata": {"name": namespace}})
            bare = {k: v for k, v in item.items() if k not in {"kind", "apiVersion"}}
            stored = self.store.force(resource, bare)
        return stored

    def find(self, kind: str, name: str, namespace: str = "") -> Obj | None:
        return self.store.objects.get(self.resource(kind), {}).get((namespace, name))

    def all(self, kind: str) -> list[Obj]:
        with self.store.changed:
            return list(self.store.objects.get(self.resource(kind), {}).values())

    def remove(self, kind: str, name: str, namespace: str = "") -> None:
        """Delete at once, finalizers or not."""
        resource = self.resource(kind)
        with self.store.changed:
            item = self.store.get(resource, (namespace, name))
            item["metadata"].pop("finalizers", None)
            self.store.delete(resource, (namespace, name))

    def resource(self, kind: str) -> Resource:
        return next(r for r in self.resources if r.kind == kind)

    # --- faults ---

    def fail(
        self,
        status: int = 500,
        *,
        times: int = 1,
        method: str = "",
        path: str = "",
        watch: bool | None = None,
        reason: str = "",
        retry_after: str = "",
    ) -> Fault:
        """Answer the next matching requests with a status; `path` is a regular expression (fullmatch)."""
        headers = {"Retry-After": retry_after} if retry_after else {}
        return self._fault(Fault("status", times, method, path, watch, status, reason, headers))

    def cut(self, *, times: int = 1, method: str = "", path: str = "", watch: bool | None = None) -> Fault:
        """Close the connection of the next matching requests without an answer."""
        return self._fault(Fault("cut", times, method, path, watch))

    def silence(
        self, *, times: int = 1, method: str = "", path: str = "", watch: bool | None = None
    ) -> Fault:
        """Take the next matching requests and say nothing until `released` is set."""
        return self._fault(Fault("silence", times, method, path, watch))

    def garbage(
        self,
        body: bytes = b"<html>no JSON</html>\n",
        *,
        times: int = 1,
        method: str = "",
        path: str = "",
        watch: bool | None = None,
    ) -> Fault:
        """Answer 200 with this body."""
        return self._fault(Fault("garbage", times, method, path, watch, status=200, body=body))

    def trickling(self, body: bytes) -> Slow:
        """A body, for `routes`, that comes byte by byte until `trickle` is set."""
        return Slow(body, cut=False)

    def truncated(self, body: bytes) -> Slow:
        """A body, for `routes`, whose end never comes."""
        return Slow(body, cut=True)

    def wait_connections(self, most: int, deadline: float = 30.0) -> None:
        """Wait until at most so many connections are open."""
        end = time.monotonic() + deadline
        while len(self._server.connections) > most:
            if time.monotonic() > end:
                raise AssertionError(f"{len(self._server.connections)} connections after {deadline} s")
            self.released.wait(0.01)

    def _fault(self, fault: Fault) -> Fault:
        self.faults.append(fault)
        return fault

    def take_fault(self, request: Request) -> Fault | None:
        with self.store.changed:
            for fault in self.faults:
                if fault.matches(request):
                    fault.times -= 1
                    return fault
        return None

    def expire(self) -> None:
        """Forget the history: the next watch from an older version gets 410."""
        self.store.expire()

    def expire_before(self, version: int) -> None:
        """Watches from before `version` get 410."""
        with self.store.changed:
            self.store.oldest = version

    def serve(self, group: str, version: str, plural: str, kind: str, *, namespaced: bool = True) -> None:
        """Install a custom kind."""
        self.resources.append(
            Resource(group, (version,), plural, kind, namespaced, custom=True, needs_version=True)
        )

    def unserve(self, kind: str) -> None:
        """Take a kind away, with its objects."""
        resource = self.resource(kind)
        self.resources.remove(resource)
        with self.store.changed:
            self.store.objects.pop(resource, None)

    def bookmark(self) -> None:
        """Send a bookmark on every watch that asked for them."""
        self._command("bookmark", None)

    def end_watches(self) -> None:
        """End every watch cleanly, as at its time-out."""
        self._command("end", None)

    def cut_watches(self) -> None:
        """Cut every watch in the middle of its stream."""
        self._command("cut", None)

    def watch_error(self, status: int = 410, reason: str = "Expired") -> None:
        """Send an ERROR event on every watch, then end it."""
        self._command("error", ApiError(status, reason, "too old resource version").body())

    def watch_garbage(self, line: bytes = b"{not json\n") -> None:
        """Send a line on every watch."""
        self._command("raw", line)

    def mute_watches(self, muted: bool = True) -> None:
        """Stop to send events: a half-open connection."""
        with self.store.changed:
            self.muted = muted
            self.store.changed.notify_all()

    def _command(self, kind: str, data: Any) -> None:
        with self.store.changed:
            self.watch_commands.append((kind, data))
            self.store.changed.notify_all()

    # --- what was asked ---

    def asked(self, method: str = "", path: str = ".*", *, watch: bool | None = None) -> list[Request]:
        """Recorded requests whose path matches fully."""
        return [
            r
            for r in list(self.requests)
            if (not method or r.method == method)
            and re.fullmatch(path, r.path)
            and (watch is None or r.watch == watch)
        ]

    def verbs(self) -> set[tuple[str, str, str, str]]:
        """(namespace, group, resource, verb) of everything that was asked: the RBAC that is needed."""
        found = set()
        for request in list(self.requests):
            match = PATH.fullmatch(request.path)
            if match is None:
                found.add(("", "nonResourceURL", request.path, request.method.lower()))
                continue
            plural = match["plural"] + (f"/{match['sub']}" if match["sub"] else "")
            verb = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}.get(
                request.method
            )
            if verb is None:
                verb = "watch" if request.watch else "get" if match["name"] else "list"
            found.add((match["ns"] or "", match["group"] or "", plural, verb))
        return found

    def wait_watchers(self, count: int, deadline: float = 30.0) -> None:
        """Wait until so many watches are open."""
        with self.store.changed:
            if not self.store.changed.wait_for(lambda: self.watchers >= count, deadline):
                raise AssertionError(f"{self.watchers} watches are open after {deadline} s, not {count}")
