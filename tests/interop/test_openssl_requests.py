"""Requests that the openssl command makes, at the gate; and CA files that people make with it."""

from __future__ import annotations

import datetime as dt
import shutil
import subprocess

import pytest

from ca.core.authority import Authority
from ca.core.csr import CsrCode, CsrError, prove
from ca.core.profile import Profile
from ca.keystore import KeyStore, KeyStoreConfig
from mesh.spiffe import SpiffeId
from mesh.x509.certs import KeyKind
from mesh.x509.verify import verify_svid
from tests.fakes.ca_factory import TRUST_DOMAIN, make_csr

pytestmark = pytest.mark.openssl
ME = SpiffeId.for_service_account(TRUST_DOMAIN, "demo", "web")
OWN = f"subjectAltName=URI:{ME}"


def openssl(cwd, *args):
    """Run openssl; a missing command fails the test, it does not skip it."""
    assert shutil.which("openssl"), "install openssl"
    done = subprocess.run(
        ["openssl", *args], capture_output=True, text=True, check=False, timeout=60, cwd=cwd
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def request_of(tmp_path):
    (tmp_path / "empty.cnf").write_text("[req]\ndistinguished_name=dn\n[dn]\n")

    def make(*args, key=("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"), subject="/"):
        openssl(tmp_path, "genpkey", *key, "-out", "key.pem")
        return openssl(
            tmp_path, "req", "-new", "-key", "key.pem", "-config", "empty.cnf", "-subj", subject, *args
        )  # fmt: skip

    return make


RSA = ("-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048")


@pytest.mark.parametrize(
    ("args", "key", "kind"),
    [
        pytest.param([], None, KeyKind.P256, id="F-06-plain"),
        pytest.param(["-newhdr"], None, KeyKind.P256, id="new-certificate-request-label"),
        pytest.param(["-addext", OWN], None, KeyKind.P256, id="own-san"),
        pytest.param(
            ["-addext", f"subjectAltName=critical,URI:{ME}"], None, KeyKind.P256, id="own-san-critical"
        ),
        pytest.param(
            ["-addext", OWN, "-addext", "keyUsage=digitalSignature", "-addext", "basicConstraints=CA:FALSE"],
            None,
            KeyKind.P256,
            id="with-usages",
        ),
        pytest.param(
            ["-sha384"], ("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"), KeyKind.P384, id="p384"
        ),
        pytest.param([], RSA, KeyKind.RSA, id="rsa"),
        pytest.param(
            [],
            ("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-pkeyopt", "ec_param_enc:explicit"),
            KeyKind.P256,
            id="explicit-curve-parameters",
        ),
    ],
)
def test_accepted(request_of, args, key, kind):
    text = request_of(*args, **({"key": key} if key else {}))
    proven = prove(text, ME, Profile())
    assert proven.kind is kind
    if kind is KeyKind.P256:
        assert len(proven.spki_der) == 91, "re-encoded with the named curve"


@pytest.mark.parametrize(
    ("args", "kw", "code"),
    [
        pytest.param(["-addext", OWN + ",DNS:web"], {}, CsrCode.SAN_MISMATCH, id="F-01"),
        pytest.param(
            ["-addext", "subjectAltName=URI:spiffe://cluster.local/ns/demo/sa/x"],
            {},
            CsrCode.SPOOF_ATTEMPT,
            id="F-02",
        ),
        pytest.param(["-addext", "basicConstraints=CA:TRUE"], {}, CsrCode.CA_REQUEST, id="F-04-ca"),
        pytest.param(["-addext", "keyUsage=keyCertSign"], {}, CsrCode.CA_REQUEST, id="F-04-cert-sign"),
        pytest.param(["-addext", "1.2.3.4=DER:0500"], {}, CsrCode.EXTENSION, id="F-05"),
        pytest.param([], {"subject": "/CN=web"}, CsrCode.SUBJECT, id="F-07"),
        pytest.param(["-outform", "PEM", "-text"], {}, CsrCode.FRAMING, id="F-09-text-before"),
        pytest.param(["-sha1"], {}, CsrCode.SIGNATURE_ALGORITHM, id="sha1"),
        pytest.param(["-md5"], {"key": RSA}, CsrCode.SIGNATURE_ALGORITHM, id="md5"),
        pytest.param(
            [],
            {"key": ("-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024")},
            CsrCode.KEY_TYPE,
            id="F-11-rsa-1024",
        ),
        pytest.param(
            [],
            {"key": ("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:secp256k1")},
            CsrCode.KEY_TYPE,
            id="F-11-secp256k1",
        ),
        pytest.param([], {"key": ("-algorithm", "ED25519")}, CsrCode.KEY_TYPE, id="F-13"),
    ],
)
def test_refused(request_of, args, kw, code):
    with pytest.raises(CsrError) as e:
        prove(request_of(*args, **kw), ME, Profile())
    assert e.value.code is code, e.value.private


CA_CONF = """
[req]
distinguished_name=dn
prompt=no
[dn]
CN=people's root
[root]
basicConstraints=critical,CA:TRUE
keyUsage=critical,keyCertSign,cRLSign
subjectKeyIdentifier=none
authorityKeyIdentifier=none
[issuing]
basicConstraints=critical,CA:TRUE,pathlen:0
keyUsage=critical,keyCertSign
subjectKeyIdentifier=none
authorityKeyIdentifier=none
"""


def test_i_plugged_in_ca_of_openssl_without_key_identifiers(tmp_path):
    """Dossier (i): chains made by openssl without AKI work, in the loader and in the validator."""
    (tmp_path / "ca.cnf").write_text(CA_CONF)
    ec_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    openssl(
        tmp_path, "req", "-x509", *ec_key, "-keyout", "root.key", "-out", "root-cert.pem",
        "-config", "ca.cnf", "-extensions", "root", "-days", "30",
    )  # fmt: skip
    openssl(
        tmp_path, "req", "-new", *ec_key, "-keyout", "ca-key.pem", "-out", "ca.csr", "-config", "ca.cnf",
        "-subj", "/CN=people's issuing",
    )  # fmt: skip
    openssl(
        tmp_path, "x509", "-req", "-in", "ca.csr", "-CA", "root-cert.pem", "-CAkey", "root.key",
        "-CAcreateserial", "-out", "ca-cert.pem", "-extfile", "ca.cnf", "-extensions", "issuing", "-days",
        "20",
    )  # fmt: skip
    (tmp_path / "cert-chain.pem").write_text((tmp_path / "ca-cert.pem").read_text())
    now = dt.datetime.now(dt.UTC) + dt.timedelta(minutes=5)
    store = KeyStore.open(
        KeyStoreConfig(trust_domain=TRUST_DOMAIN, state_dir=tmp_path / "state", plugged_dir=tmp_path), now
    )
    issuer = store.issuer(now)
    authority = Authority(issuer, Profile())
    svid = authority.sign(authority.prepare(prove(make_csr(), ME, Profile()), ME, 0, now))
    chain = (svid.leaf_der, *(c.der for c in issuer.chain))
    assert verify_svid(chain, store.roots, now, trust_domain=TRUST_DOMAIN).spiffe_id == ME
