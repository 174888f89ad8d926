"""The cross certificate: whoever trusts the former root, the next one or both accepts the chain."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import verification as path
from hypothesis import given
from hypothesis import strategies as st

from ca.core.authority import Authority, Issuer
from ca.core.hierarchy import Parent, make_cross
from ca.core.profile import Profile
from ca.core.signer import SigningKey
from mesh.x509.certs import read_certificate
from mesh.x509.verify import SvidCode, SvidError, check_authority, verify_svid
from tests.fakes.ca_factory import DAY, NOW, TRUST_DOMAIN, Hierarchy, make_hierarchy


@dataclass(frozen=True)
class Crossed:
    former: Hierarchy
    next: Hierarchy
    cross_der: bytes

    def trusted(self, which: str) -> tuple[bytes, ...]:
        both = (*self.next.roots, *self.former.roots)
        return {"former": self.former.roots, "next": self.next.roots, "both": both}[which]


def crossed(key: SigningKey | None = None, next_key: SigningKey | None = None) -> Crossed:
    former = make_hierarchy(root_key=key, now=NOW - 3600 * DAY, issuing_lifetime=3650 * DAY)
    after = make_hierarchy(root_key=next_key)
    parent = Parent(x509.load_der_x509_certificate(former.root_der), former.root_key)
    return Crossed(former, after, make_cross(x509.load_der_x509_certificate(after.root_der), parent, NOW))


def p384() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP384R1())


def test_what_stands_in_it() -> None:
    pki = crossed()
    cross, root, former = map(read_certificate, (pki.cross_der, pki.next.root_der, pki.former.root_der))
    assert (cross.subject, cross.spki, cross.ski) == (root.subject, root.spki, root.ski)
    assert (cross.issuer, cross.aki) == (former.subject, former.ski)
    assert cross.serial_number not in {root.serial_number, former.serial_number}
    assert (cross.ca, cross.path_length, cross.uris) == (True, None, ("spiffe://cluster.local",))
    assert not cross.unknown_critical
    check_authority(cross)
    assert cross.not_after == former.not_after == NOW + 50 * DAY
    assert cross.not_before == root.not_before


@given(
    former=st.tuples(st.integers(-1000, -1), st.integers(1, 5000)),
    then=st.tuples(st.integers(-1000, 0), st.integers(1, 5000)),
)
def test_it_lies_within_both(former: tuple[int, int], then: tuple[int, int]) -> None:
    pairs = [
        make_hierarchy(now=NOW + a * DAY, root_lifetime=(b - a) * DAY, issuing_lifetime=DAY)
        for a, b in (former, then)
    ]
    one, two = (x509.load_der_x509_certificate(p.root_der) for p in pairs)
    cross = read_certificate(make_cross(two, Parent(one, pairs[0].root_key), NOW))
    for root in (one, two):
        assert root.not_valid_before_utc <= cross.not_before <= NOW
        assert NOW < cross.not_after <= root.not_valid_after_utc


@pytest.mark.parametrize("trusted", ["former", "next", "both"])
@pytest.mark.parametrize(
    ("key", "next_key"), [(None, None), (p384(), None), (None, p384())], ids=["256", "384-256", "256-384"]
)
def test_every_peer_accepts_the_chain(
    trusted: str, key: SigningKey | None, next_key: SigningKey | None
) -> None:
    pki = crossed(key, next_key)
    leaf = pki.next.leaf()
    chain = (*leaf.chain, pki.cross_der)
    found = verify_svid(chain, pki.trusted(trusted), NOW, trust_domain=TRUST_DOMAIN)
    assert found.path_der[-1] in pki.trusted(trusted)
    _pyca(chain, pki.trusted(trusted))


def test_without_it_the_former_root_is_not_enough() -> None:
    pki = crossed()
    with pytest.raises(SvidError) as e:
        verify_svid(pki.next.leaf().chain, pki.former.roots, NOW, trust_domain=TRUST_DOMAIN)
    assert e.value.code is SvidCode.UNTRUSTED


def test_an_ended_one_is_in_nobodys_way() -> None:
    pki = crossed()
    leaf = pki.next.leaf(not_after=NOW + 60 * DAY)
    at = NOW + 55 * DAY
    chain = (*leaf.chain, pki.cross_der)
    for trusted in ("next", "both"):
        assert verify_svid(chain, pki.trusted(trusted), at, trust_domain=TRUST_DOMAIN)
    with pytest.raises(SvidError):
        verify_svid(chain, pki.trusted("former"), at, trust_domain=TRUST_DOMAIN)


def _pyca(chain: tuple[bytes, ...], roots: tuple[bytes, ...]) -> None:
    """As shipped, with its own rules for extensions."""
    certificates = [x509.load_der_x509_certificate(der) for der in (*chain, *roots)]
    store = path.Store(certificates[len(chain) :])
    at = (NOW + dt.timedelta(minutes=1)).replace(tzinfo=None)
    verifier = path.PolicyBuilder().store(store).time(at).build_client_verifier()
    assert verifier.verify(certificates[0], certificates[1 : len(chain)]).chain


def test_an_issuer_carries_it_and_is_not_limited_by_it() -> None:
    pki = crossed()
    plain = pki.next.issuer()
    cross = read_certificate(pki.cross_der)
    carrying = replace(
        plain, chain=(*plain.chain, cross), cross=cross, roots=pki.trusted("both"), generation=2, epoch=2
    )
    assert isinstance(carrying, Issuer)
    assert carrying.not_after == plain.not_after > cross.not_after
    Authority(carrying, Profile())  # tries what it would hand out
    assert replace(carrying, cross=None).not_after == cross.not_after, "as any other of the chain"
