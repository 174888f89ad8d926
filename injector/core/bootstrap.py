"""What the proxy is started with: its bootstrap as one argument, expanded by the kubelet.

The kubelet replaces `$(NAME)` in arguments by environment variables, wherever it stands. Only three
are meant: name, namespace and address of the pod. Every other dollar sign is doubled, so that a probe
path of a pod can never expand to anything.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from typing import Any, Final

from envoy.type.matcher.v3 import string_pb2
from google.protobuf import json_format

from mesh import ports
from mesh.envoy import bootstrap as envoy
from mesh.envoy import probes as listener
from mesh.topology import SocketAddress

SOCKET_DIRECTORY: Final = "/run/gatehouse"
AGENT_SOCKET: Final = f"{SOCKET_DIRECTORY}/agent.sock"
ADMIN_SOCKET: Final = "@gatehouse-admin"
"""Abstract: the file system of the proxy is read-only, and the pod's network namespace bounds it."""
POD_VARIABLES: Final = {
    "POD_NAME": "metadata.name",
    "POD_NAMESPACE": "metadata.namespace",
    "POD_IP": "status.podIP",
}
"""Environment variables of the proxy and the fields of the pod that they come from."""
MAX_BYTES: Final = 120_000
"""Linux takes 128 KiB in one argument (MAX_ARG_STRLEN)."""

_LOOPBACK: Final = "127.0.0.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What differs between bootstraps; equal shapes have equal bytes.

    Attributes:
        workload: name of the workload, for logs and statistics.
        probes: of the kubelet, redirected.
        captured: rules redirect what goes to the pod's own address.
        prestop_seconds: see `mesh.envoy.probes.ProbeServer`.
        metrics: None = not merged.
        stats_prefixes: statistics to keep beside the usual ones; `stats_suffixes` likewise.
    """

    workload: str
    trust_domain: str
    probes: tuple[listener.Probe, ...] = ()
    captured: bool = True
    prestop_seconds: int | None = None
    metrics: tuple[listener.MetricsTarget, ...] | None = None
    stats_prefixes: tuple[str, ...] = ()
    stats_suffixes: tuple[str, ...] = ()


def expand(text: str, variables: dict[str, str]) -> str:
    """What the kubelet makes of an argument (third_party/forked/golang/expansion)."""
    out: list[str] = []
    rest = text
    while True:
        before, dollar, rest = rest.partition("$")
        out.append(before)
        if not dollar:
            return "".join(out)
        if rest.startswith("$"):
            out.append("$")
            rest = rest[1:]
        elif rest.startswith("(") and ")" in rest:
            name, _, after = rest[1:].partition(")")
            out.append(variables.get(name, f"$({name})"))
            rest = after
        else:
            out.append("$")


def escape(text: str) -> str:
    """Text that the kubelet expands to itself."""
    return text.replace("$", "$$")


@functools.lru_cache(maxsize=512)
def bootstrap_argument(shape: Shape) -> str:
    """The bootstrap as JSON in one line, ready to be an argument of a container."""
    address = _token("POD_IP")
    message = envoy.bootstrap_message(
        envoy.BootstrapOptions(
            node_id=f"{_token('POD_NAME')}.{_token('POD_NAMESPACE')}",
            node_cluster=shape.workload or "gatehouse",
            agent_socket=AGENT_SOCKET,
            metadata={
                "namespace": _token("POD_NAMESPACE"),
                "workload": shape.workload,
                "trust_domain": shape.trust_domain,
            },
            admin=ADMIN_SOCKET,
            stats=SocketAddress(address, ports.STATS),
            readiness=SocketAddress(address, ports.READY),
        )
    )
    for found in message.static_resources.listeners:
        # For `kubectl port-forward`, and for the script that holds the application back.
        extra = found.additional_addresses.add().address.socket_address
        extra.address = _LOOPBACK
        extra.port_value = found.address.socket_address.port_value
    server = listener.ProbeServer(
        addresses=(address, _LOOPBACK),
        application=address,
        probes=shape.probes,
        captured=shape.captured,
        prestop_seconds=shape.prestop_seconds,
        metrics=shape.metrics,
    )
    listener.install(message, server)
    patterns = message.stats_config.stats_matcher.inclusion_list.patterns
    patterns.extend(string_pb2.StringMatcher(prefix=text) for text in shape.stats_prefixes)
    patterns.extend(string_pb2.StringMatcher(suffix=text) for text in shape.stats_suffixes)
    return _argument(json_format.MessageToDict(message, preserving_proto_field_name=True))


def _token(name: str) -> str:
    """Stands for a variable until everything else is escaped; no pod can hold a NUL."""
    return f"\0{name}\0"


def _argument(data: dict[str, Any]) -> str:
    text = escape(json.dumps(data, separators=(",", ":"), sort_keys=True))
    for name in POD_VARIABLES:
        text = text.replace(f"\\u0000{name}\\u0000", f"$({name})")
    return text
