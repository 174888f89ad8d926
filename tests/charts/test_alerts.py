"""Alerts name metrics that exist, and say what to do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from ca.metrics import CaMetrics
from injector.metrics import CaptureMetrics, UpkeepMetrics, WebhookMetrics
from mesh.obs.metrics import describe
from nodeagent.core.schedule import JITTER, RATIO
from nodeagent.kube_watches import KubeMetrics
from nodeagent.metrics import AgentMetrics
from tests.charts.alert_cases import CASES, Case
from tests.fakes.helm import CHART, render
from tests.fakes.prometheus import promtool

DECLARED = {
    doc.name: doc
    for metrics in (CaMetrics, AgentMetrics, KubeMetrics, WebhookMetrics, UpkeepMetrics, CaptureMetrics)
    for doc in describe(metrics)
}
NAME = re.compile(r"(gatehouse_[a-z0-9_]+)(?:\{([^}]*)\})?")
LABEL = re.compile(r"([a-z_]+)[!=]")
BY = re.compile(r"by \(([a-z, ]+)\)|\$labels\.([a-z]+)")
OF_PROMETHEUS = {"instance", "le"}


ALERTS: list[dict[str, Any]] = yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())


def test_the_rule_has_the_alerts_and_its_labels() -> None:
    chart = render(values={"metrics": {"prometheusRule": {"enabled": True, "labels": {"release": "prom"}}}})
    rule = chart.one("PrometheusRule", "gatehouse")
    assert rule["metadata"]["labels"]["release"] == "prom"
    assert rule["spec"]["groups"] == [{"name": "gatehouse", "rules": ALERTS}]


def test_nothing_of_it_by_default() -> None:
    assert not render().all("PrometheusRule")


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_an_alert_is_about_metrics_and_labels_of_ours(alert: dict[str, Any]) -> None:
    asked = [
        (name.removesuffix("_bucket"), label)
        for name, selector in NAME.findall(alert["expr"])
        for label in LABEL.findall(selector) or [""]
    ]
    assert asked
    assert {name for name, _ in asked} <= set(DECLARED)
    known = {label for name, _ in asked for label in DECLARED[name].labels} | OF_PROMETHEUS
    parts = [part for match in BY.findall(str(alert)) for part in match if part]
    grouped = {word for part in parts for word in part.split(", ")}
    assert {label for _, label in asked if label} | grouped <= known


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_an_alert_waits_weighs_and_says_what_to_do(alert: dict[str, Any]) -> None:
    assert re.fullmatch(r"\d+[mh]", alert["for"])
    assert alert["labels"]["severity"] in {"warning", "critical"}
    notes = alert["annotations"]
    assert notes["summary"]
    assert len(notes["description"]) > 40


def test_no_healthy_certificate_is_an_alarm_whatever_its_lifetime() -> None:
    """Lifetimes are settings from minutes to days: the bound is a part of them, below the renewal."""
    (rule,) = [alert for alert in ALERTS if alert["alert"] == "GatehouseIdentityNotRenewed"]
    left, age = "gatehouse_agent_svid_remaining_seconds", "gatehouse_agent_svid_age_seconds"
    shape = re.fullmatch(rf"{left} / \({left} \+ {age}\) < ([0-9.]+)", rule["expr"])
    assert shape
    assert float(shape[1]) < 1 - RATIO - JITTER


# ---- what Prometheus makes of them -------------------------------------------------------------


def test_the_rules_are_rules(tmp_path: Path) -> None:
    assert f"SUCCESS: {len(ALERTS)} rules found" in promtool("check", "rules", _rules(tmp_path))


def test_every_alert_has_its_cases() -> None:
    assert set(CASES) == {alert["alert"] for alert in ALERTS}


@pytest.mark.parametrize("name", CASES)
def test_an_alert_fires_when_it_must_and_only_then(name: str, tmp_path: Path) -> None:
    """In Prometheus' own evaluation, `for` included."""
    case = CASES[name]
    (alert,) = [alert for alert in ALERTS if alert["alert"] == name]
    _rules(tmp_path)
    file = tmp_path / "tests.yml"
    tests = [_fires(alert, case), *(_quiet(name, series, case.minutes) for series in case.quiet)]
    file.write_text(
        yaml.safe_dump({"rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": tests})
    )
    promtool("test", "rules", file)


def _rules(directory: Path) -> Path:
    file = directory / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "gatehouse", "rules": ALERTS}]}))
    return file


def _fires(alert: dict[str, Any], case: Case) -> dict[str, Any]:
    labels = {**alert["labels"], **case.labels}
    told = {
        key: re.sub(r"\{\{ \$labels\.([a-z]+) \}\}", lambda found: labels[found[1]], text)
        for key, text in alert["annotations"].items()
    }
    wanted = [{"exp_labels": labels, "exp_annotations": told}]
    return _test(alert["alert"], case.fires, case.minutes, wanted)


def _quiet(name: str, series: tuple[str, ...], minutes: int) -> dict[str, Any]:
    return _test(name, series, minutes, [])


def _test(name: str, series: tuple[str, ...], minutes: int, wanted: list[dict[str, Any]]) -> dict[str, Any]:
    inputs = [{"series": one.split(" ", 1)[0], "values": one.split(" ", 1)[1]} for one in series]
    rule = {"eval_time": f"{minutes}m", "alertname": name, "exp_alerts": wanted}
    return {"interval": "1m", "input_series": inputs, "alert_rule_test": [rule]}
