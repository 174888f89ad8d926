"""The strict option: the API server itself says whether a token is good, for each certificate.

A token that has passed the local checks is sent in a TokenReview with our audiences. The answer must be
authenticated *and* name one of them: an authenticator that ignores audiences answers without (F-42,
F-43). Who it names must be who the token named. Whatever is not a clear yes or no is UNAVAILABLE, never
a yes (F-53).
"""

from __future__ import annotations

import datetime as dt
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from ca.authn import AuthnCode, AuthnError, Caller
from mesh.kube.api import KubeApi, KubeError

PATH: Final = "/apis/authentication.k8s.io/v1/tokenreviews"
KEEP: Final = dt.timedelta(seconds=10)
MAX_KEPT: Final = 10_000
MAX_FLIGHTS: Final = 1000
_GROUP: Final = "system:serviceaccounts"
_POD_UID: Final = "authentication.kubernetes.io/pod-uid"


@dataclass(slots=True)
class _Flight:
    """A review under way; others with the same token wait for it."""

    done: threading.Event = field(default_factory=threading.Event)
    status: Mapping[str, Any] | None = None
    error: AuthnError | None = None


class TokenReviewer:
    """Asks the API server; safe to use from any thread.

    Args:
        audiences: one of these must be in the answer.
        monotonic: for the cache and the rate, in seconds.
        rate: reviews per second in the long run, of this process.
        burst: reviews at once.
        patience: how long a caller waits for a review that another has under way.
    """

    def __init__(
        self,
        api: KubeApi,
        audiences: Sequence[str],
        *,
        monotonic: Callable[[], float],
        rate: float = 100.0,
        burst: int = 200,
        patience: dt.timedelta = dt.timedelta(seconds=10),
        count: Callable[[str], None] | None = None,
    ) -> None:
        self._api = api
        self._audiences = sorted(audiences)
        self._monotonic = monotonic
        self._rate = rate
        self._burst = burst
        self._patience = patience.total_seconds()
        self._count = count if count is not None else _nothing
        self._lock = threading.Lock()
        self._kept: OrderedDict[bytes, tuple[float, Mapping[str, Any]]] = OrderedDict()
        self._flights: dict[bytes, _Flight] = {}
        self._tokens = float(burst)
        self._filled = monotonic()

    def review(self, token: str, caller: Caller) -> None:
        """Pass only when the API server says yes about this token and this caller.

        Raises:
            AuthnError: UNAUTHENTICATED when it says no; UNAVAILABLE when it does not say.
        """
        status = self._status(hashlib.sha256(token.encode("utf-8", "replace")).digest(), token)
        self._check(status, caller)

    def _status(self, digest: bytes, token: str) -> Mapping[str, Any]:
        with self._lock:
            kept = self._kept.get(digest)
            if kept is not None and self._monotonic() - kept[0] < KEEP.total_seconds():
                self._count("cached")
                return kept[1]
            flight = self._flights.get(digest)
            mine = flight is None
            if flight is None:
                self._spend()
                flight = self._flights[digest] = _Flight()
        if not mine:
            self._count("shared")
            if not flight.done.wait(self._patience):
                raise AuthnError(AuthnCode.REVIEW_FAILED, "another review of this token has not ended")
            return _outcome(flight)
        try:
            flight.status = self._ask(token)
        except AuthnError as e:
            flight.error = e
        finally:
            with self._lock:
                del self._flights[digest]
                if flight.status is not None and flight.status.get("authenticated") is True:
                    self._keep(digest, flight.status)
            flight.done.set()
        return _outcome(flight)

    def _spend(self) -> None:
        """Take one from the bucket; under the lock."""
        now = self._monotonic()
        self._tokens = min(self._burst, self._tokens + (now - self._filled) * self._rate)
        self._filled = now
        if self._tokens < 1 or len(self._flights) >= MAX_FLIGHTS:
            self._count("throttled")
            raise AuthnError(AuthnCode.REVIEW_THROTTLED, f"over {self._rate:g} token reviews per second")
        self._tokens -= 1

    def _keep(self, digest: bytes, status: Mapping[str, Any]) -> None:
        self._kept[digest] = (self._monotonic(), status)
        self._kept.move_to_end(digest)
        if len(self._kept) > MAX_KEPT:
            self._kept.popitem(last=False)

    def _ask(self, token: str) -> Mapping[str, Any]:
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": self._audiences},
        }
        try:
            answer = self._api.create(PATH, body)
        except KubeError as e:
            self._count("failed")
            # Only the code: a server may repeat what it was sent.
            raise AuthnError(AuthnCode.REVIEW_FAILED, f"token review: {e.code}, HTTP {e.status}") from None
        status = answer.get("status") if isinstance(answer, dict) else None
        if not isinstance(status, dict):
            self._count("failed")
            raise AuthnError(AuthnCode.REVIEW_FAILED, "token review: the answer has no status")
        if status.get("authenticated") is not True and status.get("error"):
            # The server could not check it, or it is bad: both come like this. Only a plain no is one.
            self._count("refused")
            raise AuthnError(AuthnCode.REVIEW_REFUSED, f"token review: {str(status['error'])[:200]}")
        self._count("accepted" if status.get("authenticated") is True else "refused")
        return status

    def _check(self, status: Mapping[str, Any], caller: Caller) -> None:
        if status.get("authenticated") is not True:
            raise AuthnError(AuthnCode.REVIEW_REFUSED, "token review: not authenticated")
        audiences = status.get("audiences")
        if not isinstance(audiences, list) or not set(self._audiences).intersection(map(str, audiences)):
            raise AuthnError(
                AuthnCode.REVIEW_AUDIENCE,
                f"token review: audiences are {str(audiences)[:100]}, none of {', '.join(self._audiences)}",
            )
        user = status.get("user")
        user = user if isinstance(user, dict) else {}
        namespace, account = caller.spiffe_id.service_account()
        if user.get("username") != f"system:serviceaccount:{namespace}:{account}":
            raise AuthnError(
                AuthnCode.REVIEW_MISMATCH,
                f"token review names {str(user.get('username'))[:200]!r}, the token {namespace}/{account}",
            )
        groups = user.get("groups")
        if not isinstance(groups, list) or _GROUP not in groups:
            raise AuthnError(AuthnCode.REVIEW_MISMATCH, f"token review: not of the group {_GROUP}")
        extra = user.get("extra")
        uids = extra.get(_POD_UID) if isinstance(extra, dict) else None
        if caller.pod_uid and uids != [caller.pod_uid]:
            raise AuthnError(
                AuthnCode.REVIEW_MISMATCH,
                f"token review: pod UID is {str(uids)[:100]}, the token says {caller.pod_uid}",
            )


def _outcome(flight: _Flight) -> Mapping[str, Any]:
    if flight.error is not None:
        # A new one: an exception that is raised by several threads collects all their tracebacks.
        raise AuthnError(AuthnCode(flight.error.code), flight.error.private)
    if flight.status is None:
        raise AuthnError(AuthnCode.REVIEW_FAILED, "the review ended without an answer")
    return flight.status


def _nothing(_result: str) -> None:
    """Nobody counts."""
