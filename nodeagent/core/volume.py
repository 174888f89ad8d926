"""What a publish call of the kubelet says: pod facts, token and place of one volume.

Only keys that the kubelet sets itself are read (`csi.storage.k8s.io/...`, which it writes over whatever the
pod's author put into `volumeAttributes`, F-78). Nothing here shows a token in its `repr` or in a message.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from mesh.errors import Category, Code, MeshError

PREFIX: Final = "csi.storage.k8s.io/"
POD_NAME: Final = f"{PREFIX}pod.name"
POD_NAMESPACE: Final = f"{PREFIX}pod.namespace"
POD_UID: Final = f"{PREFIX}pod.uid"
SERVICE_ACCOUNT: Final = f"{PREFIX}serviceAccount.name"
TOKENS: Final = f"{PREFIX}serviceAccount.tokens"
EPHEMERAL: Final = f"{PREFIX}ephemeral"
MAX_PATH: Final = 4096
MAX_TOKEN: Final = 16 * 1024
MAX_TOKENS: Final = 256 * 1024

_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_NAMESPACE = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_UID = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,127}")
_VOLUME_ID = re.compile(r"[\x21-\x7e]{1,128}")
_VOLUME_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_TOKEN = re.compile(r"[\x21-\x7e]+")
_DRIVER_DIRECTORY: Final = ("volumes", "kubernetes.io~csi")
_LEAF: Final = "mount"


class VolumeCode(Code):
    """Why a volume was not published."""

    VOLUME_ID = "csi_volume_id"
    NOT_EPHEMERAL = "csi_not_ephemeral"
    CAPABILITY = "csi_capability"
    WRITABLE = "csi_not_read_only"
    TARGET = "csi_target_path"
    POD_INFO = "csi_pod_info"
    NO_TOKEN = "csi_no_token"  # noqa: S105 - a reason code
    BAD_TOKEN = "csi_bad_token"  # noqa: S105 - a reason code
    NOT_READY = "csi_not_ready"
    UNEXPECTED = "csi_unexpected"


class VolumeError(MeshError):
    """A publish or unpublish call that cannot be done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """One inline volume of one pod.

    Attributes:
        volume_id: the kubelet's; the same for each republish.
        target: the directory that the pod sees.
        name: of the volume in the pod's spec.
    """

    volume_id: str
    target: str
    name: str
    pod_uid: str
    namespace: str
    pod: str
    service_account: str

    @property
    def uid(self) -> str:
        """Uid of the workload: the pod's for the volume that the injector adds, unique for others."""
        return self.pod_uid if self.name == INJECTED_VOLUME else f"{self.pod_uid}/{self.name}"


INJECTED_VOLUME: Final = "gatehouse"


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishRequest:
    """A publish call, free of transport types. Its maps hold tokens: they are never logged."""

    volume_id: str
    target_path: str
    is_mount: bool
    readonly: bool
    context: Mapping[str, str] = field(repr=False)
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)


def _refuse(code: VolumeCode, message: str, category: Category = Category.INVALID_ARGUMENT) -> VolumeError:
    return VolumeError(code, message, category=category)


def check_volume_id(volume_id: str) -> str:
    """The id, when it is one.

    Raises:
        VolumeError: empty, too long, or with other than printable ASCII.
    """
    if not _VOLUME_ID.fullmatch(volume_id):
        raise _refuse(VolumeCode.VOLUME_ID, "volume_id: must be 1 to 128 printable ASCII characters (csi.v1)")
    return volume_id


def target_parts(target_path: str, pods: str) -> tuple[str, ...]:
    """The components of a target path below the kubelet's directory of pods (F-79).

    Raises:
        VolumeError: not absolute, not normal, or not strictly below.
    """
    if not target_path or len(target_path) > MAX_PATH or "\0" in target_path:
        raise _refuse(VolumeCode.TARGET, f"target_path: must be a path of at most {MAX_PATH} characters")
    parts = target_path.split("/")
    if parts[0] or not {"", ".", ".."}.isdisjoint(parts[1:]):
        raise _refuse(VolumeCode.TARGET, "target_path: must be absolute, without '..', '.' or double slashes")
    if not target_path.startswith(f"{pods}/"):
        raise _refuse(
            VolumeCode.TARGET,
            f"target_path: must be below {pods}; if the kubelet has another --root-dir, set"
            " kubernetes.kubelet_dir",
        )
    return tuple(target_path.removeprefix(f"{pods}/").split("/"))


def parse_publish(request: PublishRequest, *, pods: str) -> Volume:
    """The volume that a publish call is about; the token is `token_of`'s business.

    Args:
        pods: the kubelet's directory of pods, e.g. `/var/lib/kubelet/pods`, without a slash at the end.

    Raises:
        VolumeError: with the field, what was found and what to do.
    """
    check_volume_id(request.volume_id)
    parts = target_parts(request.target_path, pods)
    if not request.is_mount:
        raise _refuse(
            VolumeCode.CAPABILITY, "volume_capability: only mount volumes are served, no block devices"
        )
    if request.context.get(EPHEMERAL) != "true":
        raise _refuse(
            VolumeCode.NOT_EPHEMERAL,
            "only inline ephemeral volumes are served: write `csi: {driver: ...}` into the pod, not into a"
            " PersistentVolume",
        )
    if not request.readonly:
        raise _refuse(
            VolumeCode.WRITABLE,
            "the volume must be read-only: set `readOnly: true` in the pod's `csi:` volume, so that"
            " nothing in the pod can replace its socket",
        )
    uid = _fact(request.context, POD_UID, _UID)
    if len(parts) != 5 or parts[0] != uid or parts[1:3] != _DRIVER_DIRECTORY or parts[4] != _LEAF:
        raise _refuse(
            VolumeCode.TARGET,
            f"target_path: must be <pod uid>/volumes/kubernetes.io~csi/<volume>/mount of pod {uid}",
        )
    if not _VOLUME_NAME.fullmatch(parts[3]):
        raise _refuse(VolumeCode.TARGET, "target_path: the volume's name must be a DNS label")
    return Volume(
        volume_id=request.volume_id,
        target=request.target_path,
        name=parts[3],
        pod_uid=uid,
        namespace=_fact(request.context, POD_NAMESPACE, _NAMESPACE),
        pod=_fact(request.context, POD_NAME, _NAME),
        service_account=_fact(request.context, SERVICE_ACCOUNT, _NAME),
    )


def token_of(request: PublishRequest, audience: str) -> str:
    """The pod's token for an audience, from `secrets` or the volume context.

    Raises:
        VolumeError: there is none (F-82), or it is not one token of printable ASCII.
    """
    text = request.secrets.get(TOKENS) or request.context.get(TOKENS)
    if not text:
        raise _refuse(
            VolumeCode.NO_TOKEN,
            "the kubelet sent no token of the pod: static pods have none and cannot be in the mesh; for other"
            " pods check that the CSIDriver object has tokenRequests, and on Kubernetes 1.20 that the"
            " CSIServiceAccountToken feature gate is on",
            Category.FAILED_PRECONDITION,
        )
    entry = _tokens(text).get(audience)
    if not isinstance(entry, dict):
        raise _refuse(
            VolumeCode.NO_TOKEN,
            f"the kubelet sent no token for the audience {audience!r}; add it to tokenRequests of the"
            " CSIDriver object",
            Category.FAILED_PRECONDITION,
        )
    token = entry.get("token")
    if not isinstance(token, str) or len(token) > MAX_TOKEN or not _TOKEN.fullmatch(token):
        raise _refuse(VolumeCode.BAD_TOKEN, f"the token for {audience!r} is not one token of printable ASCII")
    return token


def _tokens(text: str) -> dict[str, Any]:
    if len(text) > MAX_TOKENS:
        raise _refuse(VolumeCode.BAD_TOKEN, f"{TOKENS}: over {MAX_TOKENS} bytes")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise _refuse(VolumeCode.BAD_TOKEN, f"{TOKENS}: not a JSON object of audience to token")
    return found


def _fact(context: Mapping[str, str], key: str, form: re.Pattern[str]) -> str:
    value = context.get(key, "")
    if not value:
        raise _refuse(
            VolumeCode.POD_INFO,
            f"{key} is missing: the CSIDriver object must have podInfoOnMount: true",
            Category.FAILED_PRECONDITION,
        )
    if not form.fullmatch(value):
        raise _refuse(VolumeCode.POD_INFO, f"{key} is not a valid name")
    return value
