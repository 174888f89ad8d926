"""Tokens: a compact JWS with the claims of a Kubernetes projected service account token.

The verifier is written out here instead of calling `jwt.decode`, which costs three times as much; PyJWT
parses the keys, and the tests hold both verifiers to the same answers over a corpus of good and hostile
tokens. Where they differ, this one refuses: text outside the base64url alphabet, headers that bring or
point to a key.

There is no cache of verdicts: an agent shows a token about twice in its life, so a hit would be rare,
and a cache would have to honour expiry, key changes and deleted pods.
"""

from __future__ import annotations

import binascii
import datetime as dt
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol, cast

import orjson
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from ca.authn import AuthnCode, AuthnError, Caller, Method, Presented
from ca.authn.claims import TokenPolicy, read_claims
from ca.authn.keys import KeySet, PublicKey

MAX_TOKEN_BYTES: Final = 16 << 10
_SEGMENTS = 3  # header, payload, signature
# base64url to base64; what is special in base64 but no letter of base64url becomes something that the
# strict decoder refuses.
_TO_BASE64 = bytes.maketrans(b"-_+/=", b"+/!!!")
_PADDING = (b"", b"!", b"==", b"=")  # by length modulo 4; no base64 has one letter more
_MAX_HEADERS = 64  # cached headers: one per key of an issuer and version of the API server
# Parameters that bring a key, or say where to fetch one; `crit` names extensions that must be
# understood, and none is (RFC 7515 4.1.2 to 4.1.5, 4.1.11).
_REFUSED_HEADERS: Final = frozenset({"crit", "jku", "jwk", "x5u", "x5c", "b64", "zip"})

_HASHES: Mapping[str, hashes.HashAlgorithm] = {
    "256": hashes.SHA256(),
    "384": hashes.SHA384(),
    "512": hashes.SHA512(),
}
_PKCS1 = padding.PKCS1v15()
_RSA: Mapping[str, hashes.HashAlgorithm] = {f"RS{size}": digest for size, digest in _HASHES.items()}
_ECDSA = {f"ES{size}": ec.ECDSA(digest) for size, digest in _HASHES.items()}


class KeySource(Protocol):
    """Where the keys come from, e.g. `ca.authn.keys.JwksFile`."""

    @property
    def current(self) -> KeySet | None:
        """The keys in force."""
        ...

    def refresh(self, now: dt.datetime) -> bool:
        """Look for newer keys; True when there are some."""
        ...


class TokenVerifier:
    """Signature of a token, checked with the keys in force."""

    def __init__(self, keys: KeySource) -> None:
        self._keys = keys
        self._lock = threading.Lock()
        self._headers: dict[bytes, tuple[str, str]] = {}  # of tokens that were good

    def verify(self, token: str, now: dt.datetime) -> dict[str, Any]:
        """Payload of a token whose signature is good.

        Raises:
            AuthnError: too large (F-52), malformed, of an unknown key, or not signed by it (F-50).
        """
        if len(token) > MAX_TOKEN_BYTES:
            raise AuthnError(AuthnCode.TOKEN_TOO_LARGE, f"token has {len(token)} characters")
        try:
            raw = token.encode("ascii")
        except UnicodeEncodeError as e:
            raise _malformed("not ASCII") from e
        segments = raw.translate(_TO_BASE64).split(b".")
        if len(segments) != _SEGMENTS:
            raise _malformed("not three segments")
        head, payload, signature = segments
        known = self._headers.get(head)
        name = known or read_header(head)
        self._check_signature(name, raw[: len(head) + 1 + len(payload)], _decode(signature, "signature"), now)
        if known is None:
            self._remember(head, name)
        try:
            claims = orjson.loads(_decode(payload, "payload"))
        except orjson.JSONDecodeError as e:
            raise _malformed("payload is not JSON") from e
        if not isinstance(claims, dict):
            raise _malformed("payload is not an object")
        return claims

    def _remember(self, head: bytes, name: tuple[str, str]) -> None:
        with self._lock:
            if len(self._headers) >= _MAX_HEADERS:
                self._headers.clear()
            self._headers[head] = name

    def _check_signature(
        self, name: tuple[str, str], signed: bytes, signature: bytes, now: dt.datetime
    ) -> None:
        current = self._keys.current
        key = (current.keys.get(name) if current is not None else None) or self._find(name, now)
        digest = _RSA.get(name[0])  # the table of keys is by algorithm: the name says the type
        try:
            if digest is not None:
                cast("rsa.RSAPublicKey", key).verify(signature, signed, _PKCS1, digest)
            else:
                curve_key = cast("ec.EllipticCurvePublicKey", key)
                curve_key.verify(_dss(signature, curve_key), signed, _ECDSA[name[0]])
        except InvalidSignature as e:
            raise AuthnError(AuthnCode.TOKEN_SIGNATURE, f"not signed by key {name[1]!r}") from e

    def _find(self, name: tuple[str, str], now: dt.datetime) -> PublicKey:
        """The key, when it is not among the ones in force: there may be newer ones."""
        current = self._keys.current
        if self._keys.refresh(now):
            current = self._keys.current
        key = current.keys.get(name) if current is not None else None
        if key is not None:
            return key
        if current is None:
            raise AuthnError(AuthnCode.NO_KEYS, "no key set was loaded yet")
        raise AuthnError(
            AuthnCode.TOKEN_UNKNOWN_KEY, f"no key for algorithm {name[0][:20]!r} and kid {name[1][:80]!r}"
        )


def read_header(head: bytes) -> tuple[str, str]:
    """Algorithm and key ID that the header of a token names.

    Args:
        head: the segment, in the alphabet of base64.

    Raises:
        AuthnError: not an object, a parameter that is never followed, or no algorithm or key ID.
    """
    try:
        header = orjson.loads(_decode(head, "header"))
    except orjson.JSONDecodeError as e:
        raise _malformed("header is not JSON") from e
    if not isinstance(header, dict):
        raise _malformed("header is not an object")
    if refused := _REFUSED_HEADERS.intersection(header):
        raise AuthnError(AuthnCode.TOKEN_HEADER, f"header has {min(refused)!r}, which is never followed")
    algorithm, key_id = header.get("alg"), header.get("kid")
    if not isinstance(algorithm, str) or not isinstance(key_id, str):
        raise AuthnError(AuthnCode.TOKEN_HEADER, "alg and kid must be there and be text")
    return algorithm, key_id


def _malformed(detail: str) -> AuthnError:
    return AuthnError(AuthnCode.TOKEN_MALFORMED, f"token: {detail}")


def _decode(segment: bytes, what: str) -> bytes:
    """Bytes of a segment that was translated already."""
    try:
        return binascii.a2b_base64(segment + _PADDING[len(segment) % 4], strict_mode=True)
    except binascii.Error as e:
        raise _malformed(f"{what} is not base64url") from e


def _dss(signature: bytes, key: ec.EllipticCurvePublicKey) -> bytes:
    """DER form of a JWS signature, which is r and s in fixed length (RFC 7518 3.4)."""
    size = (key.curve.key_size + 7) // 8
    if len(signature) != 2 * size:
        raise InvalidSignature
    return encode_dss_signature(
        int.from_bytes(signature[:size], "big"), int.from_bytes(signature[size:], "big")
    )


class TokenAuthenticator:
    """Callers with `authorization: Bearer <token>`."""

    method = Method.TOKEN

    def __init__(self, policy: TokenPolicy, keys: KeySource) -> None:
        self._policy = policy
        self._verifier = TokenVerifier(keys)

    def authenticate(self, presented: Presented, now: dt.datetime) -> Caller | None:
        """The service account that the token names; None without an `authorization` header.

        Raises:
            AuthnError: a header that is no bearer token (F-40), or a bad token.
        """
        if not presented.authorization:
            return None
        claims = self._verifier.verify(bearer(presented.authorization), now)
        return read_claims(claims, self._policy, now.timestamp())


def bearer(values: Sequence[str]) -> str:
    """The token of the only `authorization` header.

    Raises:
        AuthnError: several headers, another scheme, or no token.
    """
    if len(values) != 1:
        raise AuthnError(AuthnCode.HEADER_REPEATED, f"{len(values)} authorization headers")
    scheme, _, token = values[0].partition(" ")
    if scheme.lower() != "bearer":
        raise AuthnError(AuthnCode.HEADER_SCHEME, "the authorization header has another scheme than Bearer")
    if not token:
        raise AuthnError(AuthnCode.TOKEN_EMPTY, "the authorization header has no token")
    return token
