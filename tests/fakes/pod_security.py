"""Pod Security Standards, level `restricted`, for a whole pod: every control of the Kubernetes documentation.

An own reading of it, beside `injector.core.psa`, which looks at what injection adds only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_VOLUMES = frozenset(
    (
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    )
)
_SYSCTLS = {
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
}
_SELINUX = {None, "", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}


def restricted(pod: Mapping[str, Any]) -> list[str]:
    """What the level forbids in this pod."""
    return [f"{where}: {what}" for where, what in _found(pod["spec"], pod.get("metadata") or {})]


def _found(spec: Mapping[str, Any], meta: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    annotations = meta.get("annotations") or {}
    outer = spec.get("securityContext") or {}
    checks = {
        **{field: spec.get(field) for field in ("hostNetwork", "hostPID", "hostIPC")},
        "volumes": any(not set(v) - {"name"} <= _VOLUMES for v in spec.get("volumes") or ()),
        "sysctls": any(sysctl["name"] not in _SYSCTLS for sysctl in outer.get("sysctls") or ()),
        "AppArmor": any(
            key.startswith("container.apparmor.security.beta.kubernetes.io/") and value == "unconfined"
            for key, value in annotations.items()
        ),
    }
    yield from (("pod", what) for what, wrong in checks.items() if wrong)
    for kind in ("initContainers", "containers", "ephemeralContainers"):
        for container in spec.get(kind) or ():
            yield from ((f"container {container['name']}", what) for what in _container(container, outer))


def _container(container: Mapping[str, Any], outer: Mapping[str, Any]) -> Iterator[str]:
    own = container.get("securityContext") or {}
    both = {**outer, **own}
    capabilities = own.get("capabilities") or {}
    linux = both.get("seLinuxOptions") or {}
    probes = [container.get(name) or {} for name in ("livenessProbe", "readinessProbe", "startupProbe")]
    checks = {
        "privileged": own.get("privileged"),
        "allowPrivilegeEscalation": own.get("allowPrivilegeEscalation") is not False,
        "capabilities are not dropped": "ALL" not in (capabilities.get("drop") or ()),
        "capabilities are added": set(capabilities.get("add") or ()) - {"NET_BIND_SERVICE"},
        "runAsNonRoot": both.get("runAsNonRoot") is not True,
        "runAsUser": both.get("runAsUser") == 0,
        "seccompProfile": (both.get("seccompProfile") or {}).get("type")
        not in {"RuntimeDefault", "Localhost"},
        "procMount": (own.get("procMount") or "Default") != "Default",
        "appArmorProfile": (both.get("appArmorProfile") or {}).get("type") == "Unconfined",
        "seLinuxOptions": linux.get("type") not in _SELINUX or linux.get("user") or linux.get("role"),
        "hostProcess": (both.get("windowsOptions") or {}).get("hostProcess"),
        "hostPort": any(port.get("hostPort") for port in container.get("ports") or ()),
        "probe of another host": any(
            (p.get(k) or {}).get("host") for p in probes for k in ("httpGet", "tcpSocket")
        ),
    }
    yield from (what for what, wrong in checks.items() if wrong)
