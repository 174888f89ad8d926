"""Discovery: what old, new and strange servers say about themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from mesh.kube.api import KubeCode, KubeError
from mesh.kube.discovery import discover
from tests.fakes.kube_api import FakeKube


@pytest.fixture
def kube() -> Iterator[FakeKube]:
    with FakeKube() as server:
        yield server


@pytest.mark.parametrize(
    ("minor", "slices", "native", "conditions", "bundles"),
    [
        (20, "v1beta1", False, False, ""),
        (21, "v1", False, False, ""),
        (28, "v1", False, False, ""),
        (29, "v1", True, False, ""),
        (30, "v1", True, True, ""),
        (33, "v1", True, True, "v1beta1"),
    ],
)
def test_versions(minor: int, slices: str, native: bool, conditions: bool, bundles: str) -> None:
    with FakeKube(minor=minor) as kube:
        found = discover(kube.api())
    assert (found.minor, found.endpoint_slices) == (minor, slices)
    assert (found.native_sidecars, found.match_conditions) == (native, conditions)
    assert found.cluster_trust_bundles == bundles
    assert found.csi_service_account_tokens
    assert found.serves("coordination.k8s.io", "v1")
    assert not found.serves("coordination.k8s.io", "v9")


def test_group_without_the_kind(kube: FakeKube) -> None:
    """The group certificates.k8s.io is served long before ClusterTrustBundle."""
    kube.serve("certificates.k8s.io", "v1", "certificatesigningrequests", "CSR", namespaced=False)
    assert discover(kube.api()).cluster_trust_bundles == ""


def test_preferred_version_comes_first(kube: FakeKube) -> None:
    versions = [{"version": "v1beta1"}, {"version": "v1"}]
    group = {"name": "g", "versions": versions, "preferredVersion": {"version": "v1"}}
    kube.documents["/apis"] = {"groups": [group, {"name": "empty"}]}
    found = discover(kube.api())
    assert found.groups == {"g": ("v1", "v1beta1"), "empty": ()}
    assert found.endpoint_slices == ""


@pytest.mark.parametrize("minor", ["20+", "20-eks-1", "20"])
def test_suffixes_of_hosted_clusters(kube: FakeKube, minor: str) -> None:
    kube.documents["/version"] = {"major": "1", "minor": minor}
    assert discover(kube.api()).minor == 20


@pytest.mark.parametrize(
    "version", [[], {}, {"major": "1", "minor": "x"}, {"major": "2", "minor": "1"}, {"minor": "20"}], ids=repr
)
def test_server_that_is_none(kube: FakeKube, version: Any) -> None:
    kube.documents["/version"] = version
    with pytest.raises(KubeError, match="not a Kubernetes 1") as e:
        discover(kube.api())
    assert e.value.code is KubeCode.RESPONSE


@pytest.mark.parametrize("groups", [[], {"groups": {"a": 1}}, {"groups": ["x"]}], ids=repr)
def test_groups_that_are_none(kube: FakeKube, groups: Any) -> None:
    kube.documents["/apis"] = groups
    with pytest.raises(KubeError, match="groups is not a list"):
        discover(kube.api())
