"""The pod as its author wrote it: everything that the status says we added, taken away again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from injector.core import overrides, podjson, probes
from injector.core.decision import INIT, PROXY, VALIDATION
from injector.core.keys import OVERRIDES, STATUS
from injector.core.metadata import SCRAPED
from injector.core.podjson import Json
from injector.core.status import Status, parse_status

_LISTS = ("initContainers", "containers")
_OURS = frozenset({PROXY, INIT, VALIDATION})


@dataclass(frozen=True, slots=True)
class Original:
    """A pod without our additions.

    Attributes:
        pod: shares everything that we did not touch with the pod that came in.
        declared: the `istio-proxy` container that its author declared, which is not in `pod`.
        position: list and index at which it stood.
        status: what the pod said about an earlier injection, None = it was not injected before.
        existing: our containers as they stand in the pod now, by name.
    """

    pod: Json
    declared: Json | None
    position: tuple[str, int] | None
    status: Status | None
    existing: Mapping[str, Json]


def original(pod: Mapping[str, Any], liveness_grace: int) -> Original:
    """Undo an earlier injection, or set a declared proxy container apart.

    Raises:
        StatusError: the status annotation is not one of ours.
        ValueError: the overrides annotation is not one of ours.
    """
    text = podjson.annotations_of(pod).get(STATUS)
    if text is None:
        return _first_time(pod)
    status = parse_status(text)
    saved = podjson.annotations_of(pod).get(OVERRIDES)
    declared = overrides.from_json(saved) if saved is not None else None
    existing = {
        c["name"]: c for name in _LISTS for c in podjson.listed(pod, name) if c["name"] in _added(status)
    }
    spec = dict(podjson.spec(pod))
    for name in _LISTS:
        kept = [
            probes.restore(container, status.probes, liveness_grace)
            for container in podjson.listed(pod, name)
            if container["name"] not in existing
        ]
        _put_list(spec, name, kept)
    _put_list(spec, "volumes", [v for v in podjson.listed(pod, "volumes") if not _ours(v, status, spec)])
    secrets = [
        s for s in podjson.listed(pod, "imagePullSecrets") if s.get("name") not in status.image_pull_secrets
    ]
    _put_list(spec, "imagePullSecrets", secrets)
    found = {**pod, "spec": spec, "metadata": _metadata(pod, status)}
    return Original(found, declared, status.declared if declared else None, status, existing)


def uninject(pod: Mapping[str, Any], liveness_grace: int = 20) -> Json:
    """The pod without its sidecar; a pod that was never injected is returned as it is.

    Raises:
        PodError: not shaped as a pod.
        StatusError: the status annotation is not one of ours.
        ValueError: the overrides annotation is not one of ours.
    """
    podjson.check_shape(pod)
    if STATUS not in podjson.annotations_of(pod):
        return dict(pod)
    found = original(pod, liveness_grace)
    if found.declared is None:
        return found.pod
    name, index = found.position or ("containers", 0)
    items = list(podjson.listed(found.pod, name))
    items.insert(index, found.declared)
    return podjson.with_spec(found.pod, **{name: items})


def _first_time(pod: Mapping[str, Any]) -> Original:
    for name in _LISTS:
        items = podjson.listed(pod, name)
        for index, container in enumerate(items):
            if container["name"] == PROXY:
                rest = [*items[:index], *items[index + 1 :]]
                spec = dict(podjson.spec(pod))
                _put_list(spec, name, rest)
                return Original({**pod, "spec": spec}, container, (name, index), None, {})
    return Original(dict(pod), None, None, None, {})


def _added(status: Status) -> frozenset[str]:
    """Only ever our own names, whatever a status says."""
    return _OURS & {*status.containers, *status.init_containers}


def _ours(volume: Json, status: Status, spec: Json) -> bool:
    """A volume that the status names and that no container of the author mounts."""
    if volume["name"] not in status.volumes:
        return False
    containers = [c for name in _LISTS for c in spec.get(name) or ()]
    return not any(m.get("name") == volume["name"] for c in containers for m in c.get("volumeMounts") or ())


def _put_list(spec: Json, name: str, items: list[Json]) -> None:
    before = spec.get(name)
    if items or name == "containers":
        unchanged = before is not None and [id(item) for item in before] == [id(item) for item in items]
        if not unchanged:
            spec[name] = items
    elif before:
        del spec[name]


def _metadata(pod: Mapping[str, Any], status: Status) -> Json:
    meta = dict(podjson.metadata(pod))
    _put_map(meta, "labels", podjson.without(podjson.labels_of(pod), *status.labels))
    annotations = podjson.without(podjson.annotations_of(pod), STATUS, OVERRIDES)
    for key, before in status.annotations.items():
        if key in SCRAPED and annotations.get(key) != SCRAPED[key]:
            continue  # somebody else changed it since
        if before is None:
            annotations.pop(key, None)
        else:
            annotations[key] = before
    _put_map(meta, "annotations", annotations)
    return meta


def _put_map(meta: Json, name: str, values: Json) -> None:
    if values:
        meta[name] = values
    else:
        meta.pop(name, None)
