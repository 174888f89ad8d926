"""Events on policies that cannot be enforced as they are written.

The node agents keep the last good form of such a policy, and say so in their logs; the author reads
`kubectl describe`. One leader tells it, once for each form of an object.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from injector.events import EventSink, Saying, Subject
from mesh.policy.effective import Severity
from mesh.policy.model import API_VERSIONS
from mesh.policy.parse import parse_policy

REFUSED: Final = "PolicyRefused"
REMARK: Final = "PolicyRemark"


@dataclass(frozen=True, slots=True)
class Remark:
    """What is wrong with one form of a policy; the key of the saying has its generation."""

    about: Subject
    said: Saying


def read_remark(kind: str) -> Callable[[Mapping[str, Any]], Remark | None]:
    """A reader of objects of that kind: what is to be said, None when all is well."""

    def read(item: Mapping[str, Any]) -> Remark | None:
        named = {"apiVersion": API_VERSIONS[0], "kind": kind, **item}
        found = parse_policy(named).findings
        if not found:
            return None
        errors = [finding for finding in found if finding.severity is Severity.ERROR]
        first = (errors or found)[0]
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        then = "; it is not in force, what was accepted before stays" if errors else ""
        where = f"{first.field}: " if first.field else ""
        meta = item.get("metadata") or {}
        about = Subject(
            str(named["apiVersion"]),
            kind,
            str(meta.get("namespace", "")),
            str(meta.get("name", "")),
            str(meta.get("uid", "")),
        )
        said = Saying(
            REFUSED if errors else REMARK,
            "Warning",
            str(first.code),
            f"{where}{first.message}{more}{then}",
            key=f"{first.code}/{meta.get('generation', 0)}",
        )
        return Remark(about, said)

    return read


class PolicyEvents:
    """Says what has not been said.

    Args:
        remarks: those of all policies, as they are now.
    """

    def __init__(self, sink: EventSink, remarks: Callable[[], Iterable[Remark]]) -> None:
        self._sink = sink
        self._remarks = remarks
        self._told: frozenset[Remark] = frozenset()

    def start(self) -> None:
        """Write on a thread."""
        self._sink.start()

    def stop(self) -> None:
        """Write what is queued."""
        self._sink.stop()

    def step(self) -> None:
        """While this process leads."""
        now = frozenset(self._remarks())
        for remark in sorted(now - self._told, key=lambda r: (r.about.namespace, r.about.kind, r.about.name)):
            self._sink.say(remark.about, remark.said)
        self._told = now
