"""The SPIFFE Workload API over a real socket: W-01 to W-08, W-10, F-70."""

from __future__ import annotations

import datetime as dt
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_der_private_key
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from mesh._proto import workload_pb2 as pb
from mesh.envoy.resources import ResourceSet
from nodeagent.core.snapshot import IdentitySnapshot
from nodeagent.core.trust import Verdict
from tests.fakes.agent_identity import authority, identity, publish
from tests.fakes.agent_server import Served, ended, read, served, until
from tests.fakes.clock import FakeClock

pytestmark = pytest.mark.asyncio

HEADER = (("workload.spiffe.io", "true"),)
STREAMS = ["FetchX509SVID", "FetchX509Bundles", "FetchJWTBundles"]
UNARY = ["FetchJWTSVID", "ValidateJWTSVID"]


def call(web: Served, method: str, metadata: tuple[tuple[str, str], ...] = HEADER) -> Any:
    return web.workload_api(method, streams=method in STREAMS)(b"", metadata=metadata)


@pytest.mark.parametrize("method", STREAMS + UNARY)
@pytest.mark.parametrize(
    "metadata",
    [
        pytest.param((), id="none"),
        pytest.param((("workload.spiffe.io", "True"),), id="True"),
        pytest.param((("workload.spiffe.io", "1"),), id="1"),
        pytest.param((("workload.spiffe.io", ""),), id="empty"),
        pytest.param(HEADER * 2, id="twice"),
        pytest.param((("workload.spiffe.io", "true,true"),), id="joined"),
        pytest.param((("broker.spiffe.io", "true"),), id="another"),
    ],
)
async def test_w01_f70_header_is_required_on_every_call(
    method: str, metadata: tuple[tuple[str, str], ...]
) -> None:
    async with served() as web:
        publish(web.cache, identity(authority()))
        code, details = await ended(call(web, method, metadata))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "workload.spiffe.io: true" in details


@pytest.mark.parametrize("method", ["FetchJWTSVID", "FetchJWTBundles", "ValidateJWTSVID"])
async def test_jwt_profile_is_unimplemented(method: str) -> None:
    async with served() as web:
        code, details = await ended(call(web, method))
        assert (code, "JWT profile" in details) == (grpc.StatusCode.UNIMPLEMENTED, True)


@pytest.mark.parametrize("method", ["FetchWITSVID", "FetchWITBundles"])
async def test_w10_wit_calls_are_unimplemented(method: str) -> None:
    async with served() as web:
        assert (await ended(call(web, method)))[0] is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("method", ["FetchX509SVID", "FetchX509Bundles"])
async def test_w06_unavailable_while_starting(method: str) -> None:
    async with served() as web:
        code, details = await ended(call(web, method))
        assert (code, "not come yet" in details) == (grpc.StatusCode.UNAVAILABLE, True)


@pytest.mark.parametrize("method", ["FetchX509SVID", "FetchX509Bundles"])
async def test_w05_permission_denied_without_identity_then_works(method: str) -> None:
    async with served() as web:
        web.cache.publish_identity(IdentitySnapshot(), ResourceSet())
        code, details = await ended(call(web, method))
        assert (code, "no identity" in details) == (grpc.StatusCode.PERMISSION_DENIED, True)
        publish(web.cache, identity(authority()))
        assert await read(call(web, method))


async def test_w02_w04_first_message_at_once_and_well_formed() -> None:
    ca = authority()
    async with served() as web:
        published = publish(web.cache, identity(ca))
        assert published.svid is not None
        message = pb.X509SVIDResponse.FromString(await read(call(web, "FetchX509SVID")))
        [svid] = message.svids
        assert svid.spiffe_id == "spiffe://cluster.local/ns/demo/sa/web"
        leaf = x509.load_der_x509_certificate(svid.x509_svid[: len(published.svid.chain_der[0])])
        key = load_der_private_key(svid.x509_svid_key, None)
        assert leaf.public_key() == key.public_key()
        assert svid.x509_svid == b"".join(published.svid.chain_der)
        assert svid.bundle == b"".join(ca.roots)
        assert not message.federated_bundles


async def test_w03_w07_rotation_pushes_the_full_state() -> None:
    ca = authority()
    async with served() as web:
        publish(web.cache, identity(ca))
        stream = call(web, "FetchX509SVID")
        await read(stream)
        web.cache.publish_config(ResourceSet())  # nothing for this stream: no message
        following = publish(web.cache, identity(ca))
        assert following.svid is not None
        message = pb.X509SVIDResponse.FromString(await read(stream))
        assert message.svids[0].x509_svid == b"".join(following.svid.chain_der)
        assert message.svids[0].x509_svid_key == following.svid.key_pkcs8


async def test_w03_identity_loss_ends_the_stream_with_permission_denied() -> None:
    async with served() as web:
        published = publish(web.cache, identity(authority()))
        stream = call(web, "FetchX509SVID")
        bundles = call(web, "FetchX509Bundles")
        await read(stream)
        first = await read(bundles)
        web.cache.publish_identity(IdentitySnapshot(bundle=published.bundle), ResourceSet())
        assert (await ended(stream))[0] is grpc.StatusCode.PERMISSION_DENIED
        assert await read(call(web, "FetchX509Bundles")) == first, "the bundle outlives the SVID"


async def test_w08_bundles_by_trust_domain_id() -> None:
    ca, more = authority(), authority()
    async with served() as web:
        publish(web.cache, identity(ca))
        stream = call(web, "FetchX509Bundles")
        first = pb.X509BundlesResponse.FromString(await read(stream))
        assert dict(first.bundles) == {"spiffe://cluster.local": b"".join(ca.roots)}
        publish(web.cache, identity(ca))  # the same roots: no message
        publish(web.cache, identity(ca, roots=(*ca.roots, *more.roots)))
        second = pb.X509BundlesResponse.FromString(await read(stream))
        assert second.bundles["spiffe://cluster.local"] == b"".join((*ca.roots, *more.roots))


async def test_expired_svid_is_never_sent() -> None:
    """The PyPI client takes an expired leaf without a word (ecosystem b.4)."""
    clock = FakeClock()
    async with served(clock=clock) as web:
        published = publish(web.cache, identity(authority()))
        assert published.svid is not None
        clock.set(published.svid.not_after - dt.timedelta(seconds=1))
        assert await read(call(web, "FetchX509SVID"))
        clock.set(published.svid.not_after)
        code, details = await ended(call(web, "FetchX509SVID"))
        assert (code, "expired" in details) == (grpc.StatusCode.UNAVAILABLE, True)


async def test_svid_without_bundle_is_never_sent() -> None:
    """One malformed message closes the PyPI client's source for good (ecosystem b.4)."""
    async with served() as web:
        whole = identity(authority())
        web.cache.publish_identity(IdentitySnapshot(svid=whole.svid), ResourceSet())
        assert (await ended(call(web, "FetchX509SVID")))[0] is grpc.StatusCode.PERMISSION_DENIED


async def test_stop_ends_streams_with_unavailable() -> None:
    async with served() as web:
        publish(web.cache, identity(authority()))
        stream = call(web, "FetchX509SVID")
        await read(stream)
        await web.socket.stop()
        assert (await ended(stream))[0] is grpc.StatusCode.UNAVAILABLE


async def test_w10_reflection_lists_exactly_what_is_served() -> None:
    async with served() as web:
        stub = reflection_pb2_grpc.ServerReflectionStub(web.channel)
        stream = stub.ServerReflectionInfo()
        await stream.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        listed = {service.name for service in (await read(stream)).list_services_response.service}
        assert listed == {
            "SpiffeWorkloadAPI",
            "envoy.service.secret.v3.SecretDiscoveryService",
            "envoy.service.discovery.v3.AggregatedDiscoveryService",
            "grpc.reflection.v1alpha.ServerReflection",
        }
        for name in sorted(listed):
            await stream.write(reflection_pb2.ServerReflectionRequest(file_containing_symbol=name))
            assert (await read(stream)).file_descriptor_response.file_descriptor_proto, name
        await stream.done_writing()


@pytest.mark.parametrize("method", ["FetchX509SVID", "FetchX509Bundles"])
async def test_a_client_has_new_roots_once_they_were_written_to_it(method: str) -> None:
    long_after = 1e12  # no proxy comes any more

    async with served() as web:
        ca, other = authority(), authority()
        publish(web.cache, identity(ca))
        stream = call(web, method)
        await read(stream)

        def verdict() -> Verdict:
            return web.cache.receivers.verdict(web.cache.snapshot, long_after)[0]

        await until("written", lambda: verdict() is Verdict.ACCEPTED)
        publish(web.cache, identity(ca, roots=(*ca.roots, *other.roots)))
        assert verdict() is Verdict.PENDING
        await read(stream)
        await until("written", lambda: verdict() is Verdict.ACCEPTED)
        publish(web.cache, identity(ca))
        stream.cancel()
        await until("gone", lambda: verdict() is Verdict.ACCEPTED)
