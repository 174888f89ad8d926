"""The bootstrap in a real Envoy: closed admin, statistics, readiness, and no life without configuration."""

from __future__ import annotations

import http.client
import json
import os
import random
import socket

import pytest

from mesh.envoy.bootstrap import BootstrapOptions, bootstrap
from mesh.topology import SocketAddress
from tests.fakes.envoy_process import EnvoyProcess

pytestmark = [pytest.mark.envoy, pytest.mark.xdist_group("envoy-bootstrap")]


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    directory = tmp_path_factory.mktemp("b")
    chance = random.Random(os.getpid())
    host = f"127.{chance.randrange(16, 250)}.{chance.randrange(250)}.1"
    return BootstrapOptions(
        node_id="demo/web",
        agent_socket=str(directory / "agent.sock"),
        admin=str(directory / "admin.sock"),
        stats=SocketAddress(host, 15090),
        readiness=SocketAddress(host, 15021),
    )


@pytest.fixture(scope="module")
def configured(options, tmp_path_factory):
    """As if the agent had sent an empty configuration: only the static part."""
    found = json.loads(bootstrap(options))
    del found["dynamic_resources"]
    with EnvoyProcess(found, tmp_path_factory.mktemp("configured")) as envoy:
        yield envoy


def get(address: SocketAddress, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection(address.host, address.port, timeout=30)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def test_statistics_and_nothing_else(configured, options):
    status, body = get(options.stats, "/stats/prometheus")
    assert status == 200
    assert "envoy_server_live" in body
    for path in (
        "/",
        "/config_dump",
        "/stats",
        "/stats/prometheus/../../config_dump",
        "/quitquitquit",
        "/ready",
    ):
        assert get(options.stats, path)[0] == 404, path


def test_readiness_and_nothing_else(configured, options):
    assert get(options.readiness, "/healthz/ready") == (200, "LIVE\n")
    for path in ("/", "/ready", "/healthz", "/stats/prometheus"):
        assert get(options.readiness, path)[0] == 404, path


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/config_dump"),
        ("GET", "/certs"),
        ("GET", "/clusters"),
        ("POST", "/logging"),
        ("POST", "/quitquitquit"),
        ("POST", "/drain_listeners"),
        ("POST", "/reset_counters"),
        ("GET", "/"),
    ],
)
def test_admin_is_restricted_even_on_its_socket(configured, method, path):
    assert configured.get(path, method=method)[0] == 403


def test_admin_answers_what_is_needed(configured):
    assert configured.get("/ready") == (200, "LIVE\n")
    assert configured.get("/stats")[0] == 200


def test_p5_no_agent_no_life(options, tmp_path):
    """Not ready, and the readiness listener does not even accept: an honest signal."""
    own = BootstrapOptions(
        node_id="demo/web",
        agent_socket=str(tmp_path / "nobody.sock"),
        admin=str(tmp_path / "admin.sock"),
        readiness=SocketAddress(options.readiness.host, 15022),
    )
    with EnvoyProcess(bootstrap(own), tmp_path, wait_ready=False) as envoy:
        status, body = envoy.get("/ready")
        assert (status, body.strip()) == (503, "PRE_INITIALIZING")
        with pytest.raises(ConnectionRefusedError), socket.create_connection((own.readiness.host, 15022), 5):
            pass
