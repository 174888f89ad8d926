"""When to renew a certificate, and how long to wait after a failure (rotation maths, d.1, d.3, d.4).

Everything here is arithmetic on the wall clock. A shell asks `RenewalPlan.due(now)` at each tick and
never sleeps until a certificate's time in one piece, so a suspended machine notices on wake.

The *usable life* of a certificate is NotAfter - NotBefore minus the backdating: an authority sets
NotBefore some minutes into the past so that peers with a slow clock accept the certificate, and that
time is gone when the certificate arrives. All fractions below are of the usable life, which makes
a leaf of 20 s (as in the demo) behave like one of 24 h.
"""

from __future__ import annotations

import datetime as dt
import random
from dataclasses import dataclass
from typing import Final

from mesh.errors import Category

RATIO: Final = 0.5
"""Share of the usable life after which a certificate is renewed."""
JITTER: Final = 0.10
"""The ratio is drawn from RATIO +- JITTER, once per certificate."""
BACKDATE: Final = dt.timedelta(minutes=2)
"""Most that is taken off as backdating (the authority's default)."""
SHORT_LIFE: Final = dt.timedelta(minutes=10)
"""Certificates that live shorter are renewed at exactly half of their usable life."""
MARGIN: Final = dt.timedelta(minutes=5)
"""Time that is always left for retries, or 10 % of the life where that is more."""
FLOOR: Final = dt.timedelta(seconds=30)
"""Least time from one issued certificate to the next attempt, or 1/20 of the usable life if shorter."""

FIRST_STEP: Final = 0.5
CAP: Final = 60.0
CAP_ENDANGERED: Final = 15.0
MIN_CAP: Final = 1.0
PERMANENT_DELAY: Final = 300.0
REFUSALS_UNTIL_PERMANENT: Final = 3
ENDANGERED_SHARE: Final = 0.25

TICK: Final = 15.0
"""Longest time in seconds between two looks at the wall clock."""
JUMP: Final = 5.0
"""Wall clock and monotonic clock that part by more than this in one tick mean a step or a suspend."""
SPREAD: Final = 60.0

_MAX_EXPONENT: Final = 16  # 0.5 s * 2^16 is far beyond every cap
_ZERO: Final = dt.timedelta(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class RenewalPlan:
    """When one certificate is to be renewed.

    Attributes:
        not_before, not_after: of the certificate.
        usable: life without the backdating.
        ratio: the share of the usable life that was drawn for this certificate, 0 to 1.
        clamped: the configured ratio was outside (0, 1) and was pulled in; the shell logs it.
    """

    not_before: dt.datetime
    not_after: dt.datetime
    renew_at: dt.datetime
    usable: dt.timedelta
    ratio: float
    clamped: bool = False

    def due(self, now: dt.datetime) -> bool:
        """True when it is time to ask for the successor."""
        return now >= self.renew_at

    def expired(self, now: dt.datetime) -> bool:
        """True when the certificate must no longer be handed out (NotAfter itself is still valid)."""
        return now > self.not_after

    def remaining(self, now: dt.datetime) -> dt.timedelta:
        """Time to NotAfter; negative after expiry."""
        return self.not_after - now

    def endangered(self, now: dt.datetime) -> bool:
        """True when less than a quarter of the usable life remains."""
        return self.remaining(now) < self.usable * ENDANGERED_SHARE


def plan_renewal(
    *,
    not_before: dt.datetime,
    not_after: dt.datetime,
    issued_at: dt.datetime,
    rng: random.Random,
    ratio: float = RATIO,
    jitter: float = JITTER,
) -> RenewalPlan:
    """Draw the renewal time of a certificate (d.1).

    Args:
        not_before: of the certificate; aware datetime.
        not_after: of the certificate; aware datetime.
        issued_at: when it was received, by the server's clock where that is known, else ours. It
            only bounds the backdating, so a wrong clock shifts the plan by at most two minutes.
        rng: a `random.SystemRandom` in production: two restarts must not draw the same value.
        ratio: share of the usable life; outside (0, 1) it is clamped to 0.05..0.95.
        jitter: half-width of the uniform draw around the ratio.

    Returns:
        A plan with `issued_at <= renew_at`, and `renew_at` not after NotAfter - max(5 min, 10 % of
        the life), except that certificates under ten minutes use one half exactly.
    """
    life = not_after - not_before
    backdate = min(max(issued_at - not_before, _ZERO), BACKDATE, life)
    usable = max(life - backdate, _ZERO)
    drawn = RATIO if life < SHORT_LIFE else ratio + rng.uniform(-jitter, jitter)
    clamped = life >= SHORT_LIFE and not 0.0 < ratio < 1.0
    drawn = min(max(drawn, 0.05), 0.95)
    renew_at = not_before + backdate + drawn * usable
    if life >= SHORT_LIFE:
        renew_at = min(renew_at, not_after - max(MARGIN, life * 0.10))
    # A signer near its own end clamps what it issues: without a floor such leaves renew in a loop.
    renew_at = max(renew_at, issued_at + min(FLOOR, usable / 20))
    return RenewalPlan(
        not_before=not_before,
        not_after=not_after,
        renew_at=renew_at,
        usable=usable,
        ratio=drawn,
        clamped=clamped,
    )


@dataclass(frozen=True, slots=True)
class BackOff:
    """Failures in a row since the last success (d.3).

    Attributes:
        failures: attempts that failed.
        refusals: of these, how many in a row were UNAUTHENTICATED.
        permanent: trying sooner cannot help; a human has to act.
    """

    failures: int = 0
    refusals: int = 0
    permanent: bool = False

    def after(self, category: Category) -> BackOff:
        """The state after one more failed attempt."""
        refusals = self.refusals + 1 if category is Category.UNAUTHENTICATED else 0
        permanent = category in _PERMANENT or refusals >= REFUSALS_UNTIL_PERMANENT
        return BackOff(self.failures + 1, refusals, permanent)

    def delay(
        self, *, usable: dt.timedelta | None, remaining: dt.timedelta | None, rng: random.Random
    ) -> float:
        """Seconds to wait before the next attempt: full jitter, U(0, min(cap, 0.5 s * 2^n)).

        The cap is 60 s, and 15 s while less than a quarter of the life remains, or there is no
        certificate at all; it never exceeds 1/4 and 1/16 of the usable life, so that short-lived
        leaves (the demo's) get several attempts, but is at least one second.

        Args:
            usable: usable life of the last certificate; None when there never was one.
            remaining: time to its NotAfter; None or negative when there is no valid one.
            rng: source of the jitter.
        """
        if self.permanent:
            # Up to a tenth is taken off so that a fleet that was refused together does not return so.
            return PERMANENT_DELAY * (1.0 - 0.1 * rng.random())
        return rng.uniform(0.0, min(self._cap(usable, remaining), self._step()))

    def _step(self) -> float:
        return FIRST_STEP * 2.0 ** min(max(self.failures - 1, 0), _MAX_EXPONENT)

    @staticmethod
    def _cap(usable: dt.timedelta | None, remaining: dt.timedelta | None) -> float:
        if usable is None or remaining is None:
            return CAP_ENDANGERED
        life = usable.total_seconds()
        if remaining.total_seconds() > ENDANGERED_SHARE * life:
            return max(MIN_CAP, min(CAP, life / 4))
        return max(MIN_CAP, min(CAP_ENDANGERED, life / 16))


_PERMANENT: Final = frozenset(
    {
        Category.INVALID_ARGUMENT,
        Category.PERMISSION_DENIED,
        Category.NOT_FOUND,
        Category.FAILED_PRECONDITION,
    }
)


def clock_jumped(*, wall_elapsed: float, monotonic_elapsed: float) -> bool:
    """True when the wall clock was stepped, or the machine slept, between two ticks (seconds)."""
    return abs(wall_elapsed - monotonic_elapsed) > JUMP


def spread_after_jump(remaining: dt.timedelta, rng: random.Random) -> float:
    """Seconds to wait before a renewal that a clock jump made due (d.4).

    When a time server steps a whole cluster, every agent finds its certificates due in the same
    second: U(0, min(60 s, remaining/4)) parts them. An expired certificate does not wait.
    """
    bound = min(SPREAD, max(remaining.total_seconds(), 0.0) / 4)
    return rng.uniform(0.0, bound)
