"""The roots as a ClusterTrustBundle: by capability, made once, repaired, owned."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from ca.distribute import Owner
from ca.trust_bundle import NAME, REDISCOVER_SECONDS, SIGNER, TrustBundle
from mesh.kube.api import KubeError
from tests.fakes.kube_api import FakeKube

OWNER = Owner(api_version="rbac.authorization.k8s.io/v1", kind="ClusterRole", name="gatehouse-ca", uid="u1")
COLLECTION = "/apis/certificates.k8s.io/v1beta1/clustertrustbundles"


class Lab:
    def __init__(self, kube: FakeKube) -> None:
        self.kube = kube
        self.seconds = 0.0
        self.roots = ["ROOT1\n"]
        self.counted: list[str] = []
        self.bundle = TrustBundle(
            kube.api(),
            bundle=lambda: self.roots,
            owner=lambda: OWNER,
            monotonic=lambda: self.seconds,
            count=self.counted.append,
        )

    def found(self) -> dict[str, Any]:
        found = self.kube.find("ClusterTrustBundle", NAME)
        assert found is not None
        return dict(found)


@pytest.fixture
def lab() -> Iterator[Lab]:
    with FakeKube(minor=33) as kube:
        yield Lab(kube)


def test_made_once_with_the_signers_name_and_an_owner(lab: Lab) -> None:
    lab.bundle.step()
    lab.bundle.step()
    found = lab.found()
    assert found["spec"] == {"signerName": SIGNER, "trustBundle": "ROOT1\n"}
    assert NAME.startswith(SIGNER.replace("/", ":") + ":"), "the API server refuses another prefix"
    assert found["metadata"]["ownerReferences"] == [OWNER.reference()]
    assert lab.counted == ["created"]


def test_follows_the_roots_and_is_repaired(lab: Lab) -> None:
    lab.bundle.step()
    lab.roots.append("ROOT2\n")
    lab.bundle.step()
    assert lab.found()["spec"]["trustBundle"] == "ROOT1\nROOT2\n"
    lab.kube.add(
        {**lab.found(), "kind": "ClusterTrustBundle", "spec": {"signerName": SIGNER, "trustBundle": "X"}}
    )
    lab.bundle.step()
    assert lab.found()["spec"]["trustBundle"] == "ROOT1\nROOT2\n"
    assert lab.counted == ["created", "repaired", "repaired"]


def test_where_the_kind_is_not_served_nothing_is_asked_of_it() -> None:
    with FakeKube(minor=32) as kube:
        lab = Lab(kube)
        lab.bundle.step()
        lab.bundle.step()
        assert not [r for r in kube.requests if "clustertrustbundles" in r.path]
        assert len([r for r in kube.requests if r.path == "/version"]) == 1, "discovered once"
        lab.seconds = REDISCOVER_SECONDS
        lab.bundle.step()
        assert len([r for r in kube.requests if r.path == "/version"]) == 2, "a gate may be switched on"


def test_another_replica_was_faster(lab: Lab) -> None:
    lab.kube.fail(409, method="POST", path=COLLECTION, reason="AlreadyExists")
    lab.bundle.step()
    assert lab.counted == []


def test_a_refusal_is_told(lab: Lab) -> None:
    lab.kube.fail(403, method="POST", path=COLLECTION)
    with pytest.raises(KubeError):
        lab.bundle.step()
