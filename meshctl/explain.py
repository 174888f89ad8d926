"""`meshctl explain inject`: would a pod get a sidecar, by which rule, and what would change?

Two layers decide. The API server calls webhooks by labels of namespace and pod; what it does not call
for is left alone, whatever annotations say. Then the injector goes through its table, with its settings.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from injector.core import podjson, workloads
from injector.core.decision import Outcome
from injector.core.inject import Result, uninject
from injector.core.keys import INJECT, NAMESPACE_LABEL, REVISION
from injector.core.status import Status
from injector.core.workloads import Template
from mesh.errors import MeshError
from mesh.obs.table import render_table
from meshctl.cluster import WEBHOOKS, Cluster, connect
from meshctl.errors import CtlCode, CtlError, bad_argument, not_found
from meshctl.exits import EXIT_OK, EXIT_PROBLEM
from meshctl.inject import Setting, read_files, setting_of
from meshctl.rules import RULES, passed_before
from meshctl.sidecars import restart_command, status_of
from meshctl.terminal import Colour, Screen, wrapped
from meshctl.webhooks import Called, evaluate

_KINDS: Final = {
    "Pod": ("/api/v1", "pods", ("po", "pod", "pods")),
    "Deployment": ("/apis/apps/v1", "deployments", ("deploy", "deployment", "deployments")),
    "StatefulSet": ("/apis/apps/v1", "statefulsets", ("sts", "statefulset", "statefulsets")),
    "DaemonSet": ("/apis/apps/v1", "daemonsets", ("ds", "daemonset", "daemonsets")),
    "ReplicaSet": ("/apis/apps/v1", "replicasets", ("rs", "replicaset", "replicasets")),
    "ReplicationController": ("/api/v1", "replicationcontrollers", ("rc", "replicationcontroller")),
    "Job": ("/apis/batch/v1", "jobs", ("job", "jobs")),
    "CronJob": ("", "cronjobs", ("cj", "cronjob", "cronjobs")),
}
_LABELS: Final = (NAMESPACE_LABEL, REVISION, "pod-security.kubernetes.io/enforce")


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Everything that is to be told about one pod or template.

    Attributes:
        webhooks: None when no cluster was asked.
        live: what the running pod says about its sidecar; None when it has none or is a template.
        running: it is a pod of the cluster, not a template.
    """

    template: Template
    namespace: str
    namespace_labels: Mapping[str, str]
    result: Result
    webhooks: Sequence[Called] | None
    live: Status | None
    running: bool
    stale: bool = False

    @property
    def called(self) -> bool:
        """One of our webhooks is called, as far as is known."""
        return self.webhooks is None or any(w.called and w.mesh == "gatehouse" for w in self.webhooks)

    @property
    def conflicts(self) -> tuple[str, ...]:
        """Webhooks of other meshes that would put their sidecar into this pod."""
        found = self.webhooks or ()
        return tuple(w.name for w in found if w.called and w.mesh not in {"", "gatehouse"})

    @property
    def injected(self) -> bool:
        """The pod would get, or keep, a sidecar when it is created now."""
        return self.called and self.result.decision.outcome is Outcome.INJECT

    @property
    def verdict(self) -> str:
        """One line."""
        decision = self.result.decision
        if decision.outcome is Outcome.DENY and self.called:
            return "it would be refused"
        return "it would get a sidecar" if self.injected else "it would not get a sidecar"

    @property
    def next_step(self) -> str:
        """What to do; empty when all is well."""
        if self.conflicts:
            return "remove one of the meshes from this namespace: two sidecars cannot share a pod"
        decision = self.result.decision
        if self.injected and self.running and self.live is None:
            return f"the pod is older than what asks for a sidecar: {self._restart()}"
        if self.injected and self.stale:
            return f"its sidecar was made with other settings: {self._restart()}"
        if not self.called and decision.outcome is Outcome.INJECT:
            return (
                "no webhook of Gatehouse selects it, although the injector would take it; see the table,"
                f" and: kubectl label namespace {self.namespace} {NAMESPACE_LABEL}=enabled"
            )
        _, _, hint = decision.message.partition("next: ")
        return hint

    def _restart(self) -> str:
        return restart_command(self.template.pod, self.namespace)

    def to_json(self) -> Mapping[str, Any]:
        """For programs; field names are stable."""
        decision, live = self.result.decision, self.live
        return {
            "kind": self.template.kind,
            "namespace": self.namespace,
            "name": self.template.name,
            "injected": self.injected,
            "verdict": self.verdict,
            "namespace_labels": dict(self.namespace_labels),
            "webhooks": None if self.webhooks is None else [dict(w.to_json()) for w in self.webhooks],
            "decision": {
                "rule": RULES[decision.reason][0],
                "outcome": decision.outcome.value,
                "code": str(decision.reason),
                "message": decision.message,
                "problems": list(self.result.problems),
                "warnings": list(self.result.warnings),
            },
            "changes": list(self.result.mutations),
            "conflicts": list(self.conflicts),
            "sidecar": live
            and {"version": live.version, "digest": live.digest, "mode": live.mode, "stale": self.stale},
            "next": self.next_step,
        }


def run_explain(options: argparse.Namespace, screen: Screen) -> int:
    """Explain one pod of the cluster, or each of a file."""
    if bool(options.target) == bool(options.files):
        raise bad_argument("give either a pod or -f FILE; next: meshctl explain --help")
    if options.offline and not options.files:
        raise bad_argument("--offline needs -f: a pod is looked up in the cluster")
    chunks = read_files(options.files)
    cluster = None if options.offline else connect(options)
    setting = setting_of(options, chunks, cluster)
    if cluster is not None and options.target:
        templates = [(find(cluster, options.target, setting.namespace), True)]
    else:
        templates = [(t, False) for chunk in chunks for t in workloads.walk(chunk.data)]
    if not templates:
        raise not_found("no document of the files has pods; known kinds: " + ", ".join(workloads.TEMPLATES))
    found = [explain(template, setting, cluster, live=live) for template, live in templates]
    if options.output == "json":
        screen.say_json([dict(item.to_json()) for item in found])
    else:
        for number, item in enumerate(found):
            if number:
                screen.say()
            _show(screen, item)
    return EXIT_OK if all(item.injected and not item.conflicts for item in found) else EXIT_PROBLEM


def find(cluster: Cluster, target: str, namespace: str) -> Template:
    """The pod, or the template of the workload, that a target names.

    Raises:
        CtlError: an unknown kind, or nothing of that name.
    """
    short, slash, name = target.partition("/")
    short, name = (short.lower(), name) if slash else ("pod", target)
    kind = next((kind for kind, (_, _, names) in _KINDS.items() if short in names), None)
    if kind is None or not name:
        known = ", ".join(names[0] for _, _, names in _KINDS.values())
        raise bad_argument(f"{target!r}: written POD or KIND/NAME; known kinds are {known}")
    base, plural, _ = _KINDS[kind]
    if kind == "CronJob":
        base = f"/apis/batch/{'v1' if cluster.capabilities().minor >= 21 else 'v1beta1'}"
    item = cluster.get(f"{base}/namespaces/{namespace}/{plural}/{name}")
    if item is None:
        raise not_found(f"there is no {kind} {namespace}/{name}; next: kubectl -n {namespace} get {plural}")
    return next(iter(workloads.walk({**item, "kind": kind})))


def explain(template: Template, setting: Setting, cluster: Cluster | None, *, live: bool) -> Explanation:
    """Both layers for one pod or template.

    Raises:
        CtlError: it is not shaped as a pod, or has annotations that are not ours to read.
    """
    namespace = template.namespace or setting.namespace
    labels, _ = setting.namespaces.of(namespace)
    status = status_of(template.pod)
    try:
        fresh = Template(
            uninject(template.pod) if status else template.pod,
            template.path,
            template.kind,
            template.name,
            namespace,
        )
        result = setting.inject(fresh)
    except (MeshError, ValueError) as error:
        text = error.public if isinstance(error, MeshError) else str(error)
        raise CtlError(CtlCode.ARGUMENT, f"{template.kind} {namespace}/{template.name}: {text}") from error
    webhooks = None
    if cluster is not None:
        webhooks = evaluate(
            cluster.items(WEBHOOKS), namespace_labels=labels, pod_labels=podjson.labels_of(fresh.pod)
        )
    settings = setting.settings
    stale = status is not None and (status.version, status.digest) != (settings.version, settings.digest)
    return Explanation(
        template=template,
        namespace=namespace,
        namespace_labels=labels,
        result=result,
        webhooks=webhooks,
        live=status,
        running=live and template.kind == "Pod",
        stale=stale,
    )


# --- for people ----------------------------------------------------------------------------------------


def _show(screen: Screen, found: Explanation) -> None:
    decision = found.result.decision
    colour = Colour.GREEN if found.injected and not found.conflicts else Colour.RED
    name = f"{found.template.kind.lower()} {found.namespace}/{found.template.name}"
    screen.say(f"{name}: {screen.paint(found.verdict, colour)} [{decision.reason}]")
    _show_labels(screen, found)
    if found.webhooks is not None:
        _show_webhooks(screen, found.webhooks)
    number, _ = RULES[decision.reason]
    screen.say()
    screen.say("the injector's table:")
    for row, text in passed_before(decision.reason):
        screen.say(screen.paint(f"  {row:>2}  yes  {text}", Colour.DIM))
    said = decision.message.partition("; next: ")[0]  # told at the end
    screen.say(wrapped(said, first=f"  {number:>2}  here ", rest=" " * 11))
    for problem in found.result.problems:
        screen.say(wrapped(problem, first="        - ", rest="          "))
    if found.injected and found.result.mutations:
        screen.say()
        screen.say("what changes:")
        for change in found.result.mutations:
            screen.say(wrapped(change, first="  ", rest="    "))
    _show_state(screen, found)
    for name in found.conflicts:
        screen.say(screen.paint(f"conflict: {name} would put its own sidecar into this pod", Colour.RED))
    if found.next_step:
        screen.say(wrapped(found.next_step, first="next: ", rest="      "))


def _show_labels(screen: Screen, found: Explanation) -> None:
    own = podjson.labels_of(found.template.pod)
    says = {key: own[key] for key in (INJECT, REVISION) if key in own}
    note = podjson.annotations_of(found.template.pod).get(INJECT)
    around = {key: found.namespace_labels[key] for key in _LABELS if key in found.namespace_labels}
    screen.say(f"  namespace {found.namespace}: {_pairs(around)}")
    screen.say(f"  pod: {_pairs(says)}" + (f", annotation {INJECT}={note}" if note is not None else ""))


def _pairs(labels: Mapping[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in labels.items()) or "no label about sidecars"


def _show_webhooks(screen: Screen, webhooks: Sequence[Called]) -> None:
    screen.say()
    if not webhooks:
        screen.say("the API server calls no webhook for new pods: Gatehouse is not installed")
        return
    rows = [[w.name, w.mesh or "-", "yes" if w.called else "no", w.failure_policy] for w in webhooks]
    screen.say(render_table(["WEBHOOK", "MESH", "CALLED", "ON FAILURE"], rows))
    screen.say()
    screen.say("because of labels:")
    for webhook in webhooks:
        short = webhook.name.partition(".sidecar-injector.")[0]
        text = webhook.why
        if webhook.called and webhook.conditions:
            text += f" (unless a matchCondition says no: {', '.join(webhook.conditions)})"
        mark = "yes" if webhook.called else "no "
        screen.say(wrapped(text, first=f"  {mark}  {short}: ", rest="       "))


def _show_state(screen: Screen, found: Explanation) -> None:
    if not found.running:
        return
    screen.say()
    if found.live is None:
        screen.say("the running pod has no sidecar of Gatehouse")
        return
    live = found.live
    age = "made with other settings than now" if found.stale else "as the settings are now"
    screen.say(f"the running pod has a {live.mode} sidecar of version {live.version}, {age}")
