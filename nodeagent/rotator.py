"""Keeps one workload's certificate fresh: drives `core.rotation` with the authority's client.

One task per workload, so there is never more than one request in flight for it. Each attempt makes a
new key; keys live in memory only. A certificate that is still valid is kept until its successor has
been checked; after its end it is no longer handed out, and everything resumes when the authority does.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Protocol

from mesh.clock import Clock
from mesh.envoy.resources import SDS_ALL_BUNDLES, SDS_ROOTS, SDS_SVID, SECRET, Resource, ResourceSet
from mesh.envoy.secrets import bundles_secret, roots_secret, svid_secret
from mesh.errors import Category, Code, MeshError
from mesh.obs.logs import logger
from mesh.spiffe import SpiffeId
from nodeagent.ca_client import CaReply
from nodeagent.core.names import under_name
from nodeagent.core.rotation import Priority, Rotation
from nodeagent.core.schedule import TICK
from nodeagent.core.snapshot import IdentitySnapshot, TrustBundle
from nodeagent.core.svid import check_reply, check_under
from nodeagent.core.trust import HeldRoots, TrustBook
from nodeagent.keys import new_request
from nodeagent.metrics import AgentMetrics
from nodeagent.tokens import TokenSource, token_stamp

MAX_SKEW_WITHOUT_WARNING: Final = 60.0
ROOTS_LEAD: Final = 0.2
"""Seconds by which changed roots are published before the certificate that came with them."""

_log = logger("nodeagent.rotator")


class RotatorCode(Code):
    """Failures of the agent itself."""

    UNEXPECTED = "rotator_unexpected"


class Signer(Protocol):
    """What a rotator needs from `nodeagent.ca_client.CaClient`."""

    async def sign(
        self,
        *,
        csr_pem: str,
        token_file: TokenSource,
        priority: Priority,
        validity: dt.timedelta | None = None,
    ) -> CaReply:
        """Send a CSR with that token."""
        ...


Publish = Callable[[IdentitySnapshot, ResourceSet], None]
Wait = Callable[[asyncio.Event, float], Awaitable[None]]


async def wait_for_event(event: asyncio.Event, seconds: float) -> None:
    """Return when the event is set, or after `seconds`."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


@dataclass(frozen=True, slots=True, kw_only=True)
class RotatorStatus:
    """A rotator at one moment, for the status page.

    Attributes:
        state: `waiting` (none yet), `valid`, `endangered` (< 25 % of the life left) or `expired`.
        failures: attempts in a row that failed; `error` and `code` are the last one's.
        issued: certificates received since the agent started.
        bundle_digest: of the roots that are handed out, see `mesh.x509.bundles`; empty while there are none.
        bundle_generation: that they came with; 0 when the authority does not count.
        epoch: of the root that signed the certificate; 0 likewise.
    """

    spiffe_id: str
    state: str
    serial: str = ""
    not_before: dt.datetime | None = None
    not_after: dt.datetime | None = None
    renew_at: dt.datetime | None = None
    failures: int = 0
    code: str = ""
    error: str = ""
    issued: int = 0
    bundle_digest: str = ""
    bundle_generation: int = 0
    epoch: int = 0


class Rotator:
    """Obtains and renews the certificate of one workload.

    Args:
        spiffe_id: the identity to ask for.
        token_file: the workload's token (a file, or memory), read again at each attempt.
        signer: client of the authority, shared by all rotators.
        publish: takes each new snapshot with its SDS secrets.
        metrics: the agent's metrics.
        clock: wall clock.
        monotonic: seconds that never go back.
        rng: source of jitter; the system's in production.
        validity: lifetime to ask for; None = the authority's default.
        rotation: schedule; default is the standard one with `rng`.
        roots_lead: seconds by which changed roots go first.
        wait: waits for an event with a limit in seconds.
        trust: the bundle of the node, when all its workloads share one; default is one of its own.
    """

    def __init__(
        self,
        *,
        spiffe_id: SpiffeId,
        token_file: TokenSource,
        signer: Signer,
        publish: Publish,
        metrics: AgentMetrics,
        clock: Clock,
        monotonic: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
        validity: dt.timedelta | None = None,
        rotation: Rotation | None = None,
        roots_lead: float = ROOTS_LEAD,
        wait: Wait = wait_for_event,
        trust: TrustBook | None = None,
    ) -> None:
        self.trust = trust if trust is not None else TrustBook()
        self.spiffe_id = spiffe_id
        self.token_file = token_file
        self._signer = signer
        self._publish = publish
        self._metrics = metrics
        self._clock = clock
        self._monotonic = monotonic
        self._rotation = rotation or Rotation(rng=rng or random.SystemRandom())
        self._validity = validity
        self._roots_lead = roots_lead
        self._wait = wait
        self._wake = asyncio.Event()
        self._snapshot = IdentitySnapshot()
        self._published = IdentitySnapshot()
        self._token_seen: object = None
        self._last_error: MeshError | None = None
        self._issued = 0
        self._skewed = False
        self._log = _log.bind(spiffe_id=str(spiffe_id))

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            await self.step()

    async def step(self) -> None:
        """One look at the clock: an attempt when it is time, else a wait of at most a tick."""
        now = self._clock.now()
        step = self._rotation.poll(now, self._monotonic())
        if step.jumped:
            self._log.warning("the wall clock jumped, or the machine was asleep")
        self._serve(servable=step.servable)
        if step.attempt is None:
            await self._pause(step.wait)
        else:
            await self._attempt(step.attempt)

    def wake(self) -> None:
        """Look again now, without the wait of an earlier failure (a token or root file changed)."""
        self._rotation.retry_now()
        self._wake.set()

    def take_roots(self, held: HeldRoots) -> None:
        """Hand out other roots at once, beside the certificate that there is.

        Before the first certificate nothing is handed out: what is held then comes along with it.
        """
        if self._snapshot.bundle is not None and self._snapshot.bundle.roots_der != held.roots_der:
            bundle = self._bundle(held)
            self._snapshot = IdentitySnapshot(svid=self._snapshot.svid, bundle=bundle)
            self._send(IdentitySnapshot(svid=self._published.svid, bundle=bundle))

    def renew_within(self, epoch: int, seconds: float) -> None:
        """Renew a certificate of an earlier epoch at a moment of the next so many seconds."""
        svid = self._snapshot.svid
        if svid is None or svid.epoch >= epoch:
            return
        if self._rotation.hurry(epoch, seconds, self._monotonic()):
            self._wake.set()  # the wait that is on may end after that moment

    def status(self) -> RotatorStatus:
        """State for people."""
        held = self.trust.held
        plan, svid = self._rotation.plan, self._snapshot.svid
        now = self._clock.now()
        state = "waiting"
        if plan is not None:
            state = "expired" if plan.expired(now) else "endangered" if plan.endangered(now) else "valid"
        return RotatorStatus(
            spiffe_id=str(self.spiffe_id),
            state=state,
            serial=svid.serial if svid else "",
            not_before=plan.not_before if plan else None,
            not_after=plan.not_after if plan else None,
            renew_at=plan.renew_at if plan else None,
            failures=self._rotation.backoff.failures,
            code=str(self._last_error.code) if self._last_error else "",
            error=self._last_error.public if self._last_error else "",
            issued=self._issued,
            bundle_digest=held.digest if held is not None and self._snapshot.bundle is not None else "",
            bundle_generation=held.generation if held is not None else 0,
            epoch=svid.epoch if svid else 0,
        )

    # --- one attempt ------------------------------------------------------------------------------

    async def _attempt(self, priority: Priority) -> None:
        key, csr_pem = new_request(self.spiffe_id)
        self._token_seen = token_stamp(self.token_file)
        started = self._monotonic()
        try:
            reply = await self._signer.sign(
                csr_pem=csr_pem, token_file=self.token_file, priority=priority, validity=self._validity
            )
            now = self._clock.now()
            self._note_skew(reply.server_time, now)
            before, held = self._snapshot, self.trust.held
            fresh = check_reply(
                reply.cert_chain,
                expected_id=self.spiffe_id,
                key=key,
                trusted=(*reply.roots_der, *(held.roots_der if held else ())),
                now=now,
                server_time=reply.server_time,
                epoch=reply.epoch,
            )
            self._offer(fresh, reply, now)
        except MeshError as error:
            self._failed(error)
            return
        except Exception as error:  # noqa: BLE001 - whatever one attempt meets, the workload must be served again
            self._log.exception("an attempt to renew failed unexpectedly")
            self._failed(MeshError(RotatorCode.UNEXPECTED, str(error)[:200], category=Category.INTERNAL))
            return
        await self._take(fresh, before, now)
        self._metrics.renew_seconds.observe(max(self._monotonic() - started, 0.0))

    def _offer(self, fresh: IdentitySnapshot, reply: CaReply, now: dt.datetime) -> None:
        """Put the reply's roots beside what is held: an older bundle does not take a newer one back."""
        if fresh.svid is None or fresh.bundle is None:
            raise AssertionError("check_reply always gives a certificate and a bundle")
        offered = HeldRoots(fresh.bundle.roots_der, reply.generation)
        held = self.trust.offer(offered, reply.epoch)
        if held.digest != offered.digest:
            check_under(fresh.svid, held.roots_der, now)

    async def _take(self, fresh: IdentitySnapshot, before: IdentitySnapshot, now: dt.datetime) -> None:
        svid, held = fresh.svid, self.trust.held
        if svid is None or held is None:
            raise AssertionError("a reply was accepted")
        if before.svid is not None and before.bundle != self._bundle(held):
            # Roots first: whoever presents the new chain must already be believed (d.4).
            self.take_roots(held)
            await asyncio.sleep(self._roots_lead)
        plan = self._rotation.succeeded(not_before=svid.not_before, not_after=svid.not_after, now=now)
        # What is held by now: other roots may have come while this one waited.
        self._snapshot = IdentitySnapshot(svid=svid, bundle=self._bundle(self.trust.held or held))
        self._last_error = None
        self._issued += 1
        self._send(self._snapshot)
        self._metrics.renewals.inc()
        if plan.clamped:
            self._log.warning("the configured renewal ratio is outside of (0, 1) and was clamped")
        self._log.info(
            "certificate received", serial=svid.serial, not_after=svid.not_after, renew_at=plan.renew_at
        )

    def _failed(self, error: MeshError) -> None:
        delay = self._rotation.failed(error.category, self._clock.now(), self._monotonic())
        self._last_error = error
        self._metrics.renew_failures.labels(code=str(error.code)).inc()
        report = self._log.error if self._rotation.backoff.permanent else self._log.warning
        report("no certificate from the authority", error=error, retry_in=round(delay, 3))

    def _note_skew(self, server_time: dt.datetime | None, now: dt.datetime) -> None:
        if server_time is None:
            return
        skew = (now - server_time).total_seconds()
        self._metrics.clock_skew.set(skew)
        skewed = abs(skew) > MAX_SKEW_WITHOUT_WARNING
        if skewed and not self._skewed:
            self._log.warning(
                "this machine's clock differs from the authority's", skew_seconds=round(skew, 1)
            )
        self._skewed = skewed

    # --- what is handed out -----------------------------------------------------------------------

    def _serve(self, *, servable: bool) -> None:
        """Stop handing out an expired certificate, and start again if the clock was wrong."""
        wanted = self._snapshot if servable else IdentitySnapshot(bundle=self._snapshot.bundle)
        if wanted != self._published:
            if not servable:
                self._log.error("the certificate has expired and is no longer handed out")
            self._send(wanted)

    def _bundle(self, held: HeldRoots) -> TrustBundle:
        return TrustBundle(trust_domain=self.spiffe_id.trust_domain, roots_der=held.roots_der)

    def _send(self, snapshot: IdentitySnapshot) -> None:
        self._published = snapshot
        self._publish(snapshot, secrets_of(snapshot))

    async def _pause(self, seconds: float) -> None:
        """Wait, but not beyond a tick, and not on when the token changed after a failure."""
        await self._wait(self._wake, min(seconds, TICK))
        self._wake.clear()
        if self._rotation.backoff.failures and token_stamp(self.token_file) != self._token_seen:
            self._token_seen = token_stamp(self.token_file)
            self._rotation.retry_now()


def secrets_of(snapshot: IdentitySnapshot) -> ResourceSet:
    """The SDS secrets of a snapshot, under every name that clients know them by."""
    secrets: list[Resource] = []
    if snapshot.svid is not None:
        svid = snapshot.svid
        named = svid_secret(SDS_SVID, svid.chain_der, svid.key_pkcs8)
        by_id = under_name(named, str(svid.spiffe_id))
        secrets += [named, Resource.of(SECRET, by_id.name, by_id.body)]
    if snapshot.bundle is not None:
        secrets += _bundle_secrets(snapshot.bundle)
    return ResourceSet(secrets)


@lru_cache(maxsize=8)
def _bundle_secrets(bundle: TrustBundle) -> tuple[Resource, ...]:
    """Remembered: all workloads of a node have the same bundle."""
    return (
        *(roots_secret(name, bundle.roots_der) for name in (SDS_ROOTS, str(bundle.trust_domain.id))),
        bundles_secret(SDS_ALL_BUNDLES, {bundle.trust_domain: bundle.roots_der}),
    )
