"""What the answers about pods and about policies have in common: reading, lateness, counting."""

from __future__ import annotations

import abc
import time
from dataclasses import dataclass
from typing import Final

from prometheus_client import Counter, Histogram

from injector import review
from injector.review import DENIALS, Answer, Request, ReviewCode, ReviewError
from mesh.errors import Category
from mesh.obs.logs import logger

FAILED: Final = "failed"
"""The outcome of a request that got no review: the API server goes by failurePolicy."""

_log = logger(__name__)


@dataclass(frozen=True, slots=True)
class Counts:
    """Where answers are counted.

    Attributes:
        answers: with the labels outcome and reason.
        duration: in seconds.
    """

    answers: Counter
    duration: Histogram
    dry_runs: Counter


class Reviewer(abc.ABC):
    """Answers reviews of one kind of object."""

    __slots__ = ()

    @property
    @abc.abstractmethod
    def counts(self) -> Counts:
        """Where answers are counted."""

    @abc.abstractmethod
    def decide(self, found: Request) -> Answer:
        """The answer to a request.

        Raises:
            ReviewError: with the status to answer with.
        """

    def answer(self, body: bytes, *, started: float, deadline: float | None = None) -> Answer:
        """Answer one review.

        Args:
            body: of the request.
            started: monotonic time at which the request reached the process.
            deadline: monotonic time at which nobody waits for the answer any more.

        Raises:
            ReviewError: with the status to answer with.
        """
        found = review.read_request(body)
        if deadline is not None and time.monotonic() >= deadline:
            raise ReviewError(
                ReviewCode.LATE,
                503,
                "the time-out of the API server is over before the work began",
                category=Category.UNAVAILABLE,
            )
        if found.dry_run:
            self.counts.dry_runs.inc()
        answer = self.decide(found)
        self._count(answer.outcome, answer.reason, started)
        return answer

    def refused(self, error: ReviewError, started: float) -> None:
        """Count a request that got no review."""
        self._count(FAILED, str(error.code), started)
        _log.warning("no review", code=str(error.code), status=error.status, detail=error.private)

    def begin(self) -> None:
        """Show the failures of which there were none: an alert asks for increases from 0."""
        for code in ReviewCode:
            if code not in DENIALS:
                self.counts.answers.labels(outcome=FAILED, reason=str(code))

    def _count(self, outcome: str, reason: str, started: float) -> None:
        counts = self.counts
        counts.answers.labels(outcome=outcome, reason=reason).inc()
        counts.duration.observe(time.monotonic() - started)
