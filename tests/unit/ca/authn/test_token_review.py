"""TokenReview, the strict option, row by row (F-42, F-43, F-48, F-49, F-53), with its cache and its rate."""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from ca.authn import AuthnCode, AuthnError, Caller, Method
from ca.authn import token_review as module
from ca.authn.token_review import PATH, TokenReviewer
from mesh.errors import Category
from mesh.spiffe import SpiffeId
from tests.fakes.kube_api import FakeKube

CALLER = Caller(
    spiffe_id=SpiffeId.parse("spiffe://cluster.local/ns/demo/sa/web"),
    method=Method.TOKEN,
    expires=dt.datetime(2026, 6, 1, tzinfo=dt.UTC),
    pod_name="web-1",
    pod_uid="u1",
)


def _yes(**changes: Any) -> dict[str, Any]:
    user = {
        "username": "system:serviceaccount:demo:web",
        "groups": ["system:serviceaccounts", "system:authenticated"],
        "extra": {"authentication.kubernetes.io/pod-uid": ["u1"]},
    }
    return {
        "authenticated": True,
        "audiences": ["istio-ca"],
        "user": {**user, **changes.pop("user", {})},
        **changes,
    }


class Lab:
    def __init__(self, kube: FakeKube, **options: Any) -> None:
        self.kube = kube
        self.seconds = 0.0
        self.counted: list[str] = []
        self.reviewer = TokenReviewer(
            kube.api(timeout=options.pop("timeout", 5.0)),
            ["istio-ca", "gatehouse-ca"],
            monotonic=lambda: self.seconds,
            count=self.counted.append,
            **options,
        )

    def refused(self, token: str = "t", caller: Caller = CALLER) -> AuthnError:
        with pytest.raises(AuthnError) as e:
            self.reviewer.review(token, caller)
        return e.value


@pytest.fixture
def kube() -> Iterator[FakeKube]:
    with FakeKube() as server:
        server.token_review = lambda _spec: _yes()
        yield server


def test_yes(kube: FakeKube) -> None:
    lab = Lab(kube)
    lab.reviewer.review("tok", CALLER)
    sent = kube.asked("POST", PATH)[0].body["spec"]
    assert sent == {"token": "tok", "audiences": ["gatehouse-ca", "istio-ca"]}
    assert lab.counted == ["accepted"]


@pytest.mark.parametrize(
    ("status", "code"),
    [
        pytest.param({"authenticated": False}, AuthnCode.REVIEW_REFUSED, id="no"),
        pytest.param({}, AuthnCode.REVIEW_REFUSED, id="empty"),
        pytest.param({"authenticated": "true"}, AuthnCode.REVIEW_REFUSED, id="not-a-boolean"),
        pytest.param({"error": "token expired"}, AuthnCode.REVIEW_REFUSED, id="error"),
        pytest.param(_yes(audiences=None), AuthnCode.REVIEW_AUDIENCE, id="F-43-absent"),
        pytest.param(_yes(audiences=[]), AuthnCode.REVIEW_AUDIENCE, id="F-42-empty"),
        pytest.param(_yes(audiences=["https://k8s"]), AuthnCode.REVIEW_AUDIENCE, id="F-42-disjoint"),
        pytest.param(_yes(audiences="istio-ca"), AuthnCode.REVIEW_AUDIENCE, id="F-42-text"),
        pytest.param(_yes(user={"username": "admin"}), AuthnCode.REVIEW_MISMATCH, id="F-48-human"),
        pytest.param(_yes(user={"username": "system:node:n1"}), AuthnCode.REVIEW_MISMATCH, id="F-48-node"),
        pytest.param(
            _yes(user={"username": "system:serviceaccount:demo"}),
            AuthnCode.REVIEW_MISMATCH,
            id="F-49-three-parts",
        ),
        pytest.param(
            _yes(user={"username": "system:serviceaccount:demo:web:x"}),
            AuthnCode.REVIEW_MISMATCH,
            id="F-49-five-parts",
        ),
        pytest.param(
            _yes(user={"username": "system:serviceaccount:demo:api"}),
            AuthnCode.REVIEW_MISMATCH,
            id="other-account",
        ),
        pytest.param(_yes(user={"username": None}), AuthnCode.REVIEW_MISMATCH, id="no-name"),
        pytest.param({**_yes(), "user": "web"}, AuthnCode.REVIEW_MISMATCH, id="user-is-text"),
        pytest.param(_yes(user={"groups": ["x"]}), AuthnCode.REVIEW_MISMATCH, id="other-group"),
        pytest.param(_yes(user={"groups": None}), AuthnCode.REVIEW_MISMATCH, id="no-groups"),
        pytest.param(_yes(user={"extra": None}), AuthnCode.REVIEW_MISMATCH, id="F-44-not-pod-bound"),
        pytest.param(
            _yes(user={"extra": {"authentication.kubernetes.io/pod-uid": ["u2"]}}),
            AuthnCode.REVIEW_MISMATCH,
            id="F-46-other-pod",
        ),
    ],
)
def test_no(kube: FakeKube, status: dict[str, Any], code: AuthnCode) -> None:
    kube.token_review = lambda _spec: status
    error = Lab(kube).refused()
    assert (error.code, error.category) == (code, Category.UNAUTHENTICATED)


def _routed(answer: Any) -> Any:
    def apply(kube: FakeKube) -> None:
        kube.routes["POST", PATH] = lambda _r: (201, answer)

    return apply


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(lambda k: k.fail(500), id="F-53-500"),
        pytest.param(lambda k: k.fail(503), id="F-53-503"),
        pytest.param(lambda k: k.fail(429), id="F-53-429"),
        pytest.param(lambda k: k.fail(403), id="F-53-403-no-right-to-ask"),
        pytest.param(lambda k: k.silence(), id="F-53-silence"),
        pytest.param(lambda k: k.cut(), id="F-53-cut"),
        pytest.param(lambda k: k.garbage(), id="F-53-garbage"),
        pytest.param(lambda k: k.stop(), id="F-53-away"),
        pytest.param(_routed([]), id="F-53-array"),
        pytest.param(_routed({"status": "yes"}), id="F-53-status-is-text"),
        pytest.param(_routed({}), id="F-53-no-status"),
    ],
)
def test_not_known_is_never_a_yes(kube: FakeKube, fault: Any) -> None:
    fault(kube)
    lab = Lab(kube, timeout=0.3)
    error = lab.refused("s3cret")
    assert (error.code, error.category) == (AuthnCode.REVIEW_FAILED, Category.UNAVAILABLE)
    assert lab.counted == ["failed"]
    assert "s3cret" not in error.private


def test_a_yes_is_kept_for_ten_seconds(kube: FakeKube) -> None:
    lab = Lab(kube)
    for _ in range(3):
        lab.reviewer.review("tok", CALLER)
        lab.seconds += 4.9
    assert lab.counted == ["accepted", "cached", "cached"]
    lab.seconds += 0.1
    lab.reviewer.review("tok", CALLER)
    assert lab.counted[-1] == "accepted"
    assert all(isinstance(key, bytes) and len(key) == 32 for key in lab.reviewer._kept)


def test_a_no_is_not_kept(kube: FakeKube) -> None:
    lab = Lab(kube)
    kube.token_review = lambda _spec: {"authenticated": False}
    lab.refused()
    kube.token_review = lambda _spec: _yes()
    lab.reviewer.review("t", CALLER)


def test_what_is_kept_is_checked_for_each_caller(kube: FakeKube) -> None:
    lab = Lab(kube)
    lab.reviewer.review("tok", CALLER)
    other = Caller(
        spiffe_id=SpiffeId.parse("spiffe://cluster.local/ns/demo/sa/api"),
        method=Method.TOKEN,
        expires=CALLER.expires,
    )
    assert lab.refused("tok", other).code is AuthnCode.REVIEW_MISMATCH


def test_only_so_many_are_kept(kube: FakeKube, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_KEPT", 2)
    lab = Lab(kube)
    for token in "abca":
        lab.reviewer.review(token, CALLER)
    assert lab.counted == ["accepted"] * 4


def test_own_rate(kube: FakeKube) -> None:
    lab = Lab(kube, rate=2.0, burst=3)
    for i in range(3):
        lab.reviewer.review(f"t{i}", CALLER)
    error = lab.refused("t3")
    assert (error.code, error.category) == (AuthnCode.REVIEW_THROTTLED, Category.UNAVAILABLE)
    lab.reviewer.review("t0", CALLER)  # from memory: costs nothing
    lab.seconds += 0.5
    lab.reviewer.review("t3", CALLER)
    assert len(kube.asked("POST", PATH)) == 4


@pytest.mark.parametrize("good", [True, False], ids=["yes", "failed"])
def test_same_token_is_asked_about_once(kube: FakeKube, good: bool) -> None:
    entered, gate = threading.Event(), threading.Event()

    def slow(_request: Any) -> tuple[int, Any]:
        entered.set()
        gate.wait(60)
        return (201, {"status": _yes()}) if good else (500, {})

    kube.routes["POST", PATH] = slow
    lab = Lab(kube)
    ends: list[object] = []

    def go() -> None:
        try:
            lab.reviewer.review("tok", CALLER)
        except AuthnError as e:
            ends.append(e.code)
        else:
            ends.append("yes")

    threads = [threading.Thread(target=go) for _ in range(5)]
    for thread in threads:
        thread.start()
    assert entered.wait(30)
    pause = threading.Event()
    for _ in range(500):
        if lab.counted.count("shared") == 4:
            break
        pause.wait(0.01)
    gate.set()
    for thread in threads:
        thread.join(30)
    assert ends == (["yes"] if good else [AuthnCode.REVIEW_FAILED]) * 5
    assert len(kube.asked("POST", PATH)) == 1


def test_nobody_waits_for_ever_for_another(kube: FakeKube) -> None:
    entered, gate = threading.Event(), threading.Event()

    def slow(_request: Any) -> tuple[int, Any]:
        entered.set()
        gate.wait(60)
        return 201, {"status": _yes()}

    kube.routes["POST", PATH] = slow
    lab = Lab(kube, patience=dt.timedelta(seconds=0.05))
    thread = threading.Thread(target=lambda: lab.reviewer.review("tok", CALLER))
    thread.start()
    assert entered.wait(30)
    assert lab.refused("tok").code is AuthnCode.REVIEW_FAILED
    gate.set()
    thread.join(30)


def test_counting_is_optional(kube: FakeKube) -> None:
    TokenReviewer(kube.api(), ["istio-ca"], monotonic=lambda: 0.0).review("t", CALLER)
