"""The Sync API over gRPC: `/gatehouse.trust.v1.TrustService/Sync`, on the port for callers with a token."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError

from ca.core.acknowledged import Claim, ClaimCode, ClaimError
from ca.grpc_calls import SERVER_TIME_KEY, Calls
from ca.grpc_refusals import FAULT
from ca.trust_service import Told, TrustService
from mesh._proto import trust_pb2
from mesh.errors import MeshError
from mesh.obs import logs

METHOD: Final = "/gatehouse.trust.v1.TrustService/Sync"
MAX_SYNC_BYTES: Final = 8 << 10

_log = logs.logger(__name__)


class TrustHandler(grpc.GenericRpcHandler):
    """Turns calls into reports, and answers or refusals into messages."""

    def __init__(self, service: TrustService, calls: Calls) -> None:
        self._service = service
        self._calls = calls
        self._handler: grpc.RpcMethodHandler[Any, Any] = grpc.stream_unary_rpc_method_handler(self._sync)

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Called when the headers of a call are there; a thread is found later."""
        return self._handler if handler_call_details.method == METHOD else None

    def _sync(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        calls = self._calls
        head = calls.head(context)
        try:
            calls.check_wait(head, context)
            told = self._service.sync(head, partial(self._read, messages, context), calls.clock.now())
        except MeshError as e:
            calls.abort(context, e)
        except Exception:  # noqa: BLE001 - the edge: whatever it is, the caller gets INTERNAL
            _log.exception("telling an agent the bundle failed")
            calls.abort(context, FAULT)
        context.set_trailing_metadata(((SERVER_TIME_KEY, calls.time()),))
        return _response(told)

    def _read(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> Claim:
        return parse_claim(self._calls.read(messages, context))


def parse_claim(message: bytes) -> Claim:
    """Decode an agent's report.

    Raises:
        ClaimError: not a SyncRequest, or out of bounds.
    """
    if len(message) > MAX_SYNC_BYTES:
        raise ClaimError(
            ClaimCode.TOO_LARGE, f"the request has {len(message)} bytes; allowed are {MAX_SYNC_BYTES}"
        )
    try:
        request = trust_pb2.SyncRequest.FromString(message)
    except DecodeError as e:
        raise ClaimError(
            ClaimCode.MALFORMED, "the request is no gatehouse.trust.v1.SyncRequest message"
        ) from e
    return Claim(
        digest=request.bundle_digest,
        generation=request.bundle_generation,
        workloads=request.workloads,
        pending=request.pending,
        refused=request.refused,
        waiting_for=tuple(request.waiting_for),
        epoch=request.issuer_epoch,
        outdated=request.outdated,
    )


def _response(told: Told) -> bytes:
    message = trust_pb2.SyncResponse(
        roots=told.roots_pem,
        bundle_generation=told.generation,
        issuer_epoch=told.epoch,
        poll_after_ms=int(told.poll_after.total_seconds() * 1000),
        renew_within_s=told.renew_within_s,
    )
    return message.SerializeToString()
