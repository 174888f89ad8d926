"""The trust bundle of a node: which one wins, who has acknowledged it, and whose certificate is outdated.

Pure: the time is an argument. `nodeagent.trust` talks to the authority, `nodeagent.rotator` hands out what
wins here, and the discovery sessions say what the proxies accepted (docs/adr/0014).
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, Protocol

from mesh.envoy.resources import SDS_ALL_BUNDLES, SDS_ROOTS, SECRET
from mesh.x509.bundles import bundle_digest
from nodeagent.core import names
from nodeagent.core.snapshot import TrustBundle, WorkloadSnapshot
from nodeagent.core.status import StatusBook
from nodeagent.core.subscriptions import Subscription

ABSENT_AFTER: Final = 60.0
"""Seconds without a stream after which a workload counts as having no proxy: before that the agent may have
been restarted, or the proxy is."""
MAX_WAITING: Final = 20
MAX_NAME_CHARS: Final = 200
_BUNDLES: Final = frozenset({SDS_ROOTS, SDS_ALL_BUNDLES})


# --- which bundle wins --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HeldRoots:
    """The roots of a bundle, and the generation that they came with; 0 when nobody counts."""

    roots_der: tuple[bytes, ...]
    generation: int = 0
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", bundle_digest(self.roots_der))


def newer(held: HeldRoots | None, offered: HeldRoots) -> HeldRoots:
    """Which of two bundles to hand out, the one that is held or the one that the authority now tells.

    The higher generation wins: replicas of the authority learn of a change one after the other. Generation 0
    is a CA that somebody else rotates: what comes last counts. Roots that are the same stay the same object,
    in the order that proxies know them by.
    """
    if held is None:
        return offered
    if 0 < offered.generation < held.generation:
        return held
    if held.digest != offered.digest:
        return offered
    return held if held.generation == offered.generation else HeldRoots(held.roots_der, offered.generation)


Listener = Callable[[HeldRoots], None]


class TrustBook:
    """The bundle that a node hands out, and the newest epoch that it knows. For one event loop."""

    def __init__(self) -> None:
        self.held: HeldRoots | None = None
        self.epoch = 0
        self._listeners: dict[Listener, None] = {}

    def offer(self, offered: HeldRoots, epoch: int) -> HeldRoots:
        """Take what the authority tells, if it is newer; listeners hear of other roots."""
        before = self.held
        self.held = newer(before, offered)
        nobody_counts = offered.generation == 0 and epoch == 0
        self.epoch = 0 if nobody_counts else max(self.epoch, epoch)
        if before is None or before.digest != self.held.digest:
            for listener in tuple(self._listeners):
                listener(self.held)
        return self.held

    def subscribe(self, listener: Listener) -> None:
        """Have `listener` called with each bundle that has other roots than the one before."""
        self._listeners[listener] = None

    def unsubscribe(self, listener: Listener) -> None:
        """Stop calling it. Safe to call again."""
        self._listeners.pop(listener, None)


# --- who has acknowledged it --------------------------------------------------------------------------


class Verdict(enum.IntEnum):
    """What is known of a receiver and the bundle; the highest of several counts."""

    ACCEPTED = 0
    PENDING = 1
    REFUSED = 2


def verdict_on_roots(
    subscription: Subscription | None, snapshot: WorkloadSnapshot, status: StatusBook
) -> Verdict | None:
    """What a proxy says, on one stream, of the roots as they are now; None when it has not asked for them.

    Roots are served under several names; each that the proxy asked for must be accepted.
    """
    if subscription is None:
        return None
    bundle = snapshot.identity.bundle
    if bundle is None:
        # After a restart the agent may not know the bundle yet, and the proxy goes on with an older one.
        return Verdict.PENDING if not _BUNDLES.isdisjoint(subscription.names) else None
    of_roots = {*_BUNDLES, str(bundle.trust_domain.id)}
    wanted = dict.fromkeys((*of_roots, *subscription.names)) if subscription.wildcard else subscription.names
    found: Verdict | None = None
    for name in wanted:
        resource = names.find(snapshot, SECRET, name)
        if resource is None or resource.name not in of_roots:
            continue
        said = _said(subscription, name, resource.version, status)
        found = said if found is None else max(found, said)
    return found


def _said(sub: Subscription, name: str, version: str, status: StatusBook) -> Verdict:
    if sub.sent.get(name) != version:
        return Verdict.PENDING
    if name in sub.refused or status.is_refused(SECRET, name, version):
        return Verdict.REFUSED
    unanswered = any(name == sent for pairs in sub.outstanding.values() for sent, _ in pairs)
    return Verdict.PENDING if unanswered else Verdict.ACCEPTED


class Receiver(Protocol):
    """An open stream that carries the bundle to a workload."""

    def verdict(self, snapshot: WorkloadSnapshot) -> Verdict | None:
        """Of the roots in that snapshot; None when the client has not asked for roots."""
        ...


class Receivers:
    """The open streams of one workload that may carry the bundle. For one event loop.

    Args:
        since: monotonic seconds; from then on the workload could be reached.
    """

    __slots__ = ("_clients", "_proxies", "alone_since")

    def __init__(self, since: float) -> None:
        # Tuples: a node has a hundred workloads with one stream each, and an empty set takes 216 bytes.
        self._proxies: tuple[Receiver, ...] = ()
        self._clients: tuple[Receiver, ...] = ()
        self.alone_since = since
        """When the last stream of a proxy ended; before there was one, when the workload could be reached."""

    def open(self, receiver: Receiver, *, proxy: bool) -> None:
        """A stream began; one of a proxy says what it accepts, others can only be told."""
        if proxy:
            self._proxies = (*self._proxies, receiver)
        else:
            self._clients = (*self._clients, receiver)

    def close(self, receiver: Receiver, now: float) -> None:
        """It ended. Safe to call again."""
        if receiver in self._proxies:
            self._proxies = tuple(r for r in self._proxies if r is not receiver)
            self.alone_since = now
        self._clients = tuple(r for r in self._clients if r is not receiver)

    def verdict(self, snapshot: WorkloadSnapshot, now: float) -> tuple[Verdict, float | None]:
        """What is known of the workload, and when to look again if that may change by time alone."""
        said = [v for r in self._proxies if (v := r.verdict(snapshot)) is not None]
        told = [v for r in self._clients if (v := r.verdict(snapshot)) is not None]
        absent_at = self.alone_since + ABSENT_AFTER
        if not said and now < absent_at:
            return Verdict.PENDING, absent_at
        return max((*said, *told), default=Verdict.ACCEPTED), None


# --- what the agent reports ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadFact:
    """A workload at one moment.

    Attributes:
        name: namespace/name.
        bundle: that it is handed out; None before its first certificate.
        epoch: of its certificate; None while it has none that is valid.
        look_at: when the verdict may change by time alone, monotonic seconds; None for never.
    """

    name: str
    bundle: TrustBundle | None
    epoch: int | None
    verdict: Verdict
    look_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What the agent reports (`gatehouse.trust.v1.SyncRequest`), and when to look again."""

    digest: str = ""
    generation: int = 0
    epoch: int = 0
    workloads: int = 0
    pending: int = 0
    refused: int = 0
    waiting_for: tuple[str, ...] = ()
    outdated: int = 0
    look_at: float | None = None


def standing(facts: Iterable[WorkloadFact], book: TrustBook) -> Standing:
    """Add the workloads up."""
    held, found = book.held, list(facts)
    pending: list[str] = []
    refused = 0
    looks: list[float] = []
    for fact in found:
        verdict = fact.verdict
        if fact.bundle is not None and (held is None or fact.bundle.roots_der != held.roots_der):
            verdict = max(verdict, Verdict.PENDING)
        if verdict is Verdict.ACCEPTED:
            continue
        pending.append(fact.name[:MAX_NAME_CHARS])
        refused += verdict is Verdict.REFUSED
        if fact.look_at is not None:
            looks.append(fact.look_at)
    return Standing(
        digest=held.digest if held is not None else "",
        generation=held.generation if held is not None else 0,
        epoch=book.epoch,
        workloads=len(found),
        pending=len(pending),
        refused=refused,
        waiting_for=tuple(sorted(pending)[:MAX_WAITING]),
        outdated=sum(fact.epoch is not None and fact.epoch < book.epoch for fact in found),
        look_at=min(looks, default=None),
    )
