"""The law of discovery streams: after quiescence the client holds what the snapshot says (both forms).

A model Envoy accepts, refuses, reconnects, changes its mind and speaks out of turn, while snapshots
change under it; messages of both directions are delivered in any interleaving.
"""

from __future__ import annotations

from envoy.service.discovery.v3 import discovery_pb2 as d
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mesh.envoy.resources import (
    CLUSTER,
    ENDPOINT,
    EXTENSION_CONFIG,
    LISTENER,
    ROUTE,
    SECRET,
    STATE_OF_THE_WORLD,
    ResourceSet,
)
from tests.fakes.agent_model import ModelEnvoy, Wires, resource

CONTENT = st.sampled_from(["1", "2", "3", "bad1", "bad2"])
GOOD = st.sampled_from(["1", "2", "3"])
NAMES = st.sampled_from(["a", "b", "c", "d"])
FREE = (SECRET, ROUTE, EXTENSION_CONFIG)
MOST_MESSAGES = 400


def _set(type_url: str, contents: dict[str, str]) -> list[object]:
    return [resource(type_url, name, f"{name}={content}") for name, content in contents.items()]


class StreamMachine(RuleBasedStateMachine):
    delta = False

    @initialize()
    def begin(self) -> None:
        self.wires = Wires(delta=self.delta)
        self.client = ModelEnvoy(delta=self.delta)
        self.client.connect()

    # --- the world changes ----------------------------------------------------------------------

    @rule(
        listeners=st.dictionaries(NAMES, CONTENT, max_size=3),
        clusters=st.dictionaries(NAMES, CONTENT, max_size=4),
        endpoints=st.dictionaries(NAMES, GOOD, max_size=4),
        routes=st.dictionaries(NAMES, CONTENT, max_size=3),
        extensions=st.dictionaries(NAMES, CONTENT, max_size=3),
    )
    def publish_config(
        self,
        listeners: dict[str, str],
        clusters: dict[str, str],
        endpoints: dict[str, str],
        routes: dict[str, str],
        extensions: dict[str, str],
    ) -> None:
        every_cluster = {name: endpoints.get(name, "0") for name in clusters}
        config = ResourceSet(
            [
                *_set(LISTENER, listeners),
                *_set(CLUSTER, clusters),
                *_set(ENDPOINT, every_cluster),
                *_set(ROUTE, routes),
                *_set(EXTENSION_CONFIG, extensions),
            ]
        )
        self._deliver(self.wires.publish(config=config))

    @rule(secrets=st.dictionaries(NAMES, CONTENT, max_size=3))
    def publish_secrets(self, secrets: dict[str, str]) -> None:
        self._deliver(self.wires.publish(secrets=ResourceSet(_set(SECRET, secrets))))

    # --- the client acts ------------------------------------------------------------------------

    @rule(type_url=st.sampled_from(FREE), names=st.sets(NAMES, max_size=4))
    def subscribe(self, type_url: str, names: set[str]) -> None:
        self.client.want(type_url, names)

    @rule()
    def reconnect(self) -> None:
        self.wires.new_session()
        self.client.connect()

    @precondition(lambda self: bool(self.client.outbox))
    @rule()
    def server_reads(self) -> None:
        self._read_one()

    @precondition(lambda self: bool(self.client.inbox))
    @rule()
    def client_reads(self) -> None:
        self.client.receive()

    @rule(type_url=st.sampled_from(FREE), nonce=st.sampled_from(["n1", "n7", "future", "\U0001f600"]))
    def out_of_turn(self, type_url: str, nonce: str) -> None:
        """F-76, F-74: answers to nonces that are not current; delta so that no names are implied."""
        if type_url not in self.client.opened or nonce == self.client.nonce.get(type_url):
            return
        request: d.DiscoveryRequest | d.DeltaDiscoveryRequest
        if self.delta:
            request = d.DeltaDiscoveryRequest(type_url=type_url, response_nonce=nonce)
        else:
            request = d.DiscoveryRequest(
                type_url=type_url,
                response_nonce=nonce,
                resource_names=sorted(self.client.wanted[type_url]),
            )
        self.client.outbox.append(request)

    # --- delivery -------------------------------------------------------------------------------

    def _deliver(self, responses: list) -> None:
        self.client.inbox.extend(r.encode() for r in responses)

    def _read_one(self) -> None:
        self._deliver(self.wires.session.on_request(self.client.outbox.popleft()))

    @rule()
    def settle(self) -> None:
        messages = 0
        while self.client.outbox or self.client.inbox:
            messages += 1
            assert messages < MOST_MESSAGES, "S-16: the stream does not come to rest"
            if self.client.outbox:
                self._read_one()
            else:
                self.client.receive()
        self._check()

    def _check(self) -> None:
        config = self.wires.snapshot.config
        for type_url, held in self.client.held.items():
            source = self.wires.snapshot.secrets if type_url == SECRET else config
            if source is None:
                continue
            available = source.of_type(type_url)
            is_root = type_url in STATE_OF_THE_WORLD
            names = set(available) if is_root else self.client.wanted[type_url] & set(available)
            for name in names:
                body = available[name].body
                if b"=bad" not in body:
                    assert held.get(name) == body, (type_url, name, held.get(name), body)
            if is_root and not self._clusters_linger(type_url):
                assert set(held) <= names, (type_url, set(held) - names)
        assert not (self.client.warming & set(self.client.held[CLUSTER])), "P4: a cluster warms for ever"

    def _clusters_linger(self, type_url: str) -> bool:
        """While something that may refer to a removed cluster is refused, the cluster is kept."""
        if type_url != CLUSTER or self.wires.snapshot.config is None:
            return False
        return any(
            b"=bad" in r.body
            for referrer in (LISTENER, ROUTE, EXTENSION_CONFIG)
            for r in self.wires.snapshot.config.of_type(referrer).values()
        )

    @invariant()
    def bounded(self) -> None:
        if hasattr(self, "client"):
            assert len(self.client.inbox) < MOST_MESSAGES

    def teardown(self) -> None:
        if hasattr(self, "client"):
            self.settle()


class DeltaStreamMachine(StreamMachine):
    delta = True


TestSotwStream = StreamMachine.TestCase
SETTINGS = settings(
    max_examples=50,
    stateful_step_count=30,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
)
TestSotwStream.settings = SETTINGS
TestDeltaStream = DeltaStreamMachine.TestCase
TestDeltaStream.settings = SETTINGS
