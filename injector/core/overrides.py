"""An `istio-proxy` container that the author of the pod declares: merged, field by field, or refused.

What is not on the list is refused by name. The command, the security context and the environment are
the boundary between the application and its identity; options have annotations.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from injector.core.bootstrap import SOCKET_DIRECTORY
from injector.core.decision import PROXY
from injector.core.keys import OVERRIDES
from injector.core.podjson import Json, check_container, without
from injector.core.settings import Ceilings
from injector.core.values import amount, quantity, strict_json

AUTO = "auto"
_COPIED = ("imagePullPolicy", "terminationMessagePath", "terminationMessagePolicy")
_HINTS = {
    "args": "use sidecar.istio.io/logLevel, concurrency and the other annotations",
    "command": "the proxy is started in one way only",
    "env": "the proxy reads no environment of yours",
    "envFrom": "the proxy reads no environment of yours",
    "securityContext": "it is the boundary of the pod's identity",
    "ports": "the proxy's ports are fixed",
    "readinessProbe": "use the annotations readiness.status.sidecar.istio.io/*",
    "livenessProbe": "a proxy that restarts would cut every connection",
    "startupProbe": "it gates the application in native mode",
}
_MOUNT_FIELDS = {"name", "mountPath", "readOnly", "subPath", "recursiveReadOnly"}


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds a declared container.

    Attributes:
        hold: the proxy's postStart holds the application back, so the author's cannot be run.
        volumes: names of volumes of the pod, which may be mounted.
    """

    ceilings: Ceilings
    hold: bool
    volumes: frozenset[str]


def check(declared: Json, limits: Limits) -> list[str]:
    """Everything that is wrong with a declared container, each with its field."""
    problems = []
    for key, value in declared.items():
        if key in {"name", "restartPolicy", *_COPIED} or value in (None, {}, []):
            continue
        match key:
            case "image":
                if value != AUTO:
                    hint = f'write "{AUTO}", or use sidecar.istio.io/proxyImage'
                    problems.append(_bad("image", f"{value!r:.80}", hint))
            case "resources":
                problems += _resources(value, limits.ceilings)
            case "lifecycle":
                problems += _lifecycle(value, hold=limits.hold)
            case "volumeMounts":
                problems += _mounts(value, limits.volumes)
            case _:
                problems.append(_bad(key, "set", _HINTS.get(key, "it cannot be set")))
    return problems


def overlay(wanted: Json, declared: Json) -> Json:
    """The rendered container with what a checked declaration changes."""
    result = dict(wanted)
    for key in _COPIED:
        if declared.get(key):
            result[key] = declared[key]
    asked = declared.get("resources") or {}
    if asked:
        result["resources"] = {
            kind: {**wanted["resources"].get(kind, {}), **(asked.get(kind) or {})}
            for kind in ("limits", "requests")
        }
    if declared.get("lifecycle"):
        result["lifecycle"] = {**wanted.get("lifecycle", {}), **declared["lifecycle"]}
    if declared.get("volumeMounts"):
        result["volumeMounts"] = [*wanted["volumeMounts"], *declared["volumeMounts"]]
    return result


def to_json(declared: Json) -> str:
    """The text of the annotation that keeps the declaration."""
    return json.dumps({"containers": [declared]}, separators=(",", ":"), sort_keys=True)


def from_json(text: str) -> Json:
    """The inverse of `to_json`.

    Raises:
        ValueError: the annotation is not one that we wrote.
        PodError: the container has fields of a wrong type.
    """
    data = strict_json(text)
    containers = data.get("containers") if isinstance(data, dict) else None
    if not isinstance(containers, list) or len(containers) != 1 or not isinstance(containers[0], dict):
        raise ValueError(f"{OVERRIDES}: expected an object with one container")
    found: Json = containers[0]
    if found.get("name") != PROXY:
        raise ValueError(f"{OVERRIDES}: expected the container {PROXY}")
    check_container(found, OVERRIDES)
    return found


def _resources(value: Any, ceilings: Ceilings) -> list[str]:
    problems = []
    if set(value) - {"limits", "requests", "claims"} or value.get("claims"):
        problems.append(_bad("resources", f"{sorted(value)}", "allowed are limits and requests"))
    for kind in ("limits", "requests"):
        amounts = value.get(kind) or {}
        if not isinstance(amounts, dict):
            problems.append(_bad(f"resources.{kind}", repr(amounts)[:60], "expected quantities by resource"))
            continue
        for name, text in amounts.items():
            field = f"resources.{kind}.{name:.60}"
            try:
                found = amount(quantity(str(text)))
            except ValueError as error:
                problems.append(_bad(field, repr(text)[:60], str(error)))
                continue
            ceiling = {"cpu": ceilings.cpu, "memory": ceilings.memory}.get(name, "")
            if ceiling and (found > amount(ceiling) or (kind == "limits" and not found)):
                problems.append(_bad(field, str(text), f"at most {ceiling} is allowed"))
    return problems


def _lifecycle(value: Any, *, hold: bool) -> list[str]:
    problems = [
        _bad(f"lifecycle.{hook}", "a hook", "allowed are postStart and preStop")
        for hook in without(value, "postStart", "preStop")
    ]
    if value.get("postStart") and hold:
        problems.append(
            _bad(
                "lifecycle.postStart",
                "a hook",
                "it holds the application back; set sidecar.istio.io/holdApplicationUntilProxyStarts=false",
            )
        )
    return problems


def _mounts(value: Any, volumes: frozenset[str]) -> list[str]:
    problems = []
    for i, mount in enumerate(value):
        field = f"volumeMounts[{i}]"
        problems += [f"container {PROXY}: {text}" for text in mount_problems(mount, field)]
        if mount.get("name") not in volumes:
            problems.append(_bad(f"{field}.name", f"{mount.get('name')!r:.70}", "the pod has no such volume"))
    return problems


def mount_problems(mount: Json, field: str) -> list[str]:
    """What is wrong with a mount into the proxy, whoever asks for it."""
    problems = [
        f"{field}.{key:.60}: allowed are {sorted(_MOUNT_FIELDS)}" for key in mount if key not in _MOUNT_FIELDS
    ]
    path = mount.get("mountPath")
    if not isinstance(path, str) or not path.startswith("/") or ".." in path.split("/") or ":" in path:
        problems.append(f"{field}.mountPath: {path!r:.80} is not an absolute path")
    elif f"{path.rstrip('/')}/".startswith(f"{SOCKET_DIRECTORY}/") or f"{SOCKET_DIRECTORY}/".startswith(
        f"{path.rstrip('/')}/"
    ):
        problems.append(f"{field}.mountPath: {path!r:.80} would cover {SOCKET_DIRECTORY}")
    if not isinstance(mount.get("readOnly"), bool | None):
        problems.append(f"{field}.readOnly: expected true or false")
    sub = mount.get("subPath")
    if not isinstance(sub, str | None) or ".." in (sub or "").split("/") or (sub or "").startswith("/"):
        problems.append(f"{field}.subPath: expected a relative path inside the volume")
    return problems


def _bad(field: str, found: str, then: str) -> str:
    return f"container {PROXY}: {field} is {found}; {then}"
