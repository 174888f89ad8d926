"""Replies in the middle of a rotation of roots: a cross certificate stands after the intermediate."""

from __future__ import annotations

import pytest
from cryptography import x509

from ca.core.hierarchy import Parent, make_cross
from mesh.x509 import pem
from mesh.x509.certs import spki_der
from nodeagent.core.svid import KeyPair, ReplyCode, ReplyError, check_reply
from tests.fakes.ca_factory import DAY, NOW, Hierarchy, make_hierarchy


@pytest.fixture(scope="module")
def former() -> Hierarchy:
    return make_hierarchy(now=NOW - 300 * DAY, root_lifetime=310 * DAY, issuing_lifetime=309 * DAY)


@pytest.fixture(scope="module")
def after() -> Hierarchy:
    return make_hierarchy()


def _cross(former: Hierarchy, after: Hierarchy) -> bytes:
    parent = Parent(x509.load_der_x509_certificate(former.root_der), former.root_key)
    return make_cross(x509.load_der_x509_certificate(after.root_der), parent, NOW)


@pytest.mark.parametrize("trusted", ["former", "after", "both"])
def test_the_reply_of_the_phase_active_is_taken(former: Hierarchy, after: Hierarchy, trusted: str) -> None:
    known = {"former": former.roots, "after": after.roots, "both": (*former.roots, *after.roots)}[trusted]
    leaf, cross = after.leaf(not_after=NOW + 20 * DAY), _cross(former, after)
    blocks = [pem.encode_certificate(der) for der in (*leaf.chain, cross)]
    found = check_reply(
        [*blocks, pem.encode_certificates((*after.roots, *former.roots))],
        expected_id=after.spiffe_id("/ns/demo/sa/web"),
        key=KeyPair(leaf.key_pkcs8, spki_der(leaf.key.public_key())),
        trusted=known,
        now=NOW,
    )
    assert found.svid is not None
    assert found.svid.chain_der == (*leaf.chain, cross)
    assert set(found.bundle.roots_der) == {*after.roots, *former.roots}
    # A cross certificate that ends before the leaf limits nothing: the path to the next root is there.
    assert found.svid.not_after == leaf.certificate.not_valid_after_utc


def test_a_bundle_of_the_next_root_alone_is_taken_by_who_knows_the_former_alone(
    former: Hierarchy, after: Hierarchy
) -> None:
    leaf = after.leaf()
    reply = [pem.encode_certificate(der) for der in leaf.chain]
    key = KeyPair(leaf.key_pkcs8, spki_der(leaf.key.public_key()))
    arguments = {"expected_id": after.spiffe_id("/ns/demo/sa/web"), "key": key, "now": NOW}
    with pytest.raises(ReplyError) as e:
        check_reply([*reply, after.roots_pem], trusted=former.roots, **arguments)  # type: ignore[arg-type]  # mixed
    assert e.value.code is ReplyCode.UNKNOWN_ROOT
    reply.append(pem.encode_certificate(_cross(former, after)))
    found = check_reply([*reply, after.roots_pem], trusted=former.roots, **arguments)  # type: ignore[arg-type]  # mixed
    assert found.bundle.roots_der == after.roots
