"""Continuous load in the background: what counts is that nothing fails.

Four flows touch every identity, as client and as server, on kept and on fresh connections.
"""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from examples.demo import layout as at
from examples.demo.apps import GREETING
from examples.demo.layout import Layout
from examples.demo.plain import call, read_greeting
from examples.demo.svid import Identity, Watches
from examples.demo.tls import attempt, client_context, exchange

_PAUSE = 0.01
_KEPT_FAILURES = 20
_TIMEOUT = 5.0


class LoadError(Exception):
    """One exchange that did not end as it should."""


@dataclass(frozen=True, slots=True)
class Tally:
    """What came of the load so far."""

    requests: int
    failures: int
    by_flow: dict[str, int]
    messages: tuple[str, ...]

    def since(self, earlier: Tally) -> Tally:
        """The part that came after `earlier`."""
        flows = {name: count - earlier.by_flow.get(name, 0) for name, count in self.by_flow.items()}
        return Tally(
            self.requests - earlier.requests,
            self.failures - earlier.failures,
            flows,
            self.messages[len(earlier.messages) :],
        )

    @property
    def short(self) -> str:
        """`0 of 4,711 failed`."""
        return f"{self.failures} of {self.requests:,} failed"

    @property
    def flows(self) -> str:
        """Requests by flow."""
        return ", ".join(f"{name} {count:,}" for name, count in sorted(self.by_flow.items()))


class Load:
    """One thread for each flow, from `start` to `stop`."""

    def __init__(self, layout: Layout, watches: Watches) -> None:
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._requests: Counter[str] = Counter()
        self._failures = 0
        self._began = 0.0
        self._messages: list[str] = []
        self._kept = _Kept((layout.host("web"), at.EGRESS_REVIEWS), "/reviews/load")
        flows: dict[str, Callable[[], None]] = {
            "web -> reviews, kept connection": self._kept,
            "web -> reviews, full handshake": _handshakes(layout.proxy("reviews"), watches),
            "intruder -> web, fresh connection": _fresh((layout.host("intruder"), at.EGRESS_WEB), "/welcome"),
            "ratings -> database, full handshake": _database((layout.host("ratings"), at.EGRESS_DATABASE)),
        }
        self._threads = [
            threading.Thread(target=self._run, args=(name, flow), name=f"load: {name}", daemon=True)
            for name, flow in flows.items()
        ]

    def start(self) -> None:
        """Begin; once."""
        self._began = time.monotonic()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End all flows; safe to call again."""
        self._stop.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(_TIMEOUT)
        self._kept.close()

    def seconds(self) -> float:
        """Time since the beginning."""
        return time.monotonic() - self._began

    def tally(self) -> Tally:
        """What has come of it so far."""
        with self._lock:
            counts = dict(self._requests)
            return Tally(sum(counts.values()), self._failures, counts, tuple(self._messages))

    def _run(self, name: str, once: Callable[[], None]) -> None:
        while not self._stop.is_set():
            problem = ""
            try:
                once()
            except (OSError, LoadError, http.client.HTTPException) as error:
                problem = f"{time.strftime('%H:%M:%S')} {name}: {type(error).__name__}: {error}"
                if once is self._kept:
                    self._kept.close()  # the next request shall have a connection that works
            with self._lock:
                self._requests[name] += 1
                if problem:
                    self._failures += 1
                    if len(self._messages) < _KEPT_FAILURES:
                        self._messages.append(problem)
            self._stop.wait(_PAUSE)


def _require_ok(status: int | None, text: str) -> None:
    if status != http.client.OK:
        raise LoadError(f"{status} {text[:100]}")


class _Kept:
    """One connection for all requests."""

    def __init__(self, target: tuple[str, int], path: str) -> None:
        self._target = target
        self._path = path
        self._connection: socket.socket | None = None

    def __call__(self) -> None:
        if self._connection is None:
            self._connection = socket.create_connection(self._target, _TIMEOUT)
        _require_ok(*exchange(self._connection, "GET", self._path, {}))

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _fresh(target: tuple[str, int], path: str) -> Callable[[], None]:
    def once() -> None:
        answer = call(target, path)
        _require_ok(answer.status, answer.body or answer.refusal)

    return once


def _handshakes(target: tuple[str, int], watches: Watches) -> Callable[[], None]:
    def once() -> None:
        identity: Identity | None = watches["web"].current
        if identity is None:
            raise LoadError("web has no SVID")
        outcome = attempt(target, client_context(identity), "/reviews/load")
        _require_ok(outcome.status, outcome.body or outcome.refusal)
        if outcome.server_id != at.spiffe_id("reviews"):
            raise LoadError(f"the server proved {outcome.server_id!r}")

    return once


def _database(target: tuple[str, int]) -> Callable[[], None]:
    def once() -> None:
        greeting = read_greeting(target)
        if greeting != GREETING:
            raise LoadError(f"the database greeted with {greeting[:40]!r}")

    return once
