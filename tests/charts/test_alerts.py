"""Alerts name metrics that exist, and say what to do."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from tests.fakes.helm import CHART, ROOT, render

SOURCES = ("ca/metrics.py", "nodeagent/metrics.py", "injector/metrics.py")
NAME = re.compile(r"gatehouse_[a-z0-9_]+")


ALERTS: list[dict[str, Any]] = yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())


def test_the_rule_has_the_alerts_and_its_labels() -> None:
    chart = render(values={"metrics": {"prometheusRule": {"enabled": True, "labels": {"release": "prom"}}}})
    rule = chart.one("PrometheusRule", "gatehouse")
    assert rule["metadata"]["labels"]["release"] == "prom"
    assert rule["spec"]["groups"] == [{"name": "gatehouse", "rules": ALERTS}]


def test_nothing_of_it_by_default() -> None:
    assert not render().all("PrometheusRule")


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_an_alert_is_about_metrics_of_ours(alert: dict[str, Any]) -> None:
    declared = {name for source in SOURCES for name in NAME.findall((ROOT / source).read_text())}
    asked = {name.removesuffix("_bucket") for name in NAME.findall(alert["expr"])}
    assert asked
    assert asked <= declared
    assert alert["labels"]["severity"] in {"warning", "critical"}
    notes = alert["annotations"]
    assert notes["summary"]
    assert len(notes["description"]) > 40
