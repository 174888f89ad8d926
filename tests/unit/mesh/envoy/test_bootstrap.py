"""The bootstrap and the command line."""

from __future__ import annotations

import json

import pytest

from mesh.envoy import messages as m
from mesh.envoy.bootstrap import BootstrapOptions, bootstrap, envoy_arguments
from mesh.topology import SocketAddress


def made(**options):
    return json.loads(bootstrap(BootstrapOptions(node_id="n", agent_socket="/run/a.sock", **options)))


def test_p5_nothing_times_out_into_an_empty_configuration():
    dynamic = made()["dynamic_resources"]
    for name in ("lds_config", "cds_config"):
        assert dynamic[name]["initial_fetch_timeout"] == "0s"
        assert "ads" in dynamic[name]


def test_reconnects_within_two_seconds():
    service = made()["dynamic_resources"]["ads_config"]["grpc_services"][0]
    assert service["envoy_grpc"]["retry_policy"]["retry_back_off"]["max_interval"] == "2s"


def test_p6_long_regular_expressions_are_allowed():
    (layer,) = made()["layered_runtime"]["layers"]
    assert layer["static_layer"]["re2.max_program_size.error_level"] >= 1_000_000


def test_admin_is_closed_by_default():
    assert "admin" not in made()


def test_admin_serves_little():
    paths = made(admin="/run/admin.sock")["admin"]["allow_paths"]
    assert paths == [{"exact": "/ready"}, {"prefix": "/stats"}]
    assert "allow_paths" not in made(admin="/run/admin.sock", admin_unrestricted=True)["admin"]


def test_static_listeners_do_not_count_against_the_limit():
    found = made(
        admin="/run/admin.sock", stats=SocketAddress("127.0.0.1", 1), readiness=SocketAddress("127.0.0.1", 2)
    )
    assert [x["name"] for x in found["static_resources"]["listeners"]] == ["stats", "readiness"]
    assert all(x["ignore_global_conn_limit"] for x in found["static_resources"]["listeners"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"agent_socket": ""}, "0 bytes; allowed are 1 to 107", id="empty-socket"),
        pytest.param({"agent_socket": "/" + "x" * 107}, "108 bytes", id="long-socket"),
        pytest.param({"admin": "/" + "é" * 60}, "121 bytes", id="long-admin-socket"),
        pytest.param(
            {"stats": SocketAddress("127.0.0.1", 1)}, "needs the admin endpoint", id="stats-without-admin"
        ),
    ],
)
def test_refused(options, message):
    fields = {"node_id": "n", "agent_socket": "/run/a.sock", **options}
    with pytest.raises(m.RenderError, match=message) as caught:
        bootstrap(BootstrapOptions(**fields))
    assert caught.value.code is m.RenderCode.OPTION


def test_arguments():
    assert list(envoy_arguments("{}")) == [
        "--config-yaml",
        "{}",
        "--disable-hot-restart",
        "--drain-time-s",
        "30",
        "--drain-strategy",
        "immediate",
        "--concurrency",
        "2",
        "--log-level",
        "warning",
    ]


def test_arguments_with_options():
    found = envoy_arguments(
        "/tmp/b.json",
        is_path=True,
        drain_seconds=3,
        concurrency=0,
        log_level="info",
        component_log_levels={"upstream": "debug", "config": "trace"},
        log_format="%v",
        service_node="n",
    )
    assert list(found) == [
        *("--config-path", "/tmp/b.json", "--disable-hot-restart"),
        *("--drain-time-s", "3", "--drain-strategy", "immediate"),
        *("--log-level", "info", "--component-log-level", "config:trace,upstream:debug"),
        *("--log-format", "%v", "--service-node", "n"),
    ]
