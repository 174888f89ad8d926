"""What the pods of `meshctl check --traffic` say, as rows. Values in, values out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from injector.core.decision import PROXY
from meshctl.checks.control import COMPONENT, is_pod_ready
from meshctl.checks.rows import Row, fail, many, ok, skip
from meshctl.cluster import full_name
from meshctl.sidecars import status_of
from meshctl.traffic.plan import CLIENTS, INJECTED, Plan, Role, selector
from meshctl.traffic.probe import Ask, Got, Report, meets, read_report

APP: Final = "app"
_RESTARTS: Final = 2
_FIRST: Final = "what the row about the pods says"
_STARTING: Final = frozenset({"PodInitializing", "ContainerCreating"})
_NO_IMAGE: Final = frozenset({"ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName"})
"""Of these nothing becomes better by waiting; `ErrImagePull` may be the first of several tries."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What next steps are made of.

    Attributes:
        mesh: namespace of the control plane; `injector` what shows the log of the webhook.
        kept: the pods are still there when somebody reads the row.
    """

    mesh: str
    injector: str
    kept: bool

    @property
    def agents(self) -> str:
        """What shows the logs of the node agents."""
        return f"kubectl -n {self.mesh} logs -l {COMPONENT}=nodeagent --tail=100"

    def look(self, plan: Plan, role: Role, words: str = "describe pod") -> str:
        """How to look at a pod; it must be kept for that."""
        if self.kept:
            rest = f" -c {PROXY}" if words == "logs" else ""
            return f"kubectl -n {plan.namespace} {words} {plan.name(role)}{rest}"
        return f"meshctl check --traffic --keep; kubectl describe pods -A -l {selector()}"


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a pod does not do its work, and what to do."""

    what: str
    then: str


def report_of(pod: Mapping[str, Any]) -> Report | None:
    """What a client wrote when it ended; None before, and when it ended in another way."""
    ended = _state(pod, APP).get("terminated")
    return read_report(str(ended.get("message") or "")) if ended else None


def is_over(pod: Mapping[str, Any]) -> bool:
    """Every container of the pod has ended."""
    return (pod.get("status") or {}).get("phase") in {"Succeeded", "Failed"}


def is_hopeless(role: Role, pod: Mapping[str, Any]) -> bool:
    """Waiting does not help: no sidecar, no image, a server that keeps ending, or an end without a report."""
    if role in INJECTED and status_of(pod) is None:
        return True
    states = [_state(pod, name) for name in _containers(pod)]
    if any((state.get("waiting") or {}).get("reason") in _NO_IMAGE for state in states):
        return True
    if int((_statuses(pod).get(APP) or {}).get("restartCount") or 0) >= _RESTARTS:
        return True
    return is_over(pod) and report_of(pod) is None


def is_settled(role: Role, pod: Mapping[str, Any]) -> bool:
    """There is nothing more to wait for: the server is ready, a client has ended, or it is hopeless."""
    return is_hopeless(role, pod) or (is_pod_ready(pod) if role is Role.SERVER else is_over(pod))


def rows(plan: Plan, pods: Mapping[Role, Mapping[str, Any]], seconds: float, place: Place) -> Iterator[Row]:
    """The rows of a run.

    Args:
        pods: as they were last seen; those that were never made are missing.
        seconds: that the run took.
    """
    yield _pods(plan, pods, seconds, place)
    yield _asked(plan, pods, Role.ALLOWED, _IDENTITY, place)
    yield _asked(plan, pods, Role.OTHER, _OTHER, place)
    yield _asked(plan, pods, Role.OUTSIDE, _PLAINTEXT, place)
    yield _asked(plan, pods, Role.ALLOWED, _TOKENS, place)
    yield _finished(plan, pods, place)


# --- pods ----------------------------------------------------------------------------------------------


def _pods(plan: Plan, pods: Mapping[Role, Mapping[str, Any]], seconds: float, place: Place) -> Row:
    found = {role: _trouble(plan, role, pod, place) for role, pod in pods.items()}
    bad = {role: trouble for role, trouble in found.items() if trouble is not None}
    if bad:
        first = next(iter(bad.values()))
        listed = [f"{full_name(pods[role])}: {trouble.what}" for role, trouble in bad.items()]
        left = [role.value for role in Role if role not in pods]
        tail = f"; not started for that reason: {', '.join(left)}" if left else ""
        return fail(
            "traffic-pods",
            f"{many(len(bad), 'pod')} of the test did not work within {seconds:.0f} s{tail}",
            first.then,
            listed,
        )
    sidecars = len(INJECTED & pods.keys())
    return ok(
        "traffic-pods",
        f"{many(len(pods), 'pod')} in {plan.namespace}, {sidecars} of them with a sidecar ({seconds:.0f} s)",
    )


def _trouble(plan: Plan, role: Role, pod: Mapping[str, Any], place: Place) -> Trouble | None:
    """What is wrong with a pod; None when it is ready, or has said what it saw."""
    if role in INJECTED and status_of(pod) is None:
        return Trouble(
            "it has no sidecar: no webhook was called for it, or the webhook let it go as it was",
            place.injector,
        )
    if role is Role.SERVER and is_pod_ready(pod):
        return None
    if role is not Role.SERVER and report_of(pod) is not None:
        return None
    for name in _containers(pod):
        state = _state(pod, name)
        waiting, ended = state.get("waiting") or {}, state.get("terminated") or {}
        reason = str(waiting.get("reason") or "")
        if "Image" in reason:
            return _no_image(plan, reason)
        if reason and reason not in _STARTING:
            before = (_statuses(pod)[name].get("lastState") or {}).get("terminated")  # of CrashLoopBackOff
            return Trouble(f"{name}: {reason}: {_last_line(before or waiting)}", place.look(plan, role))
        if ended.get("exitCode") or (ended and name == APP):
            return Trouble(
                f"{name} ended with {ended.get('exitCode')}: {_last_line(ended)}", place.look(plan, role)
            )
    return _waiting(plan, role, pod, place)


def _waiting(plan: Plan, role: Role, pod: Mapping[str, Any], place: Place) -> Trouble:
    """What a pod without an error was waiting for when the time was over."""
    for condition in (pod.get("status") or {}).get("conditions") or ():
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return Trouble(f"it is not scheduled: {_last_line(condition)}", "kubectl get nodes")
    if not (pod.get("spec") or {}).get("nodeName"):
        return Trouble("it is not scheduled yet", "kubectl get nodes")
    started = [name for name in _containers(pod) if "running" in _state(pod, name)]
    if role in INJECTED and not started and not any("terminated" in _state(pod, n) for n in _containers(pod)):
        return Trouble("its volumes are not mounted yet: is the node agent there?", place.agents)
    if PROXY in started and not _ready(pod, PROXY):
        return Trouble(f"{PROXY} is not ready: it has no configuration or no certificate yet", place.agents)
    if role is not Role.SERVER and APP in started:
        return Trouble("it was still asking", place.look(plan, role))
    return Trouble("it is not ready yet", place.look(plan, role))


def _no_image(plan: Plan, reason: str) -> Trouble:
    what = f"{reason}: {plan.image} cannot be pulled in namespace {plan.namespace}"
    if not plan.pull_secrets:
        return Trouble(what, "meshctl check --traffic --image IMAGE, a control image that all nodes can pull")
    names = ", ".join(plan.pull_secrets)
    what += f", pull Secrets of the control plane ({names}) are not looked for in another namespace"
    if plan.own:
        return Trouble(
            what,
            "meshctl check --traffic --image IMAGE, a control image that needs no Secret; or make the Secret"
            " in a namespace labelled for injection, and check --traffic --traffic-namespace NAMESPACE",
        )
    return Trouble(
        what, f"kubectl -n {plan.namespace} create secret docker-registry {plan.pull_secrets[0]} ..."
    )


# --- answers -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Subject:
    """One row about answers.

    Attributes:
        what: the row is about, after `whether`.
        names: of the requests; all of the client's when empty.
        good: the message when all is well, `{}` is the caller's service account; `bad` when it is not.
        hint: next step from what was got; None for the server's proxy and the node agents.
    """

    check: str
    what: str
    good: str
    bad: str
    names: frozenset[str] = frozenset()
    hint: Callable[[Plan, Got, Place], str] | None = None


def _asked(
    plan: Plan, pods: Mapping[Role, Mapping[str, Any]], role: Role, subject: _Subject, place: Place
) -> Row:
    pod = pods.get(role)
    report = report_of(pod) if pod is not None else None
    if report is None:
        return skip(
            subject.check, f"whether {subject.what} is not known: {plan.name(role)} has said nothing", _FIRST
        )
    asks = {ask.name: ask for ask in plan.asks(role)}
    pairs = [(asks[got.name], got) for got in report.got if got.name in asks]
    chosen = [(a, g) for a, g in pairs if not subject.names or a.name in subject.names]
    bad = [(ask, got) for ask, got in chosen if not meets(ask, got)]
    if not chosen:
        return skip(
            subject.check,
            f"whether {subject.what} is not known: {plan.name(role)} runs another version of this command",
            "meshctl version --cluster",
        )
    if not bad:
        return ok(subject.check, subject.good.format(plan.name(role)))
    hint = subject.hint or _rules_hint
    return fail(
        subject.check,
        f"{subject.bad.format(plan.name(role))}, after {report.rounds} tries in {report.seconds:g} s",
        hint(plan, bad[0][1], place),
        [f"{plan.namespace}/{plan.name(role)}: {_told(ask, got)}" for ask, got in bad],
    )


def _told(ask: Ask, got: Got) -> str:
    token = f" with {ask.name}" if "token" in ask.name else ""
    wanted = f"{ask.status} {ask.text}" if ask.status != 200 else "200"
    if ask.error:
        wanted = "a connection that is closed without an answer"
    return f"GET {ask.path}{token}: got {got}; wanted {wanted}"


def _rules_hint(plan: Plan, got: Got, place: Place) -> str:
    steps = [place.agents, place.look(plan, Role.SERVER, "logs")]
    if got.status in {401, 403}:
        steps.insert(0, f"kubectl -n {place.mesh} get authorizationpolicies,requestauthentications")
    return "; ".join(steps)


def _plaintext_hint(plan: Plan, got: Got, place: Place) -> str:
    if got.status:
        return _rules_hint(plan, got, place)
    return "; ".join(
        ["kubectl get networkpolicies -A", place.look(plan, Role.OUTSIDE), "is the cluster's DNS there?"]
    )


_IDENTITY: Final = _Subject(
    check="traffic-identity",
    what="the allowed identity is let in",
    good="service account {} is let in by its identity, over mutual TLS (200)",
    bad="service account {} is not let in, which a rule allows",
    names=frozenset({"identity"}),
)
_OTHER: Final = _Subject(
    check="traffic-rules",
    what="another identity is refused",
    good="service account {} is refused by the access rule (403)",
    bad="service account {} is not refused as the access rule wants",
)
_PLAINTEXT: Final = _Subject(
    check="traffic-plaintext",
    what="plaintext is shut out",
    good="pod {} without a sidecar is shut out: STRICT (connection closed)",
    bad="pod {} without a sidecar is not shut out as STRICT wants",
    hint=_plaintext_hint,
)
_TOKENS: Final = _Subject(
    check="traffic-tokens",
    what="end-user tokens are judged",
    good="a path that requires a token: 403 without one, 401 with garbage, 200 with a good one",
    bad="end-user tokens are not judged as the rules want",
    names=frozenset({"no token", "garbage token", "good token"}),
)


def _finished(plan: Plan, pods: Mapping[Role, Mapping[str, Any]], place: Place) -> Row:
    ended = [role for role in CLIENTS if role in pods and report_of(pods[role]) is not None]
    left = [role for role in ended if not is_over(pods[role])]
    if not ended:
        return skip(
            "traffic-finished",
            "whether sidecars end with their pods is not known: no client has ended",
            _FIRST,
        )
    if left:
        return fail(
            "traffic-finished",
            "the sidecar goes on after the pod's own container has ended: Jobs do not complete",
            f"{place.agents}; {place.look(plan, left[0], 'logs')}",
            [f"{plan.namespace}/{plan.name(role)}" for role in left],
        )
    return ok("traffic-finished", f"{many(len(ended), 'client')} ended, and the sidecars with them")


# --- reading pods --------------------------------------------------------------------------------------


def _statuses(pod: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    status = pod.get("status") or {}
    both = (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ()))
    return {str(item.get("name")): item for item in both}


def _containers(pod: Mapping[str, Any]) -> Sequence[str]:
    return list(_statuses(pod))


def _state(pod: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    return (_statuses(pod).get(name) or {}).get("state") or {}


def _ready(pod: Mapping[str, Any], name: str) -> bool:
    return bool((_statuses(pod).get(name) or {}).get("ready"))


def _last_line(item: Mapping[str, Any]) -> str:
    """The end of a message: of a traceback, what was raised."""
    lines = [line.strip() for line in str(item.get("message") or item.get("reason") or "").splitlines()]
    return next((line for line in reversed(lines) if line), "nothing was said")[:200]
