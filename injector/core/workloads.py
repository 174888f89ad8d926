"""Pod templates wherever they are: every workload kind, lists of them, and pods themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]

TEMPLATES: Mapping[str, tuple[str, ...]] = {
    "Pod": (),
    "PodTemplate": ("template",),
    "ReplicationController": ("spec", "template"),
    "ReplicaSet": ("spec", "template"),
    "Deployment": ("spec", "template"),
    "StatefulSet": ("spec", "template"),
    "DaemonSet": ("spec", "template"),
    "Job": ("spec", "template"),
    "CronJob": ("spec", "jobTemplate", "spec", "template"),
    "DeploymentConfig": ("spec", "template"),
    "Rollout": ("spec", "template"),
}
"""Kind -> where its pod template is. Rollout is Argo's, DeploymentConfig OpenShift's."""

MAX_DEPTH = 8
"""Of lists within lists."""


@dataclass(frozen=True, slots=True)
class Template:
    """A pod template in a manifest.

    Attributes:
        pod: the template: `metadata` and `spec`.
        path: keys and indices from the root of the document.
        kind: of the workload.
        name: of the workload.
        namespace: as the manifest has it, may be empty.
    """

    pod: Json
    path: tuple[str | int, ...]
    kind: str
    name: str
    namespace: str


def walk(document: object, path: tuple[str | int, ...] = ()) -> Iterator[Template]:
    """Every pod template in a document; nothing for other kinds."""
    if not isinstance(document, dict) or len(path) > 2 * MAX_DEPTH:
        return
    items = document.get("items")
    kind = str(document.get("kind") or "")
    if kind.endswith("List") and isinstance(items, list):
        for index, item in enumerate(items):
            yield from walk(item, (*path, "items", index))
        return
    where = TEMPLATES.get(kind)
    if where is None:
        return
    pod: Any = document
    for key in where:
        pod = pod.get(key) if isinstance(pod, dict) else None
    if not isinstance(pod, dict) or not isinstance(pod.get("spec"), dict):
        return
    meta = document.get("metadata")
    meta = meta if isinstance(meta, dict) else {}
    name = meta.get("name") or str(meta.get("generateName") or "").rstrip("-")
    yield Template(pod, (*path, *where), kind, str(name or ""), str(meta.get("namespace") or ""))


def transform(document: Any, change: Callable[[Template], Mapping[str, Any]]) -> Any:
    """The document with each pod template replaced by what `change` makes of it.

    Everything else is the very same object; a document without a template is returned as it is.
    """
    for template in list(walk(document)):
        pod = change(template)
        if pod is not template.pod:
            document = _replaced(document, template.path, pod)
    return document


def _replaced(value: Any, path: tuple[str | int, ...], new: Mapping[str, Any]) -> Any:
    if not path:
        return dict(new)
    key, rest = path[0], path[1:]
    if isinstance(value, list):
        index = int(key)
        return [*value[:index], _replaced(value[index], rest, new), *value[index + 1 :]]
    return {**value, key: _replaced(value[key], rest, new)}
