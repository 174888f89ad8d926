"""The probe listener as messages; what a real Envoy does with it is tests/interop/test_envoy_probes.py."""

from __future__ import annotations

from typing import Any

import pytest
from envoy.config.bootstrap.v3 import bootstrap_pb2
from google.protobuf import json_format

from mesh.envoy import messages as m
from mesh.envoy.probes import (
    GrpcProbe,
    HttpProbe,
    MetricsTarget,
    Probe,
    ProbeServer,
    TcpProbe,
    clusters,
    install,
    listener,
)


def server(*probes: Probe, **fields: Any) -> ProbeServer:
    return ProbeServer(**({"addresses": ("10.0.0.1",), "application": "10.0.0.1", "probes": probes} | fields))


def http(path: str = "/a", **fields: Any) -> HttpProbe:
    return HttpProbe(**({"path": path, "port": 8080, "target": "/h"} | fields))


def data(message: Any) -> dict[str, Any]:
    found: dict[str, Any] = json_format.MessageToDict(message, preserving_proto_field_name=True)
    return found


def manager(found: ProbeServer) -> dict[str, Any]:
    config: dict[str, Any] = data(listener(found))["filter_chains"][0]["filters"][0]["typed_config"]
    return config


def routes(found: ProbeServer) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = manager(found)["route_config"]["virtual_hosts"][0].get("routes", [])
    return listed


EVERYTHING = server(
    http(),
    http("/b", tls=True, host="shop.example", timeout_seconds=0),
    TcpProbe(path="/c", port=5),
    GrpcProbe(path="/d", port=6, service="s"),
    prestop_seconds=5,
    metrics=(MetricsTarget(8080, "/metrics"),),
)


def test_the_same_server_has_the_same_bytes() -> None:
    """Row 12: a changed probe cluster starts unhealthy, so nothing may ever differ by chance."""
    first = [m.encode(listener(EVERYTHING)), *(m.encode(c) for c in clusters(EVERYTHING))]
    assert [m.encode(listener(EVERYTHING)), *(m.encode(c) for c in clusters(EVERYTHING))] == first


def test_an_empty_server_exposes_nothing() -> None:
    assert routes(server()) == []
    assert [f["name"] for f in manager(server())["http_filters"]] == ["envoy.filters.http.router"]
    assert clusters(server()) == []


def test_every_route_is_exact_and_for_get() -> None:
    for route in routes(EVERYTHING):
        assert set(route["match"]) == {"path", "headers"}
        assert route["match"]["headers"] == [{"name": ":method", "string_match": {"exact": "GET"}}]


def test_the_manager_merges_slashes_and_adds_no_headers() -> None:
    found = manager(EVERYTHING)
    assert found["merge_slashes"] is True
    assert found["generate_request_id"] is False
    assert found["stream_idle_timeout"] == "0s"
    assert found["request_headers_timeout"] == "10s"


@pytest.mark.parametrize(
    ("probe", "context", "literal"),
    [
        (http(), {"port": "8080"}, None),
        (http(host="x:1"), {}, "x:1"),
        (http(host=None), {}, None),
    ],
)
def test_the_host_that_is_sent(probe: HttpProbe, context: dict[str, str], literal: str | None) -> None:
    (route,) = routes(server(probe))
    per_filter = route["typed_per_filter_config"]["envoy.filters.http.lua"]
    assert per_filter["filter_context"] == context
    assert route["route"].get("host_rewrite_literal") == literal


def test_a_timeout_of_zero_waits_for_the_caller() -> None:
    assert [r["route"]["timeout"] for r in routes(EVERYTHING)[:2]] == ["1s", "0s"]


def test_health_checks_run_without_traffic() -> None:
    """Envoy's default without traffic is one check a minute."""
    for cluster in map(data, clusters(EVERYTHING)):
        for check in cluster.get("health_checks", ()):
            assert check["interval"] == check["no_traffic_interval"] == "1s"
            assert (check["unhealthy_threshold"], check["healthy_threshold"]) == (1, 1)


def test_clusters_are_shared_by_what_they_reach() -> None:
    names = [
        c.name
        for c in clusters(server(http("/a"), http("/b"), http("/c", tls=True), http("/d", loopback="::1")))
    ]
    assert names == ["probe|https||8080", "probe|http|::1|8080", "probe|http||8080"]


@pytest.mark.parametrize("captured", [True, False])
def test_the_source_of_captured_calls(captured: bool) -> None:
    found = {
        c["name"]: c
        for c in map(data, clusters(server(http(), http("/b", loopback="127.0.0.1"), captured=captured)))
    }
    assert ("upstream_bind_config" in found["probe|http||8080"]) is captured
    assert "upstream_bind_config" not in found["probe|http|127.0.0.1|8080"], "loopback is never captured"
    if captured:
        bind = found["probe|http||8080"]["upstream_bind_config"]
        assert bind["source_address"]["address"] == "127.0.0.6"
        assert bind["extra_source_addresses"][0]["address"]["address"] == "::6"


def test_requests_have_connections_of_their_own() -> None:
    (cluster,) = map(data, clusters(server(http())))
    (options,) = cluster["typed_extension_protocol_options"].values()
    assert options["common_http_protocol_options"]["max_requests_per_connection"] == 1


def test_metrics_without_targets_are_the_proxys() -> None:
    (route,) = routes(server(metrics=()))
    context = route["typed_per_filter_config"]["envoy.filters.http.lua"]["filter_context"]
    assert [t["label"] for t in context["targets"]] == ["proxy"]
    assert clusters(server(metrics=())) == []


def test_what_is_installed() -> None:
    bootstrap = bootstrap_pb2.Bootstrap()
    install(bootstrap, EVERYTHING)
    found = data(bootstrap)
    assert [x["name"] for x in found["static_resources"]["listeners"]] == ["probes"]
    assert len(found["static_resources"]["clusters"]) == 5
    patterns = found["stats_config"]["stats_matcher"]["inclusion_list"]["patterns"]
    assert patterns == [{"prefix": "cluster.probe|tcp|"}, {"prefix": "cluster.probe|grpc|"}]


def test_every_address_is_bound() -> None:
    found = data(listener(server(addresses=("10.0.0.1", "127.0.0.1", "::1"))))
    extra = [a["address"]["socket_address"]["address"] for a in found["additional_addresses"]]
    assert (found["address"]["socket_address"]["address"], extra) == ("10.0.0.1", ["127.0.0.1", "::1"])
