"""The same capture rules for iptables, where the kernel or the image has no nftables.

One `iptables-restore --noflush` script for each IP family. Declaring a chain of our own empties it,
so the script is idempotent as long as the jumps from the built-in chains are added only once: the
caller says which jumps exist already.
"""

from __future__ import annotations

import ipaddress

from injector.core import capture
from injector.core.capture import CaptureConfig, PortRange

IN_CHAIN, OUT_CHAIN = "GATEHOUSE_IN", "GATEHOUSE_OUT"
JUMPS = {"PREROUTING": IN_CHAIN, "OUTPUT": OUT_CHAIN}


def render_iptables(config: CaptureConfig, version: int, present: frozenset[str]) -> str:
    """The nat table of one family.

    Args:
        config: what is captured.
        version: 4 or 6.
        present: built-in chains that already jump to ours.
    """
    lines = ["*nat", f":{IN_CHAIN} - [0:0]", f":{OUT_CHAIN} - [0:0]"]
    lines += [f"-A {IN_CHAIN} {rule}" for rule in _inbound(config, version)]
    lines += [f"-A {OUT_CHAIN} {rule}" for rule in _outbound(config, version)]
    # Position 1: rules that others left in the namespace must not decide before ours.
    lines += [f"-I {base} 1 -p tcp -j {ours}" for base, ours in JUMPS.items() if base not in present]
    lines.append("COMMIT")
    return "\n".join(lines) + "\n"


def _inbound(config: CaptureConfig, version: int) -> list[str]:
    rules = [f"-i {name} -j RETURN" for name in config.exclude_interfaces]
    for name in config.reroute_interfaces:
        rules += [f"-i {name} {rule}" for rule in _redirects(config, version)] + [f"-i {name} -j RETURN"]
    reserved = tuple(PortRange(p, p) for p in capture.RESERVED_INBOUND)
    rules += [f"-p tcp --dport {_port(r)} -j RETURN" for r in (*reserved, *config.exclude_inbound)]
    to = f"-j REDIRECT --to-ports {capture.INBOUND_PORT}"
    if config.include_inbound is None:
        return [*rules, f"-p tcp {to}"]
    return rules + [f"-p tcp --dport {_port(r)} {to}" for r in config.include_inbound]


def _outbound(config: CaptureConfig, version: int) -> list[str]:
    loopback = "127.0.0.0/8" if version == 4 else "::1/128"
    passthrough = capture.PASSTHROUGH_V4 if version == 4 else capture.PASSTHROUGH_V6
    owner = f"-m owner --uid-owner {config.proxy_uid}"
    rules = [f"-o {name} -j RETURN" for name in config.exclude_interfaces]
    rules += [f"-p tcp --dport {_port(r)} -j RETURN" for r in config.exclude_outbound_ports]
    rules.append(f"-o lo -s {passthrough} -j RETURN")
    if version == 6:
        rules.append("-o lo -s ::1 -j RETURN")
    own = [f"-o lo -p tcp --dport {p} -j RETURN" for p in (capture.PROBE_PORT, capture.READY_PORT)]
    rules += [
        *own,
        f"-o lo ! -d {loopback} -p tcp {owner} -j REDIRECT --to-ports {capture.INBOUND_PORT}",
        "-o lo -j RETURN",
        f"{owner} -j RETURN",
        f"-d {loopback} -j RETURN",
    ]
    return rules + _redirects(config, version)


def _redirects(config: CaptureConfig, version: int) -> list[str]:
    to = f"-j REDIRECT --to-ports {capture.OUTBOUND_PORT}"
    rules = [f"-d {block} -j RETURN" for block in _family(config.exclude_outbound_cidrs, version)]
    rules += [f"-p tcp --dport {_port(r)} {to}" for r in config.include_outbound_ports]
    if config.include_outbound_cidrs is None:
        return [*rules, f"-p tcp {to}"]
    return rules + [f"-d {block} -p tcp {to}" for block in _family(config.include_outbound_cidrs, version)]


def _family(cidrs: tuple[str, ...], version: int) -> list[str]:
    return [block for block in cidrs if ipaddress.ip_network(block).version == version]


def _port(r: PortRange) -> str:
    return str(r.first) if r.first == r.last else f"{r.first}:{r.last}"
