"""Check 5: tokens of people."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json

from examples.demo import layout as at
from examples.demo.harness import Demo
from examples.demo.issuer import TOKEN_SECONDS, USERS, new_user_issuer, unsigned_token, user_claims
from examples.demo.model import Check
from examples.demo.plain import bearer, call

NAME = "end-user tokens (JWT)"
INTENT = (
    "web calls reviews with tokens of every kind. /account needs one (403 without); a token that is wrong is"
    " refused anywhere (401); one for another audience is not for us (403)."
)
_SHAPE = "401 Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections"
_NO_KEY = "401 Jwks doesn't have key to match kid or alg from Jwt"


def run(demo: Demo, check: Check) -> None:
    target = demo.egress("web", at.EGRESS_REVIEWS)
    users, stranger = demo.users, new_user_issuer()
    now = int(user_claims()["iat"])
    good = users.sign(user_claims())
    old = user_claims(iat=now - 2 * TOKEN_SECONDS, exp=now - TOKEN_SECONDS)
    tokens = (
        ("good", "a good token", good, "200"),
        ("garbage", "garbage", "garbage", _SHAPE),
        ("expired", "expired an hour ago", users.sign(old), "401 Jwt is expired"),
        (
            "not yet valid",
            "valid in an hour",
            users.sign(user_claims(nbf=now + TOKEN_SECONDS, exp=now + 2 * TOKEN_SECONDS)),
            "401 Jwt not yet valid",
        ),
        (
            "wrong issuer",
            "another issuer",
            users.sign(user_claims(iss=f"{USERS}/")),
            "401 Jwt issuer is not configured",
        ),
        ("wrong key", "signed with another key", stranger.sign(user_claims()), "401 Jwt verification fails"),
        ("unknown key", "a key that nobody published", stranger.sign(user_claims(), kid="x"), _NO_KEY),
        ("alg none", "alg: none, no signature", unsigned_token(user_claims()), _SHAPE),
        ("HMAC", "HS256 with the public key as the secret", _confused(demo), _NO_KEY),
        (
            "wrong audience",
            "for another audience",
            users.sign(user_claims(aud=["ratings"])),
            "403 Audiences in Jwt are not allowed",
        ),
    )
    check.expect(
        "no token where needed",
        "GET /account without a token",
        expected="403 RBAC: access denied",
        got=call(target, "/account").short,
    )
    check.expect(
        "no token elsewhere",
        "GET /reviews/2 without a token",
        expected="200",
        got=call(target, "/reviews/2").short,
    )
    for name, tried, token, expected in tokens:
        answer = call(target, "/account", headers=bearer(token))
        check.expect(name, f"GET /account, {tried}", expected=expected, got=answer.short)
    check.expect(
        "garbage elsewhere",
        "GET /reviews/2, garbage: never looked over",
        expected=_SHAPE,
        got=call(target, "/reviews/2", headers=bearer("garbage")).short,
    )
    forwarded = call(target, "/account", headers=bearer(good)).json.get("authorization")
    check.expect(
        "not forwarded",
        "the application sees the token (forwardOriginalToken is off)",
        expected="False",
        got=str(forwarded),
    )


def _confused(demo: Demo) -> str:
    """The old trick: the public key, which everybody has, as the secret of an HMAC."""
    secret = json.dumps(demo.users.key_set()["keys"][0]).encode()
    header = {"alg": "HS256", "typ": "JWT", "kid": demo.users.kid}
    parts = [_encode(json.dumps(part).encode()) for part in (header, user_claims())]
    signature = hmac.new(secret, ".".join(parts).encode(), hashlib.sha256).digest()
    return ".".join([*parts, _encode(signature)])


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
