"""SDS as a real Envoy consumes it: by stream and by delta, from the socket of its workload.

The proxy has one TLS listener whose certificate and roots come by SDS; what it presents in a handshake
is the evidence.
"""

from __future__ import annotations

import asyncio
import json
import socket as sockets
import ssl
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from mesh.envoy.resources import SDS_ROOTS, SDS_SVID, SECRET, ResourceSet
from mesh.envoy.secrets import roots_secret, svid_secret
from nodeagent.cache import WorkloadCache
from nodeagent.core.snapshot import IdentitySnapshot
from nodeagent.sockets import WorkloadSocket, prepare_base
from tests.fakes.agent_events import RecordedEvents
from tests.fakes.agent_identity import authority, identity, publish, secrets_of
from tests.fakes.envoy_process import EnvoyProcess

DEADLINE = 40.0
TYPE = "type.googleapis.com/"
ECHO = TYPE + "envoy.extensions.filters.network.echo.v3.Echo"
HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
FORMS = ["GRPC", "DELTA_GRPC"]

pytestmark = [pytest.mark.asyncio, pytest.mark.envoy]


def _secret(name: str, form: str) -> dict[str, Any]:
    return {
        "name": name,
        "sds_config": {
            "resource_api_version": "V3",
            "initial_fetch_timeout": "0s",
            "api_config_source": {
                "api_type": form,
                "transport_api_version": "V3",
                "grpc_services": [
                    {
                        "envoy_grpc": {
                            "cluster_name": "agent",
                            "retry_policy": {
                                "retry_back_off": {"base_interval": "0.05s", "max_interval": "0.2s"}
                            },
                        }
                    }
                ],
            },
        },
    }


def bootstrap(
    socket: Path, form: str, *, certificate: str = SDS_SVID, roots: str = SDS_ROOTS
) -> dict[str, Any]:
    tls = {
        "@type": TYPE + "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        "common_tls_context": {
            "tls_certificate_sds_secret_configs": [_secret(certificate, form)],
            "validation_context_sds_secret_config": _secret(roots, form),
        },
    }
    return {
        "node": {"id": "web.demo", "cluster": "web"},
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}},
        "static_resources": {
            "listeners": [
                {
                    "name": "tls",
                    "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
                    "filter_chains": [
                        {
                            "filters": [
                                {
                                    "name": "echo",
                                    "typed_config": {"@type": ECHO},
                                }
                            ],
                            "transport_socket": {"name": "tls", "typed_config": tls},
                        }
                    ],
                }
            ],
            "clusters": [
                {
                    "name": "agent",
                    "type": "STATIC",
                    "typed_extension_protocol_options": {
                        HTTP_OPTIONS: {
                            "@type": TYPE + HTTP_OPTIONS,
                            "explicit_http_config": {
                                "http2_protocol_options": {
                                    # The server must bear pings; its default is one in 5 minutes.
                                    "connection_keepalive": {"interval": "1s", "timeout": "2s"}
                                }
                            },
                        }
                    },
                    "load_assignment": {
                        "cluster_name": "agent",
                        "endpoints": [
                            {"lb_endpoints": [{"endpoint": {"address": {"pipe": {"path": str(socket)}}}}]}
                        ],
                    },
                }
            ],
        },
    }


@dataclass
class Proxy:
    envoy: EnvoyProcess
    cache: WorkloadCache
    socket: WorkloadSocket
    events: RecordedEvents

    async def until(self, what: str, condition: Callable[[], bool]) -> None:
        """Wait for a condition that events on this loop, or the proxy, make true."""
        try:
            async with asyncio.timeout(DEADLINE):
                while not condition():  # noqa: ASYNC110 - the proxy is another process
                    await asyncio.sleep(0.01)
        except TimeoutError:
            pytest.fail(f"never: {what}; nacks: {self.events.nacks}; log: {self.envoy.log()[-1500:]}")

    async def presented(self) -> str | None:
        """Serial of the certificate that the listener presents; None when it refuses to shake hands."""
        return await asyncio.to_thread(self._presented)

    def _presented(self) -> str | None:
        listeners = json.loads(self.envoy.get("/listeners?format=json")[1])["listener_statuses"]
        address = listeners[0]["local_address"]["socket_address"]
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        try:
            pem = _peer_certificate(address["address"], address["port_value"], context)
        except OSError:
            return None
        return f"{x509.load_der_x509_certificate(pem).serial_number:x}"

    async def presents(self, serial: str) -> None:
        """Until the listener presents this certificate."""
        try:
            async with asyncio.timeout(DEADLINE):
                while await self.presented() != serial:  # noqa: ASYNC110 - another process
                    await asyncio.sleep(0.01)
        except TimeoutError:
            pytest.fail(f"{serial} is never presented; log: {self.envoy.log()[-1500:]}")


def _peer_certificate(host: str, port: int, context: ssl.SSLContext) -> bytes:
    with sockets.create_connection((host, port), timeout=30) as raw, context.wrap_socket(raw) as tls:
        certificate = tls.getpeercert(binary_form=True)
        assert certificate is not None
        return certificate


@asynccontextmanager
async def proxy(form: str, **names: str) -> AsyncIterator[Proxy]:
    with tempfile.TemporaryDirectory(prefix="gh-", dir="/tmp") as base:
        prepare_base(Path(base))
        events = RecordedEvents()
        cache = WorkloadCache("demo/web")
        socket = WorkloadSocket(Path(base, "w"), cache, events=events)
        await socket.start()
        envoy = EnvoyProcess(bootstrap(socket.path, form, **names), Path(base, "envoy"), wait_ready=False)
        try:
            await asyncio.to_thread(envoy.start)
            yield Proxy(envoy, cache, socket, events)
        finally:
            await asyncio.to_thread(envoy.stop)
            await socket.stop()


def serial(snapshot: IdentitySnapshot) -> str:
    assert snapshot.svid is not None
    return snapshot.svid.serial


@pytest.mark.parametrize("form", FORMS)
async def test_late_secret_then_rotation_then_restart_of_the_agent(form: str) -> None:
    """S-05, S-06, S-10, S-13, S-18, S-19: waits without it, serves with it, follows each rotation."""
    ca = authority()
    async with proxy(form) as web:
        await web.until("streams open", lambda: web.socket.open_streams >= 2)
        assert (await asyncio.to_thread(web.envoy.get, "/ready"))[0] == 503
        first = publish(web.cache, identity(ca))
        await web.presents(serial(first))
        await web.until("both accepted", lambda: len(web.cache.status()) == 2)
        for _ in range(3):
            await web.presents(serial(publish(web.cache, identity(ca))))
        await web.socket.stop()
        assert await web.presented() is not None, "an absent agent changes nothing"
        await web.socket.start()
        await web.presents(serial(publish(web.cache, identity(ca))))
        assert web.events.nacks == []
        await web.until(
            "the current bytes are accepted",
            lambda: (
                web.cache.status()[SECRET, SDS_SVID].accepted
                == web.cache.snapshot.secrets.of_type(SECRET)[SDS_SVID].version
            ),
        )


@pytest.mark.parametrize("form", FORMS)
async def test_secret_by_spiffe_id_and_roots_by_trust_domain(form: str) -> None:
    """S-10: a secret bears the name that was asked for, also when it is an alias."""
    names = {"certificate": "spiffe://cluster.local/ns/demo/sa/web", "roots": "spiffe://cluster.local"}
    async with proxy(form, **names) as web:
        await web.presents(serial(publish(web.cache, identity(authority()))))
        assert web.events.nacks == []
        assert web.events.unauthorised == []


@pytest.mark.parametrize("form", FORMS)
async def test_foreign_identity_is_not_given_and_the_stream_lives(form: str) -> None:
    """S-14, F-71."""
    other = "spiffe://cluster.local/ns/demo/sa/other"
    async with proxy(form, certificate=other) as web:
        published = publish(web.cache, identity(authority()))
        await web.until("audit", lambda: web.events.unauthorised == [("demo/web", SECRET, other)])
        await web.until("the roots were accepted", lambda: (SECRET, SDS_ROOTS) in web.cache.status())
        assert await web.presented() is None
        assert web.socket.open_streams == 2
        assert [name for _, name in web.cache.status()] == [SDS_ROOTS]
        assert serial(published)


@pytest.mark.parametrize("form", FORMS)
async def test_refused_key_keeps_the_old_secret_and_is_not_sent_again(form: str) -> None:
    """S-03, S-16, F-74, P7: a key of another certificate is refused; the next good one is taken."""
    ca = authority()
    async with proxy(form) as web:
        good = publish(web.cache, identity(ca))
        await web.presents(serial(good))
        bad, other = identity(ca), identity(ca)
        assert bad.svid is not None
        assert bad.bundle is not None
        assert other.svid is not None
        mismatched = svid_secret(SDS_SVID, bad.svid.chain_der, other.svid.key_pkcs8)
        roots = roots_secret(SDS_ROOTS, bad.bundle.roots_der)
        web.cache.publish_identity(bad, ResourceSet([mismatched, roots]))
        await web.until("refused", lambda: bool(web.events.nacks))
        type_url, names, message = web.events.nacks[0]
        assert (type_url, names) == (SECRET, (SDS_SVID,))
        assert "KEY_VALUES_MISMATCH" in message or "private key" in message
        status = web.cache.status()[SECRET, SDS_SVID]
        assert status.refused == mismatched.version
        assert status.accepted == secrets_of(good).of_type(SECRET)[SDS_SVID].version
        assert await web.presented() == serial(good)
        await web.presents(serial(publish(web.cache, identity(ca))))
        assert len(web.events.nacks) == 1
        await web.until("accepted", lambda: web.cache.status()[SECRET, SDS_SVID].refused is None)
