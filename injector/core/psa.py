"""Pod Security Standards, for what injection adds: would the namespace's own level refuse the pod?

The API server is the judge; this tells the author beforehand, and which field it is. Checked are the
fields that our containers and volumes can have.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from injector.core.podjson import Json

BASELINE, RESTRICTED, PRIVILEGED = "baseline", "restricted", "privileged"

_BASELINE_CAPABILITIES = frozenset(
    {
        "AUDIT_WRITE",
        "CHOWN",
        "DAC_OVERRIDE",
        "FOWNER",
        "FSETID",
        "KILL",
        "MKNOD",
        "NET_BIND_SERVICE",
        "SETFCAP",
        "SETGID",
        "SETPCAP",
        "SETUID",
        "SYS_CHROOT",
    }
)
_RESTRICTED_VOLUMES = frozenset(
    {
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    }
)


def violations(level: str, containers: Sequence[Json], volumes: Iterable[Json] = ()) -> list[str]:
    """What the level forbids, one sentence each; nothing for `privileged` and unknown levels."""
    if level not in {BASELINE, RESTRICTED}:
        return []
    found = []
    for container in containers:
        where = f"container {container['name']}"
        found += [f"{where}: {text}" for text in _baseline(container)]
        if level == RESTRICTED:
            found += [f"{where}: {text}" for text in _restricted(container)]
    for volume in volumes:
        kinds = set(volume) - {"name"}
        if "hostPath" in kinds:
            found.append(f"volume {volume['name']}: hostPath")
        elif level == RESTRICTED and not kinds <= _RESTRICTED_VOLUMES:
            found.append(f"volume {volume['name']}: {', '.join(sorted(kinds))}")
    return found


def _baseline(container: Json) -> list[str]:
    context = container.get("securityContext") or {}
    added = (context.get("capabilities") or {}).get("add") or ()
    found = []
    if context.get("privileged"):
        found.append("privileged")
    found += [f"capability {name}" for name in added if name not in _BASELINE_CAPABILITIES]
    if any(port.get("hostPort") for port in container.get("ports") or ()):
        found.append("hostPort")
    if (context.get("procMount") or "Default") != "Default":
        found.append("procMount")
    if (context.get("seccompProfile") or {}).get("type") == "Unconfined":
        found.append("seccompProfile Unconfined")
    return found


def _restricted(container: Json) -> list[str]:
    context = container.get("securityContext") or {}
    capabilities = context.get("capabilities") or {}
    found = []
    if context.get("allowPrivilegeEscalation") is not False:
        found.append("allowPrivilegeEscalation is not false")
    if not context.get("runAsNonRoot"):
        found.append("runAsNonRoot is not true")
    if context.get("runAsUser") == 0:
        found.append("runAsUser 0")
    if (context.get("seccompProfile") or {}).get("type") not in {"RuntimeDefault", "Localhost"}:
        found.append("no seccompProfile")
    if "ALL" not in (capabilities.get("drop") or ()):
        found.append("capabilities are not dropped")
    found += [
        f"capability {name}"
        for name in capabilities.get("add") or ()
        if name in _BASELINE_CAPABILITIES - {"NET_BIND_SERVICE"}
    ]
    return found
