"""Traffic capture as pure data: options -> one nftables transaction.

The script replaces our table as a whole, so applying it is atomic and applying it twice equals
applying it once; both IP families live in one `inet` table and can never drift apart.

Only the proxy's *user* is exempt. Exempting its group as well would let any process with that
primary group leave the pod uncaptured.
"""

from __future__ import annotations

import ipaddress
import json
import re
from dataclasses import dataclass, fields
from typing import Any

from mesh import ports
from mesh.errors import Code, MeshError

TABLE = "gatehouse"
OUTBOUND_PORT, INBOUND_PORT = ports.OUTBOUND, ports.INBOUND
PROXY_UID = ports.PROXY_UID
PROBE_PORT, READY_PORT, STATS_PORT = ports.OWN
RESERVED_INBOUND = ports.OWN
"""Served by Envoy itself to the kubelet and to Prometheus, which have no mesh identity."""

PASSTHROUGH_V4, PASSTHROUGH_V6 = ports.PASSTHROUGH_V4, ports.PASSTHROUGH_V6
"""Source addresses of Envoy's connections to the application; rules must not catch them again."""

_INTERFACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,14}")  # IFNAMSIZ - 1
MAX_ITEMS = 256
_MAX_PORT = 65535
MAX_CHARACTERS = 64 << 10
_MAX_UID = (1 << 32) - 2  # the last one stands for "no user"


class CaptureCode(Code):
    """Why capture options were refused."""

    PORTS = "capture_ports"
    CIDRS = "capture_cidrs"
    INTERFACES = "capture_interfaces"
    TOO_MANY = "capture_too_many"
    FORMAT = "capture_format"


class CaptureError(MeshError):
    """Capture options that cannot become rules."""


@dataclass(frozen=True, slots=True, order=True)
class PortRange:
    """Ports `first` to `last`, both included."""

    first: int
    last: int

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureConfig:
    """What is captured; the one normalised form that every way of applying it reads.

    Attributes:
        include_inbound: None = every port (`*`); a tuple = just these, empty = no inbound capture.
        exclude_inbound: never captured, also when `include_inbound` lists them.
        include_outbound_cidrs: None = every address (`*`).
        exclude_outbound_cidrs: beat every inclusion.
        include_outbound_ports: captured whatever the address.
        exclude_outbound_ports: beat everything, self-calls included.
        exclude_interfaces: nothing that enters or leaves through them is captured.
        reroute_interfaces: what enters through them is client traffic (bridges of virtual machines).
    """

    include_inbound: tuple[PortRange, ...] | None = None
    exclude_inbound: tuple[PortRange, ...] = ()
    include_outbound_cidrs: tuple[str, ...] | None = None
    exclude_outbound_cidrs: tuple[str, ...] = ()
    include_outbound_ports: tuple[PortRange, ...] = ()
    exclude_outbound_ports: tuple[PortRange, ...] = ()
    exclude_interfaces: tuple[str, ...] = ()
    reroute_interfaces: tuple[str, ...] = ()
    proxy_uid: int = PROXY_UID
    drop_invalid: bool = False

    def to_json(self) -> str:
        """Stable JSON: the argument of the init container."""
        return json.dumps(
            {f.name: _plain(getattr(self, f.name)) for f in fields(self)},
            separators=(",", ":"),
            sort_keys=True,
        )

    @classmethod
    def from_json(cls, text: str) -> CaptureConfig:
        """The inverse of `to_json`; every value is checked again.

        Raises:
            CaptureError: unknown key, wrong type, or a value that cannot become a rule.
        """
        if len(text) > MAX_CHARACTERS:
            raise CaptureError(
                CaptureCode.FORMAT,
                f"capture configuration has {len(text)} characters; at most {MAX_CHARACTERS} are allowed",
            )
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise CaptureError(CaptureCode.FORMAT, f"capture configuration is not JSON: {error}") from error
        known = {f.name for f in fields(cls)}
        if not isinstance(data, dict) or not set(data) <= known:
            raise CaptureError(CaptureCode.FORMAT, f"capture configuration: allowed keys are {sorted(known)}")
        values: dict[str, Any] = {name: _from_plain(name, value) for name, value in data.items()}
        return cls(**values)


def parse_ports(text: str) -> tuple[PortRange, ...] | None:
    """A comma list of ports and ranges (`80,8000-8100`); `*` is None, empty text is empty.

    Raises:
        CaptureError: naming the item that is not a port.
    """
    if text.strip() == "*":
        return None
    items = [item.strip() for item in text.split(",") if item.strip()]
    _bounded(items)
    return tuple(sorted({_port_range(item) for item in items}))


def parse_cidrs(text: str) -> tuple[str, ...] | None:
    """A comma list of CIDR blocks of both families; `*` is None, empty text is empty.

    Raises:
        CaptureError: naming the item that is not a block.
    """
    if text.strip() == "*":
        return None
    items = [item.strip() for item in text.split(",") if item.strip()]
    _bounded(items)
    return tuple(_cidr(item) for item in items)


def parse_interfaces(text: str) -> tuple[str, ...]:
    """A comma list of network interface names (at most 15 characters each).

    Raises:
        CaptureError: naming the item that is not an interface name.
    """
    items = [item.strip() for item in text.split(",") if item.strip()]
    _bounded(items)
    return tuple(_interface(item) for item in items)


def probe_port(config: CaptureConfig) -> int | None:
    """A port of the pod's own address at which only the rules let the proxy's user arrive anywhere.

    The proxy's connections to the pod itself always go to the inbound port, whatever else is captured. So
    a process of that user can tell without any right that the rules are in force: they are one transaction.
    None: the rules leave out loopback, or every port, and nobody can tell.
    """
    if "lo" in config.exclude_interfaces:
        return None
    candidates: tuple[int, ...] = (ports.VALIDATION, *range(1, _MAX_PORT + 1))
    for port in candidates:
        if port not in ports.RESERVED and not any(
            r.first <= port <= r.last for r in config.exclude_outbound_ports
        ):
            return port
    return None


def render_nft(config: CaptureConfig) -> str:
    """The nftables script of a configuration: one transaction, idempotent.

    `table` before `delete table` makes the deletion legal when the table does not exist yet.
    """
    lines = [f"table inet {TABLE}", f"delete table inet {TABLE}", f"table inet {TABLE} {{"]
    if config.drop_invalid:
        lines += _chain(
            "drop_invalid", "type filter hook prerouting priority mangle", ["ct state invalid drop"]
        )
    lines += _chain("prerouting", "type nat hook prerouting priority dstnat", _prerouting(config))
    lines += _chain("output", "type nat hook output priority -100", _output(config))
    lines.append("}")
    return "\n".join(lines) + "\n"


def _chain(name: str, hook: str, rules: list[str]) -> list[str]:
    return [f"  chain {name} {{", f"    {hook}; policy accept;", *(f"    {r}" for r in rules), "  }"]


def _prerouting(config: CaptureConfig) -> list[str]:
    rules = [f"iifname {_names(config.exclude_interfaces)} return"] if config.exclude_interfaces else []
    if config.reroute_interfaces:
        # Guests behind a bridge enter as "inbound", but they are clients of the mesh.
        via = f"iifname {_names(config.reroute_interfaces)}"
        rules += [f"{via} {match}" for match in _outbound_redirects(config)] + [f"{via} return"]
    reserved = tuple(PortRange(p, p) for p in RESERVED_INBOUND)
    rules.append(f"tcp dport {_ports(reserved + config.exclude_inbound)} counter return")
    if config.include_inbound is None:
        rules.append(f"meta l4proto tcp counter redirect to :{INBOUND_PORT}")
    elif config.include_inbound:
        rules.append(f"tcp dport {_ports(config.include_inbound)} counter redirect to :{INBOUND_PORT}")
    return rules


def _output(config: CaptureConfig) -> list[str]:
    proxy = f"meta skuid {config.proxy_uid}"
    own = _ports(tuple(PortRange(p, p) for p in (PROBE_PORT, READY_PORT)))
    inbound = f"tcp dport != {own} counter redirect to :{INBOUND_PORT}"
    rules = [f"oifname {_names(config.exclude_interfaces)} return"] if config.exclude_interfaces else []
    if config.exclude_outbound_ports:
        rules.append(f"tcp dport {_ports(config.exclude_outbound_ports)} counter return")
    rules += [
        # Envoy's own connections to the application carry these sources.
        f'oifname "lo" ip saddr {PASSTHROUGH_V4} return',
        f'oifname "lo" ip6 saddr {{ {PASSTHROUGH_V6}, ::1 }} return',
        # Hairpin: the application called its own Service and Envoy picked this very pod. The
        # connection must enter through the inbound side to get mutual TLS and policy.
        f'oifname "lo" {proxy} ip daddr != 127.0.0.0/8 {inbound}',
        f'oifname "lo" {proxy} ip6 daddr != ::1 {inbound}',
        'oifname "lo" return',
        f"{proxy} counter return",
        "ip daddr 127.0.0.0/8 return",
        "ip6 daddr ::1 return",
    ]
    return rules + _outbound_redirects(config)


def _outbound_redirects(config: CaptureConfig) -> list[str]:
    to = f"counter redirect to :{OUTBOUND_PORT}"
    rules = [f"{match} counter return" for match in _daddr(config.exclude_outbound_cidrs)]
    if config.include_outbound_ports:
        rules.append(f"tcp dport {_ports(config.include_outbound_ports)} {to}")
    if config.include_outbound_cidrs is None:
        rules.append(f"meta l4proto tcp {to}")
    else:
        rules += [f"{match} meta l4proto tcp {to}" for match in _daddr(config.include_outbound_cidrs)]
    return rules


def _daddr(cidrs: tuple[str, ...]) -> list[str]:
    """Destination matches, one for each family that occurs."""
    out = []
    for family, version in (("ip", 4), ("ip6", 6)):
        blocks = [n for n in map(ipaddress.ip_network, cidrs) if n.version == version]
        merged = list(ipaddress.collapse_addresses(blocks))  # type: ignore[type-var]  # one version only
        if merged:
            out.append(f"{family} daddr {{ {', '.join(map(str, merged))} }}")
    return out


def _ports(ranges: tuple[PortRange, ...]) -> str:
    """An nft set; overlapping ranges are merged because a set refuses them."""
    merged: list[PortRange] = []
    for r in sorted(ranges):
        if merged and r.first <= merged[-1].last + 1:
            merged[-1] = PortRange(merged[-1].first, max(merged[-1].last, r.last))
        else:
            merged.append(r)
    return "{ " + ", ".join(map(str, merged)) + " }"


def _names(interfaces: tuple[str, ...]) -> str:
    return "{ " + ", ".join(f'"{name}"' for name in sorted(set(interfaces))) + " }"


def _port_range(item: str) -> PortRange:
    first, dash, last = item.partition("-")
    ends = (first, last if dash else first)
    if not all(re.fullmatch(r"[0-9]{1,5}", end) and 0 < int(end) < 65536 for end in ends):
        raise CaptureError(
            CaptureCode.PORTS,
            f"{item[:40]!r} is not a port or a range (1 to 65535; 80 or 8000-8100)",
        )
    if int(ends[0]) > int(ends[1]):
        raise CaptureError(CaptureCode.PORTS, f"range {item[:40]!r} ends before it begins")
    return PortRange(int(ends[0]), int(ends[1]))


def _cidr(item: str) -> str:
    try:
        if "%" in item:
            # The standard library takes any characters for a zone, and would give them back.
            raise ValueError("a block has no zone")
        return str(ipaddress.ip_network(item))
    except ValueError as error:
        raise CaptureError(
            CaptureCode.CIDRS, f"{item[:60]!r} is not a CIDR block such as 10.0.0.0/8 or fd00::/8: {error}"
        ) from error


def _interface(item: str) -> str:
    if not _INTERFACE.fullmatch(item):
        raise CaptureError(
            CaptureCode.INTERFACES,
            f"{item[:40]!r} is not an interface name (letters, digits, _ . -; at most 15)",
        )
    return item


def _bounded(items: list[str]) -> None:
    if len(items) > MAX_ITEMS:
        raise CaptureError(CaptureCode.TOO_MANY, f"{len(items)} items; at most {MAX_ITEMS} are allowed")


def _plain(value: object) -> object:
    if isinstance(value, tuple):
        return [str(v) for v in value]
    return value


def _from_plain(name: str, value: object) -> object:
    if name in {"proxy_uid", "drop_invalid"}:
        wanted = int if name == "proxy_uid" else bool
        if type(value) is not wanted:
            raise CaptureError(CaptureCode.FORMAT, f"{name}: {value!r:.60} is not of type {wanted.__name__}")
        if wanted is int and not 0 < value <= _MAX_UID:
            raise CaptureError(
                CaptureCode.FORMAT, f"{name}: {value!r:.60} is not a user from 1 to {_MAX_UID}"
            )
        return value
    nullable = name in {"include_inbound", "include_outbound_cidrs"}
    if value is None and nullable:
        return None
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise CaptureError(CaptureCode.FORMAT, f"{name}: expected a list of texts, found {value!r:.60}")
    _bounded(value)
    one = _cidr if "cidrs" in name else _interface if "interfaces" in name else _port_range
    return tuple(one(v) for v in value)
