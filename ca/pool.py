"""The threads that serve requests: few at a time, and more only while some of them wait.

Issuing is computing. Threads beyond a handful only take the interpreter from each other: with 32 at work
a request cost a sixth more than with 4. But a thread that waits for a slow sender or for the API server
(F-29) must not keep the others from working. So a few jobs run at once; one that has not ended after a
moment is set aside, and another may start, up to the number of threads. The thread that was idle last goes
first, and a job is no future with a condition of its own but a few attributes.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent import futures
from typing import Any, Final, Protocol

AT_ONCE: Final = 4
"""Jobs that run at the same time, not counting those that were set aside."""
MOMENT: Final = 0.02
"""Seconds; many times what a request takes that waits for nobody."""


class Job:
    """A call that was handed over; the part of a future that a server of gRPC asks for."""

    __slots__ = ("_callbacks", "_done", "args", "call", "since")

    def __init__(self, call: Callable[..., object], args: tuple[Any, ...]) -> None:
        self.call = call
        self.args = args
        self.since = time.monotonic()
        self._done = False
        self._callbacks: list[Callable[[Job], object]] = []

    def add_done_callback(self, callback: Callable[[Job], object]) -> None:
        """Have `callback` called once when the job has ended; at once when it has."""
        self._callbacks.append(callback)
        if self._done:
            self._tell()

    def finish(self) -> None:
        """The job has ended, well or not."""
        self._done = True
        self._tell()

    def _tell(self) -> None:
        while True:
            try:
                callback = self._callbacks.pop()  # atomic: each is called by one thread
            except IndexError:
                return
            callback(self)


class _Worker:
    __slots__ = ("job", "thread", "wake")

    def __init__(self) -> None:
        self.job: Job | None = None
        self.wake = threading.Lock()
        self.wake.acquire()
        self.thread: threading.Thread | None = None


class Faults(Protocol):
    """Where a fault of a job goes, e.g. `mesh.obs.logs.Log.exception`."""

    def __call__(self, message: str, /) -> None:
        """Called while the exception is handled."""
        ...


class RequestPool(futures.Executor):
    """Threads that are started when they are needed, up to `threads`; jobs beyond wait in line.

    Args:
        faults: told of a job that raised; the thread goes on.
    """

    def __init__(self, threads: int, *, name: str, faults: Faults) -> None:
        self._threads = threads
        self._name = name
        self._faults = faults
        self._mutex = threading.Lock()
        self._workers: list[_Worker] = []
        self._idle: list[_Worker] = []
        self._running: dict[_Worker, float] = {}  # since when, the longest first; not those set aside
        self._line: deque[Job] = deque()
        self._closed = False
        self._local = threading.local()

    @property
    def started(self) -> int:
        """Threads that were started so far."""
        return len(self._workers)

    def waited(self) -> float:
        """Seconds that the job of this thread stood in line; 0 on a thread that is not of this pool."""
        return float(getattr(self._local, "waited", 0.0))

    def submit(self, call: Callable[..., object], /, *args: Any) -> Job:  # type: ignore[override] # as Job says
        """Have `call(*args)` run on a thread.

        Raises:
            RuntimeError: the pool was shut down.
        """
        job = Job(call, args)
        with self._mutex:
            if self._closed:
                raise RuntimeError("the pool was shut down")
            self._line.append(job)
            if len(self._running) >= AT_ONCE:
                self._set_aside(job.since)
            self._wake()
        return job

    def relieve(self, now: float) -> None:
        """Set aside what runs for too long, even when no new job comes.

        Args:
            now: of `time.monotonic`.
        """
        with self._mutex:
            self._set_aside(now)
            self._wake()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the threads once all jobs have run. May be called again.

        Args:
            cancel_futures: forget the jobs that wait in line.
        """
        with self._mutex:
            self._closed = True
            if cancel_futures:
                self._line.clear()
            self._wake()
            while self._idle:
                self._idle.pop().wake.release()
        if wait:
            for worker in self._workers:
                if worker.thread is not None and worker.thread is not threading.current_thread():
                    worker.thread.join()

    def _set_aside(self, now: float) -> None:
        running = self._running
        while running:
            longest = next(iter(running))
            if now - running[longest] < MOMENT:
                return
            del running[longest]

    def _wake(self) -> None:
        """Give what stands in line to threads, as far as some may run."""
        while self._line and len(self._running) < AT_ONCE:
            if self._idle:
                worker = self._idle.pop()
            elif len(self._workers) < self._threads:
                worker = _Worker()
                name = f"{self._name}_{len(self._workers)}"
                worker.thread = threading.Thread(target=self._work, args=(worker,), name=name, daemon=True)
                self._workers.append(worker)
                worker.thread.start()
            else:
                return
            worker.job = self._line.popleft()
            self._running[worker] = time.monotonic()
            worker.wake.release()

    def _work(self, worker: _Worker) -> None:
        local, mutex, running, line = self._local, self._mutex, self._running, self._line
        worker.wake.acquire()
        while (job := worker.job) is not None:
            local.waited = running.get(worker, job.since) - job.since
            try:
                job.call(*job.args)
            except BaseException:  # noqa: BLE001 - a job must not take its thread along
                self._faults("a job failed")
            job.finish()
            worker.job = job = None  # what it held is free before this thread waits
            with mutex:
                running.pop(worker, None)
                if line and len(running) < AT_ONCE:
                    worker.job = line.popleft()
                    running[worker] = time.monotonic()
                    continue
                if self._closed:
                    return
                self._idle.append(worker)
            worker.wake.acquire()
