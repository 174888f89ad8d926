"""Every option a pod or its namespace can set, declared once: key, type, default, meaning.

The table drives parsing, validation, the namespace-level defaults and the reference page.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from injector.core import capture, values
from injector.core.capture import PortRange
from injector.core.keys import READINESS, SIDECAR, TRAFFIC


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
    concurrency: int | None = None  # None: one thread for each CPU of the limit
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
    scrape_targets: tuple[values.ScrapeTarget, ...] = ()
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


_UINT = values.integer(0, 86400)

OPTIONS: tuple[Option, ...] = (
    Option(
        SIDECAR + "nativeSidecar",
        "native_sidecar",
        values.boolean,
        "bool",
        "run the proxy as a native sidecar (Kubernetes 1.29 and newer) or as an ordinary container",
    ),
    Option(
        SIDECAR + "proxyImage", "proxy_image", values.image, "image", "image of istio-proxy and istio-init"
    ),
    Option(SIDECAR + "proxyCPU", "proxy_cpu", values.quantity, "quantity", "CPU request of the proxy"),
    Option(
        SIDECAR + "proxyMemory", "proxy_memory", values.quantity, "quantity", "memory request of the proxy"
    ),
    Option(
        SIDECAR + "proxyCPULimit", "proxy_cpu_limit", values.quantity, "quantity", "CPU limit of the proxy"
    ),
    Option(
        SIDECAR + "proxyMemoryLimit",
        "proxy_memory_limit",
        values.quantity,
        "quantity",
        "memory limit of the proxy",
    ),
    Option(
        SIDECAR + "concurrency", "concurrency", values.integer(1, 64), "1 to 64", "worker threads of Envoy"
    ),
    Option(
        SIDECAR + "interceptionMode",
        "interception",
        _interception,
        "REDIRECT, NONE",
        "redirect the pod's traffic to the proxy, or leave it alone",
    ),
    Option(SIDECAR + "logLevel", "log_level", values.log_level, "level", "Envoy's log level"),
    Option(
        SIDECAR + "componentLogLevel",
        "component_log_level",
        values.component_levels,
        "component:level,…",
        "Envoy's log level by component",
    ),
    Option(
        SIDECAR + "userVolume",
        "user_volumes",
        values.named_objects,
        "JSON",
        "volumes to add to the pod",
        namespaced=False,
    ),
    Option(
        SIDECAR + "userVolumeMount",
        "user_volume_mounts",
        values.named_objects,
        "JSON",
        "mounts of those volumes in the proxy",
        namespaced=False,
    ),
    Option(
        SIDECAR + "rewriteAppHTTPProbers",
        "rewrite_probes",
        values.boolean,
        "bool",
        "let the proxy answer the kubelet's probes, which have no identity under STRICT",
    ),
    Option(
        SIDECAR + "holdApplicationUntilProxyStarts",
        "hold_application",
        values.boolean,
        "bool",
        "classic mode: start the application's containers after the proxy is ready",
    ),
    Option(
        SIDECAR + "terminationDelaySeconds",
        "termination_delay",
        values.integer(0, 3600),
        "seconds",
        "classic mode: how long the proxy outlives the beginning of termination",
    ),
    Option(
        SIDECAR + "statsInclusionPrefixes",
        "stats_prefixes",
        values.words,
        "list",
        "Envoy statistics to keep beside the usual ones, by prefix",
    ),
    Option(
        SIDECAR + "statsInclusionSuffixes",
        "stats_suffixes",
        values.words,
        "list",
        "Envoy statistics to keep beside the usual ones, by suffix",
    ),
    Option(
        READINESS + "initialDelaySeconds",
        "readiness_initial_delay",
        _UINT,
        "seconds",
        "readiness probe of the proxy",
    ),
    Option(
        READINESS + "periodSeconds",
        "readiness_period",
        values.integer(1, 3600),
        "seconds",
        "readiness probe of the proxy",
    ),
    Option(
        READINESS + "failureThreshold",
        "readiness_failure_threshold",
        values.integer(1, 1000),
        "count",
        "readiness probe of the proxy",
    ),
    Option(
        TRAFFIC + "includeInboundPorts",
        "include_inbound",
        capture.parse_ports,
        "ports or *",
        "inbound ports to capture",
    ),
    Option(
        TRAFFIC + "excludeInboundPorts", "exclude_inbound", _ports, "ports", "inbound ports to leave alone"
    ),
    Option(
        TRAFFIC + "includeOutboundIPRanges",
        "include_outbound_cidrs",
        capture.parse_cidrs,
        "CIDRs or *",
        "destinations to capture",
    ),
    Option(
        TRAFFIC + "excludeOutboundIPRanges",
        "exclude_outbound_cidrs",
        _cidrs,
        "CIDRs",
        "destinations to leave alone",
    ),
    Option(
        TRAFFIC + "includeOutboundPorts",
        "include_outbound_ports",
        _ports,
        "ports",
        "destination ports to capture whatever the address",
    ),
    Option(
        TRAFFIC + "excludeOutboundPorts",
        "exclude_outbound_ports",
        _ports,
        "ports",
        "destination ports to leave alone",
    ),
    Option(
        TRAFFIC + "excludeInterfaces",
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
        TRAFFIC + "kubevirtInterfaces",
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
        "point Prometheus at the proxy, which serves its own metrics and the application's together",
    ),
    Option(
        "prometheus.istio.io/scrape-targets",
        "scrape_targets",
        values.scrape_targets,
        "port:path,…",
        "metrics of the application, where one prometheus.io/port is not enough",
        namespaced=False,
    ),
)

BY_KEY: Mapping[str, Option] = {option.key: option for option in OPTIONS}

REFUSED: Mapping[str, str] = {
    "prometheus.istio.io/secure-port": "there is no scrape over TLS; 15020 serves metrics in plaintext",
    "inject.istio.io/templates": "templates are not supported; set options or declare istio-proxy",
    "proxy.istio.io/config": "configuration as YAML is not supported; set sidecar.istio.io/ options",
    SIDECAR + "bootstrapOverride": "the bootstrap cannot be overridden: it is the pod's security boundary",
    SIDECAR + "capNetBindService": "not needed: the proxy binds no port below 1024",
    SIDECAR + "proxyImageType": "there is one image type; use sidecar.istio.io/proxyImage",
    SIDECAR + "agentLogLevel": "there is no agent in the pod; use sidecar.istio.io/logLevel",
    "status.sidecar.istio.io/port": "the readiness port is 15021 and cannot be moved",
    READINESS + "applicationPorts": "not used any more; the proxy is ready when its listeners are",
}
