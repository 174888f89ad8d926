"""How replicas tell each other what node agents reported: the ConfigMap `gatehouse-ca-agents`.

Each replica writes one key, the leader reads them all. A write replaces the whole object in the API server,
so writing and reading keep a pace that falls with its size. Nothing here is needed to issue certificates:
what cannot be written or read is tried again, and what was known before counts until then.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable
from typing import Any, Final

from ca.agents import AgentBook
from ca.core.acknowledged import KEPT, ClaimError, Report, decode, encode
from mesh.errors import MeshError
from mesh.kube.api import KubeApi, KubeError, PatchType
from mesh.obs import logs

CONFIG_MAP: Final = "gatehouse-ca-agents"
EVERY: Final = 5.0
"""Seconds between two writes, and between two reads, at least."""
CHARS_PER_SECOND: Final = 20_000
"""At most, in the long run, of writes of one replica; so of the leader's reads."""
REFRESH: Final = 150.0
"""Seconds after which times are written again although nobody has said anything new: with the minute between
two calls of an agent, a report stays younger than `ca.core.acknowledged.FRESH`."""
RETRY: Final = 30.0
"""Seconds to wait after a failure."""
MAX_KEYS: Final = 64
"""Replicas and former replicas whose keys are read."""

_NO_KEY = re.compile(r"[^-._a-zA-Z0-9]")
_log = logs.logger(__name__)


class AgentSharing:
    """Keeps this replica's key current, and the leader's view of all keys.

    Args:
        replica: unique name of this process.
        leading: asked at each step.
        monotonic: in seconds.

    Attributes:
        problem: why the last attempt to write or read failed; None when it did not.
    """

    def __init__(
        self,
        api: KubeApi,
        namespace: str,
        replica: str,
        book: AgentBook,
        *,
        leading: Callable[[], bool],
        monotonic: Callable[[], float],
    ) -> None:
        self._api = api
        self._path = f"/api/v1/namespaces/{namespace}/configmaps/{CONFIG_MAP}"
        self._key = _NO_KEY.sub("-", replica)[:253]
        self._book = book
        self._leading = leading
        self._monotonic = monotonic
        self._written = 0  # the book's changes that were written
        self._write_at = self._refresh_at = self._read_at = float("-inf")
        self._led = False
        self.problem: MeshError | None = None

    def step(self, now: dt.datetime) -> None:
        """Write and read what is due; never raises for what it finds."""
        at = self._monotonic()
        try:
            self._write(now, at)
            self._read(now, at)
        except KubeError as e:
            self._write_at = max(self._write_at, at + RETRY)
            self._read_at = max(self._read_at, at + RETRY)
            self.problem = e

    def _write(self, now: dt.datetime, at: float) -> None:
        changes = self._book.changes
        news = changes != self._written
        if at < self._write_at or not (news or (changes and at >= self._refresh_at)):
            return
        text = encode(self._book.own(now))
        self._api.patch(self._path, {"data": {self._key: text}}, PatchType.MERGE)
        self._written = changes
        self._write_at = at + _pace(len(text))
        self._refresh_at = at + REFRESH
        self.problem = None

    def _read(self, now: dt.datetime, at: float) -> None:
        if not self._leading():
            self._led = False
            return
        if self._led and at < self._read_at:
            return
        found = self._api.get(self._path)
        data = found.get("data") if isinstance(found, dict) else None
        keys = {k: v for k, v in data.items() if isinstance(v, str)} if isinstance(data, dict) else {}
        shared: list[Report] = []
        useless: list[str] = []
        problem: MeshError | None = None
        for key in sorted(keys)[:MAX_KEYS]:
            reports: tuple[Report, ...] = ()
            try:
                reports = decode(keys[key])
            except ClaimError as e:
                problem = e
                _log.warning("a replica's reports of agents cannot be read", replica=key, error=e)
            young = [report for report in reports if now - report.at <= KEPT]
            if young:
                shared += young
            elif key != self._key:
                useless.append(key)
        self._book.share(shared)
        self._led = True
        self._read_at = at + _pace(sum(map(len, keys.values())))
        self.problem = problem
        if useless:
            gone: dict[str, Any] = dict.fromkeys(useless)
            self._api.patch(self._path, {"data": gone}, PatchType.MERGE)


def _pace(chars: int) -> float:
    return max(EVERY, chars / CHARS_PER_SECOND)
