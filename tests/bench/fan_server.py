"""A node agent's sockets in a process of their own, for the fan-out rows: `fan_server BASE PODS`.

Reads commands from standard input, one a line: `rotate` publishes new secrets to every workload,
`raw` writes the same bytes to every client of a plain Unix socket. Answers `done` after each.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from pathlib import Path

from mesh.spiffe import SpiffeId
from nodeagent.cache import WorkloadCache
from nodeagent.core.snapshot import IdentitySnapshot, Svid, TrustBundle
from nodeagent.rotator import secrets_of
from nodeagent.sockets import SocketOptions, WorkloadSocket
from nodeagent.stream import StreamLimits
from tests.fakes import ca_factory

RAW = "raw.sock"


def identity(hierarchy: ca_factory.Hierarchy, path: str) -> IdentitySnapshot:
    """A fresh SVID as the rotator would publish it."""
    leaf = hierarchy.leaf(path, not_before=ca_factory.NOW, not_after=ca_factory.NOW + 3650 * ca_factory.DAY)
    svid = Svid(
        spiffe_id=SpiffeId.parse(f"spiffe://cluster.local{path}"),
        chain_der=leaf.chain,
        key_pkcs8=leaf.key_pkcs8,
        serial=f"{leaf.certificate.serial_number:x}",
        not_before=leaf.certificate.not_valid_before_utc,
        not_after=leaf.certificate.not_valid_after_utc,
    )
    bundle = TrustBundle(trust_domain=hierarchy.trust_domain, roots_der=hierarchy.roots)
    return IdentitySnapshot(svid=svid, bundle=bundle)


async def serve(base: Path, pods: int, streams: int) -> None:
    """Serve until standard input ends."""
    hierarchy = ca_factory.make_hierarchy()
    caches = [WorkloadCache(f"demo/pod-{i}") for i in range(pods)]
    options = SocketOptions(limits=StreamLimits(streams=streams))
    sockets = [WorkloadSocket(base / str(i), cache, options=options) for i, cache in enumerate(caches)]
    raw: list[asyncio.StreamWriter] = []
    prepared = [identity(hierarchy, f"/ns/demo/sa/pod-{i}") for i in range(pods)]
    for cache, snapshot, socket in zip(caches, prepared, sockets, strict=True):
        cache.publish_identity(snapshot, secrets_of(snapshot))
        await socket.start()

    async def plain(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raw.append(writer)

    await asyncio.start_unix_server(plain, base / RAW)
    loop = asyncio.get_running_loop()
    gc.collect()
    gc.freeze()
    say("ready")
    while command := (await loop.run_in_executor(None, sys.stdin.readline)).strip():
        if command == "prepare":  # making certificates is not part of the push
            prepared = [identity(hierarchy, f"/ns/demo/sa/pod-{i}") for i in range(pods)]
        elif command == "rotate":
            for cache, snapshot in zip(caches, prepared, strict=True):
                cache.publish_identity(snapshot, secrets_of(snapshot))
        elif command.startswith("raw"):
            payload = bytes(int(command.split()[1]))
            for writer in raw:
                writer.write(payload)
        say("done")
    await asyncio.gather(*(socket.stop() for socket in sockets))  # else every open stream is told as a fault


def say(word: str) -> None:
    """One line to whoever drives us."""
    sys.stdout.write(word + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
