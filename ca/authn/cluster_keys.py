"""Public keys of the cluster's token issuer, from the API server; the last good set stays in force."""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Callable
from typing import Final

import orjson

from ca.authn import AuthnCode, AuthnError
from ca.authn.keys import JwksCode, JwksError, KeySet, parse_jwks
from mesh.errors import Category
from mesh.kube.api import KubeApi, KubeCode, KubeError

KEYS_PATH: Final = "/openid/v1/jwks"
ISSUER_PATH: Final = "/.well-known/openid-configuration"
RECHECK: Final = 5.0  # seconds; a token with an unknown key ID makes us ask, but not more often


def issuer_of(api: KubeApi) -> str:
    """The issuer that the API server says it is.

    Raises:
        KubeError: no answer, or none with an issuer.
    """
    document = api.get(ISSUER_PATH)
    issuer = document.get("issuer") if isinstance(document, dict) else None
    if not isinstance(issuer, str) or not issuer:
        raise KubeError(
            KubeCode.RESPONSE,
            f"{ISSUER_PATH}: no issuer in the answer; next: give token.issuer",
            category=Category.FAILED_PRECONDITION,
        )
    return issuer


class ClusterKeys:
    """What `ca.authn.keys.JwksFile` is for a file. Used from several threads.

    Args:
        every: age at which `reload` asks again.
        monotonic: in seconds.
    """

    def __init__(self, api: KubeApi, *, every: dt.timedelta, monotonic: Callable[[], float]) -> None:
        self._api = api
        self._every = every.total_seconds()
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._keys: KeySet | None = None
        self._asked: float | None = None
        self.last_error: JwksError | None = None
        """Why the newest attempt failed; None when it worked."""

    @property
    def current(self) -> KeySet | None:
        """The last good set; None before the first."""
        return self._keys

    def refresh(self, now: dt.datetime) -> bool:  # noqa: ARG002 - as `JwksFile.refresh`
        """Ask for newer keys, at most every `RECHECK` seconds.

        Called for each token with an unknown key ID, so a new key of the cluster works at once.

        Returns:
            True when another set is in force now than at the start of the call.

        Raises:
            AuthnError: UNAVAILABLE, when the API server could not be asked: the key may be good.
        """
        before = self._keys
        with self._lock:  # one asks, the others wait for its answer
            if self._asked is None or self._monotonic() - self._asked >= RECHECK:
                self._ask()
            if self._keys is before and self.last_error is not None:
                raise AuthnError(AuthnCode.NO_KEYS, f"unknown key, and {self.last_error.private}")
            return self._keys is not before

    def reload(self, now: dt.datetime) -> bool:  # noqa: ARG002 - as `JwksFile.reload`
        """Ask again when the set is old, or the last attempt failed.

        Returns:
            True when another set is in force now.

        Raises:
            JwksError: no keys that can be used; the former ones stay in force.
        """
        with self._lock:
            wait = self._every if self.last_error is None else RECHECK
            if self._asked is not None and self._monotonic() - self._asked < wait:
                return False
            before = self._keys
            self._ask()
            if self.last_error is not None:
                raise self.last_error
            return self._keys is not before

    def _ask(self) -> None:
        self._asked = self._monotonic()
        try:
            keys = parse_jwks(orjson.dumps(self._api.get(KEYS_PATH)))
        except KubeError as e:
            self.last_error = JwksError(JwksCode.UNREADABLE, f"token keys of the cluster: {e.public}")
        except JwksError as e:
            self.last_error = JwksError(JwksCode(e.code), f"{KEYS_PATH}: {e.public}")
        else:
            self.last_error = None
            if self._keys is None or keys.keys != self._keys.keys:
                self._keys = keys
