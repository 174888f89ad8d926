"""Issuing: what comes out (X-rows), what is refused (F-16, F-22), and the self-check."""

from __future__ import annotations

import datetime as dt

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from ca.core.authority import Authority, IssueCode, IssueError, Issuer
from ca.core.csr import prove
from ca.core.lint import LintCode, LintError
from ca.core.profile import LifetimeError, Profile, SelfCheck
from ca.core.signer import KeySigner, SignerCode, SignerError
from mesh.errors import Category
from mesh.spiffe import SpiffeId, TrustDomain
from mesh.x509 import pem
from mesh.x509.certs import key_identifier, public_key_bits, read_certificate, spki_der
from mesh.x509.verify import verify_svid
from tests.fakes.ca_factory import DAY, NOW, TRUST_DOMAIN, make_csr, make_hierarchy, new_key

H = make_hierarchy()
ME = H.spiffe_id("/ns/demo/sa/web")
HOUR = dt.timedelta(hours=1)
AUTHORITY = Authority(H.issuer(), Profile())


def proven(key=None, profile=None, identity=ME):
    return prove(make_csr(key), identity, profile or Profile())


def issue(authority=AUTHORITY, key=None, identity=ME, seconds=0, now=NOW):
    return authority.sign(authority.prepare(proven(key), identity, seconds, now))


def test_what_the_caller_gets():
    key = new_key()
    svid = issue(key=key)
    leaf = read_certificate(svid.leaf_der)
    assert svid.spiffe_id == ME
    assert svid.leaf_pem == pem.encode_certificate(svid.leaf_der)
    assert svid.intermediates_pem == (pem.encode_certificate(H.issuing_der),)
    assert svid.roots_pem == (H.roots_pem,)
    assert svid.serial == leaf.serial
    assert (svid.not_before, svid.not_after) == (leaf.not_before, leaf.not_after)
    assert leaf.spki == spki_der(key.public_key())
    chain = (svid.leaf_der, H.issuing_der)
    assert verify_svid(chain, H.roots, NOW, trust_domain=TRUST_DOMAIN, expected_id=ME)


def test_x_rows_of_the_leaf():
    leaf = read_certificate(issue().leaf_der)
    assert leaf.uris == (str(ME),), "X-01"
    assert leaf.other_sans == 0, "X-03"
    assert (leaf.subject_empty, leaf.san_critical) == (True, True), "X-05"
    assert (leaf.ca, leaf.ca_critical) == (False, True), "X-06"
    assert leaf.key_usage_critical, "X-07"
    assert leaf.key_usage.digital_signature, "X-08"
    usage = leaf.key_usage
    assert (usage.key_cert_sign, usage.crl_sign, usage.key_encipherment) == (False, False, False), "X-10"
    assert len(leaf.eku) == 2, "X-11"
    assert (leaf.not_before, leaf.not_after) == (NOW - dt.timedelta(minutes=2), NOW + DAY), "X-13"
    issuing = read_certificate(H.issuing_der)
    assert leaf.aki == issuing.ski, "X-15"
    assert leaf.ski == key_identifier(leaf.spki[-65:]), "X-15"
    assert leaf.issuer == issuing.subject


def test_x14_serials_are_random_positive_and_do_not_repeat():
    other = Authority(H.issuer(), Profile())  # a second replica with the same key
    key = proven()
    serials = [a.prepare(key, ME, 0, NOW).spec.serial_number for a in (AUTHORITY, other) for _ in range(2000)]
    assert len(set(serials)) == 4000
    assert all(0 < s < 1 << 159 for s in serials)
    assert sum(s.bit_length() >= 128 for s in serials) == 4000


@pytest.mark.parametrize(
    "identity",
    [
        pytest.param(SpiffeId(TrustDomain("other"), "/ns/demo/sa/web"), id="X-16-other-trust-domain"),
        pytest.param(SpiffeId(TRUST_DOMAIN, "/demo/web"), id="X-16-other-path"),
        pytest.param(SpiffeId(TRUST_DOMAIN, ""), id="X-04-no-path"),
    ],
)
def test_x16_only_workloads_of_the_own_domain(identity):
    with pytest.raises(IssueError, match="is not of the") as e:
        AUTHORITY.prepare(proven(identity=identity), identity, 0, NOW)
    assert (e.value.code, e.value.category) == (IssueCode.IDENTITY, Category.PERMISSION_DENIED)


@pytest.mark.parametrize("key", [H.issuing_key, H.root_key], ids=["issuing", "root"])
def test_f16_a_key_of_the_authority_is_refused(key):
    with pytest.raises(IssueError, match="make a new key") as e:
        AUTHORITY.prepare(proven(key), ME, 0, NOW)
    assert e.value.code is IssueCode.CA_KEY
    assert "authority itself" in e.value.private


def test_lifetimes_come_from_the_profile():
    assert issue(seconds=3600).not_after == NOW + HOUR
    for seconds in (-(1 << 63), (1 << 63) - 1, 1):
        with pytest.raises(LifetimeError):
            AUTHORITY.prepare(proven(), ME, seconds, NOW)


def test_times_are_whole_seconds_and_any_time_zone():
    odd = NOW.astimezone(dt.timezone(dt.timedelta(hours=5, minutes=30))).replace(microsecond=999_999)
    svid = issue(now=odd, seconds=600)
    assert svid.not_after == NOW + dt.timedelta(minutes=10)
    assert svid.not_after.tzinfo is dt.UTC


class TestIssuerNearItsEnd:
    h = make_hierarchy(issuing_lifetime=HOUR)
    authority = Authority(h.issuer(), Profile())

    def test_clamped_to_the_issuer(self):
        svid = issue(self.authority)
        assert svid.not_after == NOW + HOUR

    def test_clamped_to_the_whole_chain(self):
        h = make_hierarchy(root_lifetime=2 * HOUR)  # the intermediate never outlives its root
        assert issue(Authority(h.issuer(), Profile())).not_after == NOW + 2 * HOUR

    @pytest.mark.parametrize(
        "left",
        [dt.timedelta(minutes=3), dt.timedelta(minutes=4, seconds=59), dt.timedelta(0), -HOUR],
        ids=str,
    )
    def test_f22_too_little_left(self, left):
        with pytest.raises(IssueError, match="about to expire; try again later") as e:
            self.authority.prepare(proven(), ME, 0, NOW + HOUR - left)
        assert (e.value.code, e.value.category) == (IssueCode.ISSUER_EXPIRING, Category.UNAVAILABLE)
        assert "2026-06-01T13:00:00" in e.value.private

    def test_f22_just_enough_left(self):
        svid = issue(self.authority, now=NOW + HOUR - dt.timedelta(minutes=5))
        assert svid.not_after == NOW + HOUR

    def test_issuer_not_yet_valid(self):
        with pytest.raises(IssueError, match="not valid yet") as e:
            self.authority.prepare(proven(), ME, 0, NOW - HOUR)
        assert (e.value.code, e.value.category) == (IssueCode.ISSUER_NOT_YET_VALID, Category.UNAVAILABLE)


class TestSigning:
    def test_a_prepared_certificate_is_signed_once(self):
        prepared = AUTHORITY.prepare(proven(), ME, 0, NOW)
        AUTHORITY.sign(prepared)
        with pytest.raises(IssueError, match="signed before") as e:
            AUTHORITY.sign(prepared)
        assert e.value.code is IssueCode.PREPARED_USED

    def test_by_the_authority_that_made_it(self):
        prepared = AUTHORITY.prepare(proven(), ME, 0, NOW)
        with pytest.raises(IssueError, match="changed during the request; send it again") as e:
            Authority(make_hierarchy().issuer(), Profile()).sign(prepared)
        assert (e.value.code, e.value.category) == (IssueCode.PREPARED_FOREIGN, Category.UNAVAILABLE)
        AUTHORITY.sign(prepared)  # the refusal did not use it up


class FaultySigner:
    """A signer whose signatures go wrong after some time, as a broken token's or a bit flip's would."""

    def __init__(self, key, good):
        self._inner = KeySigner(key)
        self.algorithm = self._inner.algorithm
        self.public_key = self._inner.public_key
        self.good = good

    def sign(self, data):
        self.good -= 1
        return self._inner.sign(data if self.good >= 0 else data + b"x")

    def verify(self, signature, data):
        return self._inner.verify(signature, data)


def faulty(good, profile):
    issuing = read_certificate(H.issuing_der)
    issuer = Issuer(
        trust_domain=TRUST_DOMAIN,
        certificate=issuing,
        signer=FaultySigner(H.issuing_key, good),
        chain=(issuing,),
        roots=H.roots,
    )
    return Authority(issuer, profile)


class TestSelfCheck:
    def test_always_catches_a_fault_before_the_bytes_leave(self):
        authority = faulty(2, Profile())
        issue(authority)
        with pytest.raises(LintError, match="nothing was issued") as e:
            issue(authority)
        assert (e.value.code, e.value.category) == (LintCode.SIGNATURE, Category.INTERNAL)

    def test_at_start_always_catches_it(self):
        with pytest.raises(LintError) as e:
            faulty(0, Profile())
        assert e.value.code is LintCode.SIGNATURE

    def test_at_start_the_other_policy_catches_it_too(self):
        with pytest.raises(IssueError, match="does not verify with the roots") as e:
            faulty(0, Profile(self_check=SelfCheck.START_AND_KEY_CHANGE))
        assert (e.value.code, e.value.category) == (IssueCode.ISSUER_INVALID, Category.FAILED_PRECONDITION)

    def test_later_the_other_policy_leaves_it_to_the_receiver(self):
        """What the option gives up, on the record."""
        svid = issue(faulty(1, Profile(self_check=SelfCheck.START_AND_KEY_CHANGE)))
        with pytest.raises(Exception, match="no valid path"):
            verify_svid((svid.leaf_der, H.issuing_der), H.roots, NOW, trust_domain=TRUST_DOMAIN)


class TestIssuer:
    def build(self, **change):
        issuing = read_certificate(H.issuing_der)
        values = {
            "trust_domain": TRUST_DOMAIN,
            "certificate": issuing,
            "signer": KeySigner(H.issuing_key),
            "chain": (issuing,),
            "roots": H.roots,
        }
        return Issuer(**{**values, **change})

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            pytest.param({"certificate": read_certificate(H.leaf().der)}, "not a CA", id="X-20-leaf"),
            pytest.param({"signer": KeySigner(new_key())}, "key is not the one", id="a.2-key-mismatch"),
            pytest.param({"roots": ()}, "there is no root", id="no-root"),
        ],
    )
    def test_refused(self, change, words):
        with pytest.raises(IssueError, match=words) as e:
            self.build(**change)
        assert e.value.code is IssueCode.ISSUER_INVALID

    def test_an_issuer_whose_root_is_another_is_found_at_start(self):
        with pytest.raises(IssueError, match="does not verify with the roots"):
            Authority(self.build(roots=make_hierarchy().roots), Profile())

    def test_a_root_that_starts_after_the_intermediate_is_accepted(self):
        """Istio signs a root anew with the same key: the new one is younger than what it signed."""
        from ca.core.hierarchy import make_root

        younger = make_root(TRUST_DOMAIN, H.root_key, NOW + DAY, 100 * DAY)
        authority = Authority(self.build(roots=(younger,)), Profile())
        assert issue(authority, now=NOW + 2 * DAY)


def test_signing_keys_other_than_the_allowed_are_refused():
    for key in (ec.generate_private_key(ec.SECP256K1()), rsa.generate_private_key(65537, 1024)):
        with pytest.raises(SignerError, match="allowed are P-256, P-384 and RSA") as e:
            KeySigner(key)
        assert e.value.code is SignerCode.KEY_TYPE
    assert "P-256" in repr(KeySigner(new_key()))


@pytest.mark.parametrize(
    "key",
    [ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65537, 2048)],
    ids=["P-384", "RSA-2048"],
)
def test_authorities_with_other_keys(key):
    h = make_hierarchy(issuing_key=key, root_key=key)
    svid = issue(Authority(h.issuer(), Profile()))
    assert verify_svid((svid.leaf_der, h.issuing_der), h.roots, NOW, trust_domain=TRUST_DOMAIN)
    assert not KeySigner(key).verify(
        b"\x30\x00" if isinstance(key, ec.EllipticCurvePrivateKey) else b"x", b"data"
    )


@settings(max_examples=100, deadline=None)
@given(st.integers(-(1 << 63), (1 << 63) - 1) | st.integers(0, 200_000), st.integers(-700, 366 * 86400))
def test_law_an_issued_leaf_is_within_the_profile_and_its_issuer(seconds, offset):
    now = NOW + dt.timedelta(seconds=offset)
    try:
        spec = AUTHORITY.prepare(KEY, ME, seconds, now).spec
    except (LifetimeError, IssueError):
        return
    assert spec.not_before == now - dt.timedelta(minutes=2)
    assert spec.not_after <= AUTHORITY.issuer.not_after
    assert dt.timedelta(minutes=5) <= spec.not_after - now <= dt.timedelta(hours=48)


KEY = proven()


def test_issued_certificates_are_not_to_be_told_by_order():
    assert x509.load_der_x509_certificate(issue().leaf_der).version is x509.Version.v3
    assert public_key_bits(H.issuing_key.public_key()) not in issue().leaf_der
