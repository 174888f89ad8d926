"""The status that a leading authority wrote a moment ago: two agents, one root, nothing to do."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from typing import Any

from mesh.ca_status import (
    CONFIG_MAP,
    STATUS_KEY,
    AgentCounts,
    CaStatus,
    Phase,
    RootRole,
    RootView,
    Step,
    encode,
)

YEAR = dt.timedelta(days=365)


def told_status(**changes: Any) -> CaStatus:
    now = dt.datetime.now(dt.UTC)
    root = RootView(
        role=RootRole.SIGNING,
        sha256="11" * 32,
        subject="CN=Gatehouse root,O=cluster.local",
        not_before=now - YEAR,
        not_after=now + 9 * YEAR,
    )
    status = CaStatus(
        phase=Phase.STABLE,
        generation=1,
        epoch=1,
        since=now - YEAR,
        bundle_digest="22" * 32,
        roots=(root,),
        issuer_serial="33",
        issuer_not_after=now + YEAR,
        agents=AgentCounts(expected=2, reported=2, acked=2),
        automatic=True,
        next_step=Step.PREPARE,
        next_at=now + 8 * YEAR,
        writer="gatehouse-ca-0",
        updated=now,
    )
    return replace(status, **changes)


def status_map(namespace: str = "istio-system", **changes: Any) -> dict[str, Any]:
    """The ConfigMap with it."""
    return {
        "kind": "ConfigMap",
        "metadata": {"name": CONFIG_MAP, "namespace": namespace},
        "data": {STATUS_KEY: encode(told_status(**changes))},
    }
