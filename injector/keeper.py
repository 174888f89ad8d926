"""Keeps the webhook's pair: renews it half-way, and swaps it only when the API server will trust it.

One keeper runs beside each webhook, in its pod, and writes to a directory in memory that both mount:
keys are in no API object. The order at a change of roots: upkeep publishes the new root in `caBundle`,
the keeper sees that the published bundle verifies the new leaf, and only then the leaf changes.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import random
import secrets
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from injector import ca_bundle
from injector.ca_bundle import Entry
from injector.csr_client import CertificateCode, CertificateError, Issued
from injector.serving import CERTIFICATE, DATA_LINK, KEY, Pair, ServingError, read_pair
from mesh.errors import Category, MeshError
from mesh.kube.api import KubeError
from mesh.obs.logs import logger

LOOK_SECONDS: Final = 30.0
"""Between looks at the pair while nothing is due: wall clocks jump, roots change."""
_FIRST_WAIT, _LONGEST_WAIT = 1.0, 300.0
_LONGEST_WITHOUT = 10.0  # nothing is served yet: be quick
_LAST_MOMENT: Final = dt.timedelta(seconds=60)
_JITTER: Final = 0.1

_log = logger(__name__)


def write_pair(directory: Path, key_pem: bytes, chain_pem: bytes) -> None:
    """Replace both files in one rename, as the kubelet does with Secrets.

    Raises:
        OSError: the directory cannot be written.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = directory / f"..{secrets.token_hex(8)}"
    fresh.mkdir(mode=0o700)
    for name, data in ((KEY, key_pem), (CERTIFICATE, chain_pem)):
        (fresh / name).write_bytes(data)
        (fresh / name).chmod(0o600)
    link = directory / DATA_LINK
    swap = directory / f"{DATA_LINK}_{fresh.name[2:]}"
    swap.symlink_to(fresh.name)
    swap.replace(link)
    for name in (KEY, CERTIFICATE):
        stable = directory / name
        if not stable.is_symlink():
            stable.unlink(missing_ok=True)
            stable.symlink_to(f"{DATA_LINK}/{name}")
    for old in directory.glob("..*"):
        # Whoever opened the old files has them still.
        if old.is_dir() and not old.is_symlink() and old != fresh:
            shutil.rmtree(old, ignore_errors=True)


class Keeper:
    """Decides and does one thing at each step.

    Args:
        names: DNS names that the leaf must have.
        issue: asks the authority; raises MeshError.
        roots: PEM of the roots in force; raises MeshError.
        entries: our webhook entries as they are now; raises KubeError.
        renewed: told the result of each attempt, and the end of what was written.
    """

    def __init__(
        self,
        directory: Path,
        *,
        names: Sequence[str],
        issue: Callable[[dt.datetime], Issued],
        roots: Callable[[], str],
        entries: Callable[[], Sequence[Entry]],
        renewed: Callable[[str, dt.datetime | None], None] = lambda _result, _end: None,
        rng: random.Random | None = None,
    ) -> None:
        self._directory = directory
        self._names = tuple(names)
        self._issue = issue
        self._roots = roots
        self._entries = entries
        self._renewed = renewed
        self._rng = rng or random.SystemRandom()
        self._draw = self._rng.uniform(-_JITTER, _JITTER)
        self._failures = 0
        self._waiting: Issued | None = None
        self.problem = "has not run yet"

    def step(self, now: dt.datetime) -> float:
        """Look, and do what is due; returns the seconds to wait."""
        held = self._held()
        try:
            reason = self._due(held, now)
            if reason:
                self._renew(held, reason, now)
        except (MeshError, OSError) as error:
            self.problem = error.public if isinstance(error, MeshError) else str(error)
            waits = isinstance(error, CertificateError) and error.code is CertificateCode.NOT_TRUSTED
            self._renewed("waiting" if waits else "failed", None)
            log = _log.info if waits else _log.warning
            log("the serving certificate is not renewed", error=error, tries=self._failures + 1)
            return self._back_off(held, now)
        self.problem, self._failures = "", 0
        return LOOK_SECONDS

    def _held(self) -> Pair | None:
        with contextlib.suppress(ServingError):
            return read_pair(self._directory)
        return None

    def _due(self, held: Pair | None, now: dt.datetime) -> str:
        """Why a new pair is needed; empty when none is."""
        if held is None:
            return "there is none"
        life = held.leaf.not_after - held.leaf.not_before
        if now >= held.leaf.not_before + life * (0.5 + self._draw * 0.5):
            return "half of its life is over"
        roots = self._roots()
        bad = [n for n in self._names if not ca_bundle.verifies(held.chain_pem, roots, n, now)]
        return f"the roots do not verify it for {bad[0]}" if bad else ""

    def _renew(self, held: Pair | None, reason: str, now: dt.datetime) -> None:
        issued = self._waiting
        if issued is None or not self._still_good(issued, now):
            issued = self._waiting = self._issue(now)
        self._check_trusted(held, issued, now)
        write_pair(self._directory, issued.key_pem, issued.chain_pem)
        self._waiting = None
        self._draw = self._rng.uniform(-_JITTER, _JITTER)
        self._renewed("written", issued.not_after)
        _log.info("serving certificate written", reason=reason, not_after=issued.not_after)

    def _still_good(self, waiting: Issued, now: dt.datetime) -> bool:
        """A pair that has waited may have been overtaken by another change of roots."""
        return ca_bundle.verifies(waiting.chain_pem, self._roots(), self._names[0], now + _LAST_MOMENT)

    def _check_trusted(self, held: Pair | None, issued: Issued, now: dt.datetime) -> None:
        """While the old leaf works, the new one waits until every published bundle verifies it.

        Raises:
            CertificateError: not yet.
        """
        if held is None or held.not_after - now < _LAST_MOMENT:
            return  # nothing that works would be replaced
        try:
            entries = self._entries()
        except KubeError as error:
            raise CertificateError(
                CertificateCode.NOT_TRUSTED,
                "the published caBundle cannot be read; the old certificate stays",
                category=Category.UNAVAILABLE,
                private=error.private,
            ) from error
        name = self._names[0]
        for entry in entries:
            fits = ca_bundle.verifies(issued.chain_pem, entry.bundle_pem, name, now)
            works = ca_bundle.verifies(held.chain_pem, entry.bundle_pem, name, now)
            if not fits and works:
                raise CertificateError(
                    CertificateCode.NOT_TRUSTED,
                    f"caBundle of {entry.name} does not verify the new certificate yet; the old one stays",
                    category=Category.UNAVAILABLE,
                )

    def _back_off(self, held: Pair | None, now: dt.datetime) -> float:
        self._failures = min(self._failures + 1, 20)
        served = held is not None and held.not_after > now
        longest = _LONGEST_WAIT if served else _LONGEST_WITHOUT
        if self._waiting is not None:
            longest = LOOK_SECONDS / 6  # only the bundle is missing: look often, it costs nothing
        return self._rng.uniform(0.5, 1.0) * min(longest, _FIRST_WAIT * 2.0**self._failures)
