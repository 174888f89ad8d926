"""Configuration of the node agent: a YAML file and `GATEHOUSE_AGENT_*` variables.

`docs/nodeagent.md` lists every field with its default. Names that nobody knows are refused. Relative
paths are taken from the directory of the configuration file.
"""

from __future__ import annotations

import datetime as dt
import enum
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, NoReturn

from mesh import settings
from mesh.meshconfig import ForwardClientCert, MeshConfig, OutboundPolicy, PathNormalization
from mesh.obs.logs import LEVELS
from mesh.settings import Problem, SettingsCode, SettingsError, setting
from mesh.spiffe import TrustDomain

ENV_PREFIX: Final = "GATEHOUSE_AGENT_"
DEFAULT_CONFIG: Final = Path("/etc/gatehouse/nodeagent.yaml")
_MAX_PORT = 65535
_UNIX = "unix:"


@dataclass(frozen=True, slots=True)
class Listen:
    """Where the health and status server listens: a TCP address, or a Unix socket.

    Attributes:
        path: of the Unix socket; None for TCP.
    """

    host: str = ""
    port: int = 0
    path: Path | None = None

    @classmethod
    def parse(cls, text: str) -> Listen:
        """Parse `host:port` with an IP address (IPv6 in brackets), or `unix:/path`.

        Raises:
            ValueError: another form.
        """
        if text.startswith(_UNIX):
            if not text.startswith(f"{_UNIX}/"):
                raise ValueError("a Unix socket is written unix:/absolute/path")
            return cls(path=Path(text.removeprefix(_UNIX)))
        host, colon, port = text.rpartition(":")
        if not colon or not port.isdecimal() or not 0 <= int(port) <= _MAX_PORT:
            raise ValueError("an address is written host:port, e.g. 127.0.0.1:15094, or unix:/path")
        bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        try:
            return cls(str(ipaddress.ip_address(bare)), int(port))
        except ValueError:
            raise ValueError("the host must be an IP address, e.g. 127.0.0.1 or [::1]") from None

    def __str__(self) -> str:
        if self.path is not None:
            return f"{_UNIX}{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_ca_address(text: str) -> str:
    """`host:port` of the authority; the host may be a name.

    Raises:
        ValueError: another form.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not host or "/" in host or not port.isdecimal() or not 0 < int(port) <= _MAX_PORT:
        raise ValueError("an address is written host:port, e.g. gatehouse-ca.gatehouse-system.svc:15012")
    return text


def parse_level(text: str) -> str:
    """A log level.

    Raises:
        ValueError: not one of the known ones.
    """
    if text not in LEVELS:
        raise ValueError(f"allowed are {', '.join(LEVELS)}")
    return text


@dataclass(frozen=True, slots=True, kw_only=True)
class CaSettings:
    """The authority that signs this node's workloads."""

    address: str = setting("CSR API of the authority, host:port.", parse=parse_ca_address)
    root_file: Path = setting(
        "PEM file with the roots that verify the authority's serving certificate. Read again at each"
        " attempt, so it may be replaced at any time."
    )
    server_name: str = setting(
        "Name that the serving certificate must have; default is the host of the address.", default=""
    )
    token_file: Path | None = setting(
        "The agent's own token for the authority: with it the agent hears of new roots at once, and says who"
        " has acknowledged them. Read again at each call. Off when absent.",
        default=None,
    )
    deadline: dt.timedelta = setting(
        "How long one call may take.",
        default=dt.timedelta(seconds=10),
        minimum=dt.timedelta(seconds=1),
        maximum=dt.timedelta(minutes=2),
    )
    in_flight: int = setting(
        "Calls at once over all workloads; first certificates go first, then those that end soon.",
        default=8,
        minimum=1,
        maximum=64,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RotationSettings:
    """When certificates are renewed."""

    lifetime: dt.timedelta | None = setting(
        "Lifetime to ask for; the authority's default when absent. The authority has the last word.",
        default=None,
        minimum=dt.timedelta(seconds=1),
        maximum=dt.timedelta(days=90),
    )
    ratio: float = setting(
        "Share of the usable life after which a certificate is renewed.",
        default=0.5,
        minimum=0.1,
        maximum=0.9,
    )
    jitter: float = setting(
        "The ratio is drawn from ratio +- jitter, once per certificate, so that workloads that started"
        " together do not renew together.",
        default=0.1,
        minimum=0.0,
        maximum=0.3,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsTlsSettings:
    """The agent's pages by TLS, with a certificate of the authority for the agent's own service account."""

    listen: Listen | None = setting(
        "HTTPS for every page; `listen` then has /livez and /readyz only. Off when absent.",
        default=None,
        parse=Listen.parse,
    )
    name: str = setting(
        "DNS name in the certificate; the authority must grant it to the agent's service account.",
        default="gatehouse-nodeagent.istio-system.svc",
    )
    token_file: Path = setting(
        "The agent's own token for the authority; read again at every attempt.",
        default=Path("/var/run/secrets/tokens/istio-token"),
    )


class Mode(enum.Enum):
    """Where workloads, services and policies come from."""

    FILES = "files"
    KUBERNETES = "kubernetes"


class ServiceScope(enum.Enum):
    """Which services the proxy of a pod knows."""

    ALL = "all"
    NAMESPACE = "namespace"


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshSettings:
    """Mode kubernetes: what holds for the whole mesh. In mode files the `Mesh` document says it."""

    trust_domain: TrustDomain = setting(
        "Identities are issued in it.", default=TrustDomain("cluster.local"), parse=TrustDomain
    )
    trust_domain_aliases: tuple[TrustDomain, ...] = setting(
        "Peers of these trust domains are accepted too.", default=(), parse=TrustDomain
    )
    root_namespace: str = setting(
        "Policies in this namespace hold for the whole mesh.", default="istio-system"
    )
    path_normalization: PathNormalization = setting(
        "What happens to a request path before rules see it.",
        default=PathNormalization.DECODE_AND_MERGE_SLASHES,
    )
    outbound_policy: OutboundPolicy = setting(
        "Where a connection to an unknown destination goes.", default=OutboundPolicy.ALLOW_ANY
    )
    forward_client_cert: ForwardClientCert = setting(
        "What a proxy does with x-forwarded-client-cert.", default=ForwardClientCert.SANITIZE_SET
    )
    jwt_require_expiration: bool = setting("Refuse end-user tokens without `exp`.", default=False)
    jwt_clock_skew_seconds: int = setting(
        "Tolerance on `exp` and `nbf` of end-user tokens.", default=60, minimum=0, maximum=600
    )
    drain_seconds: int = setting(
        "How long old connections live after a change of their listener; the proxies' --drain-time-s.",
        default=30,
        minimum=1,
        maximum=600,
    )
    max_connection_seconds: int = setting(
        "An HTTP connection is told to end by that age (from 90 % of it on, drawn for each), so that a peer"
        " proves its identity anew; half of a leaf's default life. 0 = never.",
        default=43_200,
        minimum=0,
        maximum=604_800,
    )

    def config(self) -> MeshConfig:
        """As policy resolution and rendering take it."""
        return MeshConfig(
            trust_domain=self.trust_domain,
            trust_domain_aliases=self.trust_domain_aliases,
            root_namespace=self.root_namespace,
            path_normalization=self.path_normalization,
            outbound_policy=self.outbound_policy,
            forward_client_cert=self.forward_client_cert,
            jwt_require_expiration=self.jwt_require_expiration,
            jwt_clock_skew_seconds=self.jwt_clock_skew_seconds,
            drain_seconds=self.drain_seconds,
            max_connection_seconds=self.max_connection_seconds,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class KubernetesSettings:
    """Mode kubernetes: the cluster and this node."""

    node_name: str = setting("Name of this node; needed in mode kubernetes.", default="")
    kubeconfig: Path | None = setting(
        "Access to the API server; default is the agent's own service account.", default=None
    )
    namespace: str = setting(
        "Namespace of the installation; the ConfigMap gatehouse-jwks is read there.", default="istio-system"
    )
    cluster_domain: str = setting("Domain of the names of services.", default="cluster.local")
    kubelet_dir: Path = setting(
        "The kubelet's --root-dir; the agent must see it under the same path.",
        default=Path("/var/lib/kubelet"),
    )
    driver_name: str = setting("Name of the CSIDriver object.", default="csi.gatehouse.dev")
    audience: str = setting(
        "Audience of the pods' tokens; listed in tokenRequests of the CSIDriver object.", default="istio-ca"
    )
    state_dir: Path = setting(
        "What a restarted agent must know. On tmpfs tokens are kept here too; on a disk they are not.",
        default=Path("/run/gatehouse/agent"),
    )
    services: ServiceScope = setting(
        "Which services a proxy knows: all, those of its own namespace first, or its own namespace's only.",
        default=ServiceScope.ALL,
    )
    service_limit: int = setting(
        "Services that a proxy knows at most; each costs it about 0.11 MB.",
        default=1000,
        minimum=1,
        maximum=20_000,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSettings:
    """Everything that the agent is told from outside."""

    mode: Mode = setting("Where workloads, services and policies come from.", default=Mode.FILES)
    directory: Path | None = setting(
        "Mode files: directory with Workload, Service, Mesh, KeySet and policy documents.", default=None
    )
    sockets: Path = setting(
        "Mode files: directory in which each workload gets a directory with its socket; made if missing.",
        default=Path("/run/gatehouse/sockets"),
    )
    listen: Listen = setting(
        "Where /livez, /readyz, /metrics and /status are served: an IP address and port, or unix:/path."
        " /status answers local callers only.",
        default=Listen("127.0.0.1", 15094),
        parse=Listen.parse,
    )
    metrics_tls: MetricsTlsSettings = setting("Pages by TLS.", default_factory=MetricsTlsSettings)
    ca: CaSettings = setting("The authority.")
    kubernetes: KubernetesSettings = setting("The cluster.", default_factory=KubernetesSettings)
    mesh: MeshSettings = setting("The mesh.", default_factory=MeshSettings)
    rotation: RotationSettings = setting("Renewal.", default_factory=RotationSettings)
    debounce: dt.timedelta = setting(
        "How long the directory, or the cluster's objects, must be quiet before a change is applied.",
        default=dt.timedelta(milliseconds=50),
        minimum=dt.timedelta(milliseconds=10),
        maximum=dt.timedelta(seconds=5),
    )
    log_level: str = setting(f"One of {', '.join(LEVELS)}.", default="info", parse=parse_level)


def load_settings(
    file: Path | None, env: Mapping[str, str], overrides: Mapping[str, object]
) -> AgentSettings:
    """Build the settings.

    Args:
        file: the configuration file; None = environment and overrides only.
        env: usually `os.environ`.
        overrides: dotted path to value, from the command line.

    Raises:
        SettingsError: with everything that is wrong.
    """
    loaded = settings.load(AgentSettings, file=file, env=env, env_prefix=ENV_PREFIX, overrides=overrides)
    where = str(file) if file is not None else "settings"
    if loaded.mode is Mode.FILES and loaded.directory is None:
        _missing(where, "directory", "required in mode files")
    if loaded.mode is Mode.KUBERNETES and not loaded.kubernetes.node_name:
        variable = f"{ENV_PREFIX}KUBERNETES__NODE_NAME"
        _missing(where, "kubernetes.node_name", f"required in mode kubernetes; set it or {variable}")
    base = (file.parent if file is not None else Path()).absolute()
    kube = loaded.kubernetes
    return replace(
        loaded,
        directory=base / loaded.directory if loaded.directory is not None else None,
        sockets=base / loaded.sockets,
        ca=replace(
            loaded.ca,
            root_file=base / loaded.ca.root_file,
            token_file=base / loaded.ca.token_file if loaded.ca.token_file is not None else None,
        ),
        metrics_tls=replace(loaded.metrics_tls, token_file=base / loaded.metrics_tls.token_file),
        kubernetes=replace(
            kube,
            kubeconfig=base / kube.kubeconfig if kube.kubeconfig is not None else None,
            kubelet_dir=base / kube.kubelet_dir,
            state_dir=base / kube.state_dir,
        ),
    )


def _missing(where: str, path: str, message: str) -> NoReturn:
    raise SettingsError((Problem(SettingsCode.MISSING, where, path, message),))
