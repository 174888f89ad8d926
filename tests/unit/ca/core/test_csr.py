"""The CSR gate: rows F-01 to F-17. Every refusal has a code and says what to do."""

from __future__ import annotations

import hashlib
import ipaddress
import warnings

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from ca.core import csr as gate
from ca.core.csr import CsrCode, CsrError, prove
from ca.core.profile import Profile
from mesh.errors import Category
from mesh.spiffe import SpiffeId
from mesh.x509 import pem
from mesh.x509.certs import KeyKind, key_identifier, public_key_bits, spki_der
from tests.fakes.ca_factory import make_csr, make_hierarchy, new_key, usage

ME = SpiffeId.parse("spiffe://cluster.local/ns/demo/sa/web")
OWN = str(ME)
VICTIM = "spiffe://cluster.local/ns/demo/sa/reviews"
KEY = new_key()
RSA = rsa.generate_private_key(65537, 2048)
DEFAULT = Profile()


def name(*pairs):
    return x509.Name([x509.NameAttribute(o, v) for o, v in pairs])


with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    LONG_CN = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "y" * 65, _validate=False)])


def ext(value, critical=False):
    return [(value, critical)]


def odd(oid="1.2.3.4"):
    return x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), b"\x05\x00")


def der_of(text):
    return pem.decode_one(text, pem.CSR_LABELS, max_bytes=1 << 20)


def as_pem(der):
    return pem.encode("CERTIFICATE REQUEST", der)


def flipped(text, at=-10):
    der = bytearray(der_of(text))
    der[at] ^= 1
    return as_pem(bytes(der))


# --- accepted ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(make_csr(KEY), id="F-06-no-san"),
        pytest.param(make_csr(KEY, uris=[OWN]), id="own-san-critical"),
        pytest.param(make_csr(KEY, uris=[OWN], san_critical=False), id="own-san-not-critical"),
        pytest.param(make_csr(KEY).replace("CERTIFICATE REQ", "NEW CERTIFICATE REQ"), id="new-label"),
        pytest.param(make_csr(KEY, digest=hashes.SHA384()), id="sha384"),
        pytest.param(make_csr(KEY, digest=hashes.SHA512(), uris=[OWN]), id="sha512"),
        pytest.param(make_csr(KEY, subject=name((NameOID.ORGANIZATION_NAME, ""))), id="istio-agent-empty-o"),
        pytest.param(make_csr(KEY, extra=ext(x509.BasicConstraints(False, None), True)), id="ca-false"),
        pytest.param(
            make_csr(KEY, extra=ext(usage("digital_signature", "key_encipherment"))), id="key-usage"
        ),
        pytest.param(
            make_csr(KEY, uris=[OWN], extra=ext(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]))),
            id="eku",
        ),
    ],
)
def test_accepted_requests_give_the_proven_key(text):
    key = prove(text, ME, DEFAULT)
    assert key.kind is KeyKind.P256
    assert key.spki_der == spki_der(KEY.public_key())
    assert key.key_id == key_identifier(public_key_bits(KEY.public_key()))


@pytest.mark.parametrize(
    ("key", "profile", "kind"),
    [
        pytest.param(ec.generate_private_key(ec.SECP384R1()), DEFAULT, KeyKind.P384, id="P-384"),
        pytest.param(RSA, DEFAULT, KeyKind.RSA, id="RSA-2048"),
        pytest.param(rsa.generate_private_key(65537, 4096), DEFAULT, KeyKind.RSA, id="RSA-4096"),
        pytest.param(
            ec.generate_private_key(ec.SECP521R1()), Profile(allow_p521=True), KeyKind.P521, id="F-12-option"
        ),
        pytest.param(
            ed25519.Ed25519PrivateKey.generate(),
            Profile(allow_ed25519=True),
            KeyKind.ED25519,
            id="F-13-option",
        ),
    ],
)
def test_other_key_kinds(key, profile, kind):
    digest = None if kind is KeyKind.ED25519 else hashes.SHA256()
    proven = prove(make_csr(key, uris=[OWN], digest=digest), ME, profile)
    assert proven.kind is kind
    assert proven.spki_der == spki_der(key.public_key())


def test_f14_the_same_key_again_is_allowed():
    text = make_csr(KEY, uris=[OWN])
    assert prove(text, ME, DEFAULT) == prove(text, ME, DEFAULT)


def test_explicit_curve_parameters_come_out_as_a_named_curve():
    """f.1: the library takes explicit P-256 parameters as P-256; what is issued names the curve."""
    text = make_csr(KEY)
    assert b"\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07" in prove(text, ME, DEFAULT).spki_der


def test_ignore_subject_tolerates_cn_and_o_only():
    lenient = Profile(ignore_subject=True)
    text = make_csr(KEY, subject=name((NameOID.COMMON_NAME, "web"), (NameOID.ORGANIZATION_NAME, "x")))
    assert prove(text, ME, lenient).kind is KeyKind.P256
    for subject in (
        name((NameOID.COUNTRY_NAME, "DE")),
        name(*[(NameOID.COMMON_NAME, "x" * 60)] * 20),
        LONG_CN,
    ):
        with pytest.raises(CsrError, match="are ignored, and 1024 bytes in all; leave it empty") as e:
            prove(make_csr(KEY, subject=subject), ME, lenient)
        assert e.value.code is CsrCode.SUBJECT


# --- refused ----------------------------------------------------------------------------------------------

DNS = x509.DNSName("web.demo.svc")
IP = x509.IPAddress(ipaddress.ip_address("192.0.2.1"))
MAIL = x509.RFC822Name("a@b.example")
URI = x509.UniformResourceIdentifier
GOOD = make_csr(KEY, uris=[OWN])
BIG_NAMES = make_csr(KEY, names=[x509.DNSName(f"{i}.example") for i in range(3000)])
DIRECTORY = x509.DirectoryName(name((NameOID.COMMON_NAME, "x")))

REFUSED = [
    pytest.param(make_csr(uris=[OWN], names=[DNS]), CsrCode.SAN_MISMATCH, "exactly the URI", id="F-01-dns"),
    pytest.param(make_csr(uris=[OWN], names=[IP]), CsrCode.SAN_MISMATCH, "2 names", id="F-01-ip"),
    pytest.param(make_csr(uris=[OWN], names=[MAIL]), CsrCode.SAN_MISMATCH, "2 names", id="F-01-email"),
    pytest.param(make_csr(names=[DNS]), CsrCode.SAN_MISMATCH, "1 names", id="F-01-dns-alone"),
    pytest.param(make_csr(names=[DIRECTORY]), CsrCode.SAN_MISMATCH, "1 names", id="F-01-directory-name"),
    pytest.param(make_csr(uris=["https://x"]), CsrCode.SAN_MISMATCH, "allowed is none", id="F-01-other-uri"),
    pytest.param(make_csr(uris=[""]), CsrCode.SAN_MISMATCH, "allowed is none", id="T-11-empty-uri"),
    pytest.param(
        make_csr(uris=[OWN + "\0"]), CsrCode.SPOOF_ATTEMPT, "another identity", id="T-11-nul-in-uri"
    ),
    pytest.param(make_csr(uris=[VICTIM]), CsrCode.SPOOF_ATTEMPT, "leave the SAN out", id="F-02-victim"),
    pytest.param(
        make_csr(uris=["SPIFFE://x/y"]), CsrCode.SPOOF_ATTEMPT, "another identity", id="F-02-scheme-case"
    ),
    pytest.param(
        make_csr(uris=[OWN, VICTIM]), CsrCode.SPOOF_ATTEMPT, "another identity", id="F-03-own-and-victim"
    ),
    pytest.param(make_csr(uris=[OWN, OWN]), CsrCode.SAN_MISMATCH, "2 names", id="F-03-own-twice"),
    pytest.param(
        make_csr(uris=[OWN, "https://x"]), CsrCode.SAN_MISMATCH, "2 names", id="F-03-own-and-another-uri"
    ),
    pytest.param(
        make_csr(extra=ext(x509.BasicConstraints(True, None), True)),
        CsrCode.CA_REQUEST,
        "CA:TRUE",
        id="F-04-ca",
    ),
    pytest.param(
        make_csr(extra=ext(usage("digital_signature", "key_cert_sign"))),
        CsrCode.CA_REQUEST,
        "keyCertSign",
        id="F-04-cert-sign",
    ),
    pytest.param(make_csr(extra=ext(usage("crl_sign"))), CsrCode.CA_REQUEST, "cRLSign", id="F-04-crl-sign"),
    pytest.param(
        make_csr(extra=ext(odd())), CsrCode.EXTENSION, "extension 1.2.3.4 is not", id="F-05-unknown"
    ),
    pytest.param(
        make_csr(extra=ext(x509.NameConstraints([x509.DNSName("x")], None), True)),
        CsrCode.EXTENSION,
        "2.5.29.30",
        id="F-05-name-constraints",
    ),
    pytest.param(
        make_csr(extra=ext(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]))),
        CsrCode.EXTENSION,
        "allowed are serverAuth and clientAuth",
        id="F-05-eku-code-signing",
    ),
    pytest.param(
        make_csr(extra=ext(usage("content_commitment"))),
        CsrCode.EXTENSION,
        "key usage may",
        id="F-05-key-usage",
    ),
    pytest.param(
        make_csr(subject=name((NameOID.COMMON_NAME, "web"))), CsrCode.SUBJECT, "leave it empty", id="F-07-cn"
    ),
    pytest.param(
        make_csr(subject=LONG_CN),
        CsrCode.SUBJECT,
        "leave it empty",
        id="F-07-cn-65",
    ),
    pytest.param(
        make_csr(subject=name(*[(NameOID.ORGANIZATION_NAME, "x")] * 100)),
        CsrCode.SUBJECT,
        "leave it empty",
        id="F-07-rdn-flood",
    ),
    pytest.param(
        make_csr(subject=name(*[(NameOID.ORGANIZATION_NAME, "")] * 2)),
        CsrCode.SUBJECT,
        "leave it empty",
        id="F-07-empty-os",
    ),
    pytest.param("A" * (1 << 20), CsrCode.TOO_LARGE, "allowed are 16384", id="F-08-1-MiB"),
    pytest.param(BIG_NAMES, CsrCode.TOO_LARGE, "allowed are 16384", id="F-08-3000-names"),
    pytest.param("", CsrCode.EMPTY, "is empty", id="F-09-empty"),
    pytest.param(der_of(GOOD).decode("latin-1"), CsrCode.FRAMING, "must start with", id="F-09-der"),
    pytest.param(pem.encode("PKCS7", der_of(GOOD)), CsrCode.FRAMING, "'PKCS7'", id="F-09-pkcs7"),
    pytest.param(
        pem.encode_certificate(make_hierarchy().root_der), CsrCode.FRAMING, "'CERTIFICATE'", id="F-09-cert"
    ),
    pytest.param(as_pem(make_hierarchy().root_der), CsrCode.MALFORMED, "PKCS#10", id="F-09-cert-as-csr"),
    pytest.param(as_pem(der_of(GOOD)[:-4]), CsrCode.MALFORMED, "cannot be parsed", id="F-09-truncated-der"),
    pytest.param(as_pem(der_of(GOOD)[:60]), CsrCode.MALFORMED, "cannot be parsed", id="F-09-60-bytes"),
    pytest.param(as_pem(b"0"), CsrCode.MALFORMED, "cannot be parsed", id="F-09-one-byte"),
    pytest.param(
        as_pem(der_of(GOOD) + b"\0"), CsrCode.MALFORMED, "cannot be parsed", id="F-09-trailing-byte"
    ),
    pytest.param(GOOD + "x", CsrCode.FRAMING, "exactly one block", id="F-09-trailing-text"),
    pytest.param("x" + GOOD, CsrCode.FRAMING, "must start with", id="F-09-leading-text"),
    pytest.param(GOOD + GOOD, CsrCode.FRAMING, "exactly one block", id="F-09-second-block"),
    pytest.param(flipped(GOOD), CsrCode.SIGNATURE, "does not verify", id="F-10-flipped"),
    pytest.param(flipped(make_csr(RSA)), CsrCode.SIGNATURE, "does not verify", id="F-10-flipped-rsa"),
    pytest.param(
        as_pem(
            der_of(GOOD).replace(public_key_bits(KEY.public_key()), public_key_bits(new_key().public_key()))
        ),
        CsrCode.SIGNATURE,
        "own public key",
        id="F-10-signed-by-another-key",
    ),
    pytest.param(
        as_pem(der_of(GOOD).replace(public_key_bits(KEY.public_key()), b"\x04" + bytes(64))),
        CsrCode.MALFORMED,
        "not a point of P-256",
        id="F-10-not-on-the-curve",
    ),
    pytest.param(
        make_csr(digest=hashes.SHA224()), CsrCode.SIGNATURE_ALGORITHM, "SHA-256 or better", id="sha224"
    ),
    pytest.param(
        make_csr(rsa.generate_private_key(65537, 1024)), CsrCode.KEY_TYPE, "RSA-1024", id="F-11-rsa-1024"
    ),
    pytest.param(
        make_csr(rsa.generate_private_key(3, 2048)), CsrCode.KEY_TYPE, "with e=3", id="F-11-rsa-e-3"
    ),
    pytest.param(make_csr(dsa.generate_private_key(2048)), CsrCode.KEY_TYPE, "DSA", id="F-11-dsa"),
    pytest.param(
        make_csr(ec.generate_private_key(ec.SECP224R1())), CsrCode.KEY_TYPE, "secp224r1", id="F-11-p224"
    ),
    pytest.param(
        make_csr(ec.generate_private_key(ec.SECP256K1())), CsrCode.KEY_TYPE, "secp256k1", id="F-11-secp256k1"
    ),
    pytest.param(
        make_csr(ed448.Ed448PrivateKey.generate(), digest=None), CsrCode.KEY_TYPE, "Ed448", id="F-11-ed448"
    ),
    pytest.param(
        make_csr(ec.generate_private_key(ec.SECP521R1())),
        CsrCode.KEY_TYPE,
        "public key is P-521",
        id="F-12-p521",
    ),
    pytest.param(
        make_csr(ed25519.Ed25519PrivateKey.generate(), digest=None),
        CsrCode.KEY_TYPE,
        "Ed25519",
        id="F-13-ed25519",
    ),
    pytest.param(
        as_pem(
            der_of(make_csr(ec.generate_private_key(ec.SECP384R1()))).replace(
                bytes.fromhex("2b81040022"), bytes.fromhex("2b81040077")
            )
        ),
        CsrCode.KEY_TYPE,
        "unknown type",
        id="F-11-unknown-curve",
    ),
]


@pytest.mark.parametrize(("text", "code", "words"), REFUSED)
def test_refused(text, code, words):
    with pytest.raises(CsrError) as e:
        prove(text, ME, DEFAULT)
    assert e.value.code is code
    assert words in e.value.public
    assert e.value.category is Category.INVALID_ARGUMENT


def test_f02_the_audit_names_the_victim_and_the_caller_does_not_learn_more():
    with pytest.raises(CsrError) as e:
        prove(make_csr(uris=[VICTIM]), ME, DEFAULT)
    assert VICTIM in e.value.private
    assert VICTIM not in e.value.public
    assert {CsrCode.SPOOF_ATTEMPT, CsrCode.CA_REQUEST} == gate.HOSTILE


@pytest.mark.parametrize("label", ["san", "none"])
def test_f11_a_big_rsa_key_is_refused_before_its_signature_is_checked(label, monkeypatch):
    """RSA-8192, with a signature that would be wrong: the answer is about the key."""
    key = rsa.generate_private_key(65537, 2048)
    der = der_of(make_csr(key, uris=[OWN] if label == "san" else []))
    n = key.public_key().public_numbers().n.to_bytes(256, "big")
    big = rsa.RSAPublicNumbers(65537, int.from_bytes(b"\xff" * 1024, "big")).public_key()
    spki = spki_der(key.public_key())
    assert n in spki
    info = der[4 : 4 + int.from_bytes(der[6:8], "big") + 4]
    changed = _sequence(_sequence(info[4:].replace(spki, spki_der(big))) + der[4 + len(info) :])
    with pytest.raises(CsrError, match="RSA-8192") as e:
        prove(as_pem(changed), ME, DEFAULT)
    assert e.value.code is CsrCode.KEY_TYPE


def _sequence(body):
    return b"\x30\x82" + len(body).to_bytes(2, "big") + body


def test_f05_duplicate_extension():
    san = _raw_extension("2.5.29.17", x509.SubjectAlternativeName([URI(OWN)]).public_bytes())
    with pytest.raises(CsrError, match="cannot be parsed") as e:
        prove(_raw_csr(san + san), ME, DEFAULT)
    assert e.value.code is CsrCode.MALFORMED


def test_f05_attributes_other_than_the_extension_request_are_refused():
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    builder = builder.add_attribute(x509.oid.AttributeOID.CHALLENGE_PASSWORD, b"secret")
    text = builder.sign(KEY, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()
    with pytest.raises(CsrError, match=r"attribute 1\.2\.840\.113549\.1\.9\.7 is not allowed") as e:
        prove(text, ME, DEFAULT)
    assert e.value.code is CsrCode.EXTENSION


def test_non_ascii_uri_is_a_refusal_and_not_a_fault():
    """f.1: the library raises ValueError for it."""
    raw = OWN.encode().replace(b"web", b"w\xe9b")
    san = _raw_extension("2.5.29.17", b"\x30" + bytes([len(raw) + 2]) + b"\x86" + bytes([len(raw)]) + raw)
    with pytest.raises(CsrError, match="cannot be parsed") as e:
        prove(_raw_csr(san), ME, DEFAULT)
    assert e.value.code is CsrCode.MALFORMED


def test_f17_blocked_keys_are_refused():
    blocked = Profile(blocked_keys=frozenset({hashlib.sha256(spki_der(KEY.public_key())).digest()}))
    with pytest.raises(CsrError, match="known to be weak") as e:
        prove(GOOD, ME, blocked)
    assert e.value.code is CsrCode.KEY_BLOCKED
    with pytest.raises(CsrError, match="known to be weak"):
        prove(make_csr(KEY, digest=hashes.SHA384()), ME, blocked)
    assert prove(make_csr(), ME, blocked)


def test_ecdsa_signature_length_must_be_canonical_der():
    der = bytearray(der_of(GOOD))
    start = 2 if der[1] < 0x80 else 2 + (der[1] & 0x7F)
    long_form = b"\x30\x83" + len(der[start:]).to_bytes(3, "big") + bytes(der[start:])
    with pytest.raises(CsrError, match="cannot be parsed") as e:
        prove(as_pem(long_form), ME, DEFAULT)
    assert e.value.code is CsrCode.MALFORMED


# --- laws -------------------------------------------------------------------------------------------------

GOOD_DER = der_of(GOOD)
SAMPLES = [GOOD_DER, der_of(make_csr(KEY)), der_of(make_csr(RSA, uris=[OWN]))]


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(SAMPLES),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=4),
    st.integers(-3, 3),
)
def test_law_a_mutated_request_is_refused_with_csr_error(sample, changes, resize):
    der = bytearray(sample)
    for where, how in changes:
        der[int(where * len(der))] ^= how
    der = der[:resize] if resize < 0 else der + bytes(resize)
    if bytes(der) == sample:
        return
    with pytest.raises(CsrError):
        prove(as_pem(bytes(der)), ME, DEFAULT)


@settings(deadline=None)
@given(st.text(max_size=300) | st.binary(max_size=300).map(lambda b: as_pem(b or b"0")))
def test_law_any_text_is_refused_with_csr_error(text):
    with pytest.raises(CsrError):
        prove(text, ME, DEFAULT)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([OWN, VICTIM, "https://x", "spiffe://cluster.local"]), max_size=3),
    st.lists(st.sampled_from([DNS, IP, MAIL]), max_size=2),
    st.booleans(),
)
def test_law_whatever_names_are_asked_for_only_the_own_one_passes(uris, names, critical):
    text = make_csr(KEY, uris=uris, names=names, san_critical=critical)
    if uris in ([], [OWN]) and not names:
        assert prove(text, ME, DEFAULT).kind is KeyKind.P256
    else:
        with pytest.raises(CsrError) as e:
            prove(text, ME, DEFAULT)
        assert e.value.code in {CsrCode.SAN_MISMATCH, CsrCode.SPOOF_ATTEMPT}


@pytest.mark.parametrize("uris", [[], [OWN]])
@pytest.mark.parametrize("critical", [True, False])
def test_canonical_and_general_way_agree(uris, critical, monkeypatch):
    text = make_csr(KEY, uris=uris, san_critical=critical)
    fast = prove(text, ME, DEFAULT)
    monkeypatch.setattr(gate, "_canonical_point", lambda der, identity: None)
    assert prove(text, ME, DEFAULT) == fast


def _raw_extension(oid, value):
    encoded = x509.ObjectIdentifier(oid)
    body = {"2.5.29.17": bytes.fromhex("0603551d11")}[encoded.dotted_string] + _minimal(4, value)
    return _minimal(0x30, body)


def _raw_csr(extensions):
    """A request with a good signature and whatever bytes as its extensions."""
    attribute = _minimal(
        0x30, bytes.fromhex("06092a864886f70d01090e") + _minimal(0x31, _minimal(0x30, extensions))
    )
    info = b"\x02\x01\x00\x30\x00" + spki_der(KEY.public_key()) + _minimal(0xA0, attribute)
    info = _minimal(0x30, info)
    signature = KEY.sign(info, ec.ECDSA(hashes.SHA256()))
    algorithm = bytes.fromhex("300a06082a8648ce3d040302")
    return as_pem(_minimal(0x30, info + algorithm + _minimal(3, b"\0" + signature)))


def _minimal(tag, body):
    n = len(body)
    if n < 0x80:
        return bytes([tag, n]) + body
    size = n.to_bytes(1 if n < 0x100 else 2, "big")
    return bytes([tag, 0x80 | len(size)]) + size + body
