"""What the authority is willing to issue: lifetimes and key policy, as validated bounds.

Each bound cites its reason. A `Profile` that exists is consistent; nothing downstream checks again.
"""

from __future__ import annotations

import datetime as dt
import enum
from dataclasses import dataclass

from mesh.errors import Code, MeshError

MAX_LIFETIME = dt.timedelta(hours=48)  # ceiling of the field's own trend (istio PR 61836)
MIN_LIFETIME = dt.timedelta(minutes=5)  # below it, clock skew and retries eat the certificate
MIN_SHORT_LIFETIME = dt.timedelta(seconds=10)  # with allow_short_lifetimes only
MAX_BACKDATE = dt.timedelta(minutes=10)
MIN_RSA_BITS = 2048
MAX_RSA_BITS = 4096  # larger moduli make a signature check a denial of service
RSA_EXPONENT = 65537


class ProfileCode(Code):
    """Why a profile or a requested lifetime was refused."""

    BOUNDS = "profile_bounds"
    TTL_NEGATIVE = "ttl_negative"
    TTL_TOO_SHORT = "ttl_too_short"
    TTL_TOO_LONG = "ttl_too_long"


class ProfileError(MeshError):
    """A configured bound that is out of range."""


class LifetimeError(MeshError):
    """A requested lifetime that the profile does not grant (F-19 to F-21)."""


class Excess(enum.StrEnum):
    """What happens to a request for more than `Profile.max_lifetime` (F-20)."""

    REFUSE = "refuse"
    CAP = "cap"  # for clients that always ask for their own maximum, as istio-csr's do


class SelfCheck(enum.StrEnum):
    """When the authority verifies its own signatures.

    Every certificate is linted either way. ALWAYS costs one signature verification per certificate
    (about the price of checking the CSR). START_AND_KEY_CHANGE verifies a probe certificate when an
    `Authority` is made, so at start and at each change of the signing key; it leaves faults of a
    single signing operation to the receiver, who verifies what it gets.
    """

    ALWAYS = "always"
    START_AND_KEY_CHANGE = "start_and_key_change"


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Bounds of issuance.

    Attributes:
        default_lifetime: when the request names none.
        max_lifetime: at most 48 h.
        min_lifetime: at least 5 min; a shorter request is refused, not raised (F-21).
        backdate: how far before now a certificate starts, for clocks that are behind; 0 to 10 min.
        excess: refuse or cap a request above `max_lifetime`.
        allow_short_lifetimes: demonstrations and tests of rotation only: `min_lifetime` may go down to
            10 s. Clock skew between machines is larger than such lifetimes.
        allow_p521: accept P-521 keys (F-12): not every Envoy build can use them.
        allow_ed25519: accept Ed25519 keys (F-13): Envoy cannot use them.
        ignore_subject: accept a CSR whose subject has a common name or organisation, and ignore it;
            when false such a CSR is refused (F-07).
        blocked_keys: SHA-256 of the SubjectPublicKeyInfo of keys that are known to be weak (F-17).
        self_check: see `SelfCheck`.
    """

    default_lifetime: dt.timedelta = dt.timedelta(hours=24)
    max_lifetime: dt.timedelta = MAX_LIFETIME
    min_lifetime: dt.timedelta = MIN_LIFETIME
    backdate: dt.timedelta = dt.timedelta(minutes=2)
    excess: Excess = Excess.REFUSE
    allow_short_lifetimes: bool = False
    allow_p521: bool = False
    allow_ed25519: bool = False
    ignore_subject: bool = False
    blocked_keys: frozenset[bytes] = frozenset()
    self_check: SelfCheck = SelfCheck.ALWAYS

    def __post_init__(self) -> None:
        floor = MIN_SHORT_LIFETIME if self.allow_short_lifetimes else MIN_LIFETIME
        if self.min_lifetime < floor:
            hint = "" if self.allow_short_lifetimes else " (demonstrations: allow_short_lifetimes lowers it)"
            raise _bounds("min_lifetime", self.min_lifetime, f"at least {_text(floor)}{hint}")
        if self.max_lifetime > MAX_LIFETIME:
            raise _bounds("max_lifetime", self.max_lifetime, f"at most {_text(MAX_LIFETIME)}")
        if not self.min_lifetime <= self.default_lifetime <= self.max_lifetime:
            raise _bounds(
                "default_lifetime",
                self.default_lifetime,
                f"min_lifetime {_text(self.min_lifetime)} to max_lifetime {_text(self.max_lifetime)}",
            )
        if not dt.timedelta(0) <= self.backdate <= MAX_BACKDATE:
            raise _bounds("backdate", self.backdate, f"0 s to {_text(MAX_BACKDATE)}")

    def lifetime(self, requested_seconds: int) -> dt.timedelta:
        """The lifetime to grant, counted from now.

        Args:
            requested_seconds: of the request; 0 asks for the default (F-18). Any integer is safe.

        Raises:
            LifetimeError: negative (F-19), too short (F-21), or too long in `REFUSE` mode (F-20).
        """
        if requested_seconds == 0:
            return self.default_lifetime
        if requested_seconds < 0:
            raise LifetimeError(
                ProfileCode.TTL_NEGATIVE,
                f"requested lifetime {requested_seconds} s is negative; ask for 0 to get the default of"
                f" {_text(self.default_lifetime)}",
            )
        if requested_seconds > self.max_lifetime.total_seconds():  # integers first: no overflow
            if self.excess is Excess.CAP:
                return self.max_lifetime
            raise LifetimeError(
                ProfileCode.TTL_TOO_LONG,
                f"requested lifetime {requested_seconds} s is over the maximum of {_text(self.max_lifetime)};"
                " ask for less, or for 0 to get the default",
            )
        granted = dt.timedelta(seconds=requested_seconds)
        if granted < self.min_lifetime:
            raise LifetimeError(
                ProfileCode.TTL_TOO_SHORT,
                f"requested lifetime {requested_seconds} s is under the minimum of"
                f" {_text(self.min_lifetime)}; ask for more, or for 0 to get the default",
            )
        return granted


def _text(value: dt.timedelta) -> str:
    return f"{value.total_seconds():g} s"


def _bounds(name: str, found: dt.timedelta, allowed: str) -> ProfileError:
    return ProfileError(ProfileCode.BOUNDS, f"{name} is {_text(found)}; allowed is {allowed}")
