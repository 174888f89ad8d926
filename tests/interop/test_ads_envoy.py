"""ADS as a real Envoy consumes it, both forms: order, endpoints after clusters (P4), refusals, restarts.

What Envoy holds is read from its own admin interface; what it said is read from the cache's status.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import extension_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_pb2  # noqa: F401 - registers the type for JSON
from envoy.extensions.filters.http.jwt_authn.v3 import config_pb2  # noqa: F401 - registers its messages for JSON
from envoy.extensions.filters.http.rbac.v3 import rbac_pb2  # noqa: F401 - registers its messages for JSON
from envoy.extensions.filters.http.router.v3 import router_pb2  # noqa: F401 - registers its messages for JSON
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2,  # noqa: F401 - registers its messages for JSON
)
from google.protobuf.json_format import ParseDict

from mesh.envoy.render import ProxyInput, render
from mesh.envoy.resources import (
    CLUSTER,
    ENDPOINT,
    EXTENSION_CONFIG,
    LISTENER,
    Resource,
    ResourceSet,
)
from mesh.topology import AppProtocol, SocketAddress, WorkloadPort
from nodeagent.cache import WorkloadCache
from nodeagent.sockets import WorkloadSocket, prepare_base
from tests.fakes.agent_events import RecordedEvents
from tests.fakes.agent_identity import authority, identity, publish
from tests.fakes.envoy_inputs import MESH, policy, workload
from tests.fakes.envoy_process import EnvoyProcess
from tests.fakes.ports import claim_port

DEADLINE = 40.0
FORMS = ["GRPC", "DELTA_GRPC"]
TYPE = "type.googleapis.com/"
HTTP = TYPE + "envoy.extensions.filters.http."
MANAGER = TYPE + "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
ADS = {"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"}

pytestmark = [pytest.mark.asyncio, pytest.mark.envoy]


def bootstrap(socket: Path, form: str) -> dict[str, Any]:
    agent = {"endpoint": {"address": {"pipe": {"path": str(socket)}}}}
    back_off = {"base_interval": "0.05s", "max_interval": "0.2s"}
    return {
        "node": {"id": "web.demo", "cluster": "web"},
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}},
        "dynamic_resources": {
            "ads_config": {
                "api_type": form,
                "transport_api_version": "V3",
                "grpc_services": [
                    {"envoy_grpc": {"cluster_name": "agent", "retry_policy": {"retry_back_off": back_off}}}
                ],
            },
            "lds_config": ADS,
            "cds_config": ADS,
        },
        "static_resources": {
            "clusters": [
                {
                    "name": "agent",
                    "type": "STATIC",
                    "typed_extension_protocol_options": {
                        HTTP_OPTIONS: {
                            "@type": TYPE + HTTP_OPTIONS,
                            "explicit_http_config": {"http2_protocol_options": {}},
                        }
                    },
                    "load_assignment": {"cluster_name": "agent", "endpoints": [{"lb_endpoints": [agent]}]},
                }
            ]
        },
    }


def _resource(type_url: str, name: str, message: Any) -> Resource:
    return Resource.of(type_url, name, message.SerializeToString(deterministic=True))


def cluster(name: str, *, timeout: str = "1s") -> Resource:
    data = {
        "name": name,
        "type": "EDS",
        "connect_timeout": timeout,
        "eds_cluster_config": {"eds_config": ADS},
    }
    message = cluster_pb2.Cluster()
    if timeout.startswith("-"):
        del data["connect_timeout"]
        message.connect_timeout.seconds = int(timeout.removesuffix("s"))
    return _resource(CLUSTER, name, ParseDict(data, message))


def endpoints(name: str, port: int = 9) -> Resource:
    address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    data = {
        "cluster_name": name,
        "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
    }
    return _resource(ENDPOINT, name, ParseDict(data, endpoint_pb2.ClusterLoadAssignment()))


def listener(name: str, to: str, *, filter_name: str = "authz-deny", good: bool = True) -> Resource:
    discovered = {
        "name": filter_name,
        "config_discovery": {"config_source": ADS, "type_urls": [HTTP + "rbac.v3.RBAC"]},
    }
    broken = {
        "name": "jwt",
        "typed_config": {
            "@type": HTTP + "jwt_authn.v3.JwtAuthentication",
            "providers": {"p": {"issuer": "x", "local_jwks": {"inline_string": "{}"}}},
        },
    }
    manager = {
        "@type": MANAGER,
        "stat_prefix": name,
        "http_filters": [
            *([] if good else [broken]),
            discovered,
            {"name": "router", "typed_config": {"@type": HTTP + "router.v3.Router"}},
        ],
        "route_config": {
            "name": name,
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": to}}],
                }
            ],
        },
    }
    data = {
        "name": name,
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }
    return _resource(LISTENER, name, ParseDict(data, listener_pb2.Listener()))


def rbac(name: str, *, action: str = "DENY", good: bool = True) -> Resource:
    regex = "/x" if good else "("
    policy = {
        "permissions": [{"url_path": {"path": {"safe_regex": {"regex": regex}}}}],
        "principals": [{"any": True}],
    }
    data = {
        "name": name,
        "typed_config": {
            "@type": HTTP + "rbac.v3.RBAC",
            "rules": {"action": action, "policies": {"p": policy}},
        },
    }
    return _resource(EXTENSION_CONFIG, name, ParseDict(data, extension_pb2.TypedExtensionConfig()))


@dataclass
class Proxy:
    envoy: EnvoyProcess
    cache: WorkloadCache
    socket: WorkloadSocket
    events: RecordedEvents

    def publish(self, *resources: Resource) -> ResourceSet:
        config = ResourceSet(resources)
        self.cache.publish_config(config)
        return config

    async def until(self, what: str, condition: Callable[[], bool]) -> None:
        try:
            async with asyncio.timeout(DEADLINE):
                while not await asyncio.to_thread(condition):  # noqa: ASYNC110 - another process
                    await asyncio.sleep(0.01)
        except TimeoutError:
            pytest.fail(
                f"never: {what}; status: {dict(self.cache.status())}; nacks: {self.events.nacks};"
                f" {self.envoy.log()[-1500:]}"
            )

    async def accepts(self, config: ResourceSet) -> None:
        """Until exactly these bytes are accepted, and nothing warms."""

        def done() -> bool:
            status = self.cache.status()
            return all(
                (known := status.get((r.type_url, r.name))) is not None and known.accepted == r.version
                for r in config
            )

        await self.until("all accepted", done)
        await self.until("nothing warms", lambda: self.warming() == 0)

    def warming(self) -> int:
        return sum(self.envoy.stats("_manager.(warming_clusters|total_listeners_warming)$").values())

    def held(self, what: str) -> set[str]:
        """Names of dynamic clusters or listeners that are active in Envoy."""
        dump = self.envoy.config_dump()["configs"]
        key = f"dynamic_{'active_clusters' if what == 'cluster' else 'listeners'}"
        items = [item for config in dump for item in config.get(key, [])]
        if what == "cluster":
            return {item["cluster"]["name"] for item in items}
        return {item["name"] for item in items if "active_state" in item}


@asynccontextmanager
async def proxy(form: str) -> AsyncIterator[Proxy]:
    with tempfile.TemporaryDirectory(prefix="gh-", dir="/tmp") as base:
        prepare_base(Path(base))
        events = RecordedEvents()
        cache = WorkloadCache("demo/web")
        socket = WorkloadSocket(Path(base, "w"), cache, events=events)
        await socket.start()
        envoy = EnvoyProcess(bootstrap(socket.path, form), Path(base, "envoy"), wait_ready=False)
        publish(cache, identity(authority()))
        try:
            await asyncio.to_thread(envoy.start)
            yield Proxy(envoy, cache, socket, events)
        finally:
            await asyncio.to_thread(envoy.stop)
            await socket.stop()


@pytest.mark.parametrize("form", FORMS)
async def test_p4_changed_clusters_never_warm_for_ever(form: str) -> None:
    """With `initial_fetch_timeout: 0` a forgotten re-send would withhold the answer for ever."""
    async with proxy(form) as web:
        await web.until("asked", lambda: ("demo/web", "ads") in web.events.opened)
        assert (await asyncio.to_thread(web.envoy.get, "/ready"))[0] == 503, "silence, not emptiness"
        rest = [endpoints("a"), endpoints("b"), listener("in", "a"), rbac("authz-deny")]
        await web.accepts(web.publish(cluster("a"), cluster("b"), *rest))
        await asyncio.to_thread(web.envoy.wait_ready)
        for i in range(2, 6):
            await web.accepts(web.publish(cluster("a", timeout=f"{i}s"), cluster("b"), *rest))
        both = [cluster("a", timeout="9s"), cluster("b", timeout="9s")]
        await web.accepts(web.publish(*both, *rest))
        assert web.events.nacks == []
        assert web.socket.open_streams == 1, "one stream carries everything"


@pytest.mark.parametrize("form", FORMS)
async def test_clusters_come_and_go_with_their_routes(form: str) -> None:
    async with proxy(form) as web:
        policy = rbac("authz-deny")
        await web.accepts(web.publish(cluster("a"), endpoints("a"), listener("in", "a"), policy))
        moved = web.publish(cluster("b"), endpoints("b"), listener("in", "b"), policy)
        await web.accepts(moved)
        await web.until("the old cluster is gone", lambda: web.held("cluster") == {"b"})
        web.publish(policy)
        await web.until("all is gone", lambda: not web.held("cluster") | web.held("listener"))
        await web.accepts(web.publish(cluster("a"), endpoints("a"), listener("in", "a"), policy))
        assert web.events.nacks == []


@pytest.mark.parametrize("form", FORMS)
async def test_superseded_before_its_endpoints_exist(form: str) -> None:
    """A cluster without endpoints warms and withholds the answer: the next version is the way out."""
    async with proxy(form) as web:
        web.publish(cluster("stuck"))
        await web.until("warms", lambda: web.warming() == 1)
        await web.accepts(web.publish(cluster("a"), endpoints("a"), listener("in", "a"), rbac("authz-deny")))
        await asyncio.to_thread(web.envoy.wait_ready)
        assert web.held("cluster") == {"a"}


@pytest.mark.parametrize("form", FORMS)
async def test_refusals_are_booked_on_the_guilty(form: str) -> None:
    """Prototype 5: the others are applied; the guilty keeps its old form; nothing is sent in a loop."""
    async with proxy(form) as web:
        base = [cluster("a"), endpoints("a"), rbac("authz-deny"), rbac("authz-allow")]
        l1, l2 = listener("l1", "a"), listener("l2", "a", filter_name="authz-allow")
        await web.accepts(web.publish(*base, l1, l2))
        bad = listener("l2", "a", filter_name="authz-allow", good=False)
        l3 = listener("l3", "a")
        web.publish(*base, l1, bad, l3)
        await web.until("refused", lambda: len(web.events.nacks) == 1)
        status = web.cache.status()
        assert (status[LISTENER, "l2"].accepted, status[LISTENER, "l2"].refused) == (l2.version, bad.version)
        assert "jwks" in status[LISTENER, "l2"].message.lower()
        assert status[LISTENER, "l3"].accepted == l3.version
        assert web.held("listener") == {"l1", "l2", "l3"}
        broken = rbac("authz-deny", good=False)
        allow = rbac("authz-allow", action="ALLOW")
        web.publish(cluster("a"), endpoints("a"), broken, allow, l1, l2, l3)
        await web.until("refused", lambda: len(web.events.nacks) == 2)
        await web.until(
            "allow", lambda: web.cache.status()[EXTENSION_CONFIG, "authz-allow"].accepted == allow.version
        )
        assert web.cache.status()[EXTENSION_CONFIG, "authz-deny"].refused == broken.version
        await web.accepts(web.publish(*base, l1, l2, l3))
        assert len(web.events.nacks) == 2, "no loop"


@pytest.mark.parametrize("form", FORMS)
async def test_cluster_that_cannot_be_decoded_does_not_stay_in_the_way(form: str) -> None:
    """Caught while decoding: nothing of the response is applied and no cluster is named."""
    async with proxy(form) as web:
        rest = [endpoints("a"), endpoints("b"), listener("in", "a"), rbac("authz-deny")]
        await web.accepts(web.publish(cluster("a"), cluster("b"), *rest))
        bad = cluster("b", timeout="-1s")
        web.publish(cluster("a"), bad, *rest)
        await web.until("refused", lambda: bool(web.events.nacks))
        status = web.cache.status()
        assert status[CLUSTER, "b"].refused == bad.version
        assert status[CLUSTER, "a"].refused is None
        await web.accepts(web.publish(cluster("a"), cluster("b", timeout="3s"), *rest))


@pytest.mark.parametrize("form", FORMS)
async def test_restart_of_the_agent_changes_nothing_and_the_next_change_arrives(form: str) -> None:
    async with proxy(form) as web:
        rest = [endpoints("a"), listener("in", "a"), rbac("authz-deny")]
        await web.accepts(web.publish(cluster("a"), *rest))
        before = await asyncio.to_thread(web.envoy.stats, "listener_manager.listener_(modified|removed)$")
        await web.socket.stop()
        web.cache.publish_config(ResourceSet([cluster("a", timeout="7s"), *rest]))
        await web.socket.start()
        await web.accepts(web.cache.snapshot.config or ResourceSet())
        after = await asyncio.to_thread(web.envoy.stats, "listener_manager.listener_(modified|removed)$")
        assert before == after
        assert web.events.nacks == []


@pytest.mark.parametrize("form", FORMS)
async def test_p10_envoy_knows_the_field_that_the_published_messages_do_not(form: str) -> None:
    """Connections of one age end apart: Envoy has read the jitter beside the duration, in each listener."""
    port, app = claim_port(), SocketAddress("127.0.0.1", 9)
    ports = (WorkloadPort(number=port, protocol=AppProtocol.HTTP, app=app),)
    web_workload = dataclasses.replace(workload(), address="127.0.0.1", ports=ports)
    async with proxy(form) as web:
        await web.accepts(web.publish(*render(ProxyInput(web_workload, policy(), (), MESH))))
        dump = json.dumps((await asyncio.to_thread(web.envoy.config_dump))["configs"])
        found = re.findall(r'"common_http_protocol_options": (\{(?:[^{}]|\{[^{}]*\})*\})', dump)
        wanted = {"max_connection_duration": "38880s", "max_connection_duration_jitter": {"value": 10}}
        assert found
        assert all(json.loads(text) == wanted for text in found)
        assert web.events.nacks == []
