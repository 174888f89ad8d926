"""The audit trail: one line for every decision, whatever it was. Never a token, a CSR or a key.

Lines go to the logger `ca.audit`. `decision` is `issued` or `refused`; a refusal has the reason code,
and `hostile` is true when no honest client causes it. A step of a rotation of roots is `rotated`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ca.core.authority import IssuedSvid
from ca.core.csr import ProvenKey
from ca.core.rotation import RotationState
from mesh.errors import MeshError
from mesh.obs import logs
from mesh.obs.redact import clean

_log = logs.logger("ca.audit")


class Audit:
    """Writes the lines.

    In both, `who` has the facts about the caller: identity, method, pod, peer address.
    """

    def issued(self, key: ProvenKey, svid: IssuedSvid, *, key_reused: bool, who: Mapping[str, str]) -> None:
        """A certificate leaves the authority.

        Written at the rate of requests: only what comes from outside is searched, and that is `who`.
        """
        fields: dict[str, Any] = {
            "decision": "issued",
            "serial": svid.serial,
            "not_before": svid.not_before,
            "not_after": svid.not_after,
            "key_kind": str(key.kind),
            "key_id": key.key_id.hex(),
            "key_reused": key_reused,
        }
        if key.dns:
            fields["dns"] = key.dns
        for name, value in who.items():
            fields[name] = clean(value)
        _log.facts("certificate issued", fields)

    def rotated(self, step: str, state: RotationState, *, forced: bool, asked: bool, request_id: str) -> None:
        """A step of a rotation was taken. Who asked is in the API server's own trail, under `request_id`."""
        _log.info(
            "step of the rotation of roots",
            decision="rotated",
            step=step,
            forced=forced,
            asked=asked,
            request_id=request_id,
            phase=state.phase.value,
            generation=state.generation,
            epoch=state.epoch,
        )

    def rotation_refused(self, step: str, *, code: str, detail: str, request_id: str) -> None:
        """A step of a rotation was asked for and not taken."""
        _log.info(
            "step of the rotation of roots refused",
            decision="refused",
            step=step,
            code=code,
            detail=detail,
            request_id=request_id,
        )

    def refused(self, error: MeshError, *, hostile: bool, who: Mapping[str, Any]) -> None:
        """A request was refused; `who` has no identity when the caller was not identified."""
        write = _log.warning if hostile else _log.info
        write(
            "request refused",
            decision="refused",
            code=error.code,
            category=error.category,
            hostile=hostile,
            detail=error.private,
            **who,
        )
