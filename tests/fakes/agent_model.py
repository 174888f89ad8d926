"""A model of Envoy as a discovery client, in both forms, over two queues.

It keeps what Envoy keeps: what it holds per type, what it subscribed to, clusters that warm until their
endpoints come (and withhold the answer to their CDS response until then, prototype P4). A resource is
refused when its body begins with `bad`.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable

from envoy.service.discovery.v3 import discovery_pb2 as d

from mesh.envoy.resources import (
    CLUSTER,
    ENDPOINT,
    EXTENSION_CONFIG,
    LISTENER,
    ROUTE,
    SECRET,
    STATE_OF_THE_WORLD,
    Resource,
    ResourceSet,
)
from nodeagent.core.session import DeltaSession, Service, SotwSession
from nodeagent.core.snapshot import IdentitySnapshot, WorkloadSnapshot
from nodeagent.core.status import StatusBook
from nodeagent.core.subscriptions import Response, SessionLimits
from tests.fakes.agent_events import RecordedEvents

SHORT = {
    "CDS": CLUSTER,
    "EDS": ENDPOINT,
    "SDS": SECRET,
    "LDS": LISTENER,
    "RDS": ROUTE,
    "ECDS": EXTENSION_CONFIG,
}
LABEL = {url: short for short, url in SHORT.items()}


def resource(type_url: str, name: str, body: str) -> Resource:
    return Resource.of(type_url, name, body.encode())


def resources(*triples: tuple[str, str, str]) -> ResourceSet:
    """From (short type, name, body)."""
    return ResourceSet(resource(SHORT[t], n, b) for t, n, b in triples)


class Wires:
    """A session under test with the things that surround it."""

    def __init__(
        self,
        *,
        delta: bool = False,
        service: Service = Service.ADS,
        config: ResourceSet | None = None,
        secrets: ResourceSet | None = None,
        identity: IdentitySnapshot | None = None,
        limits: SessionLimits | None = None,
    ) -> None:
        self.delta = delta
        self.service = service
        self.events = RecordedEvents()
        self.status = StatusBook()
        self.limits = limits or SessionLimits()
        self._numbers = itertools.count(1)
        self.snapshot = WorkloadSnapshot(
            revision=1,
            identity=identity or IdentitySnapshot(),
            config=config,
            secrets=secrets or ResourceSet(),
            starting=False,
        )
        self.session = self.new_session()

    def new_session(self) -> SotwSession | DeltaSession:
        kind = DeltaSession if self.delta else SotwSession
        self.session = kind(
            workload="demo/web",
            service=self.service,
            snapshot=self.snapshot,
            new_nonce=lambda: f"n{next(self._numbers)}",
            status=self.status,
            events=self.events,
            limits=self.limits,
        )
        return self.session

    def publish(self, **changes: object) -> list[Response]:
        fields = {
            "identity": self.snapshot.identity,
            "config": self.snapshot.config,
            "secrets": self.snapshot.secrets,
            **changes,
        }
        self.snapshot = WorkloadSnapshot(revision=self.snapshot.revision + 1, starting=False, **fields)
        return self.session.on_snapshot(self.snapshot)

    def ask(
        self,
        short: str,
        *names: str,
        nonce: str = "",
        nack: str = "",
        subscribe: Iterable[str] = (),
        unsubscribe: Iterable[str] = (),
        versions: dict[str, str] | None = None,
        node: str = "",
    ) -> list[Response]:
        """One request; positional names are the list (SotW) or what is subscribed (delta)."""
        type_url = SHORT.get(short, short)
        if isinstance(self.session, DeltaSession):
            delta = d.DeltaDiscoveryRequest(
                type_url=type_url,
                resource_names_subscribe=[*names, *subscribe],
                resource_names_unsubscribe=unsubscribe,
                initial_resource_versions=versions or {},
                response_nonce=nonce,
            )
            delta.node.id = node
            if nack:
                delta.error_detail.message = nack
            return self.session.on_request(delta)
        request = d.DiscoveryRequest(type_url=type_url, resource_names=names, response_nonce=nonce)
        request.node.id = node
        if nack:
            request.error_detail.message = nack
        return self.session.on_request(request)


def shown(responses: Iterable[Response]) -> list[tuple[str, list[str]]]:
    """(short type, names) of each response."""
    return [(LABEL[r.type_url], [x.name for x in r.resources]) for r in responses]


class ModelEnvoy:
    """The client. `inbox` holds encoded responses, `outbox` requests that the server has not read."""

    def __init__(self, *, delta: bool) -> None:
        self.delta = delta
        self.held: dict[str, dict[str, bytes]] = {url: {} for url in SHORT.values()}
        self.versions: dict[str, dict[str, str]] = {url: {} for url in SHORT.values()}
        self.wanted: dict[str, set[str]] = {url: set() for url in SHORT.values()}
        self.warming: set[str] = set()
        self.withheld: tuple[str, str] | None = None
        self.outbox: deque[d.DiscoveryRequest | d.DeltaDiscoveryRequest] = deque()
        self.inbox: deque[bytes] = deque()
        self.nonce: dict[str, str] = {}
        self.opened: set[str] = set()
        self.seen_nonces: set[str] = set()

    # --- stream ---------------------------------------------------------------------------------

    def connect(self) -> None:
        """A new stream: nonces are gone, subscriptions and what is held are not."""
        self.outbox.clear()
        self.inbox.clear()
        self.nonce.clear()
        self.opened.clear()
        self.warming.clear()
        self.withheld = None
        for type_url in (CLUSTER, LISTENER):
            self._open(type_url)
        for type_url in (ENDPOINT, SECRET, ROUTE, EXTENSION_CONFIG):
            if self.wanted[type_url]:
                self._open(type_url)

    def _open(self, type_url: str) -> None:
        self.opened.add(type_url)
        names = sorted(self.wanted[type_url])
        if self.delta:
            self.outbox.append(
                d.DeltaDiscoveryRequest(
                    type_url=type_url,
                    resource_names_subscribe=names,
                    initial_resource_versions=self.versions[type_url],
                )
            )
        else:
            self.outbox.append(d.DiscoveryRequest(type_url=type_url, resource_names=names))

    def want(self, type_url: str, names: set[str]) -> None:
        """Subscribe to exactly these names."""
        old, self.wanted[type_url] = self.wanted[type_url], set(names)
        if old == names:
            return
        for name in old - names:
            self.held[type_url].pop(name, None)
            self.versions[type_url].pop(name, None)
        if type_url not in self.opened:
            self._open(type_url)
        elif self.delta:
            self.outbox.append(
                d.DeltaDiscoveryRequest(
                    type_url=type_url,
                    resource_names_subscribe=sorted(names - old),
                    resource_names_unsubscribe=sorted(old - names),
                )
            )
        else:
            self._speak(type_url, self.nonce.get(type_url, ""))

    def _speak(self, type_url: str, nonce: str, error: str = "") -> None:
        if self.delta:
            request = d.DeltaDiscoveryRequest(type_url=type_url, response_nonce=nonce)
        else:
            request = d.DiscoveryRequest(
                type_url=type_url, response_nonce=nonce, resource_names=sorted(self.wanted[type_url])
            )
        if error:
            request.error_detail.message = error
        self.outbox.append(request)

    # --- input ----------------------------------------------------------------------------------

    def receive(self) -> None:
        """Take one response, apply what is good, answer."""
        data = self.inbox.popleft()
        if self.delta:
            delta = d.DeltaDiscoveryResponse.FromString(data)
            type_url, nonce, removed = delta.type_url, delta.nonce, list(delta.removed_resources)
            got = [(r.name, r.resource.value, r.version) for r in delta.resources]
        else:
            response = d.DiscoveryResponse.FromString(data)
            type_url, nonce, removed = response.type_url, response.nonce, []
            # The model's bodies are `<name>=<content>`, so that SotW resources have a name too.
            got = [(r.value.decode().partition("=")[0], r.value, "") for r in response.resources]
        names = [n for n, _, _ in got]
        assert len(names) == len(set(names)), f"S-08: duplicate names {names}"
        assert nonce not in self.seen_nonces, "S-02: a nonce came twice"
        assert type_url in STATE_OF_THE_WORLD or got or removed, "S-09: an empty response says nothing"
        assert not (type_url == SECRET and removed), "S-19: removal of a secret"
        self.seen_nonces.add(nonce)
        self.nonce[type_url] = nonce
        held, versions = self.held[type_url], self.versions[type_url]
        changed: set[str] = set()
        refused: list[str] = []
        for name, body, version in got:
            if type_url not in STATE_OF_THE_WORLD and name not in self.wanted[type_url]:
                continue  # crossed an unsubscription
            if b"=bad" in body:
                refused.append(name)
            else:
                if held.get(name) != body:
                    changed.add(name)
                held[name] = body
                versions[name] = version
        if type_url in STATE_OF_THE_WORLD:
            gone = removed if self.delta else [n for n in held if n not in names]
            for name in gone:
                held.pop(name, None)
                versions.pop(name, None)
                self.warming.discard(name)
        if type_url == CLUSTER:
            self.warming |= changed
        if type_url == ENDPOINT:
            self.warming -= set(names)
        self._reply(type_url, nonce, refused)

    def _reply(self, type_url: str, nonce: str, refused: list[str]) -> None:
        if type_url == CLUSTER:
            # Endpoints of known clusters only; a changed cluster looks like an ACK of EDS in SotW.
            before = set(self.wanted[ENDPOINT])
            self.want(ENDPOINT, set(self.held[CLUSTER]))
            if not self.delta and self.warming & before and ENDPOINT in self.opened:
                self._speak(ENDPOINT, self.nonce.get(ENDPOINT, ""))
        if refused:
            what = {CLUSTER: "cluster", LISTENER: "listener"}.get(type_url)
            text = "; ".join(refused) and "bad thing"
            if what is not None:
                text = f"Error adding/updating {what}(s) " + ", ".join(f"{n}: bad thing" for n in refused)
            self._speak(type_url, nonce, text)
            return
        if type_url == CLUSTER and self.warming:
            self.withheld = (type_url, nonce)
        else:
            self._speak(type_url, nonce)
        if self.withheld is not None and not self.warming:
            held_type, held_nonce = self.withheld
            self.withheld = None
            if self.nonce[held_type] == held_nonce:
                self._speak(held_type, held_nonce)
