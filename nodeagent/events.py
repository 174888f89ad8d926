"""What the discovery streams report, as metrics and log lines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from mesh.envoy.resources import SECRET
from mesh.obs.logs import logger
from nodeagent.core.subscriptions import SEND_ORDER
from nodeagent.metrics import AgentMetrics

SLOW: Final = 5.0
"""Seconds; a push that takes longer waits for a proxy that does not read."""

_log = logger("nodeagent.streams")


def short_type(type_url: str) -> str:
    """The message name of a type URL, e.g. `Listener`."""
    return type_url.rpartition(".")[2][:40] or "none"


class AgentEvents:
    """Implements `nodeagent.core.subscriptions.SessionEvents`.

    Args:
        secret_accepted: called when a proxy accepted secrets.
    """

    def __init__(self, metrics: AgentMetrics, secret_accepted: Callable[[], None] = lambda: None) -> None:
        self._metrics = metrics
        self._secret_accepted = secret_accepted
        for (
            type_url
        ) in SEND_ORDER:  # from 0 on: an alert asks for increases, a series that begins with 1 has none
            metrics.nacks.labels(type=short_type(type_url))

    def on_stream_open(self, workload: str, service: str) -> None:
        """Count the stream."""
        self._metrics.streams.labels(api=service).inc()
        _log.debug("stream opened", workload=workload, api=service)

    def on_stream_close(self, workload: str, service: str, reason: str) -> None:
        """Count it out."""
        if reason != "socket_too_many_streams":  # such a stream was never counted in
            self._metrics.streams.labels(api=service).dec()
        _log.debug("stream closed", workload=workload, api=service, reason=reason)

    def on_pushed(self, workload: str, seconds: float) -> None:
        """Observe it."""
        self._metrics.push_seconds.observe(seconds)
        if seconds > SLOW:
            _log.warning("a proxy reads slowly", workload=workload, seconds=round(seconds, 3))

    def on_ack(
        self,
        workload: str,  # noqa: ARG002 - as `SessionEvents`
        type_url: str,
        names: tuple[str, ...],  # noqa: ARG002 - as `SessionEvents`
    ) -> None:
        """The status book knows; somebody may wait for it."""
        if type_url == SECRET:
            self._secret_accepted()

    def on_nack(self, workload: str, type_url: str, names: tuple[str, ...], message: str) -> None:
        """A proxy refused resources: our rendering was wrong, somebody must look."""
        self._metrics.nacks.labels(type=short_type(type_url)).inc(max(len(names), 1))
        _log.error(
            "the proxy refused resources",
            workload=workload,
            type=short_type(type_url),
            names=names[:10],
            detail=message[:1000],
        )

    def on_unauthorised(self, workload: str, type_url: str, name: str) -> None:
        """Someone on this socket asked for another identity (F-71)."""
        _log.warning(
            "asked for another identity's resource",
            workload=workload,
            type=short_type(type_url),
            resource=name[:200],
        )

    def on_unknown(self, workload: str, type_url: str, name: str) -> None:
        """A name that is never served (S-14)."""
        _log.debug(
            "asked for an unknown resource", workload=workload, type=short_type(type_url), resource=name[:200]
        )
