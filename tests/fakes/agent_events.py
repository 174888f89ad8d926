"""Events of streams, recorded."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class RecordedEvents:
    """Keeps what the streams of all workloads reported, in order."""

    opened: list[tuple[str, str]] = field(default_factory=list)
    closed: list[tuple[str, str, str]] = field(default_factory=list)
    acks: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)
    nacks: list[tuple[str, tuple[str, ...], str]] = field(default_factory=list)
    unauthorised: list[tuple[str, str, str]] = field(default_factory=list)
    unknown: list[tuple[str, str, str]] = field(default_factory=list)
    pushed: list[tuple[str, float]] = field(default_factory=list)

    def on_stream_open(self, workload: str, service: str) -> None:
        self.opened.append((workload, service))

    def on_stream_close(self, workload: str, service: str, reason: str) -> None:
        self.closed.append((workload, service, reason))

    def on_pushed(self, workload: str, seconds: float) -> None:
        self.pushed.append((workload, seconds))

    def on_ack(self, workload: str, type_url: str, names: tuple[str, ...]) -> None:
        self.acks.append((type_url, names))

    def on_nack(self, workload: str, type_url: str, names: tuple[str, ...], message: str) -> None:
        self.nacks.append((type_url, names, message))

    def on_unauthorised(self, workload: str, type_url: str, name: str) -> None:
        self.unauthorised.append((workload, type_url, name))

    def on_unknown(self, workload: str, type_url: str, name: str) -> None:
        self.unknown.append((workload, type_url, name))
