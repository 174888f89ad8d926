"""A bounded cache of rendered parts, shared by the workloads of a node.

Policies and service ports are deep immutable trees: hashing one costs about as much as rendering it.
So parts are found by the *identity* of the object they came from; an entry keeps that object alive,
and an identity is therefore never reused while the entry exists. A caller profits when it hands over
the same objects again as long as nothing changed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, TypeVar

from mesh.meshconfig import MeshConfig

T = TypeVar("T")


class RenderCache:
    """Least recently used parts go first.

    Args:
        max_entries: bound; a part is about as large as its bytes (a rule some 300 B, a cluster 2 KB).
    """

    __slots__ = ("_entries", "_max", "hits", "misses")

    def __init__(self, max_entries: int = 50_000) -> None:
        self._entries: OrderedDict[Hashable, tuple[object, Any]] = OrderedDict()
        self._max = max_entries
        self.hits = 0
        self.misses = 0

    def __len__(self) -> int:
        return len(self._entries)

    def by_identity(self, kind: Hashable, source: object, build: Callable[[], T]) -> T:
        """The part of that kind made from `source`, built when it is not there.

        Args:
            kind: what is built, with every other input of `build`; compared by value.
            source: immutable; compared by identity.
        """
        return self._get((kind, id(source)), source, build)

    def by_value(self, key: Hashable, build: Callable[[], T]) -> T:
        """The part with that key, built when it is not there. `key` has every input of `build`."""
        return self._get(key, None, build)

    def _get(self, key: Hashable, source: object, build: Callable[[], T]) -> T:
        entries = self._entries
        entry = entries.get(key)
        if entry is not None:
            self.hits += 1
            entries.move_to_end(key)
            found: T = entry[1]
            return found
        self.misses += 1
        made = build()
        entries[key] = (source, made)
        while len(entries) > self._max:
            entries.popitem(last=False)
        return made


@dataclass(frozen=True, slots=True)
class Context:
    """What every renderer needs: the mesh-wide options, and the parts rendered before."""

    mesh: MeshConfig
    cache: RenderCache
