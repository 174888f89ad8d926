"""What one stream knows of one resource type: subscription, versions sent, answers awaited."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf import any_pb2

from mesh.envoy.resources import (
    CLUSTER,
    ENDPOINT,
    EXTENSION_CONFIG,
    LISTENER,
    ROUTE,
    SECRET,
    STATE_OF_THE_WORLD,
    Resource,
)
from mesh.errors import Category, Code, MeshError

SEND_ORDER: Final = (CLUSTER, ENDPOINT, SECRET, LISTENER, ROUTE, EXTENSION_CONFIG)
"""Make before break: what is referred to goes before what refers to it."""

ONE_BY_ONE: Final = frozenset({SECRET, ROUTE, EXTENSION_CONFIG})
"""Types whose refusal does not name the resource: one per response, so that a NACK has one culprit."""

WILDCARD: Final = "*"
NONE: Final[frozenset[str]] = frozenset()
"""What is nearly always empty shares this one: an empty set of its own takes 216 bytes of each stream."""

_MAX_OUTSTANDING = 32


class SessionCode(Code):
    """Why a discovery stream was refused."""

    TYPE_URL = "xds_type_url"
    TOO_MANY_NAMES = "xds_too_many_names"
    NAME_TOO_LONG = "xds_name_too_long"
    TOO_MANY_TYPES = "xds_too_many_types"


class SessionError(MeshError):
    """A request that ends its stream, and no other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionLimits:
    """Bounds on what one stream may ask (F-72).

    Attributes:
        names: resource names of one type that are subscribed at once, and names in one request.
        name_bytes: length of a name in UTF-8; a SPIFFE ID may have 2048.
        unknown_types: types that we do not serve and a proxy may still ask for on ADS.
    """

    names: int = 5000
    name_bytes: int = 2048
    unknown_types: int = 16


class SessionEvents(Protocol):
    """What the streams report, for metrics, audit and events. Must not raise nor block.

    `workload` is the key that the cache was made with; names and messages come from outside.
    """

    def on_stream_open(self, workload: str, service: str) -> None:
        """A stream or a call of `sds`, `ads` or `workload_api` began."""
        ...

    def on_stream_close(self, workload: str, service: str, reason: str) -> None:
        """It ended; `reason` is `client`, `stopping`, or the code of a refusal."""
        ...

    def on_pushed(self, workload: str, seconds: float) -> None:
        """A new snapshot was written to a stream, so long after it was there."""
        ...

    def on_ack(self, workload: str, type_url: str, names: tuple[str, ...]) -> None:
        """The proxy accepted these resources."""
        ...

    def on_nack(self, workload: str, type_url: str, names: tuple[str, ...], message: str) -> None:
        """The proxy refused these resources; they are not sent again until their bytes change."""
        ...

    def on_unauthorised(self, workload: str, type_url: str, name: str) -> None:
        """Someone asked on this socket for another identity's resource (F-71): audit."""
        ...

    def on_unknown(self, workload: str, type_url: str, name: str) -> None:
        """A name, or with an empty name a type, that this agent never serves was asked for (S-14)."""
        ...


class SilentEvents:
    """Reports to nobody."""

    def on_stream_open(self, workload: str, service: str) -> None:
        """Ignore."""

    def on_stream_close(self, workload: str, service: str, reason: str) -> None:
        """Ignore."""

    def on_pushed(self, workload: str, seconds: float) -> None:
        """Ignore."""

    def on_ack(self, workload: str, type_url: str, names: tuple[str, ...]) -> None:
        """Ignore."""

    def on_nack(self, workload: str, type_url: str, names: tuple[str, ...], message: str) -> None:
        """Ignore."""

    def on_unauthorised(self, workload: str, type_url: str, name: str) -> None:
        """Ignore."""

    def on_unknown(self, workload: str, type_url: str, name: str) -> None:
        """Ignore."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """One answer. The bodies of resources are shared bytes; only the envelope belongs to the stream.

    Attributes:
        version: hash over what is in the response (SotW) or in force for the type (delta).
        removed: names that are gone; delta only.
    """

    type_url: str
    version: str
    nonce: str
    resources: tuple[Resource, ...]
    removed: tuple[str, ...] = ()
    delta: bool = False

    def encode(self) -> bytes:
        """The serialised DiscoveryResponse, or DeltaDiscoveryResponse."""
        if self.delta:
            message = discovery_pb2.DeltaDiscoveryResponse(
                system_version_info=self.version,
                type_url=self.type_url,
                nonce=self.nonce,
                removed_resources=self.removed,
                resources=[
                    discovery_pb2.Resource(
                        name=r.name,
                        version=r.version,
                        resource=any_pb2.Any(type_url=r.type_url, value=r.body),
                    )
                    for r in self.resources
                ],
            )
        else:
            message = discovery_pb2.DiscoveryResponse(
                version_info=self.version,
                type_url=self.type_url,
                nonce=self.nonce,
                resources=[any_pb2.Any(type_url=r.type_url, value=r.body) for r in self.resources],
            )
        return bytes(message.SerializeToString())


@dataclass(slots=True)
class Subscription:
    """One type on one stream.

    Attributes:
        names: asked for by name, in the order of asking.
        explicit: some request named resources; an empty list then means none (S-07).
        sent: version that the client holds or is being given, by the name that it asked for.
        bodies: clusters of the last state of the world, to keep removed ones for a moment.
        outstanding: unanswered responses in order of sending: nonce -> (name, version) pairs.
        resend: names to send although the client has them (P4).
        alone: names to send one per response after a refusal that named no culprit.
        refused: names whose last sent version was refused.
        answered: a response was sent; an empty one counts, it ends the client's waiting.
        reported: names already reported as foreign or unknown.
    """

    type_url: str
    wildcard: bool = False
    explicit: bool = False
    names: dict[str, None] = field(default_factory=dict)
    sent: dict[str, str] = field(default_factory=dict)
    bodies: dict[str, Resource] = field(default_factory=dict)
    outstanding: dict[str, tuple[tuple[str, str], ...]] = field(default_factory=dict)
    resend: frozenset[str] = NONE
    alone: frozenset[str] = NONE
    refused: frozenset[str] = NONE
    answered: bool = False
    nonce: str = ""
    good_nonce: str = ""
    reported: frozenset[str] = NONE

    @property
    def is_root(self) -> bool:
        """Listeners and clusters: subscribed as a whole, and absence is deletion."""
        return self.type_url in STATE_OF_THE_WORLD

    def wants(self, name: str) -> bool:
        """True when the client subscribed to the name, or to everything."""
        return self.wildcard or name in self.names

    def drop_unwanted(self) -> None:
        """Forget what was sent under names that are no longer subscribed (S-05)."""
        if self.wildcard:
            return
        for name in [n for n in self.sent if n not in self.names]:
            self.forget(name)
        self.alone = self.alone.intersection(self.names) or NONE
        self.reported = self.reported.intersection(self.names) or NONE

    def forget(self, name: str) -> None:
        """The client is no longer known to hold the resource."""
        self.sent.pop(name, None)
        self.bodies.pop(name, None)
        self.refused = self.refused.difference((name,)) or NONE

    def changed(self, desired: Mapping[str, Resource]) -> list[str]:
        """Names whose content the client lacks."""
        return [n for n, r in desired.items() if self.sent.get(n) != r.version or n in self.resend]

    def waits(self, names: Iterable[str]) -> bool:
        """True when an answer must come first (S-15).

        Roots may always be superseded: a client that warms a cluster withholds its answer, and the
        way out may be the next version. Others only when something unanswered is out of date.
        """
        if not self.outstanding or self.is_root:
            return False
        unanswered = {name for pairs in self.outstanding.values() for name, _ in pairs}
        return unanswered.isdisjoint(names)

    def settle(self, nonce: str) -> tuple[tuple[str, str], ...] | None:
        """Take an answered response off the books, and all before it; None for an unknown nonce."""
        if nonce not in self.outstanding:
            return None
        while True:
            first = next(iter(self.outstanding))
            pairs = self.outstanding.pop(first)
            if first == nonce:
                return pairs

    def sending(self, nonce: str, pairs: tuple[tuple[str, str], ...]) -> None:
        """Put a response on the books."""
        self.nonce = nonce
        self.answered = True
        self.outstanding[nonce] = pairs
        if len(self.outstanding) > _MAX_OUTSTANDING:
            self.outstanding.pop(next(iter(self.outstanding)))
        sent = dict(pairs)
        self.sent |= sent
        self.resend = self.resend.difference(sent) or NONE
        self.alone = self.alone.difference(sent) or NONE
        self.refused = self.refused.difference(sent) or NONE


def check_names(names: Iterable[str], limits: SessionLimits, *, total: int) -> None:
    """Refuse too many or too long names.

    Raises:
        SessionError: TOO_MANY_NAMES or NAME_TOO_LONG; category RESOURCE_EXHAUSTED.
    """
    if total > limits.names:
        raise too_many(
            SessionCode.TOO_MANY_NAMES,
            f"resource_names: {total} names; at most {limits.names} are served on one stream: ask for fewer",
        )
    for name in names:
        if len(name) > limits.name_bytes or len(name.encode()) > limits.name_bytes:
            raise too_many(
                SessionCode.NAME_TOO_LONG,
                f"resource_names: a name that begins {name[:40]!r} is longer than {limits.name_bytes} bytes",
            )


def too_many(code: SessionCode, public: str) -> SessionError:
    """A refusal for size."""
    return SessionError(code, public, category=Category.RESOURCE_EXHAUSTED)
