"""The webhooks' HTTP: `POST /inject/v1` and `/validate`, `/livez` and `/readyz`, in Flask."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any, Final

from flask import Flask, Response, request
from gunicorn.http.errors import ParseException  # type: ignore[import-untyped] # gunicorn has no types

from injector import review
from injector.review import MAX_BODY, ReviewCode, ReviewError
from injector.reviewer import Reviewer
from mesh.errors import Category
from mesh.obs.health import Health, Report
from mesh.obs.logs import logger

PATH: Final = "/inject/v1"
VALIDATE_PATH: Final = "/validate"
MAX_TIMEOUT: Final = 30.0  # seconds; what the API server allows in timeoutSeconds
_TEXT: Final = "text/plain; charset=utf-8"
_STEP: Final = 1 << 20
_TIMEOUT: Final = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,9})?)(ms|s)")
_METHODS: Final = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]

_log = logger(__name__)


def create_app(admission: Reviewer, policies: Reviewer, health: Health, *, margin: float) -> Flask:
    """The application.

    Args:
        admission: answers about pods.
        policies: answers about policies.
        margin: seconds of the API server's time-out that are left for the way back.
    """
    app = Flask("injector", static_folder=None)

    def get(path: str, view: Callable[[], Response]) -> None:
        app.add_url_rule(
            path, view_func=view, endpoint=path, methods=["GET"], provide_automatic_options=False
        )

    get("/livez", lambda: _report(health.live()))
    get("/readyz", lambda: _report(health.ready()))

    def post(path: str, reviewer: Reviewer) -> None:
        app.add_url_rule(
            path,
            view_func=lambda: _answer(reviewer, margin),
            endpoint=path,
            methods=_METHODS,
            provide_automatic_options=False,
        )

    post(PATH, admission)
    post(VALIDATE_PATH, policies)

    @app.after_request
    def harden(response: Response) -> Response:
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Cache-Control"] = "no-store"
        return response

    return app


def _answer(reviewer: Reviewer, margin: float) -> Response:
    started = _received()
    try:
        body = _body()
        answer = reviewer.answer(body, started=started, deadline=_deadline(started, margin))
    except ReviewError as error:
        reviewer.refused(error, started)
        return _refusal(error)
    except Exception:  # noqa: BLE001 - whatever it is: a status, and never half an answer
        _log.exception("an admission failed")
        failure = ReviewError(
            ReviewCode.INTERNAL,
            500,
            "an internal error; the log of the injector says more",
            category=Category.INTERNAL,
        )
        reviewer.refused(failure, started)
        return _refusal(failure)
    return Response(answer.body, content_type=review.MEDIA_TYPE)


def _report(report: Report) -> Response:
    return Response(report.text(), status=200 if report.ok else 503, content_type=_TEXT)


def _refusal(error: ReviewError) -> Response:
    response = Response(f"{error.public} [{error.code}]\n", status=error.status, content_type=_TEXT)
    if error.status == 405:
        response.headers["Allow"] = "POST"
    return response


def _received() -> float:
    """When the request reached the process: before it waited for a thread."""
    return getattr(request.environ.get("gunicorn.socket"), "received", 0.0) or time.monotonic()


def _deadline(started: float, margin: float) -> float | None:
    """From `?timeout=5s`, which the API server appends; anything else in it is ignored."""
    found = _TIMEOUT.fullmatch(request.args.get("timeout", ""))
    if found is None:
        return None
    seconds = float(found[1]) * (0.001 if found[2] == "ms" else 1.0)
    return started + max(min(seconds, MAX_TIMEOUT) - margin, 0.0)


def _body() -> bytes:
    """The whole body, never more than the bound.

    Raises:
        ReviewError: what the head, the length or the pace of the request forbids.
    """
    length = request.content_length
    chunked = "chunked" in request.headers.get("Transfer-Encoding", "").lower()
    review.check_head(
        request.method,
        request.headers.get("Content-Type", ""),
        request.headers.get("Content-Encoding", ""),
        None if chunked else length or 0,
    )
    stream: Any = request.environ["wsgi.input"]
    wanted = MAX_BODY + 1 if chunked or length is None else length
    parts: list[bytes] = []
    try:
        while wanted > 0 and (part := stream.read(min(wanted, _STEP))):
            parts.append(part)
            wanted -= len(part)
    except ConnectionResetError as error:
        raise ReviewError(ReviewCode.SLOW, 408, "the body did not arrive in time") from error
    except (ParseException, OSError) as error:
        raise ReviewError(ReviewCode.CUT, 400, "the body was cut off, or its framing is wrong") from error
    if chunked and wanted <= 0:
        raise review.too_large()
    if not chunked and wanted > 0:
        raise ReviewError(ReviewCode.CUT, 400, "the body is shorter than its Content-Length")
    return b"".join(parts)
