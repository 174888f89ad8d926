"""Metrics: declared once, named well, exposed and described from the declaration."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from mesh.obs.metrics import MetricDoc, MetricSet, counter, describe, exposition, gauge, histogram


class Base(MetricSet):
    workloads = gauge("gatehouse_test_workloads", "Workloads known.")


class Metrics(Base):
    issued = counter("gatehouse_test_issued_total", "Certificates signed.", labels=("kind",))
    sign_seconds = histogram("gatehouse_test_sign_seconds", "Time to sign.", buckets=(0.001, 0.01))


def test_a_set_is_used_through_its_attributes() -> None:
    metrics = Metrics(CollectorRegistry())
    metrics.issued.labels(kind="workload").inc(2)
    metrics.sign_seconds.observe(0.005)
    metrics.workloads.set(3)
    body, content_type = exposition(metrics.registry)
    assert content_type.startswith("text/plain")
    text = body.decode()
    assert 'gatehouse_test_issued_total{kind="workload"} 2.0' in text
    assert 'gatehouse_test_sign_seconds_bucket{le="0.01"} 1.0' in text
    assert "gatehouse_test_workloads 3.0" in text


def test_sets_in_two_registries_do_not_meet() -> None:
    one, two = Metrics(CollectorRegistry()), Metrics(CollectorRegistry())
    one.workloads.set(1)
    assert b"workloads 0.0" in exposition(two.registry)[0]


def test_describe_has_inherited_metrics_by_name() -> None:
    assert describe(Metrics) == (
        MetricDoc("gatehouse_test_issued_total", "counter", "Certificates signed.", ("kind",), ""),
        MetricDoc("gatehouse_test_sign_seconds", "histogram", "Time to sign.", (), "seconds"),
        MetricDoc("gatehouse_test_workloads", "gauge", "Workloads known.", (), ""),
    )
    assert Metrics.issued.doc.kind == "counter"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda: counter("test_issued_total", "X."), "start with gatehouse_", id="prefix"),
        pytest.param(lambda: counter("gatehouse_Issued_total", "X."), "lower_snake_case", id="case"),
        pytest.param(lambda: counter("gatehouse_ca_issued", "X."), "ends in _total", id="counter"),
        pytest.param(lambda: gauge("gatehouse_ca_issued_total", "X."), "ends in _total", id="gauge-total"),
        pytest.param(lambda: gauge("gatehouse_ca_memory", "X."), "must end in a unit", id="gauge"),
        pytest.param(
            lambda: histogram("gatehouse_ca_signing", "X.", buckets=(1,)),
            "must end in a unit",
            id="histogram",
        ),
        pytest.param(lambda: gauge("gatehouse_ca_age_ms", "X."), "ms is no base unit", id="scaled"),
        pytest.param(lambda: gauge("gatehouse_ca_keys", "X"), "must be a sentence", id="help"),
        pytest.param(
            lambda: gauge("gatehouse_ca_keys", "X.", labels=("le",)), "label 'le' is not allowed", id="label"
        ),
        pytest.param(
            lambda: gauge("gatehouse_ca_keys", "X.", labels=("A",)),
            "label 'A' is not allowed",
            id="label-case",
        ),
        pytest.param(
            lambda: histogram("gatehouse_ca_x_seconds", "X.", buckets=(2, 1)), "ascending", id="order"
        ),
        pytest.param(
            lambda: histogram("gatehouse_ca_x_seconds", "X.", buckets=()), "not empty", id="no-buckets"
        ),
    ],
)
def test_bad_declarations(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "name", ["age_seconds", "size_bytes", "used_ratio", "streams", "ready", "build_info"]
)
def test_good_gauge_names(name: str) -> None:
    assert gauge(f"gatehouse_ca_{name}", "X.").doc.kind == "gauge"
