"""OpenID Connect Discovery: which address a name leads to, and what is taken from a description."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.policy.oidc import (
    MAX_DOCUMENT,
    PATH,
    DiscoveryCode,
    DiscoveryError,
    discovery_address,
    is_discovery,
    keys_address,
)

ISSUER = "https://idp.example/tenant"
ADDRESS = ISSUER + PATH


@pytest.mark.parametrize(
    ("issuer", "address"),
    [
        ("https://idp.example", "https://idp.example/.well-known/openid-configuration"),
        ("https://idp.example/", "https://idp.example/.well-known/openid-configuration"),
        ("https://idp.example//", "https://idp.example//.well-known/openid-configuration"),
        (ISSUER, ADDRESS),
        ("http://keycloak.auth:8080/realms/a", f"http://keycloak.auth:8080/realms/a{PATH}"),
    ],
)
def test_one_slash_is_left_out(issuer: str, address: str) -> None:
    assert discovery_address(issuer) == address
    assert is_discovery(address)


@pytest.mark.parametrize(
    "issuer",
    [
        "",
        "testing@secure.istio.io",
        "idp.example",
        "ftp://idp.example",
        "https://",
        "https:///x",
        "https://user:pw@idp.example",
        "https://idp.example/?a=b",
        "https://idp.example/#a",
        "https://idp.example/a b",
        "https://idp.example\\@evil.example",
        "https://idp.example:0",
        "https://idp.example:99999",
        "https://[::1",
        "https://idp.\u00e9xample",
        "https://idp.example/\n",
        "https://idp.example/" + "x" * 2048,
    ],
)
def test_names_that_lead_nowhere(issuer: str) -> None:
    assert discovery_address(issuer) == ""


@pytest.mark.parametrize("slash", ["", "/"])
def test_the_keys_are_where_the_issuer_says(slash: str) -> None:
    document = {"issuer": ISSUER + slash, "jwks_uri": "https://keys.example/v1", "other": [1]}
    assert keys_address(json.dumps(document).encode(), ADDRESS) == "https://keys.example/v1"


@pytest.mark.parametrize(
    ("document", "code", "words"),
    [
        pytest.param(b"<html>", DiscoveryCode.CONTENT, "not JSON", id="html"),
        pytest.param(b"\xff", DiscoveryCode.CONTENT, "not JSON", id="bytes"),
        pytest.param(b"[" * 100_000, DiscoveryCode.CONTENT, "not JSON", id="deep"),
        pytest.param(b"[]", DiscoveryCode.CONTENT, "not a JSON object", id="list"),
        pytest.param(b" " * (MAX_DOCUMENT + 1), DiscoveryCode.CONTENT, "over", id="large"),
        pytest.param({"jwks_uri": "https://k.example"}, DiscoveryCode.ISSUER, "another issuer", id="nobody"),
        pytest.param({"issuer": 1}, DiscoveryCode.ISSUER, "another issuer", id="number"),
        pytest.param(
            {"issuer": "https://evil.example", "jwks_uri": "https://evil.example/keys"},
            DiscoveryCode.ISSUER,
            "another issuer",
            id="another",
        ),
        pytest.param(
            {"issuer": "https://idp.example/Tenant", "jwks_uri": "https://k.example"},
            DiscoveryCode.ISSUER,
            "another issuer",
            id="case",
        ),
        pytest.param({"issuer": ISSUER}, DiscoveryCode.CONTENT, "no jwks_uri", id="no-uri"),
        pytest.param({"issuer": ISSUER, "jwks_uri": ""}, DiscoveryCode.CONTENT, "no jwks_uri", id="empty"),
        pytest.param(
            {"issuer": ISSUER, "jwks_uri": ["x"]}, DiscoveryCode.CONTENT, "no jwks_uri", id="list-uri"
        ),
        pytest.param(
            {"issuer": ISSUER, "jwks_uri": ADDRESS}, DiscoveryCode.CONTENT, "no jwks_uri", id="itself"
        ),
    ],
)
def test_descriptions_that_are_refused(document: object, code: DiscoveryCode, words: str) -> None:
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    with pytest.raises(DiscoveryError, match=words) as caught:
        keys_address(text, ADDRESS)
    assert caught.value.code is code
    assert "evil" not in caught.value.public


@given(st.text())
def test_law_an_address_is_that_of_a_description_or_none(issuer: str) -> None:
    address = discovery_address(issuer)
    assert not address or (is_discovery(address) and address.startswith(issuer.removesuffix("/")))


@given(
    st.binary()
    | st.recursive(st.none() | st.text(), lambda x: st.dictionaries(st.text(), x)).map(
        lambda data: json.dumps(data).encode()
    )
)
def test_law_any_document_names_an_address_or_is_refused(document: bytes) -> None:
    with pytest.raises(DiscoveryError):
        keys_address(document, ADDRESS)
