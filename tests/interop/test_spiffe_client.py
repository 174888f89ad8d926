"""The SPIFFE Workload API as an independent client sees it: PyPI `spiffe`, unmodified (W-09)."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from nodeagent.cache import WorkloadCache
from nodeagent.core.snapshot import IdentitySnapshot
from nodeagent.sockets import WorkloadSocket, prepare_base
from tests.fakes.agent_identity import authority, identity, publish

ROOT = Path(__file__).resolve().parents[2]
DEADLINE = 40.0

pytestmark = pytest.mark.asyncio


class Client:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def until(self, **wanted: object) -> dict[str, Any]:
        """The next event with these values; others are passed over."""
        assert self._process.stdout is not None
        seen: list[str] = []
        try:
            async with asyncio.timeout(DEADLINE):
                while line := await self._process.stdout.readline():
                    seen.append(line.decode())
                    event: dict[str, Any] = json.loads(line)
                    if all(event.get(key) == value for key, value in wanted.items()):
                        return event
        except TimeoutError:
            pytest.fail(f"no event with {wanted}; seen: {seen[-5:]}")
        pytest.fail(f"the client ended; seen: {seen[-5:]}")


@asynccontextmanager
async def client(path: Path) -> AsyncIterator[Client]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.fakes.agent_spiffe_client", f"unix://{path}"),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield Client(process)
    finally:
        process.kill()
        await process.wait()


@asynccontextmanager
async def served() -> AsyncIterator[tuple[WorkloadCache, WorkloadSocket]]:
    with tempfile.TemporaryDirectory(prefix="gh-") as base:
        prepare_base(Path(base))
        cache = WorkloadCache("demo/web")
        socket = WorkloadSocket(Path(base, "w"), cache)
        await socket.start()
        try:
            yield cache, socket
        finally:
            await socket.stop()


async def test_w09_first_svid_then_rotation_is_pushed() -> None:
    """W-02, W-04, W-07, W-09."""
    ca = authority()
    async with served() as (cache, socket):
        first = publish(cache, identity(ca))
        async with client(socket.path) as spiffe:
            event = await spiffe.until(event="svid")
            assert first.svid is not None
            assert event["id"] == "spiffe://cluster.local/ns/demo/sa/web"
            assert (event["serial"], event["verified"]) == (first.svid.serial, True)
            for _ in range(3):
                following = publish(cache, identity(ca))
                assert following.svid is not None
                event = await spiffe.until(event="svid")
                assert (event["serial"], event["verified"]) == (following.svid.serial, True)


async def test_w09_new_root_comes_with_the_new_leaf() -> None:
    """W-07: the chain verifies to the bundle of the same message."""
    old, new = authority(), authority()
    async with served() as (cache, socket):
        publish(cache, identity(old))
        async with client(socket.path) as spiffe:
            await spiffe.until(event="svid")
            publish(cache, identity(old, roots=(*old.roots, *new.roots)))
            assert (await spiffe.until(event="svid"))["verified"]
            following = publish(cache, identity(new, roots=(*old.roots, *new.roots)))
            assert following.svid is not None
            assert (await spiffe.until(event="svid", serial=following.svid.serial))["verified"]


async def test_w05_refused_then_works_without_a_restart_of_either() -> None:
    """W-05, W-06: Unavailable while starting, PermissionDenied without an identity, then it works."""
    ca = authority()
    async with served() as (cache, socket), client(socket.path) as spiffe:
        event = await spiffe.until(event="failed")
        assert "has not come yet" in event["error"]
        cache.publish_identity(IdentitySnapshot(), secrets=cache.snapshot.secrets)
        while "no identity is issued" not in event["error"]:
            event = await spiffe.until(event="failed")
        published = publish(cache, identity(ca))
        assert published.svid is not None
        assert (await spiffe.until(event="svid"))["serial"] == published.svid.serial


async def test_w09_server_restart_keeps_the_client_alive() -> None:
    ca = authority()
    async with served() as (cache, socket):
        publish(cache, identity(ca))
        async with client(socket.path) as spiffe:
            await spiffe.until(event="svid")
            await socket.stop()
            await socket.start()
            following = publish(cache, identity(ca))
            assert following.svid is not None
            await spiffe.until(event="svid", serial=following.svid.serial)
