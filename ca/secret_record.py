"""Traces of a root outside of the Secret: the record, a ConfigMap of its name, and the published roots.

The record is written after the Secret, so whoever sees it sees the Secret too, unless that was lost (G-05).
Other keys of that ConfigMap and its annotations belong to others.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Mapping
from typing import Any, Final

from ca.keystore import KeyStoreCode, KeyStoreError
from ca.secret_files import ROOT_CERT, SecretPlace
from mesh.kube.api import KubeApi, KubeCode, KubeError

DIGEST_KEY: Final = "root-sha256"
TIME_KEY: Final = "recorded"


def get(api: KubeApi, path: str) -> Mapping[str, Any] | None:
    """An object; None when it is not there.

    Raises:
        KubeError: no answer.
    """
    try:
        found = api.get(path)
    except KubeError as e:
        if e.code is KubeCode.NOT_FOUND:
            return None
        raise
    return found if isinstance(found, dict) else {}


def trace(api: KubeApi, place: SecretPlace) -> str:
    """What tells of an earlier root; empty when nothing does."""
    record = get(api, place.config_map)
    if record is not None and (record.get("data") or {}).get(DIGEST_KEY):
        return f"ConfigMap {place.namespace}/{place.name}"
    published = get(api, f"{place.config_maps}/{place.root_config_map}")
    if published is not None and (published.get("data") or {}).get(ROOT_CERT):
        return f"ConfigMap {place.namespace}/{place.root_config_map}"
    return ""


def lost(place: SecretPlace, found: str) -> KeyStoreError:
    """The refusal to make a second root; `found` is from `trace`."""
    return KeyStoreError(
        KeyStoreCode.ROOT_LOST,
        f"Secret {place.namespace}/{place.name} is not there, but {found} says that there was a root: a new"
        " one would split the mesh; restore the Secret, or, to begin anew on purpose, set"
        " cluster.force_new_root once and restart every pod with a sidecar",
    )


def digest(root_der: bytes) -> str:
    """What the record says of a root: SHA-256 of its DER, lower-case hexadecimal."""
    return hashlib.sha256(root_der).hexdigest()


def stamped(data: Mapping[str, str], root_der: bytes, now: dt.datetime) -> dict[str, str]:
    """The record's data with the trace of this root, and everything else as it was."""
    if data.get(DIGEST_KEY) == digest(root_der):
        return dict(data)
    recorded = now.astimezone(dt.UTC).isoformat(timespec="seconds")
    return {**data, DIGEST_KEY: digest(root_der), TIME_KEY: recorded}


def write(api: KubeApi, place: SecretPlace, root_der: bytes, now: dt.datetime) -> bool:
    """Leave a trace of the signing root; one that is there is brought up to date.

    Returns:
        False when somebody else changed the record meanwhile: look again.

    Raises:
        KubeError: no answer, or not allowed.
    """
    found = get(api, place.config_map)
    held = (found or {}).get("data") or {}
    data = stamped(held, root_der, now)
    try:
        if found is None:
            meta = {"name": place.name, "namespace": place.namespace}
            body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": data}
            api.create(place.config_maps, body)
        elif data != held:
            api.replace(place.config_map, {**found, "data": data})
    except KubeError as e:
        if e.code not in {KubeCode.ALREADY_EXISTS, KubeCode.CONFLICT}:
            raise
        return False
    return True
