"""Claims of a Kubernetes projected service account token: verified payload in, caller out. Pure.

The signature has been checked already; the payload is what a trusted issuer wrote. It still must be
for us, now, and for a pod: the issuer signs tokens for other purposes with the same key.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from ca.authn import AuthnCode, AuthnError, Caller, Method
from mesh.spiffe import SpiffeId, SpiffeIdError, TrustDomain

MAX_LEEWAY = dt.timedelta(seconds=60)
_SUBJECT_PREFIX = "system:serviceaccount:"  # then <namespace>:<name>
_MAX_NAME = 253  # Kubernetes object names
_MAX_AUDIENCES = 32
_MAX_TIME = 253402300799  # year 9999
_NOTHING: dict[str, Any] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPolicy:
    """What a token must say.

    Attributes:
        issuer: compared as it is; a trailing slash makes another issuer (F-51).
        audiences: one of them must be in the token.
        leeway: for clocks that differ, 0 to 60 s.
        max_lifetime: `exp` minus `iat` may be no longer.
        require_pod: refuse tokens that are not bound to a pod (F-44).
    """

    trust_domain: TrustDomain
    issuer: str
    audiences: frozenset[str]
    leeway: dt.timedelta = dt.timedelta(seconds=10)
    max_lifetime: dt.timedelta = dt.timedelta(hours=48)
    require_pod: bool = True
    leeway_seconds: float = field(init=False, repr=False, compare=False)
    max_seconds: float = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not dt.timedelta(0) <= self.leeway <= MAX_LEEWAY:
            raise ValueError(f"leeway {self.leeway}: allowed are 0 to {MAX_LEEWAY}")
        if not self.issuer or not self.audiences or "" in self.audiences:
            raise ValueError("a token policy needs an issuer and at least one audience, none of them empty")
        object.__setattr__(self, "leeway_seconds", self.leeway.total_seconds())
        object.__setattr__(self, "max_seconds", self.max_lifetime.total_seconds())


def read_claims(claims: Mapping[str, Any], policy: TokenPolicy, now: float) -> Caller:
    """The caller that a verified token names.

    Args:
        claims: payload of the token.
        now: Unix time in seconds.

    Raises:
        AuthnError: with the claim that is wrong.
    """
    expires = check_registered(claims, policy, now)
    if not isinstance(claims.get("jti", ""), str):
        raise AuthnError(AuthnCode.TOKEN_CLAIMS, f"jti is {_show(claims['jti'])}, not text")
    namespace, name = _subject(claims.get("sub"))
    bound = claims.get("kubernetes.io")
    if not isinstance(bound, dict):
        # Legacy tokens from Secrets have flat claims and never expire.
        raise AuthnError(AuthnCode.TOKEN_NOT_POD_BOUND, f"kubernetes.io is {_show(bound)}, not an object")
    account = _object(bound, "serviceaccount")
    if bound.get("namespace") != namespace or account.get("name") != name:
        raise AuthnError(
            AuthnCode.TOKEN_SUBJECT,
            f"sub names {namespace}/{name}, kubernetes.io names"
            f" {_show(bound.get('namespace'))}/{_show(account.get('name'))}",
        )
    required = "pod" in bound
    if not required and policy.require_pod:
        raise AuthnError(AuthnCode.TOKEN_NOT_POD_BOUND, "kubernetes.io has no pod")
    pod = _object(bound, "pod")
    try:
        spiffe_id = _identity(policy.trust_domain, namespace, name)
    except SpiffeIdError as e:
        raise AuthnError(AuthnCode.TOKEN_SUBJECT, f"sub: {e.private}") from e
    return Caller(
        spiffe_id,
        Method.TOKEN,
        dt.datetime.fromtimestamp(expires, dt.UTC),
        _text(pod, "pod", "name", required=required),
        _text(pod, "pod", "uid", required=required),
        _text(_object(bound, "node"), "node", "name", required=False),
    )


def check_registered(claims: Mapping[str, Any], policy: TokenPolicy, now: float) -> float:
    """Issuer, audience and times (RFC 7519 4.1.1, 4.1.3 to 4.1.6); returns `exp`.

    Raises:
        AuthnError: with the claim that is wrong.
    """
    if claims.get("iss") != policy.issuer:
        raise AuthnError(AuthnCode.TOKEN_ISSUER, f"iss is {_show(claims.get('iss'))}, not {policy.issuer!r}")
    _check_audience(claims.get("aud"), policy)
    return _check_times(claims, policy, now)


@lru_cache(maxsize=4096)
def _identity(trust_domain: TrustDomain, namespace: str, name: str) -> SpiffeId:
    """Remembered for the names that tokens hold; those have been signed by the issuer."""
    return SpiffeId.for_service_account(trust_domain, namespace, name)


def _show(value: Any) -> str:
    return repr(value)[:100]


def _check_audience(found: Any, policy: TokenPolicy) -> None:
    audiences = [found] if isinstance(found, str) else found
    if not isinstance(audiences, list) or len(audiences) > _MAX_AUDIENCES:
        raise AuthnError(AuthnCode.TOKEN_AUDIENCE, f"aud is {_show(found)}, neither text nor a short list")
    for audience in audiences:
        if not isinstance(audience, str):
            raise AuthnError(AuthnCode.TOKEN_AUDIENCE, f"aud is {_show(found)}: not all of it is text")
    if policy.audiences.isdisjoint(audiences):
        raise AuthnError(
            AuthnCode.TOKEN_AUDIENCE, f"aud is {_show(found)}, none of {', '.join(sorted(policy.audiences))}"
        )


def _check_times(claims: Mapping[str, Any], policy: TokenPolicy, now: float) -> float:
    leeway = policy.leeway_seconds
    expires = _time(claims, "exp")
    issued = _time(claims, "iat")
    if expires <= now - leeway:
        raise AuthnError(AuthnCode.TOKEN_EXPIRED, f"exp is {now - expires:.0f} s ago")
    starts = issued
    if "nbf" in claims and (from_ := _time(claims, "nbf")) > issued:
        starts = from_
    if starts > now + leeway:
        raise AuthnError(AuthnCode.TOKEN_NOT_YET_VALID, f"nbf or iat is {starts - now:.0f} s ahead")
    if not 0 < expires - issued <= policy.max_seconds:
        raise AuthnError(
            AuthnCode.TOKEN_LIFETIME,
            f"exp - iat is {expires - issued:.0f} s, not 1 to {policy.max_seconds:.0f} s",
        )
    return expires


def _time(claims: Mapping[str, Any], name: str) -> float:
    value = claims.get(name)
    if type(value) is int and 0 <= value <= _MAX_TIME:
        return value
    if type(value) is not int and type(value) is not float:  # a bool is an int, but no time
        raise AuthnError(AuthnCode.TOKEN_CLAIMS, f"{name} is {_show(value)}, not a number")
    if not 0 <= value <= _MAX_TIME:  # neither is a NaN
        raise AuthnError(AuthnCode.TOKEN_CLAIMS, f"{name} is {_show(value)}, not a time")
    return math.floor(value)  # as PyJWT and the API server count: whole seconds


def _subject(found: Any) -> tuple[str, str]:
    if isinstance(found, str) and len(found) <= 2 * _MAX_NAME and found.startswith(_SUBJECT_PREFIX):
        namespace, colon, name = found[len(_SUBJECT_PREFIX) :].partition(":")
        if colon and ":" not in name:
            return namespace, name
    raise AuthnError(
        AuthnCode.TOKEN_SUBJECT, f"sub is {_show(found)}, not system:serviceaccount:<namespace>:<name>"
    )


def _object(bound: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = bound.get(name, _NOTHING)
    if not isinstance(value, dict):
        raise AuthnError(AuthnCode.TOKEN_CLAIMS, f"kubernetes.io {name} is {_show(value)}, not an object")
    return value


def _text(owner: Mapping[str, Any], where: str, name: str, *, required: bool) -> str:
    value = owner.get(name, "")
    if not isinstance(value, str) or len(value) > _MAX_NAME or (required and not value):
        raise AuthnError(
            AuthnCode.TOKEN_NOT_POD_BOUND if where == "pod" else AuthnCode.TOKEN_CLAIMS,
            f"kubernetes.io {where}.{name} is {_show(value)}, not text of 1 to {_MAX_NAME} characters",
        )
    return value
