"""What may appear in a log: text without secrets, without tricks, and of bounded size. Pure."""

from __future__ import annotations

import base64
import datetime as dt
import enum
import functools
import math
import re
from collections.abc import Mapping
from typing import Any, Final

from mesh.errors import MeshError

REDACTED: Final = "[redacted]"
MAX_TEXT_CHARS: Final = 8192
MAX_ITEMS: Final = 64
MAX_DEPTH: Final = 4
_MAX_SEARCHED_CHARS = 65536  # what lies beyond is cut before anything looks at it
_MAX_INT = 2**63 - 1

_PRIVATE_KEY = re.compile(
    r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY.*?(?:-----END [A-Z0-9 ]{0,40}KEY-----|\Z)", re.DOTALL
)
# Three segments, or five of an encrypted token. Anchored at the start of a word: linear time.
_MAYBE_JWT = re.compile(r"(?<![A-Za-z0-9_-])[A-Za-z0-9_-]{4,}(?:\.[A-Za-z0-9_-]*){2,4}")
_JWT_DOTS = 2
_JSON_OBJECT = re.compile(rb"\s*\{\s*[\"}]")
# `{"` in base64url, whatever follows: a token glued to other letters is found by it.
_OBJECT_STARTS = ("eyI", "eyJ")
_HEADER_PREFIX_CHARS = 64

_WORD = re.compile(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])")
_SECRET_WORDS = frozenset(
    {
        "authorization", "bearer", "cookie", "credential", "credentials", "jwt", "key", "keys", "passphrase",
        "passwd", "password", "private", "secret", "secrets", "token", "tokens",
    }
)  # fmt: skip
# `key_id`, `token_file`, `secret_name` and the like say something about a secret, not the secret.
_ABOUT_WORDS = frozenset(
    {
        "age", "algorithm", "audience", "bits", "count", "curve", "file", "fingerprint", "hash", "id", "ids",
        "issuer", "kind", "length", "name", "names", "path", "seconds", "size", "type", "types", "usage",
        "version",
    }
)  # fmt: skip

# C1 controls and line or paragraph separators end lines for some readers; bidirectional overrides
# make a line read differently from what it says. C0 controls are left to the form that is written.
_TRICKS = re.compile("[\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")


def is_secret_name(name: str) -> bool:
    """True when a field of that name must not be shown, whatever it holds."""
    words = [word.lower() for word in _WORD.findall(name)]
    return any(word in _SECRET_WORDS for word in words) and words[-1] not in _ABOUT_WORDS


def clean(text: str) -> str:
    """Text without private keys, tokens and trick characters, cut at `MAX_TEXT_CHARS`."""
    if len(text) > _MAX_SEARCHED_CHARS:
        text = text[:_MAX_SEARCHED_CHARS]
    if "PRIVATE KEY" in text:
        text = _PRIVATE_KEY.sub("[redacted private key]", text)
    # The searches are skipped where they cannot find anything: most values are short and plain, and
    # the authority writes a line with a dozen of them for each certificate.
    if text.count(".") >= _JWT_DOTS:
        text = _MAYBE_JWT.sub(_without_token, text)
    if not text.isascii() or "\x7f" in text:
        text = _TRICKS.sub(lambda found: f"\\u{ord(found.group()):04x}", text)
    return text if len(text) <= MAX_TEXT_CHARS else f"{text[:MAX_TEXT_CHARS]}... [{len(text)} characters]"


def clean_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields as JSON types, secrets replaced, sizes and depth bounded."""
    return _mapping(fields, 1)


def _without_token(found: re.Match[str]) -> str:
    text = found.group()
    head = text.partition(".")[0]
    starts = [head.find(start) for start in _OBJECT_STARTS if start in head]
    if starts:
        return f"{text[: min(starts)]}[redacted token]"
    return "[redacted token]" if _JSON_OBJECT.match(_decoded(head)) else text


def _decoded(segment: str) -> bytes:
    """The first bytes that a base64url segment stands for."""
    start = segment[:_HEADER_PREFIX_CHARS]
    return base64.urlsafe_b64decode(start[: len(start) - len(start) % 4])


def _mapping(fields: Mapping[Any, Any], depth: int) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in fields.items():
        if len(result) == MAX_ITEMS:
            result["..."] = f"{len(fields) - MAX_ITEMS} more"
            break
        key, secret = _field_name(str(name))
        hidden = secret and value is not None and not isinstance(value, bool)
        result[key] = REDACTED if hidden else _value(value, depth)
    return result


@functools.lru_cache(maxsize=1024)
def _field_name(name: str) -> tuple[str, bool]:
    key = clean(name)
    return key, is_secret_name(key)


def _value(value: Any, depth: int) -> Any:
    # By exact type first: nearly all values are of these, and the patterns below ask each class in turn.
    kind = type(value)
    if kind is str:
        return clean(value)
    if kind is bool or value is None:
        return value
    if kind is dt.datetime:
        return value.isoformat()
    match value:
        case Mapping():
            return _mapping(value, depth + 1) if depth < MAX_DEPTH else f"[{len(value)} fields]"
        case list() | tuple() | set() | frozenset():
            return _sequence(list(value), depth)
        case bytes() | bytearray() | memoryview():
            return f"[{len(value)} bytes]"  # DER keys look like anything
        case MeshError():
            return {"code": str(value.code), "detail": clean(value.private)}
        case BaseException():
            return clean(f"{type(value).__name__}: {value}")
        case _:
            return _atom(value)


def _atom(value: Any) -> Any:
    match value:
        case None | bool():
            return value
        case enum.Enum():
            return clean(str(value.value))
        case int() if abs(value) <= _MAX_INT:
            return int(value)
        case float() if math.isfinite(value):
            return value
        case dt.datetime() | dt.date():
            return value.isoformat()
        case dt.timedelta():
            return value.total_seconds()
        case int():
            return hex(value)[:MAX_ITEMS]  # not str: it refuses numbers of thousands of digits
        case _:
            return clean(str(value))


def _sequence(values: list[Any], depth: int) -> Any:
    if depth >= MAX_DEPTH:
        return f"[{len(values)} items]"
    items = [_value(item, depth + 1) for item in values[:MAX_ITEMS]]
    return items if len(values) <= MAX_ITEMS else [*items, f"{len(values) - MAX_ITEMS} more"]
