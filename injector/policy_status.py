"""The condition `Accepted` in the status of every policy, written by one leader.

Written only where it differs from what is there, by a merge patch that names the version it was made for:
conditions of others stay, and an object that changed meanwhile is judged anew instead. A form of an object
is tried once; a bucket bounds the rate, so that the first run in a large cluster is no storm.
"""

from __future__ import annotations

import datetime as dt
import math
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

from injector.core.policies import CONDITION, plural_of
from injector.events import Subject
from injector.policy_records import PolicyRecord
from mesh.clock import Clock, SystemClock
from mesh.kube.api import KubeApi, KubeCode, KubeError, PatchType
from mesh.obs.logs import logger
from mesh.policy.model import API_VERSIONS

RATE, BURST = 10.0, 50.0
"""Writes a second, and at once."""
_MANAGER: Final = "gatehouse-upkeep"
# The object moved, went, or breaks its schema: another form of it will come, or nothing helps.
_NEXT_FORM: Final = frozenset({KubeCode.CONFLICT, KubeCode.NOT_FOUND, KubeCode.INVALID})

_GIVE_UP: Final = 3  # failures in a row: the API server does not want to, whatever the object

_log = logger(__name__)


class PolicyStatus:
    """Compares and writes.

    Args:
        records: all policies, as they are now.
        told: result of each write: `ok`, or the code of the failure.
    """

    def __init__(
        self,
        api: KubeApi,
        records: Callable[[], Iterable[PolicyRecord]],
        *,
        told: Callable[[str], None] = lambda _: None,
        clock: Clock | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api = api
        self._records = records
        self._told = told
        self._clock = clock or SystemClock()
        self._monotonic = monotonic
        self._tried: dict[Subject, str] = {}
        self._tokens, self._filled = BURST, monotonic()

    def step(self, allowed: Callable[[], bool] = lambda: True) -> float:
        """Write what differs, as far as the rate allows.

        Args:
            allowed: asked before each write: is this still the leader?

        Returns:
            Seconds after which more can be written; infinite when nothing is left.

        Raises:
            KubeError: of the first object that could not be written; the others were, unless several
                in a row failed. It is tried again next time.
        """
        records = sorted(self._records(), key=lambda r: (r.about.namespace, r.about.kind, r.about.name))
        known = {record.about for record in records}
        self._tried = {about: version for about, version in self._tried.items() if about in known}
        failed: list[KubeError] = []
        in_a_row, rest = 0, math.inf
        for record in records:
            if record.wanted == record.present or self._tried.get(record.about) == record.version:
                continue
            rest = self._take() if allowed() and in_a_row < _GIVE_UP else math.inf
            if rest:
                break
            error = self._write(record)
            in_a_row = in_a_row + 1 if error else 0
            failed += [error] if error else []
        if failed:
            raise failed[0]
        return rest or math.inf

    def _take(self) -> float:
        """Seconds until a write is allowed; 0 = it is taken."""
        now = self._monotonic()
        self._tokens = min(BURST, self._tokens + (now - self._filled) * RATE)
        self._filled = now
        if self._tokens < 1:
            return (1 - self._tokens) / RATE
        self._tokens -= 1
        return 0.0

    def _write(self, record: PolicyRecord) -> KubeError | None:
        """Write one condition; the error when it is to be tried again."""
        about = record.about
        path = f"/apis/{API_VERSIONS[0]}/namespaces/{about.namespace}/{plural_of(about.kind)}/{about.name}"
        patch = {
            "metadata": {"resourceVersion": record.version},
            "status": {"conditions": [*record.others, self._condition(record)]},
        }
        try:
            self._api.patch(f"{path}/status", patch, PatchType.MERGE, fieldManager=_MANAGER)
        except KubeError as error:
            self._told(str(error.code))
            if error.code not in _NEXT_FORM:
                return error
            _log.info("a condition was not written", policy=path, error=error)
        else:
            self._told("ok")
        self._tried[about] = record.version
        return None

    def _condition(self, record: PolicyRecord) -> dict[str, Any]:
        wanted, present = record.wanted, record.present
        since = record.since if present is not None and present.status == wanted.status else ""
        now = self._clock.now().astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return {
            "type": CONDITION,
            "status": wanted.status,
            "reason": wanted.reason,
            "message": wanted.message,
            "observedGeneration": wanted.generation,
            "lastTransitionTime": since or now,
        }
