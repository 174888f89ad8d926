"""What node agents say of the trust bundle, and what it adds up to: values in, values out.

An agent makes a `Claim` of its node in each call of the Sync API; with who made it and when it is a
`Report`. Replicas share reports as text (`encode`, `decode`), the newest of an agent counts (`merge`), and
`counts` compares them with the agents that should be there (docs/adr/0014).
"""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from mesh.ca_status import MAX_NAMES, AgentCounts
from mesh.errors import Category, Code, MeshError

MAX_WAITING: Final = 20
"""Names of waiting workloads in one claim."""
MAX_NAME_CHARS: Final = 200
MAX_WORKLOADS: Final = 10_000
"""Workloads of one node."""
MAX_NUMBER: Final = 1 << 53
"""Of generations and epochs: what JSON readers keep exactly."""
FRESH: Final = dt.timedelta(minutes=5)
"""A report that is younger shows that the agent is there. An agent comes at least once a minute, and replicas
share times at least every `ca.agent_sharing.REFRESH`; the rest is for a call or two that failed."""
KEPT: Final = dt.timedelta(minutes=10)
"""A report that is older is forgotten. What an agent has acknowledged it does not take back; so its last word
counts for a while after it fell silent."""
SHARED_NAMES: Final = 3
"""Names of waiting workloads that are shared for one report; and only of so many reports:"""
SHARED_WITH_NAMES: Final = 50
MAX_SHARED_REPORTS: Final = 6000
MAX_SHARED_CHARS: Final = 1 << 20

_DIGEST = re.compile(r"([0-9a-f]{64})?")
_NAME = re.compile(r"[a-z0-9.-]{1,63}/[a-z0-9.-]{1,199}")
_UID = re.compile(r"[A-Za-z0-9-]{1,64}")


class ClaimCode(Code):
    """Why a report of an agent was refused."""

    TOO_LARGE = "sync_too_large"
    MALFORMED = "sync_malformed"
    DIGEST = "sync_digest"
    NUMBER = "sync_number"
    COUNT = "sync_count"
    NAMES = "sync_names"


class ClaimError(MeshError):
    """A report that breaks a bound."""

    def __init__(self, code: ClaimCode, public: str) -> None:
        super().__init__(code, public, category=Category.INVALID_ARGUMENT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What an agent says of its node; checked.

    Attributes:
        digest: of the bundle that it hands out, see `mesh.x509.bundles.bundle_digest`; empty for none.
        generation: that came with it.
        workloads: that it serves.
        pending: of these, workloads that have not acknowledged that bundle.
        refused: of the pending, those whose proxy refused it.
        waiting_for: names of pending workloads, namespace/name; the first few.
        epoch: the newest that it knows.
        outdated: workloads with a certificate of an earlier epoch.

    Raises:
        ClaimError: out of bounds, or counts that do not fit each other.
    """

    digest: str = ""
    generation: int = 0
    workloads: int = 0
    pending: int = 0
    refused: int = 0
    waiting_for: tuple[str, ...] = ()
    epoch: int = 0
    outdated: int = 0

    def __post_init__(self) -> None:
        if not _DIGEST.fullmatch(self.digest):
            raise ClaimError(
                ClaimCode.DIGEST, "bundle_digest: allowed is SHA-256 in lower-case hexadecimal, or nothing"
            )
        for name, number in (("bundle_generation", self.generation), ("issuer_epoch", self.epoch)):
            if not 0 <= number < MAX_NUMBER:
                raise ClaimError(ClaimCode.NUMBER, f"{name} is {number}; it must be below {MAX_NUMBER}")
        _check_counts(self)
        if len(self.waiting_for) > MAX_WAITING or len(self.waiting_for) > self.pending:
            raise ClaimError(
                ClaimCode.NAMES,
                f"waiting_for has {len(self.waiting_for)} names with {self.pending} pending; send the first"
                f" {MAX_WAITING} of the pending workloads at most",
            )
        for name in self.waiting_for:
            if len(name) > MAX_NAME_CHARS or not _NAME.fullmatch(name):
                raise ClaimError(
                    ClaimCode.NAMES,
                    f"waiting_for holds {name[:40]!r}; a name is written namespace/name, in lower case, with"
                    f" at most {MAX_NAME_CHARS} characters",
                )


def _check_counts(claim: Claim) -> None:
    if not 0 <= claim.workloads <= MAX_WORKLOADS:
        raise ClaimError(
            ClaimCode.COUNT, f"workloads is {claim.workloads}; one node has at most {MAX_WORKLOADS}"
        )
    within = (
        ("pending", claim.pending, "workloads", claim.workloads),
        ("refused", claim.refused, "pending", claim.pending),
        ("outdated", claim.outdated, "workloads", claim.workloads),
    )
    for name, count, bound_name, bound in within:
        if not 0 <= count <= bound:
            raise ClaimError(
                ClaimCode.COUNT, f"{name} is {count}; it must not be more than {bound_name}, {bound}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A claim, who made it, and when.

    Attributes:
        uid: of the agent's pod.
        at: aware, by the clock of the replica that was told.
    """

    uid: str
    at: dt.datetime
    claim: Claim

    def acknowledges(self, digest: str) -> bool:
        """True when all proxies of the node have that bundle."""
        claim = self.claim
        return bool(digest) and claim.digest == digest and claim.pending == 0 and claim.refused == 0

    def outdated(self, epoch: int) -> int:
        """Workloads that may have a certificate of an earlier epoch: all, while the agent knows no better."""
        return self.claim.outdated if self.claim.epoch >= epoch else self.claim.workloads


@dataclass(frozen=True, slots=True)
class Agent:
    """An agent that should be there.

    Attributes:
        name: of its node, or of its pod as long as it has none; for people.
    """

    uid: str
    name: str


def merge(*books: Iterable[Report]) -> dict[str, Report]:
    """The newest report of each agent, whatever the order of the books."""
    newest: dict[str, Report] = {}
    for book in books:
        for report in book:
            held = newest.get(report.uid)
            if held is None or _rank(report) > _rank(held):
                newest[report.uid] = report
    return newest


def _rank(report: Report) -> tuple[dt.datetime, int, int, str]:
    """Of two reports of the same moment, the one that acknowledges less: the order of books says nothing."""
    claim = report.claim
    return report.at, claim.pending, claim.outdated, repr(claim)


def counts(
    expected: Iterable[Agent],
    reports: Mapping[str, Report],
    *,
    digest: str,
    epoch: int,
    now: dt.datetime,
) -> AgentCounts:
    """What the expected agents have reported of a bundle.

    Args:
        reports: by the UID of the pod that made them; those of other pods count for nothing.
        digest: of the bundle as it is.
        epoch: of the root that signs.
    """
    agents = sorted(expected, key=lambda agent: (agent.name, agent.uid))
    reported = acked = pending = outdated = 0
    missing: list[str] = []
    for agent in agents:
        report = reports.get(agent.uid)
        if report is None or now - report.at > KEPT:
            missing.append(f"{agent.name}: no report")
            continue
        reported += now - report.at <= FRESH
        outdated += report.outdated(epoch)
        if report.acknowledges(digest):
            acked += 1
            continue
        pending += report.claim.pending if report.claim.digest == digest else report.claim.workloads
        missing.append(f"{agent.name}: {_lack(report, digest, now)}")
    return AgentCounts(
        expected=len(agents),
        reported=reported,
        acked=acked,
        pending=pending,
        outdated=outdated,
        missing=tuple(missing[:MAX_NAMES]),
    )


def _lack(report: Report, digest: str, now: dt.datetime) -> str:
    claim = report.claim
    silent = now - report.at
    since = f"; silent for {silent.total_seconds():.0f} s" if silent > FRESH else ""
    if not claim.digest:
        return f"has no bundle yet{since}"
    if claim.digest != digest:
        return f"has another bundle, of generation {claim.generation}{since}"
    names = claim.waiting_for[:SHARED_NAMES]
    more = ", ..." if names and len(names) < claim.pending else ""
    named = f" ({', '.join(names)}{more})" if names else ""
    refused = f", {claim.refused} refused it" if claim.refused else ""
    workloads = "workload" if claim.pending == 1 else "workloads"
    return f"{claim.pending} {workloads} pending{named}{refused}{since}"


# --- how replicas share reports -----------------------------------------------------------------------


def encode(reports: Iterable[Report]) -> str:
    """Reports as compact text, about 80 characters each; the newest `MAX_SHARED_REPORTS`.

    JSON: `{"v": 1, "digests": [...], "reports": [[uid, seconds, digest's place or -1, generation, workloads,
    pending, refused, epoch, outdated, names...], ...]}`; seconds are Unix time.
    """
    newest = sorted(reports, key=lambda report: (report.at, report.uid), reverse=True)[:MAX_SHARED_REPORTS]
    digests: dict[str, int] = {}
    rows: list[list[Any]] = []
    named = 0
    for report in newest:
        claim = report.claim
        place = digests.setdefault(claim.digest, len(digests)) if claim.digest else -1
        names: tuple[str, ...] = ()
        if claim.waiting_for and named < SHARED_WITH_NAMES:
            names, named = claim.waiting_for[:SHARED_NAMES], named + 1
        numbers = (claim.generation, claim.workloads, claim.pending, claim.refused, claim.epoch)
        rows.append([report.uid, int(report.at.timestamp()), place, *numbers, claim.outdated, *names])
    return json.dumps({"v": 1, "digests": list(digests), "reports": rows}, separators=(",", ":"))


def decode(text: str) -> tuple[Report, ...]:
    """Read what `encode` wrote; rows that are not so are left out.

    Raises:
        ClaimError: not such a text.
    """
    if len(text) > MAX_SHARED_CHARS:
        raise ClaimError(ClaimCode.TOO_LARGE, f"reports have {len(text)} characters, over {MAX_SHARED_CHARS}")
    try:
        found = json.loads(text)
        rows, digests = found["reports"], found["digests"]
    except (ValueError, RecursionError, KeyError, TypeError) as e:
        raise ClaimError(ClaimCode.MALFORMED, f"reports of a replica cannot be read: {str(e)[:100]}") from e
    if not isinstance(rows, list) or not isinstance(digests, list) or found.get("v") != 1:
        raise ClaimError(ClaimCode.MALFORMED, "reports of a replica cannot be read: not of version 1")
    reports = (_report(row, digests) for row in rows[:MAX_SHARED_REPORTS])
    return tuple(report for report in reports if report is not None)


def _report(row: Any, digests: list[Any]) -> Report | None:
    try:
        uid, at, place, generation, workloads, pending, refused, epoch, outdated, *names = row
        numbers = (at, place, generation, workloads, pending, refused, epoch, outdated)
        if any(type(number) is not int for number in numbers) or not _UID.fullmatch(uid):
            return None
        return Report(
            uid=uid,
            at=dt.datetime.fromtimestamp(at, dt.UTC),
            claim=Claim(
                digest=digests[place] if place >= 0 else "",
                generation=generation,
                workloads=workloads,
                pending=pending,
                refused=refused,
                waiting_for=tuple(names),
                epoch=epoch,
                outdated=outdated,
            ),
        )
    except (ValueError, TypeError, IndexError, OverflowError, OSError, ClaimError):
        return None  # whoever wrote it: one row less, and its agent is named as missing
