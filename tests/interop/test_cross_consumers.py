"""Whoever reads chains of the authority takes the one of a rotation: with a cross certificate at its end."""

from __future__ import annotations

import datetime as dt
import ssl
from dataclasses import replace

import pytest
from cryptography import x509

from ca.authn import Presented
from ca.authn.mtls import CertificateAuthenticator
from ca.core.hierarchy import Parent, make_cross
from ca.serving import make_serving
from injector import csr_client
from mesh.tls import load_pair
from mesh.x509 import pem
from mesh.x509.certs import read_certificate, spki_der
from meshctl.agents import Served
from meshctl.identity import Identity
from nodeagent import secure_pages
from tests.fakes.ca_factory import DAY, NOW, TRUST_DOMAIN, Leaf, make_hierarchy

NAME = "gatehouse-injector.istio-system.svc"
FORMER = make_hierarchy(now=NOW - 300 * DAY, root_lifetime=330 * DAY, issuing_lifetime=329 * DAY)
NEXT = make_hierarchy()
CROSS = make_cross(
    x509.load_der_x509_certificate(NEXT.root_der),
    Parent(x509.load_der_x509_certificate(FORMER.root_der), FORMER.root_key),
    NOW,
)
BUNDLES = {"former": FORMER.roots, "next": NEXT.roots, "both": (*NEXT.roots, *FORMER.roots)}
trusting = pytest.mark.parametrize("trusted", BUNDLES)


def reply(leaf: Leaf, trusted: str) -> list[str]:
    chain = [pem.encode_certificate(der) for der in (*leaf.chain, CROSS)]
    return [*chain, pem.encode_certificates(BUNDLES[trusted])]


@trusting
def test_the_webhook_takes_it(trusted: str) -> None:
    leaf = NEXT.leaf("/ns/istio-system/sa/gatehouse-injector", dns=(NAME,))
    roots = pem.encode_certificates(BUNDLES[trusted])
    issued = csr_client._checked(leaf.key, reply(leaf, trusted), roots, (NAME,), NOW)
    assert pem.decode_certificates(issued.chain_pem.decode()) == (*leaf.chain, CROSS)


@trusting
def test_the_pages_of_the_agent_take_it(trusted: str) -> None:
    leaf = NEXT.leaf("/ns/istio-system/sa/gatehouse-nodeagent", dns=(NAME,))
    chain, _ = secure_pages._checked(tuple(reply(leaf, trusted)), spki_der(leaf.key.public_key()), NAME, NOW)
    load_pair(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), leaf.key_pem.encode(), chain)
    assert pem.decode_certificates(chain.decode()) == (*leaf.chain, CROSS)


@trusting
def test_the_authority_takes_it_from_a_client(trusted: str) -> None:
    leaf = NEXT.leaf(not_after=NOW + 60 * dt.timedelta(minutes=1))
    presented = Presented(certificates=[pem.encode_certificates((*leaf.chain, CROSS)).encode()])
    caller = CertificateAuthenticator(TRUST_DOMAIN, lambda: BUNDLES[trusted]).authenticate(presented, NOW)
    assert caller is not None
    assert caller.expires == leaf.certificate.not_valid_after_utc


def test_the_serving_certificate_carries_it() -> None:
    issuer = NEXT.issuer()
    cross = read_certificate(CROSS)
    made = make_serving(replace(issuer, chain=(*issuer.chain, cross), cross=cross), (NAME,), DAY, NOW)
    assert pem.decode_certificates(made.chain_pem.decode())[1:] == (NEXT.issuing_der, CROSS)
    assert made.not_after == NOW + DAY


def test_the_command_line_shows_it() -> None:
    leaf = NEXT.leaf()
    served = Served(
        workload="demo/web",
        spiffe_id=str(NEXT.spiffe_id("/ns/demo/sa/web")),
        state="valid",
        chain=pem.encode_certificates((*leaf.chain, CROSS)),
        roots=pem.encode_certificates(BUNDLES["both"]),
        renew_at=None,
        issued=1,
        failures=0,
        code="",
        error="",
    )
    found = Identity.read(served, NOW.isoformat())
    assert (len(found.chain), len(found.roots), found.good) == (3, 2, True)
