"""Parts of the injector's configuration that stand by themselves: addresses, limits, key sets, nodes."""

from __future__ import annotations

import datetime as dt
import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mesh.settings import setting

_SECOND: Final = dt.timedelta(seconds=1)
_MAX_PORT: Final = 65535
_LABEL: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class Address:
    """A host and a port."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """Parse `host:port`; an IPv6 host stands in brackets. Port 0 lets the system choose.

        Raises:
            ValueError: another form.
        """
        host, colon, port = text.rpartition(":")
        if not colon or not host or not port.isdecimal() or int(port) > _MAX_PORT:
            raise ValueError("an address is written host:port, e.g. 0.0.0.0:15017 or [::]:15017")
        bare = host.removeprefix("[").removesuffix("]") if host.startswith("[") else host
        if host.startswith("["):
            ipaddress.IPv6Address(bare)
        elif ":" in host:
            raise ValueError("an IPv6 host stands in brackets, e.g. [::]:15017")
        return cls(bare, int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_label(text: str) -> str:
    """A DNS label in lower case, as names of namespaces and services are.

    Raises:
        ValueError: another form.
    """
    if not _LABEL.fullmatch(text):
        raise ValueError("a name has lower case letters, digits and dashes, at most 63")
    return text


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitConfig:
    """What a client of the webhook may cost."""

    threads: int = setting(
        "Threads of a worker. A slow sender holds one for at most header_wait and body_wait.",
        default=8,
        minimum=2,
        maximum=64,
    )
    connections: int = setting("Open connections of a worker.", default=256, minimum=16, maximum=10_000)
    header_wait: dt.timedelta = setting(
        "Time for the TLS handshake, and for the head of a request.",
        default=5 * _SECOND,
        minimum=_SECOND / 10,
        maximum=60 * _SECOND,
    )
    body_wait: dt.timedelta = setting(
        "Time for the body of a request.",
        default=10 * _SECOND,
        minimum=_SECOND / 10,
        maximum=60 * _SECOND,
    )
    keep_alive: int = setting(
        "Seconds that an idle connection stays open; API servers reuse theirs.",
        default=90,
        minimum=1,
        maximum=600,
    )
    margin: dt.timedelta = setting(
        "Part of the API server's time-out that is left for the way back; later requests are refused.",
        default=_SECOND / 2,
        minimum=0 * _SECOND,
        maximum=10 * _SECOND,
    )
    drain: dt.timedelta = setting(
        "At the end: time during which /readyz already fails and requests are still served.",
        default=5 * _SECOND,
        minimum=0 * _SECOND,
        maximum=60 * _SECOND,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class JwksConfig:
    """Fetching of key sets for RequestAuthentications."""

    enabled: bool = setting(
        "Fetch the key sets of all token issuers: of each jwksUri, or where the issuer says.", default=True
    )
    config_map: str = setting("Where they are published.", default="gatehouse-jwks", parse=parse_label)
    interval: dt.timedelta = setting(
        "How often a key set is fetched again.",
        default=300 * _SECOND,
        minimum=10 * _SECOND,
        maximum=86400 * _SECOND,
    )
    private_networks: tuple[str, ...] = setting(
        "CIDR blocks of private addresses that an issuer inside the network may have, e.g. the services of"
        " the cluster. Loopback, link-local and metadata addresses are always refused.",
        default=(),
    )
    allow_http: bool = setting("Fetch from http:// addresses too.", default=False)
    ca_file: Path | None = setting("Roots of private issuers, beside the system's.", default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureAgentConfig:
    """The capture agent of a node (`injector capture`), where injection.node_capture is on."""

    node_name: str = setting("Name of this node; only its pods are looked at.", default="")
    service: str = setting(
        "Its certificate, where metrics go by TLS, has the name SERVICE.NAMESPACE.svc.",
        default="gatehouse-capture",
        parse=parse_label,
    )
    socket: Path = setting(
        "Where the capture worker of the same pod listens.",
        default=Path("/run/gatehouse-capture/worker.sock"),
    )
    recheck: dt.timedelta = setting(
        "How often the rules of a pod that runs are looked at, and written again where they are gone.",
        default=300 * _SECOND,
        minimum=_SECOND,
        maximum=86400 * _SECOND,
    )
    threads: int = setting("Pods that are worked on at once.", default=4, minimum=1, maximum=8)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodesConfig:
    """Versions of kubelets, for the choice of native sidecars."""

    enabled: bool = setting(
        "Watch nodes and publish the oldest kubelet's version. Without it a sidecar is native only where"
        " sidecar.istio.io/nativeSidecar says so.",
        default=True,
    )
    config_map: str = setting("Where it is published.", default="gatehouse-nodes", parse=parse_label)
