"""What makes a pod unfit for a sidecar: clashes of users, names, ports and bounds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from injector.core import podjson
from injector.core.containers import VOLUME, volume
from injector.core.decision import INIT, PROXY, VALIDATION
from injector.core.keys import SIDECAR
from injector.core.options import PodOptions
from injector.core.overrides import mount_problems
from injector.core.podjson import Json
from injector.core.settings import Ceilings
from injector.core.values import amount
from mesh import ports

_VOLUME_SOURCES = frozenset(
    {"configMap", "csi", "downwardAPI", "emptyDir", "persistentVolumeClaim", "projected", "secret"}
)


def uid_clash(pod: Mapping[str, Any], uid: int) -> str:
    """A sentence when an application's process would have the proxy's user: it would not be captured."""
    return _clash(pod, "runAsUser", uid, "what this user sends is not captured")


def gid_clash(pod: Mapping[str, Any], gid: int) -> str:
    """A sentence when an application's process would have the proxy's primary group."""
    return _clash(pod, "runAsGroup", gid, "this group is the proxy's own")


def _clash(pod: Mapping[str, Any], field: str, number: int, why: str) -> str:
    for where, context in _contexts(pod):
        if context.get(field) == number:
            return f"{where}.{field} is {number}, the proxy's: {why}; next: choose another number"
    return ""


def _contexts(pod: Mapping[str, Any]) -> Iterator[tuple[str, Json]]:
    yield "spec.securityContext", podjson.spec(pod).get("securityContext") or {}
    for kind in ("containers", "initContainers"):
        for container in podjson.listed(pod, kind):
            yield f"container {container['name']}: securityContext", container.get("securityContext") or {}


def collisions(pod: Mapping[str, Any], options: PodOptions) -> list[str]:
    """Names and ports of the pod's own that are the mesh's."""
    problems = []
    containers = [c for kind in ("containers", "initContainers") for c in podjson.listed(pod, kind)]
    if not podjson.listed(pod, "containers"):
        problems.append("the pod has no container of its own; next: add one, or leave the pod out")
    problems += [
        f"container name {container['name']} belongs to the mesh; next: rename it"
        for container in containers
        if container["name"] in {INIT, VALIDATION}
    ]
    reserved = ", ".join(map(str, ports.RESERVED))
    problems += [
        f"container {container['name']}: port {port['containerPort']} belongs to the proxy;"
        f" next: choose another (the mesh has {reserved})"
        for container in containers
        for port in container.get("ports") or ()
        if port.get("containerPort") in ports.RESERVED
    ]
    names = {v["name"] for v in podjson.listed(pod, "volumes")}
    own = podjson.named(podjson.listed(pod, "volumes"), VOLUME)
    if own is not None and own != volume():
        problems.append(f"volume name {VOLUME} belongs to the mesh; next: rename it")
    problems += [
        f"{SIDECAR}userVolume: the pod has a volume {name!r} already; next: rename one of them"
        for name in sorted(names & set(options.user_volumes))
    ]
    return problems


def user_volumes(pod: Mapping[str, Any], options: PodOptions) -> list[str]:
    """What is wrong with the volumes and mounts that annotations ask for."""
    problems = []
    for name, source in options.user_volumes.items():
        kinds = sorted(set(source))
        if len(kinds) != 1 or kinds[0] not in _VOLUME_SOURCES or not isinstance(source[kinds[0]], dict):
            allowed = ", ".join(sorted(_VOLUME_SOURCES))
            problems.append(f"{SIDECAR}userVolume: {name!r} needs exactly one source of: {allowed}")
    known = {v["name"] for v in podjson.listed(pod, "volumes")} | set(options.user_volumes)
    paths: set[str] = set()
    for name, mount in options.user_volume_mounts.items():
        field = f"{SIDECAR}userVolumeMount[{name}]"
        problems += mount_problems(dict(mount), field)
        if name not in known:
            problems.append(f"{field}: mounts volume {name!r}, which neither the pod nor userVolume declares")
        path = str(mount.get("mountPath")).rstrip("/")
        if path in paths:
            problems.append(f"{field}: two mounts have the path {path!r:.80}")
        paths.add(path)
    return problems


def bounds(options: PodOptions, ceilings: Ceilings) -> list[str]:
    """What options ask for beyond the ceilings of the mesh."""
    problems = []
    for what, ceiling, request, limit in (
        ("CPU", ceilings.cpu, options.proxy_cpu, options.proxy_cpu_limit),
        ("Memory", ceilings.memory, options.proxy_memory, options.proxy_memory_limit),
    ):
        if not ceiling:
            continue
        top = amount(ceiling)
        if amount(request) > top:
            problems.append(f"{SIDECAR}proxy{what} is {request}; at most {ceiling} is allowed")
        if amount(limit) > top or not amount(limit):
            problems.append(f"{SIDECAR}proxy{what}Limit is {limit}; at most {ceiling} is allowed")
    image = options.proxy_image
    if image and ceilings.image_prefixes and not image.startswith(ceilings.image_prefixes):
        allowed = ", ".join(ceilings.image_prefixes)
        problems.append(f"{SIDECAR}proxyImage is {image:.80}; allowed are images below {allowed}")
    if options.termination_delay is not None and options.termination_delay > ceilings.termination_delay:
        problems.append(
            f"{SIDECAR}terminationDelaySeconds is {options.termination_delay}; at most"
            f" {ceilings.termination_delay} is allowed"
        )
    return problems


def termination(options: PodOptions, grace_seconds: int, *, native: bool) -> list[str]:
    """A delay that the kubelet would cut short."""
    delay = options.termination_delay
    if native or delay is None or delay <= grace_seconds:
        return []
    text = (
        f"{SIDECAR}terminationDelaySeconds is {delay}, but the kubelet kills the pod after"
        f" {grace_seconds} s; next: raise terminationGracePeriodSeconds"
    )
    return [text]


def rendered(proxy: Json) -> list[str]:
    """What only the finished container can tell."""
    problems = []
    found = proxy["resources"]
    for name, request in found["requests"].items():
        limit = found["limits"].get(name)
        if limit is not None and amount(str(limit)) and amount(str(request)) > amount(str(limit)):
            problems.append(f"container {PROXY}: {name} request {request} is above the limit {limit}")
    paths = [str(mount.get("mountPath")).rstrip("/") for mount in proxy["volumeMounts"]]
    twice = sorted({path for path in paths if paths.count(path) > 1})
    return problems + [f"container {PROXY}: two volumes are mounted at {path!r:.80}" for path in twice]
