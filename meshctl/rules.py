"""The injector's table of rules by number, for `meshctl explain`: what was looked at, what decided."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from injector.core.decision import Reason

RULES: Final[Mapping[Reason, tuple[int, str]]] = {
    Reason.NOT_APPLICABLE: (1, "it is the creation of a v1 pod"),
    Reason.SYSTEM_NAMESPACE: (2, "its namespace is not excluded for good"),
    Reason.MIRROR_POD: (3, "it is not a static pod of a node"),
    Reason.WINDOWS_POD: (4, "it does not ask for Windows"),
    Reason.POD_OPT_OUT: (5, "the pod does not say no"),
    Reason.INVALID_INJECT_VALUE: (6, "the pod's label is true or false"),
    Reason.NAMESPACE_DISABLED: (7, "its namespace does not say no"),
    Reason.NEVER_SELECTOR: (8, "no never-inject selector matches"),
    Reason.NOT_SELECTED: (9, "pod, namespace or settings ask for a sidecar of this revision"),
    Reason.HOST_NETWORK: (10, "it has a network of its own"),
    Reason.FOREIGN_SIDECAR: (11, "it has no sidecar of another mesh"),
    Reason.UID_CLASH: (12, "no container runs as the proxy's user"),
    Reason.GID_CLASH: (12, "no container runs as the proxy's group"),
    Reason.INVALID_OPTION: (13, "its annotations are valid, and no name or port collides"),
    Reason.POD_SECURITY: (14, "its namespace's pod security level allows a sidecar"),
    Reason.UP_TO_DATE: (15, "something has to be changed"),
    Reason.INJECTED: (16, "the sidecar is added"),
    Reason.REINJECTED: (16, "the sidecar is replaced"),
    Reason.REPAIRED: (16, "the sidecar is put right"),
}
"""Reason -> row of the table in `injector.core.decision` and `.inject`, and what must hold to go on."""


def passed_before(reason: Reason) -> tuple[tuple[int, str], ...]:
    """The rows that were passed before the one that decided."""
    last = RULES[reason][0]
    rows: dict[int, str] = {}
    for row, text in RULES.values():
        if row < last and row not in rows:
            rows[row] = text
    return tuple(rows.items())
