"""What streams report becomes metrics and log lines."""

from __future__ import annotations

import logging

import pytest
from prometheus_client import CollectorRegistry

from mesh.envoy.resources import LISTENER, SECRET
from nodeagent.events import SLOW, AgentEvents, short_type
from nodeagent.metrics import AgentMetrics


@pytest.fixture
def metrics() -> AgentMetrics:
    return AgentMetrics(CollectorRegistry())


def value(metrics: AgentMetrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"gatehouse_agent_{name}", labels)


def test_open_streams_are_counted_by_api(metrics: AgentMetrics) -> None:
    events = AgentEvents(metrics)
    events.on_stream_open("demo/web", "ads")
    events.on_stream_open("demo/web", "ads")
    events.on_stream_close("demo/web", "ads", "client")
    events.on_stream_close("demo/web", "ads", "socket_too_many_streams")  # was never open
    assert value(metrics, "streams", api="ads") == 1


def test_a_refusal_of_the_proxy_is_an_error(metrics: AgentMetrics, caplog: pytest.LogCaptureFixture) -> None:
    AgentEvents(metrics).on_nack("demo/web", LISTENER, ("inbound",), "bad")
    assert value(metrics, "nacks_total", type="Listener") == 1
    assert [r.levelno for r in caplog.records] == [logging.ERROR]


def test_refusals_are_shown_before_the_first(metrics: AgentMetrics) -> None:
    """A series that begins with 1 has no increase, and an alert on increases would miss it."""
    assert value(metrics, "nacks_total", type="Listener") is None
    AgentEvents(metrics)
    assert value(metrics, "nacks_total", type="Listener") == 0


def test_a_push_is_timed_and_a_slow_reader_is_named(
    metrics: AgentMetrics, caplog: pytest.LogCaptureFixture
) -> None:
    events = AgentEvents(metrics)
    events.on_pushed("demo/web", 0.002)
    assert not caplog.records
    events.on_pushed("demo/web", SLOW + 1)
    assert value(metrics, "push_seconds_count") == 2
    assert value(metrics, "push_seconds_sum") == pytest.approx(SLOW + 1.002)
    assert [r.getMessage() for r in caplog.records] == ["a proxy reads slowly"]


def test_asking_for_another_identity_is_a_warning(
    metrics: AgentMetrics, caplog: pytest.LogCaptureFixture
) -> None:
    events = AgentEvents(metrics)
    events.on_unauthorised("demo/web", SECRET, "spiffe://cluster.local/ns/demo/sa/other")
    events.on_unknown("demo/web", SECRET, "nobody")
    events.on_ack("demo/web", SECRET, ("default",))
    assert [r.levelno for r in caplog.records] == [logging.WARNING]


def test_short_types() -> None:
    assert short_type(LISTENER) == "Listener"
    assert short_type("") == "none"
    assert len(short_type("a." + "b" * 500)) == 40
