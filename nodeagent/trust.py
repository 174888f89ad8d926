"""Asks the authority for the trust bundle, and says who has acknowledged it (docs/adr/0014).

One task, one call at a time. The authority says when to come again. Two things bring the agent earlier: a
bundle that came with a certificate, and the last of the workloads that were waited for.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import Any, Final, Protocol

from mesh.errors import Category, Code, MeshError
from mesh.obs.logs import logger
from nodeagent.ca_client import SyncReply
from nodeagent.core.svid import check_roots
from nodeagent.core.trust import HeldRoots, Standing, TrustBook
from nodeagent.metrics import AgentMetrics
from nodeagent.rotator import Wait, wait_for_event
from nodeagent.tokens import TokenSource

SHORTEST: Final = 1.0
"""Seconds between two calls, whatever the authority or the proxies say."""
LONGEST: Final = 300.0
"""Seconds between two calls at most, also after failures."""
CROWD: Final = 0.2
"""Seconds to wait after an acknowledgement: others come at the same time."""
_MAX_EXPONENT: Final = 9
_LASTING: Final = frozenset(
    {Category.PERMISSION_DENIED, Category.INVALID_ARGUMENT, Category.FAILED_PRECONDITION, Category.NOT_FOUND}
)
_log = logger("nodeagent.trust")


class TrustCode(Code):
    """Failures of the agent itself."""

    UNEXPECTED = "trust_unexpected"


class Syncs(Protocol):
    """What is needed from `nodeagent.ca_client.CaClient`."""

    async def sync(self, standing: Standing, *, token_file: TokenSource) -> SyncReply:
        """Report, and hear of the bundle."""
        ...


class TrustSync:
    """Keeps the node's bundle current.

    Args:
        client: of the authority.
        token_file: the agent's own token.
        book: takes what the authority tells.
        standing: how the workloads stand now; None while the agent does not know its workloads yet.
        renew_within: called with an epoch and seconds: renew certificates of earlier epochs in that time.
        monotonic: seconds that never go back.
        rng: source of jitter.
        wait: waits for an event with a limit in seconds.

    Attributes:
        problem: why the last call failed; None when it did not.
    """

    def __init__(
        self,
        client: Syncs,
        token_file: TokenSource,
        book: TrustBook,
        *,
        standing: Callable[[], Standing | None],
        renew_within: Callable[[int, float], None],
        metrics: AgentMetrics,
        monotonic: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
        wait: Wait = wait_for_event,
    ) -> None:
        self._client = client
        self._token_file = token_file
        self._book = book
        self._standing = standing
        self._renew_within = renew_within
        self._metrics = metrics
        self._monotonic = monotonic
        self._rng = rng or random.SystemRandom()
        self._wait = wait
        self._wake = asyncio.Event()
        self._sent = Standing()
        self._owed = False
        self._failures = 0
        self._heard_at = monotonic()
        self.problem: MeshError | None = None
        metrics.trust_syncs.labels(result="ok")  # from 0 on: an alert asks for increases
        book.subscribe(self._on_roots)

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            await self.step()

    async def step(self) -> None:
        """One call, and the wait for the next."""
        await self._until_due(await self._call())

    def acknowledged(self) -> None:
        """A proxy accepted something: look, if that is waited for."""
        if self._owed:
            self._wake.set()

    def workloads_changed(self) -> None:
        """The agent knows its workloads now, or others than before."""
        if self._owed:
            self._wake.set()

    def refresh(self) -> None:
        """Bring gauges up to date before they are shown."""
        found, metrics = self._look(), self._metrics
        metrics.bundle_generation.set(found.generation)
        metrics.pending_workloads.set(found.pending)
        metrics.outdated_workloads.set(found.outdated)
        metrics.trust_sync_age.set(max(self._monotonic() - self._heard_at, 0.0))

    def view(self) -> dict[str, Any]:
        """For the status page."""
        found = self._look()
        return {
            "digest": found.digest,
            "generation": found.generation,
            "epoch": found.epoch,
            "pending": found.pending,
            "refused": found.refused,
            "waiting_for": list(found.waiting_for),
            "outdated": found.outdated,
            "heard_seconds_ago": round(self._monotonic() - self._heard_at, 1),
            "code": str(self.problem.code) if self.problem else "",
            "error": self.problem.public if self.problem else "",
        }

    # --- one call -------------------------------------------------------------------------------------

    async def _call(self) -> float:
        """Ask once; returns the seconds until the next call."""
        self._sent = self._look()
        try:
            reply = await self._client.sync(self._sent, token_file=self._token_file)
            held = self._book.held
            trusted = (*reply.roots_der, *(held.roots_der if held is not None else ()))
            roots = check_roots(reply.roots_pem, trusted=trusted)
        except MeshError as error:
            return self._failed(error)
        except Exception as error:  # noqa: BLE001 - whatever one call meets, the next must be made
            _log.exception("asking for the trust bundle failed unexpectedly")
            return self._failed(MeshError(TrustCode.UNEXPECTED, str(error)[:200], category=Category.INTERNAL))
        self._metrics.trust_syncs.labels(result="ok").inc()
        if self.problem is not None:
            _log.info("the authority tells the trust bundle again")
        self.problem, self._failures, self._heard_at = None, 0, self._monotonic()
        self._book.offer(HeldRoots(roots, reply.generation), reply.epoch)
        if reply.renew_within > 0:
            self._renew_within(reply.epoch, reply.renew_within)
        return min(max(reply.poll_after * self._rng.uniform(0.9, 1.0), SHORTEST), LONGEST)

    def _failed(self, error: MeshError) -> float:
        self._metrics.trust_syncs.labels(result=str(error.code)).inc()
        if self.problem is None or self.problem.code is not error.code:
            _log.warning("the authority does not tell the trust bundle", error=error)
        self.problem = error
        self._failures += 1
        cap = LONGEST if error.category in _LASTING else 2.0 ** min(self._failures, _MAX_EXPONENT)
        return max(self._rng.uniform(0.5, 1.0) * min(cap, LONGEST), SHORTEST)

    def _look(self) -> Standing:
        return self._standing() or Standing(epoch=self._book.epoch)

    # --- the wait -------------------------------------------------------------------------------------

    async def _until_due(self, seconds: float) -> None:
        """Wait; not to the end when there is news. After a failure nothing makes the wait shorter."""
        begun = self._monotonic()
        due = begun + seconds
        while (now := self._monotonic()) < due:
            look_at = due
            self._owed = False
            if self.problem is None:
                found = self._standing()
                self._owed = found is None or found.digest != self._sent.digest or self._sent.pending > 0
                if self._owed and found is not None and found.pending == 0:
                    due = look_at = min(due, max(begun + SHORTEST, now))
                elif self._owed and found is not None and found.look_at is not None:
                    look_at = min(due, max(found.look_at, now + CROWD))
            if due <= now:
                return
            await self._wait(self._wake, look_at - now)
            if self._wake.is_set():
                self._wake.clear()
                await self._wait(self._wake, min(CROWD, max(due - self._monotonic(), 0.0)))

    def _on_roots(self, _held: HeldRoots) -> None:
        self._owed = True
        self._wake.set()
