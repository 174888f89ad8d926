"""Client certificates: row F-54, and what a chain may look like."""

from __future__ import annotations

import datetime as dt

import pytest

from ca.authn import PUBLIC_TEXT, AuthnCode, AuthnError, Method, Presented
from ca.authn.mtls import CertificateAuthenticator
from mesh.spiffe import TrustDomain
from mesh.x509 import pem
from tests.fakes.ca_factory import NOW, TRUST_DOMAIN, Leaf, make_hierarchy

OURS = make_hierarchy()
OTHER = make_hierarchy(trust_domain=TrustDomain("cluster.local.evil"))
SAME_NAME = make_hierarchy()


def authenticator() -> CertificateAuthenticator:
    return CertificateAuthenticator(TRUST_DOMAIN, lambda: OURS.roots)


def presented(leaf: Leaf) -> Presented:
    return Presented(certificates=[pem.encode_certificate(der).encode() for der in leaf.chain])


def test_a_current_svid_names_its_workload() -> None:
    caller = authenticator().authenticate(presented(OURS.leaf()), NOW)
    assert caller is not None
    assert (str(caller.spiffe_id), caller.method) == (
        "spiffe://cluster.local/ns/demo/sa/web",
        Method.CERTIFICATE,
    )
    assert caller.expires == NOW + dt.timedelta(days=1)
    assert (caller.pod_uid, caller.key) == ("", "spiffe://cluster.local/ns/demo/sa/web")


def test_chain_in_one_text_is_the_same() -> None:
    leaf = OURS.leaf()
    assert authenticator().authenticate(Presented(certificates=[leaf.chain_pem.encode()]), NOW) is not None


def test_no_certificate_is_no_credential() -> None:
    assert authenticator().authenticate(Presented(), NOW) is None


@pytest.mark.parametrize(
    ("leaf", "code", "detail"),
    [
        pytest.param(OURS.expired_leaf(), AuthnCode.CERTIFICATE, "svid_expired", id="F-54 expired"),
        pytest.param(
            OTHER.leaf(), AuthnCode.CERTIFICATE_DOMAIN, "svid_trust_domain", id="F-54 other trust domain"
        ),
        pytest.param(
            SAME_NAME.leaf(),
            AuthnCode.CERTIFICATE_DOMAIN,
            "svid_untrusted",
            id="F-54 other root of the same name",
        ),
        pytest.param(OURS.two_uri_leaf(), AuthnCode.CERTIFICATE, "svid_uri_san", id="two identities"),
        pytest.param(OURS.leaf("/ns/demo"), AuthnCode.CERTIFICATE, "not of the form", id="no workload"),
        pytest.param(
            OURS.leaf(uris=(), dns=("gatehouse-ca",)),
            AuthnCode.CERTIFICATE,
            "svid_uri_san",
            id="serving certificate",
        ),
        pytest.param(
            Leaf(OURS.issuing_der, OURS.leaf().key, ()),
            AuthnCode.CERTIFICATE,
            "svid_ca_leaf",
            id="a CA as a caller",
        ),
    ],
)
def test_refused(leaf: Leaf, code: AuthnCode, detail: str) -> None:
    with pytest.raises(AuthnError) as error:
        authenticator().authenticate(presented(leaf), NOW)
    assert error.value.code is code
    assert detail in error.value.private
    assert error.value.public == PUBLIC_TEXT


@pytest.mark.parametrize(
    ("blocks", "detail"),
    [
        pytest.param([b"not PEM"], "cannot be read", id="no PEM"),
        pytest.param([b"\xff"], "cannot be read", id="not ASCII"),
        pytest.param([OURS.leaf().chain_pem.encode()] * 9, "9 elements", id="many elements"),
        pytest.param([OURS.leaf().chain_pem.encode() * 5], "10 certificates", id="many certificates"),
    ],
)
def test_unreadable_chains(blocks: list[bytes], detail: str) -> None:
    with pytest.raises(AuthnError) as error:
        authenticator().authenticate(Presented(certificates=blocks), NOW)
    assert error.value.code is AuthnCode.CERTIFICATE
    assert detail in error.value.private


def test_roots_are_asked_for_each_time() -> None:
    roots = [SAME_NAME.roots]
    found = CertificateAuthenticator(TRUST_DOMAIN, lambda: roots[0])
    with pytest.raises(AuthnError):
        found.authenticate(presented(OURS.leaf()), NOW)
    roots[0] = OURS.roots
    assert found.authenticate(presented(OURS.leaf()), NOW) is not None
