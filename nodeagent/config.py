"""Configuration of the node agent: a YAML file and `GATEHOUSE_AGENT_*` variables.

`docs/nodeagent.md` lists every field with its default. Names that nobody knows are refused. Relative
paths are taken from the directory of the configuration file.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from mesh import settings
from mesh.obs.logs import LEVELS
from mesh.settings import setting

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
class AgentSettings:
    """Everything that the agent is told from outside."""

    directory: Path = setting("Directory with Workload, Service, Mesh, KeySet and policy documents.")
    sockets: Path = setting(
        "Directory in which each workload gets a directory with its socket; made if missing.",
        default=Path("/run/gatehouse/sockets"),
    )
    listen: Listen = setting(
        "Where /livez, /readyz, /metrics and /status are served: an IP address and port, or unix:/path."
        " /status answers local callers only.",
        default=Listen("127.0.0.1", 15094),
        parse=Listen.parse,
    )
    ca: CaSettings = setting("The authority.")
    rotation: RotationSettings = setting("Renewal.", default_factory=RotationSettings)
    debounce: dt.timedelta = setting(
        "How long the directory must be quiet before a change is applied.",
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
    base = (file.parent if file is not None else Path()).absolute()
    return replace(
        loaded,
        directory=base / loaded.directory,
        sockets=base / loaded.sockets,
        ca=replace(loaded.ca, root_file=base / loaded.ca.root_file),
    )
