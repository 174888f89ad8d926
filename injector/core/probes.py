"""The kubelet's probes and hooks, redirected to the proxy and back.

Under STRICT the kubelet cannot speak to the application: it has no identity. Each httpGet, tcpSocket and
grpc handler therefore becomes an httpGet of the proxy's own listener on 15020, which knows what to do
for exactly that path. What was replaced is recorded, so that a pod can be injected again and restored.

Periods and thresholds stay the author's, with one exception: a liveness probe must be able to fail for as
long as Envoy takes to start again, or an Envoy that restarts would cost a healthy application its life.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from injector.core.podjson import Json, without
from mesh import ports
from mesh.envoy.probes import GrpcProbe, HttpProbe, Probe, TcpProbe

PROBES = {"livenessProbe": "livez", "readinessProbe": "readyz", "startupProbe": "startupz"}
HOOKS = {"postStart": "poststartz", "preStop": "prestopz"}
_HANDLERS = ("httpGet", "tcpSocket", "grpc")
_LOOPBACK = re.compile(r"localhost|::1|127\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}", re.IGNORECASE)
_SERVICE = re.compile(r"[\x21-\x7e]{0,200}")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_PATH_CHARACTERS = "/%:@!$&'()*+,;=-._~"
_DEFAULT_PERIOD, _DEFAULT_THRESHOLD = 10, 3
MAX_PATH = 2048


@dataclass(slots=True)
class Rewriting:
    """What came out of rewriting the containers of a pod.

    Attributes:
        liveness_grace: seconds that a rewritten liveness probe may fail at least.
        probes: for the proxy's listener.
        records: path -> what stood there, for the status.
        remarks: what was left alone, or changed beyond the handler, and why.
    """

    liveness_grace: int
    probes: list[Probe] = field(default_factory=list)
    records: dict[str, Json] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def container(self, container: Json) -> Json:
        """The container with its handlers redirected; the same object when there is nothing to do."""
        changed: Json = {}
        for name, suffix in PROBES.items():
            probe = container.get(name) or {}
            path = f"/app-health/{container['name']}/{suffix}"
            rewritten = self._handler(probe, container, path, f"{name} of {container['name']}")
            if rewritten is not None:
                changed[name] = rewritten
                if name == "livenessProbe":
                    self._forgive(changed[name], path, container["name"])
        lifecycle = container.get("lifecycle") or {}
        hooks: Json = {}
        for name, suffix in HOOKS.items():
            handler = lifecycle.get(name) or {}
            path = f"/app-lifecycle/{container['name']}/{suffix}"
            # tcpSocket as a hook was never implemented by any kubelet.
            wanted = handler if handler.get("httpGet") else {}
            rewritten = self._handler(wanted, container, path, f"{name} of {container['name']}", hook=True)
            if rewritten is not None:
                hooks[name] = rewritten
        if hooks:
            changed["lifecycle"] = {**lifecycle, **hooks}
        return {**container, **changed} if changed else container

    def _handler(
        self, probe: Json, container: Json, path: str, what: str, *, hook: bool = False
    ) -> Json | None:
        kind = next((k for k in _HANDLERS if probe.get(k)), None)
        if kind is None:
            return None
        handler: Json = probe[kind]
        port = _port(handler.get("port"), container)
        if port is None:
            self.remarks.append(f"{what} names port {handler.get('port')!r:.40}, which the container lacks")
            return None
        if port in ports.OWN:
            return None
        timeout = 0 if hook else probe.get("timeoutSeconds") or 1
        served = _served(kind, handler, port, path, timeout)
        if served is None:
            where = handler.get("host") or handler.get("service")
            self.remarks.append(f"{what} is left alone: it goes to {where!r:.60}, which is not the pod")
            return None
        self.probes.append(served)
        self.records[path] = {kind: without(handler, "httpHeaders")}
        redirected: Json = {"path": path, "port": ports.PROBE, "scheme": "HTTP"}
        if handler.get("httpHeaders"):
            redirected["httpHeaders"] = handler["httpHeaders"]
        return {**without(probe, kind), "httpGet": redirected}

    def _forgive(self, probe: Json, path: str, name: str) -> None:
        before = probe.get("failureThreshold")
        wanted = _forgiving(probe, before, self.liveness_grace)
        if wanted is not None:
            probe["failureThreshold"] = wanted
            self.records[path]["failureThreshold"] = before
            self.remarks.append(
                f"livenessProbe of {name} may fail {wanted} times ({self.liveness_grace} s):"
                " a restart of the proxy must not restart the application"
            )


def restore(container: Json, records: Mapping[str, Mapping[str, Any]], liveness_grace: int) -> Json:
    """The container as its author wrote it; handlers that others changed since stay as they are."""
    changed: Json = {}
    for name, suffix in PROBES.items():
        probe = container.get(name) or {}
        restored = _restored(probe, f"/app-health/{container['name']}/{suffix}", records)
        if restored is not None:
            changed[name] = restored
            record = records[f"/app-health/{container['name']}/{suffix}"]
            if "failureThreshold" in record:
                _unforgive(restored, record["failureThreshold"], liveness_grace)
    lifecycle = container.get("lifecycle") or {}
    hooks: Json = {}
    for name, suffix in HOOKS.items():
        handler = lifecycle.get(name) or {}
        restored = _restored(handler, f"/app-lifecycle/{container['name']}/{suffix}", records)
        if restored is not None:
            hooks[name] = restored
    if hooks:
        changed["lifecycle"] = {**lifecycle, **hooks}
    return {**container, **changed} if changed else container


def _restored(probe: Json, path: str, records: Mapping[str, Mapping[str, Any]]) -> Json | None:
    current, record = probe.get("httpGet") or {}, records.get(path)
    if record is None or current.get("path") != path or current.get("port") != ports.PROBE:
        return None
    kind = next((k for k in _HANDLERS if isinstance(record.get(k), dict)), None)
    if kind is None:
        return None
    handler = dict(record[kind])
    if kind == "httpGet" and current.get("httpHeaders"):
        handler["httpHeaders"] = current["httpHeaders"]
    return {**without(probe, "httpGet"), kind: handler}


def _unforgive(probe: Json, before: Any, grace: int) -> None:
    """Put the threshold back unless somebody else set another one since."""
    ours = _forgiving(probe, before if type(before) is int else None, grace)
    if probe.get("failureThreshold") != ours:
        return
    if type(before) is int:
        probe["failureThreshold"] = before
    else:
        probe.pop("failureThreshold", None)


def _forgiving(probe: Json, threshold: int | None, grace: int) -> int | None:
    """The threshold that lets a liveness probe fail for `grace` seconds; None when it does so anyway."""
    period = probe.get("periodSeconds") or _DEFAULT_PERIOD
    wanted = -(-grace // period)
    return wanted if wanted > (threshold or _DEFAULT_THRESHOLD) else None


def _served(kind: str, handler: Json, port: int, path: str, timeout: int) -> Probe | None:
    """What the listener does for a handler; None when it cannot do it."""
    host = str(handler.get("host") or "")
    loopback = _loopback(host)
    if host and not loopback:
        return None
    if kind == "tcpSocket":
        return TcpProbe(path=path, port=port, loopback=loopback, timeout_seconds=timeout)
    if kind == "grpc":
        service = handler.get("service") or ""
        if not _SERVICE.fullmatch(service):
            return None
        return GrpcProbe(path=path, port=port, service=service, timeout_seconds=timeout)
    names = [str(header.get("name")).lower() for header in handler.get("httpHeaders") or ()]
    sends_host: str | None = f"[{host}]:{port}" if ":" in host else f"{host}:{port}" if host else ""
    return HttpProbe(
        path=path,
        port=port,
        target=_target(str(handler.get("path") or "/")),
        tls=handler.get("scheme") == "HTTPS",
        loopback=loopback,
        host=None if "host" in names else sends_host,
        timeout_seconds=timeout,
    )


def _loopback(host: str) -> str:
    if not _LOOPBACK.fullmatch(host):
        return ""
    return "::1" if host == "::1" else "127.0.0.1"


def _target(path: str) -> str:
    """What the kubelet would send for a path (Go's net/url): escaped once, without a fragment."""
    path, _, _ = path[:MAX_PATH].partition("#")
    path, mark, query = path.partition("?")
    if _BAD_ESCAPE.search(path):
        path = path.replace("%", "%25")
    path = quote(path, safe=_PATH_CHARACTERS)
    return (
        (path if path.startswith("/") else f"/{path}") + mark + quote(query, safe=_PATH_CHARACTERS + "?[]|")
    )


def _port(value: Any, container: Json) -> int | None:
    """The number of a port, which may be the name of one of the container's ports."""
    if type(value) is str:
        for port in container.get("ports") or ():
            if port.get("name") == value:
                value = port.get("containerPort")
                break
        else:
            value = int(value) if re.fullmatch(r"[0-9]{1,5}", value) else None
    return value if type(value) is int and 0 < value < 65536 else None
