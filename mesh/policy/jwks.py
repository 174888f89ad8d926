"""Key sets: parse with PyJWT, keep what a proxy can use, re-encode so that Envoy accepts every byte.

Envoy refuses a whole resource for one bad key set, and is stricter than PyJWT about base64 and
moduli. So each key is loaded by PyJWT and written again from its numbers: base64url without
padding, public members only, sorted keys. Equal key sets give equal bytes.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec, rsa

from mesh.errors import Code, MeshError

MAX_BYTES: Final = 1024 * 1024
MAX_KEYS: Final = 100
MIN_RSA_BITS: Final = 2048
MAX_RSA_BITS: Final = 8192  # BoringSSL verifies no larger one
_MAX_RSA_EXPONENT_BITS: Final = 33  # BoringSSL again
_MAX_KID: Final = 1024
_PRIVATE: Final = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})
# Algorithms that Envoy's jwt_authn verifies, by key type; a symmetric key is never accepted.
_RSA_ALGORITHMS: Final = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})
_EC_CURVES: Final = {
    "secp256r1": ("P-256", "ES256"),
    "secp384r1": ("P-384", "ES384"),
    "secp521r1": ("P-521", "ES512"),
}


class JwksCode(Code):
    """Why a key set was refused as a whole."""

    TOO_LARGE = "jwks_too_large"
    NOT_JSON = "jwks_not_json"
    SHAPE = "jwks_shape"
    NO_USABLE_KEY = "jwks_no_usable_key"


class JwksError(MeshError):
    """A text that is not a key set, or holds no key that can verify a token."""


@dataclass(frozen=True, slots=True)
class KeySet:
    """A usable key set.

    Attributes:
        json: canonical JSON with public members only.
        dropped: one sentence per key that was left out.
        had_private: the text held private members; they were left out, and should be replaced.
    """

    json: str
    dropped: tuple[str, ...] = ()
    had_private: bool = False


def parse_key_set(text: str | bytes) -> KeySet:
    """Parse, filter and re-encode a JSON Web Key Set (RFC 7517).

    Raises:
        JwksError: not a key set, or nothing usable is left: the caller keeps the last good set or
            falls back (policy e, must-have 1 and 2).
    """
    if len(text) > MAX_BYTES:
        raise JwksError(JwksCode.TOO_LARGE, f"key set is longer than {MAX_BYTES} bytes")
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        # The text itself is never shown: it may be a key, or another service's answer.
        raise JwksError(JwksCode.NOT_JSON, "key set is not JSON") from None
    keys = data.get("keys") if isinstance(data, dict) else None
    if not isinstance(keys, list):
        raise JwksError(JwksCode.SHAPE, 'key set is not an object with a list named "keys"')
    if len(keys) > MAX_KEYS:
        raise JwksError(JwksCode.TOO_LARGE, f"key set has {len(keys)} keys, allowed are at most {MAX_KEYS}")
    good: list[dict[str, str]] = []
    dropped: list[str] = []
    for index, key in enumerate(keys):
        try:
            good.append(_public_key(key))
        except ValueError as error:
            dropped.append(f"keys[{index}]: {error}")
    if not good:
        raise JwksError(
            JwksCode.NO_USABLE_KEY,
            "key set has no usable key; allowed are RSA keys of 2048 bits or more and EC keys on P-256,"
            f" P-384 or P-521{': ' if dropped else ''}{'; '.join(dropped[:5])}",
        )
    return KeySet(
        _encode(good),
        tuple(dropped),
        any(isinstance(key, dict) and _PRIVATE & key.keys() for key in keys),
    )


def encode_public_key(key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey, kid: str = "") -> str:
    """A key set that holds one public key; for the fallback set whose private half was thrown away."""
    return _encode([_members(key) | ({"kid": kid} if kid else {})])


def _encode(keys: list[dict[str, str]]) -> str:
    """Canonical text: sorted members, keys sorted, exact duplicates once."""
    texts = {json.dumps(key, sort_keys=True, separators=(",", ":")) for key in keys}
    return f'{{"keys":[{",".join(sorted(texts))}]}}'


def _public_key(key: Any) -> dict[str, str]:
    """Public members of one key.

    Raises:
        ValueError: why a proxy cannot use it; never with key material in the text.
    """
    fault = _fault(key)
    if fault:
        raise ValueError(fault)
    # Loaded on first use: PyJWT brings an HTTP client along, which agents without issuers never need.
    import jwt

    try:
        # Without private members, so that a set with private keys is never imported as such.
        loaded = jwt.PyJWK({name: value for name, value in key.items() if name not in _PRIVATE}).key
    except (jwt.PyJWTError, ValueError, TypeError, KeyError):
        raise ValueError("malformed, or its algorithm is not supported") from None
    members = _members(loaded)
    algorithm = key.get("alg", "")
    if algorithm and algorithm not in (_RSA_ALGORITHMS if members["kty"] == "RSA" else {members["alg"]}):
        raise ValueError("its algorithm does not fit its key type")
    named = {"kid": key["kid"]} if key.get("kid") else {}
    del members["alg"]  # the default of the key type; only what the issuer said is passed on
    return members | named | ({"alg": algorithm} if algorithm else {})


def _fault(key: Any) -> str:
    """What is wrong with a key before its numbers are looked at."""
    if not isinstance(key, dict):
        return "not an object"
    if key.get("kty") not in ("RSA", "EC"):
        return "key type is not RSA or EC"
    operations = key.get("key_ops", ["verify"])
    usable = isinstance(operations, list) and ("verify" in operations or "sign" in operations)
    if key.get("use", "sig") != "sig" or not usable:
        return "not for signatures"
    kid = key.get("kid", "")
    if not isinstance(kid, str) or len(kid) > _MAX_KID or not kid.isprintable():
        return "kid is not a short printable text"
    return "" if isinstance(key.get("alg", ""), str) else "alg is not text"


def _members(key: Any) -> dict[str, str]:
    """kty, alg and the numbers of a loaded public key.

    Raises:
        ValueError: too weak, or of a kind that no proxy verifies with.
    """
    if isinstance(key, ec.EllipticCurvePublicKey):
        if key.curve.name not in _EC_CURVES:
            raise ValueError("curve is not P-256, P-384 or P-521")
        curve, algorithm = _EC_CURVES[key.curve.name]
        point = key.public_numbers()
        size = (key.curve.key_size + 7) // 8
        return {
            "kty": "EC",
            "crv": curve,
            "alg": algorithm,
            "x": _b64(point.x, size),
            "y": _b64(point.y, size),
        }
    if not isinstance(key, rsa.RSAPublicKey):
        raise ValueError("not a public key")  # noqa: TRY004 - a fact about the data
    numbers = key.public_numbers()
    if not MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS:
        raise ValueError(f"RSA modulus of {key.key_size} bits; allowed are {MIN_RSA_BITS} to {MAX_RSA_BITS}")
    if numbers.n % 2 == 0:
        raise ValueError("RSA modulus is even")
    if numbers.e.bit_length() > _MAX_RSA_EXPONENT_BITS:
        raise ValueError(f"RSA exponent is longer than {_MAX_RSA_EXPONENT_BITS} bits")
    return {"kty": "RSA", "alg": "RS256", "n": _b64(numbers.n), "e": _b64(numbers.e)}


def _b64(number: int, size: int = 0) -> str:
    """Base64url without padding of a big-endian number (RFC 7518 6.2.1.2 and 6.3.1.1)."""
    raw = number.to_bytes(size or (number.bit_length() + 7) // 8, "big")
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
