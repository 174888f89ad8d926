"""One workload's current snapshot, and everyone who waits for the next.

Lives on one event loop: publications and readers never overlap, so there are no locks. Publishing is
cheap: it swaps one object and wakes the waiters, who take the newest snapshot when they run.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from mesh.envoy.resources import SECRET, TYPE_URLS, ResourceSet
from nodeagent.core.snapshot import IdentitySnapshot, WorkloadSnapshot
from nodeagent.core.status import ResourceStatus, StatusBook
from nodeagent.core.trust import Receiver, Receivers

_CONFIG_TYPES = TYPE_URLS - {SECRET}


class CacheClosed(Exception):  # noqa: N818 - not a failure: the end of what was waited for
    """There will be no further snapshot."""


class Watch:
    """A group of waiters that ends on its own, such as all streams of one socket.

    Who waits only now and then awaits `changed`. Who listens all the time attaches a function: that
    costs no task and no future for as long as nothing happens.
    """

    def __init__(self, cache: WorkloadCache) -> None:
        self._cache = cache
        self._waiters: set[asyncio.Future[None]] = set()
        self._listeners: set[Callable[[], None]] = set()
        self.closed = False

    @property
    def snapshot(self) -> WorkloadSnapshot:
        """What is known now."""
        return self._cache.snapshot

    async def changed(self, since: int) -> WorkloadSnapshot:
        """The newest snapshot, as soon as its revision is above `since`.

        Raises:
            CacheClosed: the watch or the cache is closed.
        """
        while True:
            if self.closed:
                raise CacheClosed
            if self._cache.snapshot.revision > since:
                return self._cache.snapshot
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.add(waiter)
            try:
                await waiter
            finally:
                self._waiters.discard(waiter)

    def attach(self, listener: Callable[[], None]) -> None:
        """Have `listener` called after each publication, and when the watch is closed."""
        self._listeners.add(listener)

    def detach(self, listener: Callable[[], None]) -> None:
        """Stop calling it. Safe to call again."""
        self._listeners.discard(listener)

    def wake(self) -> None:
        """Let the waiters look again."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        for listener in tuple(self._listeners):
            listener()

    def close(self) -> None:
        """End all waiting, now and later. Safe to call again."""
        self.closed = True
        self._cache.forget(self)
        self.wake()


class WorkloadCache:
    """The snapshot of one workload, with its subscribers and the proxy's verdicts on it.

    Args:
        workload_id: key of the workload in logs, metrics and events.
        monotonic: seconds that never go back.
    """

    def __init__(self, workload_id: str, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.workload_id = workload_id
        self._monotonic = monotonic
        self.receivers = Receivers(monotonic())
        self.status_book = StatusBook()
        self._snapshot = WorkloadSnapshot()
        self._watches: set[Watch] = set()
        self._own = self.watch()
        self._closed = False

    @property
    def snapshot(self) -> WorkloadSnapshot:
        """What is known now; revision 0 = nothing yet."""
        return self._snapshot

    def publish_identity(self, identity: IdentitySnapshot, secrets: ResourceSet) -> None:
        """Replace identity and secrets together.

        An identity without SVID says that there is none: Workload API streams end with
        PermissionDenied, and proxies keep what they have (a secret cannot be withdrawn from Envoy).
        Publish nothing while the first certificate is still being waited for.

        Args:
            identity: key, chain and bundle of one moment.
            secrets: the same as Envoy secrets.
        """
        self.status_book.retain(frozenset({SECRET}), secrets)
        self._swap(replace(self._snapshot, identity=identity, secrets=secrets, starting=False))

    def publish_config(self, config: ResourceSet) -> None:
        """Replace the whole configuration; an empty set is a statement, not an absence."""
        self.status_book.retain(_CONFIG_TYPES, config)
        self._swap(replace(self._snapshot, config=config))

    def status(self) -> Mapping[tuple[str, str], ResourceStatus]:
        """What the proxy said, by type URL and name: accepted and refused content hashes."""
        return self.status_book.view()

    async def changed(self, since: int) -> WorkloadSnapshot:
        """The newest snapshot, as soon as its revision is above `since`.

        Raises:
            CacheClosed: the workload is gone.
        """
        return await self._own.changed(since)

    def watch(self) -> Watch:
        """A group of waiters that can be ended apart from the cache."""
        watch = Watch(self)
        self._watches.add(watch)
        return watch

    def reachable(self) -> None:
        """Its socket is served from now on: a proxy gets its time to come."""
        self.receivers.alone_since = self._monotonic()

    def receiver_closed(self, receiver: Receiver) -> None:
        """A stream that carried the bundle has ended."""
        self.receivers.close(receiver, self._monotonic())

    def forget(self, watch: Watch) -> None:
        """Stop waking a watch; called by the watch itself."""
        self._watches.discard(watch)

    def close(self) -> None:
        """The workload is gone: end all waiting and drop the key. Safe to call again.

        What is still published afterwards, by a renewal that was on its way, say, is dropped.
        """
        self._closed = True
        for watch in tuple(self._watches):
            watch.close()
        self._snapshot = WorkloadSnapshot(revision=self._snapshot.revision + 1)

    def _swap(self, snapshot: WorkloadSnapshot) -> None:
        if self._closed:
            return
        self._snapshot = replace(snapshot, revision=self._snapshot.revision + 1)
        for watch in tuple(self._watches):
            watch.wake()
