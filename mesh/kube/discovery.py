"""What an API server can do, asked of the server itself: never guessed from a constant."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mesh.errors import Category
from mesh.kube.api import KubeApi, KubeCode, KubeError

_MINOR = re.compile(r"([0-9]{1,4})[^0-9]?.*")  # hosted clusters say 27+


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What the cluster offers.

    Attributes:
        minor: of version 1.x.
        groups: API group -> its versions, the preferred one first.
        cluster_trust_bundles: version of ClusterTrustBundle, empty when it is not served.
    """

    minor: int
    groups: Mapping[str, tuple[str, ...]]
    cluster_trust_bundles: str = ""

    @property
    def endpoint_slices(self) -> str:
        """`v1` or `v1beta1`; empty before 1.17."""
        return self._newest("discovery.k8s.io", ("v1", "v1beta1"))

    @property
    def native_sidecars(self) -> bool:
        """Init containers with `restartPolicy: Always` are on by default (1.29)."""
        return self.minor >= 29

    @property
    def match_conditions(self) -> bool:
        """Webhook match conditions are stable (1.30)."""
        return self.minor >= 30

    @property
    def csi_service_account_tokens(self) -> bool:
        """`CSIDriver.spec.tokenRequests` works (1.20 behind a gate that is on from 1.21)."""
        return self.minor >= 20

    def serves(self, group: str, version: str) -> bool:
        """True when the version of the group is served."""
        return version in self.groups.get(group, ())

    def _newest(self, group: str, wanted: tuple[str, ...]) -> str:
        return next((v for v in wanted if self.serves(group, v)), "")


def discover(api: KubeApi) -> Capabilities:
    """Ask the server. A handful of requests, at start-up only.

    Raises:
        KubeError: the server did not answer, or not as an API server does.
    """
    version = api.get("/version")
    minor = _MINOR.fullmatch(str(version.get("minor", ""))) if isinstance(version, dict) else None
    if minor is None or str(version.get("major")) != "1":
        raise KubeError(
            KubeCode.RESPONSE,
            f"/version: not a Kubernetes 1.x server: {version!r:.80}",
            category=Category.INTERNAL,
        )
    groups = _groups(api.get("/apis"))
    return Capabilities(minor=int(minor[1]), groups=groups, cluster_trust_bundles=_trust_bundles(api, groups))


def _trust_bundles(api: KubeApi, groups: Mapping[str, tuple[str, ...]]) -> str:
    for version in ("v1", "v1beta1", "v1alpha1"):
        if version in groups.get("certificates.k8s.io", ()):
            path = f"/apis/certificates.k8s.io/{version}"
            if any(
                row.get("name") == "clustertrustbundles" for row in _rows(api.get(path), "resources", path)
            ):
                return version
    return ""


def _groups(listing: Any) -> dict[str, tuple[str, ...]]:
    groups = {}
    for group in _rows(listing, "groups", "/apis"):
        preferred = (group.get("preferredVersion") or {}).get("version")
        versions = [str(v.get("version", "")) for v in _rows(group, "versions", "/apis")]
        groups[str(group.get("name", ""))] = tuple(sorted(versions, key=lambda v: v != preferred))
    return groups


def _rows(owner: Any, name: str, path: str) -> list[dict[str, Any]]:
    rows = owner.get(name) or [] if isinstance(owner, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise KubeError(
            KubeCode.RESPONSE, f"{path}: {name} is not a list of objects", category=Category.UNAVAILABLE
        )
    return rows
