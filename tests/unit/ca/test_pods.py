"""Live pods: who may have a certificate, row by row (F-45, F-46), and who waits how long."""

from __future__ import annotations

import datetime as dt
import threading
from typing import Any

import pytest

from ca import pods as module
from ca.authn import AuthnCode, AuthnError, Caller, Method
from ca.pods import LivePods, PodFact, read_pod
from mesh.errors import Category
from mesh.kube.store import Store
from mesh.spiffe import SpiffeId

NOW = dt.datetime(2026, 6, 1, 12, tzinfo=dt.UTC)
KEY = ("demo", "web-1")
GOOD = PodFact(uid="u1", service_account="web", node="n1", ends=None, ended=False)


def _caller(**changes: Any) -> Caller:
    return Caller(
        **{
            "spiffe_id": SpiffeId.parse("spiffe://cluster.local/ns/demo/sa/web"),
            "method": Method.TOKEN,
            "expires": NOW,
            "pod_name": "web-1",
            "pod_uid": "u1",
            "node_name": "n1",
            **changes,
        }
    )


class Lab:
    def __init__(self, *pods: PodFact, synced: bool = True, patience: float = 0.0) -> None:
        self.store: Store[PodFact] = Store()
        self.failing = False
        self.seconds = 0.0
        if synced:
            self.store.replace(dict.fromkeys([KEY] if pods else [], pods[0] if pods else GOOD))
        self.live = LivePods(
            self.store,
            failing=lambda: self.failing,
            monotonic=lambda: self.seconds,
            patience=dt.timedelta(seconds=patience),
        )

    def refused(self, now: dt.datetime = NOW, **changes: Any) -> AuthnError:
        with pytest.raises(AuthnError) as e:
            self.live.check(_caller(**changes), now)
        return e.value


def _with(**changes: Any) -> PodFact:
    facts = {"uid": "u1", "service_account": "web", "node": "n1", "ends": None, "ended": False}
    return PodFact(**{**facts, **changes})


@pytest.mark.parametrize(
    ("pod", "caller"),
    [
        pytest.param(GOOD, {}, id="live"),
        pytest.param(GOOD, {"node_name": ""}, id="token-without-node-1.20"),
        pytest.param(_with(node=""), {}, id="not-scheduled-in-our-view"),
        pytest.param(_with(ends=NOW + dt.timedelta(seconds=20)), {}, id="within-its-grace"),
        pytest.param(_with(ends=NOW - dt.timedelta(seconds=30)), {}, id="grace-just-over"),
        pytest.param(GOOD, {"pod_uid": "", "pod_name": ""}, id="no-pod-in-the-credential"),
    ],
)
def test_passes(pod: PodFact, caller: dict[str, Any]) -> None:
    lab = Lab(pod)
    lab.live.check(_caller(**caller), NOW)
    assert (len(lab.live), lab.live.synced) == (1, True)


@pytest.mark.parametrize(
    ("pod", "caller", "code", "words"),
    [
        pytest.param(_with(uid="u2"), {}, AuthnCode.POD_OTHER, "has UID u2", id="F-46-recreated"),
        pytest.param(_with(service_account="x"), {}, AuthnCode.POD_OTHER, "runs as 'x'", id="other-account"),
        pytest.param(_with(node="n2"), {}, AuthnCode.POD_OTHER, "is on 'n2'", id="F-47-other-node"),
        pytest.param(_with(ended=True), {}, AuthnCode.POD_GONE, "has ended", id="ended"),
        pytest.param(
            _with(ends=NOW - dt.timedelta(seconds=31)), {}, AuthnCode.POD_GONE, "should have ended", id="F-45"
        ),
        pytest.param(GOOD, {"pod_name": "web-2"}, AuthnCode.POD_UNKNOWN, "was not seen", id="unseen"),
    ],
)
def test_refuses(pod: PodFact, caller: dict[str, Any], code: AuthnCode, words: str) -> None:
    error = Lab(pod).refused(**caller)
    assert error.code is code
    assert words in error.private
    later = code is AuthnCode.POD_UNKNOWN
    assert error.category is (Category.UNAVAILABLE if later else Category.UNAUTHENTICATED)


def test_not_listed_yet_is_later() -> None:
    error = Lab(synced=False).refused()
    assert (error.code, error.category) == (AuthnCode.PODS_NOT_LOADED, Category.UNAVAILABLE)


def test_deleted_pod_is_remembered() -> None:
    """F-45: refused at once, without a wait."""
    lab = Lab(GOOD, patience=1000)
    lab.store.remove(KEY)
    assert lab.refused().code is AuthnCode.POD_GONE


def test_recreated_pod_makes_the_old_one_gone() -> None:
    """F-46, seen while it happened."""
    lab = Lab(GOOD, patience=1000)
    lab.store.put(KEY, _with(uid="u2"))
    assert lab.refused().code is AuthnCode.POD_GONE
    lab.live.check(_caller(pod_uid="u2"), NOW)


def test_deletion_during_an_outage_is_found() -> None:
    lab = Lab(GOOD, patience=1000)
    lab.store.replace({})
    assert lab.refused().code is AuthnCode.POD_GONE


def test_only_so_many_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_GONE", 2)
    lab = Lab()
    for i in range(4):
        lab.store.put(KEY, _with(uid=f"u{i}"))
    lab.store.remove(KEY)
    assert list(lab.live._gone) == ["u2", "u3"]


def _wait_for_waiter(lab: Lab) -> None:
    pause = threading.Event()
    for _ in range(500):
        if lab.live._waiters:
            return
        pause.wait(0.01)
    raise AssertionError("nobody waits")


def _in_thread(lab: Lab, **changes: Any) -> tuple[threading.Thread, list[object]]:
    ends: list[object] = []

    def go() -> None:
        try:
            lab.live.check(_caller(**changes), NOW)
        except AuthnError as e:
            ends.append(e.code)
        else:
            ends.append("passed")

    thread = threading.Thread(target=go)
    thread.start()
    _wait_for_waiter(lab)
    return thread, ends


def test_pod_that_comes_in_time_is_waited_for() -> None:
    """The watch is a moment behind the kubelet."""
    lab = Lab(patience=1000)
    thread, ends = _in_thread(lab)
    lab.store.put(("demo", "other"), GOOD)
    assert thread.is_alive()
    lab.store.put(KEY, GOOD)
    thread.join(30)
    assert ends == ["passed"]


def test_stateful_pod_that_was_recreated_is_waited_for() -> None:
    lab = Lab(_with(uid="u0"), patience=1000)
    thread, ends = _in_thread(lab)
    lab.store.put(KEY, GOOD)
    thread.join(30)
    assert ends == ["passed"]


def test_nobody_waits_while_the_api_server_is_away() -> None:
    lab = Lab(patience=1000)
    lab.failing = True
    assert lab.refused().code is AuthnCode.POD_UNKNOWN


def test_few_threads_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WAITERS", 1)
    lab = Lab(patience=1000)
    thread, ends = _in_thread(lab)
    assert lab.refused(pod_name="web-2", pod_uid="u9").code is AuthnCode.POD_UNKNOWN
    lab.seconds = 2000
    lab.store.put(("demo", "any"), GOOD)
    thread.join(30)
    assert ends == [AuthnCode.POD_UNKNOWN]


@pytest.mark.parametrize(
    ("item", "fact"),
    [
        ({}, None),
        ({"metadata": {"uid": "u"}}, PodFact("u", "default", "", None, ended=False)),
        (
            {
                "metadata": {"uid": "u", "deletionTimestamp": "2026-06-01T12:00:00Z"},
                "spec": {"serviceAccountName": "s", "nodeName": "n"},
                "status": {"phase": "Succeeded"},
            },
            PodFact("u", "s", "n", NOW, ended=True),
        ),
        (
            {
                "metadata": {"uid": "u", "deletionTimestamp": "soon"},
                "spec": None,
                "status": {"phase": "Failed"},
            },
            PodFact("u", "default", "", dt.datetime.min.replace(tzinfo=dt.UTC), ended=True),
        ),
        (
            {"metadata": {"uid": "u", "deletionTimestamp": "2026-06-01T12:00:00"}, "spec": "x"},
            PodFact("u", "default", "", NOW, ended=False),
        ),
    ],
    ids=["empty", "least", "full", "strange-time", "no-zone"],
)
def test_reading(item: dict[str, Any], fact: PodFact | None) -> None:
    assert read_pod(item) == fact
