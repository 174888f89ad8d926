"""AdmissionReview v1: bytes in, bytes out. The only module that knows its shape.

What the API server does with an answer decides what each refusal is. An HTTP status other than 200
is a *call failure*: it applies the webhook's failurePolicy. `allowed: false` is a *denial*, always. So
what is wrong with the request itself, or with us, is a status; what is wrong with the pod is a denial.

Bounds: 6 MiB of request; warnings of 120 characters each and 4096 together (the API server cuts and
drops longer ones); 8 KiB of denial; 1 KiB for each audit annotation.
"""

from __future__ import annotations

import base64
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from injector.core.decision import Decision, Outcome, Reason, applicable
from injector.core.inject import Result
from mesh.errors import Category, Code, MeshError

API_VERSION: Final = "admission.k8s.io/v1"
KIND: Final = "AdmissionReview"
MEDIA_TYPE: Final = "application/json"
MAX_BODY: Final = 6 << 20
MAX_WARNING: Final = 120
MAX_WARNINGS: Final = 4096
MAX_MESSAGE: Final = 8 << 10
MAX_AUDIT: Final = 1 << 10
_MAX_UID: Final = 128
_NAMESPACE: Final = re.compile(r"([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)?")
_UNPROCESSABLE: Final = frozenset(
    {Reason.INVALID_OPTION, Reason.INVALID_INJECT_VALUE, Reason.UID_CLASH, Reason.GID_CLASH}
)

_REASONS: Final = {400: "BadRequest", 403: "Forbidden", 422: "Invalid"}


class ReviewCode(Code):
    """Why a request got no review; `bad_pod` and `bad_policy` are denials, all others a status."""

    METHOD = "review_method"
    MEDIA_TYPE = "review_media_type"
    ENCODING = "review_content_encoding"
    TOO_LARGE = "review_too_large"
    EMPTY = "review_empty"
    CUT = "review_cut"
    SLOW = "review_slow"
    NOT_JSON = "review_not_json"
    VERSION = "review_version"
    REQUEST = "review_request"
    UID = "review_uid"
    BAD_POD = "review_bad_pod"
    BAD_POLICY = "review_bad_policy"
    LATE = "review_late"
    NOT_READY = "review_not_ready"
    INTERNAL = "review_internal"


DENIALS: Final = frozenset({ReviewCode.BAD_POD, ReviewCode.BAD_POLICY})
"""Codes that stand in a review; all others come with none."""


class ReviewError(MeshError):
    """A request that is no AdmissionReview, or that cannot be answered now.

    Attributes:
        status: of the HTTP answer.
    """

    def __init__(
        self,
        code: ReviewCode,
        status: int,
        public: str,
        *,
        category: Category = Category.INVALID_ARGUMENT,
        private: str | None = None,
    ) -> None:
        super().__init__(code, public, category=category, private=private)
        self.status = status


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request that can be answered, whatever it is about.

    Attributes:
        namespace: of the request; empty for objects of the cluster.
        raw: the request as it came; `kind` is an object and `operation` a text.
    """

    uid: str
    namespace: str
    dry_run: bool
    raw: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Review:
    """A request about a pod.

    Attributes:
        namespace: of the request; the pod's own is empty when a controller creates it.
        pod: raw JSON; empty when `settled` or `fault` says that it is not to be looked at.
        settled: the decision about a request that is not the creation of a pod.
        fault: why there is no pod to look at, empty when there is one. What is wrong with the shape of
            one is found by `injector.core.podjson`.
    """

    uid: str
    namespace: str
    dry_run: bool = False
    pod: Mapping[str, Any]
    settled: Decision | None = None
    fault: str = ""


def check_head(method: str, media_type: str, encoding: str, length: int | None) -> None:
    """What the head of a request tells before its body is read.

    Args:
        media_type: value of Content-Type, with or without parameters.
        encoding: value of Content-Encoding.
        length: Content-Length; None when the body is chunked.

    Raises:
        ReviewError: 405, 415, 400 or 413.
    """
    if method != "POST":
        raise ReviewError(ReviewCode.METHOD, 405, f"method {method[:20]!r}: reviews are sent by POST")
    if media_type.partition(";")[0].strip().lower() != MEDIA_TYPE:
        raise ReviewError(
            ReviewCode.MEDIA_TYPE, 415, f"Content-Type {media_type[:80]!r}: allowed is {MEDIA_TYPE}"
        )
    if encoding.strip().lower() not in {"", "identity"}:
        raise ReviewError(
            ReviewCode.ENCODING, 415, f"Content-Encoding {encoding[:40]!r}: send the body as it is"
        )
    if length == 0:
        raise ReviewError(ReviewCode.EMPTY, 400, "the body is empty; send an AdmissionReview")
    if length is not None and length > MAX_BODY:
        raise too_large()


def too_large() -> ReviewError:
    """The refusal of a body beyond the bound."""
    return ReviewError(ReviewCode.TOO_LARGE, 413, f"the body is over the limit of {MAX_BODY} bytes")


def read_request(body: bytes) -> Request:
    """Read a review, of any kind of object.

    Raises:
        ReviewError: 400; it is not an AdmissionReview of version v1 that can be answered.
    """
    if not body:
        raise ReviewError(ReviewCode.EMPTY, 400, "the body is empty; send an AdmissionReview")
    try:
        review = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ReviewError(ReviewCode.NOT_JSON, 400, f"the body is not JSON: {error}"[:200]) from error
    if not isinstance(review, dict):
        raise ReviewError(ReviewCode.REQUEST, 400, "the body is not an object; send an AdmissionReview")
    found = (review.get("apiVersion"), review.get("kind"))
    if found != (API_VERSION, KIND):
        raise ReviewError(
            ReviewCode.VERSION,
            400,
            f"found {found[0]!r:.60} {found[1]!r:.60}; allowed is {API_VERSION} {KIND} (the webhook"
            " configuration must say admissionReviewVersions: [v1])",
        )
    request = review.get("request")
    if not isinstance(request, dict):
        raise ReviewError(ReviewCode.REQUEST, 400, "request is missing or not an object")
    uid = request.get("uid")
    if not isinstance(uid, str) or not 0 < len(uid) <= _MAX_UID:
        raise ReviewError(ReviewCode.UID, 400, "request.uid is missing, or not a short text")
    kind, namespace = request.get("kind"), request.get("namespace", "")
    if not isinstance(kind, dict) or not isinstance(request.get("operation"), str):
        raise ReviewError(ReviewCode.REQUEST, 400, "request.kind or request.operation is missing")
    if not isinstance(namespace, str) or not _NAMESPACE.fullmatch(namespace):
        raise ReviewError(ReviewCode.REQUEST, 400, "request.namespace is not the name of a namespace")
    return Request(uid=uid, namespace=namespace, dry_run=request.get("dryRun") is True, raw=request)


def parse(body: bytes) -> Review:
    """Read a review of a pod; see `read_request`."""
    return of_pod(read_request(body))


def of_pod(request: Request) -> Review:
    """What a request says about a pod."""
    uid, namespace, dry_run = request.uid, request.namespace, request.dry_run
    settled = applicable(request.raw)
    if settled is not None:
        return Review(uid=uid, namespace=namespace, dry_run=dry_run, pod={}, settled=settled)
    pod: Any = request.raw.get("object")
    fault = "" if isinstance(pod, dict) else "object: expected a pod"
    if not namespace and not fault:
        fault = "request.namespace is empty: a pod lives in a namespace"
    return Review(uid=uid, namespace=namespace, dry_run=dry_run, pod={} if fault else pod, fault=fault)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A review with its response, ready to be sent.

    Attributes:
        outcome: for the metric: injected, skipped, denied, allowed.
        reason: code for the metric.
        patch_bytes: size of the patch before base64.
    """

    body: bytes
    outcome: str
    reason: str
    patch_bytes: int = 0


def answer(review: Review, result: Result) -> Answer:
    """The response about a pod that was decided on."""
    decision = result.decision
    response: dict[str, Any] = {"uid": review.uid, "allowed": decision.outcome is not Outcome.DENY}
    warnings = bounded_warnings(_warnings(result))
    if warnings:
        response["warnings"] = warnings
    if result.audit:
        response["auditAnnotations"] = audit(result.audit)
    patch = b""
    if decision.outcome is Outcome.DENY:
        wrong = decision.reason in _UNPROCESSABLE
        head = f"{decision.reason}: {decision.message}"
        response["status"] = denial(422 if wrong else 403, (head, *(f"- {p}" for p in result.problems)))
    elif result.patch:
        patch = orjson.dumps(result.patch)
        response |= {"patchType": "JSONPatch", "patch": base64.b64encode(patch).decode("ascii")}
    outcome = "denied" if decision.outcome is Outcome.DENY else "patched" if patch else "skipped"
    if decision.outcome is Outcome.INJECT and not patch:
        outcome = "unchanged"
    return Answer(
        body=envelope(response), outcome=outcome, reason=str(decision.reason), patch_bytes=len(patch)
    )


def settle(review: Review) -> Answer | None:
    """The response about a request that needs no decision: another kind, or no pod. Else None."""
    if review.fault:
        return bad_pod(review, review.fault)
    if review.settled is None:
        return None
    found = answer(review, Result(decision=review.settled, audit={"reason": str(review.settled.reason)}))
    return Answer(body=found.body, outcome="allowed", reason=found.reason)


def bad_pod(review: Review, fault: str) -> Answer:
    """The denial of something that is no pod. API servers decode pods before they call: none of theirs."""
    return bad_object(review.uid, ReviewCode.BAD_POD, f"not a pod: {fault}")


def bad_object(uid: str, code: ReviewCode, fault: str) -> Answer:
    """The denial of an object that is not what the request says."""
    message = _printable(fault)[:MAX_AUDIT]
    response = {
        "uid": uid,
        "allowed": False,
        "status": denial(400, (message,)),
        "auditAnnotations": {"reason": str(code), "message": message},
    }
    return Answer(body=envelope(response), outcome="denied", reason=str(code))


def envelope(response: Mapping[str, Any]) -> bytes:
    """The review that carries a response."""
    return orjson.dumps({"apiVersion": API_VERSION, "kind": KIND, "response": response})


def audit(texts: Mapping[str, str]) -> dict[str, str]:
    """Audit annotations that the API server keeps as they are."""
    return {key: _printable(text)[:MAX_AUDIT] for key, text in texts.items()}


def denial(status: int, lines: Sequence[str]) -> Mapping[str, Any]:
    """A metav1.Status: the client sees its message, one line for each problem."""
    message, left = "", MAX_MESSAGE
    for number, line in enumerate(lines):
        text = _printable(line)[:1000]
        left -= len(text) + 1
        if left < 0:
            message += f"\n- and {len(lines) - number} more"
            break
        message += ("\n" if message else "") + text
    return {"code": status, "reason": _REASONS[status], "message": message}


def _warnings(result: Result) -> Iterable[str]:
    decision = result.decision
    if decision.warn and decision.outcome is not Outcome.DENY and decision.message not in result.warnings:
        yield f"{decision.reason}: {decision.message}"
    yield from result.warnings


def bounded_warnings(texts: Iterable[str], elsewhere: str = "`meshctl explain inject`") -> list[str]:
    """Warnings that arrive whole: long ones on several lines, in total what the API server passes on.

    Args:
        elsewhere: where those are found that do not fit, beside the audit log.
    """
    kept: list[str] = []
    left = MAX_WARNINGS - MAX_WARNING
    dropped = 0
    for text in texts:
        lines = textwrap.wrap(_printable(text), MAX_WARNING, subsequent_indent="  ")
        if dropped or sum(map(len, lines)) > left:
            dropped += 1
            continue
        left -= sum(map(len, lines))
        kept += lines
    if dropped:
        kept.append(f"{dropped} more warnings; they are in the audit log and in {elsewhere}")
    return kept


def _printable(text: str) -> str:
    """A text that an HTTP header and a terminal take as it is."""
    return "".join(c if c.isprintable() else " " for c in text)
