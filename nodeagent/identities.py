"""The page `/identities`: who is served and with which certificates; `meshctl identity` reads it.

It may be read from other machines, through the API server's proxy or by Prometheus' neighbours, so it
holds only what peers see in every handshake anyway, and names that `/metrics` has too. Never a key.

Schema 1, additive: `{schema, time, workloads: [{workload, spiffe_id, state, renew_at, issued, failures,
code, error, chain, roots, bundle_digest, bundle_generation, epoch}]}`; `chain` is PEM, leaf first, empty
while there is no valid certificate; `roots` are the PEM roots that the workload trusts, `bundle_digest` and
`bundle_generation` name them, and `epoch` the root that signed, as the authority counts (docs/adr/0014).
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any, Final

from mesh.x509.pem import encode_certificates
from nodeagent.workloads import RunningWorkload

SCHEMA: Final = 1


def identities_of(workloads: Sequence[RunningWorkload], now: dt.datetime) -> dict[str, Any]:
    """The page as JSON types."""
    return {
        "schema": SCHEMA,
        "time": _time(now),
        "workloads": [_identity(entry) for entry in sorted(workloads, key=lambda e: e.name)],
    }


def _identity(entry: RunningWorkload) -> dict[str, Any]:
    status, identity = entry.rotator.status(), entry.cache.snapshot.identity
    return {
        "workload": entry.name,
        "spiffe_id": status.spiffe_id,
        "state": status.state,
        "renew_at": _time(status.renew_at),
        "issued": status.issued,
        "bundle_digest": status.bundle_digest,
        "bundle_generation": status.bundle_generation,
        "epoch": status.epoch,
        "failures": status.failures,
        "code": status.code,
        "error": status.error,
        "chain": encode_certificates(identity.svid.chain_der) if identity.svid is not None else "",
        "roots": encode_certificates(identity.bundle.roots_der) if identity.bundle is not None else "",
    }


def _time(at: dt.datetime | None) -> str | None:
    return None if at is None else at.astimezone(dt.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
