"""`sidecar.istio.io/status`: what the injector put into a pod, so that it can be found and undone.

The annotation is input as well as output: a pod that is seen again carries it, and so does a pod
whose author wrote it by hand. It is parsed strictly, and only ever names what is ours.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mesh.errors import Code, MeshError

SCHEMA = 1
MAX_BYTES = 128 << 10
_TEXTS = ("version", "revision", "digest", "mode", "reason")
_NAMES = {
    "init_containers": "initContainers",
    "containers": "containers",
    "volumes": "volumes",
    "image_pull_secrets": "imagePullSecrets",
    "labels": "labels",
}


class StatusCode(Code):
    """Why a status annotation was refused."""

    INVALID = "status_invalid"


class StatusError(MeshError):
    """The status annotation is not one that we wrote."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """Contents of the annotation.

    Attributes:
        version: of the injector.
        digest: of its settings.
        mode: `native` or `classic`.
        reason: code of the last change: injected, reinjected, repaired or pod_security.
        init_containers: names we added; `containers`, `volumes`, `image_pull_secrets` likewise.
        labels: keys we added.
        annotations: keys we set -> what was there before, None = nothing.
        probes: path on the probe listener -> what it replaced.
        declared: position of the `istio-proxy` container that the author declared: list and index.
    """

    version: str
    revision: str
    digest: str
    mode: str
    reason: str = "injected"
    init_containers: tuple[str, ...] = ()
    containers: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    image_pull_secrets: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    annotations: Mapping[str, str | None] = field(default_factory=dict)
    probes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    declared: tuple[str, int] | None = None

    def to_json(self) -> str:
        """The text of the annotation; the same for the same status."""
        data: dict[str, Any] = {"schema": SCHEMA} | {name: getattr(self, name) for name in _TEXTS}
        data |= {key: list(getattr(self, name)) for name, key in _NAMES.items() if getattr(self, name)}
        if self.annotations:
            data["annotations"] = dict(self.annotations)
        if self.probes:
            data["probes"] = {path: dict(was) for path, was in self.probes.items()}
        if self.declared:
            data["declared"] = {"list": self.declared[0], "index": self.declared[1]}
        return json.dumps(data, separators=(",", ":"), sort_keys=True, ensure_ascii=False)


def parse_status(text: str) -> Status:
    """The inverse of `Status.to_json`.

    Raises:
        StatusError: saying what is wrong with it.
    """
    data = _load(text)
    if data.get("schema") != SCHEMA:
        raise _error(f"schema {data.get('schema')!r:.20} is not {SCHEMA}")
    texts = {name: data.get(name, "") for name in _TEXTS}
    if not all(isinstance(value, str) for value in texts.values()):
        raise _error(f"{', '.join(_TEXTS)} must be texts")
    names = {name: data.get(key, []) for name, key in _NAMES.items()}
    for name, value in names.items():
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise _error(f"{_NAMES[name]} must be a list of names")
    changed, probes = data.get("annotations", {}), data.get("probes", {})
    if not isinstance(changed, dict) or not all(isinstance(v, str | None) for v in changed.values()):
        raise _error("annotations must be texts by key")
    if not isinstance(probes, dict) or not all(isinstance(v, dict) for v in probes.values()):
        raise _error("probes must be objects by path")
    fields: dict[str, Any] = texts | {name: tuple(value) for name, value in names.items()}
    fields |= {"annotations": changed, "probes": probes, "declared": _declared(data.get("declared"))}
    return Status(**fields)


def is_foreign(text: str) -> bool:
    """True for the status of another injector: an object without our schema number."""
    try:
        return "schema" not in _load(text)
    except StatusError:
        return False


def _load(text: str) -> dict[str, Any]:
    if len(text) > MAX_BYTES:
        raise _error(f"longer than {MAX_BYTES >> 10} KiB")
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _error(f"not JSON: {error}") from error
    if not isinstance(data, dict):
        raise _error("not a JSON object")
    return data


def _declared(value: object) -> tuple[str, int] | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise _error("declared must be an object")
    where, index = value.get("list"), value.get("index")
    if where not in {"containers", "initContainers"} or type(index) is not int or index < 0:
        raise _error("declared must name a list and an index")
    return str(where), index


def _error(detail: str) -> StatusError:
    return StatusError(
        StatusCode.INVALID,
        f"annotation sidecar.istio.io/status is not what the injector wrote ({detail}); next: remove it",
    )
