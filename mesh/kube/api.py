"""What a Kubernetes API client offers to us, and how its refusals look.

Objects are plain JSON data: decoding into generated classes costs a hundred times the memory, and
drops fields that the classes do not know yet.
"""

from __future__ import annotations

import datetime as dt
import enum
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

from mesh.errors import Category, Code, MeshError


class KubeCode(Code):
    """Why the API server did not do what was asked."""

    UNREACHABLE = "kube_unreachable"
    UNAUTHORIZED = "kube_unauthorized"
    FORBIDDEN = "kube_forbidden"
    NOT_FOUND = "kube_not_found"
    CONFLICT = "kube_conflict"
    ALREADY_EXISTS = "kube_already_exists"
    GONE = "kube_gone"
    INVALID = "kube_invalid"
    THROTTLED = "kube_throttled"
    SERVER = "kube_server_error"
    RESPONSE = "kube_bad_response"
    CONFIG = "kube_config"


_BY_STATUS: Mapping[int, tuple[KubeCode, Category]] = {
    400: (KubeCode.INVALID, Category.INVALID_ARGUMENT),
    401: (KubeCode.UNAUTHORIZED, Category.UNAUTHENTICATED),
    403: (KubeCode.FORBIDDEN, Category.PERMISSION_DENIED),
    404: (KubeCode.NOT_FOUND, Category.NOT_FOUND),
    409: (KubeCode.CONFLICT, Category.UNAVAILABLE),
    410: (KubeCode.GONE, Category.UNAVAILABLE),
    422: (KubeCode.INVALID, Category.INVALID_ARGUMENT),
    429: (KubeCode.THROTTLED, Category.UNAVAILABLE),
}

_MAX_RETRY_AFTER = 3600


class KubeError(MeshError):
    """A failed call.

    Attributes:
        status: HTTP status, 0 when there was no answer.
        retry_after: what the server asked for, None when it did not.
    """

    def __init__(
        self,
        code: KubeCode,
        public: str,
        *,
        category: Category,
        status: int = 0,
        retry_after: dt.timedelta | None = None,
    ) -> None:
        super().__init__(code, public, category=category)
        self.status = status
        self.retry_after = retry_after

    @classmethod
    def of_status(cls, status: int, what: str, body: Any, retry_after: str | None = None) -> KubeError:
        """The error of an HTTP answer; `body` is the decoded Status object when there was one."""
        code, category = _BY_STATUS.get(status, (KubeCode.SERVER, Category.UNAVAILABLE))
        status_object = body if isinstance(body, dict) else {}
        reason = status_object.get("reason")
        if reason == "AlreadyExists":
            code, category = KubeCode.ALREADY_EXISTS, Category.FAILED_PRECONDITION
        elif reason in {"Expired", "Gone"}:
            code, category = KubeCode.GONE, Category.UNAVAILABLE
        text = status_object.get("message") or reason or ""
        message = f"{what}: HTTP {status} {str(text)[:300]}".rstrip()
        delay = _delay(retry_after) or _delay(status_object.get("details"))
        return cls(code, message, category=category, status=status, retry_after=delay)


def _delay(value: Any) -> dt.timedelta | None:
    """A wait in seconds, from the header or from `details` of a Status; bounded, as it comes from outside."""
    if isinstance(value, dict):
        value = value.get("retryAfterSeconds")
    text = str(value) if isinstance(value, int | str) else ""
    if not text.isascii() or not text.isdecimal() or len(text) > 9:
        return None
    return dt.timedelta(seconds=min(int(text), _MAX_RETRY_AFTER)) or None


class PatchType(enum.Enum):
    """Media types of PATCH."""

    JSON = "application/json-patch+json"
    MERGE = "application/merge-patch+json"
    APPLY = "application/apply-patch+yaml"  # server-side apply; JSON is YAML


class KubeApi(Protocol):
    """A connection to an API server. Safe to use from any thread.

    Every method raises `KubeError`. `path` starts with `/api`, `/apis` or another path of the server;
    what is not a letter of a path is escaped. `query` values are text. A write that ends in UNREACHABLE
    may have been done or not.
    """

    def get(self, path: str, **query: str) -> Any:
        """An object or a list, as JSON data."""
        ...

    def create(self, path: str, body: Mapping[str, Any], **query: str) -> Any:
        """POST; raises with code ALREADY_EXISTS when the name is taken."""
        ...

    def replace(self, path: str, body: Mapping[str, Any], **query: str) -> Any:
        """PUT; with `metadata.resourceVersion` in the body it is a compare-and-swap (CONFLICT)."""
        ...

    def patch(self, path: str, body: Any, kind: PatchType, **query: str) -> Any:
        """PATCH with the media type of `kind`."""
        ...

    def delete(self, path: str, **query: str) -> Any:
        """DELETE."""
        ...

    def watch(
        self, path: str, *, silence: dt.timedelta, **query: str
    ) -> AbstractContextManager[Iterator[Mapping[str, Any]]]:
        """A watch as decoded events. Ends when the server ends it.

        Args:
            path: of the collection.
            silence: a connection that brings no byte for so long is given up (a half-open TCP
                connection never says that it died).
            query: `resourceVersion`, `timeoutSeconds`, ...
        """
        ...
