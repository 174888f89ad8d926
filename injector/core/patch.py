"""Minimal JSON Patch operations (RFC 6902) between two states of a raw pod.

Items of the pod's named lists are told apart by name, so that a change of one container is an operation
on that container's field and a foreign item is never rewritten. What is the same object is the same:
nothing below it is even looked at.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jsonpatch

Operation = dict[str, Any]

_NAMED_LISTS = frozenset(
    {"/spec/containers", "/spec/initContainers", "/spec/volumes", "/spec/imagePullSecrets"}
)


def diff(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Operation]:
    """Operations that turn one object into the other; empty when they are equal."""
    operations: list[Operation] = []
    _objects("", before, after, operations)
    return operations


def apply_patch(document: Mapping[str, Any], operations: Sequence[Operation]) -> dict[str, Any]:
    """The document with the operations applied, as the API server does it; the input is not changed.

    Anchors of YAML make one object stand in two places; here each place is changed alone.
    """
    found: dict[str, Any] = jsonpatch.apply_patch(_copied(document), _copied(operations), in_place=True)
    return found


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_copied(item) for item in value]
    return value


def _objects(path: str, before: Mapping[str, Any], after: Mapping[str, Any], out: list[Operation]) -> None:
    out += [{"op": "remove", "path": f"{path}/{_escape(key)}"} for key in before if key not in after]
    for key, value in after.items():
        where = f"{path}/{_escape(key)}"
        if key not in before:
            out.append({"op": "add", "path": where, "value": value})
        else:
            _values(where, before[key], value, out)


def _values(path: str, before: Any, after: Any, out: list[Operation]) -> None:
    if before is after:
        return
    if isinstance(before, dict) and isinstance(after, dict):
        _objects(path, before, after, out)
    elif path in _NAMED_LISTS and isinstance(before, list) and isinstance(after, list):
        _named(path, before, after, out)
    elif type(before) is not type(after) or before != after:
        out.append({"op": "replace", "path": path, "value": after})


def _named(path: str, before: list[Any], after: list[Any], out: list[Operation]) -> None:
    """Remove, insert and change items by position, never moving one that keeps its order."""
    wanted = _keys(after)
    have = list(zip(_keys(before), before, strict=True))
    kept = _in_order([key for key, _ in have], wanted)
    for i in range(len(have) - 1, -1, -1):
        if have[i][0] not in kept:
            out.append({"op": "remove", "path": f"{path}/{i}"})
            del have[i]
    for i, (key, item) in enumerate(zip(wanted, after, strict=True)):
        if key in kept:
            _values(f"{path}/{i}", have[i][1], item, out)
        else:
            out.append({"op": "add", "path": f"{path}/{i}", "value": item})
            have.insert(i, (key, item))


def _keys(items: list[Any]) -> list[tuple[str, int]]:
    """Name and, should a name occur twice, the how-manieth it is."""
    seen: dict[str, int] = {}
    keys = []
    for item in items:
        name = str(item.get("name")) if isinstance(item, dict) else repr(item)
        seen[name] = seen.get(name, -1) + 1
        keys.append((name, seen[name]))
    return keys


def _in_order(have: list[tuple[str, int]], wanted: list[tuple[str, int]]) -> set[tuple[str, int]]:
    """The longest run of items that both lists hold in the same order: those need not move."""
    position = {key: i for i, key in enumerate(wanted)}
    common = [key for key in have if key in position]
    if all(position[a] < position[b] for a, b in itertools.pairwise(common)):
        return set(common)
    best: list[tuple[str, int]] = []
    runs: list[list[tuple[str, int]]] = []
    for key in common:
        longest: list[tuple[str, int]] = []
        for run in runs:
            if position[run[-1]] < position[key] and len(run) > len(longest):
                longest = run
        runs.append([*longest, key])
        if len(runs[-1]) > len(best):
            best = runs[-1]
    return set(best)


def _escape(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")
