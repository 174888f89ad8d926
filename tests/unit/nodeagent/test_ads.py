"""ADS over a real socket: every type on one stream, in both forms."""

from __future__ import annotations

from typing import Any

import pytest

from mesh.envoy.resources import CLUSTER, ENDPOINT, EXTENSION_CONFIG, LISTENER, SECRET, ResourceSet
from tests.fakes.agent_model import LABEL, resources
from tests.fakes.agent_server import ask, ask_delta, read, served, until
from tests.fakes.agent_session import IDENTITY, secrets

pytestmark = pytest.mark.asyncio

CONFIG = resources(
    ("CDS", "c", "1"), ("EDS", "c", "1"), ("LDS", "l", "1"), ("ECDS", "authz-deny", "1"), ("ECDS", "jwt", "1")
)


async def _first_start(call: Any, make: Any) -> list[str]:
    """What an Envoy asks for and gets, in its order; each response is acknowledged."""
    await call.write(make(type_url=CLUSTER))
    got = []
    wanted = {
        CLUSTER: [make("c", type_url=ENDPOINT), make("ROOTCA", type_url=SECRET), make(type_url=LISTENER)],
        LISTENER: [make("authz-deny", "jwt", type_url=EXTENSION_CONFIG)],
    }
    subscribed = {ENDPOINT: ("c",), SECRET: ("ROOTCA",), EXTENSION_CONFIG: ("authz-deny", "jwt")}
    while len(got) < 6:
        response = await read(call)
        got.append(LABEL[response.type_url])
        names = subscribed.get(response.type_url, ()) if make is ask else ()
        await call.write(make(*names, type_url=response.type_url, nonce=response.nonce))
        for request in wanted.get(response.type_url, []):
            await call.write(request)
    return got


@pytest.mark.parametrize("form", ["sotw", "delta"])
async def test_one_stream_carries_everything(form: str) -> None:
    async with served() as web:
        web.cache.publish_identity(IDENTITY, secrets())
        web.cache.publish_config(CONFIG)
        if form == "sotw":
            call = web.ads.StreamAggregatedResources()
            got = await _first_start(call, ask)
        else:
            call = web.ads.DeltaAggregatedResources()
            got = await _first_start(call, ask_delta)
        assert got == ["CDS", "EDS", "SDS", "LDS", "ECDS", "ECDS"]
        await until("all accepted", lambda: len(web.cache.status()) == 6)
        assert all(s.refused is None for s in web.cache.status().values())
        assert web.events.opened == [("demo/web", "ads")]
        changed = resources(
            ("CDS", "c", "2"),
            ("EDS", "c", "1"),
            ("LDS", "l", "1"),
            ("ECDS", "authz-deny", "2"),
            ("ECDS", "jwt", "1"),
        )
        web.cache.publish_config(changed)
        assert [LABEL[(await read(call)).type_url] for _ in range(3)] == ["CDS", "EDS", "ECDS"]
        await until("the push is reported", lambda: web.events.pushed)
        ((workload, seconds),) = web.events.pushed  # answers to requests are none
        assert workload == "demo/web"
        assert 0 < seconds < 40


async def test_silence_until_the_configuration_is_compiled() -> None:
    async with served() as web:
        web.cache.publish_identity(IDENTITY, secrets())
        call = web.ads.StreamAggregatedResources()
        await call.write(ask(type_url=CLUSTER))
        await call.write(ask(type_url=LISTENER))
        await call.write(ask("ROOTCA", type_url=SECRET))
        assert (await read(call)).type_url == SECRET
        web.cache.publish_config(ResourceSet())
        assert [(await read(call)).type_url for _ in range(2)] == [CLUSTER, LISTENER]
