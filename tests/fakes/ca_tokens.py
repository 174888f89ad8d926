"""A token issuer for tests of the authority: real keys, projected-token claims, and any change of them."""

from __future__ import annotations

import base64
import datetime as dt
import functools
import json
from collections.abc import Mapping
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

ISSUER = "https://issuer.test"
AUDIENCE = "gatehouse-ca"
POD_UID = "3e2f1d0c-9b8a-4756-8453-21fedcba0987"
PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
_CURVES: dict[str, ec.EllipticCurve] = {
    "ES256": ec.SECP256R1(),
    "ES384": ec.SECP384R1(),
    "ES512": ec.SECP521R1(),
}


def private_key(name: str, algorithm: str = "RS256") -> PrivateKey:
    """A key for tokens, made once in a test process."""
    return _private_key(name, algorithm)


@functools.cache
def _private_key(_name: str, algorithm: str) -> PrivateKey:
    if algorithm in _CURVES:
        return ec.generate_private_key(_CURVES[algorithm])
    return rsa.generate_private_key(65537, 2048)


def jwk(key: PrivateKey, key_id: str, **members: Any) -> dict[str, Any]:
    """Public JWK."""
    public = key.public_key()
    if isinstance(public, rsa.RSAPublicKey):
        entry = RSAAlgorithm.to_jwk(public, as_dict=True)
    else:
        entry = ECAlgorithm.to_jwk(public, as_dict=True)
    entry = {name: value for name, value in entry.items() if name != "key_ops"}
    return {**entry, "kid": key_id, "use": "sig", **members}


def jwks(algorithms: Mapping[str, str] | None = None) -> bytes:
    """Key set of `private_key(kid, algorithm)` for each kid."""
    algorithms = algorithms or {"k1": "RS256", "e1": "ES256"}
    return json.dumps({"keys": [jwk(private_key(k, a), k, alg=a) for k, a in algorithms.items()]}).encode()


def claims(
    now: dt.datetime,
    *,
    namespace: str = "demo",
    name: str = "web",
    pod: str = "web-1",
    uid: str = POD_UID,
    lifetime: float = 3600,
    **changes: Any,
) -> dict[str, Any]:
    """Claims of a projected token; a change of None takes a claim away."""
    at = int(now.timestamp())
    found: dict[str, Any] = {
        "aud": [AUDIENCE],
        "exp": at + int(lifetime),
        "iat": at,
        "nbf": at,
        "iss": ISSUER,
        "jti": "0c5a2b0e-56f4-4f5a-9f31-1d0a6d1b2c3d",
        "kubernetes.io": {
            "namespace": namespace,
            "node": {"name": "node-17", "uid": "b3f1d2a4-0a5b-4c3d-9e8f-7a6b5c4d3e2f"},
            "pod": {"name": pod, "uid": uid},
            "serviceaccount": {"name": name, "uid": "aa11bb22-cc33-4d44-8e55-ff6677889900"},
        },
        "sub": f"system:serviceaccount:{namespace}:{name}",
    }
    found |= changes
    return {name: value for name, value in found.items() if value is not None}


def sign(payload: Mapping[str, Any], key_id: str = "k1", algorithm: str = "RS256", **headers: Any) -> str:
    """A token; `headers` are added to its header."""
    return jwt.encode(
        dict(payload), private_key(key_id, algorithm), algorithm, headers={"kid": key_id, **headers}
    )


def token(now: dt.datetime, *, key_id: str = "k1", algorithm: str = "RS256", **changes: Any) -> str:
    """A signed projected token; see `claims`."""
    return sign(claims(now, **changes), key_id, algorithm)


def segment(value: Any) -> str:
    """base64url of JSON, for tokens put together by hand."""
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
