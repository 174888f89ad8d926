"""Authenticators: who is asking.

A caller may present several credentials (a token in the `authorization` header, a client certificate).
Every credential that is presented must be good and all must name the same identity: there is no first
success that hides a second, bad credential (F-55). Nothing else identifies a caller; a forwarded client
certificate header is never read (F-56).

Refusals all have one public sentence: which of them it was is in the log only.
"""

from __future__ import annotations

import datetime as dt
import enum
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from mesh.errors import Category, Code, MeshError
from mesh.spiffe import SpiffeId

PUBLIC_TEXT = "the request is not authenticated; send one valid credential of this workload"
NO_KEYS_TEXT = "the authority cannot check tokens yet; try again later"


class AuthnCode(Code):
    """Why a credential was refused."""

    NO_CREDENTIAL = "authn_no_credential"
    HEADER_REPEATED = "authn_header_repeated"
    HEADER_SCHEME = "authn_header_scheme"
    TOKEN_EMPTY = "authn_token_empty"  # noqa: S105 - a reason, not a secret; so are the next ones
    TOKEN_TOO_LARGE = "authn_token_too_large"  # noqa: S105 - a code, not a secret
    TOKEN_MALFORMED = "authn_token_malformed"  # noqa: S105 - a code, not a secret
    TOKEN_HEADER = "authn_token_header"  # noqa: S105 - a code, not a secret
    TOKEN_UNKNOWN_KEY = "authn_token_unknown_key"  # noqa: S105 - a code, not a secret
    TOKEN_SIGNATURE = "authn_token_signature"  # noqa: S105 - a code, not a secret
    TOKEN_CLAIMS = "authn_token_claims"  # noqa: S105 - a code, not a secret
    TOKEN_EXPIRED = "authn_token_expired"  # noqa: S105 - a code, not a secret
    TOKEN_NOT_YET_VALID = "authn_token_not_yet_valid"  # noqa: S105 - a code, not a secret
    TOKEN_LIFETIME = "authn_token_lifetime"  # noqa: S105 - a code, not a secret
    TOKEN_ISSUER = "authn_token_issuer"  # noqa: S105 - a code, not a secret
    TOKEN_AUDIENCE = "authn_token_audience"  # noqa: S105 - a code, not a secret
    TOKEN_SUBJECT = "authn_token_subject"  # noqa: S105 - a code, not a secret
    TOKEN_NOT_POD_BOUND = "authn_token_not_pod_bound"  # noqa: S105 - a code, not a secret
    NO_KEYS = "authn_no_keys"
    PODS_NOT_LOADED = "authn_pods_not_loaded"
    POD_UNKNOWN = "authn_pod_unknown"
    POD_GONE = "authn_pod_gone"
    POD_OTHER = "authn_pod_other"
    REVIEW_REFUSED = "authn_review_refused"
    REVIEW_AUDIENCE = "authn_review_audience"
    REVIEW_MISMATCH = "authn_review_mismatch"
    REVIEW_FAILED = "authn_review_failed"
    REVIEW_THROTTLED = "authn_review_throttled"
    CERTIFICATE = "authn_certificate"
    CERTIFICATE_DOMAIN = "authn_certificate_domain"
    MISMATCH = "authn_mismatch"
    CLUSTER = "authn_cluster"


HOSTILE = frozenset(
    {AuthnCode.TOKEN_SIGNATURE, AuthnCode.TOKEN_HEADER, AuthnCode.MISMATCH, AuthnCode.CERTIFICATE_DOMAIN}
)
"""Codes that no honest client causes; the audit line says so."""

LATER = frozenset(
    {
        AuthnCode.NO_KEYS,
        AuthnCode.PODS_NOT_LOADED,
        AuthnCode.POD_UNKNOWN,
        AuthnCode.REVIEW_FAILED,
        AuthnCode.REVIEW_THROTTLED,
    }
)
"""Codes that say nothing about the credential: it could not be checked now (UNAVAILABLE)."""


class AuthnError(MeshError):
    """Credentials that do not identify anybody."""

    def __init__(self, code: AuthnCode, private: str) -> None:
        if code in LATER:
            super().__init__(code, NO_KEYS_TEXT, private=private, category=Category.UNAVAILABLE)
        else:
            super().__init__(code, PUBLIC_TEXT, private=private, category=Category.UNAUTHENTICATED)


class Method(enum.StrEnum):
    """How a caller proved who it is."""

    TOKEN = "token"  # noqa: S105 - a name, not a secret
    CERTIFICATE = "certificate"
    BOTH = "token+certificate"


class Caller(NamedTuple):
    """An authenticated caller.

    Attributes:
        pod_name: facts about the pod come from a token; empty when only a certificate was shown.
        expires: when the credential ends; the earliest when there are several.
    """

    spiffe_id: SpiffeId
    method: Method
    expires: dt.datetime
    pod_name: str = ""
    pod_uid: str = ""
    node_name: str = ""

    @property
    def key(self) -> str:
        """What limits are counted by: the pod when it is known, else the identity."""
        return self.pod_uid or str(self.spiffe_id)

    def facts(self) -> dict[str, str]:
        """What the audit trail says about the caller; facts that are not known are left out."""
        facts = {"identity": str(self.spiffe_id), "method": str(self.method)}
        if self.pod_name:
            facts["pod"] = self.pod_name
        if self.pod_uid:
            facts["pod_uid"] = self.pod_uid
        if self.node_name:
            facts["node"] = self.node_name
        facts["proved_until"] = self.expires.isoformat()
        return facts


class Presented(NamedTuple):
    """What came with a request.

    Attributes:
        authorization: every value of the `authorization` header, as it came.
        certificates: client certificate chain of the TLS handshake, PEM, leaf first.
    """

    authorization: Sequence[str] = ()
    certificates: Sequence[bytes] = ()

    def __repr__(self) -> str:
        return "Presented()"  # what it holds is secret


class Authenticator(Protocol):
    """Checks one kind of credential."""

    @property
    def method(self) -> Method:
        """The kind that it checks."""
        ...

    def authenticate(self, presented: Presented, now: dt.datetime) -> Caller | None:
        """The caller, or None when no credential of this kind was presented.

        Raises:
            AuthnError: one was presented, and it is not good.
        """
        ...


class Chain:
    """Asks every authenticator; what is presented must be good and must agree."""

    def __init__(self, authenticators: Sequence[Authenticator]) -> None:
        self._authenticators = tuple(authenticators)

    def authenticate(self, presented: Presented, now: dt.datetime) -> Caller:
        """The caller that all presented credentials name.

        Raises:
            AuthnError: none was presented, one is bad (F-40 to F-54), or two disagree (F-55).
        """
        caller: Caller | None = None
        for authenticator in self._authenticators:
            found = authenticator.authenticate(presented, now)
            if found is not None:
                caller = found if caller is None else _agree(caller, found)
        if caller is None:
            raise AuthnError(AuthnCode.NO_CREDENTIAL, "no token and no client certificate")
        return caller


def _agree(one: Caller, other: Caller) -> Caller:
    if one.spiffe_id != other.spiffe_id:
        raise AuthnError(
            AuthnCode.MISMATCH,
            f"{one.method} names {one.spiffe_id}, {other.method} names {other.spiffe_id}",
        )
    facts = one if one.pod_uid else other
    return facts._replace(method=Method.BOTH, expires=min(one.expires, other.expires))
