"""The configuration: the documented example, cross checks, and every setting in docs/ca.md."""

from __future__ import annotations

import datetime as dt
import re
from pathlib import Path
from typing import Any

import pytest

from ca import config as configuration
from ca.authn import AuthnCode
from ca.config import Address, CaConfig, ConfigCode, ConfigError, parse_name
from ca.core.acknowledged import ClaimCode
from ca.core.profile import ProfileError
from ca.limits import LimitCode
from ca.requests import RequestCode
from ca.trust_service import SyncCode
from mesh.settings import SettingsError
from mesh.settings import describe as describe_settings
from tests.fakes.ca_running import settings

DOCUMENT = Path("docs/ca.md").read_text()


def load(tmp_path: Path, **overrides: object) -> CaConfig:
    return configuration.load(None, {}, settings(tmp_path, **overrides))


def test_the_documented_example_loads(tmp_path: Path) -> None:
    example = re.search(r"```yaml\n(trust_domain.*?)```", DOCUMENT, re.DOTALL)
    assert example
    file = tmp_path / "ca.yaml"
    file.write_text(example[1])
    config = configuration.load(file, {})
    assert str(config.trust_domain) == "cluster.local"
    assert (config.listen.grpc.port, config.listen.mtls, config.workers) == (15012, None, 1)
    assert config.issue.profile().default_lifetime == dt.timedelta(hours=24)


def test_relative_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    file = tmp_path / "ca.yaml"
    file.write_text("state_dir: state\nca_dir: cacerts\ntoken: {issuer: x, jwks_file: keys/jwks.json}\n")
    config = configuration.load(file, {"GATEHOUSE_CA_LISTEN__GRPC": "[::1]:1"})
    assert config.state_dir == tmp_path / "state"
    assert config.ca_dir == tmp_path / "cacerts"
    assert config.token.jwks_file == tmp_path / "keys/jwks.json"
    assert str(config.listen.grpc) == "[::1]:1"


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        ({"workers": 2}, "listen.grpc: give a port"),
        (
            {"listen__grpc": "127.0.0.1:7", "listen__http": "127.0.0.1:7"},
            "listen.http and listen.grpc are both",
        ),
        ({"token__issuer": ""}, "token.issuer"),
        ({"token__audiences": ("a", "")}, "token.audiences"),
        ({"serving__names": ()}, "serving.names is empty"),
        ({"log_level": "loud"}, "log_level 'loud': allowed are debug, info"),
    ],
)
def test_fields_that_do_not_go_together(tmp_path: Path, overrides: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(tmp_path, **overrides)
    assert error.value.code is ConfigCode.CONFLICT
    assert text in error.value.public


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        ({"listen__grpc": "15012"}, "host:port"),
        ({"token__leeway": "61s"}, "leeway"),
        ({"serving__names": "UPPER"}, "lower case"),
        ({"trust_domain": "Cluster.Local"}, "trust domain"),
        ({"workers": 0}, "workers"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_values_that_are_wrong(tmp_path: Path, overrides: dict[str, Any], text: str) -> None:
    with pytest.raises(SettingsError) as error:
        load(tmp_path, **overrides)
    assert text in error.value.public


def test_lifetimes_are_checked_at_start(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="max_lifetime"):
        load(tmp_path, issue__max_lifetime="49h")
    load(tmp_path, issue__min_lifetime="10s", issue__allow_short_lifetimes=True)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [("0.0.0.0:15012", "0.0.0.0", 15012), ("[::]:1", "::", 1), ("localhost:0", "localhost", 0)],
)
def test_addresses(text: str, host: str, port: int) -> None:
    assert Address.parse(text) == Address(host, port)
    assert str(Address.parse(text)) == text


@pytest.mark.parametrize("text", ["", "a", ":1", "a:", "a:b", "a:65536", "a:-1", "::1:80", "[zz]:1", "a:1\n"])
def test_bad_addresses(text: str) -> None:
    with pytest.raises(ValueError, match=r"address|IPv6|hexadecimal|At least|Only|characters"):
        Address.parse(text)


@pytest.mark.parametrize("text", ["localhost", "a.b-c.d", "10.0.0.1", "::1"])
def test_serving_names(text: str) -> None:
    assert parse_name(text) == text


@pytest.mark.parametrize("text", ["", "A", "a..b", "-a", "a\n", "*.x", "a_b", "a" * 64])
def test_bad_serving_names(text: str) -> None:
    with pytest.raises(ValueError, match="DNS names"):
        parse_name(text)


def test_a_rotation_waits_until_every_replica_has_looked(tmp_path: Path) -> None:
    config = load(tmp_path, rotation__hold="1s", rotation__margin="0s", reload_interval="5s")
    found = config.rotation.settings(config.issue.max_lifetime, config.reload_interval)
    assert found.hold == found.margin == dt.timedelta(seconds=10)
    config = load(tmp_path)
    found = config.rotation.settings(config.issue.max_lifetime, config.reload_interval)
    assert (found.hold, found.margin) == (dt.timedelta(hours=1), dt.timedelta(minutes=10))
    assert found.leaf_lifetime == dt.timedelta(hours=48)
    assert found.automatic


def test_the_document_lists_everything() -> None:
    wanted = [row.path for row in describe_settings(CaConfig)]
    wanted += [code.value for code in (*AuthnCode, *LimitCode, *RequestCode, *SyncCode, *ClaimCode)]
    assert [name for name in wanted if f"`{name}`" not in DOCUMENT] == []
