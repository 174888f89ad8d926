"""A token issuer for one run: its key set, one good token, and no key that is kept."""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import dataclass
from typing import Final

LIFETIME: Final = dt.timedelta(hours=1)
"""Longer than any run: the clocks of the nodes need not agree with the one here."""


@dataclass(frozen=True, slots=True)
class Issued:
    """What an issuer leaves behind.

    Attributes:
        jwks: a key set with the public key, as JSON text (RFC 7517).
        token: signed with ES256, without `iat` and `nbf`, so that a clock that is behind accepts it.
    """

    issuer: str
    jwks: str
    token: str


def issue(run: str, now: dt.datetime) -> Issued:
    """Make a key, sign one token, and forget the key."""
    import jwt
    from cryptography.hazmat.primitives.asymmetric import ec

    issuer = f"https://{run}.meshctl-traffic.invalid"
    key = ec.generate_private_key(ec.SECP256R1())
    public = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(key.public_key()))
    members = {name: public[name] for name in ("kty", "crv", "x", "y")}
    jwks = json.dumps({"keys": [{**members, "kid": run, "alg": "ES256", "use": "sig"}]})
    claims = {"iss": issuer, "sub": "meshctl", "exp": int((now + LIFETIME).timestamp())}
    return Issued(issuer, jwks, jwt.encode(claims, key, algorithm="ES256", headers={"kid": run}))
