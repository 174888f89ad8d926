"""The client of the CSR API against a real gRPC server with TLS on loopback."""

from __future__ import annotations

import asyncio
import datetime as dt
from pathlib import Path

import grpc
import pytest

from ca.grpc_calls import SERVER_TIME_KEY as CA_SERVER_TIME_KEY
from mesh.clock import SystemClock
from mesh.errors import Category
from mesh.spiffe import SpiffeId
from nodeagent.ca_client import MAX_TOKEN_BYTES, SERVER_TIME_KEY, CaClient, CaCode, CaError
from nodeagent.core.rotation import Priority
from nodeagent.core.svid import check_reply
from nodeagent.keys import new_request
from tests.fakes.ca_factory import make_hierarchy
from tests.fakes.nodeagent_ca import NodeagentCa, NodeagentGrpcCa
from tests.fakes.nodeagent_wait import nodeagent_until

ID = SpiffeId.parse("spiffe://cluster.local/ns/demo/sa/web")
pytestmark = pytest.mark.asyncio


class Setup:
    """A server, and a client with its files."""

    def __init__(self, directory: Path) -> None:
        self.core = NodeagentCa(SystemClock(), ID)
        self.server = NodeagentGrpcCa(self.core)
        self.token = directory / "token"
        self.token.write_text("token-1\n")
        self.root = directory / "root.pem"
        self.root.write_text(self.core.hierarchy.roots_pem)

    def client(self, port: int, **options) -> CaClient:
        return CaClient(
            address=f"127.0.0.1:{port}",
            root_file=self.root,
            **({"server_name": "localhost", "deadline": 5.0} | options),
        )

    async def sign(self, client: CaClient, priority: Priority = Priority.FIRST, **more):
        _, csr = new_request(ID)
        return await client.sign(csr_pem=csr, token_file=self.token, priority=priority, **more)


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup(tmp_path)


async def refusal(setup: Setup, client: CaClient) -> CaError:
    with pytest.raises(CaError) as caught:
        await setup.sign(client)
    return caught.value


async def test_the_authority_and_the_agent_name_the_trailer_alike() -> None:
    assert SERVER_TIME_KEY == CA_SERVER_TIME_KEY


async def test_a_reply_can_be_used(setup: Setup) -> None:
    async with setup.server.serve() as port:
        client = setup.client(port)
        key, csr = new_request(ID)
        reply = await client.sign(csr_pem=csr, token_file=setup.token, priority=Priority.FIRST)
        await client.close()
    snapshot = check_reply(
        reply.cert_chain, expected_id=ID, key=key, trusted=reply.roots_der, now=SystemClock().now()
    )
    assert snapshot.svid is not None
    assert reply.roots_der == setup.core.hierarchy.roots
    assert reply.server_time is not None
    assert abs(reply.server_time - SystemClock().now()) < dt.timedelta(minutes=1)
    assert setup.server.tokens == ["Bearer token-1"]


async def test_the_wanted_lifetime_is_sent(setup: Setup) -> None:
    async with setup.server.serve() as port:
        client = setup.client(port)
        key, csr = new_request(ID)
        reply = await client.sign(
            csr_pem=csr, token_file=setup.token, priority=Priority.FIRST, validity=dt.timedelta(minutes=30)
        )
        await client.close()
    svid = check_reply(
        reply.cert_chain, expected_id=ID, key=key, trusted=reply.roots_der, now=SystemClock().now()
    ).svid
    assert svid is not None
    assert svid.not_after - svid.not_before == dt.timedelta(minutes=32)


async def test_g13_the_token_is_read_at_each_attempt(setup: Setup) -> None:
    async with setup.server.serve() as port:
        client = setup.client(port)
        await setup.sign(client)
        setup.token.write_text("token-2")
        await setup.sign(client)
        await client.close()
    assert setup.server.tokens == ["Bearer token-1", "Bearer token-2"]


async def test_d4_a_refused_token_is_read_again_and_tried_once_more(setup: Setup) -> None:
    setup.server.script = [(grpc.StatusCode.UNAUTHENTICATED, "expired")]

    async def replace() -> None:
        setup.token.write_text("fresh")

    setup.server.before = replace
    async with setup.server.serve() as port:
        client = setup.client(port)
        await setup.sign(client)
        await client.close()
    assert setup.server.tokens == ["Bearer token-1", "Bearer fresh"]


async def test_two_refusals_are_an_answer(setup: Setup) -> None:
    setup.server.script = [(grpc.StatusCode.UNAUTHENTICATED, "no")] * 5
    async with setup.server.serve() as port:
        client = setup.client(port)
        error = await refusal(setup, client)
        await client.close()
    assert (error.code, error.category) == (CaCode.UNAUTHENTICATED, Category.UNAUTHENTICATED)
    assert "audience" in error.public
    assert len(setup.server.tokens) == 2


STATUSES = [
    (grpc.StatusCode.PERMISSION_DENIED, CaCode.DENIED, Category.PERMISSION_DENIED),
    (grpc.StatusCode.INVALID_ARGUMENT, CaCode.INVALID, Category.INVALID_ARGUMENT),
    (grpc.StatusCode.NOT_FOUND, CaCode.NOT_FOUND, Category.NOT_FOUND),
    (grpc.StatusCode.RESOURCE_EXHAUSTED, CaCode.OVERLOADED, Category.RESOURCE_EXHAUSTED),
    (grpc.StatusCode.FAILED_PRECONDITION, CaCode.PRECONDITION, Category.FAILED_PRECONDITION),
    (grpc.StatusCode.UNAVAILABLE, CaCode.UNREACHABLE, Category.UNAVAILABLE),
    (grpc.StatusCode.INTERNAL, CaCode.INTERNAL, Category.INTERNAL),
    (grpc.StatusCode.DATA_LOSS, CaCode.INTERNAL, Category.INTERNAL),
]


@pytest.mark.parametrize(
    ("status", "code", "category"), [pytest.param(*row, id=row[0].name) for row in STATUSES]
)
async def test_statuses_become_categories(setup: Setup, status, code, category) -> None:
    setup.server.script = [(status, "because of secret-detail")]
    async with setup.server.serve() as port:
        client = setup.client(port)
        error = await refusal(setup, client)
        await client.close()
    assert (error.code, error.category) == (code, category)
    assert "because of" in error.private
    assert "because of" not in error.public
    assert "token-1" not in error.private + error.public


async def test_a_slow_authority_is_not_waited_for(setup: Setup) -> None:
    never = asyncio.Event()
    setup.server.before = never.wait
    async with setup.server.serve() as port:
        client = setup.client(port, deadline=0.2)
        error = await refusal(setup, client)
        await client.close()
    assert (error.code, error.category) == (CaCode.DEADLINE, Category.UNAVAILABLE)


async def test_nobody_listens_and_then_somebody_does(setup: Setup) -> None:
    async with setup.server.serve() as port:
        pass
    client = setup.client(port)
    error = await refusal(setup, client)
    assert (error.code, error.category) == (CaCode.UNREACHABLE, Category.UNAVAILABLE)
    async with setup.server.serve(port):
        await setup.sign(client)  # at once: no back-off of the transport stands in the way
        await client.close()


async def test_g03_the_authority_restarts(setup: Setup) -> None:
    async with setup.server.serve() as port:
        client = setup.client(port)
        await setup.sign(client)
    assert (await refusal(setup, client)).category is Category.UNAVAILABLE
    async with setup.server.serve(port):
        await setup.sign(client)
        await client.close()


async def test_an_authority_under_another_root_is_not_trusted(setup: Setup) -> None:
    setup.root.write_text(make_hierarchy().roots_pem)
    async with setup.server.serve() as port:
        client = setup.client(port)
        error = await refusal(setup, client)
        await client.close()
    assert error.code is CaCode.UNTRUSTED
    assert "CA root file" in error.public
    assert not setup.server.tokens  # the token never left


async def test_an_authority_of_another_name_is_not_trusted(setup: Setup) -> None:
    async with setup.server.serve() as port:
        client = setup.client(port, server_name="ca.example")
        error = await refusal(setup, client)
        await client.close()
    assert error.code in {CaCode.UNTRUSTED, CaCode.UNREACHABLE}
    assert not setup.server.tokens


async def test_g14_the_root_file_is_read_at_each_attempt(setup: Setup) -> None:
    other = make_hierarchy(now=SystemClock().now() - dt.timedelta(days=1))
    async with setup.server.serve() as port:
        client = setup.client(port)
        await setup.sign(client)
    setup.root.write_text(other.roots_pem + setup.core.hierarchy.roots_pem)
    async with setup.server.serve(port, other):
        reply = await setup.sign(client)
        await client.close()
    assert reply.roots_der == (*other.roots, *setup.core.hierarchy.roots)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(None, "cannot be read: No such file", id="missing"),
        pytest.param(b"  \n", "is empty", id="empty"),
        pytest.param(b"two tokens", "not one token", id="two"),
        pytest.param(b"to\nken", "not one token", id="line-feed"),
        pytest.param("tök".encode(), "not one token", id="not-ascii"),
        pytest.param(b"x" * (MAX_TOKEN_BYTES + 1), "longer than", id="F-52-too-long"),
    ],
)
async def test_bad_token_files(setup: Setup, content: bytes | None, message: str) -> None:
    if content is None:
        setup.token.unlink()
    else:
        setup.token.write_bytes(content)
    async with setup.server.serve() as port:
        client = setup.client(port)
        error = await refusal(setup, client)
        await client.close()
    assert (error.code, error.category) == (CaCode.TOKEN_FILE, Category.UNAVAILABLE)
    assert message in error.public
    assert not setup.server.tokens


@pytest.mark.parametrize(
    "content", [None, b"", b"garbage", b"\xff"], ids=["missing", "empty", "junk", "binary"]
)
async def test_bad_root_files(setup: Setup, content: bytes | None) -> None:
    if content is None:
        setup.root.unlink()
    else:
        setup.root.write_bytes(content)
    client = setup.client(1)
    error = await refusal(setup, client)
    await client.close()
    assert (error.code, error.category) == (CaCode.ROOT_FILE, Category.UNAVAILABLE)


async def test_a_huge_reply_is_refused(setup: Setup) -> None:
    setup.core.forge = lambda chain: [*chain[:-1], "x" * 1_000_000]
    async with setup.server.serve() as port:
        client = setup.client(port)
        error = await refusal(setup, client)
        await client.close()
    assert error.code is CaCode.OVERLOADED


@pytest.mark.parametrize("value", ["", "soon", "-1", "9" * 40], ids=["empty", "text", "negative", "long"])
async def test_a_time_that_is_none_reads_as_none(setup: Setup, value: str) -> None:
    setup.server.trailer = value
    async with setup.server.serve() as port:
        client = setup.client(port)
        assert (await setup.sign(client)).server_time is None
        await client.close()


async def test_g17_eight_in_flight_and_the_urgent_ones_first(setup: Setup) -> None:
    gate = asyncio.Event()
    order: list[Priority] = []
    setup.server.before = gate.wait
    wanted = [Priority.ROUTINE] * 10 + [Priority.EXPIRING] * 3 + [Priority.FIRST] * 3

    async with setup.server.serve() as port:
        client = setup.client(port)

        async def one(priority: Priority) -> None:
            await setup.sign(client, priority)
            order.append(priority)

        async with asyncio.TaskGroup() as tasks, asyncio.timeout(20):
            for priority in wanted:
                tasks.create_task(one(priority))
            await nodeagent_until(lambda: client.waiting == len(wanted) - 8 and len(setup.server.tokens) == 8)
            gate.set()
        await client.close()
    assert sorted(order[8:14]) == [Priority.FIRST] * 3 + [Priority.EXPIRING] * 3
    assert order[14:] == [Priority.ROUTINE] * 2


async def test_calls_in_flight_survive_a_changed_root_file(setup: Setup) -> None:
    gate = asyncio.Event()
    setup.server.before = gate.wait
    async with setup.server.serve() as port, asyncio.timeout(20):
        client = setup.client(port)
        async with asyncio.TaskGroup() as tasks:
            first = tasks.create_task(setup.sign(client))
            await nodeagent_until(lambda: setup.server.tokens)
            setup.root.write_text(setup.core.hierarchy.roots_pem * 2)
            second = tasks.create_task(setup.sign(client))
            await nodeagent_until(lambda: len(setup.server.tokens) == 2)
            gate.set()
        assert first.result().cert_chain
        assert second.result().cert_chain
        await client.close()
