"""The book of what node agents reported to this replica, and the agents that should be there.

Expected are the pods of the agents' service account that are alive, as the authority's own watch of pods
shows them. What the other replicas were told comes from `ca.agent_sharing`.
"""

from __future__ import annotations

import datetime as dt
import threading
from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

from ca.core.acknowledged import FRESH, KEPT, Agent, Claim, Report, counts, merge
from ca.pods import PodFact
from mesh.ca_status import AgentCounts
from mesh.kube.store import Key, Store

MAX_REPORTS: Final = 20_000
LATELY: Final = dt.timedelta(minutes=2)
"""So long after a change agents are asked to come often: each has heard of it by then, at the pace of a quiet
time, and is telling what its proxies say."""
QUIET: Final = dt.timedelta(seconds=60)
SOON: Final = dt.timedelta(seconds=2)
CALLS_PER_SECOND: Final = 100
"""Calls of all agents together that the authority asks for, while something changes."""
LOOK_EVERY: Final = dt.timedelta(seconds=1)


class AgentBook:
    """Thread-safe; bounded by `MAX_REPORTS`.

    Args:
        pods: kept current by a reflector.
        account: of the agents, namespace/name; empty for none.
    """

    def __init__(self, pods: Store[PodFact], account: str) -> None:
        self._pods = pods
        self._namespace, _, self._name = account.partition("/")
        self._lock = threading.Lock()
        self._expected: dict[Key, Agent] = {}
        self._own: OrderedDict[str, Report] = OrderedDict()
        self._shared: tuple[Report, ...] = ()
        self._changes = 0
        self._told: tuple[str, int] = ("", 0)
        self._told_since: dt.datetime | None = None
        self._look: tuple[dt.datetime, str, bool] | None = None
        pods.subscribe(self._note)
        self._note(frozenset(pods.items()))

    @property
    def changes(self) -> int:
        """Grows when a report says something new; a report that only repeats what was said does not count."""
        return self._changes

    def expected(self) -> tuple[Agent, ...]:
        """Agents that should answer for their node now."""
        with self._lock:
            return tuple(self._expected.values())

    def record(self, uid: str, claim: Claim, now: dt.datetime) -> None:
        """Note what the agent in the pod `uid` says."""
        with self._lock:
            held = self._own.pop(uid, None)
            report = self._own[uid] = Report(uid=uid, at=now, claim=claim)
            if held is None or held.claim != claim:
                self._changes += 1
                if self._look is not None and self._look[2] and not report.acknowledges(self._look[1]):
                    self._look = None
            if len(self._own) > MAX_REPORTS:
                self._own.popitem(last=False)

    def own(self, now: dt.datetime) -> tuple[Report, ...]:
        """What this replica was told and still counts; the rest is forgotten."""
        with self._lock:
            for uid in [u for u, r in self._own.items() if now - r.at > KEPT]:
                del self._own[uid]
            return tuple(self._own.values())

    def share(self, reports: Iterable[Report]) -> None:
        """Take what all replicas have shared, instead of what was shared before."""
        self._shared = tuple(reports)

    def counts(self, digest: str, epoch: int, now: dt.datetime) -> AgentCounts:
        """What the agents of the cluster have acknowledged.

        Args:
            digest: of the bundle as it is; to a proxy, the same roots are the same bundle.
            epoch: of the root that signs.
        """
        if self._name and not self._pods.synced:
            # Nobody expected would mean that nobody is waited for.
            return AgentCounts(expected=1, missing=("the pods of the cluster were not listed yet",))
        reports = merge(self._shared, self.own(now))
        return counts(self.expected(), reports, digest=digest, epoch=epoch, now=now)

    def poll_after(self, digest: str, epoch: int, now: dt.datetime) -> dt.timedelta:
        """When an agent should come again: soon while something changes, else when `QUIET` is over.

        Soon means that all agents together call `CALLS_PER_SECOND` times a second.
        """
        with self._lock:
            if self._told != (digest, epoch):
                first = not self._told[0]
                self._told = (digest, epoch)
                self._told_since = None if first else now
            since = self._told_since
            lately = since is not None and now - since < LATELY
            if not lately and self._settled(digest, now):
                return QUIET
            many = dt.timedelta(seconds=max(len(self._expected), len(self._own)) / CALLS_PER_SECOND)
            return min(max(SOON, many), QUIET)

    def _settled(self, digest: str, now: dt.datetime) -> bool:
        """True when each agent of this replica has acknowledged; looked at once a second at most."""
        look = self._look
        if look is None or look[1] != digest or not dt.timedelta(0) <= now - look[0] < LOOK_EVERY:
            good = all(r.acknowledges(digest) for r in self._own.values() if now - r.at <= FRESH)
            look = self._look = (now, digest, good)
        return look[2]

    def _note(self, changed: frozenset[Key]) -> None:
        """On the reflector's thread."""
        with self._lock:
            for key in changed:
                if key[0] != self._namespace:
                    continue
                pod = self._pods.get(*key)
                if pod is None or pod.service_account != self._name or pod.ended or pod.ends is not None:
                    self._expected.pop(key, None)
                else:
                    self._expected[key] = Agent(pod.uid, pod.node or key[1])
