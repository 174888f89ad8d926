"""Two token issuers of the demo: one stands for the cluster (workload tokens), one for users.

Keys live in this process only; the public halves go to files as JSON Web Key Sets.
"""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from examples.demo.layout import NAMESPACE

USERS = "https://issuer.demo"
USERS_JWKS = "https://issuer.demo/jwks"
AUDIENCE = "reviews"
CLUSTER = "https://cluster.demo"
CA_AUDIENCE = "istio-ca"
TOKEN_SECONDS = 3600


class Issuer:
    """An issuer with one signing key."""

    def __init__(self, name: str, key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, kid: str) -> None:
        self.name = name
        self.kid = kid
        self._key = key
        self._algorithm = "RS256" if isinstance(key, rsa.RSAPrivateKey) else "ES256"

    def key_set(self) -> dict[str, Any]:
        """The public key as a JSON Web Key Set."""
        public = self._key.public_key()
        if isinstance(public, rsa.RSAPublicKey):
            data = jwt.algorithms.RSAAlgorithm.to_jwk(public, as_dict=True)
        else:
            data = jwt.algorithms.ECAlgorithm.to_jwk(public, as_dict=True)
        data.pop("key_ops", None)
        return {"keys": [{**data, "kid": self.kid, "use": "sig", "alg": self._algorithm}]}

    def sign(self, claims: dict[str, Any], *, kid: str | None = None) -> str:
        """A compact JWS; `kid` names another key than the one that signs, to play a forger."""
        return jwt.encode(claims, self._key, algorithm=self._algorithm, headers={"kid": kid or self.kid})


def new_user_issuer() -> Issuer:
    """The issuer of end-user tokens (RSA, as most are)."""
    return Issuer(USERS, rsa.generate_private_key(public_exponent=65537, key_size=2048), "user-key-1")


def new_cluster_issuer() -> Issuer:
    """The issuer of workload tokens; it stands for a cluster's service account issuer."""
    return Issuer(CLUSTER, ec.generate_private_key(ec.SECP256R1()), "cluster-key-1")


def user_claims(subject: str = "alice", **changes: Any) -> dict[str, Any]:
    """Claims of a good end-user token; a change to None removes a claim."""
    now = int(time.time())
    claims: dict[str, Any] = {
        "iss": USERS,
        "sub": subject,
        "aud": [AUDIENCE],
        "iat": now,
        "exp": now + TOKEN_SECONDS,
        "groups": ["readers"],
    }
    return {name: value for name, value in {**claims, **changes}.items() if value is not None}


def workload_token(issuer: Issuer, workload: str) -> str:
    """A token with the claims of a Kubernetes projected service account token."""
    now = int(time.time())
    return issuer.sign(
        {
            "iss": issuer.name,
            "aud": [CA_AUDIENCE],
            "sub": f"system:serviceaccount:{NAMESPACE}:{workload}",
            "iat": now,
            "nbf": now,
            "exp": now + TOKEN_SECONDS,
            "kubernetes.io": {
                "namespace": NAMESPACE,
                "serviceaccount": {"name": workload, "uid": f"sa-{workload}"},
                "pod": {"name": f"{workload}-0", "uid": f"{NAMESPACE}-{workload}"},
            },
        }
    )


def unsigned_token(claims: dict[str, Any]) -> str:
    """A token with `alg: none` and no signature, as an attacker writes it."""
    parts = [json.dumps(part).encode() for part in ({"alg": "none", "typ": "JWT"}, claims)]
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts) + "."


def write_atomically(path: Path, text: str) -> None:
    """Replace a file in one step: no reader ever sees half of it."""
    scratch = path.with_name(f".{path.name}.new")
    scratch.write_text(text)
    scratch.replace(path)
