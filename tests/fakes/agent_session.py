"""Sessions under test with secrets in them, and the acknowledging that most tests begin with."""

from __future__ import annotations

import datetime as dt

from envoy.extensions.transport_sockets.tls.v3 import secret_pb2

from mesh.envoy.resources import SECRET, Resource, ResourceSet
from mesh.spiffe import SpiffeId, TrustDomain
from nodeagent.core.session import Service
from nodeagent.core.snapshot import IdentitySnapshot, Svid, TrustBundle
from nodeagent.core.subscriptions import Response
from tests.fakes.agent_model import Wires

OWN = "spiffe://cluster.local/ns/demo/sa/web"
OTHER = "spiffe://cluster.local/ns/demo/sa/other"
TD = TrustDomain("cluster.local")
EPOCH = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)
IDENTITY = IdentitySnapshot(
    svid=Svid(
        spiffe_id=SpiffeId.parse(OWN),
        chain_der=(b"leaf",),
        key_pkcs8=b"key",
        serial="1",
        not_before=EPOCH,
        not_after=EPOCH + dt.timedelta(days=1),
    ),
    bundle=TrustBundle(trust_domain=TD, roots_der=(b"root",)),
)


def secret(name: str, content: str = "1") -> Resource:
    message = secret_pb2.Secret(name=name)
    message.generic_secret.secret.inline_string = content
    return Resource.of(SECRET, name, message.SerializeToString())


def secrets(leaf: str = "1", roots: str = "1") -> ResourceSet:
    return ResourceSet([secret("default", leaf), secret("ROOTCA", roots)])


def sds(*, delta: bool = False, **more: object) -> Wires:
    return Wires(delta=delta, service=Service.SDS, **{"secrets": secrets(), "identity": IDENTITY, **more})


def acked(wires: Wires, short: str, responses: list[Response], *names: str) -> list[Response]:
    """Acknowledge the last response; what that releases."""
    return wires.ask(short, *(() if wires.delta else names), nonce=responses[-1].nonce)


def drained(wires: Wires, short: str, responses: list[Response], *names: str) -> list[Response]:
    """Acknowledge until nothing follows; all responses."""
    every = list(responses)
    while responses:
        responses = acked(wires, short, responses, *names)
        every += responses
    return every
