"""The linter finds every wrong field: on the cheap way and on the thorough one."""

from __future__ import annotations

import datetime as dt

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ca.core.authority import Authority
from ca.core.csr import prove
from ca.core.lint import IssuerFacts, LintCode, Linter, LintError, check_leaf_certificate
from ca.core.profile import Profile
from ca.core.signer import ECDSA_SHA256
from ca.core.template import LeafTemplate, assemble
from mesh.errors import Category
from mesh.x509.certs import KeyKind, read_certificate
from tests.fakes.ca_factory import DAY, NOW, make_csr, make_hierarchy, new_key, usage

H = make_hierarchy()
ME = H.spiffe_id("/ns/demo/sa/web")
ISSUING = read_certificate(H.issuing_der)
AUTHORITY = Authority(H.issuer(), Profile())
PREPARED = AUTHORITY.prepare(prove(make_csr(), ME, Profile()), ME, 0, NOW)
TBS, SPEC = PREPARED.tbs, PREPARED.spec
FACTS = IssuerFacts(
    name=ISSUING.subject, ski=ISSUING.ski, algorithm=ECDSA_SHA256, not_after=ISSUING.not_after
)
TEMPLATE = LeafTemplate(issuer_name=ISSUING.subject, issuer_ski=ISSUING.ski, signature_algorithm=ECDSA_SHA256)


def shape():
    return TEMPLATE.shape(ME, KeyKind.P256)


def fails(code, words, act):
    with pytest.raises(LintError) as e:
        act()
    assert e.value.code is code
    assert words in e.value.private
    assert e.value.category is Category.INTERNAL
    assert "report this" in e.value.public


def test_a_good_one_passes_and_its_shape_is_remembered():
    s = shape()
    Linter(FACTS).check_tbs(TBS, SPEC, s)
    assert s.linted


OTHER_KEY = prove(make_csr(), ME, Profile())


@pytest.mark.parametrize("linted", [False, True], ids=["thorough", "cheap"])
@pytest.mark.parametrize(
    ("spec", "code", "words"),
    [
        pytest.param(
            SPEC._replace(serial_number=SPEC.serial_number + 1), LintCode.SERIAL, "drawn", id="X-14-other"
        ),
        pytest.param(SPEC._replace(serial_number=0), LintCode.SERIAL, "positive", id="X-14-zero"),
        pytest.param(SPEC._replace(serial_number=-5), LintCode.SERIAL, "positive", id="X-14-negative"),
        pytest.param(SPEC._replace(serial_number=1 << 160), LintCode.SERIAL, "159 bits", id="X-14-long"),
        pytest.param(SPEC._replace(not_before=NOW), LintCode.VALIDITY, "validity", id="X-13-other-start"),
        pytest.param(
            SPEC._replace(not_after=NOW + 2 * DAY), LintCode.VALIDITY, "validity", id="X-13-other-end"
        ),
        pytest.param(SPEC._replace(not_after=NOW - DAY), LintCode.VALIDITY, "validity", id="X-13-end-first"),
        pytest.param(
            SPEC._replace(not_after=ISSUING.not_after + DAY),
            LintCode.VALIDITY,
            "issuer ends",
            id="X-13-outlives",
        ),
        pytest.param(SPEC._replace(key=OTHER_KEY), LintCode.PUBLIC_KEY, "public key", id="other-key"),
        pytest.param(
            SPEC._replace(key=SPEC.key._replace(key_id=bytes(20))),
            LintCode.EXTENSIONS,
            "subject key",
            id="X-15-ski",
        ),
        pytest.param(
            SPEC._replace(identity=H.spiffe_id("/ns/demo/sa/x")),
            LintCode.IDENTITY,
            "another identity",
            id="X-01-id",
        ),
        pytest.param(
            SPEC._replace(key=SPEC.key._replace(kind=KeyKind.RSA)),
            LintCode.IDENTITY,
            "key kind",
            id="X-10-kind",
        ),
        pytest.param(
            SPEC._replace(key=SPEC.key._replace(dns=("ca.istio-system.svc",))),
            LintCode.IDENTITY,
            "other DNS names than were granted",
            id="granted-names-of-another-request",
        ),
    ],
)
def test_a_tbs_that_says_something_else(spec, code, words, linted):
    s = shape()
    s.linted = linted
    fails(code, words, lambda: Linter(FACTS).check_tbs(TBS, spec, s))


@pytest.mark.parametrize(
    ("tbs", "code", "words"),
    [
        pytest.param(b"", LintCode.STRUCTURE, "expected tag", id="empty"),
        pytest.param(b"\x31" + TBS[1:], LintCode.STRUCTURE, "expected tag 0x30", id="not-a-sequence"),
        pytest.param(TBS + b"\0", LintCode.STRUCTURE, "one sequence", id="trailing-byte"),
        pytest.param(
            TBS.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x01"),
            LintCode.STRUCTURE,
            "version 3",
            id="v2",
        ),
        pytest.param(
            TBS.replace(ISSUING.subject, ISSUING.subject[:-1] + b"x"), LintCode.ISSUER, "issuer", id="issuer"
        ),
        pytest.param(
            TBS.replace(b"\x30\x00\x30\x59", b"\x31\x00\x30\x59"),
            LintCode.SUBJECT,
            "subject",
            id="X-05-subject",
        ),
        pytest.param(TBS.replace(b"sa/web", b"sa/wEb"), LintCode.EXTENSIONS, "extensions", id="X-01-san"),
    ],
)
def test_a_tbs_with_other_bytes(tbs, code, words):
    s = shape()
    s.linted = True
    fails(code, words, lambda: Linter(FACTS).check_tbs(tbs, SPEC, s))


def test_bytes_inside_the_sequence_but_after_the_extensions():
    body = TBS[4:] + b"\x05\x00"
    longer = b"\x30\x82" + len(body).to_bytes(2, "big") + body
    fails(LintCode.STRUCTURE, "2 bytes follow", lambda: Linter(FACTS).check_tbs(longer, SPEC, shape()))


@settings(deadline=None)
@given(st.integers(0, len(TBS) - 1), st.integers(1, 255))
def test_law_no_changed_byte_passes_the_cheap_way(at, change):
    s = shape()
    s.linted = True
    tbs = bytearray(TBS)
    tbs[at] ^= change
    with pytest.raises(LintError):
        Linter(FACTS).check_tbs(bytes(tbs), SPEC, s)


def test_the_first_of_a_shape_is_parsed_in_full():
    """A template that is wrong from the start is found although each byte is as the template says."""
    s = shape()
    s.extensions = s.extensions.replace(b"\x55\x1d\x13", b"\x55\x1d\x63")  # no basicConstraints
    tbs = TBS.replace(b"\x55\x1d\x13", b"\x55\x1d\x63")
    fails(LintCode.STRUCTURE, "unknown critical extension", lambda: Linter(FACTS).check_tbs(tbs, SPEC, s))
    assert not s.linted


def test_check_issued():
    linter = Linter(FACTS)
    good = assemble(TBS, ECDSA_SHA256, b"sig")
    linter.check_issued(good, TBS)
    for bad in (
        good + b"\0",
        assemble(TBS, ECDSA_SHA256[:-1] + b"\x03", b"sig"),
        assemble(TBS.replace(b"web", b"wex"), ECDSA_SHA256, b"sig"),
    ):
        fails(LintCode.STRUCTURE, "linted TBSCertificate", lambda bad=bad: linter.check_issued(bad, TBS))


LEAF_KEY = new_key()
LEAF_ARGS = {"key": LEAF_KEY, "not_before": SPEC.not_before, "not_after": SPEC.not_after}


def thorough(**change):
    leaf = H.leaf(**{**LEAF_ARGS, **change})
    key = prove(make_csr(LEAF_KEY), ME, Profile())
    spec = SPEC._replace(serial_number=leaf.certificate.serial_number, key=key)
    return check_leaf_certificate(leaf.der, spec, FACTS)


def test_thorough_accepts_what_the_builder_makes():
    assert thorough().spiffe_id() == ME


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        pytest.param({"dns": ("x",)}, LintCode.IDENTITY, "leaf is for", id="X-03-dns"),
        pytest.param({"uris": (str(ME), str(ME))}, LintCode.STRUCTURE, "2 URI SANs", id="X-01-two"),
        pytest.param(
            {"uris": ("spiffe://Cluster.local/ns/demo/sa/web",)}, LintCode.IDENTITY, "leaf is", id="X-01-case"
        ),
        pytest.param({"not_after": NOW + 2 * DAY}, LintCode.VALIDITY, "not asked for", id="X-13"),
        pytest.param({"ca": None}, LintCode.EXTENSIONS, "an extension", id="X-06-absent"),
        pytest.param({"eku": None}, LintCode.EXTENSIONS, "an extension", id="X-11-absent"),
        pytest.param(
            {"key_usage": usage("digital_signature", "key_agreement")},
            LintCode.EXTENSIONS,
            "an ext",
            id="X-10",
        ),
        pytest.param(
            {"key_usage": usage("digital_signature", "key_encipherment")},
            LintCode.EXTENSIONS,
            "an ext",
            id="X-10-ec",
        ),
        pytest.param({"subject": ISSUING.certificate.subject}, LintCode.SUBJECT, "not empty", id="X-05"),
        pytest.param({"key": new_key()}, LintCode.PUBLIC_KEY, "proved", id="key"),
    ],
)
def test_thorough_finds(change, code, words):
    fails(code, words, lambda: thorough(**change))


def test_thorough_finds_another_serial_and_issuer():
    leaf = H.leaf(**LEAF_ARGS)
    spec = SPEC._replace(key=prove(make_csr(LEAF_KEY), ME, Profile()))
    fails(LintCode.SERIAL, "drawn", lambda: check_leaf_certificate(leaf.der, spec, FACTS))
    other = make_hierarchy().leaf(**LEAF_ARGS)
    spec = spec._replace(serial_number=other.certificate.serial_number)
    fails(LintCode.ISSUER, "signing certificate", lambda: check_leaf_certificate(other.der, spec, FACTS))
    fails(LintCode.STRUCTURE, "cannot be parsed", lambda: check_leaf_certificate(b"x", spec, FACTS))
    late = spec._replace(not_after=FACTS.not_after + dt.timedelta(seconds=1))
    fails(LintCode.VALIDITY, "issuer ends", lambda: check_leaf_certificate(other.der, late, FACTS))
