"""Our container as it stands in a pod that comes back: ours to define, with what others may add.

Between two looks at a pod, the API server fills in defaults and other webhooks add variables and mounts
to every container. Those stay. Everything else is put back, such as a `restartPolicy` that was lost on
the way or a command that was never ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from injector.core.podjson import Json

_DEFAULTS: dict[str, tuple[Any, ...]] = {
    "apiVersion": ("v1",),
    "imagePullPolicy": ("Always", "IfNotPresent", "Never"),
    "procMount": ("Default",),
    "protocol": ("TCP",),
    "scheme": ("HTTP",),
    "successThreshold": (1,),
    "initialDelaySeconds": (0,),
    "recursiveReadOnly": ("Disabled",),
    "resizePolicy": (),
    "workingDir": ("",),
}
"""Fields that the API server adds, with the values that it adds; an empty tuple is any value."""

_ADDED_TO: dict[str, Callable[[Json], Any]] = {
    "env": lambda item: item.get("name"),
    "volumeMounts": lambda item: item.get("mountPath"),
}
"""Lists to which others may add, and what tells their items apart."""

_OPEN_OBJECTS = ("limits", "requests")
"""LimitRanges add resources that we do not set, such as ephemeral storage."""


def settle(existing: Json | None, wanted: Json) -> Json:
    """The container (or volume) that should be in the pod; `existing` itself when nothing is to change."""
    if existing is None:
        return wanted
    merged = _object(existing, wanted, open_object=False)
    return existing if merged == existing else merged


def _object(existing: Json, wanted: Json, *, open_object: bool) -> Json:
    merged: Json = {}
    for key, value in wanted.items():
        merged[key] = _value(key, existing.get(key), value)
    for key, value in existing.items():
        if key not in wanted and (open_object or _is_default(key, value) or key in _ADDED_TO):
            merged[key] = value
    return merged


def _value(key: str, existing: Any, wanted: Any) -> Any:
    if isinstance(wanted, dict) and isinstance(existing, dict):
        return _object(existing, wanted, open_object=key in _OPEN_OBJECTS)
    if isinstance(wanted, list) and isinstance(existing, list):
        tell = _ADDED_TO.get(key)
        if tell is not None:
            return _added(existing, wanted, tell)
        if len(existing) == len(wanted):
            return [_value("", e, w) for e, w in zip(existing, wanted, strict=True)]
    return wanted


def _added(existing: list[Any], wanted: list[Any], tell: Callable[[Json], Any]) -> list[Any]:
    before = {tell(item): item for item in existing}
    ours = [_value("", before.get(tell(item)), item) for item in wanted]
    keys = {tell(item) for item in wanted}
    return ours + [item for item in existing if tell(item) not in keys]


def _is_default(key: str, value: Any) -> bool:
    allowed = _DEFAULTS.get(key)
    return allowed is not None and (not allowed or value in allowed)
