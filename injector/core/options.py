"""Every option a pod or its namespace can set, declared once: key, type, default, meaning.

The table drives parsing, validation, the namespace-level defaults and the reference page. All
errors of a pod are reported at once. An unknown key under one of our prefixes is an error with the
nearest known key: a misspelt annotation must not silently mean "default".
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from injector.core import capture, values
from injector.core.capture import CaptureError, PortRange
from mesh.errors import MeshError


class InterceptionMode(enum.Enum):
    """How the pod's traffic reaches the proxy."""

    REDIRECT = "REDIRECT"
    NONE = "NONE"


@dataclass(frozen=True, slots=True, kw_only=True)
class PodOptions:
    """The effective options of one pod: annotation of the pod, else of the namespace, else the mesh."""

    native_sidecar: bool | None = None  # None: as the cluster can
    proxy_image: str = ""
    proxy_cpu: str = "100m"
    proxy_memory: str = "128Mi"
    proxy_cpu_limit: str = "2"
    proxy_memory_limit: str = "1Gi"
    concurrency: int = 2
    interception: InterceptionMode = InterceptionMode.REDIRECT
    log_level: str = "warning"
    component_log_level: str = ""
    user_volumes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    user_volume_mounts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    rewrite_probes: bool = True
    hold_application: bool = True
    readiness_initial_delay: int = 0
    readiness_period: int = 15
    readiness_failure_threshold: int = 4
    include_inbound: tuple[PortRange, ...] | None = None
    exclude_inbound: tuple[PortRange, ...] = ()
    include_outbound_cidrs: tuple[str, ...] | None = None
    exclude_outbound_cidrs: tuple[str, ...] = ()
    include_outbound_ports: tuple[PortRange, ...] = ()
    exclude_outbound_ports: tuple[PortRange, ...] = ()
    exclude_interfaces: tuple[str, ...] = ()
    reroute_interfaces: tuple[str, ...] = ()
    merge_metrics: bool = True
    termination_delay: int | None = None  # seconds; None: from terminationGracePeriodSeconds
    stats_prefixes: tuple[str, ...] = ()
    stats_suffixes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Option:
    """One annotation key.

    Attributes:
        field: of `PodOptions`.
        parse: raises ValueError or CaptureError with what is allowed.
        kind: type as the reference page shows it.
        namespaced: may stand on the namespace as a default for its pods.
    """

    key: str
    field: str
    parse: Callable[[str], Any]
    kind: str
    meaning: str
    namespaced: bool = True


@dataclass(frozen=True, slots=True)
class OptionProblem:
    """One bad option, as it is told to the author of the pod."""

    key: str
    value: str
    message: str

    def __str__(self) -> str:
        return f"invalid value {self.value[:60]!r} for annotation {self.key!r}: {self.message}"


def _interception(text: str) -> InterceptionMode:
    if text == "TPROXY":
        raise ValueError("TPROXY is not supported yet; use REDIRECT, or NONE to capture nothing")
    try:
        return InterceptionMode(text)
    except ValueError:
        raise ValueError("expected REDIRECT or NONE") from None


def _ports(text: str) -> tuple[PortRange, ...]:
    parsed = capture.parse_ports(text)
    if parsed is None:
        raise ValueError("'*' is not allowed here; list ports and ranges")
    return parsed


def _cidrs(text: str) -> tuple[str, ...]:
    parsed = capture.parse_cidrs(text)
    if parsed is None:
        raise ValueError("'*' is not allowed here; list CIDR blocks")
    return parsed


_SIDECAR, _TRAFFIC = "sidecar.istio.io/", "traffic.sidecar.istio.io/"
_READINESS = "readiness.status.sidecar.istio.io/"
_UINT = values.integer(0, 86400)

OPTIONS: tuple[Option, ...] = (
    Option(
        _SIDECAR + "nativeSidecar",
        "native_sidecar",
        values.boolean,
        "bool",
        "run the proxy as a native sidecar (Kubernetes 1.29 and newer) or as an ordinary container",
    ),
    Option(
        _SIDECAR + "proxyImage", "proxy_image", values.image, "image", "image of istio-proxy and istio-init"
    ),
    Option(_SIDECAR + "proxyCPU", "proxy_cpu", values.quantity, "quantity", "CPU request of the proxy"),
    Option(
        _SIDECAR + "proxyMemory", "proxy_memory", values.quantity, "quantity", "memory request of the proxy"
    ),
    Option(
        _SIDECAR + "proxyCPULimit", "proxy_cpu_limit", values.quantity, "quantity", "CPU limit of the proxy"
    ),
    Option(
        _SIDECAR + "proxyMemoryLimit",
        "proxy_memory_limit",
        values.quantity,
        "quantity",
        "memory limit of the proxy",
    ),
    Option(
        _SIDECAR + "concurrency", "concurrency", values.integer(1, 64), "1 to 64", "worker threads of Envoy"
    ),
    Option(
        _SIDECAR + "interceptionMode",
        "interception",
        _interception,
        "REDIRECT, NONE",
        "redirect the pod's traffic to the proxy, or leave it alone",
    ),
    Option(_SIDECAR + "logLevel", "log_level", values.log_level, "level", "Envoy's log level"),
    Option(
        _SIDECAR + "componentLogLevel",
        "component_log_level",
        values.component_levels,
        "component:level,…",
        "Envoy's log level by component",
    ),
    Option(
        _SIDECAR + "userVolume",
        "user_volumes",
        values.named_objects,
        "JSON",
        "volumes to add to the pod",
        namespaced=False,
    ),
    Option(
        _SIDECAR + "userVolumeMount",
        "user_volume_mounts",
        values.named_objects,
        "JSON",
        "mounts of those volumes in the proxy",
        namespaced=False,
    ),
    Option(
        _SIDECAR + "rewriteAppHTTPProbers",
        "rewrite_probes",
        values.boolean,
        "bool",
        "let the proxy answer the kubelet's probes, which have no identity under STRICT",
    ),
    Option(
        _SIDECAR + "holdApplicationUntilProxyStarts",
        "hold_application",
        values.boolean,
        "bool",
        "classic mode: start the application's containers after the proxy is ready",
    ),
    Option(
        _SIDECAR + "terminationDelaySeconds",
        "termination_delay",
        values.integer(0, 3600),
        "seconds",
        "classic mode: how long the proxy outlives the beginning of termination",
    ),
    Option(
        _SIDECAR + "statsInclusionPrefixes",
        "stats_prefixes",
        values.words,
        "list",
        "Envoy statistics to keep beside the usual ones, by prefix",
    ),
    Option(
        _SIDECAR + "statsInclusionSuffixes",
        "stats_suffixes",
        values.words,
        "list",
        "Envoy statistics to keep beside the usual ones, by suffix",
    ),
    Option(
        _READINESS + "initialDelaySeconds",
        "readiness_initial_delay",
        _UINT,
        "seconds",
        "readiness probe of the proxy",
    ),
    Option(
        _READINESS + "periodSeconds",
        "readiness_period",
        values.integer(1, 3600),
        "seconds",
        "readiness probe of the proxy",
    ),
    Option(
        _READINESS + "failureThreshold",
        "readiness_failure_threshold",
        values.integer(1, 1000),
        "count",
        "readiness probe of the proxy",
    ),
    Option(
        _TRAFFIC + "includeInboundPorts",
        "include_inbound",
        capture.parse_ports,
        "ports or *",
        "inbound ports to capture",
    ),
    Option(
        _TRAFFIC + "excludeInboundPorts", "exclude_inbound", _ports, "ports", "inbound ports to leave alone"
    ),
    Option(
        _TRAFFIC + "includeOutboundIPRanges",
        "include_outbound_cidrs",
        capture.parse_cidrs,
        "CIDRs or *",
        "destinations to capture",
    ),
    Option(
        _TRAFFIC + "excludeOutboundIPRanges",
        "exclude_outbound_cidrs",
        _cidrs,
        "CIDRs",
        "destinations to leave alone",
    ),
    Option(
        _TRAFFIC + "includeOutboundPorts",
        "include_outbound_ports",
        _ports,
        "ports",
        "destination ports to capture whatever the address",
    ),
    Option(
        _TRAFFIC + "excludeOutboundPorts",
        "exclude_outbound_ports",
        _ports,
        "ports",
        "destination ports to leave alone",
    ),
    Option(
        _TRAFFIC + "excludeInterfaces",
        "exclude_interfaces",
        capture.parse_interfaces,
        "interfaces",
        "network interfaces to leave alone",
    ),
    Option(
        "istio.io/reroute-virtual-interfaces",
        "reroute_interfaces",
        capture.parse_interfaces,
        "interfaces",
        "interfaces of virtual machines, whose traffic is outbound",
    ),
    Option(
        _TRAFFIC + "kubevirtInterfaces",
        "reroute_interfaces",
        capture.parse_interfaces,
        "interfaces",
        "old name of istio.io/reroute-virtual-interfaces",
    ),
    Option(
        "prometheus.istio.io/merge-metrics",
        "merge_metrics",
        values.boolean,
        "bool",
        "point Prometheus at the proxy, which serves its own metrics and forwards the application's",
    ),
)

BY_KEY: Mapping[str, Option] = {option.key: option for option in OPTIONS}

INJECT, STATUS, OVERRIDES = _SIDECAR + "inject", _SIDECAR + "status", "proxy.istio.io/overrides"
_OURS = (_SIDECAR, _TRAFFIC, _READINESS, "status.sidecar.istio.io/", "proxy.istio.io/", "inject.istio.io/")
_WRITTEN = frozenset({INJECT, STATUS, OVERRIDES})
_REFUSED: Mapping[str, str] = {
    "inject.istio.io/templates": "templates are not supported; set options or declare istio-proxy",
    "proxy.istio.io/config": "configuration as YAML is not supported; set sidecar.istio.io/ options",
    _SIDECAR + "bootstrapOverride": "the bootstrap cannot be overridden: it is the pod's security boundary",
    _SIDECAR + "capNetBindService": "not needed: the proxy binds no port below 1024",
    _SIDECAR + "proxyImageType": "there is one image type; use sidecar.istio.io/proxyImage",
    _SIDECAR + "agentLogLevel": "there is no agent in the pod; use sidecar.istio.io/logLevel",
    "status.sidecar.istio.io/port": "the readiness port is 15021 and cannot be moved",
    _READINESS + "applicationPorts": "not used any more; the proxy is ready when its listeners are",
}


def resolve_options(
    pod: Mapping[str, str], namespace: Mapping[str, str], defaults: PodOptions
) -> tuple[PodOptions, tuple[OptionProblem, ...]]:
    """Effective options of a pod, and everything that is wrong with its annotations.

    Args:
        pod: annotations of the pod.
        namespace: annotations of its namespace: defaults for every option that allows it. A bad one
            is the namespace's problem and is reported like the pod's.
        defaults: of the mesh.
    """
    problems: list[OptionProblem] = []
    found: dict[str, Any] = {}
    for owner, on_pod in ((namespace, False), (pod, True)):
        for key in sorted(owner):
            option, value = BY_KEY.get(key), owner[key]
            if option is None:
                problem = _unknown(key, value) if on_pod else None
            elif not on_pod and not option.namespaced:
                problem = OptionProblem(key, value, "allowed on pods only, not on a namespace")
            else:
                problem = _take(option, value, found)
            if problem:
                problems.append(problem)
    options = dataclasses.replace(defaults, **found)
    return options, (*problems, *_together(options))


def _take(option: Option, value: str, found: dict[str, Any]) -> OptionProblem | None:
    try:
        found[option.field] = option.parse(value)
    except (ValueError, CaptureError) as error:
        message = error.public if isinstance(error, MeshError) else str(error)
        return OptionProblem(option.key, value, message)
    return None


def _unknown(key: str, value: str) -> OptionProblem | None:
    if key in _REFUSED:
        return OptionProblem(key, value, _REFUSED[key])
    if key in _WRITTEN or not key.startswith(_OURS):
        return None
    near = difflib.get_close_matches(key, [*BY_KEY, INJECT], n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "; docs/annotations.md lists them all"
    return OptionProblem(key, value, "unknown annotation" + hint)


def _together(options: PodOptions) -> list[OptionProblem]:
    """Checks that need two options."""
    problems = []
    for what, request, limit in (
        ("CPU", options.proxy_cpu, options.proxy_cpu_limit),
        ("Memory", options.proxy_memory, options.proxy_memory_limit),
    ):
        if values.amount(request) > values.amount(limit):
            key = f"{_SIDECAR}proxy{what}"
            problems.append(OptionProblem(key, request, f"request is above the limit {limit} ({key}Limit)"))
    for name in options.user_volume_mounts:
        if name not in options.user_volumes:
            key = _SIDECAR + "userVolumeMount"
            problems.append(
                OptionProblem(
                    key, name, f"mounts volume {name!r}, which {_SIDECAR}userVolume does not declare"
                )
            )
    return problems
