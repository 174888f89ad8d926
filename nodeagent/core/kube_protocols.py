"""What a port speaks: by its `appProtocol`, else by the prefix of its name, else by its number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from mesh.topology import AppProtocol

_BY_NAME: Final = {
    "http": AppProtocol.HTTP,
    "http1": AppProtocol.HTTP,
    "http/1.1": AppProtocol.HTTP,
    "grpc-web": AppProtocol.HTTP,
    "kubernetes.io/ws": AppProtocol.HTTP,
    "http2": AppProtocol.HTTP2,
    "h2c": AppProtocol.HTTP2,
    "kubernetes.io/h2c": AppProtocol.HTTP2,
    "grpc": AppProtocol.HTTP2,
    # TLS that the applications speak themselves: bytes to the proxy.
    "https": AppProtocol.TCP,
    "tls": AppProtocol.TCP,
    "kubernetes.io/wss": AppProtocol.TCP,
    "tcp": AppProtocol.TCP,
    "mongo": AppProtocol.TCP,
    "mysql": AppProtocol.TCP,
    "redis": AppProtocol.TCP,
}
_PREFIXES_WITH_DASH: Final = ("grpc-web",)
_SERVER_FIRST_NAMES: Final = frozenset({"mysql"})
SERVER_FIRST_PORTS: Final = frozenset({21, 22, 25, 110, 143, 587, 3306})
"""Ports whose servers greet: FTP, SSH, SMTP, POP3, IMAP, submission, MySQL."""
_TCP_PORTS: Final = SERVER_FIRST_PORTS | {53, 27017}


@dataclass(frozen=True, slots=True)
class PortProtocol:
    """What a port speaks.

    Attributes:
        declared: something said so; else it is sniffed.
    """

    protocol: AppProtocol
    server_first: bool
    declared: bool


def protocol_of(number: int, name: str, app_protocol: str = "") -> PortProtocol:
    """Protocol of a port (policy d.3).

    Args:
        number: of the service port, or of the container's.
        name: its name; the part before the first dash counts.
        app_protocol: of the service port; when it is set, the name does not count.
    """
    said = (app_protocol or _prefix(name)).lower()
    found = _BY_NAME.get(said)
    if found is not None:
        first = found is AppProtocol.TCP and (said in _SERVER_FIRST_NAMES or number in SERVER_FIRST_PORTS)
        return PortProtocol(found, first, True)
    if not app_protocol and number in _TCP_PORTS:
        return PortProtocol(AppProtocol.TCP, number in SERVER_FIRST_PORTS, True)
    return PortProtocol(AppProtocol.AUTO, number in SERVER_FIRST_PORTS, False)


def _prefix(name: str) -> str:
    lower = name.lower()
    for prefix in _PREFIXES_WITH_DASH:
        if lower == prefix or lower.startswith(f"{prefix}-"):
            return prefix
    return lower.partition("-")[0]
