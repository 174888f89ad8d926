"""Issuing a certificate, as a use case without a transport.

authenticate -> limit -> read the request -> check it -> prove the key -> prepare -> sign -> audit

Every request ends in exactly one audit line and one count, whether it got a certificate or not.
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, NamedTuple, Protocol

from ca.audit import Audit
from ca.authn import HOSTILE as HOSTILE_CREDENTIALS
from ca.authn import AuthnError, Caller, Method, Presented
from ca.core import csr
from ca.core.authority import Authority, IssueCode, IssuedSvid, Issuer
from ca.core.csr import HOSTILE as HOSTILE_CSRS
from ca.core.csr import CsrError
from ca.core.lint import LintCode
from ca.limits import Limiter, LimitError
from ca.metrics import CaMetrics
from ca.requests import HOSTILE as HOSTILE_REQUESTS
from ca.requests import (
    CertificateRequest,
    KeyMemory,
    RequestCode,
    RequestError,
    RequestHead,
    check_cluster,
    check_metadata,
)
from mesh.errors import Category, MeshError
from mesh.spiffe import SpiffeId
from mesh.x509.certs import KeyKind

HOSTILE: Final[frozenset[str]] = frozenset(
    {*HOSTILE_CREDENTIALS, *HOSTILE_CSRS, *HOSTILE_REQUESTS, IssueCode.CA_KEY, IssueCode.IDENTITY}
)
"""Codes of refusals that no honest client causes."""


class Authenticate(Protocol):
    """What `ca.authn.Chain` does."""

    def authenticate(self, presented: Presented, now: dt.datetime) -> Caller:
        """The caller; raises AuthnError."""
        ...


class Issued(NamedTuple):
    """A certificate, whom it is for, and who really signed it."""

    svid: IssuedSvid
    caller: Caller
    issuer: Issuer

    def chain(self) -> tuple[str, ...]:
        """Leaf, intermediates one by one, and the whole root bundle as the last element.

        The order is what clients of the CSR API expect; they refuse fewer than two elements.
        """
        svid = self.svid
        return (svid.leaf_pem, *svid.intermediates_pem, "".join(svid.roots_pem))


class IssuanceService:
    """The authority's one use case; safe to use from any thread.

    Args:
        authority: the authority in force; asked once for each request, it changes with the key.
        own_keys: DER SubjectPublicKeyInfo of the keys of this process beside the signing chain (F-16).
        clusters: names that callers may give in `clusterid`.
        issued: told the time of every issuance, for the clock check at the next start (G-11).
        grants: DNS names that an identity may ask for, for servers of the mesh.
    """

    def __init__(
        self,
        *,
        authenticator: Authenticate,
        limiter: Limiter,
        authority: Callable[[], Authority],
        own_keys: Callable[[], frozenset[bytes]],
        keys: KeyMemory,
        clusters: frozenset[str],
        audit: Audit,
        metrics: CaMetrics,
        issued: Callable[[dt.datetime], None],
        grants: Mapping[SpiffeId, tuple[str, ...]] = MappingProxyType({}),
    ) -> None:
        self._authenticator = authenticator
        self._limiter = limiter
        self._authority = authority
        self._own_keys = own_keys
        self._keys = keys
        self._clusters = clusters
        self._audit = audit
        self._metrics = metrics
        # Looking a child up by its labels costs more than counting: once, not for each request.
        self._durations = {o: metrics.duration.labels(outcome=o) for o in ("issued", "refused", "failed")}
        self._authenticated = {m: metrics.authenticated.labels(method=m.value) for m in Method}
        self._issued_kinds = {k: metrics.issued.labels(key_kind=k.value) for k in KeyKind}
        # From 0 on: an alert asks for increases, and a series that begins with 1 has none.
        for code in HOSTILE:
            metrics.hostile.labels(code=code)
        for code in (*IssueCode, *LintCode, RequestCode.INTERNAL):
            metrics.sign_errors.labels(code=code)
        self._issued = issued
        self._grants = grants

    def issue(self, head: RequestHead, read: Callable[[], CertificateRequest], now: dt.datetime) -> Issued:
        """Issue a certificate for whom the credentials name.

        Args:
            head: what came with the request.
            read: gives the message; called only for a caller that is identified and within its limits,
                so nobody else can make the authority wait.

        Raises:
            MeshError: the refusal, audited and counted. Anything else is a fault of ours, audited too.
        """
        started = time.perf_counter()
        outcome = "refused"
        caller: Caller | None = None
        self._metrics.requests.inc()
        try:
            caller = self.authenticate(head, now)
            issued = self._issue(caller, head, read, now)
            outcome = "issued"
        except MeshError as e:
            self.refuse(e, caller, peer=head.peer)
            raise
        except Exception as e:
            outcome = "failed"
            fault = RequestError(
                RequestCode.INTERNAL,
                "internal error; try again later",
                category=Category.INTERNAL,
                private=type(e).__name__,
            )
            self.refuse(fault, caller, peer=head.peer)
            raise
        finally:
            self._durations[outcome].observe(time.perf_counter() - started)
        return issued

    def refuse(self, error: MeshError, caller: Caller | None, *, peer: str) -> None:
        """Audit and count a refusal; transports call it for what they refuse themselves."""
        metrics, code = self._metrics, str(error.code)
        metrics.refused.labels(code=code, category=error.category.value).inc()
        hostile = code in HOSTILE
        if hostile:
            metrics.hostile.labels(code=code).inc()
        if isinstance(error, LimitError):
            metrics.shed.labels(limit=code).inc()
        elif isinstance(error, AuthnError):
            metrics.authentication_failures.labels(code=code).inc()
        elif isinstance(error, CsrError):
            metrics.csr_errors.labels(code=code).inc()
        elif error.category in {Category.INTERNAL, Category.UNAVAILABLE}:
            metrics.sign_errors.labels(code=code).inc()
        facts = caller.facts() if caller is not None else {}
        self._audit.refused(error, hostile=hostile, who={**facts, "peer": peer})

    def authenticate(self, head: RequestHead, now: dt.datetime) -> Caller:
        """Who is asking; counted.

        Raises:
            AuthnError: nobody that is known, or from a cluster that is not.
        """
        caller = self._authenticator.authenticate(head.presented, now)
        check_cluster(head.cluster_ids, self._clusters)
        self._authenticated[caller.method].inc()
        return caller

    def _issue(
        self, caller: Caller, head: RequestHead, read: Callable[[], CertificateRequest], now: dt.datetime
    ) -> Issued:
        identity = caller.spiffe_id
        with self._limiter.admit(caller.key, now):
            request = read()
            authority = self._authority()
            check_metadata(request.metadata, identity, authority.issuer.trust_domain)
            # Refused before the key is looked at: a wrong lifetime costs nothing.
            authority.profile.lifetime(request.validity_seconds)
            granted = self._grants.get(identity, ())
            key = csr.prove(request.csr_pem, identity, authority.profile, granted)
            if key.spki_der in self._own_keys():
                raise RequestError(
                    RequestCode.KEY_OF_AUTHORITY,
                    "CSR: this public key is not acceptable; make a new key",
                    private="CSR holds the public key of the authority's serving certificate",
                )
            prepared = authority.prepare(key, identity, request.validity_seconds, now)
            reused = self._keys.claim(key.spki_der, identity)
            svid = authority.sign(prepared)
            self._issued(now)
            who = caller.facts()
            who["peer"] = head.peer
            self._audit.issued(key, svid, key_reused=reused, who=who)
        self._issued_kinds[key.kind].inc()
        if reused:
            self._metrics.key_reuse.inc()
        return Issued(svid, caller, authority.issuer)
