"""How refusals look in gRPC: status, public text, and metadata with the code and the time to wait."""

from __future__ import annotations

from typing import Any, Final

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from ca.limits import LimitError
from ca.requests import RequestCode, RequestError
from mesh.errors import Category, MeshError

STATUS: Final = {
    Category.INVALID_ARGUMENT: grpc.StatusCode.INVALID_ARGUMENT,
    Category.UNAUTHENTICATED: grpc.StatusCode.UNAUTHENTICATED,
    Category.PERMISSION_DENIED: grpc.StatusCode.PERMISSION_DENIED,
    Category.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Category.RESOURCE_EXHAUSTED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Category.FAILED_PRECONDITION: grpc.StatusCode.FAILED_PRECONDITION,
    Category.UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    Category.INTERNAL: grpc.StatusCode.INTERNAL,
}
"""The one place where a category becomes a gRPC status."""

FAULT: Final = RequestError(
    RequestCode.INTERNAL, "internal error; try again later", category=Category.INTERNAL
)
"""What a caller is told of a fault of ours."""


def public_text(error: MeshError) -> str:
    """What the caller is told: nothing about a fault of ours."""
    return FAULT.public if error.category is Category.INTERNAL else error.public


def refusal_metadata(error: MeshError) -> tuple[tuple[str, str | bytes], ...]:
    """Trailing metadata of a refusal: the reason code, and when to come back.

    An unauthenticated caller learns no reason.
    """
    metadata: list[tuple[str, str | bytes]] = []
    status = status_pb2.Status(code=STATUS[error.category].value[0], message=public_text(error))
    if error.category not in {Category.UNAUTHENTICATED, Category.INTERNAL}:
        _add(status, error_details_pb2.ErrorInfo(reason=str(error.code), domain="gatehouse.dev"))
    if isinstance(error, LimitError):
        delay = duration_pb2.Duration()
        delay.FromTimedelta(error.retry_after)
        _add(status, error_details_pb2.RetryInfo(retry_delay=delay))
        milliseconds = int(error.retry_after.total_seconds() * 1000)
        metadata.append(("grpc-retry-pushback-ms", str(milliseconds)))
    if status.details:
        metadata.append(("grpc-status-details-bin", status.SerializeToString()))
    return tuple(metadata)


def _add(status: status_pb2.Status, detail: Any) -> None:
    packed = any_pb2.Any()
    packed.Pack(detail)
    status.details.append(packed)
