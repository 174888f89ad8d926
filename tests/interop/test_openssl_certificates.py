"""What the authority issues, as the openssl command sees it."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from ca.core.authority import Authority
from ca.core.csr import prove
from ca.core.profile import Profile
from ca.keystore import KeyStore, KeyStoreConfig
from mesh.spiffe import SpiffeId
from mesh.x509 import pem
from tests.fakes.ca_factory import NOW, TRUST_DOMAIN, make_csr, make_hierarchy, new_key

pytestmark = pytest.mark.openssl
ME = SpiffeId.for_service_account(TRUST_DOMAIN, "demo", "web")
AT = str(int(NOW.timestamp()))


def openssl(*args):
    """Output of openssl; a missing command fails the test, it does not skip it."""
    assert shutil.which("openssl"), "install openssl"
    done = subprocess.run(
        ["openssl", *map(str, args)], capture_output=True, text=True, check=False, timeout=30
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    store = KeyStore.open(
        KeyStoreConfig(trust_domain=TRUST_DOMAIN, state_dir=tmp_path_factory.mktemp("ca") / "state"), NOW
    )
    return Authority(store.issuer(NOW), Profile())


def issue(authority, key):
    return authority.sign(authority.prepare(prove(make_csr(key, uris=[str(ME)]), ME, Profile()), ME, 0, NOW))


@pytest.fixture
def files(authority, tmp_path):
    svid = issue(authority, new_key())
    (tmp_path / "leaf.pem").write_text(svid.leaf_pem)
    (tmp_path / "chain.pem").write_text("".join(svid.intermediates_pem))
    (tmp_path / "root.pem").write_text("".join(svid.roots_pem))
    return tmp_path


def verify(files, *args):
    return openssl(
        "verify", "-x509_strict", "-attime", AT, "-CAfile", files / "root.pem", "-untrusted",
        files / "chain.pem", *args, files / "leaf.pem",
    )  # fmt: skip


@pytest.mark.parametrize("purpose", ["sslserver", "sslclient"])
def test_x11_x30_openssl_verifies_the_chain_for_both_purposes(files, purpose):
    status, out = verify(files, "-purpose", purpose)
    assert (status, "leaf.pem: OK" in out) == (0, True), out


@pytest.mark.parametrize(
    ("args", "words"),
    [
        pytest.param(
            ["-attime", str(int(NOW.timestamp()) + 86401)], "certificate has expired", id="X-13-end"
        ),
        pytest.param(["-attime", str(int(NOW.timestamp()) - 121)], "not yet valid", id="X-13-start"),
    ],
)
def test_x13_openssl_agrees_on_the_times(files, args, words):
    status, out = verify(files, *args)
    assert status != 0
    assert words in out


def test_x31_openssl_refuses_the_foreign_root(files):
    (files / "root.pem").write_text(make_hierarchy().roots_pem)
    status, out = verify(files)
    assert status != 0
    assert "unable to get" in out


@pytest.mark.parametrize(
    ("key", "usage", "public"),
    [
        pytest.param(new_key(), "Digital Signature", "NIST CURVE: P-256", id="P-256"),
        pytest.param(
            ec.generate_private_key(ec.SECP384R1()), "Digital Signature", "NIST CURVE: P-384", id="P-384"
        ),
        pytest.param(
            rsa.generate_private_key(65537, 2048),
            "Digital Signature, Key Encipherment",
            "(2048 bit)",
            id="RSA",
        ),
    ],
)
def test_x_rows_in_the_text_of_openssl(authority, tmp_path, key, usage, public):
    svid = issue(authority, key)
    (tmp_path / "leaf.pem").write_text(svid.leaf_pem)
    status, text = openssl("x509", "-in", tmp_path / "leaf.pem", "-noout", "-text", "-serial")
    assert status == 0, text
    text = re.sub(r"\n\s+", "\n", text)
    assert "Subject: \n" in text or "Subject:\n" in text, "X-05"
    assert f"X509v3 Subject Alternative Name: critical\nURI:{ME}\n" in text, "X-01, X-05"
    assert f"X509v3 Key Usage: critical\n{usage}\n" in text, "X-07, X-08, X-10"
    assert "TLS Web Server Authentication, TLS Web Client Authentication" in text, "X-11"
    assert "X509v3 Basic Constraints: critical\nCA:FALSE" in text, "X-06"
    assert "X509v3 Subject Key Identifier:" in text, "X-15"
    assert "X509v3 Authority Key Identifier:" in text, "X-15"
    assert "Not Before: Jun  1 11:58:00 2026 GMT" in text, "X-13"
    assert "Not After : Jun  2 12:00:00 2026 GMT" in text, "X-13"
    assert public in text
    assert int(re.search(r"serial=([0-9A-F]+)", text)[1], 16) == int(svid.serial, 16)


def test_x20_to_x25_the_authorities_in_the_text_of_openssl(authority, tmp_path):
    (tmp_path / "ca.pem").write_text(pem.encode_certificate(authority.issuer.certificate.der))
    (tmp_path / "root.pem").write_text(pem.encode_certificates(authority.issuer.roots))
    _, ca = openssl("x509", "-in", tmp_path / "ca.pem", "-noout", "-text")
    _, root = openssl("x509", "-in", tmp_path / "root.pem", "-noout", "-text")
    assert "CA:TRUE, pathlen:0" in ca, "X-20, X-25"
    assert "CA:TRUE\n" in root, "X-20, X-25"
    for text in (ca, root):
        assert "Certificate Sign, CRL Sign" in text, "X-20"
        assert "URI:spiffe://cluster.local\n" in text, "X-22, X-23"
