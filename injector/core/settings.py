"""What the operator decides about injection, for the whole mesh: one frozen value.

`injector.config` makes it from YAML, the command line from flags; tests make it by hand.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from injector.core.capture import PortRange
from injector.core.decision import Selection
from injector.core.options import PodOptions
from mesh import ports


class Cluster(Protocol):
    """What injection has to know of the cluster; `injector.core.nodes.NodesAndServer` is one."""

    def native(self, node_selector: Mapping[str, Any]) -> bool | None:
        """Do init containers with `restartPolicy: Always` work wherever such a pod may run? None: unknown."""
        ...


@dataclass(frozen=True, slots=True)
class ClusterFeatures:
    """A `Cluster` by hand, for the command line without a cluster."""

    native_sidecars: bool | None = True

    def native(self, node_selector: Mapping[str, Any]) -> bool | None:  # noqa: ARG002 - the protocol's
        """As `Cluster.native`, for every pod alike."""
        return self.native_sidecars


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """Upper bounds for what authors of pods may ask for; empty means no bound.

    Attributes:
        cpu: quantity; bounds request and limit of the proxy.
        memory: quantity; likewise.
        image_prefixes: allowed beginnings of `sidecar.istio.io/proxyImage`, e.g. `registry.example/`.
        termination_delay: seconds.
    """

    cpu: str = ""
    memory: str = ""
    image_prefixes: tuple[str, ...] = ()
    termination_delay: int = 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class InjectorSettings:
    """Mesh-wide settings of the injector.

    Attributes:
        proxy_image: image of `istio-proxy` and `istio-init`.
        image_pull_policy: empty = what the API server chooses.
        image_pull_secrets: names of Secrets that are added to each pod.
        defaults: of every option a pod can set.
        selection: who is injected.
        excluded_inbound_ports: never captured, beside those a pod names.
        excluded_outbound_ports: likewise.
        ceilings: what a pod may ask for at most.
        trust_domain: told to the proxy as node metadata; identities come from the agent.
        drain_seconds: how long old connections of a changed listener live (`--drain-time-s`).
        hold_seconds: classic mode: how long the application waits for the proxy at most.
        liveness_grace_seconds: a rewritten liveness probe may fail for at least that long before the
            kubelet restarts the application: an Envoy that restarts must not cost a healthy process.
        deny_pod_security: refuse a pod that its namespace would reject anyway, instead of a warning.
        proxy_uid: user and group of the proxy, where the namespace has no range of its own.
        node_capture: the capture agent of the node writes the rules, and an init container without rights
            waits for them; else an init container with NET_ADMIN writes them.
        capture_seconds: how long that container waits before it fails.
        version: of the injector, written into the status of each pod.
        digest: of all the above; pods whose status has another one were injected with other settings.
    """

    proxy_image: str = "gatehouse/proxy:0.1.0"
    image_pull_policy: str = ""
    image_pull_secrets: tuple[str, ...] = ()
    defaults: PodOptions = field(default_factory=PodOptions)
    selection: Selection = field(default_factory=Selection)
    excluded_inbound_ports: tuple[PortRange, ...] = ()
    excluded_outbound_ports: tuple[PortRange, ...] = ()
    ceilings: Ceilings = field(default_factory=Ceilings)
    trust_domain: str = "cluster.local"
    drain_seconds: int = 30
    hold_seconds: int = 60
    liveness_grace_seconds: int = 20
    deny_pod_security: bool = False
    proxy_uid: int = ports.PROXY_UID
    node_capture: bool = False
    capture_seconds: int = 60
    version: str = "0.1.0"
    digest: str = field(init=False, default="")

    def __post_init__(self) -> None:
        """Compute the digest once: it goes into every pod."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True, default=_plain)
        object.__setattr__(self, "digest", hashlib.sha256(text.encode()).hexdigest()[:16])


def _plain(value: Any) -> Any:
    return sorted(map(str, value)) if isinstance(value, frozenset) else str(value)
