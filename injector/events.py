"""Events about what was done with pods, on their owners, and about policies; never in an admission's way.

A pod that is being created has no UID yet, so the Event stands on its controller (a ReplicaSet, Job,
...), where `kubectl describe` shows it. Events are written by a thread from a bounded queue. What
repeats is not written again for ten minutes and then with its count; a token bucket bounds the rest.
The process needs the right to *create* Events and nothing more: they are never patched.
"""

from __future__ import annotations

import datetime as dt
import queue
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from injector.core.decision import Decision, Outcome, Reason
from mesh.clock import Clock, SystemClock
from mesh.errors import Category
from mesh.kube.api import KubeApi, KubeCode, KubeError
from mesh.obs.logs import logger

_log = logger(__name__)

MAX_QUEUE: Final = 1000
MAX_MEMORY: Final = 5000
REPEAT_SECONDS: Final = 600.0
RATE, BURST = 5.0, 50.0
_PAUSES: Final = (0.2, 1.0, 3.0)  # seconds before each further try
_MAX_MESSAGE: Final = 1000  # the API server refuses more than 1024
_COMPONENT: Final = "gatehouse-injector"
# Nobody asked for these, or nothing was done: an Event for each would be noise.
_QUIET: Final = frozenset(
    {
        Reason.NOT_APPLICABLE,
        Reason.SYSTEM_NAMESPACE,
        Reason.NOT_SELECTED,
        Reason.UP_TO_DATE,
        Reason.MIRROR_POD,
    }
)
_WORDS: Final = {
    Outcome.INJECT: ("Injected", "Normal"),
    Outcome.SKIP: ("InjectionSkipped", "Normal"),
    Outcome.DENY: ("InjectionDenied", "Warning"),
}


@dataclass(frozen=True, slots=True)
class Subject:
    """What an Event is about."""

    api_version: str
    kind: str
    namespace: str
    name: str
    uid: str


@dataclass(frozen=True, slots=True)
class Saying:
    """What an Event says.

    Attributes:
        word: its reason, in one word.
        kind: Normal or Warning.
        code: begins the message.
        key: what repeats within ten minutes and has the same key is not written again; default is the code.
    """

    word: str
    kind: str
    code: str
    message: str
    key: str = ""


def subject(pod: Mapping[str, Any], namespace: str) -> Subject | None:
    """The controller of a pod, else the pod; None when neither has a name."""
    meta = pod.get("metadata") or {}
    for owner in meta.get("ownerReferences") or ():
        if owner.get("controller") is True:
            return Subject(
                str(owner.get("apiVersion", "")),
                str(owner.get("kind", "")),
                namespace,
                str(owner.get("name", "")),
                str(owner.get("uid", "")),
            )
    name = str(meta.get("name") or meta.get("generateName") or "").rstrip("-")
    return Subject("v1", "Pod", namespace, name, "") if name else None


@dataclass(slots=True)
class _Seen:
    at: float
    suppressed: int = 0


class EventSink:
    """Takes Events and writes them, some time later, if at all.

    Args:
        api: None drops everything (Events are turned off).
        component: who says it.
        count: told what became of each: written, repeated, limited, full, failed.
    """

    def __init__(
        self,
        api: KubeApi | None,
        *,
        component: str = _COMPONENT,
        count: Callable[[str], None] = lambda _: None,
        clock: Clock | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api = api
        self._component = component
        self._count = count
        self._clock = clock or SystemClock()
        self._monotonic = monotonic
        self._queue: queue.Queue[dict[str, Any] | None] = queue.Queue(MAX_QUEUE)
        self._seen: OrderedDict[tuple[Subject, str], _Seen] = OrderedDict()
        self._lock = threading.Lock()
        self._tokens, self._filled = BURST, monotonic()
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()

    def start(self) -> None:
        """Write on a thread; after the fork only."""
        if self._api is not None:
            self._thread = threading.Thread(target=self._run, args=(self._api,), name="events", daemon=True)
            self._thread.start()

    def stop(self, timeout_seconds: float = 2.0) -> None:
        """Write what is queued, for at most that long."""
        if self._thread is not None:
            self._stopping.set()
            try:
                self._queue.put(None, timeout=timeout_seconds)
            except queue.Full:
                return
            self._thread.join(timeout_seconds)

    def tell(self, pod: Mapping[str, Any], namespace: str, decision: Decision, *, dry_run: bool) -> None:
        """Queue an Event about a pod; returns at once. A dry run has no side effects: nothing then."""
        if self._api is None or dry_run or (decision.reason in _QUIET and not decision.warn):
            return
        about = subject(pod, namespace)
        if about is None:
            return
        word, kind = _WORDS[decision.outcome]
        said = Saying(word, "Warning" if decision.warn else kind, str(decision.reason), decision.message)
        self.say(about, said)

    def say(self, about: Subject, said: Saying) -> None:
        """Queue an Event; returns at once."""
        if self._api is None:
            return
        repeated = self._admit((about, said.key or said.code))
        if repeated is None:
            return
        try:
            self._queue.put_nowait(self._event(about, said, repeated + 1))
        except queue.Full:
            self._count("full")

    def _admit(self, key: tuple[Subject, str]) -> int | None:
        """How many were suppressed since the last one; None = suppress this one too."""
        now = self._monotonic()
        with self._lock:
            seen = self._seen.get(key)
            if seen is not None and now - seen.at < REPEAT_SECONDS:
                seen.suppressed += 1
                self._count("repeated")
                return None
            self._tokens = min(BURST, self._tokens + (now - self._filled) * RATE)
            self._filled = now
            if self._tokens < 1:
                self._count("limited")
                return None
            self._tokens -= 1
            self._seen.pop(key, None)
            self._seen[key] = _Seen(now)
            if len(self._seen) > MAX_MEMORY:
                self._seen.popitem(last=False)
            return seen.suppressed if seen is not None else 0

    def _event(self, about: Subject, said: Saying, count: int) -> dict[str, Any]:
        now = self._clock.now().astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {
                "name": f"{about.name[:200]}.{uuid.uuid4().hex[:16]}",
                "namespace": about.namespace,
            },
            "involvedObject": {
                "apiVersion": about.api_version,
                "kind": about.kind,
                "namespace": about.namespace,
                "name": about.name,
                **({"uid": about.uid} if about.uid else {}),
            },
            "reason": said.word,
            "message": f"{said.code}: {said.message}"[:_MAX_MESSAGE],
            "type": said.kind,
            "count": count,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "source": {"component": self._component},
            "reportingComponent": self._component,
            "reportingInstance": "",
        }

    def _run(self, api: KubeApi) -> None:
        while (event := self._queue.get()) is not None:
            self._count("written" if self._write(api, event) else "failed")

    def _write(self, api: KubeApi, event: Mapping[str, Any]) -> bool:
        """Write one Event; what may pass is tried again, since a repetition would be suppressed."""
        namespace = event["metadata"]["namespace"]
        for pause in (*_PAUSES, None):
            try:
                api.create(f"/api/v1/namespaces/{namespace}/events", event)
            except KubeError as error:
                if error.code is KubeCode.ALREADY_EXISTS:
                    return True  # an answer was lost: the name is drawn once for each Event
                if pause is None or error.category is not Category.UNAVAILABLE:
                    _log.warning("an Event was not written", namespace=namespace, error=error)
                    return False
                self._stopping.wait(pause)
            else:
                return True
        return False
