"""Tokens in a real Envoy: codes and bodies of table c.2, where a token may be, what the application sees."""

from __future__ import annotations

import base64
import functools
import json
import time

import pytest

from mesh.meshconfig import MeshConfig
from mesh.policy.effective import (
    AuthzPolicy,
    EffectivePolicy,
    JwtHeader,
    JwtPolicy,
    JwtRegion,
    ObjectRef,
    Rule,
    RuleSets,
)
from mesh.policy.predicates import Always, Claim, MatchKind, StringMatch
from tests.fakes.envoy_lab import MESH, Lab
from tests.fakes.envoy_tokens import Issuer, bearer, jwt_policy

pytestmark = [pytest.mark.envoy, pytest.mark.xdist_group("envoy-jwt")]

I1 = Issuer()
I2 = Issuer("https://i2.example", "k2")
HIDDEN = Issuer("https://i1.example", "hidden")  # the issuer's name, another key

NO_FORM = "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections"
NO_KEY = "Jwks doesn't have key to match kid or alg from Jwt"
UNKNOWN = "Jwt issuer is not configured"


def policy(tokens: JwtPolicy, rules: RuleSets = RuleSets()) -> EffectivePolicy:  # noqa: B008 - frozen
    return EffectivePolicy(jwt=tokens, authz=AuthzPolicy(http=rules))


def required() -> RuleSets:
    present = StringMatch(MatchKind.PRESENT)
    who = Claim(("sub",), present)
    return RuleSets(
        allow=(
            Rule("ns[demo]-policy[p]-rule[0]", who, Always(), ObjectRef("AuthorizationPolicy", "demo", "p")),
        )
    )


class World:
    def __init__(self, lab: Lab) -> None:
        def add(tokens, **options):
            return lab.workload(policy(tokens, options.pop("rules", RuleSets())), **options)

        self.lab = lab
        provider = I1.provider
        self.plain = add(jwt_policy(provider(forward=True)))
        self.required = add(jwt_policy(provider()), rules=required())
        self.two = add(jwt_policy(provider(), I2.provider()))
        self.audience = add(jwt_policy(provider(audiences=("a", "https://b/"))))
        self.header = add(jwt_policy(provider(from_headers=(JwtHeader("x-jwt", "J "),))))
        self.param = add(jwt_policy(provider(from_params=("tok",))))
        self.cookie = add(jwt_policy(provider(from_cookies=("c",))))
        self.output = add(
            jwt_policy(
                provider(
                    output_payload_header="x-p",
                    claim_headers=(("x-sub", "sub"), ("x-role", "nested.role"), ("x-list", "groups")),
                )
            )
        )
        self.dropped = add(jwt_policy(provider()))
        self.expiring = add(
            jwt_policy(provider()),
            mesh=MeshConfig(
                trust_domain=MESH.trust_domain, jwt_require_expiration=True, jwt_clock_skew_seconds=5
            ),
        )
        self.fallback = add(jwt_policy(provider(jwks=HIDDEN.jwks())))
        exact, prefix, suffix = (
            functools.partial(StringMatch, kind)
            for kind in (MatchKind.EXACT, MatchKind.PREFIX, MatchKind.SUFFIX)
        )
        p1, p2 = provider(), I2.provider()
        self.legacy = add(
            JwtPolicy(
                (p1, p2),
                (
                    JwtRegion(paths=(exact("/health"), prefix("/pub"), suffix(".css"))),
                    JwtRegion(paths=(prefix("/b"),), providers=(p2.key,), allow_missing=False),
                    JwtRegion(paths=(prefix("/optional"),), providers=(p1.key,), allow_failed=True),
                    JwtRegion(providers=(p1.key,), allow_missing=False),
                ),
            )
        )
        self.untouched = add(JwtPolicy())

    def ask(self, address, headers=(), target="/", **options):
        return self.lab.http(address, target, headers=headers, **options)

    def verdict(self, address, token, **options):
        reply = self.ask(address, bearer(token) if token else (), **options)
        return reply.status, reply.body if reply.status != 200 else ""


def part(value) -> str:
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(text).rstrip(b"=").decode()


def claims(**extra):
    return {"iss": I1.url, "sub": "alice", "exp": int(time.time()) + 86_400, **extra}


def tampered():
    head, _, signature = I1.token().split(".")
    return f"{head}.{part(claims(sub='root'))}.{signature}"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    lab = Lab(tmp_path_factory.mktemp("jwt"))
    found = World(lab)
    with lab:
        yield found


BAD_TOKENS = {
    "garbage": ("garbage", 401, NO_FORM),
    "two-parts": ("a.b", 401, NO_FORM),
    "alg-none-empty-signature": (f"{part({'alg': 'none'})}.{part(claims())}.", 401, NO_FORM),
    "header-not-base64": ("aaaaa.e30.e30", 401, "Jwt header is an invalid Base64url encoded"),
    "expired": (I1.token(lifetime=-120), 401, "Jwt is expired"),
    "not-yet-valid": (I1.token(nbf=int(time.time()) + 86_400, lifetime=2 * 86_400), 401, "Jwt not yet valid"),
    "P-22-CVE-2021-21378-unknown-issuer": (I2.token(), 401, UNKNOWN),
    "no-issuer": (I1.token(iss=None), 401, UNKNOWN),
    "issuer-with-a-slash-more": (I1.token(iss=I1.url + "/"), 401, UNKNOWN),
    "wrong-key-without-kid": (HIDDEN.token(headers={}), 401, "Jwt verification fails"),
    "wrong-key-other-kid": (HIDDEN.token(), 401, NO_KEY),
    "P-21-wrong-key-same-kid": (HIDDEN.token(headers={"kid": "k1"}), 401, "Jwt verification fails"),
    "tampered-claims": (tampered(), 401, "Jwt verification fails"),
}


@pytest.mark.parametrize(("token", "status", "body"), BAD_TOKENS.values(), ids=BAD_TOKENS.keys())
@pytest.mark.parametrize("workload", ["plain", "required"])
def test_c2_bad_tokens(world, workload, token, status, body):
    """401 from the token check, whether or not a token is required."""
    assert world.verdict(getattr(world, workload), token) == (status, body)


@pytest.mark.parametrize(
    "head",
    [
        pytest.param({"alg": "HS256", "kid": "k1"}, id="hs256-with-the-public-key"),
        pytest.param(
            {"alg": "RS256", "kid": "k1", "jwk": {"kty": "RSA", "n": "AQAB", "e": "AQAB"}}, id="embedded-jwk"
        ),
        pytest.param({"alg": "none"}, id="alg-none-with-signature"),
    ],
)
def test_c2_algorithm_confusion(world, head):
    token = f"{part(head)}.{part(claims())}.{part(b'x' * 32)}"
    status, body = world.verdict(world.plain, token)
    assert status == 401
    assert body in {NO_KEY, "Jwt verification fails", "Jwt header [alg] is not supported"}


def test_p21_good_and_missing(world):
    assert world.verdict(world.plain, I1.token()) == (200, "")
    assert world.verdict(world.plain, None) == (200, "")


def test_p30_missing_is_403_where_a_rule_requires_one(world):
    assert world.verdict(world.required, I1.token()) == (200, "")
    assert world.verdict(world.required, None) == (403, "RBAC: access denied")
    assert world.verdict(world.required, I1.token(sub=None)) == (403, "RBAC: access denied")


def test_p24_two_issuers(world):
    assert world.verdict(world.two, I1.token()) == (200, "")
    assert world.verdict(world.two, I2.token()) == (200, "")
    assert world.verdict(world.two, None) == (200, "")
    assert world.verdict(world.two, HIDDEN.token()) == (401, NO_KEY)


@pytest.mark.parametrize(
    ("audience", "status"),
    [
        pytest.param("b-other", 403, id="other"),
        pytest.param(None, 403, id="none"),
        pytest.param(["x", "a"], 200, id="one-of-several"),
        pytest.param("https://b", 200, id="trailing-slash-is-ignored"),
    ],
)
def test_p23_audiences(world, audience, status):
    expected = (200, "") if status == 200 else (403, "Audiences in Jwt are not allowed")
    assert world.verdict(world.audience, I1.token(aud=audience)) == expected


def test_p25_only_the_named_header(world):
    address, token = world.header, I1.token()
    assert world.ask(address, [("x-jwt", f"J {token}")]).status == 200
    assert world.ask(address, [("x-jwt", "J garbage")]).status == 401
    assert world.ask(address, [("x-jwt", "garbage")]).status == 200  # another prefix is no token
    assert world.ask(address, bearer("garbage")).status == 200


def test_p26_parameter_is_removed(world):
    reply = world.ask(world.param, target=f"/a?x=1&tok={I1.token()}")
    assert reply.status == 200
    assert reply.seen["target"] == "/a?x=1"
    assert world.ask(world.param, target="/a?tok=bad").status == 401


def test_p27_cookie_is_kept(world):
    reply = world.ask(world.cookie, [("cookie", f"c={I1.token()}")])
    assert reply.status == 200
    assert reply.header_seen("cookie")
    assert world.ask(world.cookie, [("cookie", "c=bad")]).status == 401


def test_p28_claims_in_headers_cannot_be_forged(world):
    forged = [("x-sub", "root"), ("x-p", "root"), ("x-role", "root"), ("x-list", "root")]
    reply = world.ask(world.output, [*forged, *bearer(I1.token(nested={"role": "dev"}, groups=["a"]))])
    assert reply.header_seen("x-sub") == ["alice"]
    assert reply.header_seen("x-role") == ["dev"]
    (payload,) = reply.header_seen("x-p")
    assert json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))["sub"] == "alice"
    without = world.ask(world.output, forged)
    assert without.status == 200
    for name, _ in forged:
        assert without.header_seen(name) == []


def test_p29_forwarding(world):
    token = I1.token()
    assert world.ask(world.plain, bearer(token)).header_seen("authorization") == [f"Bearer {token}"]
    assert world.ask(world.dropped, bearer(token)).header_seen("authorization") == []


def test_all_tokens_of_a_request_must_be_valid(world):
    assert world.ask(world.plain, bearer(I1.token()), target="/?access_token=bad").status == 401


@pytest.mark.parametrize("scheme", ["Basic", "bearer", "BEARER"])
def test_other_schemes_are_no_token(world, scheme):
    assert world.ask(world.plain, [("authorization", f"{scheme} garbage")]).status == 200
    assert world.ask(world.required, [("authorization", f"{scheme} {I1.token()}")]).status == 403


def test_expiry_is_required_by_an_option(world):
    assert world.verdict(world.plain, I1.token(exp=None)) == (200, "")
    assert world.verdict(world.expiring, I1.token(exp=None))[0] == 401
    assert world.verdict(world.expiring, I1.token()) == (200, "")


def test_clock_skew(world):
    assert world.verdict(world.plain, I1.token(lifetime=-30)) == (200, "")
    assert world.verdict(world.expiring, I1.token(lifetime=-30)) == (401, "Jwt is expired")


def test_p32_a_key_set_that_nobody_can_sign_for(world):
    """What is sent while there are no keys: tokens fail, requests without one go on."""
    assert world.verdict(world.fallback, None) == (200, "")
    assert world.verdict(world.fallback, I1.token()) == (401, NO_KEY)


def test_cached_token_expires(world):
    """`jwt_cache_config` must not outlive `exp` (with its skew)."""
    token = I1.token(lifetime=0)  # the skew of 5 s leaves time for a first look on a busy machine
    assert world.verdict(world.expiring, token) == (200, "")
    end = time.monotonic() + 30
    while world.verdict(world.expiring, token) == (200, ""):
        assert time.monotonic() < end, "a cached token outlived its expiry"


def test_cors_preflight_passes_without_a_look_at_tokens(world):
    headers = [
        ("origin", "https://x"),
        ("access-control-request-method", "GET"),
        *bearer("garbage"),
    ]
    assert world.ask(world.plain, headers, method="OPTIONS").status == 200
    assert world.ask(world.plain, bearer("garbage"), method="OPTIONS").status == 401


def test_no_policy_looks_at_no_token(world):
    reply = world.ask(world.untouched, bearer("garbage"))
    assert reply.status == 200
    assert reply.header_seen("authorization") == ["Bearer garbage"]


@pytest.mark.parametrize(
    ("target", "token", "status"),
    [
        pytest.param("/health", None, 200, id="P-38-excluded-exact"),
        pytest.param("/health?x", None, 200, id="CVE-2020-8595-query-does-not-count"),
        pytest.param("/health?x", "garbage", 200, id="excluded-paths-look-at-no-token"),
        pytest.param("/pub/a", None, 200, id="P-38-excluded-prefix"),
        pytest.param("/x.css", None, 200, id="excluded-suffix"),
        pytest.param("/x.css?y", None, 200, id="excluded-suffix-with-query"),
        pytest.param("/healthz", None, 401, id="P-38-not-excluded"),
        pytest.param("/x?/health", None, 401, id="excluded-path-in-a-query"),
        pytest.param("/b", "i2", 200, id="P-39-region"),
        pytest.param("/b", "i1", 401, id="P-39-other-issuer"),
        pytest.param("/b", None, 401, id="P-39-none"),
        pytest.param("/optional", None, 200, id="P-40-optional-missing"),
        pytest.param("/optional", "garbage", 200, id="P-40-optional-failed"),
        pytest.param("/", "i1", 200, id="P-37-rest"),
        pytest.param("/", None, 401, id="P-37-missing-is-401"),
    ],
)
def test_regions(world, target, token, status):
    tokens = {"i1": I1.token(), "i2": I2.token()}
    headers = bearer(tokens.get(token, token)) if token else ()
    assert world.ask(world.legacy, headers, target=target).status == status
