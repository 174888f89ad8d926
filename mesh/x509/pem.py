"""Strict PEM framing (RFC 7468), and writing.

Libraries skip junk before the first block, ignore further blocks and accept any label. Here a reader
gets exactly what the caller asked for, or a `PemError`.
"""

from __future__ import annotations

import binascii
import struct
from collections.abc import Iterable
from functools import lru_cache

from mesh.errors import Code, MeshError

CERTIFICATE = "CERTIFICATE"
CERTIFICATE_REQUEST = "CERTIFICATE REQUEST"
NEW_CERTIFICATE_REQUEST = "NEW CERTIFICATE REQUEST"  # what some openssl versions write
CSR_LABELS = frozenset({CERTIFICATE_REQUEST, NEW_CERTIFICATE_REQUEST})
KEY_LABELS = frozenset({"PRIVATE KEY", "EC PRIVATE KEY", "RSA PRIVATE KEY"})
X509_CRL = "X509 CRL"

MAX_BUNDLE_BYTES = 1 << 20
MAX_BUNDLE_BLOCKS = 256

_BEGIN = "-----BEGIN "
_END = "-----END "
_DASHES = "-----"
_LINE = 64


class PemCode(Code):
    """Why a PEM text was refused."""

    EMPTY = "pem_empty"
    TOO_LARGE = "pem_too_large"
    FRAMING = "pem_framing"
    LABEL = "pem_label"
    BASE64 = "pem_base64"


class PemError(MeshError):
    """Text that is not the PEM that was asked for."""


def decode_one(text: str, labels: frozenset[str], *, max_bytes: int) -> bytes:
    """DER of the only block of a text.

    Nothing may stand before the block, and only one line ending after it.

    Args:
        text: the whole PEM text.
        labels: labels that are allowed, e.g. `CSR_LABELS`.
        max_bytes: limit for the length of the text, checked first.

    Raises:
        PemError: the text is empty, too long, not exactly one block, or of another label.
    """
    if not text:
        raise PemError(PemCode.EMPTY, f"PEM text is empty; send one block of {_names(labels)}")
    if len(text) > max_bytes:
        raise PemError(PemCode.TOO_LARGE, f"PEM text has {len(text)} characters; allowed are {max_bytes}")
    der = _plain_request(text, labels)
    if der:
        return der
    label, der, end = _block(text, 0, labels)
    if text[end:] not in {"", "\n", "\r\n"}:
        raise PemError(
            PemCode.FRAMING,
            f"PEM text goes on after the {label} block; send exactly one block and nothing else",
        )
    return der


_REQUEST_HEAD = f"{_BEGIN}{CERTIFICATE_REQUEST}{_DASHES}\n"
_REQUEST_TAIL = f"\n{_END}{CERTIFICATE_REQUEST}{_DASHES}\n"


def _plain_request(text: str, labels: frozenset[str]) -> bytes:
    """DER of a request as libraries write it; empty for any other text, which takes the long way.

    No dash passes the strict decoder, so what lies between is no second block.
    """
    if (
        CERTIFICATE_REQUEST not in labels
        or not text.startswith(_REQUEST_HEAD)
        or not text.endswith(_REQUEST_TAIL)
    ):
        return b""
    body = text[len(_REQUEST_HEAD) : -len(_REQUEST_TAIL)]
    try:
        return binascii.a2b_base64(body.replace("\n", ""), strict_mode=True)
    except ValueError:
        return b""


def decode_bundle(
    text: str, labels: frozenset[str] = frozenset({CERTIFICATE}), *, max_bytes: int = MAX_BUNDLE_BYTES
) -> tuple[tuple[str, bytes], ...]:
    """Label and DER of every block of a file.

    Between blocks only blank lines and lines that start with `#` may stand.

    Raises:
        PemError: no block, too much text, text between blocks, or a block of another label.
    """
    if len(text) > max_bytes:
        raise PemError(PemCode.TOO_LARGE, f"PEM text has {len(text)} characters; allowed are {max_bytes}")
    blocks: list[tuple[str, bytes]] = []
    at = 0
    while at < len(text):
        if text.startswith(_BEGIN, at):
            label, der, at = _block(text, at, labels)
            blocks.append((label, der))
            if len(blocks) > MAX_BUNDLE_BLOCKS:
                raise PemError(PemCode.TOO_LARGE, f"PEM text has more than {MAX_BUNDLE_BLOCKS} blocks")
            continue
        line_end = text.find("\n", at)
        line_end = len(text) if line_end < 0 else line_end
        line = text[at:line_end].strip()
        if line and not line.startswith("#"):
            raise PemError(
                PemCode.FRAMING,
                f"PEM text has {line[:40]!r} outside of a block; allowed are blocks of {_names(labels)},"
                " blank lines and lines that start with #",
            )
        at = line_end + 1
    if not blocks:
        raise PemError(PemCode.EMPTY, f"PEM text has no block; expected {_names(labels)}")
    return tuple(blocks)


def decode_certificates(text: str, *, max_bytes: int = MAX_BUNDLE_BYTES) -> tuple[bytes, ...]:
    """DER of every certificate of a file that holds certificates only.

    Raises:
        PemError: as `decode_bundle`.
    """
    return tuple(der for _, der in decode_bundle(text, max_bytes=max_bytes))


@lru_cache(maxsize=256)
def _lines(characters: int) -> struct.Struct:
    """Cuts a text of that many characters into lines."""
    full, rest = divmod(characters, _LINE)
    return struct.Struct(f"{_LINE}s" * full + (f"{rest}s" if rest else ""))


def encode(label: str, der: bytes) -> str:
    """One PEM block with lines of 64 characters and a final line feed."""
    body = binascii.b2a_base64(der, newline=False)
    text = b"\n".join(_lines(len(body)).unpack(body)).decode("ascii")
    return f"{_BEGIN}{label}{_DASHES}\n{text}\n{_END}{label}{_DASHES}\n"


def encode_certificate(der: bytes) -> str:
    """A certificate as PEM."""
    return encode(CERTIFICATE, der)


def encode_certificates(ders: Iterable[bytes]) -> str:
    """Certificates as one PEM text, in the order given."""
    return "".join(map(encode_certificate, ders))


def _names(labels: frozenset[str]) -> str:
    return " or ".join(sorted(labels))


def _block(text: str, at: int, labels: frozenset[str]) -> tuple[str, bytes, int]:
    """Label, DER and end offset (before the line ending) of the block that starts at `at`."""
    if not text.startswith(_BEGIN, at):
        raise PemError(
            PemCode.FRAMING,
            f"PEM text must start with {_BEGIN}{min(labels)}{_DASHES}, found {text[at : at + 20]!r}",
        )
    line_end = text.find("\n", at)
    head = text[at + len(_BEGIN) : line_end].removesuffix("\r") if line_end >= 0 else ""
    if not head.endswith(_DASHES):
        raise PemError(PemCode.FRAMING, "PEM text: the BEGIN line is not complete")
    label = head[: -len(_DASHES)]
    if label not in labels:
        raise PemError(PemCode.LABEL, f"PEM block is {label[:40]!r}; allowed is {_names(labels)}")
    tail = f"\n{_END}{label}{_DASHES}"
    stop = text.find(tail, line_end)
    if stop < 0:
        raise PemError(PemCode.FRAMING, f"PEM block {label}: no matching END line")
    end = stop + len(tail)
    if end < len(text) and text[end] not in "\r\n":
        raise PemError(PemCode.FRAMING, f"PEM block {label}: text follows on the END line")
    body = text[line_end + 1 : stop]
    if "\r" in body:
        body = body.replace("\r\n", "\n").removesuffix("\r")
    try:
        der = binascii.a2b_base64(body.replace("\n", ""), strict_mode=True)
    except ValueError as e:  # binascii.Error, or non-ASCII text
        raise PemError(
            PemCode.BASE64, f"PEM block {label}: not base64; headers, spaces and other text are not allowed"
        ) from e
    if not der:
        raise PemError(PemCode.BASE64, f"PEM block {label} is empty")
    return label, der, end
