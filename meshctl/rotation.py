"""The rotation of roots for people: what the authority says of it, what is wrong, what is to be done.

Pure: a status and the time in, lines out. Phases: docs/adr/0014. Runbook: docs/rotation.md.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from mesh.ca_status import CONFIG_MAP, REQUEST_ANNOTATION, CaStatus, Phase, RootRole, RootView, Step, Waiting
from mesh.obs.table import render_table
from meshctl.terminal import Colour, Screen, span, wrapped

STALE: Final = dt.timedelta(minutes=15)
"""The leader writes every ten minutes at least."""
SOON: Final = dt.timedelta(days=30)
"""A root that ends sooner is worth a word when nobody replaces it by itself."""
LATE: Final = dt.timedelta(days=14)
"""A root that ends sooner, and is not being replaced, is worth one in any case."""
PATIENCE: Final = dt.timedelta(minutes=5)
"""A step that is held up for so long is worth a word: node agents ask once a minute."""
ISSUER_SOON: Final = dt.timedelta(days=7)
_HEADS: Final = ("ROOT", "ROLE", "SHA-256", "STARTS", "ENDS", "LEFT")
_NAME: Final = 10
_WORDS: Final[Mapping[Phase, str]] = {
    Phase.STABLE: "one root signs and is trusted",
    Phase.PREPARED: "the next root is trusted too; the current one signs",
    Phase.ACTIVE: "the new root signs; the former one is trusted until its last certificate has ended",
    Phase.TAINTED: "as active, and certificates of the former root are renewed ahead of time",
    Phase.PLUGGED: "the CA comes from files: whoever makes them rotates it (docs/rotation.md)",
}
_PATH: Final = (Phase.STABLE, Phase.PREPARED, Phase.ACTIVE, Phase.STABLE)
_ADVICE: Final[Mapping[str, str]] = {
    "rotation_agents": "meshctl check; a node that is gone for good: kubectl delete node NODE",
    "rotation_pending": "meshctl identity --node NODE; kubectl logs POD -c istio-proxy",
    "rotation_unpublished": "kubectl -n {namespace} logs deploy/gatehouse-ca",
    "rotation_outdated": "wait until they are renewed, or: meshctl ca taint --within 1h",
}
_BY_HAND: Final[Mapping[Phase, str]] = {
    Phase.STABLE: "meshctl ca prepare",
    Phase.PREPARED: "meshctl ca activate; back: meshctl ca abort",
    Phase.ACTIVE: "meshctl ca retire; renew everything now: meshctl ca taint --within 1h",
    Phase.TAINTED: "meshctl ca retire",
}
_MEANWHILE: Final[Mapping[Phase, str]] = {
    Phase.PREPARED: "nothing; back: meshctl ca abort",
    Phase.ACTIVE: "nothing; renew everything now: meshctl ca taint --within 1h",
    Phase.TAINTED: "nothing",
}


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that needs somebody.

    Attributes:
        next: what to do, commands apart by `; `.
    """

    text: str
    next: str

    def to_json(self) -> Mapping[str, str]:
        """For programs; field names are stable."""
        return {"text": self.text, "next": self.next}


def problems(status: CaStatus, now: dt.datetime, namespace: str, *, asked: str = "") -> list[Problem]:
    """What is wrong, the worst first.

    Args:
        asked: a step that somebody asked for, and that was not answered.
    """
    found = list(_problems(status, now, namespace))
    if asked:
        found.append(
            Problem(
                f"somebody asked for {asked!r}, and nobody has answered: whoever leads does within seconds",
                f"meshctl ca status; withdraw it: kubectl -n {namespace} annotate configmap {CONFIG_MAP}"
                f" {REQUEST_ANNOTATION}-",
            )
        )
    return found


def _problems(status: CaStatus, now: dt.datetime, namespace: str) -> Iterator[Problem]:
    logs = f"kubectl -n {namespace} logs deploy/gatehouse-ca"
    if now - status.updated > STALE:
        yield Problem(
            f"the authority said this {span(now - status.updated)} ago: no replica leads, or it cannot write",
            logs,
        )
    if status.issuer_not_after - now < ISSUER_SOON:
        yield Problem(
            f"the signing certificate {_end(status.issuer_not_after - now)}, and was not renewed", logs
        )
    signing = next((root for root in status.roots if root.role is RootRole.SIGNING), None)
    if signing is not None and status.phase in {Phase.STABLE, Phase.PLUGGED}:
        left = signing.not_after - now
        if left < LATE or (left < SOON and not status.automatic):
            how = (
                _BY_HAND[Phase.STABLE]
                if status.phase is Phase.STABLE
                else "docs/rotation.md, a CA of your own"
            )
            yield Problem(f"the root {_end(left)}, and nothing replaces it", how)
    if status.waiting and status.next_at is not None and now > status.next_at + PATIENCE:
        what = status.next_step or {Phase.PREPARED: Step.ACTIVATE}.get(status.phase, Step.RETIRE)
        yield Problem(
            f"{what} could be since {_stamp(status.next_at)} and waits: {status.waiting[0].text}"
            f" [{status.waiting[0].code}]",
            advice(status.waiting[0], namespace),
        )


def _end(left: dt.timedelta) -> str:
    return f"ends in {span(left)}" if left > dt.timedelta(0) else f"ended {span(-left)} ago"


def advice(waiting: Waiting, namespace: str) -> str:
    """What to do about something that is waited for; empty when nothing is known."""
    return _ADVICE.get(waiting.code, "").format(namespace=namespace)


def show(
    screen: Screen, status: CaStatus, found: Sequence[Problem], now: dt.datetime, namespace: str
) -> None:
    """Everything, for people."""
    screen.say(path(screen, status.phase))
    screen.say(
        wrapped(f"{status.phase} for {span(now - status.since)}: {_WORDS[status.phase]}", first="", rest="  ")
    )
    screen.say()
    screen.say(render_table(_HEADS, [_root(root, now) for root in status.roots]))
    screen.say()
    for line in _facts(status, now, namespace):
        screen.say(line)
    for problem in found:
        screen.say()
        screen.say(screen.paint(wrapped(problem.text, first="! ", rest="  "), Colour.RED))
        _next(screen, problem.next)
    if not found and (how := _outlook(status)):
        screen.say()
        _next(screen, how)


def path(screen: Screen, phase: Phase) -> str:
    """`stable -> [prepared] -> active -> stable`: the present phase is in brackets."""
    if phase is Phase.PLUGGED:
        return screen.paint(f"[{phase}]", Colour.BOLD)
    steps = [Phase.TAINTED if p is Phase.ACTIVE and phase is Phase.TAINTED else p for p in _PATH]
    here = steps.index(phase)
    marked = [screen.paint(f"[{s}]", Colour.BOLD) if n == here else str(s) for n, s in enumerate(steps)]
    return " -> ".join(marked)


def _root(root: RootView, now: dt.datetime) -> list[str]:
    left = root.not_after - now
    return [
        root.subject,
        root.role,
        root.sha256[:12],
        f"{root.not_before:%Y-%m-%d}",
        f"{root.not_after:%Y-%m-%d}",
        span(left),
    ]


def _facts(status: CaStatus, now: dt.datetime, namespace: str) -> Iterator[str]:
    numbers = f"generation {status.generation}, epoch {status.epoch}, " if status.generation else ""
    yield from _fact("bundle", f"{numbers}digest {status.bundle_digest[:12]}")
    ends = f"{_stamp(status.issuer_not_after)}, in {span(status.issuer_not_after - now)}"
    yield from _fact("signs", f"certificate {status.issuer_serial[:12]} until {ends}")
    agents = status.agents
    if agents.expected:
        told = f"{agents.acked} of {agents.expected} have acknowledged the roots"
        told += f"; {agents.pending} workloads have not" if agents.pending else ""
        told += (
            f"; {agents.outdated} workloads have a certificate of a former root" if agents.outdated else ""
        )
        yield from _fact("agents", told)
        yield from (f"{'':{_NAME}}- {name}" for name in agents.missing)
    else:
        yield from _fact("agents", "none is expected to acknowledge roots")
    if status.next_step is not None:
        at = ""
        if status.next_at is not None:
            left = status.next_at - now
            at = f", not before {_stamp(status.next_at)}" + (
                f" (in {span(left)})" if left > dt.timedelta(0) else ""
            )
        yield from _fact("next", f"{status.next_step}{at}, by itself")
    elif status.phase is not Phase.PLUGGED:
        yield from _fact("next", "nothing by itself: steps are not automatic")
    for item in status.waiting:
        yield from _fact("waits for", f"{item.text} [{item.code}]")
        if how := advice(item, namespace):
            yield from (f"{'':{_NAME}}  next: {step}" for step in how.split("; "))
    if status.answer is not None:
        answer = status.answer
        code = f" [{answer.code}]" if answer.code else ""
        yield from _fact("request", f"{answer.text}{code}, {span(now - answer.at)} ago")
    yield from _fact("told by", f"{status.writer or 'the authority'}, {span(now - status.updated)} ago")


def _fact(name: str, text: str) -> Iterator[str]:
    yield wrapped(text, first=f"{name:{_NAME}}", rest=" " * _NAME)


def _outlook(status: CaStatus) -> str:
    """What a person could do; empty where there is nothing."""
    if status.phase is Phase.PLUGGED:
        return ""
    return (_MEANWHILE if status.automatic else _BY_HAND).get(status.phase, "")


def _next(screen: Screen, text: str) -> None:
    first = "next: "
    for step in text.split("; "):  # a command on a line of its own can be copied
        screen.say(wrapped(step, first=first, rest=" " * 8))
        first = " " * 6


def _stamp(at: dt.datetime) -> str:
    return at.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def document(status: CaStatus, found: Sequence[Problem]) -> dict[str, Any]:
    """For programs: the status as the authority wrote it, and what is wrong."""
    return {**status.to_json(), "problems": [problem.to_json() for problem in found]}
