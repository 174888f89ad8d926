"""What the test cluster needs from Debian, installed when it is missing."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tests.cluster.run import ClusterError, run

_CNI = Path("/usr/lib/cni/bridge")
_PACKAGES = {
    "buildah": "buildah",
    "conntrack": "conntrack",
    "containerd": "containerd",
    "debootstrap": "debootstrap",
    "etcd": "etcd-server",
    "ip": "iproute2",
    "ipset": "ipset",
    "iptables": "iptables",
    "kubectl": "kubernetes-client",
    "nft": "nftables",
    "runc": "runc",
    "sysctl": "procps",
}
_SYSTEM = ("debian", "bookworm")


def why_not_here() -> str:
    """Why this machine cannot run the cluster; empty when it can."""
    found = release()
    if (found.get("ID"), found.get("VERSION_CODENAME")) != _SYSTEM:
        return "needs Debian 12 (bookworm): its packages, and the last source of a whole Kubernetes (1.20)"
    if os.geteuid() != 0:
        return "needs root: namespaces, mounts, control groups"
    return ""


def release(file: Path = Path("/etc/os-release")) -> dict[str, str]:
    """The names of this system, os-release(5); empty where it does not say."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    pairs = (line.partition("=") for line in lines if "=" in line and not line.startswith("#"))
    return {name: value.strip("\"'") for name, _, value in pairs}


def install(*, extra: tuple[str, ...] = ()) -> None:
    """Install the missing packages.

    Args:
        extra: more packages, installed whether or not they are there.
    """
    missing = sorted({package for program, package in _PACKAGES.items() if not shutil.which(program)})
    if not _CNI.exists():
        missing.append("containernetworking-plugins")
    missing += extra
    if not missing:
        return
    if reason := why_not_here():
        raise ClusterError(f"missing {', '.join(missing)}; {reason}")
    quiet = {"DEBIAN_FRONTEND": "noninteractive"}
    wait = ["-o", "DPkg::Lock::Timeout=300"]
    run(["apt-get", *wait, "update", "-qq"], timeout=300, environment=quiet)
    run(
        ["apt-get", *wait, "install", "-y", "-qq", "--no-install-recommends", *missing],
        timeout=900,
        environment=quiet,
    )
