"""The pages of the health server, and the status of the agent as JSON."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from mesh.obs.health import Health, Report
from mesh.obs.metrics import exposition
from mesh.policy.effective import Finding
from nodeagent.config import AgentSettings
from nodeagent.events import short_type
from nodeagent.http import Page, Route
from nodeagent.identities import identities_of
from nodeagent.metrics import AgentMetrics
from nodeagent.trust import TrustSync
from nodeagent.workloads import RunningWorkload


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentView:
    """The agent at one moment."""

    settings: AgentSettings
    now: dt.datetime
    revision: int
    findings: tuple[Finding, ...]
    workloads: Sequence[RunningWorkload]
    queued: int
    trust: TrustSync | None = None


def pages(view: Callable[[], AgentView], health: Health, metrics: AgentMetrics) -> Mapping[str, Route]:
    """The routes of the health server."""

    def report(found: Report) -> Page:
        return Page(200 if found.ok else 503, found.text().encode())

    def ready() -> Page:
        view()  # certificates end between two ticks
        return report(health.ready())

    def exposed() -> Page:
        view()
        metrics.ready.set(int(health.ready().ok))
        body, content_type = exposition(metrics.registry)
        return Page(200, body, content_type)

    def status() -> Page:
        body = orjson.dumps(status_of(view(), health), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
        return Page(200, body, "application/json")

    def identities() -> Page:
        found = view()
        return Page(200, orjson.dumps(identities_of(found.workloads, found.now)), "application/json")

    return {
        "/identities": Route(identities),
        "/livez": Route(lambda: report(health.live())),
        "/readyz": Route(ready),
        "/metrics": Route(exposed),
        "/status": Route(status, local=True),
    }


def finding_dict(finding: Finding) -> dict[str, str]:
    """A finding as JSON types."""
    return {
        "severity": finding.severity.value,
        "code": str(finding.code),
        "place": finding.place or finding.ref.source,
        "object": str(finding.ref),
        "field": finding.field,
        "message": finding.message,
    }


def status_of(view: AgentView, health: Health) -> dict[str, Any]:
    """The status page; `docs/nodeagent.md` describes it."""
    ready = health.ready()
    return {
        "time": _time(view.now),
        "ready": ready.ok,
        "reasons": list(ready.reasons()),
        "mode": view.settings.mode.value,
        "directory": str(view.settings.directory or ""),
        "ca": view.settings.ca.address,
        "revision": view.revision,
        "queued": view.queued,
        "trust": view.trust.view() if view.trust is not None else None,
        "workloads": [_workload(entry) for entry in sorted(view.workloads, key=lambda e: e.name)],
        "findings": [finding_dict(finding) for finding in view.findings],
    }


def _workload(entry: RunningWorkload) -> dict[str, Any]:
    identity = entry.rotator.status()
    resources = entry.cache.status()
    refused = [
        {"type": short_type(url), "name": name, "message": found.message}
        for (url, name), found in sorted(resources.items())
        if found.refused is not None
    ]
    accepted = sum(found.accepted is not None and found.refused is None for found in resources.values())
    return {
        "workload": entry.name,
        "uid": entry.workload.uid,
        "spiffe_id": identity.spiffe_id,
        "state": identity.state,
        "serial": identity.serial,
        "not_after": _time(identity.not_after),
        "renew_at": _time(identity.renew_at),
        "issued": identity.issued,
        "bundle_digest": identity.bundle_digest,
        "bundle_generation": identity.bundle_generation,
        "epoch": identity.epoch,
        "bundle": entry.fact().verdict.name.lower(),
        "failures": identity.failures,
        "code": identity.code,
        "error": identity.error,
        "socket": str(entry.socket.path),
        "socket_error": entry.problem.public if entry.problem else "",
        "streams": entry.socket.open_streams,
        "config_revision": entry.revision,
        "accepted": accepted,
        "refused": refused,
    }


def _time(at: dt.datetime | None) -> str | None:
    return None if at is None else at.astimezone(dt.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
