"""The SPIFFE Workload API (SPIFFE_Workload_API.md), X.509 profile complete.

The socket is the identity, so no call needs credentials; each must carry the header
`workload.spiffe.io: true`, which a browser or a naive proxy does not send (section 3, F-70). The JWT
profile is not served: its calls answer Unimplemented, as the standard allows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Final, NoReturn

import grpc

from mesh._proto import workload_pb2
from mesh.clock import Clock
from mesh.errors import Category, Code, MeshError
from nodeagent.core.snapshot import IdentitySnapshot, TrustBundle, WorkloadSnapshot
from nodeagent.core.trust import Verdict
from nodeagent.stream import Context, Streams, send

SERVICE_NAME: Final = "SpiffeWorkloadAPI"
HEADER: Final = "workload.spiffe.io"
SERVICE: Final = "workload_api"
"""Label in reports."""


class WorkloadApiCode(Code):
    """Why a Workload API call was refused."""

    HEADER = "workload_api_header"
    STARTING = "workload_api_starting"
    NO_IDENTITY = "workload_api_no_identity"
    EXPIRED = "workload_api_expired"


class WorkloadApiError(MeshError):
    """A Workload API call that ends with a status."""


class _Delivery:
    """What a client was told. It has no way to acknowledge: that the message was written must do."""

    __slots__ = ("bundle",)

    def __init__(self) -> None:
        self.bundle: TrustBundle | None = None

    def verdict(self, snapshot: WorkloadSnapshot) -> Verdict | None:
        """See `nodeagent.core.trust.Receiver`."""
        return Verdict.ACCEPTED if self.bundle == snapshot.identity.bundle else Verdict.PENDING


Build = Callable[[WorkloadSnapshot], bytes]


class WorkloadApi:
    """Servicer of `SpiffeWorkloadAPI` for one workload.

    Args:
        streams: the socket's calls.
        clock: an SVID that has expired is never sent.
    """

    def __init__(self, streams: Streams, clock: Clock) -> None:
        self._streams = streams
        self._clock = clock

    async def fetch_x509_svid(self, _request: object, context: Context) -> None:
        """FetchX509SVID: the full state at once, and again at each change."""
        await self._serve(context, self._svid_message)

    async def fetch_x509_bundles(self, _request: object, context: Context) -> None:
        """FetchX509Bundles: the full state at once, and again at each change."""
        await self._serve(context, self._bundles_message)

    async def not_served(self, _request: object, context: Context) -> NoReturn:
        """Calls of the JWT profile, unary and streaming."""
        async with self._streams.call(SERVICE, context):
            _check_header(context)
            await context.abort(
                grpc.StatusCode.UNIMPLEMENTED, "the JWT profile is not served here; use X.509-SVIDs"
            )

    async def _serve(self, context: Context, build: Build) -> None:
        async with self._streams.call(SERVICE, context):
            _check_header(context)
            snapshot = self._streams.watch.snapshot
            last = b""
            delivery = _Delivery()
            self._streams.cache.receivers.open(delivery, proxy=False)
            try:
                while True:
                    message = build(snapshot)
                    digest = hashlib.sha256(message).digest()
                    if digest != last:
                        await send(context, message)
                        last = digest
                    delivery.bundle = snapshot.identity.bundle
                    snapshot = await self._streams.watch.changed(snapshot.revision)
            finally:
                self._streams.cache.receiver_closed(delivery)

    def _svid_message(self, snapshot: WorkloadSnapshot) -> bytes:
        identity = _known(snapshot)
        svid, bundle = identity.svid, identity.bundle
        if svid is None or bundle is None:
            raise _no_identity()
        if svid.not_after <= self._clock.now():
            # Clients have been seen to take an expired SVID without a word: none is better.
            raise WorkloadApiError(
                WorkloadApiCode.EXPIRED,
                "the SVID has expired and could not be renewed; try again",
                category=Category.UNAVAILABLE,
            )
        message = workload_pb2.X509SVIDResponse(
            svids=[
                workload_pb2.X509SVID(
                    spiffe_id=str(svid.spiffe_id),
                    x509_svid=b"".join(svid.chain_der),
                    x509_svid_key=svid.key_pkcs8,
                    bundle=b"".join(bundle.roots_der),
                )
            ]
        )
        return message.SerializeToString(deterministic=True)

    def _bundles_message(self, snapshot: WorkloadSnapshot) -> bytes:
        bundle = _known(snapshot).bundle
        if bundle is None:
            raise _no_identity()
        message = workload_pb2.X509BundlesResponse(
            bundles={str(bundle.trust_domain.id): b"".join(bundle.roots_der)}  # W-08
        )
        return message.SerializeToString(deterministic=True)

    def handler(self) -> grpc.GenericRpcHandler:
        """For `grpc.aio.Server.add_generic_rpc_handlers`; responses are bytes already."""
        pb = workload_pb2
        return grpc.method_handlers_generic_handler(
            SERVICE_NAME,
            {
                "FetchX509SVID": grpc.unary_stream_rpc_method_handler(
                    self.fetch_x509_svid, pb.X509SVIDRequest.FromString, None
                ),
                "FetchX509Bundles": grpc.unary_stream_rpc_method_handler(
                    self.fetch_x509_bundles, pb.X509BundlesRequest.FromString, None
                ),
                "FetchJWTSVID": grpc.unary_unary_rpc_method_handler(
                    self.not_served, pb.JWTSVIDRequest.FromString, None
                ),
                "FetchJWTBundles": grpc.unary_stream_rpc_method_handler(
                    self.not_served, pb.JWTBundlesRequest.FromString, None
                ),
                "ValidateJWTSVID": grpc.unary_unary_rpc_method_handler(
                    self.not_served, pb.ValidateJWTSVIDRequest.FromString, None
                ),
            },
        )


def _check_header(context: Context) -> None:
    metadata = context.invocation_metadata() or ()
    values = [value for key, value in metadata if key == HEADER]
    if values != ["true"]:
        raise WorkloadApiError(
            WorkloadApiCode.HEADER,
            f"metadata: exactly one `{HEADER}: true` is required on each call",
            private=f"metadata {HEADER}: found {values[:4]!r}",
        )


def _known(snapshot: WorkloadSnapshot) -> IdentitySnapshot:
    if snapshot.starting:
        raise WorkloadApiError(
            WorkloadApiCode.STARTING,
            "the first certificate has not come yet; try again",
            category=Category.UNAVAILABLE,
        )
    return snapshot.identity


def _no_identity() -> WorkloadApiError:
    return WorkloadApiError(
        WorkloadApiCode.NO_IDENTITY,
        "no identity is issued to this workload; try again later",
        category=Category.PERMISSION_DENIED,
    )
