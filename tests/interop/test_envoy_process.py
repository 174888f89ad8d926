"""The helper that runs a real Envoy: it starts, answers, fails loudly and goes away."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import envoy_process
from tests.fakes.envoy_process import EnvoyFailedError, EnvoyMissingError, EnvoyProcess, find_envoy, validate

pytestmark = pytest.mark.envoy

# protobuf varies the white space of its messages on purpose, so that nobody matches on it
NO_SUCH_FIELD = re.compile(r"no\s+such\s+field")
TCP: dict[str, Any] = {"admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}}}


def test_a_bootstrap_is_validated() -> None:
    assert validate(TCP).ok
    bad = validate({"admn": {}})
    assert not bad.ok
    assert NO_SUCH_FIELD.search(bad.output)


@pytest.mark.parametrize("admin", ["tcp", "pipe"])
def test_it_runs_and_answers(short_dir: Path, admin: str) -> None:
    pipe = {"admin": {"address": {"pipe": {"path": str(short_dir / "admin.sock")}}}}
    with EnvoyProcess(TCP if admin == "tcp" else pipe, short_dir) as envoy:
        assert envoy.get("/ready") == (200, "LIVE\n")
        assert "configs" in envoy.config_dump()
        assert envoy.stats("server.live$") == {"server.live": 1}
        pid = envoy.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert "starting main dispatch loop" in envoy.log()


def test_a_bad_bootstrap_shows_the_log(tmp_path: Path) -> None:
    with pytest.raises(EnvoyFailedError, match=NO_SUCH_FIELD):
        EnvoyProcess({"x": 1}, tmp_path).start()


def test_not_getting_ready_shows_the_log(tmp_path: Path) -> None:
    nowhere = {"path": str(tmp_path / "none.sock")}
    source = {
        "initial_fetch_timeout": "0s",
        "resource_api_version": "V3",
        "api_config_source": {
            "api_type": "GRPC",
            "transport_api_version": "V3",
            "grpc_services": [{"envoy_grpc": {"cluster_name": "agent"}}],
        },
    }
    endpoint = {"endpoint": {"address": {"pipe": nowhere}}}
    cluster = {
        "name": "agent",
        "type": "STATIC",
        "load_assignment": {"cluster_name": "agent", "endpoints": [{"lb_endpoints": [endpoint]}]},
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        },
    }
    bootstrap = TCP | {
        "node": {"id": "a", "cluster": "b"},
        "static_resources": {"clusters": [cluster]},
        "dynamic_resources": {"lds_config": source},
    }
    with EnvoyProcess(bootstrap, tmp_path, wait_ready=False) as envoy:
        assert envoy.get("/ready")[0] == 503
        with pytest.raises(EnvoyFailedError, match=r"did not get ready within 0\.2 s"):
            envoy.wait_ready(0.2)


def test_without_an_envoy_tests_fail_and_do_not_skip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(envoy_process, "_PYTHON", tmp_path / "python")
    find_envoy.cache_clear()
    try:
        with pytest.raises(EnvoyMissingError, match="make dev"):
            find_envoy()
    finally:
        monkeypatch.undo()
        find_envoy.cache_clear()
    assert issubclass(EnvoyMissingError, AssertionError)
