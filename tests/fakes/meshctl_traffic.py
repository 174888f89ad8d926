"""A fake cluster where the pods of `meshctl check --traffic` start, ask and end at once, as a test wants."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from injector.core.inject import ClusterFeatures, inject
from injector.core.patch import apply_patch
from meshctl.traffic.plan import INJECTED, ROLE_LABEL, Plan, Role
from meshctl.traffic.probe import Ask, Got, Report, meets, read_requests
from meshctl.traffic.token import issue
from tests.fakes.clock import EPOCH
from tests.fakes.kube_answers import Request
from tests.fakes.kube_api import FakeKube
from tests.fakes.kube_store import ApiError, Obj
from tests.fakes.meshctl_cluster import settings_of_cluster

Change = Callable[[Obj], object]
_PODS = re.compile(r"/api/v1/namespaces/([^/]+)/pods")
_NAMESPACE = re.compile(r"/api/v1/namespaces/([^/]+)")


def plan(**changes: Any) -> Plan:
    """A plan of its own namespace."""
    issued = issue("a1b2c3", EPOCH)
    made = Plan(
        run="a1b2c3",
        namespace="gatehouse-traffic-a1b2c3",
        own=True,
        image="gatehouse/control:0.1.0",
        issuer=issued.issuer,
        jwks=issued.jwks,
        token=issued.token,
    )
    return replace(made, **changes)


def as_wanted(ask: Ask) -> Got:
    """What a mesh that works answers."""
    return Got(name=ask.name, status=ask.status, text=ask.text, error=ask.error)


def with_sidecar(pod: Mapping[str, Any]) -> Obj:
    """The pod as the webhook makes it, in classic mode; as it is when it says no."""
    result = inject(
        pod,
        namespace=pod["metadata"]["namespace"],
        namespace_labels={"istio-injection": "enabled"},
        namespace_annotations={},
        config=settings_of_cluster(),
        capabilities=ClusterFeatures(native_sidecars=False),
    )
    return dict(apply_patch(pod, result.patch)) if result.patch else copy.deepcopy(dict(pod))


def lived(pod: Obj, got: Mapping[str, Got]) -> Obj:
    """The pod when the server is ready, or the client has ended; `got` is what differs from the wanted."""
    names = sorted(item["name"] for item in pod["spec"]["containers"])  # app, istio-proxy
    pod["spec"]["nodeName"] = "node1"
    if role_of(pod) is Role.SERVER:
        states = {name: {"running": {}} for name in names}
        phase, ready = "Running", True
    else:
        asks = requests_of(pod)
        said = tuple(got.get(ask.name) or as_wanted(ask) for ask in asks)
        report = Report(good=all(map(meets, asks, said)), rounds=3, seconds=1.5, got=said)
        states = {name: {"terminated": {"exitCode": 0}} for name in names}
        states["app"] = {"terminated": {"exitCode": 0, "message": report.to_line()}}
        phase, ready = "Succeeded", False
    pod["status"] = {
        "phase": phase,
        "conditions": [{"type": "Ready", "status": str(ready)}],
        "containerStatuses": [{"name": n, "ready": ready, "state": state} for n, state in states.items()],
    }
    return pod


def requests_of(pod: Mapping[str, Any]) -> tuple[Ask, ...]:
    """What a client's pod is told to ask."""
    (app,) = [item for item in pod["spec"]["containers"] if item["name"] == "app"]
    (word,) = [w for w in app["command"] if w.startswith("--requests=")]
    return read_requests(word.removeprefix("--requests="))


def role_of(pod: Mapping[str, Any]) -> Role:
    return Role(pod["metadata"]["labels"][ROLE_LABEL])


def waiting(pod: Obj, container: str, reason: str, message: str = "") -> None:
    """The container waits, and with it the pod."""
    state = {"waiting": {"reason": reason, "message": message}}
    statuses = [{"name": c["name"], "ready": False, "state": {}} for c in pod["spec"]["containers"]]
    found = [{**item, "state": state} if item["name"] == container else item for item in statuses]
    pod["status"] = {"phase": "Pending", "conditions": [], "containerStatuses": found}


class TrafficKube(FakeKube):
    """FakeKube with a webhook and a kubelet for these pods, and a controller that empties deleted namespaces.

    Attributes:
        got: answers by the request's name that differ from the wanted ones.
        changes: what happens to a pod of a role beside.
        not_injected: the webhook is not called.
        refusals: what the server says no to, by method and path (a regular expression), and how.
        kept: pods as they were, by role, also when they are deleted again.
    """

    def __init__(self) -> None:
        super().__init__()
        self.got: dict[str, Got] = {}
        self.changes: dict[Role, Change] = {}
        self.not_injected = False
        self.refusals: dict[tuple[str, str], ApiError] = {}
        self.kept: dict[Role, Obj] = {}

    def answer(self, request: Request) -> tuple[int, Any]:
        for (method, path), error in self.refusals.items():
            if request.method == method and re.fullmatch(path, request.path):
                raise error
        if request.method == "DELETE" and (found := _NAMESPACE.fullmatch(request.path)):
            for resource, objects in list(self.store.objects.items()):
                for key in [key for key in objects if key[0] == found[1]]:
                    self.store.delete(resource, key)
        pods = _PODS.fullmatch(request.path)
        if request.method != "POST" or not pods or ROLE_LABEL not in request.body["metadata"]["labels"]:
            return super().answer(request)
        body: Obj = copy.deepcopy(request.body)
        if role_of(body) in INJECTED and not self.not_injected:
            body = with_sidecar(body)
        status, _ = super().answer(replace(request, body=body))
        role = role_of(body)
        lived(body, self.got)
        if role in self.changes:
            self.changes[role](body)
        self.add({**body, "kind": "Pod"})
        self.kept[role] = body
        return status, {**body, "kind": "Pod", "apiVersion": "v1"}
