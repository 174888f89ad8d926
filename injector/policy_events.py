"""Events on policies that cannot be enforced as they are written.

The node agents keep the last good form of such a policy, and say so in their logs; the author reads
`kubectl describe`. One leader tells it, once for each form of an object.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from injector.events import EventSink
from injector.policy_records import Remark


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
