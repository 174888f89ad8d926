"""Claims of projected tokens: rows F-41, F-42, F-44, F-48, F-49, F-51."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest

from ca.authn import PUBLIC_TEXT, AuthnCode, AuthnError, Method
from ca.authn.claims import TokenPolicy, read_claims
from mesh.spiffe import TrustDomain
from tests.fakes.ca_factory import NOW
from tests.fakes.ca_tokens import AUDIENCE, ISSUER, POD_UID, claims

POLICY = TokenPolicy(
    trust_domain=TrustDomain("cluster.local"), issuer=ISSUER, audiences=frozenset({AUDIENCE, "other"})
)
AT = NOW.timestamp()


def bound(**changes: Any) -> dict[str, Any]:
    """`kubernetes.io` with changes; None takes a member away."""
    found = claims(NOW)["kubernetes.io"] | changes
    return {name: value for name, value in found.items() if value is not None}


def test_good_claims_name_the_pod() -> None:
    caller = read_claims(claims(NOW), POLICY, AT)
    assert str(caller.spiffe_id) == "spiffe://cluster.local/ns/demo/sa/web"
    assert (caller.pod_name, caller.pod_uid, caller.node_name) == ("web-1", POD_UID, "node-17")
    assert caller.method is Method.TOKEN
    assert caller.expires == NOW + dt.timedelta(hours=1)
    assert caller.key == POD_UID


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"aud": AUDIENCE}, id="aud as text"),
        pytest.param({"aud": ["x", AUDIENCE]}, id="one of several audiences"),
        pytest.param({"nbf": None}, id="no nbf"),
        pytest.param({"jti": None}, id="no jti"),
        pytest.param({"exp": AT + 3600.5}, id="fraction of a second"),
        pytest.param({"iat": AT + 9, "nbf": AT + 9}, id="issued 9 s ahead within leeway"),
        pytest.param({"exp": AT - 9, "iat": AT - 100}, id="ended 9 s ago within leeway"),
        pytest.param({"kubernetes.io": bound(node=None)}, id="no node"),
        pytest.param({"kubernetes.io": bound(warnafter=5)}, id="unknown member"),
        pytest.param({"extra": {"a": [1]}}, id="unknown claim"),
    ],
)
def test_accepted(changes: dict[str, Any]) -> None:
    caller = read_claims(claims(NOW, **changes), POLICY, AT)
    assert caller.spiffe_id.service_account() == ("demo", "web")


REFUSED = [
    ("F-41 expired", {"exp": AT - 11, "iat": AT - 100}, AuthnCode.TOKEN_EXPIRED, "exp is 11 s ago"),
    ("F-41 expired at the edge", {"exp": AT - 10, "iat": AT - 100}, AuthnCode.TOKEN_EXPIRED, "exp is 10 s"),
    ("F-41 no exp", {"exp": None}, AuthnCode.TOKEN_CLAIMS, "exp is None"),
    ("exp is text", {"exp": "9999999999"}, AuthnCode.TOKEN_CLAIMS, "exp is '9999999999'"),
    ("exp is true", {"exp": True}, AuthnCode.TOKEN_CLAIMS, "exp is True"),
    ("exp is infinite", {"exp": float("inf")}, AuthnCode.TOKEN_CLAIMS, "not a time"),
    ("exp is nan", {"exp": float("nan")}, AuthnCode.TOKEN_CLAIMS, "not a time"),
    ("exp is negative", {"exp": -1}, AuthnCode.TOKEN_CLAIMS, "not a time"),
    ("exp is huge", {"exp": 10**30}, AuthnCode.TOKEN_CLAIMS, "not a time"),
    ("no iat", {"iat": None}, AuthnCode.TOKEN_CLAIMS, "iat is None"),
    ("nbf is null-like", {"nbf": []}, AuthnCode.TOKEN_CLAIMS, "nbf is []"),
    ("nbf ahead", {"nbf": AT + 11}, AuthnCode.TOKEN_NOT_YET_VALID, "11 s ahead"),
    ("iat ahead", {"iat": AT + 60}, AuthnCode.TOKEN_NOT_YET_VALID, "60 s ahead"),
    ("lives for a year", {"exp": AT + 366 * 86400}, AuthnCode.TOKEN_LIFETIME, "not 1 to 172800 s"),
    ("F-51 slash at the end", {"iss": ISSUER + "/"}, AuthnCode.TOKEN_ISSUER, "iss is"),
    ("F-51 other case", {"iss": ISSUER.upper()}, AuthnCode.TOKEN_ISSUER, "iss is"),
    ("no issuer", {"iss": None}, AuthnCode.TOKEN_ISSUER, "iss is None"),
    ("issuer is a list", {"iss": [ISSUER]}, AuthnCode.TOKEN_ISSUER, "iss is ["),
    ("F-42 audience of the API server", {"aud": ["https://kubernetes"]}, AuthnCode.TOKEN_AUDIENCE, "none of"),
    ("F-42 no audience", {"aud": None}, AuthnCode.TOKEN_AUDIENCE, "neither text nor"),
    ("F-42 empty audiences", {"aud": []}, AuthnCode.TOKEN_AUDIENCE, "none of"),
    ("F-42 audience with a number", {"aud": [AUDIENCE, 1]}, AuthnCode.TOKEN_AUDIENCE, "not all of it"),
    ("F-42 audience is an object", {"aud": {AUDIENCE: 1}}, AuthnCode.TOKEN_AUDIENCE, "neither text nor"),
    ("F-42 too many audiences", {"aud": [AUDIENCE] * 33}, AuthnCode.TOKEN_AUDIENCE, "short list"),
    ("F-42 part of an audience", {"aud": AUDIENCE[:-1]}, AuthnCode.TOKEN_AUDIENCE, "none of"),
    ("F-48 a user", {"sub": "alice@example.com"}, AuthnCode.TOKEN_SUBJECT, "sub is 'alice"),
    ("F-48 a node", {"sub": "system:node:worker-1"}, AuthnCode.TOKEN_SUBJECT, "sub is"),
    ("F-48 a bootstrap token", {"sub": "system:bootstrap:abcdef"}, AuthnCode.TOKEN_SUBJECT, "sub is"),
    ("F-48 no subject", {"sub": None}, AuthnCode.TOKEN_SUBJECT, "sub is None"),
    ("F-49 three parts", {"sub": "system:serviceaccount:demo"}, AuthnCode.TOKEN_SUBJECT, "sub is"),
    ("F-49 five parts", {"sub": "system:serviceaccount:demo:web:x"}, AuthnCode.TOKEN_SUBJECT, "sub is"),
    ("F-49 other prefix", {"sub": "system:serviceaccounts:demo:web"}, AuthnCode.TOKEN_SUBJECT, "sub is"),
    ("F-49 subject is a list", {"sub": ["system", "x"]}, AuthnCode.TOKEN_SUBJECT, "sub is"),
    ("F-49 subject is long", {"sub": "a" * 600}, AuthnCode.TOKEN_SUBJECT, "sub is"),
    (
        "claims disagree on the namespace",
        {"kubernetes.io": bound(namespace="prod")},
        AuthnCode.TOKEN_SUBJECT,
        "prod",
    ),
    (
        "claims disagree on the account",
        {"kubernetes.io": bound(serviceaccount={"name": "admin"})},
        AuthnCode.TOKEN_SUBJECT,
        "admin",
    ),
    ("F-44 legacy claims", {"kubernetes.io": None}, AuthnCode.TOKEN_NOT_POD_BOUND, "not an object"),
    ("F-44 no pod", {"kubernetes.io": bound(pod=None)}, AuthnCode.TOKEN_NOT_POD_BOUND, "has no pod"),
    (
        "F-44 bound to a Secret",
        {"kubernetes.io": bound(pod=None, secret={"name": "s"})},
        AuthnCode.TOKEN_NOT_POD_BOUND,
        "has no pod",
    ),
    (
        "F-44 pod without UID",
        {"kubernetes.io": bound(pod={"name": "x"})},
        AuthnCode.TOKEN_NOT_POD_BOUND,
        "pod.uid",
    ),
    (
        "F-44 empty pod name",
        {"kubernetes.io": bound(pod={"name": "", "uid": "u"})},
        AuthnCode.TOKEN_NOT_POD_BOUND,
        "pod.name",
    ),
    ("pod is text", {"kubernetes.io": bound(pod="web-1")}, AuthnCode.TOKEN_CLAIMS, "pod is 'web-1'"),
    (
        "pod UID is long",
        {"kubernetes.io": bound(pod={"name": "x", "uid": "u" * 254})},
        AuthnCode.TOKEN_NOT_POD_BOUND,
        "uid",
    ),
    (
        "node name is a number",
        {"kubernetes.io": bound(node={"name": 7})},
        AuthnCode.TOKEN_CLAIMS,
        "node.name",
    ),
    (
        "account is a list",
        {"kubernetes.io": bound(serviceaccount=[])},
        AuthnCode.TOKEN_CLAIMS,
        "serviceaccount",
    ),
]


@pytest.mark.parametrize(
    ("changes", "code", "detail"), [pytest.param(*row[1:], id=row[0]) for row in REFUSED]
)
def test_refused(changes: dict[str, Any], code: AuthnCode, detail: str) -> None:
    with pytest.raises(AuthnError) as error:
        read_claims(claims(NOW, **changes), POLICY, AT)
    assert error.value.code is code
    assert detail in error.value.private
    assert error.value.public == PUBLIC_TEXT


@pytest.mark.parametrize(
    ("namespace", "name"),
    [
        pytest.param("", "web", id="F-49 empty namespace"),
        pytest.param("demo", "", id="F-49 empty name"),
        pytest.param("a/b", "web", id="F-49 slash in the namespace"),
        pytest.param("demo", "../admin", id="dots and slash in the name"),
        pytest.param("Demo", "web", id="upper case"),
        pytest.param("demo\n", "web", id="line feed"),
    ],
)
def test_names_that_kubernetes_does_not_allow(namespace: str, name: str) -> None:
    with pytest.raises(AuthnError) as error:
        read_claims(claims(NOW, namespace=namespace, name=name), POLICY, AT)
    assert error.value.code is AuthnCode.TOKEN_SUBJECT


def test_pod_may_be_optional() -> None:
    policy = TokenPolicy(
        trust_domain=POLICY.trust_domain, issuer=ISSUER, audiences=POLICY.audiences, require_pod=False
    )
    caller = read_claims(claims(NOW, **{"kubernetes.io": bound(pod=None)}), policy, AT)
    assert (caller.pod_uid, caller.key) == ("", "spiffe://cluster.local/ns/demo/sa/web")
    with pytest.raises(AuthnError, match="not authenticated") as error:
        read_claims(claims(NOW, **{"kubernetes.io": bound(pod={})}), policy, AT)
    assert error.value.code is AuthnCode.TOKEN_NOT_POD_BOUND


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"leeway": dt.timedelta(seconds=61)}, "leeway"),
        ({"leeway": dt.timedelta(seconds=-1)}, "leeway"),
        ({"issuer": ""}, "issuer"),
        ({"audiences": frozenset()}, "audience"),
        ({"audiences": frozenset({""})}, "audience"),
    ],
)
def test_policy_bounds(changes: dict[str, Any], text: str) -> None:
    good: dict[str, Any] = {
        "trust_domain": POLICY.trust_domain,
        "issuer": ISSUER,
        "audiences": frozenset({AUDIENCE}),
    }
    with pytest.raises(ValueError, match=text):
        TokenPolicy(**(good | changes))
