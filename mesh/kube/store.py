"""An indexed cache of trimmed objects that a reflector keeps current.

Records are what the reader extracts (a few fields, interned), never the parsed object: a full pod is
100 times larger. Reads take no lock: a snapshot of the mapping is replaced, or one key is set, at once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Generic, TypeVar

T = TypeVar("T")
Key = tuple[str, str]
"""Namespace (empty for cluster-scoped objects) and name."""


class Store(Generic[T]):
    """Records by (namespace, name), with listeners that are told what changed.

    Listeners run on the reflector's thread: they must be quick (set a flag, post to a loop).
    """

    def __init__(self) -> None:
        self._items: dict[Key, T] = {}
        self._lock = threading.Lock()
        self._listeners: list[Callable[[frozenset[Key]], None]] = []
        self._synced = threading.Event()

    def subscribe(self, listener: Callable[[frozenset[Key]], None]) -> None:
        """Call `listener` with the keys that changed, after each change."""
        self._listeners.append(listener)

    @property
    def synced(self) -> bool:
        """True once a first complete list was stored."""
        return self._synced.is_set()

    def wait_synced(self, timeout_seconds: float) -> bool:
        """Wait for the first complete list."""
        return self._synced.wait(timeout_seconds)

    def get(self, namespace: str, name: str) -> T | None:
        """One record."""
        return self._items.get((namespace, name))

    def items(self) -> Mapping[Key, T]:
        """A copy of all records."""
        with self._lock:
            return dict(self._items)

    def values(self) -> Iterable[T]:
        """All records."""
        return self.items().values()

    def __len__(self) -> int:
        return len(self._items)

    # --- for the reflector ---

    def replace(self, items: Mapping[Key, T]) -> None:
        """Take a complete list; what is not in it is gone (deletions during an outage)."""
        with self._lock:
            old, self._items = self._items, dict(items)
        changed = frozenset(k for k in old.keys() | items.keys() if old.get(k) != items.get(k))
        first = not self._synced.is_set()
        self._synced.set()
        if changed or first:
            self._tell(changed)

    def put(self, key: Key, item: T) -> None:
        """Add or change one record."""
        with self._lock:
            unchanged = self._items.get(key) == item
            self._items[key] = item
        if not unchanged:
            self._tell(frozenset({key}))

    def remove(self, key: Key) -> None:
        """Remove one record."""
        with self._lock:
            known = self._items.pop(key, None) is not None
        if known:
            self._tell(frozenset({key}))

    def _tell(self, changed: frozenset[Key]) -> None:
        for listener in tuple(self._listeners):
            listener(changed)
