"""`meshctl check --traffic`: makes the pods, waits for what they say, and takes everything away again."""

from __future__ import annotations

import contextlib
import datetime as dt
import secrets
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Final

from mesh.kube.api import KubeCode, KubeError
from meshctl.checks.before import read_time
from meshctl.checks.control import COMPONENT, logs_of
from meshctl.checks.rows import Row, View, fail, many, warn
from meshctl.cluster import PART_OF, full_name, labels_of, metadata_of, name_of
from meshctl.terminal import Colour, Screen
from meshctl.traffic import judge, plan
from meshctl.traffic.judge import Place
from meshctl.traffic.plan import CLIENTS, Made, Plan, Role
from meshctl.traffic.token import issue
from meshctl.traffic.wish import MAX_SECONDS, Wish

_POLL_SECONDS: Final = 0.5
_GONE_SECONDS: Final = 20.0
_OLD: Final = dt.timedelta(seconds=2 * MAX_SECONDS)
_TRANSIENT: Final = frozenset({KubeCode.UNREACHABLE, KubeCode.SERVER, KubeCode.THROTTLED})
_SETUP: Final = "traffic-setup"


@dataclass(slots=True)
class _Run:
    """What is there now.

    Attributes:
        made: objects that were asked for, whether or not there was an answer; oldest first.
        pods: as they were last seen.
    """

    view: View
    plan: Plan
    wish: Wish
    tell: Callable[[str], None]
    start: float = field(default_factory=time.monotonic)
    made: list[Made] = field(default_factory=list)
    pods: dict[Role, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def passed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.start


def check_traffic(view: View, wish: Wish, screen: Screen) -> list[Row]:
    """Rows of section `traffic`. Everything is taken away again, also at an interrupt.

    Raises:
        KubeError: the API server does not answer.
    """

    def tell(text: str) -> None:
        if screen.err.isatty():
            screen.remark(f"traffic: {text}", Colour.DIM)

    found: list[Row] = []
    try:
        found += _leftovers(view)
        made = _plan(view, wish)
    except KubeError as error:
        return [_may_not(error)]
    if isinstance(made, Row):
        return [*found, made]
    run = _Run(view, made, wish, tell)
    with _terminated_softly():
        try:
            found += _rows(run)
        finally:
            found += _clean_up(run, screen)
    return found


# --- what to do ----------------------------------------------------------------------------------------


def _plan(view: View, wish: Wish) -> Plan | Row:
    """The plan, or the row that says why there is none."""
    installed = view.installed
    if installed.config is None:
        return fail(_SETUP, f"not tried: {installed.problem}", "helm upgrade, then check again")
    if wish.namespace and view.cluster.get(f"/api/v1/namespaces/{wish.namespace}") is None:
        return fail(_SETUP, f"there is no namespace {wish.namespace}", "kubectl get namespaces --show-labels")
    path = f"/apis/apps/v1/namespaces/{installed.namespace}/deployments"
    control = view.cluster.items(path, f"{PART_OF},{COMPONENT}=injector")
    spec = ((control[0].get("spec") or {}).get("template") or {}).get("spec") or {} if control else {}
    container: Mapping[str, Any] = next(iter(spec.get("containers") or ()), {})
    image = wish.image or container.get("image")
    if not image:
        return fail(
            _SETUP,
            f"no Deployment in {installed.namespace} has the control image",
            "meshctl check --traffic --image IMAGE",
        )
    run = secrets.token_hex(3)
    issued = issue(run, view.cluster.local_now())
    injection = installed.config.injection
    revisions = {injection.selection.revision, *injection.selection.tags}
    return Plan(
        run=run,
        namespace=wish.namespace or f"gatehouse-traffic-{run}",
        own=not wish.namespace,
        image=str(image),
        pull_policy=str(container.get("imagePullPolicy") or ""),
        pull_secrets=tuple(str(item.get("name")) for item in spec.get("imagePullSecrets") or ()),
        revision="default" if "default" in revisions else injection.selection.revision,
        trust_domain=injection.trust_domain,
        issuer=issued.issuer,
        jwks=issued.jwks,
        token=issued.token,
        client_seconds=min(plan.MAX_CLIENT_SECONDS, wish.seconds / 2),
        life_seconds=None if wish.keep else int(wish.seconds) + 60,
    )


def _leftovers(view: View) -> Iterator[Row]:
    """What a run left behind that was killed, or that kept its pods."""
    now = view.cluster.local_now()

    def is_old(item: Mapping[str, Any]) -> bool:
        made = read_time(metadata_of(item).get("creationTimestamp"))
        return made is not None and now - made > _OLD and not metadata_of(item).get("deletionTimestamp")

    namespaces = view.cluster.namespaces()
    own = sorted(
        n for n, i in namespaces.items() if labels_of(i).get(plan.NAME_LABEL) == plan.NAME and is_old(i)
    )
    pods = sorted(full_name(pod) for pod in view.pods if _is_left(pod, own) and is_old(pod))
    if own:
        yield warn(
            "traffic-leftovers",
            f"{many(len(own), 'namespace')} of an earlier run: it was killed, or had --keep",
            f"kubectl delete namespace {own[0]}",
            own,
        )
    if pods:
        where = pods[0].partition("/")[0]
        kinds = (
            "pods,services,serviceaccounts,peerauthentications,requestauthentications,authorizationpolicies"
        )
        yield warn(
            "traffic-leftovers",
            f"{many(len(pods), 'pod')} of an earlier run: it was killed, or had --keep",
            f"kubectl -n {where} delete {kinds} -l {plan.selector()}",
            pods,
        )


def _is_left(pod: Mapping[str, Any], own: list[str]) -> bool:
    return labels_of(pod).get(plan.NAME_LABEL) == plan.NAME and metadata_of(pod).get("namespace") not in own


# --- doing it ------------------------------------------------------------------------------------------


def _rows(run: _Run) -> list[Row]:
    what = run.plan
    try:
        if what.own:
            _make(run, plan.namespace_of(what))
        for item in plan.before_pods(what):
            _make(run, item)
        run.pods[Role.SERVER] = _make(run, plan.server(what))
        _wait(run)
        if not judge.is_hopeless(Role.SERVER, run.pods[Role.SERVER]) and run.passed < run.wish.seconds:
            for role in CLIENTS:
                run.pods[role] = _make(run, plan.client(what, role))
            _wait(run)
    except _RefusedError as refused:
        return [_refused(run, refused)]
    except KubeError as error:
        return [_may_not(error)]
    return list(judge.rows(what, run.pods, run.passed, _place(run)))


def _make(run: _Run, made: Made) -> Mapping[str, Any]:
    if made.body["kind"] in {"Namespace", "Pod"}:
        run.tell(f"make {made.title}")
    run.made.append(made)
    try:
        return dict(run.view.cluster.api.create(made.path, made.body))
    except KubeError as error:
        if 400 <= error.status < 500:  # what is refused is not there, or is somebody else's
            run.made.pop()
        if error.code in {KubeCode.UNREACHABLE, KubeCode.UNAUTHORIZED}:
            raise
        raise _RefusedError(made, error) from error


def _wait(run: _Run) -> None:
    """Until all pods are settled, or the time is over."""
    said = ""
    while True:
        _look(run)
        waited_for = [run.plan.name(r) for r, pod in run.pods.items() if not judge.is_settled(r, pod)]
        if not waited_for or run.passed >= run.wish.seconds:
            return
        text = f"wait for {', '.join(waited_for)}"
        if text != said:
            run.tell(f"{text} ({run.passed:.0f} s)")
            said = text
        time.sleep(_POLL_SECONDS)


def _look(run: _Run) -> None:
    """Read the pods; a server that stumbles is asked again until the time is over."""
    path = f"/api/v1/namespaces/{run.plan.namespace}/pods"
    try:
        page = run.view.cluster.api.get(path, labelSelector=plan.selector(run.plan.run))
    except KubeError as error:
        if error.code in _TRANSIENT and run.passed < run.wish.seconds:
            return
        raise
    found = {name_of(pod): pod for pod in page.get("items") or ()}
    for role in run.pods:
        run.pods[role] = found.get(run.plan.name(role), run.pods[role])


class _RefusedError(Exception):
    """An object that was not taken."""

    def __init__(self, made: Made, error: KubeError) -> None:
        super().__init__(error.public)
        self.made, self.error = made, error


def _may_not(error: KubeError) -> Row:
    """A right that is missing: who asks for traffic wants it tried, so it is no `skip`.

    Raises:
        KubeError: it is another one.
    """
    if error.code is not KubeCode.FORBIDDEN:
        raise error
    return fail(_SETUP, error.public, "run it as a user who has the rights (docs/meshctl.md)")


def _refused(run: _Run, refused: _RefusedError) -> Row:
    """What to do about an object that was not taken."""
    text, made = refused.error.public, refused.made
    namespace = run.plan.namespace
    if "failed calling webhook" in text or "failed to call webhook" in text:
        then = logs_of(run.view, "injector")
    elif refused.error.code is KubeCode.FORBIDDEN and "cannot create" in text:
        what = "pods, services, serviceaccounts and the policy kinds"
        where = f"namespaces, and {what} in them" if run.plan.own else f"{what} in {namespace}"
        then = f"run it as a user who may create and delete {where} (docs/meshctl.md)"
    elif "PodSecurity" in text:
        then = (
            f"kubectl label namespace {namespace} pod-security.kubernetes.io/enforce=privileged --overwrite"
        )
    elif refused.error.code is KubeCode.NOT_FOUND:
        then = "kubectl get crd -l app.kubernetes.io/part-of=gatehouse"
    else:
        then = "what the message says, then check again"
    return fail(_SETUP, f"{made.title} is refused: {text}", then)


def _place(run: _Run) -> Place:
    return Place(
        mesh=run.view.installed.namespace, injector=logs_of(run.view, "injector"), kept=run.wish.keep
    )


# --- taking it away ------------------------------------------------------------------------------------


def _clean_up(run: _Run, screen: Screen) -> list[Row]:
    """Delete what was made, and wait a moment for the pods: `helm uninstall` may be what comes next."""
    own = run.plan.own
    whole = f"kubectl delete namespace {run.plan.namespace}"
    parts = f"kubectl -n {run.plan.namespace} delete {','.join(_kinds(run))} -l {plan.selector(run.plan.run)}"
    command = whole if own else parts
    if not run.made:
        return []
    if run.wish.keep:
        screen.remark(f"traffic: left as it is, because of --keep; take it away with: {command}")
        return []
    run.tell(f"take {'namespace ' if own else 'the objects in '}{run.plan.namespace} away")
    failed = ""
    for made in reversed(run.made):
        if own and made.body["kind"] not in {"Pod", "Namespace"}:
            continue  # it goes with the namespace
        try:
            run.view.cluster.api.delete(made.item, propagationPolicy="Background")
        except KubeError as error:
            if error.code is not KubeCode.NOT_FOUND:
                failed = failed or error.public
    interrupted = sys.exc_info()[0] is not None
    if not failed:
        if not interrupted:
            _wait_gone(run)
        return []
    if interrupted:  # nobody will see a row
        screen.remark(f"traffic: not everything is taken away: {failed}; next: {command}", Colour.RED)
    return [warn("traffic-cleanup", f"not everything could be taken away: {failed}", command)]


def _wait_gone(run: _Run) -> None:
    """Until the pods are gone, but not for long: a kubelet of 1.20 takes a minute, and needs nobody for that.

    The node agent must be there when a kubelet takes the volume of a pod away.
    """
    end = time.monotonic() + _GONE_SECONDS
    path = f"/api/v1/namespaces/{run.plan.namespace}/pods"
    with contextlib.suppress(KubeError):
        while run.view.cluster.api.get(path, labelSelector=plan.selector(run.plan.run)).get("items"):
            if time.monotonic() >= end:
                return
            time.sleep(_POLL_SECONDS)


def _kinds(run: _Run) -> list[str]:
    return sorted({made.path.rpartition("/")[2] for made in run.made})


@contextlib.contextmanager
def _terminated_softly() -> Iterator[None]:
    """TERM, which a pod that is deleted gets, ends as an interrupt does: by way of the cleaning up."""

    def stop(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
