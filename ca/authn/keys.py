"""Public keys of the token issuer: a JWKS document, and the file that holds it.

PyJWT parses every key. What is left afterwards is a table from (algorithm, key ID) to a public key: the
algorithm comes from the key, never from a token, so a token cannot choose how it is checked (F-50).
"""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import jwt
import orjson
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from mesh.errors import Category, Code, MeshError

MAX_JWKS_BYTES: Final = 256 << 10
MAX_KEYS: Final = 64
MAX_KEY_ID: Final = 256
_MIN_RSA_BITS = 2048
_MAX_RSA_BITS = 8192
_MIN_RSA_EXPONENT = 65537
_RECHECK = dt.timedelta(seconds=1)  # a token with an unknown key ID makes us look, but not more often

PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey

_RSA_ALGORITHMS = frozenset({"RS256", "RS384", "RS512"})
_EC_ALGORITHMS = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
_PRIVATE_MEMBERS = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})


class JwksCode(Code):
    """Why a key set was refused."""

    UNREADABLE = "jwks_unreadable"
    TOO_LARGE = "jwks_too_large"
    MALFORMED = "jwks_malformed"
    AMBIGUOUS = "jwks_ambiguous"
    NO_USABLE_KEY = "jwks_no_usable_key"


class JwksError(MeshError):
    """A key set that cannot be used."""

    def __init__(self, code: JwksCode, public: str) -> None:
        super().__init__(code, public, category=Category.FAILED_PRECONDITION)


@dataclass(frozen=True, slots=True)
class KeySet:
    """Keys that verify tokens.

    Attributes:
        keys: by (algorithm, key ID).
        ignored: one sentence for each entry that is of no use here.
    """

    keys: Mapping[tuple[str, str], PublicKey] = field(repr=False)
    ignored: tuple[str, ...] = ()


def parse_jwks(data: bytes) -> KeySet:
    """Read a JWKS document (RFC 7517).

    Entries of other types, uses or sizes are left out, as the RFC wants; a document without one
    usable key is refused.

    Raises:
        JwksError: too large, not a JWKS, a key ID twice, or no usable key.
    """
    if len(data) > MAX_JWKS_BYTES:
        raise JwksError(JwksCode.TOO_LARGE, f"key set has {len(data)} bytes; allowed are {MAX_JWKS_BYTES}")
    try:
        document = orjson.loads(data)
    except orjson.JSONDecodeError as e:
        raise JwksError(JwksCode.MALFORMED, f"key set is not JSON: {str(e)[:200]}") from e
    entries = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(entries, list) or len(entries) > MAX_KEYS:
        raise JwksError(
            JwksCode.MALFORMED, f'key set must be an object with "keys", a list of at most {MAX_KEYS}'
        )
    keys: dict[tuple[str, str], PublicKey] = {}
    ignored: list[str] = []
    for index, entry in enumerate(entries):
        try:
            name, key = _read_key(entry)
        except _UnusableKey as e:
            ignored.append(f"keys[{index}]: {e}")
            continue
        if name in keys:
            raise JwksError(
                JwksCode.AMBIGUOUS, f"keys[{index}]: key ID {name[1]!r} stands there twice for {name[0]}"
            )
        keys[name] = key
    if not keys:
        reasons = "; ".join(ignored[:4]) or "the list is empty"
        raise JwksError(JwksCode.NO_USABLE_KEY, f"key set has no usable key: {reasons}")
    return KeySet(MappingProxyType(keys), tuple(ignored))


class _UnusableKey(Exception):  # noqa: N818 - control flow within this module
    pass


def _read_key(entry: Any) -> tuple[tuple[str, str], PublicKey]:
    if not isinstance(entry, dict):
        raise _UnusableKey("not an object")
    key_id = entry.get("kid")
    if not isinstance(key_id, str) or not 0 < len(key_id) <= MAX_KEY_ID:
        raise _UnusableKey(f"kid must be text of 1 to {MAX_KEY_ID} characters")
    if entry.get("kty") not in {"RSA", "EC"}:
        raise _UnusableKey(f"kty is {str(entry.get('kty'))[:20]!r}; used are RSA and EC")
    if entry.get("use", "sig") != "sig" or "verify" not in entry.get("key_ops", ["verify"]):
        raise _UnusableKey("not meant for signatures")
    if secret := _PRIVATE_MEMBERS.intersection(entry):
        raise _UnusableKey(f"has the private member {min(secret)!r}; publish public keys only")
    try:
        key = jwt.PyJWK(entry).key
    except (jwt.PyJWTError, ValueError, TypeError) as e:
        raise _UnusableKey(f"cannot be read ({type(e).__name__})") from e
    return (_algorithm(entry.get("alg"), key), key_id), key


def _algorithm(declared: Any, key: Any) -> str:
    """The one algorithm of a key: what it declares, else RS256 or what its curve says."""
    if isinstance(key, rsa.RSAPublicKey):
        if not _MIN_RSA_BITS <= key.key_size <= _MAX_RSA_BITS:
            raise _UnusableKey(f"RSA of {key.key_size} bits; used are {_MIN_RSA_BITS} to {_MAX_RSA_BITS}")
        if key.public_numbers().e < _MIN_RSA_EXPONENT:
            raise _UnusableKey(f"RSA exponent under {_MIN_RSA_EXPONENT}")
        if declared is None:
            return "RS256"
        if declared in _RSA_ALGORITHMS:
            return str(declared)
    elif isinstance(key, ec.EllipticCurvePublicKey):
        algorithm = _EC_ALGORITHMS.get(key.curve.name)
        if algorithm is not None and declared in {None, algorithm}:
            return algorithm
    raise _UnusableKey(f"alg {str(declared)[:20]!r} is not used; used are RS256 to RS512 and ES256 to ES512")


class JwksFile:
    """A key set in a file, read again when the file changes; the last good set stays in force.

    A file that is swapped by rename or by symlink (as the kubelet does) is noticed too.
    Used from several threads; a set is replaced as one object.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._keys: KeySet | None = None
        self._seen: tuple[int, int, int] | None = None
        self._checked: dt.datetime | None = None
        self.last_error: JwksError | None = None
        """Why the file as it is now cannot be used; None when it can."""

    @property
    def current(self) -> KeySet | None:
        """The last good set; None before the first."""
        return self._keys

    def refresh(self, now: dt.datetime) -> bool:
        """Look whether the file has changed, at most once a second.

        Called for each token with an unknown key ID, so a new key of the issuer works at once.

        Returns:
            True when another set is in force now. A broken file is not reported here: see `last_error`.
        """
        if self._checked is not None and abs(now - self._checked) < _RECHECK:
            return False
        try:
            return self.reload(now)
        except JwksError:
            return False  # `last_error` has it; what was good stays in force

    def reload(self, now: dt.datetime) -> bool:
        """Read the file if it has changed.

        Returns:
            True when another set is in force now.

        Raises:
            JwksError: the file cannot be used. It is tried again only after it has changed.
        """
        self._checked = now
        try:
            # One open file, so what is measured is what is read.
            with self._path.open("rb") as file:
                stat = os.fstat(file.fileno())
                mark = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
                if mark == self._seen:
                    return False
                data = file.read(MAX_JWKS_BYTES + 1)
        except OSError as e:
            self._seen = None
            self.last_error = JwksError(
                JwksCode.UNREADABLE, f"key set {self._path} cannot be read: {e.strerror or e}"
            )
            raise self.last_error from e
        self._seen = mark
        try:
            keys = parse_jwks(data)
        except JwksError as e:
            self.last_error = JwksError(JwksCode(e.code), f"{self._path}: {e.public}")
            raise self.last_error from e
        self.last_error = None
        changed = self._keys is None or keys.keys != self._keys.keys
        self._keys = keys
        return changed
