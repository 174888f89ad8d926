"""A workload that is being deleted: each inbound connection ends after one more request (S8)."""

from __future__ import annotations

from dataclasses import replace

import pytest
from envoy.config.listener.v3 import listener_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2 as hcm_pb2

from mesh.envoy.cache import RenderCache
from mesh.envoy.render import ProxyInput, render
from mesh.envoy.resources import LISTENER
from mesh.meshconfig import MeshConfig
from mesh.policy.effective import EffectivePolicy
from mesh.spiffe import TrustDomain
from mesh.topology import AppProtocol, Interception, SocketAddress, Workload, WorkloadPort

WORKLOAD = Workload(
    uid="u",
    namespace="demo",
    name="web",
    service_account="web",
    address="10.0.0.1",
    ports=(WorkloadPort(number=8080, protocol=AppProtocol.HTTP, app=SocketAddress("10.0.0.1", 8080)),),
)


def limits(workload: Workload, cache: RenderCache) -> dict[str, set[int]]:
    """Requests a connection may carry (0 = any number) in each listener."""
    mesh = MeshConfig(trust_domain=TrustDomain("cluster.local"))
    proxy = ProxyInput(workload=workload, policy=EffectivePolicy(), services=(), mesh=mesh)
    found: dict[str, set[int]] = {}
    for name, resource in render(proxy, cache).of_type(LISTENER).items():
        for chain in listener_pb2.Listener.FromString(resource.body).filter_chains:
            for item in chain.filters:
                manager = hcm_pb2.HttpConnectionManager()
                if item.typed_config.Unpack(manager):
                    options = manager.common_http_protocol_options
                    found.setdefault(name, set()).add(options.max_requests_per_connection.value)
    return found


@pytest.mark.parametrize("interception", Interception, ids=lambda i: i.value)
def test_only_inbound_connections_of_a_draining_workload_end(interception: Interception) -> None:
    cache = RenderCache()
    workload = replace(WORKLOAD, interception=interception)
    inbound = "virtualInbound" if interception is Interception.REDIRECT else "inbound|8080"
    before = limits(workload, cache)
    assert before[inbound] == {0}
    # The same cache: a body made for the living workload must not be served for the draining one.
    after = limits(replace(workload, draining=True), cache)
    assert after[inbound] == {1}
    assert {name: found for name, found in after.items() if name != inbound} == {
        name: found for name, found in before.items() if name != inbound
    }
    assert limits(workload, cache) == before
