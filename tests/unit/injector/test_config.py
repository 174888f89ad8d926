"""The injector's configuration: refusals with the field, and what reaches the core."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from injector import config as configuration
from injector.config import Address, ConfigCode, ConfigError
from injector.core.selectors import SelectorError
from mesh.errors import MeshError
from mesh.settings import SettingsError


def load(tmp_path: Path, **fields: Any) -> configuration.InjectorConfig:
    file = tmp_path / "injector.yaml"
    file.write_text(yaml.safe_dump(fields))
    return configuration.load(file, {})


def test_defaults_need_no_file() -> None:
    config = configuration.load(None, {})
    assert str(config.listen.https) == "0.0.0.0:15017"
    assert config.dns_names[0] == "gatehouse-injector.istio-system.svc"
    assert config.settings().selection.excluded_namespaces == {"istio-system"}


def test_what_is_set_reaches_the_core(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        namespace="mesh",
        injection={
            "proxy_image": "registry.example/proxy:2",
            "defaults": {"sidecar.istio.io/proxyCPU": "50m", "sidecar.istio.io/rewriteAppHTTPProbers": False},
            "selection": {
                "namespaces_by_default": True,
                "never": [{"matchLabels": {"app": "db"}}],
                "always": [{"matchExpressions": [{"key": "x", "operator": "Exists"}]}],
                "excluded_namespaces": ["vault"],
                "strict_namespaces": ["bank"],
                "tags": ["prod"],
            },
            "excluded_inbound_ports": "22,9000-9010",
            "ceilings": {"cpu": "4", "image_prefixes": ["registry.example/"]},
        },
    )
    settings = config.settings()
    assert settings.proxy_image == "registry.example/proxy:2"
    assert settings.defaults.proxy_cpu == "50m"
    assert settings.defaults.rewrite_probes is False
    assert settings.selection.never[0].matches({"app": "db"})
    assert settings.selection.always[0].matches({"x": ""})
    assert settings.selection.excluded_namespaces == {"vault", "mesh"}
    assert settings.selection.strict_namespaces == {"bank"}
    assert len(settings.excluded_inbound_ports) == 2
    assert settings.ceilings.image_prefixes == ("registry.example/",)
    assert settings.digest != configuration.load(None, {}).settings().digest


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    config = load(tmp_path, serving_dir="s", kubeconfig="k", upkeep={"jwks": {"ca_file": "ca.pem"}})
    assert config.serving_dir == tmp_path / "s"
    assert config.kubeconfig == tmp_path / "k"
    assert config.upkeep.jwks.ca_file == tmp_path / "ca.pem"


@pytest.mark.parametrize(
    ("fields", "error", "text"),
    [
        pytest.param({"lisen": {}}, SettingsError, "did you mean 'listen'", id="unknown-key"),
        pytest.param(
            {"injection": {"proxyimage": "x"}}, SettingsError, "injection.proxyimage", id="unknown-nested-key"
        ),
        pytest.param({"listen": {"https": "15017"}}, SettingsError, "host:port", id="address"),
        pytest.param({"listen": {"https": "::1:15017"}}, SettingsError, "brackets", id="ipv6"),
        pytest.param({"namespace": "A_b"}, SettingsError, "lower case", id="namespace"),
        pytest.param({"workers": 0}, SettingsError, "workers", id="no-workers"),
        pytest.param({"log_level": "loud"}, ConfigError, "loud", id="level"),
        pytest.param(
            {"listen": {"https": "0.0.0.0:1", "plain": "0.0.0.0:1"}}, ConfigError, "both", id="same-port"
        ),
        pytest.param(
            {"listen": {"plain": "0.0.0.0:5", "metrics": "0.0.0.0:5"}},
            ConfigError,
            "listen.metrics and listen.plain",
            id="same-metrics-port",
        ),
        pytest.param(
            {"workers": 2, "listen": {"plain": "0.0.0.0:0"}}, ConfigError, "each of 2 workers", id="port-0"
        ),
        pytest.param({"limits": {"threads": 20, "connections": 20}}, ConfigError, "by far", id="connections"),
        pytest.param(
            {"upkeep": {"jwks": {"private_networks": ["10.0.0.1/8"]}}}, ConfigError, "CIDR", id="network"
        ),
        pytest.param(
            {"injection": {"defaults": {"sidecar.istio.io/proxyCPU": "much"}}},
            ConfigError,
            "sidecar.istio.io/proxyCPU",
            id="bad-default",
        ),
        pytest.param(
            {"injection": {"defaults": {"sidecar.istio.io/proxyCpu": "1"}}},
            ConfigError,
            "did you mean",
            id="unknown-default",
        ),
        pytest.param({"injection": {"excluded_inbound_ports": "*"}}, ConfigError, "not allowed", id="star"),
        pytest.param({"injection": {"excluded_outbound_ports": "x"}}, ConfigError, "outbound", id="ports"),
        pytest.param(
            {"injection": {"selection": {"never": [{"matchlabels": {}}]}}},
            SelectorError,
            "never[0].matchlabels",
            id="selector",
        ),
        pytest.param(
            {"injection": {"selection": {"never": ["app=db"]}}}, SettingsError, "never", id="text-selector"
        ),
        pytest.param(
            {"injection": {"selection": {"never": [{}]}}}, SelectorError, "every pod", id="empty-selector"
        ),
    ],
)
def test_refusals_name_the_field(
    tmp_path: Path, fields: dict[str, Any], error: type[MeshError], text: str
) -> None:
    with pytest.raises(error) as caught:
        load(tmp_path, **fields)
    assert text in caught.value.public


def test_codes_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="proxyCPU") as caught:
        load(tmp_path, injection={"defaults": {"sidecar.istio.io/proxyCPU": "much"}})
    assert caught.value.code is ConfigCode.OPTION


def test_environment_and_service_links(tmp_path: Path) -> None:
    """The Service gatehouse-injector makes variables of our prefix in every pod: no typos."""
    env = {
        "GATEHOUSE_INJECTOR_WORKERS": "3",
        "GATEHOUSE_INJECTOR_SERVICE_HOST": "10.0.0.1",
        "GATEHOUSE_INJECTOR_PORT_443_TCP_ADDR": "10.0.0.1",
    }
    assert configuration.load(None, env).workers == 3


@pytest.mark.parametrize("text", ["0.0.0.0:15017", "[::]:0", "host.example:65535"])
def test_addresses_round_trip(text: str) -> None:
    assert str(Address.parse(text)) == text
