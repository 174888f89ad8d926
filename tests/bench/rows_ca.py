"""The authority: issuing in a hot loop and through the service, checking tokens."""

from __future__ import annotations

import dataclasses
import datetime as dt
import io
import json
import os
from collections.abc import Iterator

import jwt as pyjwt
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from prometheus_client import CollectorRegistry

from ca.audit import Audit
from ca.authn import Chain, Presented
from ca.authn.claims import TokenPolicy, check_registered
from ca.authn.jwt import TokenAuthenticator, TokenVerifier
from ca.authn.keys import KeySet, parse_jwks
from ca.core import csr
from ca.core.authority import Authority
from ca.core.profile import Profile, SelfCheck
from ca.limits import Limiter, Limits
from ca.metrics import CaMetrics
from ca.requests import CertificateRequest, KeyMemory, RequestHead
from ca.service import IssuanceService
from mesh.obs import logs
from tests.bench.measure import Row, at_least, interleaved, on_core, openssl_p256, rate
from tests.fakes import ca_factory

ISSUER, AUDIENCE, KID = "https://kubernetes.default.svc", "istio-ca", "bench"
PATH = "/ns/payments/sa/checkout"


class FixedKeys:
    """A key source that never changes."""

    def __init__(self, keys: KeySet) -> None:
        self.current: KeySet | None = keys

    def refresh(self, now: dt.datetime) -> bool:
        return False


def projected_token(key: rsa.RSAPrivateKey, now: dt.datetime, account: str = "checkout") -> str:
    """A token as the kubelet projects it, about 1 KB."""
    at = int(now.timestamp())
    claims = {
        "aud": [AUDIENCE],
        "exp": at + 3600,
        "iat": at,
        "nbf": at,
        "iss": ISSUER,
        "jti": "0c5a2b0e-56f4-4f5a-9f31-1d0a6d1b2c3d",
        "kubernetes.io": {
            "namespace": "payments",
            "node": {"name": "node-17", "uid": "b3f1d2a4-0a5b-4c3d-9e8f-7a6b5c4d3e2f"},
            "pod": {"name": "checkout-7d9c5b8f6-x2x9k", "uid": "3e2f1d0c-9b8a-4756-8453-21fedcba0987"},
            "serviceaccount": {"name": account, "uid": "aa11bb22-cc33-4d44-8e55-ff6677889900"},
        },
        "sub": f"system:serviceaccount:payments:{account}",
    }
    return pyjwt.encode(claims, key, "RS256", headers={"kid": KID})


def key_set(key: rsa.RSAPrivateKey) -> KeySet:
    """The JWKS of one signing key, parsed as the authority parses it."""
    jwk = pyjwt.algorithms.RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)
    jwk |= {"kid": KID, "alg": "RS256", "use": "sig"}
    return parse_jwks(json.dumps({"keys": [jwk]}).encode())


def rows() -> Iterator[Row]:
    """Rows 1 and 5 of the goals, and the whole use case."""
    now = ca_factory.NOW
    hierarchy = ca_factory.make_hierarchy()
    identity = hierarchy.spiffe_id(PATH)
    request = ca_factory.make_csr(uris=(str(identity),))
    checked = Authority(hierarchy.issuer(), Profile())
    bare = Authority(
        hierarchy.issuer(), dataclasses.replace(Profile(), self_check=SelfCheck.START_AND_KEY_CHANGE)
    )
    signing = rsa.generate_private_key(65537, 2048)
    keys, token = key_set(signing), projected_token(signing, now)
    service = _service(checked, keys)
    head = RequestHead(presented=Presented(authorization=(f"Bearer {token}",)))
    message = CertificateRequest(csr_pem=request)

    def issue(authority: Authority) -> object:
        key = csr.prove(request, identity, authority.profile)
        return authority.sign(authority.prepare(key, identity, 0, now))

    signs: list[float] = []
    verifies: list[float] = []

    def limit() -> float:
        sign, verify = openssl_p256()
        signs.append(sign)
        verifies.append(verify)
        return 1 / (1 / sign + 1 / verify)

    public = signing.public_key()
    signature = signing.sign(b"m" * 900, padding.PKCS1v15(), hashes.SHA256())
    policy, verifier = _policy(hierarchy), TokenVerifier(FixedKeys(keys))
    authenticator = TokenAuthenticator(policy, FixedKeys(keys))
    presented = Presented(authorization=(f"Bearer {token}",))
    with on_core(min(os.sched_getaffinity(0))):
        figures = interleaved(
            {
                "limit": limit,
                "bare": lambda: rate(lambda: issue(bare)),
                "checked": lambda: rate(lambda: issue(checked)),
                "service": lambda: rate(lambda: service.issue(head, lambda: message, now)),
                "raw": lambda: rate(
                    lambda: public.verify(signature, b"m" * 900, padding.PKCS1v15(), hashes.SHA256())
                ),
                "pyjwt": lambda: rate(lambda: _pyjwt(token, public, now)),
                # What PyJWT does, and what the goals were taken with: signature, issuer, audience, times.
                "token": lambda: rate(
                    lambda: check_registered(verifier.verify(token, now), policy, now.timestamp())
                ),
                "caller": lambda: rate(lambda: authenticator.authenticate(presented, now)),
            }
        )
    unit = "certs/s/core"
    yield at_least("issue, own signature checked at start", figures["bare"], figures["limit"], unit, 0.70)
    yield at_least("issue, own signature checked each time", figures["checked"], figures["limit"], unit, 0.44)
    # The whole use case verifies one RSA signature more: its limit has it too.
    limits = [1 / (1 / a + 1 / b) for a, b in zip(figures["limit"], figures["raw"], strict=True)]
    yield at_least("issue, service object with token", figures["service"], limits, unit, 0.33)
    yield at_least("token check RS256 / raw verify", figures["token"], figures["raw"], "tokens/s/core", 0.70)
    yield at_least("token check RS256 / PyJWT", figures["token"], figures["pyjwt"], "tokens/s/core", 2.5)
    # Beyond that: identity, account, pod and node. The goal keeps it from growing.
    yield at_least(
        "caller of a token / its check", figures["caller"], figures["token"], "tokens/s/core", 0.85
    )


def _policy(hierarchy: ca_factory.Hierarchy) -> TokenPolicy:
    return TokenPolicy(trust_domain=hierarchy.trust_domain, issuer=ISSUER, audiences=frozenset({AUDIENCE}))


def _pyjwt(token: str, key: rsa.RSAPublicKey, now: dt.datetime) -> object:
    # PyJWT reads the clock itself; the token's times are checked by hand in both variants.
    times_off = {"verify_exp": False, "verify_nbf": False, "verify_iat": False}
    return pyjwt.decode(
        token,
        key,
        algorithms=["RS256"],
        audience=AUDIENCE,
        issuer=ISSUER,
        options={"require": ["exp", "sub", "aud", "iss"], **times_off},
    )


def _service(authority: Authority, keys: KeySet) -> IssuanceService:
    logs.configure(service="bench", level="info", json=True, stream=io.StringIO())
    hierarchy = ca_factory.make_hierarchy()
    return IssuanceService(
        authenticator=Chain([TokenAuthenticator(_policy(hierarchy), FixedKeys(keys))]),
        limiter=Limiter(Limits(caller_rate=1e9, caller_burst=10**9)),
        authority=lambda: authority,
        own_keys=frozenset,
        keys=KeyMemory(1000),
        clusters=frozenset({"Kubernetes"}),
        audit=Audit(),
        metrics=CaMetrics(CollectorRegistry()),
        issued=lambda _: None,
    )
