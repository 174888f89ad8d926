"""A node agent whose rotations start on command: `rotation_server FILE`, a JSON of what it serves.

Everything is the agent's own (sockets, rotators, client of the authority) but the schedule. Reads
commands from standard input, one a line, and answers each with one line:

- `rotate` lets every workload obtain a certificate for a new key; answered when all have one;
- `push` publishes the certificates from before the last rotation again, to all;
- `keys` makes a key and a CSR for every workload; answers with the CPU seconds it took.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import gc
import json
import random
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from mesh.clock import SystemClock
from mesh.envoy.resources import ResourceSet
from mesh.spiffe import SpiffeId
from nodeagent.ca_client import CaClient
from nodeagent.cache import WorkloadCache
from nodeagent.core.rotation import Priority, Rotation, Step
from nodeagent.core.snapshot import IdentitySnapshot
from nodeagent.keys import new_request
from nodeagent.metrics import AgentMetrics
from nodeagent.rotator import Rotator, secrets_of
from nodeagent.sockets import WorkloadSocket
from nodeagent.tokens import MemoryToken
from tests.bench.fan_server import say


class OnCommand(Rotation):
    """The schedule, with one attempt more for each command."""

    __slots__ = ("wanted",)

    def __init__(self) -> None:
        super().__init__(rng=random.SystemRandom())
        self.wanted = False

    def poll(self, now: dt.datetime, monotonic: float) -> Step:
        """As the schedule says, or at once."""
        step = super().poll(now, monotonic)
        if self.wanted:
            self.wanted = False
            step = replace(step, attempt=Priority.ROUTINE)
        return step


class Pod:
    """One workload: what the agent keeps for it."""

    def __init__(self, place: Path, path: str, token: str, ca: CaClient, metrics: AgentMetrics) -> None:
        self.spiffe_id = SpiffeId.parse(f"spiffe://cluster.local{path}")
        self.cache = WorkloadCache(path)
        self.socket = WorkloadSocket(place, self.cache)
        self.schedule = OnCommand()
        self.before = IdentitySnapshot()
        self.renewed = asyncio.Event()
        self.rotator = Rotator(
            spiffe_id=self.spiffe_id,
            token_file=MemoryToken(path, token),
            signer=ca,
            publish=self._publish,
            metrics=metrics,
            clock=SystemClock(),
            rotation=self.schedule,
        )

    def _publish(self, identity: IdentitySnapshot, secrets: ResourceSet) -> None:
        self.before = self.cache.snapshot.identity
        self.cache.publish_identity(identity, secrets)
        self.renewed.set()

    async def rotate(self) -> None:
        """Return when a new certificate is published."""
        self.renewed.clear()
        self.schedule.wanted = True
        self.rotator.wake()
        await self.renewed.wait()


async def serve(told: dict[str, Any]) -> None:
    """Serve until standard input ends."""
    ca = CaClient(address=told["authority"], root_file=Path(told["roots"]))
    metrics = AgentMetrics(CollectorRegistry())
    pods = [Pod(Path(place), path, token, ca, metrics) for place, path, token in told["pods"]]
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as tasks:
        for pod in pods:
            await pod.socket.start()
        running = [tasks.create_task(pod.rotator.run()) for pod in pods]
        await asyncio.gather(*(pod.renewed.wait() for pod in pods))
        gc.collect()
        gc.freeze()
        say("ready")
        while command := (await loop.run_in_executor(None, sys.stdin.readline)).strip():
            if command == "rotate":
                await asyncio.gather(*(pod.rotate() for pod in pods))
            elif command == "push":
                for pod in pods:
                    pod.cache.publish_identity(pod.before, secrets_of(pod.before))
            elif command == "keys":
                cpu = time.process_time()
                for pod in pods:
                    new_request(pod.spiffe_id)
                say(str(time.process_time() - cpu))
                continue
            say("done")
        for task in running:
            task.cancel()
    await ca.close()


if __name__ == "__main__":
    asyncio.run(serve(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
