"""PEM framing: exactly what was asked for, or a refusal."""

from __future__ import annotations

import pytest
from cryptography import x509
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.x509 import pem
from tests.fakes.ca_factory import make_hierarchy

LABELS = frozenset({"CERTIFICATE"})
GOOD = pem.encode("CERTIFICATE", b"0123456789" * 12)


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=400))
def test_law_encode_then_decode_gives_the_bytes(der):
    text = pem.encode("CERTIFICATE", der)
    assert pem.decode_one(text, LABELS, max_bytes=10_000) == der
    assert max(map(len, text.splitlines()[1:-1])) <= 64
    assert pem.decode_bundle(text + text) == (("CERTIFICATE", der),) * 2


@settings(deadline=None)
@given(st.text(max_size=60).map(lambda s: GOOD[:40] + s + GOOD[50:]) | st.text(max_size=100))
def test_law_any_text_decodes_or_raises_pem_error(text):
    for read in (lambda: pem.decode_one(text, LABELS, max_bytes=1000), lambda: pem.decode_bundle(text)):
        try:
            read()
        except pem.PemError:
            continue


def test_the_library_reads_what_is_written():
    h = make_hierarchy()
    text = pem.encode_certificates((h.issuing_der, h.root_der))
    assert [c.public_bytes(_der()) for c in x509.load_pem_x509_certificates(text.encode())] == [
        h.issuing_der,
        h.root_der,
    ]


def _der():
    from cryptography.hazmat.primitives.serialization import Encoding

    return Encoding.DER


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(GOOD, id="line-feed"),
        pytest.param(GOOD.rstrip("\n"), id="no-final-line-feed"),
        pytest.param(GOOD.replace("\n", "\r\n"), id="crlf"),
        pytest.param(GOOD.replace("\n", "\r\n").rstrip(), id="crlf-without-the-last"),
    ],
)
def test_one_block_is_accepted(text):
    assert pem.decode_one(text, LABELS, max_bytes=1000) == b"0123456789" * 12


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        pytest.param("", pem.PemCode.EMPTY, "is empty", id="F-09-empty"),
        pytest.param(GOOD * 9, pem.PemCode.TOO_LARGE, "allowed are 1000", id="too-large"),
        pytest.param("x" + GOOD, pem.PemCode.FRAMING, "must start with", id="F-09-leading-junk"),
        pytest.param("\n" + GOOD, pem.PemCode.FRAMING, "must start with", id="F-09-leading-newline"),
        pytest.param(GOOD + "x", pem.PemCode.FRAMING, "goes on after", id="F-09-trailing-junk"),
        pytest.param(GOOD + "\n", pem.PemCode.FRAMING, "goes on after", id="F-09-trailing-newline"),
        pytest.param(GOOD + GOOD, pem.PemCode.FRAMING, "exactly one block", id="F-09-two-blocks"),
        pytest.param(GOOD.rstrip() + " ", pem.PemCode.FRAMING, "on the END line", id="end-line-space"),
        pytest.param("-----BEGIN CERTIFICATE", pem.PemCode.FRAMING, "BEGIN line", id="begin-line-cut"),
        pytest.param(
            "-----BEGIN CERTIFICATE\nAA==\n", pem.PemCode.FRAMING, "BEGIN line", id="begin-no-dashes"
        ),
        pytest.param(GOOD[:-12], pem.PemCode.FRAMING, "no matching END", id="F-09-truncated"),
        pytest.param(
            GOOD.replace("END CERTIFICATE", "END X"), pem.PemCode.FRAMING, "no matching END", id="other-end"
        ),
        pytest.param(pem.encode("PKCS7", b"x"), pem.PemCode.LABEL, "block is 'PKCS7'", id="F-09-pkcs7"),
        pytest.param(GOOD.replace("MDEy", "MD!y", 1), pem.PemCode.BASE64, "not base64", id="not-base64"),
        pytest.param(GOOD.replace("MDEy", "MD y", 1), pem.PemCode.BASE64, "spaces", id="space-inside"),
        pytest.param(GOOD.replace("MDEy", "MDéy", 1), pem.PemCode.BASE64, "not base64", id="non-ascii"),
        pytest.param(
            GOOD.replace("-----\n", "-----\nProc-Type: 4,ENCRYPTED\n\n", 1),
            pem.PemCode.BASE64,
            "headers",
            id="rfc1421-headers",
        ),
        pytest.param(
            "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n",
            pem.PemCode.BASE64,
            "is empty",
            id="no-body",
        ),
        pytest.param(
            "-----BEGIN CERTIFICATE-----\n\n-----END CERTIFICATE-----\n",
            pem.PemCode.BASE64,
            "is empty",
            id="empty-body",
        ),
    ],
)
def test_other_text_is_refused(text, code, words):
    with pytest.raises(pem.PemError) as e:
        pem.decode_one(text, LABELS, max_bytes=1000)
    assert e.value.code is code
    assert words in e.value.public


def test_bundle_may_have_comments_and_blank_lines_between_blocks():
    text = f"# root of 2026\n\n{GOOD}\n  \n# another\r\n{GOOD}# end"
    assert len(pem.decode_certificates(text)) == 2


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        pytest.param("", pem.PemCode.EMPTY, "no block", id="empty"),
        pytest.param("# only a comment\n", pem.PemCode.EMPTY, "no block", id="comment-only"),
        pytest.param(f"subject=CN\n{GOOD}", pem.PemCode.FRAMING, "outside of a block", id="text-between"),
        pytest.param(
            GOOD + pem.encode("PRIVATE KEY", b"x"), pem.PemCode.LABEL, "'PRIVATE KEY'", id="a.2-unknown-block"
        ),
        pytest.param(GOOD * 257, pem.PemCode.TOO_LARGE, "256 blocks", id="too-many"),
        pytest.param("#" * (1 << 20) + "x", pem.PemCode.TOO_LARGE, "allowed are", id="too-large"),
    ],
)
def test_bundle_refuses(text, code, words):
    with pytest.raises(pem.PemError) as e:
        pem.decode_bundle(text)
    assert e.value.code is code
    assert words in e.value.public


REQUEST = pem.encode("CERTIFICATE REQUEST", bytes(range(180)))


@settings(deadline=None)
@given(
    at=st.integers(0, len(REQUEST)),
    cut=st.integers(0, 70),
    put=st.sampled_from(
        ["", "\n", "\r\n", "-", "=", " ", "A", "-----END CERTIFICATE REQUEST-----\n", REQUEST]
    ),
)
def test_law_the_short_way_accepts_what_the_long_way_accepts(at, cut, put):
    text = REQUEST[:at] + put + REQUEST[at + cut :]
    with_comment = "# the bundle reader takes the long way\n" + text
    try:
        found = pem.decode_one(text, pem.CSR_LABELS, max_bytes=10_000)
    except pem.PemError:
        return
    assert [der for _, der in pem.decode_bundle(with_comment, pem.CSR_LABELS)] == [found]
    assert pem.decode_one(text.rstrip("\n"), pem.CSR_LABELS, max_bytes=10_000) == found, "the long way"
