"""The policy corpus in a real Envoy: objects as people write them, requests, and what comes back.

Each row is parsed, resolved, compiled and rendered as an agent does it. The reference evaluator is asked
the same (tests/unit/mesh/policy/test_corpus.py), so that the two cannot drift apart.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest

from mesh.spiffe import TrustDomain
from mesh.topology import AppProtocol
from tests.fakes.envoy_lab import MESH_ALPN, TCP_ALPN, Closed, Lab, request
from tests.fakes.envoy_tokens import Issuer, bearer
from tests.fakes.http2 import request as http2_request
from tests.fakes.policy_corpus import FIELD_ROWS, I1, I2, JWKS1, JWKS2, ROWS
from tests.fakes.policy_eval import Answer, Call
from tests.fakes.policy_objects import MESH, effective, workload

pytestmark = [pytest.mark.envoy, pytest.mark.xdist_group("envoy-corpus")]

ALIASED = dataclasses.replace(MESH, trust_domain_aliases=(TrustDomain("old.example"),))
ISSUERS = {I1: Issuer(I1), I2: Issuer(I2, "k2")}
KEYS = {JWKS1: ISSUERS[I1].jwks(), JWKS2: ISSUERS[I2].jwks()}
HTTP2_ALPN = ("istio-h2", "istio", "h2")
FORGER = Issuer(I1, "another")
HTTP_ONLY = {
    "requestPrincipals",
    "requestPrincipals-any",
    "hosts",
    "methods",
    "paths",
    "paths-template",
    "request.headers[x-r]",
    "request.auth.principal",
    "request.auth.audiences",
    "request.auth.presenter",
    "request.auth.claims[groups]",
}
CASES = {name: (objects, calls) for name, objects, calls in (*ROWS, *FIELD_ROWS)}
REFUSED = {
    Answer.FORBIDDEN: {"RBAC: access denied", "Audiences in Jwt are not allowed"},
    Answer.UNAUTHENTICATED: {"Jwt verification fails", "Jwt issuer is not configured"},
}


class World:
    """One workload for each row and kind of port: a port speaks HTTP or does not."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.addresses: dict[tuple[str, bool], str] = {}
        for name, (objects, calls) in CASES.items():
            for http in {call.http for call, _ in calls}:
                numbers = sorted({call.port for call, _ in calls if call.http is http})
                pod = workload(http=numbers if http else (), tcp=() if http else numbers)
                policy = effective(*objects, pod=pod, mesh=ALIASED, key_sets=KEYS)
                protocol = AppProtocol.HTTP if http else AppProtocol.TCP
                ports = [lab.port(number, protocol) for number in numbers]
                self.addresses[name, http] = lab.workload(policy, ports, mesh=ALIASED)

    def ask(self, name: str, call: Call, *, http2: bool = False) -> tuple[Answer, str]:
        """The answer, and the body of a refusal."""
        try:
            return self._ask(self.addresses[name, call.http], call, http2=http2)
        except Closed as error:
            return Answer.RESET, str(error)

    def _ask(self, address: str, call: Call, *, http2: bool) -> tuple[Answer, str]:
        source = call.source_ip if call.source_ip.startswith("127.") else None
        with self.lab.connect(
            address, call.port, tls=self._tls(call, http2=http2), sni=call.sni or None, source=source
        ) as connection:
            if not call.http:
                connection.sendall(b"ping pong")
                return (Answer.OK, "") if connection.recv(100) == b"ping pong" else (Answer.RESET, "closed")
            options: dict[str, Any] = {"method": call.method, "host": call.host, "headers": _headers(call)}
            if http2:
                status, body = http2_request(connection, call.path, **options)
            else:
                reply = request(connection, call.path, **options)
                status, body = reply.status, reply.body
        return Answer(str(status)) if status != 200 else Answer.OK, body

    def _tls(self, call: Call, *, http2: bool):
        if call.peer is None:
            return None
        domain, _, namespace, _, name = call.peer.removeprefix("spiffe://").split("/")
        alpn = TCP_ALPN if not call.http else HTTP2_ALPN if http2 else MESH_ALPN
        return self.lab.client(name, namespace=namespace, trust_domain=domain, alpn=alpn)


def _headers(call: Call) -> list[tuple[str, str]]:
    found = [(name, value) for name, values in call.headers.items() for value in values]
    if call.token is not None:
        found += bearer(_token(call))
    if call.remote_ip.startswith("10.9."):
        found.append(("x-forwarded-for", call.remote_ip))
    return found


def _token(call: Call) -> str:
    assert call.token is not None
    issuer = ISSUERS[call.token.claims["iss"]] if call.token.good else FORGER
    headers = None if call.token.good else {"kid": "k1"}
    return issuer.token(headers=headers, **({"sub": None} | dict(call.token.claims)))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    lab = Lab(tmp_path_factory.mktemp("corpus"))
    found = World(lab)
    with lab:
        yield found


@pytest.mark.parametrize("name", CASES)
def test_corpus(world, name):
    for call, wanted in CASES[name][1]:
        got, body = world.ask(name, call)
        if not call.http and wanted is Answer.FORBIDDEN:
            # Taken and then closed: a port where nobody listens would refuse the connection.
            assert (got, "refused" in body) == (Answer.RESET, False), (call, body)
            continue
        assert got is wanted, (call, body)
        if wanted in REFUSED:
            assert body in REFUSED[wanted], call


@pytest.mark.parametrize("name", [n for n, (_, calls) in CASES.items() if any(c.http for c, _ in calls)])
def test_corpus_http2(world, name):
    """The same answers over HTTP/2, where host and path are fields like any other."""
    for call, wanted in CASES[name][1]:
        if call.http:
            got, body = world.ask(name, call, http2=True)
            assert got is wanted, (call, body)
            if wanted in REFUSED:
                assert body in REFUSED[wanted], call


def test_every_refusal_has_a_twin():
    """A dead listener refuses everything: what the one action closes is opened by the other, or says why."""
    opened = {name for name, (_, calls) in CASES.items() if any(answer is Answer.OK for _, answer in calls)}
    closed = CASES.keys() - opened
    twins = {name.replace("allow-", "deny-") for name in opened} | {
        name.replace("deny-", "allow-") for name in opened
    }
    # P-41 denies everything; HTTP fields on a bare connection close it under either action (policy b.3).
    http_only = {name for name in closed - twins if name.startswith("tcp-")}
    assert closed - twins - http_only == {"P-41"}
    assert {re.sub("^tcp-(allow|deny)-(not-)?", "", name) for name in http_only} == HTTP_ONLY
