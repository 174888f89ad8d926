"""One workload's snapshot: publishing, waiting, ending, and the proxy's verdicts."""

from __future__ import annotations

import asyncio

import pytest

from mesh.envoy.resources import LISTENER, SECRET, ResourceSet
from nodeagent.cache import CacheClosed, WorkloadCache
from nodeagent.core.snapshot import IdentitySnapshot
from tests.fakes.agent_model import resources
from tests.fakes.agent_session import IDENTITY, secrets

pytestmark = pytest.mark.asyncio


async def test_nothing_is_known_at_first() -> None:
    snapshot = WorkloadCache("w").snapshot
    assert (snapshot.revision, snapshot.config, snapshot.starting) == (0, None, True)
    assert snapshot.identity == IdentitySnapshot()


async def test_s17_identity_and_secrets_move_together_and_config_stays() -> None:
    cache = WorkloadCache("w")
    config = resources(("LDS", "a", "1"))
    cache.publish_config(config)
    assert cache.snapshot.starting
    held = secrets()
    cache.publish_identity(IDENTITY, held)
    now = cache.snapshot
    assert (now.revision, now.identity, now.secrets, now.config) == (2, IDENTITY, held, config)
    assert not now.starting


async def test_identity_loss_is_a_snapshot_like_any_other() -> None:
    cache = WorkloadCache("w")
    cache.publish_identity(IDENTITY, secrets())
    cache.publish_identity(IdentitySnapshot(bundle=IDENTITY.bundle), ResourceSet())
    assert cache.snapshot.identity.svid is None
    assert not cache.snapshot.starting


async def test_changed_returns_at_once_when_behind_and_waits_when_not() -> None:
    cache = WorkloadCache("w")
    cache.publish_config(ResourceSet())
    assert (await cache.changed(0)).revision == 1
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        waiting = [tasks.create_task(cache.changed(1)) for _ in range(3)]
        await asyncio.sleep(0)
        assert not any(task.done() for task in waiting)
        cache.publish_config(ResourceSet())
        cache.publish_config(ResourceSet())
    assert [task.result().revision for task in waiting] == [3, 3, 3], "the newest, not each"


async def test_a_cancelled_waiter_leaves_nothing_behind() -> None:
    cache = WorkloadCache("w")
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(cache.changed(0))
        await asyncio.sleep(0)
        assert len(cache._own._waiters) == 1
        waiting.cancel()
    assert cache._own._waiters == set()
    cache.publish_config(ResourceSet())


async def test_close_ends_all_waiting_and_drops_the_key() -> None:
    cache = WorkloadCache("w")
    cache.publish_identity(IDENTITY, secrets())
    watch = cache.watch()
    waiting = asyncio.gather(cache.changed(1), watch.changed(1), return_exceptions=True)
    await asyncio.sleep(0)
    cache.close()
    cache.close()
    async with asyncio.timeout(5):
        assert [type(error) for error in await waiting] == [CacheClosed, CacheClosed]
    assert len(cache.snapshot.secrets) == 0
    assert cache.snapshot.identity.svid is None
    with pytest.raises(CacheClosed):
        await cache.changed(0)
    cache.publish_identity(IDENTITY, secrets())
    assert cache.snapshot.identity.svid is None, "a renewal that was on its way is dropped"


async def test_a_watch_ends_alone() -> None:
    cache = WorkloadCache("w")
    watch = cache.watch()
    watch.close()
    with pytest.raises(CacheClosed):
        await watch.changed(0)
    cache.publish_config(ResourceSet())
    assert (await cache.changed(0)).revision == 1
    assert watch.snapshot.revision == 1


async def test_status_forgets_what_no_longer_exists() -> None:
    cache = WorkloadCache("w")
    book = cache.status_book
    book.accept(LISTENER, "a", "1")
    book.accept(LISTENER, "b", "1")
    book.accept(SECRET, "default", "1")
    book.refuse(SECRET, "ROOTCA", "1", "x" * 5000)
    cache.publish_config(resources(("LDS", "a", "1")))
    assert set(cache.status()) == {(LISTENER, "a"), (SECRET, "default"), (SECRET, "ROOTCA")}
    assert len(cache.status()[SECRET, "ROOTCA"].message) == 2000
    cache.publish_identity(IDENTITY, secrets())
    assert set(cache.status()) == {(LISTENER, "a"), (SECRET, "default"), (SECRET, "ROOTCA")}
    cache.publish_identity(IdentitySnapshot(), ResourceSet())
    assert set(cache.status()) == {(LISTENER, "a")}


async def test_status_of_bytes_that_were_accepted_and_later_refused() -> None:
    book = WorkloadCache("w").status_book
    book.accept(LISTENER, "a", "1")
    assert book.is_accepted(LISTENER, "a", "1")
    book.refuse(LISTENER, "a", "1", "no")
    assert not book.is_accepted(LISTENER, "a", "1")
    assert book.view()[LISTENER, "a"].accepted is None
