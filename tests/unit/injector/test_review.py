"""AdmissionReview v1: injector.md d.1, column "ours", row by row."""

from __future__ import annotations

import base64
import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from injector import review
from injector.core.decision import Decision, Outcome, Reason
from injector.core.inject import Result
from injector.review import ReviewCode, ReviewError
from tests.fakes import injector_reviews as reviews

SKIP = Decision(Outcome.SKIP, Reason.POD_OPT_OUT, "the pod says no")
DENY = Decision(Outcome.DENY, Reason.INVALID_OPTION, "2 options are wrong", warn=True)
INJECT = Decision(Outcome.INJECT, Reason.INJECTED, "the sidecar is added")


def response(answer: review.Answer) -> dict[str, Any]:
    envelope = json.loads(answer.body)
    assert (envelope["apiVersion"], envelope["kind"]) == ("admission.k8s.io/v1", "AdmissionReview")
    found: dict[str, Any] = envelope["response"]
    return found


@pytest.mark.parametrize(
    ("head", "code", "status"),
    [
        pytest.param(("GET", "application/json", "", 10), ReviewCode.METHOD, 405, id="d1-method"),
        pytest.param(("POST", "text/plain", "", 10), ReviewCode.MEDIA_TYPE, 415, id="d1-media-type"),
        pytest.param(("POST", "", "", 10), ReviewCode.MEDIA_TYPE, 415, id="d1-no-media-type"),
        pytest.param(("POST", "application/json", "gzip", 10), ReviewCode.ENCODING, 415, id="e7-gzip"),
        pytest.param(("POST", "application/json", "", 0), ReviewCode.EMPTY, 400, id="d1-empty"),
        pytest.param(
            ("POST", "application/json", "", 6 * 1024 * 1024 + 1), ReviewCode.TOO_LARGE, 413, id="d1-6MiB+1"
        ),
    ],
)
def test_heads_that_are_refused(head: tuple[str, str, str, int], code: ReviewCode, status: int) -> None:
    with pytest.raises(ReviewError, match=r"\S") as caught:
        review.check_head(*head)
    assert (caught.value.code, caught.value.status) == (code, status)


@pytest.mark.parametrize("kind", ["application/json", "Application/JSON", "application/json; charset=utf-8"])
def test_media_types_with_parameters_are_json(kind: str) -> None:
    review.check_head("POST", kind, "identity", 6 * 1024 * 1024)
    review.check_head("POST", kind, "", None)


def replaced(**changes: Any) -> bytes:
    return json.dumps(reviews.review() | changes).encode()


@pytest.mark.parametrize(
    ("body", "code", "text"),
    [
        pytest.param(b"", ReviewCode.EMPTY, "empty", id="empty"),
        pytest.param(b"{", ReviewCode.NOT_JSON, "not JSON", id="cut"),
        pytest.param(b"\xff\xfe", ReviewCode.NOT_JSON, "not JSON", id="not-utf8"),
        pytest.param(b"[" * 100_000, ReviewCode.NOT_JSON, "not JSON", id="deep"),
        pytest.param(b'{"a": NaN}', ReviewCode.NOT_JSON, "not JSON", id="nan"),
        pytest.param(b"[]", ReviewCode.REQUEST, "not an object", id="list"),
        pytest.param(b"null", ReviewCode.REQUEST, "not an object", id="null"),
        pytest.param(b"{}", ReviewCode.VERSION, "admission.k8s.io/v1", id="no-version"),
        pytest.param(
            replaced(apiVersion="admission.k8s.io/v1beta1"), ReviewCode.VERSION, "v1beta1", id="d1-v1beta1"
        ),
        pytest.param(replaced(kind="Review"), ReviewCode.VERSION, "Review", id="other-kind"),
        pytest.param(replaced(request=None), ReviewCode.REQUEST, "request is missing", id="d1-null-request"),
        pytest.param(replaced(request=[]), ReviewCode.REQUEST, "request is missing", id="list-request"),
        pytest.param(reviews.body(uid=None), ReviewCode.UID, "uid", id="null-uid"),
        pytest.param(reviews.body(uid=""), ReviewCode.UID, "uid", id="empty-uid"),
        pytest.param(reviews.body(uid=7), ReviewCode.UID, "uid", id="number-uid"),
        pytest.param(reviews.body(uid="x" * 129), ReviewCode.UID, "uid", id="long-uid"),
        pytest.param(reviews.body(kind=None), ReviewCode.REQUEST, "kind", id="null-kind"),
        pytest.param(reviews.body(operation=None), ReviewCode.REQUEST, "operation", id="null-operation"),
        pytest.param(reviews.body(namespace=7), ReviewCode.REQUEST, "namespace", id="number-namespace"),
        pytest.param(
            reviews.body(namespace="../secrets"), ReviewCode.REQUEST, "namespace", id="path-in-namespace"
        ),
    ],
)
def test_what_is_no_review_is_400(body: bytes, code: ReviewCode, text: str) -> None:
    with pytest.raises(ReviewError, match=text) as caught:
        review.parse(body)
    assert (caught.value.code, caught.value.status) == (code, 400)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"kind": {"group": "apps", "version": "v1", "kind": "Deployment"}}, id="d1-wrong-kind"),
        pytest.param({"operation": "UPDATE"}, id="d1-wrong-operation"),
        pytest.param({"subResource": "ephemeralcontainers"}, id="d1-subresource"),
        pytest.param({"kind": {}}, id="empty-kind"),
    ],
)
def test_other_requests_are_allowed_without_a_patch(changes: dict[str, Any]) -> None:
    answer = review.settle(review.parse(reviews.body(**changes)))
    assert answer is not None
    found = response(answer)
    assert found["allowed"] is True
    assert "patch" not in found
    assert found["uid"] == reviews.request()["uid"]
    assert (answer.outcome, answer.reason) == ("allowed", "not_applicable")


@pytest.mark.parametrize(
    ("pod", "text"),
    [
        pytest.param(None, "expected a pod", id="null"),
        pytest.param("pod", "expected a pod", id="text"),
    ],
)
def test_a_bad_pod_is_denied_with_400(pod: Any, text: str) -> None:
    answer = review.settle(review.parse(reviews.body(object=pod)))
    assert answer is not None
    found = response(answer)
    assert found["allowed"] is False
    assert (found["status"]["code"], found["status"]["reason"]) == (400, "BadRequest")
    assert text in found["status"]["message"]
    assert answer.reason == ReviewCode.BAD_POD
    assert found["auditAnnotations"]["reason"] == "review_bad_pod"


def test_a_pod_without_a_namespace_is_denied() -> None:
    answer = review.settle(review.parse(reviews.body(namespace="")))
    assert answer is not None
    assert "namespace is empty" in response(answer)["status"]["message"]


def test_a_patch_is_base64_json_patch_and_echoes_the_uid() -> None:
    """d.1: the uid is echoed, the patch is base64 with its type."""
    parsed = review.parse(reviews.body())
    assert review.settle(parsed) is None
    patch = ({"op": "add", "path": "/metadata/annotations", "value": {"a": "ü"}},)
    answer = review.answer(parsed, Result(decision=INJECT, patch=patch, audit={"reason": "injected"}))
    found = response(answer)
    assert found["uid"] == parsed.uid
    assert found["allowed"] is True
    assert found["patchType"] == "JSONPatch"
    raw = base64.b64decode(found["patch"])
    assert json.loads(raw) == list(patch)
    assert (answer.outcome, answer.patch_bytes) == ("patched", len(raw))
    assert "status" not in found


def test_no_operations_mean_no_patch_and_no_type() -> None:
    """d.2 (2): an empty list omits both fields."""
    up_to_date = Decision(Outcome.INJECT, Reason.UP_TO_DATE, "nothing to change")
    answer = review.answer(review.parse(reviews.body()), Result(decision=up_to_date))
    assert set(response(answer)) == {"uid", "allowed"}
    assert answer.outcome == "unchanged"


def test_a_skip_says_why_without_a_patch() -> None:
    answer = review.answer(
        review.parse(reviews.body()), Result(decision=SKIP, audit={"reason": "pod_opt_out"})
    )
    assert response(answer)["auditAnnotations"] == {"reason": "pod_opt_out"}
    assert answer.outcome == "skipped"


def test_invalid_options_are_denied_with_422_one_line_each() -> None:
    """d.1: denied, code 422, one line per key."""
    problems = tuple(f"invalid value 'x' for annotation 'k{i}': expected a number" for i in range(3))
    found = response(review.answer(review.parse(reviews.body()), Result(decision=DENY, problems=problems)))
    assert found["allowed"] is False
    assert found["status"]["code"] == 422
    assert found["status"]["message"].splitlines() == [
        "invalid_option: 2 options are wrong",
        *(f"- {p}" for p in problems),
    ]
    assert "warnings" not in found


def test_other_denials_are_403() -> None:
    deny = Decision(Outcome.DENY, Reason.HOST_NETWORK, "the namespace is strict")
    found = response(review.answer(review.parse(reviews.body()), Result(decision=deny)))
    assert (found["status"]["code"], found["status"]["reason"]) == (403, "Forbidden")


def test_a_denial_never_takes_a_patch_along() -> None:
    deny = Result(decision=DENY, patch=({"op": "add", "path": "/x", "value": 1},))
    assert "patch" not in response(review.answer(review.parse(reviews.body()), deny))


def test_a_denial_has_a_bounded_message() -> None:
    problems = tuple("p" * 900 for _ in range(100))
    found = response(review.answer(review.parse(reviews.body()), Result(decision=DENY, problems=problems)))
    message = found["status"]["message"]
    assert len(message) <= review.MAX_MESSAGE + 50
    assert message.endswith("more")


def test_the_decision_warns_once() -> None:
    warned = Decision(Outcome.SKIP, Reason.HOST_NETWORK, "it uses the node's network", warn=True)
    plain = response(review.answer(review.parse(reviews.body()), Result(decision=warned)))
    assert plain["warnings"] == ["host_network: it uses the node's network"]
    both = Result(decision=warned, warnings=(warned.message, "b"))
    assert response(review.answer(review.parse(reviews.body()), both))["warnings"] == [warned.message, "b"]


def test_audit_annotations_are_bounded_and_printable() -> None:
    found = response(
        review.answer(review.parse(reviews.body()), Result(decision=SKIP, audit={"message": "a\n" * 4000}))
    )
    assert len(found["auditAnnotations"]["message"]) == review.MAX_AUDIT
    assert found["auditAnnotations"]["message"].isprintable()


@given(st.lists(st.text(max_size=600), max_size=60))
def test_warnings_fit_what_an_api_server_passes_on(texts: list[str]) -> None:
    """d.1: 120 characters each, 4096 in total; control characters would break the header."""
    found = review.bounded_warnings(texts)
    assert all(0 < len(line) <= review.MAX_WARNING and line.isprintable() for line in found)
    assert sum(map(len, found)) <= review.MAX_WARNINGS


def test_dropped_warnings_are_counted() -> None:
    found = review.bounded_warnings(["w" * 119] * 40)
    assert found[-1].startswith("7 more warnings")


@given(st.binary(max_size=300))
def test_any_bytes_are_refused_or_read(body: bytes) -> None:
    with contextlib.suppress(ReviewError):
        review.parse(body)
