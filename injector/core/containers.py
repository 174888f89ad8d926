"""The two containers of the mesh, as plain data.

Every field that the API server would fill in is written out, so that a pod that comes back from it
still equals what is rendered.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from injector.core.bootstrap import POD_VARIABLES, SOCKET_DIRECTORY, Shape, bootstrap_argument, escape
from injector.core.capture import CaptureConfig
from injector.core.decision import INIT, PROXY, VALIDATION, VALIDATION_COMMAND
from injector.core.options import PodOptions
from injector.core.podjson import Json
from injector.core.settings import InjectorSettings
from injector.core.values import amount
from mesh import ports
from mesh.envoy.bootstrap import READY_PATH, envoy_arguments
from mesh.envoy.probes import PRESTOP_PATH

VOLUME = "gatehouse"
CSI_DRIVER = "csi.gatehouse.dev"
STARTUP_FAILURES = 600
"""Seconds that a native sidecar may take to start: an agent that is away must not fail the pod."""

VALIDATION_VARIABLES = {"POD_IPS": "status.podIPs", "NODE_NAME": "spec.nodeName"}
"""Environment variables of `istio-validation` and the fields of the pod that they come from."""

_MAX_CONCURRENCY = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How the sidecar of one pod is run.

    Attributes:
        proxy_uid: user and group of the proxy.
        native: an init container that keeps running, else an ordinary container.
        hold: classic: the application's containers start after the proxy is ready.
        finite: classic: the pod is done when its own containers are (a Job).
        prestop_seconds: classic: how long the proxy outlives the beginning of termination, None = not.
    """

    options: PodOptions
    settings: InjectorSettings
    shape: Shape
    proxy_uid: int
    native: bool
    hold: bool = False
    finite: bool = False
    prestop_seconds: int | None = None

    @property
    def image(self) -> str:
        """Of both containers."""
        return self.options.proxy_image or self.settings.proxy_image


def volume() -> Json:
    """The directory with the agent's socket; the kubelet has the node agent fill it."""
    return {"name": VOLUME, "csi": {"driver": CSI_DRIVER, "readOnly": True}}


def capture_config(options: PodOptions, settings: InjectorSettings, proxy_uid: int) -> CaptureConfig:
    """What the rules of a pod capture: its options and the exclusions of the mesh."""
    return CaptureConfig(
        include_inbound=options.include_inbound,
        exclude_inbound=tuple(sorted({*options.exclude_inbound, *settings.excluded_inbound_ports})),
        include_outbound_cidrs=options.include_outbound_cidrs,
        exclude_outbound_cidrs=options.exclude_outbound_cidrs,
        include_outbound_ports=options.include_outbound_ports,
        exclude_outbound_ports=tuple(
            sorted({*options.exclude_outbound_ports, *settings.excluded_outbound_ports})
        ),
        exclude_interfaces=options.exclude_interfaces,
        reroute_interfaces=options.reroute_interfaces,
        proxy_uid=proxy_uid,
    )


def init_container(plan: Plan) -> Json:
    """`istio-init`: root with NET_ADMIN and nothing else; as many resources as the proxy (quotas)."""
    config = capture_config(plan.options, plan.settings, plan.proxy_uid)
    return {
        "name": INIT,
        "image": plan.image,
        **_pull_policy(plan.settings),
        "command": ["python3", "-m", "injector.istio_init"],
        "args": ["--config", escape(config.to_json())],
        "resources": resources(plan.options),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]},
            "privileged": False,
            "readOnlyRootFilesystem": True,
            "runAsGroup": 0,
            "runAsNonRoot": False,
            "runAsUser": 0,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        **_termination_message(),
    }


def validation_container(plan: Plan) -> Json:
    """`istio-validation`: waits, without any right, until the node's capture agent has written the rules.

    The agent reads the rules from the arguments: unlike annotations, they stay the same while the pod lives.
    """
    config = capture_config(plan.options, plan.settings, plan.proxy_uid)
    return {
        "name": VALIDATION,
        "image": plan.image,
        **_pull_policy(plan.settings),
        "command": [*VALIDATION_COMMAND],
        "args": ["--config", escape(config.to_json()), "--timeout", str(plan.settings.capture_seconds)],
        "env": _environment(VALIDATION_VARIABLES),
        "resources": resources(plan.options),
        "securityContext": _no_rights(plan.proxy_uid),
        **_termination_message(),
    }


def proxy_container(plan: Plan) -> Json:
    """`istio-proxy`: stock Envoy with no right, no writable file and no secret."""
    options, settings = plan.options, plan.settings
    container: Json = {
        "name": PROXY,
        "image": plan.image,
        **_pull_policy(settings),
        "args": _arguments(plan),
        "env": _environment(POD_VARIABLES),
        "ports": [{"name": "http-envoy-prom", "containerPort": ports.STATS, "protocol": "TCP"}],
        "readinessProbe": _ready_probe(
            initial_delay=options.readiness_initial_delay,
            period=options.readiness_period,
            failures=options.readiness_failure_threshold,
        ),
        "resources": resources(options),
        "securityContext": _no_rights(plan.proxy_uid),
        **_termination_message(),
        "volumeMounts": [
            {"name": VOLUME, "mountPath": SOCKET_DIRECTORY, "readOnly": True},
            *({"name": name, **mount} for name, mount in sorted(options.user_volume_mounts.items())),
        ],
    }
    if plan.native:
        container["restartPolicy"] = "Always"
        container["startupProbe"] = _ready_probe(initial_delay=0, period=1, failures=STARTUP_FAILURES)
        return container
    if plan.finite:
        # Without native sidecars a pod is complete only when the proxy has ended too.
        container["command"] = ["python3", "-m", "injector.until_finished", "--", "envoy"]
    lifecycle: Json = {}
    if plan.hold:
        timeout = str(settings.hold_seconds)
        wait = ["python3", "-m", "injector.wait_ready", "--timeout", timeout]
        lifecycle["postStart"] = {"exec": {"command": wait}}
    if plan.prestop_seconds is not None:
        path = f"{PRESTOP_PATH}{plan.prestop_seconds}"
        lifecycle["preStop"] = {"httpGet": {"path": path, "port": ports.PROBE, "scheme": "HTTP"}}
    return container | ({"lifecycle": lifecycle} if lifecycle else {})


def resources(options: PodOptions) -> Json:
    """Requests and limits; a limit of zero means no limit."""
    limits = {"cpu": options.proxy_cpu_limit, "memory": options.proxy_memory_limit}
    return {
        "limits": {name: value for name, value in limits.items() if amount(value)},
        "requests": {"cpu": options.proxy_cpu, "memory": options.proxy_memory},
    }


def _environment(variables: Mapping[str, str]) -> list[Json]:
    return [
        {"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}}
        for name, path in variables.items()
    ]


def _no_rights(uid: int) -> Json:
    """Pod Security `restricted`, and a read-only root."""
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "privileged": False,
        "readOnlyRootFilesystem": True,
        "runAsGroup": uid,
        "runAsNonRoot": True,
        "runAsUser": uid,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _arguments(plan: Plan) -> list[str]:
    options = plan.options
    levels = [item.partition(":") for item in options.component_log_level.split(",") if item]
    arguments: Sequence[str] = envoy_arguments(
        bootstrap_argument(plan.shape),
        drain_seconds=plan.settings.drain_seconds,
        concurrency=options.concurrency or _threads(options),
        log_level=options.log_level,
        component_log_levels={name: level for name, _, level in levels},
    )
    return list(arguments)


def _threads(options: PodOptions) -> int:
    """One worker for each CPU of the limit (of the request, without a limit)."""
    cpus = amount(options.proxy_cpu_limit) or amount(options.proxy_cpu)
    return max(1, min(_MAX_CONCURRENCY, math.ceil(cpus)))


def _ready_probe(*, initial_delay: int, period: int, failures: int) -> Json:
    probe: Json = {"httpGet": {"path": READY_PATH, "port": ports.READY, "scheme": "HTTP"}}
    if initial_delay:
        probe["initialDelaySeconds"] = initial_delay
    return probe | {
        "failureThreshold": failures,
        "periodSeconds": period,
        "successThreshold": 1,
        "timeoutSeconds": 3,
    }


def _pull_policy(settings: InjectorSettings) -> Json:
    return {"imagePullPolicy": settings.image_pull_policy} if settings.image_pull_policy else {}


def _termination_message() -> Json:
    return {
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
