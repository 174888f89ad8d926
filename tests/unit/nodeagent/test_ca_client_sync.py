"""The client of the Sync API, and the trailers of certificates, against a real gRPC server with TLS."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest

from ca.grpc_server import EPOCH_KEY as CA_EPOCH_KEY
from ca.grpc_server import GENERATION_KEY as CA_GENERATION_KEY
from ca.trust_handler import METHOD as CA_METHOD
from mesh._proto import trust_pb2
from mesh.errors import Category
from nodeagent.ca_client import EPOCH_KEY, GENERATION_KEY, SYNC_METHOD, CaCode, CaError
from nodeagent.core.trust import Standing
from tests.unit.nodeagent.test_ca_client import Setup

pytestmark = pytest.mark.asyncio


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup(tmp_path)


async def test_the_authority_and_the_agent_use_the_same_names() -> None:
    assert (SYNC_METHOD, GENERATION_KEY, EPOCH_KEY) == (CA_METHOD, CA_GENERATION_KEY, CA_EPOCH_KEY)


@pytest.mark.parametrize(
    ("trailers", "generation", "epoch"),
    [
        pytest.param((), 0, 0, id="none"),
        pytest.param(((GENERATION_KEY, "7"), (EPOCH_KEY, "3")), 7, 3, id="both"),
        pytest.param(((GENERATION_KEY, "7"),), 7, 0, id="one"),
        *(
            pytest.param(((GENERATION_KEY, value), (EPOCH_KEY, "2")), 0, 2, id=repr(value))
            for value in ("", "-1", "+1", "1.0", "0x1", " 1", "1 ", "seven", "9" * 16, "1_0")
        ),
        pytest.param(((GENERATION_KEY, "1"), (GENERATION_KEY, "2")), 0, 0, id="twice"),
    ],
)
async def test_trailers_of_a_certificate(
    setup: Setup, trailers: tuple[tuple[str, str], ...], generation: int, epoch: int
) -> None:
    setup.server.more = trailers
    async with setup.server.serve() as port:
        client = setup.client(port)
        reply = await setup.sign(client)
        await client.close()
    assert (reply.generation, reply.epoch) == (generation, epoch)


async def test_a_report_goes_out_whole_and_the_answer_comes_back(setup: Setup) -> None:
    setup.server.answer = trust_pb2.SyncResponse(
        roots=["a", "b"], bundle_generation=9, issuer_epoch=4, poll_after_ms=2500, renew_within_s=600
    )
    standing = Standing(
        digest="d" * 64,
        generation=8,
        epoch=3,
        workloads=5,
        pending=2,
        refused=1,
        waiting_for=("demo/a", "demo/b"),
        outdated=4,
    )
    async with setup.server.serve() as port:
        client = setup.client(port)
        reply = await client.sync(standing, token_file=setup.token)
        setup.token.write_text("token-2")
        await client.sync(Standing(), token_file=setup.token)
        await client.close()
    assert (reply.roots_pem, reply.generation, reply.epoch) == (("a", "b"), 9, 4)
    assert (reply.poll_after, reply.renew_within, reply.roots_der) == (2.5, 600.0, setup.core.hierarchy.roots)
    assert setup.server.told[0] == trust_pb2.SyncRequest(
        bundle_digest="d" * 64,
        bundle_generation=8,
        workloads=5,
        pending=2,
        refused=1,
        waiting_for=["demo/a", "demo/b"],
        issuer_epoch=3,
        outdated=4,
    )
    assert setup.server.tokens == ["Bearer token-1", "Bearer token-2"]


@pytest.mark.parametrize(
    ("status", "code", "category", "words"),
    [
        (grpc.StatusCode.PERMISSION_DENIED, CaCode.DENIED, Category.PERMISSION_DENIED, "cluster.agents"),
        (grpc.StatusCode.UNIMPLEMENTED, CaCode.PRECONDITION, Category.FAILED_PRECONDITION, "certificates"),
        (grpc.StatusCode.UNAUTHENTICATED, CaCode.UNAUTHENTICATED, Category.UNAUTHENTICATED, "token"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, CaCode.OVERLOADED, Category.RESOURCE_EXHAUSTED, "sheds"),
        (grpc.StatusCode.UNAVAILABLE, CaCode.UNREACHABLE, Category.UNAVAILABLE, "not reachable"),
    ],
)
async def test_refusals(
    setup: Setup, status: grpc.StatusCode, code: CaCode, category: Category, words: str
) -> None:
    setup.server.script = [(status, "no")]
    async with setup.server.serve() as port:
        client = setup.client(port)
        with pytest.raises(CaError, match=words) as error:
            await client.sync(Standing(), token_file=setup.token)
        assert (error.value.code, error.value.category) == (code, category)
        await client.sync(Standing(), token_file=setup.token)
        await client.close()


async def test_without_a_token_nothing_is_sent(setup: Setup) -> None:
    setup.token.unlink()
    async with setup.server.serve() as port:
        client = setup.client(port)
        with pytest.raises(CaError) as error:
            await client.sync(Standing(), token_file=setup.token)
        await client.close()
    assert error.value.code is CaCode.TOKEN_FILE
    assert setup.server.told == []
