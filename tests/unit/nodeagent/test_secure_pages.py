"""The agent's pages by TLS: a certificate of the authority, renewed while serving, and refusals."""

from __future__ import annotations

import asyncio
import datetime as dt
import random
import ssl
from pathlib import Path

import pytest

from mesh.errors import Category
from mesh.spiffe import SpiffeId, TrustDomain
from mesh.x509 import pem
from nodeagent.ca_client import CaCode, CaError
from nodeagent.config import Listen, MetricsTlsSettings
from nodeagent.core.rotation import Priority
from nodeagent.http import Page, Route
from nodeagent.keys import new_server_request
from nodeagent.secure_pages import PagesError, SecurePages
from tests.fakes.clock import FakeClock
from tests.fakes.nodeagent_ca import NodeagentCa
from tests.fakes.nodeagent_wait import nodeagent_until

pytestmark = pytest.mark.asyncio
NAME = "gatehouse-nodeagent.istio-system.svc"
AGENT = SpiffeId.for_service_account(TrustDomain("cluster.local"), "istio-system", "gatehouse-nodeagent")
ROUTES = {"/metrics": Route(lambda: Page(200, b"gatehouse_up 1\n"))}


@pytest.fixture
def clock() -> FakeClock:
    # Clients of these tests live now; a renewal happens 15 hours later.
    return FakeClock(dt.datetime.now(dt.UTC).replace(microsecond=0) - dt.timedelta(hours=20))


@pytest.fixture
def ca(clock: FakeClock) -> NodeagentCa:
    found = NodeagentCa(clock, AGENT)
    found.granted = (NAME,)
    return found


def pages(ca: NodeagentCa, clock: FakeClock, *, listen: Listen | None = None) -> SecurePages:
    settings = MetricsTlsSettings(
        listen=listen or Listen("127.0.0.1", 0), name=NAME, token_file=Path("token")
    )
    return SecurePages(settings, ROUTES, ca, clock=clock, rng=random.Random(1))


async def read(ca: NodeagentCa, address: str, name: str = NAME) -> tuple[str, bytes]:
    """The page as a scraper reads it, and the certificate that was shown."""
    context = ssl.create_default_context(cadata=pem.encode_certificates(ca.hierarchy.roots))
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port), ssl=context, server_hostname=name)
    shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.write(b"GET /metrics HTTP/1.1\r\n\r\n")
    body = await reader.read()
    writer.close()
    return body.decode(), shown


async def test_a_scraper_that_trusts_the_roots_reads_metrics(ca: NodeagentCa, clock: FakeClock) -> None:
    served = pages(ca, clock)
    assert served.server is not None
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(served.run())
        await nodeagent_until(lambda: served.not_after)
        await nodeagent_until(lambda: not served.server.address.endswith(":0"))
        text, _ = await read(ca, served.server.address)
        assert text.startswith("HTTP/1.1 200 OK")
        assert text.endswith("gatehouse_up 1\n")
        with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
            await read(ca, served.server.address, "kubernetes.default.svc")
        host, _, port = served.server.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET /metrics HTTP/1.1\r\n\r\n")
        assert b"gatehouse_up" not in await reader.read(), "not without TLS"
        writer.close()
        running.cancel()
    assert ca.priorities == [Priority.ROUTINE], "workloads go first"


async def test_the_certificate_is_renewed_half_way_while_serving(ca: NodeagentCa, clock: FakeClock) -> None:
    served = pages(ca, clock)
    assert served.server is not None
    await served.step()
    await served.server.start()
    try:
        _, first = await read(ca, served.server.address)
        await served.step()
        assert len(ca.csrs) == 1, "not due yet"
        clock.advance(dt.timedelta(hours=15))
        await served.step()
        assert len(set(ca.csrs)) == 2, "with another key"
        _, second = await read(ca, served.server.address)
        assert second != first
    finally:
        await served.server.stop()


async def test_an_authority_that_is_away_is_asked_again_and_the_old_certificate_stays(
    ca: NodeagentCa, clock: FakeClock
) -> None:
    served = pages(ca, clock)
    await served.step()
    before = served.not_after
    clock.advance(dt.timedelta(hours=15))
    ca.fail_with = CaError(CaCode.UNREACHABLE, "away", category=Category.UNAVAILABLE)
    waits = [await served.step() for _ in range(10)]
    assert waits[0] < 2, "soon again"
    assert 20 < waits[-1] <= 60, "and then less often"
    assert served.not_after == before
    ca.fail_with = None
    await served.step()
    assert served.not_after != before
    assert served.problem is None


@pytest.mark.parametrize(
    ("forge", "code"),
    [
        pytest.param(lambda _chain: ["rubbish", "rubbish"], "pages_reply_malformed", id="no-pem"),
        pytest.param(lambda chain: chain[-1:], "pages_reply_malformed", id="no-leaf"),
        pytest.param("other-key", "pages_wrong_key", id="other-key"),
        pytest.param("other-name", "pages_wrong_name", id="other-name"),
    ],
)
async def test_replies_that_are_not_served_with(
    ca: NodeagentCa,
    clock: FakeClock,
    forge: object,
    code: str,
) -> None:
    served = pages(ca, clock)
    if forge == "other-key":
        other = ca.issue(new_server_request(NAME)[1])
        ca.forge = lambda _chain: other
    elif forge == "other-name":
        ca.forge_names = ("kubernetes.default.svc",)
    else:
        ca.forge = forge  # type: ignore[assignment]  # a function in the other rows
    await served.step()
    assert served.not_after is None
    assert isinstance(served.problem, PagesError)
    assert served.problem.code == code


async def test_off_unless_asked_for(ca: NodeagentCa, clock: FakeClock) -> None:
    served = SecurePages(MetricsTlsSettings(), ROUTES, ca, clock=clock, rng=random.Random(1))
    await served.run()
    assert served.server is None
    assert ca.csrs == []
