"""One key of a ConfigMap that upkeep's leader writes and others watch."""

from __future__ import annotations

from typing import Any, Final

from mesh.kube.api import KubeApi, KubeCode, KubeError, PatchType

_LABELS: Final = {"app": "gatehouse"}


class PublishedText:
    """Reads and writes; the ConfigMap is made when it is missing.

    Args:
        key: in `data`.
    """

    def __init__(self, api: KubeApi, *, namespace: str, name: str, key: str) -> None:
        self._api = api
        self._collection = f"/api/v1/namespaces/{namespace}/configmaps"
        self._namespace, self._name, self._key = namespace, name, key

    def read(self) -> str:
        """What is published; empty when nothing is.

        Raises:
            KubeError: no answer, or not allowed.
        """
        try:
            found = self._api.get(f"{self._collection}/{self._name}")
        except KubeError as error:
            if error.code is KubeCode.NOT_FOUND:
                return ""
            raise
        return str((found.get("data") or {}).get(self._key, ""))

    def write(self, text: str) -> None:
        """Publish.

        Raises:
            KubeError: no answer, or not allowed.
        """
        data = {self._key: text}
        try:
            patch = {"data": data, "metadata": {"labels": _LABELS}}
            self._api.patch(f"{self._collection}/{self._name}", patch, PatchType.MERGE)
        except KubeError as error:
            if error.code is not KubeCode.NOT_FOUND:
                raise
            body: dict[str, Any] = {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": self._name, "namespace": self._namespace, "labels": _LABELS},
                "data": data,
            }
            self._api.create(self._collection, body)
