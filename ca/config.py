"""Configuration of the authority: a YAML file and `GATEHOUSE_CA_*` variables.

`docs/ca.md` lists every field with its default. Names that nobody knows are refused.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from ca.config_cluster import DNS_NAME, ClusterConfig, RotationConfig, parse_account, parse_dns_name
from ca.core.profile import Excess, Profile, SelfCheck
from mesh import settings
from mesh.errors import Category, Code, MeshError
from mesh.obs.logs import LEVELS
from mesh.settings import setting
from mesh.spiffe import TrustDomain

__all__ = [
    "Address",
    "CaConfig",
    "ClusterConfig",
    "ConfigCode",
    "ConfigError",
    "RotationConfig",
    "load",
    "parse_account",
    "parse_dns_name",
    "parse_name",
]

ENV_PREFIX: Final = "GATEHOUSE_CA_"
MAX_WORKERS: Final = 32
_SECOND = dt.timedelta(seconds=1)
_DAY = dt.timedelta(days=1)
_MAX_PORT = 65535
MAX_DNS_NAMES: Final = 16


class ConfigCode(Code):
    """Why a configuration was refused although every field by itself is good."""

    CONFLICT = "config_conflict"


class ConfigError(MeshError):
    """Fields that do not go together."""

    def __init__(self, code: ConfigCode, public: str) -> None:
        super().__init__(code, public, category=Category.FAILED_PRECONDITION)


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen."""

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
            raise ValueError("an address is written host:port, e.g. 0.0.0.0:15012 or [::]:15012")
        bare = host.removeprefix("[").removesuffix("]") if host.startswith("[") else host
        if host.startswith("["):
            ipaddress.IPv6Address(bare)
        elif ":" in host:
            raise ValueError("an IPv6 host stands in brackets, e.g. [::]:15012")
        return cls(bare, int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_name(text: str) -> str:
    """A DNS name in lower case or an IP address, for the serving certificate.

    Raises:
        ValueError: neither.
    """
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        if not DNS_NAME.fullmatch(text):
            raise ValueError("allowed are DNS names in lower case and IP addresses") from None
        return text


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenConfig:
    """Addresses."""

    grpc: Address = setting(
        "CSR API for callers with a token. TLS, no client certificate is asked for.",
        default=Address("0.0.0.0", 15012),  # noqa: S104 - a service of the whole cluster
        parse=Address.parse,
    )
    mtls: Address | None = setting(
        "CSR API for callers with a client certificate, which is then required; a token may come along"
        " and must name the same identity. Off when absent.",
        default=None,
        parse=Address.parse,
    )
    http: Address = setting(
        "HTTPS for /bundle, /livez, /readyz and /metrics.",
        default=Address("0.0.0.0", 15014),  # noqa: S104 - a service listens everywhere unless told
        parse=Address.parse,
    )
    plain: Address | None = setting(
        "HTTP without TLS for /livez, /readyz and /metrics, for probes and scrapers that trust no private"
        " root. Off when absent.",
        default=None,
        parse=Address.parse,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenConfig:
    """Which tokens are accepted."""

    issuer: str = setting(
        "`iss` of the tokens, compared exactly. Required without a cluster; with one the default is what the"
        " API server says of itself.",
        default="",
    )
    audiences: tuple[str, ...] = setting(
        "One of these must be in `aud`.", default=("gatehouse-ca", "istio-ca")
    )
    jwks_file: Path | None = setting(
        "Public keys of the issuer as a JWKS document; read again when it changes. Required without a"
        " cluster; with one the default is the keys of the API server.",
        default=None,
    )
    leeway: dt.timedelta = setting(
        "Allowed difference of clocks.", default=10 * _SECOND, minimum=0 * _SECOND, maximum=60 * _SECOND
    )
    max_lifetime: dt.timedelta = setting(
        "Longest `exp` minus `iat` of a token.", default=2 * _DAY, minimum=60 * _SECOND, maximum=366 * _DAY
    )
    require_pod: bool = setting(
        "Refuse tokens that are not bound to a pod: a stolen one would outlive its pod.", default=True
    )
    clusters: tuple[str, ...] = setting(
        "Names that a caller may give in the `clusterid` header; Istio's clients say Kubernetes.",
        default=("Kubernetes",),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class IssueConfig:
    """What is issued."""

    default_lifetime: dt.timedelta = setting("When the request names none.", default=_DAY)
    max_lifetime: dt.timedelta = setting("Longest lifetime; at most 48 h.", default=2 * _DAY)
    min_lifetime: dt.timedelta = setting(
        "Shortest lifetime; at least 5 min unless allow_short_lifetimes.", default=300 * _SECOND
    )
    backdate: dt.timedelta = setting(
        "How far before now certificates start, for clocks that are behind; at most 10 min.",
        default=120 * _SECOND,
    )
    excess: Excess = setting("Requests over max_lifetime: refuse, or cap.", default=Excess.REFUSE)
    allow_short_lifetimes: bool = setting(
        "Demonstrations only: lets min_lifetime go down to 10 s.", default=False
    )
    allow_p521: bool = setting("Accept P-521 keys; not every Envoy can use them.", default=False)
    allow_ed25519: bool = setting("Accept Ed25519 keys; Envoy cannot use them.", default=False)
    ignore_subject: bool = setting("Accept a CSR with a subject, and ignore it.", default=False)
    self_check: SelfCheck = setting(
        "When own signatures are verified: always, or at start and key changes.", default=SelfCheck.ALWAYS
    )
    allow_key_reuse: bool = setting(
        "Let an identity have another certificate for the same key. It is counted either way.", default=True
    )
    remembered_keys: int = setting(
        "Public keys whose identity is remembered, about 250 bytes each.",
        default=100_000,
        minimum=1000,
        maximum=10_000_000,
    )

    def profile(self) -> Profile:
        """The bounds, checked.

        Raises:
            ProfileError: out of range.
        """
        return Profile(
            default_lifetime=self.default_lifetime,
            max_lifetime=self.max_lifetime,
            min_lifetime=self.min_lifetime,
            backdate=self.backdate,
            excess=self.excess,
            allow_short_lifetimes=self.allow_short_lifetimes,
            allow_p521=self.allow_p521,
            allow_ed25519=self.allow_ed25519,
            ignore_subject=self.ignore_subject,
            self_check=self.self_check,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitConfig:
    """How much is done at once; per worker process."""

    threads: int = setting(
        "Threads for requests. Few run at once; a caller that is slow to send holds one of the others.",
        default=32,
        minimum=4,
        maximum=256,
    )
    queue: int = setting(
        "Requests in the queue of a worker beyond which it refuses.", default=1024, minimum=1, maximum=100_000
    )
    queue_wait: dt.timedelta = setting(
        "A request that waited longer is refused without work: its sender has given up.",
        default=5 * _SECOND,
        minimum=_SECOND / 10,
        maximum=60 * _SECOND,
    )
    receive_wait: dt.timedelta = setting(
        "Time in which an authenticated caller must have sent its request.",
        default=5 * _SECOND,
        minimum=_SECOND / 10,
        maximum=60 * _SECOND,
    )
    streams_per_connection: int = setting(
        "Concurrent requests of one connection.", default=100, minimum=1, maximum=10_000
    )
    connection_age: dt.timedelta = setting(
        "Connections are closed softly at this age, so that callers spread over replicas.",
        default=1800 * _SECOND,
        minimum=10 * _SECOND,
        maximum=_DAY,
    )
    caller_rate: float = setting(
        "Requests per second of one pod in the long run.", default=2.0, minimum=0.01, maximum=1e6
    )
    caller_burst: int = setting(
        "Requests that a pod may send at once.", default=20, minimum=1, maximum=1_000_000
    )
    caller_in_flight: int = setting(
        "Requests of one pod worked on at the same time.", default=2, minimum=1, maximum=1000
    )
    callers: int = setting(
        "Callers whose rate is remembered, about 250 bytes each.",
        default=20_000,
        minimum=100,
        maximum=10_000_000,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingConfig:
    """The authority's own certificate."""

    names: tuple[str, ...] = setting(
        "DNS names and IP addresses that clients connect to.",
        default=("gatehouse-ca.gatehouse-system.svc", "gatehouse-ca", "localhost", "127.0.0.1"),
        parse=parse_name,
    )
    lifetime: dt.timedelta = setting(
        "Its lifetime; it is renewed half-way.", default=_DAY, minimum=10 * _SECOND, maximum=30 * _DAY
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingGrant:
    """DNS names that one identity may have in its certificate."""

    service_account: str = setting(
        "Who, as namespace/name, e.g. istio-system/gatehouse-injector.", parse=parse_account
    )
    dns: tuple[str, ...] = setting("Exactly these names, all of them together.", parse=parse_dns_name)

    def __post_init__(self) -> None:
        if not 0 < len(self.dns) <= MAX_DNS_NAMES or len(set(self.dns)) != len(self.dns):
            raise ValueError(f"dns must have 1 to {MAX_DNS_NAMES} names, each once")


@dataclass(frozen=True, slots=True, kw_only=True)
class CaConfig:
    """The whole configuration."""

    trust_domain: TrustDomain = setting(
        "Trust domain of every identity.", default=TrustDomain("cluster.local"), parse=TrustDomain
    )
    state_dir: Path = setting(
        "Directory of this authority alone, on a disk that survives it; made with mode 0700. Holds the"
        " self-signed root and intermediate, which are made at the first start."
    )
    ca_dir: Path | None = setting(
        "Directory with a plugged-in CA instead: ca-cert.pem, ca-key.pem, root-cert.pem, cert-chain.pem; or"
        " tls.crt, tls.key, ca.crt. Then no root is ever made.",
        default=None,
    )
    multi_root: bool = setting(
        "A reload of a plugged-in CA may bring new roots beside the old ones.", default=False
    )
    root_lifetime: dt.timedelta = setting(
        "Lifetime of a self-signed root.", default=3650 * _DAY, minimum=_DAY, maximum=36500 * _DAY
    )
    intermediate_lifetime: dt.timedelta = setting(
        "Lifetime of a self-made intermediate, which is renewed when a third is left.",
        default=365 * _DAY,
        minimum=_DAY,
        maximum=3650 * _DAY,
    )
    listen: ListenConfig = setting("Addresses.", default_factory=ListenConfig)
    token: TokenConfig = setting("Which tokens are accepted.")
    issue: IssueConfig = setting("What is issued.", default_factory=IssueConfig)
    limits: LimitConfig = setting("How much is done at once, per worker.", default_factory=LimitConfig)
    serving: ServingConfig = setting("The authority's own certificate.", default_factory=ServingConfig)
    serving_grants: tuple[ServingGrant, ...] = setting(
        "Identities that may have DNS names in their certificates: the mesh's own servers, nobody else.",
        default=(),
    )
    cluster: ClusterConfig = setting("Work on Kubernetes.", default_factory=ClusterConfig)
    rotation: RotationConfig = setting(
        "Rotation of a root of our own, on Kubernetes.", default_factory=RotationConfig
    )
    workers: int = setting(
        "Processes. More than one share the ports by SO_REUSEPORT and need fixed port numbers.",
        default=1,
        minimum=1,
        maximum=MAX_WORKERS,
    )
    reload_interval: dt.timedelta = setting(
        "How often files are looked at for changes.",
        default=5 * _SECOND,
        minimum=_SECOND / 10,
        maximum=3600 * _SECOND,
    )
    drain: dt.timedelta = setting(
        "Time that requests in flight get at the end.",
        default=10 * _SECOND,
        minimum=0 * _SECOND,
        maximum=60 * _SECOND,
    )
    log_level: str = setting("debug, info, warning or error.", default="info")
    log_json: bool | None = setting("JSON lines; default is yes, unless on a terminal.", default=None)


def load(
    file: Path | None, env: Mapping[str, str], overrides: Mapping[str, object] | None = None
) -> CaConfig:
    """Read and check the configuration. Relative paths are relative to the file, or to the working directory.

    Raises:
        SettingsError, ProfileError, ConfigError: with the fields that are wrong.
    """
    config = settings.load(CaConfig, file=file, env=env, env_prefix=ENV_PREFIX, overrides=overrides or {})
    base = (file.parent if file is not None else Path()).absolute()
    config = replace(
        config,
        state_dir=base / config.state_dir,
        ca_dir=_at(base, config.ca_dir),
        token=replace(config.token, jwks_file=_at(base, config.token.jwks_file)),
        cluster=replace(config.cluster, kubeconfig=_at(base, config.cluster.kubeconfig)),
    )
    _check(config)
    return config


def _at(base: Path, path: Path | None) -> Path | None:
    return base / path if path is not None else None


def _check(config: CaConfig) -> None:
    config.issue.profile()
    listen = config.listen
    given = {"grpc": listen.grpc, "mtls": listen.mtls, "http": listen.http, "plain": listen.plain}
    seen: dict[Address, str] = {}
    for name, address in given.items():
        if address is None:
            continue
        if address.port == 0 and config.workers > 1 and name in {"grpc", "mtls"}:
            raise ConfigError(
                ConfigCode.CONFLICT,
                f"listen.{name}: give a port; with port 0 each of {config.workers} workers gets another",
            )
        if address.port != 0 and address in seen:
            raise ConfigError(
                ConfigCode.CONFLICT, f"listen.{name} and listen.{seen[address]} are both {address}"
            )
        seen[address] = name
    if not config.token.audiences or "" in config.token.audiences:
        raise ConfigError(ConfigCode.CONFLICT, "token.audiences must not be empty, nor hold an empty text")
    if not config.cluster.kubernetes:
        _check_alone(config)
    accounts = [grant.service_account for grant in config.serving_grants]
    if len(set(accounts)) != len(accounts):
        raise ConfigError(ConfigCode.CONFLICT, "serving_grants: a service account stands there twice")
    if not config.serving.names:
        raise ConfigError(ConfigCode.CONFLICT, "serving.names is empty; clients need a name to connect to")
    if config.log_level not in LEVELS:
        raise ConfigError(
            ConfigCode.CONFLICT, f"log_level {config.log_level!r}: allowed are {', '.join(LEVELS)}"
        )


def _check_alone(config: CaConfig) -> None:
    """Without a cluster nobody else says whose tokens count."""
    if not config.token.issuer or config.token.jwks_file is None:
        raise ConfigError(
            ConfigCode.CONFLICT,
            "token.issuer and token.jwks_file must be given, unless cluster.kubernetes is true",
        )
    if config.cluster.token_review or config.cluster.kubeconfig is not None or config.cluster.agents:
        raise ConfigError(
            ConfigCode.CONFLICT, "cluster.token_review, kubeconfig and agents need cluster.kubernetes: true"
        )
