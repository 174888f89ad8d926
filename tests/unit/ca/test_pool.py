"""The threads that serve requests: how many run, what a slow job may hold up, how they end."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from ca.pool import AT_ONCE, MOMENT, Job, RequestPool

DEADLINE = 20


class Slow:
    """A job that says when it has started, and ends when it is told to."""

    def __init__(self) -> None:
        self.started = threading.Event()
        self.end = threading.Event()

    def __call__(self) -> None:
        self.started.set()
        assert self.end.wait(DEADLINE)


@pytest.fixture
def faults() -> list[str]:
    return []


@pytest.fixture
def pool(faults: list[str]) -> Iterator[RequestPool]:
    made = RequestPool(16, name="test", faults=faults.append)
    yield made
    made.shutdown(wait=False)


def ended(job: Job) -> threading.Event:
    event = threading.Event()
    job.add_done_callback(lambda _: event.set())
    return event


def later() -> float:
    """A time at which everything that runs now has run for too long."""
    return time.monotonic() + 2 * MOMENT


def test_jobs_run_with_their_arguments(pool: RequestPool) -> None:
    found: list[int] = []
    jobs = [ended(pool.submit(found.append, n)) for n in range(50)]
    assert all(job.wait(DEADLINE) for job in jobs)
    assert sorted(found) == list(range(50))
    assert pool.started <= AT_ONCE


def test_a_callback_comes_once_however_late_it_is_given(pool: RequestPool) -> None:
    calls: list[str] = []
    job = pool.submit(lambda: None)
    assert ended(job).wait(DEADLINE)
    job.add_done_callback(lambda _: calls.append("late"))
    job.finish()
    assert calls == ["late"]


def test_few_run_at_once_until_some_take_long(pool: RequestPool) -> None:
    jobs = [Slow() for _ in range(AT_ONCE + 2)]
    for job in jobs:
        pool.submit(job)
    assert all(job.started.wait(DEADLINE) for job in jobs[:AT_ONCE])
    assert (pool.started, jobs[AT_ONCE].started.is_set()) == (AT_ONCE, False)
    pool.relieve(later())
    assert all(job.started.wait(DEADLINE) for job in jobs[AT_ONCE:]), "those that wait hold up nobody"
    for job in jobs:
        job.end.set()


def test_more_than_the_threads_never_run(faults: list[str]) -> None:
    pool = RequestPool(2, name="test", faults=faults.append)
    jobs = [Slow() for _ in range(3)]
    for job in jobs:
        pool.submit(job)
        pool.relieve(later())
    assert pool.started == 2
    assert not jobs[2].started.is_set()
    jobs[0].end.set()
    assert jobs[2].started.wait(DEADLINE)
    jobs[1].end.set()
    jobs[2].end.set()
    pool.shutdown()


def test_a_job_knows_how_long_it_stood_in_line(pool: RequestPool) -> None:
    waits: list[float] = []
    first = [Slow() for _ in range(AT_ONCE)]
    for job in first:
        pool.submit(job)
    last = ended(pool.submit(lambda: waits.append(pool.waited())))
    before = time.monotonic()
    assert all(job.started.wait(DEADLINE) for job in first)
    least = time.monotonic() - before
    for job in first:
        job.end.set()
    assert last.wait(DEADLINE)
    assert waits[0] >= least
    assert pool.waited() == 0, "this thread is none of the pool's"


def test_a_job_that_fails_is_told_and_takes_no_thread_along(pool: RequestPool, faults: list[str]) -> None:
    def fail() -> None:
        raise SystemExit(3)

    assert all(ended(pool.submit(fail)).wait(DEADLINE) for _ in range(AT_ONCE + 1))
    assert faults == ["a job failed"] * (AT_ONCE + 1)
    assert ended(pool.submit(lambda: None)).wait(DEADLINE)


def test_shutdown_ends_what_was_handed_over_and_refuses_the_rest(pool: RequestPool) -> None:
    found: list[int] = []
    for n in range(20):
        pool.submit(found.append, n)
    pool.shutdown()
    pool.shutdown()
    assert sorted(found) == list(range(20))
    with pytest.raises(RuntimeError, match="was shut down"):
        pool.submit(found.append, 20)


def test_shutdown_may_forget_what_stands_in_line(pool: RequestPool) -> None:
    found: list[int] = []
    running = [Slow() for _ in range(AT_ONCE)]
    for job in running:
        pool.submit(job)
    pool.submit(found.append, 1)
    pool.shutdown(wait=False, cancel_futures=True)
    for job in running:
        job.end.set()
    pool.shutdown()
    assert found == []
