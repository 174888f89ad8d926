"""Tokens of an issuer that a real proxy checks."""

from __future__ import annotations

import functools
import json
import time
from dataclasses import dataclass, field
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa

from mesh.policy.effective import JwtPolicy, JwtProvider, JwtRegion


@functools.cache
def rsa_key(name: str) -> rsa.RSAPrivateKey:
    """A key that is made once per name and process."""
    del name
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@dataclass(frozen=True, slots=True)
class Issuer:
    """Signs tokens; `key` names the key."""

    url: str = "https://i1.example"
    key: str = "k1"
    subject: str = "alice"
    claims: dict[str, Any] = field(default_factory=dict)

    def jwks(self) -> str:
        """Public key set."""
        public = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(rsa_key(self.key).public_key()))
        keep = {name: public[name] for name in ("kty", "n", "e")}
        return json.dumps({"keys": [{**keep, "kid": self.key, "alg": "RS256"}]})

    def token(self, *, lifetime: int = 3600, headers: dict[str, Any] | None = None, **claims: Any) -> str:
        """A token; a claim given as None is left out."""
        now = int(time.time())
        body = {
            "iss": self.url,
            "sub": self.subject,
            "iat": now,
            "exp": now + lifetime,
            **self.claims,
            **claims,
        }
        body = {name: value for name, value in body.items() if value is not None}
        return jwt.encode(
            body,
            rsa_key(self.key),
            algorithm="RS256",
            headers={"kid": self.key} if headers is None else headers,
        )

    def provider(self, **options: Any) -> JwtProvider:
        """The provider that trusts this issuer."""
        fields = {"key": f"jwt-{self.url}", "issuer": self.url, "jwks": self.jwks(), **options}
        return JwtProvider(**fields)


def jwt_policy(*providers: JwtProvider, **region: Any) -> JwtPolicy:
    """Any of the providers, on every path (as RequestAuthentication means it)."""
    return JwtPolicy(providers, (JwtRegion(providers=tuple(p.key for p in providers), **region),))


def bearer(token: str) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {token}")]
