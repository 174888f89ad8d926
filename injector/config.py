"""Configuration of the injector's processes: a YAML file and `GATEHOUSE_INJECTOR_*` variables.

One file serves all of them (webhook, certificate keeper, upkeep), so that they cannot disagree about
names. `docs/injector.md` lists every field with its default. Names that nobody knows are refused.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from injector.config_parts import (
    Address,
    CaptureAgentConfig,
    JwksConfig,
    LimitConfig,
    NodesConfig,
    parse_label,
)
from injector.core.capture import CaptureError, PortRange, parse_ports
from injector.core.decision import Selection
from injector.core.options import PodOptions, resolve_options
from injector.core.selectors import LabelSelector
from injector.core.settings import Ceilings, InjectorSettings
from mesh import settings
from mesh.errors import Category, Code, MeshError
from mesh.settings import setting

ENV_PREFIX: Final = "GATEHOUSE_INJECTOR_"
MAX_WORKERS: Final = 16
_LEVELS: Final = ("debug", "info", "warning", "error")  # as `mesh.obs.logs`, which must load later
_SECOND: Final = dt.timedelta(seconds=1)
_DAY: Final = dt.timedelta(days=1)


class ConfigCode(Code):
    """Why a configuration was refused although every field by itself is readable."""

    OPTION = "config_option"
    PORTS = "config_ports"
    CONFLICT = "config_conflict"


class ConfigError(MeshError):
    """A value, or several together, that make no sense."""

    def __init__(self, code: ConfigCode, public: str) -> None:
        super().__init__(code, public, category=Category.FAILED_PRECONDITION)


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenConfig:
    """Addresses of the webhook."""

    https: Address = setting(
        "Admission requests, /livez and /readyz, over TLS 1.3.",
        default=Address("0.0.0.0", 15017),  # noqa: S104 - a service of the whole cluster
        parse=Address.parse,
    )
    plain: Address | None = setting(
        "HTTP without TLS: /metrics, /livez and /readyz of every process. Off when absent.",
        default=Address("0.0.0.0", 15014),  # noqa: S104 - a service listens everywhere unless told
        parse=Address.parse,
    )
    metrics: Address | None = setting(
        "HTTPS for the pages of `plain`, with a certificate of the authority; `plain` then has no /metrics."
        " Of the webhook and of upkeep. Off when absent.",
        default=None,
        parse=Address.parse,
    )
    tls12: bool = setting("Accept TLS 1.2 too; API servers have spoken 1.3 since 1.16.", default=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class CeilingConfig:
    """What authors of pods may ask for at most."""

    cpu: str = setting("Quantity; bounds request and limit of the proxy. Empty: no bound.", default="")
    memory: str = setting("Likewise.", default="")
    image_prefixes: tuple[str, ...] = setting(
        "Allowed beginnings of sidecar.istio.io/proxyImage; none: any image.", default=()
    )
    termination_delay: int = setting("Seconds.", default=3600, minimum=0, maximum=86400)


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectionConfig:
    """Who is injected."""

    namespaces_by_default: bool = setting("Inject pods of namespaces that say nothing.", default=False)
    opt_in_only: bool = setting(
        "A label of the namespace is not enough: the pod must ask by its own label.", default=False
    )
    pods_override_disabled: bool = setting(
        "A pod's label may ask for a sidecar in a namespace that says disabled.", default=False
    )
    strict_namespaces: tuple[str, ...] = setting(
        "A pod that is to be injected, but cannot be, is denied there.", default=(), parse=parse_label
    )
    revision: str = setting(
        "Name of this injector for the label istio.io/rev; `default` also serves istio-injection.",
        default="default",
        parse=parse_label,
    )
    tags: tuple[str, ...] = setting("Further names of this revision.", default=(), parse=parse_label)
    never: tuple[dict, ...] = setting(  # type: ignore[type-arg] # settings know plain types only
        "Label selectors; a match is a no, unless the pod says yes.", default=()
    )
    always: tuple[dict, ...] = setting(  # type: ignore[type-arg] # settings know plain types only
        "Label selectors; a match is a yes for pods that say nothing.", default=()
    )
    excluded_namespaces: tuple[str, ...] = setting(
        "Never injected, beside the cluster's own namespaces and the one of Gatehouse.",
        default=(),
        parse=parse_label,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class InjectionConfig:
    """What goes into pods; the only part that is taken over without a restart."""

    proxy_image: str = setting("Image of istio-proxy and istio-init.", default="gatehouse/proxy:0.1.0")
    image_pull_policy: str = setting("Empty: what the API server chooses.", default="")
    image_pull_secrets: tuple[str, ...] = setting("Names of Secrets added to each pod.", default=())
    defaults: dict = setting(  # type: ignore[type-arg] # settings know plain types only
        "Annotation key to value: defaults of every option that a pod can set.", default_factory=dict
    )
    selection: SelectionConfig = setting("Who is injected.", default_factory=SelectionConfig)
    excluded_inbound_ports: str = setting("Ports and ranges that are never captured.", default="")
    excluded_outbound_ports: str = setting("Likewise, by destination.", default="")
    ceilings: CeilingConfig = setting("What a pod may ask for at most.", default_factory=CeilingConfig)
    trust_domain: str = setting("Told to the proxy as node metadata.", default="cluster.local")
    drain_seconds: int = setting(
        "How long old connections of a changed listener live.", default=30, minimum=1, maximum=3600
    )
    hold_seconds: int = setting(
        "Classic mode: how long the application waits for the proxy.", default=60, minimum=1, maximum=3600
    )
    liveness_grace_seconds: int = setting(
        "A rewritten liveness probe may fail for at least that long.", default=20, minimum=0, maximum=3600
    )
    node_capture: bool = setting(
        "The capture agent of the node writes the capture rules, so that pods need no NET_ADMIN. It must run"
        " on every node (chart: capture.mode).",
        default=False,
    )
    capture_seconds: int = setting(
        "With node_capture: how long a pod waits for its rules before its init container fails, and the"
        " kubelet starts it again.",
        default=60,
        minimum=5,
        maximum=3600,
    )
    deny_pod_security: bool = setting(
        "Refuse a pod that its namespace would reject anyway, instead of a warning.", default=False
    )
    version: str = setting("Written into the status of each pod.", default="0.1.0")

    def to_settings(self, own_namespace: str) -> InjectorSettings:
        """What the core works with.

        Raises:
            ConfigError, SelectorError: with the field that is wrong.
        """
        chosen, ceilings = self.selection, self.ceilings
        return InjectorSettings(
            proxy_image=self.proxy_image,
            image_pull_policy=self.image_pull_policy,
            image_pull_secrets=self.image_pull_secrets,
            defaults=_defaults(self.defaults),
            selection=Selection(
                namespaces_by_default=chosen.namespaces_by_default,
                opt_in_only=chosen.opt_in_only,
                pods_override_disabled=chosen.pods_override_disabled,
                strict_namespaces=frozenset(chosen.strict_namespaces),
                revision=chosen.revision,
                tags=frozenset(chosen.tags),
                never=_selectors(chosen.never, "injection.selection.never"),
                always=_selectors(chosen.always, "injection.selection.always"),
                excluded_namespaces=frozenset({*chosen.excluded_namespaces, own_namespace}),
            ),
            excluded_inbound_ports=_ports(self.excluded_inbound_ports, "excluded_inbound_ports"),
            excluded_outbound_ports=_ports(self.excluded_outbound_ports, "excluded_outbound_ports"),
            ceilings=Ceilings(
                cpu=ceilings.cpu,
                memory=ceilings.memory,
                image_prefixes=ceilings.image_prefixes,
                termination_delay=ceilings.termination_delay,
            ),
            trust_domain=self.trust_domain,
            drain_seconds=self.drain_seconds,
            hold_seconds=self.hold_seconds,
            liveness_grace_seconds=self.liveness_grace_seconds,
            deny_pod_security=self.deny_pod_security,
            node_capture=self.node_capture,
            capture_seconds=self.capture_seconds,
            version=self.version,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateConfig:
    """Where the webhook's own certificate comes from."""

    ca_address: Address = setting(
        "CSR API of the authority.",
        default=Address("gatehouse-ca.istio-system.svc", 15012),
        parse=Address.parse,
    )
    token_file: Path = setting(
        "This pod's token for the authority; read again at every attempt.",
        default=Path("/var/run/secrets/tokens/istio-token"),
    )
    root_file: Path = setting(
        "Roots that verify the authority: root-cert.pem of the ConfigMap istio-ca-root-cert.",
        default=Path("/var/run/secrets/istio/root-cert.pem"),
    )
    listen: Address | None = setting(
        "HTTP without TLS of the keeper: /metrics, /livez, /readyz; it shares the pod with the webhook.",
        default=Address("0.0.0.0", 15016),  # noqa: S104 - a service listens everywhere unless told
        parse=Address.parse,
    )
    metrics: Address | None = setting(
        "HTTPS for the same pages, with the webhook's own certificate; `listen` then has no /metrics.",
        default=None,
        parse=Address.parse,
    )
    lifetime: dt.timedelta = setting(
        "Lifetime to ask for; renewed half-way.", default=_DAY, minimum=60 * _SECOND, maximum=2 * _DAY
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class UpkeepConfig:
    """What the leader looks after."""

    service: str = setting(
        "Its certificate, where metrics go by TLS, has the name SERVICE.NAMESPACE.svc.",
        default="gatehouse-upkeep",
        parse=parse_label,
    )
    lease: str = setting("Name of the Lease.", default="gatehouse-injector-upkeep", parse=parse_label)
    interval: dt.timedelta = setting(
        "How often everything is compared with what it should be.",
        default=30 * _SECOND,
        minimum=_SECOND / 10,
        maximum=3600 * _SECOND,
    )
    overlap: dt.timedelta = setting(
        "How long a root that is no longer in force stays in caBundle: until every webhook has a new leaf.",
        default=900 * _SECOND,
        minimum=0 * _SECOND,
        maximum=7 * _DAY,
    )
    roots_config_map: str = setting(
        "Roots in force, in this namespace, under root-cert.pem.",
        default="istio-ca-root-cert",
        parse=parse_label,
    )
    webhook_selector: str = setting(
        "Label selector of the webhook configurations that are ours.", default="app=gatehouse"
    )
    verify_address: Address | None = setting(
        "Where the published caBundle is tried by a TLS call; default is the service's name.",
        default=None,
        parse=Address.parse,
    )
    jwks: JwksConfig = setting("Key sets of token issuers.", default_factory=JwksConfig)
    nodes: NodesConfig = setting("Versions of kubelets.", default_factory=NodesConfig)
    policy_status: bool = setting(
        "Write the condition Accepted into the status of every policy.", default=True
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class InjectorConfig:
    """The whole configuration."""

    namespace: str = setting("Namespace of Gatehouse.", default="istio-system", parse=parse_label)
    service: str = setting("Name of the webhook's Service.", default="gatehouse-injector", parse=parse_label)
    serving_dir: Path = setting(
        "Directory of the webhook's tls.crt and tls.key, in memory, shared with the certificate keeper.",
        default=Path("/run/gatehouse/serving"),
    )
    listen: ListenConfig = setting("Addresses.", default_factory=ListenConfig)
    limits: LimitConfig = setting("What a client may cost.", default_factory=LimitConfig)
    workers: int = setting(
        "Processes of the webhook. Add replicas first: they survive a node.",
        default=1,
        minimum=1,
        maximum=MAX_WORKERS,
    )
    metrics_dir: Path = setting(
        "Directory in memory where several workers add their metrics up.",
        default=Path("/dev/shm/gatehouse-injector-metrics"),  # noqa: S108 - made with mode 0700, checked
    )
    events: bool = setting("Write Events about what was done with pods, and about policies.", default=True)
    kubeconfig: Path | None = setting("Only outside of a cluster.", default=None)
    injection: InjectionConfig = setting("What goes into pods.", default_factory=InjectionConfig)
    certificate: CertificateConfig = setting(
        "The webhook's own certificate.", default_factory=CertificateConfig
    )
    upkeep: UpkeepConfig = setting("What the leader looks after.", default_factory=UpkeepConfig)
    capture_agent: CaptureAgentConfig = setting(
        "The capture agent of a node.", default_factory=CaptureAgentConfig
    )
    reload_interval: dt.timedelta = setting(
        "How often files are looked at for changes.",
        default=2 * _SECOND,
        minimum=_SECOND / 20,
        maximum=3600 * _SECOND,
    )
    log_level: str = setting("debug, info, warning or error.", default="info")
    log_json: bool | None = setting("JSON lines; default is yes, unless on a terminal.", default=None)

    @property
    def dns_names(self) -> tuple[str, ...]:
        """Names of the webhook's certificate, as API servers and people call it."""
        base = f"{self.service}.{self.namespace}"
        return (f"{base}.svc", f"{base}.svc.cluster.local", base)

    @property
    def upkeep_names(self) -> tuple[str, ...]:
        """Names of upkeep's certificate for metrics."""
        return (f"{self.upkeep.service}.{self.namespace}.svc",)

    @property
    def capture_names(self) -> tuple[str, ...]:
        """Names of the capture agents' certificate for metrics."""
        return (f"{self.capture_agent.service}.{self.namespace}.svc",)

    def settings(self) -> InjectorSettings:
        """What the core works with; see `InjectionConfig.to_settings`."""
        return self.injection.to_settings(self.namespace)


def load(
    file: Path | None, env: Mapping[str, str], overrides: Mapping[str, object] | None = None
) -> InjectorConfig:
    """Read and check the configuration. Relative paths are relative to the file, or to the working directory.

    Raises:
        SettingsError, ConfigError, SelectorError: with the fields that are wrong.
    """
    config = settings.load(
        InjectorConfig, file=file, env=env, env_prefix=ENV_PREFIX, overrides=overrides or {}
    )
    base = (file.parent if file is not None else Path()).absolute()
    certificate, jwks = config.certificate, config.upkeep.jwks
    config = replace(
        config,
        serving_dir=base / config.serving_dir,
        metrics_dir=base / config.metrics_dir,
        kubeconfig=base / config.kubeconfig if config.kubeconfig else None,
        certificate=replace(
            certificate, token_file=base / certificate.token_file, root_file=base / certificate.root_file
        ),
        upkeep=replace(
            config.upkeep, jwks=replace(jwks, ca_file=base / jwks.ca_file if jwks.ca_file else None)
        ),
    )
    _check(config)
    return config


def _check(config: InjectorConfig) -> None:
    config.settings()
    listen = config.listen
    taken = {listen.https.port: "listen.https"}
    for name, address in (("listen.plain", listen.plain), ("listen.metrics", listen.metrics)):
        if address is None:
            continue
        if address.port != 0 and address.port in taken:
            raise ConfigError(ConfigCode.CONFLICT, f"{name} and {taken[address.port]} are both {address}")
        taken[address.port] = name
        if config.workers > 1 and address.port == 0:
            raise ConfigError(
                ConfigCode.CONFLICT,
                f"{name}: give a port; with port 0 each of {config.workers} workers gets another",
            )
    if config.limits.threads >= config.limits.connections:
        raise ConfigError(ConfigCode.CONFLICT, "limits.connections must be more than limits.threads, by far")
    for text in config.upkeep.jwks.private_networks:
        try:
            ipaddress.ip_network(text)
        except ValueError:
            raise ConfigError(
                ConfigCode.CONFLICT,
                f"upkeep.jwks.private_networks: found {text!r:.60}; allowed are CIDR blocks",
            ) from None
    if config.log_level not in _LEVELS:
        raise ConfigError(
            ConfigCode.CONFLICT, f"log_level {config.log_level!r}: allowed are {', '.join(_LEVELS)}"
        )


def _defaults(values: Mapping[str, Any]) -> PodOptions:
    texts = {
        str(key): ("true" if value else "false") if isinstance(value, bool) else str(value)
        for key, value in values.items()
    }
    options, problems = resolve_options(texts, {}, PodOptions())
    if problems:
        raise ConfigError(
            ConfigCode.OPTION, "injection.defaults: " + "; ".join(str(problem) for problem in problems)
        )
    return options


def _selectors(values: tuple[dict[str, Any], ...], field: str) -> tuple[LabelSelector, ...]:
    return tuple(LabelSelector.parse(value, f"{field}[{index}]") for index, value in enumerate(values))


def _ports(text: str, field: str) -> tuple[PortRange, ...]:
    try:
        ports = parse_ports(text) if text else ()
    except CaptureError as error:
        raise ConfigError(ConfigCode.PORTS, f"injection.{field}: {error.public}") from error
    if ports is None:
        raise ConfigError(ConfigCode.PORTS, f"injection.{field}: '*' is not allowed; list ports and ranges")
    return ports
