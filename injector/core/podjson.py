"""The raw JSON of a pod: checked for shape once, then read and copied without surprises.

Changes share structure: a function returns new dictionaries along the path that it changes and
leaves everything else as the very same objects. What nobody changed can then be told by identity.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mesh.errors import Code, MeshError

Json = dict[str, Any]

MAX_CONTAINERS = 250
"""Of one kind in a pod: far above what a node can run, and a bound on the work of a request."""

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_LISTS_OF_NAMED = ("containers", "initContainers", "volumes")
_OBJECTS_OF_CONTAINER = (
    "securityContext",
    "resources",
    "livenessProbe",
    "readinessProbe",
    "startupProbe",
    "lifecycle",
)
_LISTS_OF_CONTAINER = ("ports", "env", "volumeMounts")
_OBJECTS_OF_PROBE = ("httpGet", "tcpSocket", "grpc", "exec")


class PodCode(Code):
    """Why a document is no pod."""

    SHAPE = "pod_shape"


class PodError(MeshError):
    """The document is not shaped as a pod; the API server would not accept it either."""


def check_shape(pod: object) -> None:
    """Check the types of every field that injection reads.

    Raises:
        PodError: naming the field, what was found and what is allowed.
    """
    root = _object(pod, "pod")
    meta = _object(root.get("metadata"), "metadata")
    for name in ("labels", "annotations"):
        for key, value in _object(meta.get(name), f"metadata.{name}").items():
            if not isinstance(value, str):
                raise _error(f"metadata.{name}[{key!r:.60}]", value, "text (quote it)")
    _named(meta.get("ownerReferences"), "metadata.ownerReferences")
    spec = _object(root.get("spec"), "spec")
    if "spec" not in root or not isinstance(spec.get("containers"), list):
        raise _error("spec.containers", spec.get("containers"), "a list of containers")
    for name in _LISTS_OF_NAMED:
        _named(spec.get(name), f"spec.{name}")
    for i, secret in enumerate(_list(spec.get("imagePullSecrets"), "spec.imagePullSecrets")):
        _object(secret, f"spec.imagePullSecrets[{i}]")
    for name in ("securityContext", "nodeSelector", "os", "affinity"):
        _object(spec.get(name), f"spec.{name}")
    _whole(spec.get("terminationGracePeriodSeconds"), "spec.terminationGracePeriodSeconds")
    for name in ("containers", "initContainers"):
        for i, container in enumerate(spec.get(name) or ()):
            check_container(container, f"spec.{name}[{i}]")


def check_container(container: Json, field: str) -> None:
    """Check the fields of one container; see `check_shape`."""
    if not _NAME.fullmatch(container["name"]):
        raise _error(f"{field}.name", container["name"], "a name (lower-case letters, digits, -; at most 63)")
    for name in _OBJECTS_OF_CONTAINER:
        _object(container.get(name), f"{field}.{name}")
    for name in _LISTS_OF_CONTAINER:
        for i, item in enumerate(_list(container.get(name), f"{field}.{name}")):
            _object(item, f"{field}.{name}[{i}]")
    for kind in ("liveness", "readiness", "startup"):
        _check_probe(container.get(f"{kind}Probe") or {}, f"{field}.{kind}Probe")
    lifecycle = container.get("lifecycle") or {}
    for hook in ("postStart", "preStop"):  # it has other fields since 1.33
        where = f"{field}.lifecycle.{hook}"
        _check_probe(_object(lifecycle.get(hook), where), where)


def _check_probe(probe: Json, field: str) -> None:
    for name in ("timeoutSeconds", "periodSeconds", "failureThreshold"):
        _whole(probe.get(name), f"{field}.{name}")
    for kind in _OBJECTS_OF_PROBE:
        handler = _object(probe.get(kind), f"{field}.{kind}")
        for i, header in enumerate(_list(handler.get("httpHeaders"), f"{field}.{kind}.httpHeaders")):
            _object(header, f"{field}.{kind}.httpHeaders[{i}]")
        for name in ("path", "host", "scheme", "service"):
            if not isinstance(handler.get(name), str | None):
                raise _error(f"{field}.{kind}.{name}", handler[name], "text")


def _object(value: object, field: str) -> Json:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise _error(field, value, "an object")
    return value


def _list(value: object, field: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise _error(field, value, "a list")
    return value


def _named(value: object, field: str) -> None:
    items = _list(value, field)
    if len(items) > MAX_CONTAINERS:
        raise _error(field, f"{len(items)} items", f"at most {MAX_CONTAINERS}")
    for i, item in enumerate(items):
        if not isinstance(_object(item, f"{field}[{i}]").get("name"), str):
            raise _error(f"{field}[{i}].name", item and item.get("name"), "text")


def _whole(value: object, field: str) -> None:
    if value is not None and (type(value) is not int or value < 0):
        raise _error(field, value, "a whole number")


def _error(field: str, found: object, allowed: str) -> PodError:
    return PodError(PodCode.SHAPE, f"{field}: expected {allowed}, found {found!r:.60}")


def metadata(pod: Mapping[str, Any]) -> Json:
    """`metadata`, or an empty object."""
    return pod.get("metadata") or {}


def labels_of(pod: Mapping[str, Any]) -> Mapping[str, str]:
    """Labels, or an empty mapping."""
    return metadata(pod).get("labels") or {}


def annotations_of(pod: Mapping[str, Any]) -> Mapping[str, str]:
    """Annotations, or an empty mapping."""
    return metadata(pod).get("annotations") or {}


def spec(pod: Mapping[str, Any]) -> Json:
    """`spec`, or an empty object."""
    return pod.get("spec") or {}


def listed(pod: Mapping[str, Any], name: str) -> list[Json]:
    """A list of `spec`, e.g. `containers`; empty when absent or null."""
    return spec(pod).get(name) or []


def named(items: Sequence[Json], name: str) -> Json | None:
    """The first item of that name."""
    return next((item for item in items if item.get("name") == name), None)


def owner(pod: Mapping[str, Any]) -> tuple[str, str]:
    """Kind and name of the controlling owner, or two empty texts."""
    for reference in metadata(pod).get("ownerReferences") or ():
        if reference.get("controller"):
            return str(reference.get("kind") or ""), str(reference.get("name") or "")
    return "", ""


def with_spec(pod: Mapping[str, Any], **values: Any) -> Json:
    """The pod with these fields of `spec`."""
    return {**pod, "spec": {**spec(pod), **values}}


def with_metadata(pod: Mapping[str, Any], **values: Any) -> Json:
    """The pod with these fields of `metadata`."""
    return {**pod, "metadata": {**metadata(pod), **values}}


def without(value: Mapping[str, Any], *keys: str) -> Json:
    """A copy without these keys."""
    return {k: v for k, v in value.items() if k not in keys}
