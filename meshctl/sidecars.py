"""What pods say about their sidecars."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from injector.core import podjson
from injector.core.keys import STATUS
from injector.core.status import Status, StatusError, parse_status

_OVER = frozenset({"Succeeded", "Failed"})


def status_of(pod: Mapping[str, Any]) -> Status | None:
    """What the injector wrote into a pod; None when it did not, or somebody else did."""
    text = podjson.annotations_of(pod).get(STATUS)
    if text is None:
        return None
    try:
        return parse_status(text)
    except StatusError:
        return None


def is_over(pod: Mapping[str, Any]) -> bool:
    """The pod has ended, or is about to."""
    phase = (pod.get("status") or {}).get("phase")
    return phase in _OVER or bool(podjson.metadata(pod).get("deletionTimestamp"))


def restart_command(pod: Mapping[str, Any], namespace: str) -> str:
    """What makes a pod anew."""
    kind, name = podjson.owner(pod)
    if kind == "ReplicaSet":
        suffix = podjson.labels_of(pod).get("pod-template-hash")
        if suffix and name.endswith(f"-{suffix}"):
            return f"kubectl -n {namespace} rollout restart deployment/{name.removesuffix(f'-{suffix}')}"
    if kind in {"StatefulSet", "DaemonSet"}:
        return f"kubectl -n {namespace} rollout restart {kind.lower()}/{name}"
    own = podjson.metadata(pod).get("name")
    if kind:
        return f"kubectl -n {namespace} delete pod {own}"
    return f"make pod {namespace}/{own} anew: nothing owns it"
