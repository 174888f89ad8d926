"""What upkeep keeps of each policy: what is to be said about it, and what its status says already."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from injector.core.policies import CONDITION, Condition, Verdict, condition, judge
from injector.events import Saying, Subject
from mesh.policy.model import API_VERSIONS

REFUSED: Final = "PolicyRefused"
REMARK: Final = "PolicyRemark"


@dataclass(frozen=True, slots=True)
class Remark:
    """What is wrong with one form of a policy; the key of the saying has its generation."""

    about: Subject
    said: Saying


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyRecord:
    """One policy, judged.

    Attributes:
        version: `metadata.resourceVersion`.
        remark: what an Event says; None when all is well.
        wanted: the condition that it should have.
        present: the one that it has; None when it has none that can be read.
        since: `lastTransitionTime` of that one.
        others: conditions of other types, which are not ours to change.
    """

    about: Subject
    version: str
    remark: Remark | None
    wanted: Condition
    present: Condition | None
    since: str = ""
    others: tuple[Mapping[str, Any], ...] = field(default=(), hash=False)


def read_record(kind: str) -> Callable[[Mapping[str, Any]], PolicyRecord]:
    """A reader of objects of that kind, whatever they hold."""

    def read(item: Mapping[str, Any]) -> PolicyRecord:
        verdict = judge(item, kind)
        meta = _map(item.get("metadata"))
        generation = meta.get("generation")
        generation = generation if isinstance(generation, int) else 0
        about = Subject(
            str(item.get("apiVersion") or API_VERSIONS[0]),
            kind,
            *(str(meta.get(name, "")) for name in ("namespace", "name", "uid")),
        )
        present, since, others = _conditions(_map(item.get("status")).get("conditions"))
        return PolicyRecord(
            about=about,
            version=str(meta.get("resourceVersion", "")),
            remark=_remark(about, verdict, generation),
            wanted=condition(verdict, generation),
            present=present,
            since=since,
            others=others,
        )

    return read


def _remark(about: Subject, verdict: Verdict, generation: int) -> Remark | None:
    found = verdict.findings
    if not found:
        return None
    first = found[0]
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    then = "; it is not in force, what was accepted before stays" if verdict.errors else ""
    where = f"{first.field}: " if first.field else ""
    said = Saying(
        REFUSED if verdict.errors else REMARK,
        "Warning",
        str(first.code),
        f"{where}{first.message}{more}{then}",
        key=f"{first.code}/{generation}",
    )
    return Remark(about, said)


def _conditions(value: object) -> tuple[Condition | None, str, tuple[Mapping[str, Any], ...]]:
    """Our condition with its time, and those of others."""
    ours, since, others = None, "", []
    for item in value if isinstance(value, list) else ():
        if not isinstance(item, dict):
            continue
        if item.get("type") != CONDITION:
            others.append(item)
            continue
        generation = item.get("observedGeneration")
        since = str(item.get("lastTransitionTime") or "")
        status, reason, message = (str(item.get(name, "")) for name in ("status", "reason", "message"))
        ours = Condition(status, reason, message, generation if isinstance(generation, int) else -1)
    return ours, since, tuple(others)


def _map(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
