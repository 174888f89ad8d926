"""Live settings, and the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from injector import __main__ as command
from injector import config as configuration
from injector.metrics import UpkeepMetrics, WebhookMetrics
from injector.runtime import LiveSettings
from injector.upkeep import addresses_of
from mesh.obs.metrics import describe


def live(file: Path) -> tuple[LiveSettings, WebhookMetrics]:
    metrics = WebhookMetrics(CollectorRegistry())
    return LiveSettings(configuration.load(file, {}), file, metrics), metrics


def value(metrics: WebhookMetrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_settings_follow_their_file(tmp_path: Path) -> None:
    file = tmp_path / "i.yaml"
    file.write_text("injection: {hold_seconds: 5}")
    settings, metrics = live(file)
    assert not settings.refresh()
    file.write_text("injection: {hold_seconds: 6}")
    assert settings.refresh()
    assert settings.current.hold_seconds == 6
    assert value(metrics, "gatehouse_injector_config_generations") == 1


def test_the_last_good_settings_stay(tmp_path: Path) -> None:
    file = tmp_path / "i.yaml"
    file.write_text("injection: {hold_seconds: 5}")
    settings, metrics = live(file)
    file.write_text("injection: {hold_second: 6}")
    assert not settings.refresh()
    assert settings.current.hold_seconds == 5
    assert "hold_seconds" in settings.problem
    assert value(metrics, "gatehouse_injector_config_ready") == 0
    assert value(metrics, "gatehouse_injector_config_reloads_total", result="refused") == 1
    file.unlink()
    assert not settings.refresh(), "a file that is gone for a moment changes nothing"
    file.write_text("injection: {hold_seconds: 7}")
    assert settings.refresh()
    assert (settings.problem, settings.current.hold_seconds) == ("", 7)
    assert value(metrics, "gatehouse_injector_config_ready") == 1


def test_other_parts_need_a_restart(tmp_path: Path) -> None:
    file = tmp_path / "i.yaml"
    file.write_text("workers: 1")
    settings, _ = live(file)
    file.write_text("workers: 2")
    assert not settings.refresh()


def test_without_a_file_nothing_changes() -> None:
    settings = LiveSettings(configuration.load(None, {}), None, WebhookMetrics(CollectorRegistry()))
    assert not settings.refresh()


def test_check_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "i.yaml"
    file.write_text("injection: {hold_second: 6}")
    assert command.main(["check", "--config", str(file)]) == command.EXIT_CONFIG
    assert "did you mean 'hold_seconds'" in capsys.readouterr().err
    assert command.main(["check", "--set", "workers=2"]) == command.EXIT_OK
    assert capsys.readouterr().out.startswith("ok: settings ")


def test_every_setting_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["settings"]) == command.EXIT_OK
    text = capsys.readouterr().out
    assert "injection.defaults" in text
    assert "upkeep.jwks.private_networks" in text


def test_label_values_are_closed_sets() -> None:
    """Bounded cardinality: no metric has a label that a caller can fill."""
    labels = {label for row in (*describe(WebhookMetrics), *describe(UpkeepMetrics)) for label in row.labels}
    assert labels == {"outcome", "reason", "result", "resource", "code", "part"}


def test_addresses_of_request_authentications() -> None:
    item = {
        "apiVersion": "security.istio.io/v1",
        "kind": "RequestAuthentication",
        "metadata": {"name": "a", "namespace": "shop"},
        "spec": {
            "jwtRules": [
                {"issuer": "x", "jwksUri": "https://idp.example/jwks"},
                {"issuer": "y"},
                {"issuer": "https://idp.example/"},
            ]
        },
    }
    assert addresses_of(item) == (
        "https://idp.example/jwks",
        "https://idp.example/.well-known/openid-configuration",
    )
    assert addresses_of({**item, "spec": {"jwtRules": [{"issuer": "y"}]}}) is None
    assert addresses_of({**item, "spec": {"nonsense": 1}}) is None
