"""List and watch: keeps a `Store` equal to a collection of the API server, for months.

What the ready-made clients get wrong under faults is decided here: a 410 in either shape lists anew
and finds the deletions; so does any other error event, and a version that keeps failing; every failure
backs off with jitter and honours Retry-After; a silent connection is given up; a stream that ends at
once is a failure too; a fault of ours ends no thread.
"""

from __future__ import annotations

import datetime as dt
import random
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from mesh.errors import Category
from mesh.kube.api import KubeApi, KubeCode, KubeError
from mesh.kube.store import Key, Store
from mesh.obs.logs import logger

log = logger(__name__)
T = TypeVar("T")

_PAGE = "500"
_MIN_WATCH, _MAX_WATCH = 300.0, 600.0  # seconds; the server ends the watch, spread over the nodes
_SILENCE = dt.timedelta(seconds=150)  # bookmarks come about once a minute
_HEALTHY_SECONDS = 5.0  # a watch that lived so long was no failure
_BACKOFF_BASE, _BACKOFF_CAP = 0.5, 30.0
_MAX_ITEMS = 200_000
_GIVE_UP_VERSION = 5  # failures in a row: e.g. a restored etcd does not know a version from the future
# 404: the collection is gone, and may come back with other objects.
_LIST_ANEW = frozenset({KubeCode.GONE, KubeCode.NOT_FOUND, KubeCode.RESPONSE, KubeCode.INVALID})


class Events(Protocol):
    """What a reflector reports, for metrics; every method is called on its thread."""

    def relisted(self, resource: str, items: int) -> None: ...
    def event(self, resource: str) -> None: ...
    def failed(self, resource: str, code: str) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Collection:
    """What to watch.

    Attributes:
        path: e.g. `/api/v1/pods`.
        name: short name for logs and metrics, e.g. `pods`.
        query: fixed query, e.g. `fieldSelector`.
        optional: the collection may not exist (a CRD that is not installed): 404 means empty.
    """

    path: str
    name: str
    query: Mapping[str, str] = field(default_factory=dict)
    optional: bool = False


class Reflector(Generic[T]):
    """Keeps one store current on a thread of its own.

    Args:
        api: the API server.
        collection: what to watch.
        read: trims an object to a record; None leaves it out. It must cope with any object that the
            server may hold: a raise is a fault of ours, which is logged and lists anew.
        store: where records go.
        wait: sleeps until stop or the time is over; returns True on stop. Tests pass their own.
        rng: for jitter.
    """

    def __init__(
        self,
        api: KubeApi,
        collection: Collection,
        read: Callable[[Mapping[str, Any]], T | None],
        store: Store[T],
        *,
        events: Events | None = None,
        wait: Callable[[float], bool] | None = None,
        monotonic: Callable[[], float],
        rng: random.Random | None = None,
    ) -> None:
        self._api = api
        self._collection = collection
        self._read = read
        self._store = store
        self._events = events
        self._stop = threading.Event()
        self._wait = wait if wait is not None else self._stop.wait
        self._monotonic = monotonic
        self._rng = rng if rng is not None else random.SystemRandom()
        self._failures = 0
        self._version = ""  # to watch from; empty = list first
        self._paged = True
        self._problem: KubeError | None = None
        self._contact: float | None = None

    @property
    def problem(self) -> KubeError | None:
        """Why the newest attempt failed; None when the server answers."""
        return self._problem

    def silent_seconds(self) -> float | None:
        """Time since the server last said something; None before it ever did."""
        return None if self._contact is None else self._monotonic() - self._contact

    def start(self) -> threading.Thread:
        """Run on a new daemon thread."""
        thread = threading.Thread(target=self.run, name=f"reflector-{self._collection.name}", daemon=True)
        thread.start()
        return thread

    def stop(self) -> None:
        """End `run` at the next event or time-out; `KubeClient.close` ends the wait for them."""
        self._stop.set()

    def run(self) -> None:
        """List, watch, and again, until stopped."""
        while not self._stop.is_set():
            began = self._monotonic()
            error = self._attempt()
            if self._stop.is_set():
                return
            if self._monotonic() - began >= _HEALTHY_SECONDS:
                self._failures = 0
            elif error is None:
                self._failures += 1
            if error is not None:
                self._failures += 1
                self._failed(error)
                if error.code in _LIST_ANEW or (
                    error.code is KubeCode.SERVER and self._failures >= _GIVE_UP_VERSION
                ):
                    self._version = ""
            if self._failures and self._pause(error.retry_after if error is not None else None):
                return

    def _attempt(self) -> KubeError | None:
        """Follow the collection for as long as the server goes along; the error that ended it."""
        try:
            if not self._version:
                self._version = self._list()
            self._follow()
        except KubeError as error:
            return error
        except Exception as error:
            # A thread that died would serve old data for ever.
            log.exception("reflector has a fault, listing anew", resource=self._collection.name)
            return KubeError(
                KubeCode.RESPONSE,
                f"{self._collection.path}: {type(error).__name__} while objects were read",
                category=Category.INTERNAL,
            )
        return None

    def _list(self) -> str:
        items: dict[Key, T] = {}
        query = {**self._collection.query, **({"limit": _PAGE} if self._paged else {})}
        while True:
            page = self._page(query)
            meta = page.get("metadata") or {}
            for item in page.get("items") or ():
                record = self._read(item)
                if record is not None:
                    items[_key(item)] = record
            if len(items) > _MAX_ITEMS:
                raise KubeError(
                    KubeCode.RESPONSE,
                    f"{self._collection.path}: more than {_MAX_ITEMS} objects",
                    category=Category.RESOURCE_EXHAUSTED,
                )
            if not meta.get("continue"):
                break
            query["continue"] = str(meta["continue"])
        self._store.replace(items)
        self._paged = True
        self._heard()
        if self._events:
            self._events.relisted(self._collection.name, len(items))
        return str(meta.get("resourceVersion", ""))

    def _page(self, query: Mapping[str, str]) -> Mapping[str, Any]:
        try:
            page = self._api.get(self._collection.path, **query)
        except KubeError as error:
            if error.code is KubeCode.NOT_FOUND and self._collection.optional:
                self._store.replace({})
            if error.code is KubeCode.GONE:
                # The pages took longer than the server keeps a version: ask for all at once.
                self._paged = False
            raise
        if not isinstance(page, dict) or not isinstance(page.get("items") or [], list):
            raise KubeError(
                KubeCode.RESPONSE, f"{self._collection.path}: not a list", category=Category.UNAVAILABLE
            )
        return page

    def _follow(self) -> None:
        """Apply events until the stream ends. What was applied stands: the next watch goes on from there."""
        query = {
            **self._collection.query,
            "resourceVersion": self._version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(round(self._rng.uniform(_MIN_WATCH, _MAX_WATCH))),
        }
        with self._api.watch(self._collection.path, silence=_SILENCE, **query) as stream:
            self._heard()
            for event in stream:
                if self._stop.is_set():
                    return
                self._version = self._apply(event) or self._version
                self._heard()

    def _heard(self) -> None:
        self._contact = self._monotonic()
        self._problem = None

    def _apply(self, event: Mapping[str, Any]) -> str:
        kind, item = event.get("type"), event["object"]
        if kind == "ERROR":
            self._version = ""  # whatever it says, this stream cannot go on
            code = item.get("code")
            status = code if isinstance(code, int) else 500
            raise KubeError.of_status(status, f"watch {self._collection.path}", item)
        if self._events:
            self._events.event(self._collection.name)
        if kind in {"ADDED", "MODIFIED"}:
            record = self._read(item)
            if record is None:
                self._store.remove(_key(item))
            else:
                self._store.put(_key(item), record)
        elif kind == "DELETED":
            self._store.remove(_key(item))
        return str((item.get("metadata") or {}).get("resourceVersion", ""))

    def _pause(self, retry_after: dt.timedelta | None) -> bool:
        limit = min(_BACKOFF_CAP, _BACKOFF_BASE * 2 ** min(self._failures, 10))
        delay = self._rng.uniform(_BACKOFF_BASE / 2, limit)
        if retry_after is not None:
            delay = max(delay, min(retry_after.total_seconds(), 2 * _BACKOFF_CAP))
        return self._wait(delay)

    def _failed(self, error: KubeError) -> None:
        optional = self._collection.optional and error.code is KubeCode.NOT_FOUND
        if optional:
            self._heard()  # that there is none is an answer
        else:
            self._problem = error
        if self._events:
            self._events.failed(self._collection.name, str(error.code))
        report = log.debug if optional else log.warning
        report(
            "watch failed, trying again",
            resource=self._collection.name,
            code=str(error.code),
            detail=error.private,
        )


def _key(item: Mapping[str, Any]) -> Key:
    meta = item.get("metadata") or {}
    # Interned: a cluster has few namespaces, and each is in many keys.
    return sys.intern(str(meta.get("namespace", ""))), str(meta.get("name", ""))
