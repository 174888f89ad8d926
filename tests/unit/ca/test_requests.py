"""What a request may say beside its CSR (F-14, F-15, F-23 to F-27)."""

from __future__ import annotations

from typing import Any

import pytest

from ca.authn import AuthnCode, AuthnError
from ca.requests import KeyMemory, RequestCode, RequestError, check_cluster, check_metadata
from mesh.errors import Category
from mesh.spiffe import SpiffeId
from tests.fakes.ca_factory import TRUST_DOMAIN

WEB = SpiffeId(TRUST_DOMAIN, "/ns/demo/sa/web")
ADMIN = SpiffeId(TRUST_DOMAIN, "/ns/demo/sa/admin")


@pytest.mark.parametrize(
    "metadata",
    [
        pytest.param({}, id="none"),
        pytest.param({"ImpersonatedIdentity": ""}, id="F-26 empty text is absent"),
        pytest.param({"CertSigner": ""}, id="no signer"),
        pytest.param(
            {"WorkloadName": "web", "WorkloadIP": "10.0.0.1", "ClusterID": 5}, id="names for people"
        ),
    ],
)
def test_accepted_metadata(metadata: dict[str, Any]) -> None:
    check_metadata(metadata, WEB, TRUST_DOMAIN)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        pytest.param(5.0, "is 5.0; it must be text", id="F-26 number"),
        pytest.param(["a"], "must be text", id="F-26 list"),
        pytest.param(None, "is None; it must be text", id="F-26 null"),
        pytest.param(False, "must be text", id="F-26 false"),
        pytest.param({}, "must be text", id="F-26 object"),
        pytest.param(
            "spiffe://other/ns/a/sa/b", "must start with spiffe://cluster.local", id="F-25 other domain"
        ),
        pytest.param("spiffe://cluster.local.evil/ns/a/sa/b", "must start with", id="F-25 longer domain"),
        pytest.param("spiffe://cluster.local/admin", "not of the form", id="F-25 no workload"),
        pytest.param("spiffe://cluster.local", "not of the form", id="F-25 no path"),
        pytest.param("spiffe://cluster.local/ns/a%2Fb/sa/c", "not allowed", id="F-25 %2F"),
        pytest.param("spiffe://cluster.local/ns/../sa/c", "not allowed", id="F-25 dots"),
        pytest.param("spiffe://cluster.local/ns/A/sa/c", "not of the form", id="F-25 upper case name"),
        pytest.param("SPIFFE://cluster.local/ns/a/sa/c", "lower case", id="F-25 upper case scheme"),
        pytest.param("spiffe://CLUSTER.local/ns/a/sa/c", "lower case", id="F-25 upper case domain"),
        pytest.param("spiffe://cluster.local/ns/a/sa/c/", "not allowed", id="F-25 slash at the end"),
        pytest.param("ns/a/sa/c", "must start with spiffe://", id="F-25 no scheme"),
        pytest.param("x" * 5000, "longer than", id="long"),
    ],
)
def test_identities_that_nobody_could_have(value: Any, text: str) -> None:
    with pytest.raises(RequestError) as error:
        check_metadata({"ImpersonatedIdentity": value}, WEB, TRUST_DOMAIN)
    assert error.value.code is RequestCode.IMPERSONATION_INVALID
    assert error.value.category is Category.INVALID_ARGUMENT
    assert text in error.value.public
    assert len(error.value.public) < 400


@pytest.mark.parametrize("identity", [WEB, ADMIN], ids=["F-23 own", "F-23, F-24 another"])
def test_impersonation_is_denied(identity: SpiffeId) -> None:
    with pytest.raises(RequestError) as error:
        check_metadata({"ImpersonatedIdentity": str(identity)}, WEB, TRUST_DOMAIN)
    assert error.value.code is RequestCode.IMPERSONATION_DENIED
    assert error.value.category is Category.PERMISSION_DENIED
    assert "send the workload's own token" in error.value.public
    assert f"{WEB} asks to act for {identity}" in error.value.private


@pytest.mark.parametrize(
    ("metadata", "text"),
    [
        ({"CertSigner": "other"}, "one signer"),
        ({"CertSigner": None}, "one signer"),
        ({f"k{n}": 1 for n in range(33)}, "33 keys; allowed are 32"),
    ],
)
def test_other_refused_metadata(metadata: dict[str, Any], text: str) -> None:
    with pytest.raises(RequestError) as error:
        check_metadata(metadata, WEB, TRUST_DOMAIN)
    assert error.value.code is RequestCode.METADATA
    assert text in error.value.public


def test_f27_clusters() -> None:
    known = frozenset({"Kubernetes", "east"})
    for good in ([], ["east"], ["Kubernetes"]):
        check_cluster(good, known)
    for bad in (["west"], [""], ["east", "east"], ["kubernetes"]):
        with pytest.raises(AuthnError) as error:
            check_cluster(bad, known)
        assert error.value.code is AuthnCode.CLUSTER


def test_f14_f15_keys_are_remembered() -> None:
    memory = KeyMemory(10)
    assert memory.claim(b"key", WEB) is False
    assert memory.claim(b"key", WEB) is True
    with pytest.raises(RequestError) as error:
        memory.claim(b"key", ADMIN)
    assert error.value.code is RequestCode.KEY_OF_OTHER_IDENTITY
    assert error.value.category is Category.PERMISSION_DENIED
    assert str(WEB) not in error.value.public
    assert str(WEB) in error.value.private
    assert memory.claim(b"key", WEB) is True, "the claim of the thief changed nothing"


def test_f14_reuse_may_be_forbidden() -> None:
    memory = KeyMemory(10, allow_reuse=False)
    memory.claim(b"key", WEB)
    with pytest.raises(RequestError, match="make a new key") as error:
        memory.claim(b"key", WEB)
    assert error.value.code is RequestCode.KEY_REUSED


def test_key_memory_is_bounded() -> None:
    memory = KeyMemory(3)
    for n in range(5):
        memory.claim(bytes([n]), WEB)
    assert len(memory) == 3
    assert memory.claim(b"\x00", ADMIN) is False, "forgotten"
    assert memory.claim(b"\x04", WEB) is True
