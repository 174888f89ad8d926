"""Telling node agents the trust bundle, as a use case without a transport (docs/adr/0014).

authenticate -> limit -> is it an agent -> read its report -> write it down -> answer

No certificate is made for it. Only the agents' own service account may ask, with a token that is bound to a
living pod: what agents report decides when a former root goes. Calls have a limiter of their own, so that
they take nothing from those who ask for certificates.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from ca.authn import Caller
from ca.core.acknowledged import Claim
from ca.core.authority import Issuer
from ca.limits import Limiter, Limits
from ca.requests import Refuse, RequestCode, RequestError, RequestHead
from mesh.errors import Category, Code, MeshError
from mesh.spiffe import SpiffeId
from mesh.x509 import pem
from mesh.x509.bundles import bundle_digest

CALLER_RATE: Final = 1.0
"""Calls of one agent per second in the long run; it is asked to come every two seconds at most."""
CALLER_BURST: Final = 10
MAX_RENEW_WITHIN: Final = 7 * 86_400


class SyncCode(Code):
    """Why an agent was not told."""

    NO_AGENTS = "sync_no_agents"
    NOT_AN_AGENT = "sync_not_an_agent"
    NO_POD = "sync_no_pod"


class SyncError(MeshError):
    """A caller that is known, and may not ask."""

    def __init__(self, code: SyncCode, public: str, private: str) -> None:
        super().__init__(code, public, private=private, category=Category.PERMISSION_DENIED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """The answer.

    Attributes:
        roots_pem: one certificate each.
        poll_after: when to ask again.
        renew_within_s: certificates of earlier epochs are to be renewed, spread over these seconds; 0 = when
            they are due.
    """

    roots_pem: tuple[str, ...]
    generation: int
    epoch: int
    poll_after: dt.timedelta
    renew_within_s: int


class Book(Protocol):
    """What `ca.agents.AgentBook` does."""

    def record(self, uid: str, claim: Claim, now: dt.datetime) -> None:
        """Note a report."""
        ...

    def poll_after(self, digest: str, epoch: int, now: dt.datetime) -> dt.timedelta:
        """When the agent should come again."""
        ...


@dataclass(frozen=True, slots=True)
class _Bundle:
    issuer: Issuer
    roots_pem: tuple[str, ...]
    digest: str


class TrustService:
    """Safe to use from any thread.

    Args:
        agents: the identity of the agents; None when nobody may ask.
        authenticate: as `ca.service.IssuanceService.authenticate`; raises AuthnError.
        refuse: audits and counts a refusal, as `ca.service.IssuanceService.refuse`.
        issuer: in force now.
        book: takes the reports; None without a cluster.
        answered: called once for each answer.
        renew_within: seconds over which certificates of earlier epochs are to be renewed now; 0 = none.
        in_flight: calls that are worked on at the same time.
    """

    def __init__(
        self,
        *,
        agents: SpiffeId | None,
        authenticate: Callable[[RequestHead, dt.datetime], Caller],
        refuse: Refuse,
        issuer: Callable[[], Issuer],
        book: Book | None,
        answered: Callable[[], None] = lambda: None,
        renew_within: Callable[[], int] = lambda: 0,
        in_flight: int = 4,
        callers: int = 20_000,
    ) -> None:
        self._agents = agents
        self._authenticate = authenticate
        self._refuse = refuse
        self._issuer = issuer
        self._book = book
        self._answered = answered
        self._renew_within = renew_within
        self._limiter = Limiter(
            Limits(
                caller_rate=CALLER_RATE,
                caller_burst=CALLER_BURST,
                caller_in_flight=1,
                total_in_flight=in_flight,
                callers=callers,
            )
        )
        self._bundle: _Bundle | None = None

    def sync(self, head: RequestHead, read: Callable[[], Claim], now: dt.datetime) -> Told:
        """Take an agent's report, and tell it the bundle.

        Args:
            head: what came with the call.
            read: gives the report; called only for an agent that is within its limits.

        Raises:
            MeshError: the refusal, audited and counted. Anything else is a fault of ours, audited too.
        """
        caller: Caller | None = None
        try:
            caller = self._authenticate(head, now)
            told = self._sync(caller, read, now)
        except MeshError as e:
            self._refuse(e, caller, peer=head.peer)
            raise
        except Exception as e:
            fault = RequestError(
                RequestCode.INTERNAL,
                "internal error; try again later",
                category=Category.INTERNAL,
                private=type(e).__name__,
            )
            self._refuse(fault, caller, peer=head.peer)
            raise
        self._answered()
        return told

    def _sync(self, caller: Caller, read: Callable[[], Claim], now: dt.datetime) -> Told:
        with self._limiter.admit(caller.key, now):
            book = self._check(caller)
            claim = read()
            bundle = self._current()
            book.record(caller.pod_uid, claim, now)
            issuer = bundle.issuer
            return Told(
                roots_pem=bundle.roots_pem,
                generation=issuer.generation,
                epoch=issuer.epoch,
                poll_after=book.poll_after(bundle.digest, issuer.epoch, now),
                renew_within_s=min(max(self._renew_within(), 0), MAX_RENEW_WITHIN),
            )

    def _check(self, caller: Caller) -> Book:
        if self._agents is None or self._book is None:
            raise SyncError(
                SyncCode.NO_AGENTS,
                "this authority tells nobody its bundle by this call; set cluster.agents to the service"
                " account of the node agents",
                f"{caller.spiffe_id} asks, and cluster.agents is not set",
            )
        if caller.spiffe_id != self._agents:
            raise SyncError(
                SyncCode.NOT_AN_AGENT,
                f"{caller.spiffe_id} may not ask for the bundle by this call; workloads get it with their"
                " certificates",
                f"{caller.spiffe_id} asks; allowed is {self._agents}",
            )
        if not caller.pod_uid:
            raise SyncError(
                SyncCode.NO_POD,
                "send a token that is bound to the agent's pod; a certificate alone does not say which node"
                " it speaks for",
                f"{caller.spiffe_id} asks with {caller.method} that names no pod",
            )
        return self._book

    def _current(self) -> _Bundle:
        issuer, held = self._issuer(), self._bundle
        if held is None or held.issuer is not issuer:
            roots = tuple(map(pem.encode_certificate, issuer.roots))
            held = self._bundle = _Bundle(issuer, roots, bundle_digest(issuer.roots))
        return held
