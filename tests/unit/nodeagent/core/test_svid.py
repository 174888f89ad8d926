"""F-58: what a forged or broken reply of the authority looks like, and why it is refused."""

from __future__ import annotations

import datetime as dt

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from ca.core.hierarchy import Parent
from mesh.errors import Category
from mesh.x509 import pem
from mesh.x509.certs import spki_der
from mesh.x509.verify import SvidCode
from nodeagent.core.svid import KeyPair, ReplyCode, ReplyError, check_reply, check_roots, check_under
from tests.fakes.ca_factory import DAY, NOW, Hierarchy, Leaf, key_pkcs8, make_hierarchy, new_key

PATH = "/ns/demo/sa/web"
HOUR = dt.timedelta(hours=1)


def key_pair(key) -> KeyPair:
    return KeyPair(pkcs8=key_pkcs8(key), spki=spki_der(key.public_key()))


def reply(leaf: Leaf, roots: tuple[bytes, ...]) -> list[str]:
    return [pem.encode_certificate(der) for der in leaf.chain] + [pem.encode_certificates(roots)]


def check(hierarchy: Hierarchy, leaf: Leaf, **changes):
    arguments = {
        "expected_id": hierarchy.spiffe_id(PATH),
        "key": key_pair(leaf.key),
        "trusted": hierarchy.roots,
        "now": NOW,
    } | changes
    chain = arguments.pop("chain", None)
    if chain is None:
        chain = reply(leaf, arguments.pop("roots", hierarchy.roots))
    return check_reply(chain, **arguments)


@pytest.fixture(scope="module")
def ours() -> Hierarchy:
    return make_hierarchy()


@pytest.fixture(scope="module")
def foreign() -> Hierarchy:
    return make_hierarchy()


def test_a_good_reply_becomes_an_identity(ours: Hierarchy) -> None:
    leaf = ours.leaf(PATH)
    snapshot = check(ours, leaf)
    svid, bundle = snapshot.svid, snapshot.bundle
    assert svid is not None
    assert bundle is not None
    assert str(svid.spiffe_id) == "spiffe://cluster.local/ns/demo/sa/web"
    assert svid.chain_der == leaf.chain
    assert svid.key_pkcs8 == leaf.key_pkcs8
    assert svid.serial == f"{leaf.certificate.serial_number:x}"
    assert (svid.not_before, svid.not_after) == (NOW - dt.timedelta(minutes=2), NOW + DAY)
    assert bundle.roots_der == ours.roots
    assert "key_pkcs8" not in repr(svid)


def test_the_root_is_never_part_of_the_chain(ours: Hierarchy) -> None:
    leaf = ours.leaf(PATH)
    chain = [leaf.chain_pem, ours.roots_pem, ours.roots_pem * 2]
    snapshot = check(ours, leaf, chain=chain)
    assert snapshot.svid is not None
    assert snapshot.bundle is not None
    assert snapshot.svid.chain_der == leaf.chain
    assert snapshot.bundle.roots_der == ours.roots  # without duplicates


def test_the_end_of_the_path_counts_not_only_that_of_the_leaf() -> None:
    short = make_hierarchy(issuing_lifetime=12 * HOUR)
    snapshot = check(short, short.leaf(PATH))
    assert snapshot.svid is not None
    assert snapshot.svid.not_after == NOW + 12 * HOUR


def refused(hierarchy: Hierarchy, leaf: Leaf, **changes) -> ReplyError:
    with pytest.raises(ReplyError) as caught:
        check(hierarchy, leaf, **changes)
    assert caught.value.category is Category.INTERNAL
    return caught.value


FORGED = [
    ("other-identity", {"path": "/ns/demo/sa/admin"}, SvidCode.UNEXPECTED_ID, "sa/admin, expected was"),
    (
        "extra-uri",
        {"uris": ("spiffe://cluster.local/ns/demo/sa/web", "spiffe://cluster.local/ns/demo/sa/x")},
        SvidCode.URI_SAN,
        "2 URI SANs",
    ),
    (
        "other-trust-domain",
        {"uris": ("spiffe://evil/ns/demo/sa/web",)},
        SvidCode.TRUST_DOMAIN,
        "evil/ns/demo/sa/web is of",
    ),
    ("no-uri", {"uris": ()}, SvidCode.URI_SAN, "0 URI SANs"),
    ("ca-true-leaf", {"ca": True}, SvidCode.CA_LEAF, "CA certificate"),
    ("expired", {"not_after": NOW - dt.timedelta(seconds=1)}, SvidCode.EXPIRED, "expired at"),
    (
        "not-yet-valid",
        {"not_before": NOW + dt.timedelta(minutes=6)},
        ReplyCode.NOT_YET_VALID,
        "compare the clocks",
    ),
]


@pytest.mark.parametrize(
    ("change", "code", "message"), [pytest.param(*case[1:], id=f"F-58-{case[0]}") for case in FORGED]
)
def test_forged_leaves(ours: Hierarchy, change, code, message: str) -> None:
    error = refused(ours, ours.leaf(**({"path": PATH} | change)))
    assert error.code is code
    assert message in error.public


def test_f58_wrong_key(ours: Hierarchy) -> None:
    error = refused(ours, ours.leaf(PATH), key=key_pair(new_key()))
    assert error.code is SvidCode.PUBLIC_KEY
    assert "another public key" in error.public


def test_f58_unknown_root_with_its_own_bundle(ours: Hierarchy, foreign: Hierarchy) -> None:
    error = refused(foreign, foreign.leaf(PATH), trusted=ours.roots)
    assert error.code is ReplyCode.UNKNOWN_ROOT
    assert "CA root file" in error.public


def test_f58_unknown_root_under_our_bundle(ours: Hierarchy, foreign: Hierarchy) -> None:
    error = refused(foreign, foreign.leaf(PATH), trusted=ours.roots, roots=ours.roots)
    assert error.code is SvidCode.UNTRUSTED


def test_f58_nothing_is_trusted_without_a_pinned_root(ours: Hierarchy) -> None:
    assert refused(ours, ours.leaf(PATH), trusted=()).code is ReplyCode.UNKNOWN_ROOT


GARBAGE = [
    ("empty", [], ReplyCode.SHORT_CHAIN, "0 elements"),
    ("one-element", ["x"], ReplyCode.SHORT_CHAIN, "1 elements"),
    ("not-pem", ["garbage", "garbage"], ReplyCode.MALFORMED, "not PEM"),
    ("empty-text", ["", ""], ReplyCode.MALFORMED, "no block"),
    ("pem-of-junk", [pem.encode_certificate(b"\x30\x03abc")] * 2, ReplyCode.MALFORMED, "cannot be parsed"),
    ("a-key", [pem.encode("PRIVATE KEY", b"xx")] * 2, ReplyCode.MALFORMED, "not PEM"),
    ("many-elements", ["x"] * 11, ReplyCode.TOO_LARGE, "11 elements"),
    ("long", ["x" * 200_000] * 2, ReplyCode.TOO_LARGE, "400000 characters"),
]


@pytest.mark.parametrize(
    ("chain", "code", "message"), [pytest.param(*case[1:], id=f"F-58-{case[0]}") for case in GARBAGE]
)
def test_garbage(ours: Hierarchy, chain: list[str], code, message: str) -> None:
    error = refused(ours, ours.leaf(PATH), chain=chain)
    assert error.code is code
    assert message in error.public


def test_a_root_that_is_no_authority_is_refused(ours: Hierarchy) -> None:
    leaf = ours.leaf(PATH)
    error = refused(ours, leaf, roots=(*ours.roots, leaf.der))
    assert error.code is ReplyCode.ROOTS


def test_too_many_roots_are_refused(ours: Hierarchy) -> None:
    # Distinct bytes that decode as blocks: the count is checked before anything is parsed.
    many = "".join(pem.encode_certificate(bytes([48, n])) for n in range(65))
    error = refused(ours, ours.leaf(PATH), chain=[ours.leaf(PATH).chain_pem, many])
    assert error.code is ReplyCode.ROOTS
    assert "65 roots" in error.public


# --- clocks (d.4) ------------------------------------------------------------------------------------


def test_a_clock_of_ours_that_is_behind_is_not_fatal(ours: Hierarchy) -> None:
    snapshot = check(ours, ours.leaf(PATH), now=NOW - 3 * HOUR, server_time=NOW)
    assert snapshot.svid is not None


def test_without_the_authoritys_time_five_minutes_are_tolerated(ours: Hierarchy) -> None:
    leaf = ours.leaf(PATH, not_before=NOW + dt.timedelta(minutes=5))
    assert check(ours, leaf).svid is not None


# --- new roots ------------------------------------------------------------------------------------------


def test_a_bundle_that_grows_is_taken(ours: Hierarchy, foreign: Hierarchy) -> None:
    snapshot = check(ours, ours.leaf(PATH), roots=(*foreign.roots, *ours.roots))
    assert snapshot.bundle is not None
    assert snapshot.bundle.roots_der == (*foreign.roots, *ours.roots)


def test_a_leaf_of_the_new_root_is_taken_while_the_bundle_holds_the_old(
    ours: Hierarchy, foreign: Hierarchy
) -> None:
    snapshot = check(foreign, foreign.leaf(PATH), trusted=ours.roots, roots=(*ours.roots, *foreign.roots))
    assert snapshot.svid is not None


def test_a_root_that_was_signed_anew_with_its_key_is_the_same_root(ours: Hierarchy) -> None:
    again = make_hierarchy(root_key=ours.root_key, issuing_key=ours.issuing_key, now=NOW + HOUR)
    assert again.root_der != ours.root_der
    snapshot = check(again, again.leaf(PATH), trusted=ours.roots, now=NOW + 2 * HOUR)
    assert snapshot.svid is not None


def test_a_cross_signed_new_root_is_taken(ours: Hierarchy, foreign: Hierarchy) -> None:
    new_root = x509.load_der_x509_certificate(foreign.root_der)
    parent = Parent(x509.load_der_x509_certificate(ours.root_der), ours.root_key)
    builder = (
        x509.CertificateBuilder()
        .subject_name(new_root.subject)
        .issuer_name(parent.certificate.subject)
        .public_key(new_root.public_key())
        .serial_number(7)
        .not_valid_before(NOW - HOUR)
        .not_valid_after(NOW + DAY)
    )
    for extension in new_root.extensions:
        if not isinstance(extension.value, x509.AuthorityKeyIdentifier):
            builder = builder.add_extension(extension.value, critical=extension.critical)
    cross = builder.sign(ours.root_key, hashes.SHA256()).public_bytes(Encoding.DER)
    leaf = foreign.leaf(PATH)
    chain = [leaf.chain_pem, pem.encode_certificate(cross), foreign.roots_pem]
    snapshot = check(foreign, leaf, chain=chain, trusted=ours.roots)
    assert snapshot.bundle is not None
    assert snapshot.bundle.roots_der == foreign.roots


# --- roots without a certificate ----------------------------------------------------------------------


def test_the_epoch_is_kept_with_the_certificate(ours: Hierarchy) -> None:
    svid = check(ours, ours.leaf(PATH), epoch=7).svid
    assert svid is not None
    assert svid.epoch == 7


def test_roots_that_hang_together_with_what_is_trusted(ours: Hierarchy, foreign: Hierarchy) -> None:
    pems = [pem.encode_certificate(h.root_der) for h in (foreign, ours, foreign)]
    assert check_roots(pems, trusted=ours.roots) == (foreign.root_der, ours.root_der)


def test_roots_that_do_not(ours: Hierarchy, foreign: Hierarchy) -> None:
    for trusted in (ours.roots, ()):
        with pytest.raises(ReplyError) as error:
            check_roots([foreign.roots_pem], trusted=trusted)
        assert error.value.code is ReplyCode.UNKNOWN_ROOT


def test_a_certificate_that_a_later_bundle_no_longer_vouches_for(ours: Hierarchy, foreign: Hierarchy) -> None:
    svid = check(ours, ours.leaf(PATH)).svid
    assert svid is not None
    check_under(svid, (*foreign.roots, *ours.roots), NOW)
    with pytest.raises(ReplyError, match="replica that signed it is behind") as error:
        check_under(svid, foreign.roots, NOW)
    assert (error.value.code, error.value.category) == (ReplyCode.FORMER_ROOT, Category.INTERNAL)
