"""The audit trail: one line for every decision, whatever it was. Never a token, a CSR or a key.

Lines go to the logger `ca.audit`. `decision` is `issued` or `refused`; a refusal has the reason code,
and `hostile` is true when no honest client causes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ca.core.authority import IssuedSvid
from ca.core.csr import ProvenKey
from mesh.errors import MeshError
from mesh.obs import logs

_log = logs.logger("ca.audit")


class Audit:
    """Writes the lines.

    In both, `who` has the facts about the caller: identity, method, pod, peer address.
    """

    def issued(self, key: ProvenKey, svid: IssuedSvid, *, key_reused: bool, who: Mapping[str, Any]) -> None:
        """A certificate leaves the authority."""
        _log.info(
            "certificate issued",
            decision="issued",
            serial=svid.serial,
            not_before=svid.not_before,
            not_after=svid.not_after,
            key_kind=key.kind,
            key_id=key.key_id.hex(),
            key_reused=key_reused,
            **({"dns": list(key.dns)} if key.dns else {}),
            **who,
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
