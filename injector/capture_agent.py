"""`python -m injector capture`: has the capture rules of this node's pods written, where nodes capture.

It watches the pods of its node and asks the capture worker of its own pod, over a Unix socket, to write the
rules of each one that wants them. It has a token for the API server and no right on the node; the
worker has the rights and no token.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final

from injector.config import ConfigCode, ConfigError, InjectorConfig
from injector.core.capture import CaptureConfig
from injector.core.capture_messages import MAX_LINE, Answer, MessageCode, MessageError, Request
from injector.core.node_capture import Tried, Wanted, due, is_news, read_wanted
from injector.events import EventSink, Saying, Subject
from injector.metrics import CaptureMetrics
from injector.upkeep import Process, keep_pair, secure_pages
from mesh.errors import Category, MeshError
from mesh.kube import access
from mesh.kube.client import KubeClient
from mesh.kube.reflector import Collection, Reflector
from mesh.kube.store import Store
from mesh.obs.logs import logger

USER_AGENT: Final = "gatehouse-capture"
_WORKER_SECONDS: Final = 100.0  # longer than a child of the worker may live
_PING_SECONDS, _PING_AGAIN_SECONDS = 10.0, 1.0
_IDLE_SECONDS: Final = 5.0

_log = logger(__name__)

Ask = Callable[[Request], Answer]


def run(config: InjectorConfig) -> int:
    """Run until TERM or INT; the exit code.

    Raises:
        MeshError: the settings or the credentials for the API server cannot be used.
        OSError: a port for health and metrics cannot be bound.
    """
    settings = config.capture_agent
    if not settings.node_name:
        raise ConfigError(
            ConfigCode.CONFLICT,
            "capture_agent.node_name is empty;"
            " next: set GATEHOUSE_INJECTOR_CAPTURE_AGENT__NODE_NAME to spec.nodeName",
        )
    secure = secure_pages(config, config.listen.metrics)
    process = Process(config.listen.plain, "watch", "worker", secure=secure)
    metrics = CaptureMetrics(process.registry)
    found = access.find(config.kubeconfig)
    api = KubeClient(found, user_agent=USER_AGENT)
    events = EventSink(
        KubeClient(found, user_agent=USER_AGENT) if config.events else None,
        component=USER_AGENT,
        count=lambda result: metrics.events.labels(result=result).inc(),
    )
    store: Store[Wanted] = Store()
    store.subscribe(lambda _: process.wake.set())
    watch = Reflector(
        api,
        Collection(
            path="/api/v1/pods",
            name="pods",
            query={"fieldSelector": f"spec.nodeName={settings.node_name}"},
        ),
        partial(read_wanted, node=settings.node_name),
        store,
        events=_Failures(metrics),
        monotonic=time.monotonic,
    )
    agent = Agent(
        store,
        partial(ask, settings.socket),
        events=events,
        metrics=metrics,
        recheck=settings.recheck,
        threads=settings.threads,
        wake=process.wake,
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        # A thread, because `Event.set` in a handler may wait for a lock that the main thread holds.
        signal.signal(number, lambda *_: threading.Thread(target=process.end).start())
    with process.serving(), agent, contextlib.ExitStack() as ends:
        events.start()
        ends.callback(events.stop)
        watch.start()
        ends.callback(api.close)
        ends.callback(watch.stop)
        if secure is not None:
            arguments = (process, config, config.capture_names, tuple)  # no webhook entry has to trust it
            threading.Thread(target=keep_pair, args=arguments, name="certificate", daemon=True).start()
        _loop(process, agent, store, watch)
    return 0


def _loop(process: Process, agent: Agent, store: Store[Wanted], watch: Reflector[Wanted]) -> None:
    while not process.stop.is_set():
        problem = watch.problem
        detail = "" if store.synced else "the pods of this node have not been listed yet"
        if problem is not None:
            detail = problem.public
        process.health.set("watch", ok=store.synced, detail=detail)
        process.wake.clear()
        pause = agent.step()
        process.health.set("worker", ok=not agent.away, detail=agent.away)
        process.wake.wait(min(pause, _IDLE_SECONDS))


class Agent:
    """Decides and asks; a context manager, which waits for the end of what is under way.

    Args:
        store: pods that want rules.
        ask: the worker; raises MeshError when it does not answer.
        recheck: between two looks at the rules of a pod that runs.
        threads: pods that are worked on at once.
        wake: set when something has been done.
    """

    def __init__(
        self,
        store: Store[Wanted],
        ask: Ask,
        *,
        events: EventSink,
        metrics: CaptureMetrics,
        recheck: dt.timedelta,
        threads: int,
        wake: threading.Event,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._ask = ask
        self._events = events
        self._metrics = metrics
        self._recheck = recheck.total_seconds()
        self._wake = wake
        self._monotonic = monotonic
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="capture")
        self._lock = threading.Lock()
        self._tried: dict[str, Tried] = {}
        self._seen: dict[str, float] = {}  # since when a pod has been due, until its rules are in force
        self._busy: set[str] = set()
        self._pinged: float | None = None
        self.away = "the capture worker has not answered yet"
        """Why the worker cannot be used; "" = it answers."""

    def __enter__(self) -> Agent:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def step(self) -> float:
        """Begin what is due; seconds until the next look, unless woken."""
        now = self._monotonic()
        pause = _PING_AGAIN_SECONDS if self.away else _PING_SECONDS
        if self._pinged is None or now - self._pinged >= pause:
            self._pinged = now
            self._pool.submit(self._ping)
        wanted = {pod.uid: pod for pod in self._store.values()}
        with self._lock:
            for memory in (self._tried, self._seen):
                for uid in memory.keys() - wanted.keys():
                    del memory[uid]
            for uid, pod in wanted.items():
                at = due(pod, self._tried.get(uid), now=now, recheck=self._recheck)
                if at is None or uid in self._busy:
                    continue
                if at <= now:
                    self._busy.add(uid)
                    self._seen.setdefault(uid, now)
                    self._pool.submit(self._attempt, pod)
                else:
                    pause = min(pause, at - now)
        self._count(wanted)
        return pause

    def _count(self, wanted: Mapping[str, Wanted]) -> None:
        """Only what has a sandbox waits for us: before that, pods wait for images and volumes."""
        with self._lock:
            due_now = [wanted[uid] for uid in self._seen if uid in wanted]
        self._metrics.pods.set(len(wanted))
        self._metrics.waiting.set(sum(pod.started or pod.config is None for pod in due_now))

    def _attempt(self, pod: Wanted) -> None:
        try:
            self._done(pod, *self._try(pod))
        except Exception:  # noqa: BLE001 - a pod's fault must not end the others
            _log.exception("capture failed", namespace=pod.namespace, pod=pod.name)
            self._done(
                pod, Answer(code="capture_internal", message="an internal error; see the agent's log"), 0.0
            )
        finally:
            with self._lock:
                self._busy.discard(pod.uid)
            self._wake.set()

    def _try(self, pod: Wanted) -> tuple[Answer, float]:
        if pod.config is None:
            return Answer(code=pod.problem[0], message=pod.problem[1]), 0.0
        began = self._monotonic()
        try:
            answer = self._ask(Request(pod.uid, pod.config))
            self.away = ""
        except MeshError as error:
            self.away = error.public
            answer = Answer(code=str(error.code), message=error.public)
        return answer, self._monotonic() - began

    def _done(self, pod: Wanted, answer: Answer, seconds: float) -> None:
        now = self._monotonic()
        with self._lock:
            before = self._tried.get(pod.uid)
            # In a row for this sandbox: what the one before lacked says nothing about it.
            row = before.failures if before is not None and before.token == pod.token else 0
            failures = row + 1 if answer.code else 0
            tried = Tried(
                at=now, token=pod.token, code=answer.code, failures=failures, network=answer.network
            )
            self._tried[pod.uid] = tried
            since = None if answer.code else self._seen.pop(pod.uid, None)
        self._count({pod.uid: pod for pod in self._store.values()})
        self._metrics.tries.labels(result=answer.code or ("applied" if answer.backend else "unchanged")).inc()
        if pod.config is not None:
            self._metrics.duration.observe(seconds)
        if answer.backend and since is not None:
            self._metrics.wait.observe(now - since)
        self._tell(pod, answer, before, tried)

    def _tell(self, pod: Wanted, answer: Answer, before: Tried | None, tried: Tried) -> None:
        about = {"namespace": pod.namespace, "pod": pod.name, "uid": pod.uid}
        if answer.backend:
            again = before is not None and before.network == answer.network
            said = "capture rules were gone, written again" if again else "capture rules written"
            _log.info(said, backend=answer.backend, network=answer.network, **about)
        elif answer.code and is_news(pod, tried):
            if before is None or before.code != answer.code:
                _log.warning("capture failed", code=answer.code, detail=answer.message, **about)
            self._events.say(
                Subject("v1", "Pod", pod.namespace, pod.name, pod.uid),
                Saying("CaptureFailed", "Warning", answer.code, answer.message),
            )

    def _ping(self) -> None:
        was = self.away
        try:
            self._ask(Request(None, CaptureConfig()))
            self.away = ""
        except MeshError as error:
            self.away = error.public
        if self.away != was:
            _log.info("capture worker", problem=self.away or "none")
            self._wake.set()


def ask(path: Path, request: Request, timeout: float = _WORKER_SECONDS) -> Answer:
    """Ask the worker.

    Raises:
        MessageError: it does not answer, or something else.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout)
            connection.connect(str(path))
            connection.sendall(request.to_line())
            with connection.makefile("rb") as stream:
                line = stream.readline(MAX_LINE + 1)
    except OSError as error:
        raise MessageError(
            MessageCode.AWAY,
            f"the capture worker of this node does not answer on {path} ({error.strerror or error});"
            " next: look at the container worker of the capture agent's pod",
            category=Category.UNAVAILABLE,
        ) from error
    if not line:
        raise MessageError(
            MessageCode.AWAY,
            "the capture worker broke off; next: look at the container worker of the capture agent's pod",
            category=Category.UNAVAILABLE,
        )
    return Answer.of_line(line)


class _Failures:
    """What the reflector reports, as metrics."""

    def __init__(self, metrics: CaptureMetrics) -> None:
        self._metrics = metrics

    def relisted(self, resource: str, items: int) -> None:
        """See `mesh.kube.reflector.Events`."""

    def event(self, resource: str) -> None:
        """See `mesh.kube.reflector.Events`."""

    def failed(self, resource: str, code: str) -> None:
        """See `mesh.kube.reflector.Events`."""
        self._metrics.watch_failures.labels(resource=resource, code=code).inc()
