"""The roots as a ClusterTrustBundle, where the API server serves that kind (KEP-3257).

One object for the whole cluster: pods project it into a volume by its signer's name, without a ConfigMap in
their namespace. Whether it is served, and as which version, is asked of the server again and again: a feature
gate may be switched on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from ca.distribute import Owner
from mesh.kube.api import KubeApi, KubeCode, KubeError, PatchType
from mesh.kube.discovery import discover
from mesh.obs import logs

SIGNER: Final = "gatehouse.dev/ca"
NAME: Final = "gatehouse.dev:ca:roots"
"""The API server wants the signer's name in front, with colons."""
REDISCOVER_SECONDS: Final = 600.0

_log = logs.logger(__name__)


class TrustBundle:
    """Keeps the object equal to the bundle.

    Args:
        bundle: the roots now, one PEM text each.
        owner: asked at the creation; None makes it belong to nothing.
        monotonic: in seconds.
        count: told the outcome of each write: created or repaired.
    """

    def __init__(
        self,
        api: KubeApi,
        *,
        bundle: Callable[[], Sequence[str]],
        owner: Callable[[], Owner | None],
        monotonic: Callable[[], float],
        count: Callable[[str], None],
    ) -> None:
        self._api = api
        self._bundle = bundle
        self._owner = owner
        self._monotonic = monotonic
        self._count = count
        self._version = ""
        self._look_at = float("-inf")

    def step(self) -> None:
        """Look, and write what is not as it should be; nothing where the kind is not served.

        Raises:
            KubeError: no answer, or not allowed.
        """
        if self._monotonic() >= self._look_at:
            self._version = discover(self._api).cluster_trust_bundles
            self._look_at = self._monotonic() + REDISCOVER_SECONDS
        if not self._version:
            return
        collection = f"/apis/certificates.k8s.io/{self._version}/clustertrustbundles"
        spec = {"signerName": SIGNER, "trustBundle": "".join(self._bundle())}
        try:
            found = self._api.get(f"{collection}/{NAME}")
        except KubeError as error:
            if error.code is not KubeCode.NOT_FOUND:
                raise
            self._create(collection, spec)
            return
        if (found.get("spec") or {}).get("trustBundle") != spec["trustBundle"]:
            self._api.patch(f"{collection}/{NAME}", {"spec": spec}, PatchType.MERGE)
            self._count("repaired")
            _log.info("ClusterTrustBundle brought up to date", name=NAME)

    def _create(self, collection: str, spec: dict[str, str]) -> None:
        meta: dict[str, Any] = {"name": NAME}
        owner = self._owner()
        if owner is not None:
            meta["ownerReferences"] = [owner.reference()]
        body = {
            "apiVersion": f"certificates.k8s.io/{self._version}",
            "kind": "ClusterTrustBundle",
            "metadata": meta,
            "spec": spec,
        }
        try:
            self._api.create(collection, body)
        except KubeError as error:
            if error.code is not KubeCode.ALREADY_EXISTS:
                raise
        else:
            self._count("created")
