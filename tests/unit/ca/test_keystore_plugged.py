"""Plugged-in CA files: the rules of every load and every reload, and what a failed reload keeps."""

from __future__ import annotations

import datetime as dt

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

from ca.core.authority import Authority
from ca.core.hierarchy import Parent, make_intermediate
from ca.core.profile import Profile
from ca.keystore import KeyStore, KeyStoreCode, KeyStoreConfig, KeyStoreError
from mesh.spiffe import TrustDomain
from mesh.x509 import pem
from tests.fakes.ca_factory import DAY, NOW, TRUST_DOMAIN, Hierarchy, key_pem, make_hierarchy, new_key

H = make_hierarchy()
OTHER = make_hierarchy()


@pytest.fixture
def plugged(tmp_path):
    directory = tmp_path / "cacerts"
    H.write_cacerts(directory)
    return directory


def config(plugged, **kw):
    return KeyStoreConfig(
        trust_domain=TRUST_DOMAIN, state_dir=plugged.parent / "state", plugged_dir=plugged, **kw
    )


def open_store(plugged, now=NOW, **kw):
    return KeyStore.open(config(plugged, **kw), now)


def test_istio_file_names(plugged):
    store = open_store(plugged)
    issuer = store.issuer(NOW)
    assert issuer.certificate.der == H.issuing_der
    assert [c.der for c in issuer.chain] == [H.issuing_der], "the root is not sent"
    assert store.roots == H.roots
    Authority(issuer, Profile())
    assert not (plugged.parent / "state" / "root").exists(), "no root is made"
    assert store.issuer(NOW + 364 * DAY) is issuer, "never renewed by us"


def test_cert_manager_file_names(tmp_path):
    H.write_cert_manager(tmp_path / "tls")
    issuer = open_store(tmp_path / "tls").issuer(NOW)
    assert issuer.certificate.der == H.issuing_der
    assert issuer.roots == H.roots


def test_a_root_that_signs_itself_needs_no_chain(tmp_path):
    lone = Hierarchy(TRUST_DOMAIN, H.root_der, H.root_key, H.root_der, H.root_key)
    lone.write_cacerts(tmp_path / "cacerts")
    issuer = open_store(tmp_path / "cacerts").issuer(NOW)
    assert issuer.chain == ()
    Authority(issuer, Profile())


def test_key_with_ec_parameters_and_sec1(plugged):
    sec1 = H.issuing_key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, _plain()).decode()
    parameters = pem.encode("EC PARAMETERS", bytes.fromhex("06082a8648ce3d030107"))
    (plugged / "ca-key.pem").write_text(parameters + sec1)
    assert open_store(plugged)


def _plain():
    from cryptography.hazmat.primitives.serialization import NoEncryption

    return NoEncryption()


def write(name, text):
    return lambda d: (d / name).write_text(text)


LEAF = H.leaf()
ENCRYPTED = (
    new_key().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"pw")).decode()
)
EXPIRED = make_hierarchy(issuing_lifetime=DAY, now=NOW - 9 * DAY)
OLD_ROOT = make_hierarchy(issuing_lifetime=DAY, root_lifetime=2 * DAY, now=NOW - 9 * DAY)
FUTURE = make_hierarchy(now=NOW + 9 * DAY)
EVIL = make_hierarchy(TrustDomain("evil"))
WRONG_CURVE = ec.generate_private_key(ec.SECP256K1())

BAD = [
    *[
        pytest.param(
            lambda d, n=n: (d / n).unlink(), KeyStoreCode.INCOMPLETE, f"{n} missing", id=f"D6-no-{n}"
        )
        for n in ("ca-cert.pem", "ca-key.pem", "root-cert.pem", "cert-chain.pem")
    ],
    pytest.param(
        lambda d: [p.unlink() for p in d.iterdir()], KeyStoreCode.INCOMPLETE, "no CA bundle", id="D6-none"
    ),
    pytest.param(
        write("ca-key.pem", key_pem(new_key())),
        KeyStoreCode.KEY_MISMATCH,
        "not the one in",
        id="key-mismatch",
    ),
    pytest.param(write("ca-key.pem", ENCRYPTED), KeyStoreCode.KEY, "unencrypted", id="key-encrypted"),
    pytest.param(write("ca-key.pem", key_pem(new_key()) * 2), KeyStoreCode.KEY, "exactly one", id="two-keys"),
    pytest.param(
        write("ca-key.pem", pem.encode("PRIVATE KEY", b"x")),
        KeyStoreCode.KEY,
        "cannot be loaded",
        id="key-junk",
    ),
    pytest.param(
        write("ca-key.pem", key_pem(ed25519.Ed25519PrivateKey.generate())),
        KeyStoreCode.KEY,
        "EC nor RSA",
        id="ed25519",
    ),
    pytest.param(write("ca-key.pem", key_pem(WRONG_CURVE)), KeyStoreCode.KEY, "secp256k1", id="key-curve"),
    pytest.param(write("ca-cert.pem", LEAF.chain_pem), KeyStoreCode.NOT_CA, "not a CA", id="X-20-leaf-as-ca"),
    pytest.param(
        write("root-cert.pem", pem.encode_certificate(LEAF.der)),
        KeyStoreCode.NOT_CA,
        "not a CA",
        id="root-leaf",
    ),
    pytest.param(write("ca-cert.pem", "junk"), KeyStoreCode.FILE, "outside of a block", id="junk"),
    pytest.param(write("ca-cert.pem", "ö"), KeyStoreCode.FILE, "is not ASCII", id="not-ascii"),
    pytest.param(write("root-cert.pem", "#" * (1 << 20) + "#"), KeyStoreCode.FILE, "more than", id="large"),
    pytest.param(
        write("root-cert.pem", H.roots_pem + ENCRYPTED), KeyStoreCode.FILE, "ENCRYPTED", id="unknown-block"
    ),
    pytest.param(
        write("root-cert.pem", pem.encode_certificate(b"x")), KeyStoreCode.FILE, "cannot be", id="root-junk"
    ),
    pytest.param(
        write("root-cert.pem", OTHER.roots_pem), KeyStoreCode.CHAIN, "leads to no root", id="chain-foreign"
    ),
    pytest.param(EXPIRED.write_cacerts, KeyStoreCode.EXPIRED, "expired at", id="intermediate-expired"),
    pytest.param(OLD_ROOT.write_cacerts, KeyStoreCode.EXPIRED, "expired at", id="root-expired"),
    pytest.param(FUTURE.write_cacerts, KeyStoreCode.EXPIRED, "starts at", id="not-yet-valid"),
    pytest.param(EVIL.write_cacerts, KeyStoreCode.TRUST_DOMAIN, "trust domain evil", id="other-trust-domain"),
    pytest.param(write("ca-crl.pem", "junk"), KeyStoreCode.CRL, "not a file of X509 CRL", id="crl-junk"),
]


@pytest.mark.parametrize(("spoil", "code", "words"), BAD)
def test_a2_refused_at_load_and_g16_at_reload_the_old_one_stays(plugged, spoil, code, words):
    store = open_store(plugged)
    before = store.issuer(NOW)
    spoil(plugged)
    result = store.reload(NOW)
    assert not result.changed
    assert result.error.code is code
    assert words in result.error.public
    assert store.issuer(NOW) is before
    assert store.last_error is result.error
    with pytest.raises(KeyStoreError) as e:
        open_store(plugged)
    assert e.value.code is code
    H.write_cacerts(plugged)  # recovers by itself when the files are right again
    (plugged / "ca-crl.pem").unlink(missing_ok=True)
    assert store.reload(NOW).error is None
    assert store.last_error is None


def test_an_expired_root_beside_a_live_one_does_no_harm(plugged):
    old = make_hierarchy(root_lifetime=DAY, now=NOW - 9 * DAY)
    (plugged / "root-cert.pem").write_text(old.roots_pem + H.roots_pem)
    assert open_store(plugged).roots == (*old.roots, *H.roots)


def renewed(root=H):
    """Another intermediate under the same root."""
    key = new_key()
    parent = Parent(x509.load_der_x509_certificate(root.root_der), root.root_key)
    return Hierarchy(
        TRUST_DOMAIN,
        root.root_der,
        root.root_key,
        make_intermediate(TRUST_DOMAIN, key, parent, NOW, 90 * DAY),
        key,
    )


class TestReload:
    def test_nothing_new(self, plugged):
        store = open_store(plugged)
        before = store.issuer(NOW)
        assert store.reload(NOW).changed is False
        assert store.issuer(NOW) is before

    def test_a_new_intermediate_of_the_same_root(self, plugged):
        store = open_store(plugged)
        new = renewed()
        new.write_cacerts(plugged)
        assert store.reload(NOW).changed
        assert store.issuer(NOW).certificate.der == new.issuing_der

    def test_a_foreign_root_is_refused(self, plugged):
        store = open_store(plugged)
        OTHER.write_cacerts(plugged)
        result = store.reload(NOW)
        assert result.error.code is KeyStoreCode.ROOT_CHANGED
        assert "multi_root" in result.error.public
        assert store.roots == H.roots

    def test_a_root_is_added_first_then_used(self, plugged):
        store = open_store(plugged)
        (plugged / "root-cert.pem").write_text(H.roots_pem + OTHER.roots_pem)
        assert store.reload(NOW).changed
        assert store.roots == (*H.roots, *OTHER.roots)
        OTHER.write_cacerts(plugged)
        assert store.reload(NOW).changed, "its root is trusted by now"
        assert store.roots == OTHER.roots

    def test_multi_root_takes_a_new_root_with_the_old_ones(self, plugged):
        store = open_store(plugged, multi_root=True)
        OTHER.write_cacerts(plugged)
        assert store.reload(NOW).error.code is KeyStoreCode.ROOT_CHANGED, "not related at all"
        (plugged / "root-cert.pem").write_text(H.roots_pem + OTHER.roots_pem)
        assert store.reload(NOW).changed
        assert store.issuer(NOW).certificate.der == OTHER.issuing_der

    def test_a_self_signed_store_reloads_too(self, tmp_path):
        store = KeyStore.open(KeyStoreConfig(trust_domain=TRUST_DOMAIN, state_dir=tmp_path / "s"), NOW)
        assert store.reload(NOW).changed is False


class TestChain:
    def three(self, directory, path_length_ok=True):
        """root -> middle -> issuing; `make_intermediate` gives path length 0, which is too short here."""
        middle_key = new_key()
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "middle")])
        root = x509.load_der_x509_certificate(H.root_der)
        middle = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(root.subject)
            .public_key(middle_key.public_key())
            .serial_number(5)
            .not_valid_before(NOW - DAY)
            .not_valid_after(NOW + 30 * DAY)
            .add_extension(x509.BasicConstraints(True, 1 if path_length_ok else 0), True)
            .add_extension(
                x509.load_der_x509_certificate(H.issuing_der)
                .extensions.get_extension_for_class(x509.KeyUsage)
                .value,
                True,
            )
            .add_extension(x509.SubjectKeyIdentifier(b"m" * 20), False)
            .sign(H.root_key, hashes.SHA256())
        )
        key = new_key()
        issuing = make_intermediate(TRUST_DOMAIN, key, Parent(middle, middle_key), NOW, 90 * DAY)
        made = Hierarchy(TRUST_DOMAIN, H.root_der, H.root_key, issuing, key)
        made.write_cacerts(directory)
        middle_der = middle.public_bytes(Encoding.DER)
        (directory / "cert-chain.pem").write_text(pem.encode_certificates((H.root_der, middle_der, issuing)))
        return issuing, middle_der

    def test_further_intermediates_are_sent_in_order_whatever_the_file_says(self, plugged):
        issuing, middle = self.three(plugged)
        issuer = open_store(plugged).issuer(NOW)
        assert [c.der for c in issuer.chain] == [issuing, middle]
        assert issuer.not_after == NOW + 30 * DAY, "the earliest end of the chain"
        Authority(issuer, Profile())

    def test_path_length_is_checked(self, plugged):
        self.three(plugged, path_length_ok=False)
        with pytest.raises(KeyStoreError, match="has path length 0") as e:
            open_store(plugged)
        assert e.value.code is KeyStoreCode.CHAIN

    def test_a_root_of_the_same_name_with_another_key_is_not_taken_for_the_signer(self, plugged):
        key = new_key()
        root = x509.load_der_x509_certificate(H.root_der)
        twin = x509.CertificateBuilder(
            issuer_name=root.subject,
            subject_name=root.subject,
            public_key=key.public_key(),
            serial_number=9,
            not_valid_before=root.not_valid_before_utc.replace(tzinfo=None),
            not_valid_after=root.not_valid_after_utc.replace(tzinfo=None),
            extensions=list(root.extensions),
        ).sign(key, hashes.SHA256())
        twin_pem = twin.public_bytes(Encoding.PEM).decode()
        (plugged / "root-cert.pem").write_text(twin_pem + H.roots_pem)
        Authority(open_store(plugged).issuer(NOW), Profile())
        (plugged / "root-cert.pem").write_text(twin_pem)
        (plugged / "cert-chain.pem").write_text(pem.encode_certificate(H.issuing_der))
        with pytest.raises(KeyStoreError, match="leads to no root"):
            open_store(plugged)


class TestCrl:
    def crl(self, ca_der, key, next_update=NOW + DAY, signer=None):
        ca = x509.load_der_x509_certificate(ca_der)
        crl = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(ca.subject)
            .last_update(NOW - 9 * DAY)
            .next_update(next_update)
            .sign(signer or key, hashes.SHA256())
        )
        return crl.public_bytes(Encoding.PEM).decode()

    def root(self, **kw):
        return self.crl(H.root_der, H.root_key, **kw)

    def issuing(self, **kw):
        return self.crl(H.issuing_der, H.issuing_key, **kw)

    def test_complete(self, plugged):
        (plugged / "ca-crl.pem").write_text(self.root() + self.issuing())
        assert open_store(plugged)

    @pytest.mark.parametrize(
        ("make", "words"),
        [
            pytest.param(lambda t: t.root(), "every CA of the chain needs one", id="one-missing"),
            pytest.param(lambda t: t.root() + t.issuing(signer=new_key()), "no CRL signed by", id="forged"),
            pytest.param(
                lambda t: t.root() + t.issuing(next_update=NOW - dt.timedelta(seconds=1)),
                "out of date",
                id="stale",
            ),
        ],
    )
    def test_incomplete(self, plugged, make, words):
        (plugged / "ca-crl.pem").write_text(make(self))
        with pytest.raises(KeyStoreError, match=words) as e:
            open_store(plugged)
        assert e.value.code is KeyStoreCode.CRL
