"""Clusters and endpoints."""

from __future__ import annotations

from dataclasses import replace

import pytest
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2

from mesh.envoy import clusters
from mesh.topology import AppProtocol, SocketAddress, WorkloadPort
from tests.fakes import envoy_inputs as inputs
from tests.fakes.envoy_static import decode

HTTP = AppProtocol.HTTP


def port(*endpoints, protocol=HTTP):
    return replace(inputs.service(protocol).ports[0], endpoints=endpoints)


def test_identities_are_one_per_service_account_and_trust_domain():
    ends = [inputs.endpoint(f"10.0.0.{i}", account=name) for i, name in enumerate(["b", "a", "b"])]
    found = clusters.identities(port(*ends), [inputs.MESH.trust_domain])
    assert found == ("spiffe://cluster.local/ns/demo/sa/a", "spiffe://cluster.local/ns/demo/sa/b")


def test_endpoints_outside_of_the_mesh_and_illegal_names_prove_nothing():
    ends = [inputs.endpoint("10.0.0.1", account="Bad_Name"), inputs.endpoint("10.0.0.2", in_mesh=False)]
    assert clusters.identities(port(*ends), [inputs.MESH.trust_domain]) == ()


def assigned(*endpoints, mtls=(), **fields):
    service = inputs.service(HTTP, **fields)
    resource = clusters.endpoints(service, port(*endpoints), frozenset(mtls))
    (locality,) = decode(resource).endpoints
    return locality.lb_endpoints


def mode(endpoint):
    fields = endpoint.metadata.filter_metadata["envoy.transport_socket_match"].fields
    return fields["tlsMode"].string_value


def test_each_endpoint_says_how_it_is_spoken_to():
    one, two = inputs.endpoint("10.0.0.1"), inputs.endpoint("10.0.0.2")
    assert [mode(e) for e in assigned(one, two, mtls=[one.address])] == ["istio", "disabled"]


def test_health():
    one, two = inputs.endpoint("10.0.0.1"), inputs.endpoint("10.0.0.2", healthy=False)
    assert [e.health_status for e in assigned(one, two)] == [1, 2]


def test_external_endpoints_carry_no_metadata():
    (found,) = assigned(inputs.endpoint("10.0.0.1"), external=True)
    assert not found.HasField("metadata")


def test_no_endpoints_is_an_assignment_without_any():
    resource = clusters.endpoints(inputs.service(HTTP), port(), frozenset())
    assert not decode(resource).endpoints
    assert resource.name == f"outbound|9080||{inputs.REVIEWS}"


@pytest.mark.parametrize(
    ("app", "captured", "source"),
    [
        pytest.param("10.0.0.1", True, "127.0.0.6", id="captured-v4"),
        pytest.param("fd00::1", True, "::6", id="captured-v6"),
        pytest.param("127.0.0.1", True, "", id="captured-loopback"),
        pytest.param("10.0.0.1", False, "", id="explicit"),
    ],
)
def test_source_of_calls_to_the_application(app, captured, source):
    found = WorkloadPort(number=8080, protocol=HTTP, app=SocketAddress(app, 8080))
    cluster = decode(clusters.inbound_cluster(found, captured=captured))
    assert cluster.upstream_bind_config.source_address.address == source


@pytest.mark.parametrize(
    ("protocol", "fields"),
    [
        (AppProtocol.HTTP, ["explicit_http_config"]),
        (AppProtocol.HTTP2, ["explicit_http_config"]),
        (AppProtocol.AUTO, ["use_downstream_protocol_config"]),
    ],
)
def test_protocols_towards_a_server(protocol, fields):
    cluster = decode(clusters.service_cluster(inputs.service(protocol), port(protocol=protocol), inputs.MESH))
    (packed,) = cluster.typed_extension_protocol_options.values()
    options = http_protocol_options_pb2.HttpProtocolOptions.FromString(packed.value)
    assert [field.name for field, _ in options.ListFields()] == fields
    assert (protocol is AppProtocol.HTTP2) == options.explicit_http_config.HasField("http2_protocol_options")


def test_prototype_7_the_socket_of_a_mesh_cluster_never_succeeds():
    service = inputs.service(HTTP)
    cluster = decode(clusters.service_cluster(service, service.ports[0], inputs.MESH))
    assert b"gatehouse:never" in cluster.transport_socket.typed_config.value
    assert [match.name for match in cluster.transport_socket_matches] == ["tlsMode-istio", "tlsMode-disabled"]
    assert all(match.match.fields["tlsMode"].string_value for match in cluster.transport_socket_matches)
