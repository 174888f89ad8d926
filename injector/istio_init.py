"""The init container `istio-init`: apply the capture rules, verify them, say what was done.

Runs as root with NET_ADMIN and nothing else, on a read-only root file system. It must fail when a
rule is missing: a pod whose traffic is not captured would run unprotected (exit code 1). Bad
options are exit code 2. Standard library only: this is on the path of every pod start.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from injector.core.capture import PASSTHROUGH_V6, TABLE, CaptureConfig, render_nft
from injector.core.capture_iptables import JUMPS, render_iptables
from mesh.errors import Category, Code, MeshError

EXIT_FAILED, EXIT_USAGE = 1, 2
_TIMEOUT_SECONDS = 30


class InitCode(Code):
    """Why capture could not be set up."""

    NO_TOOL = "init_no_tool"
    APPLY = "init_apply_failed"
    VERIFY = "init_verify_failed"


class InitError(MeshError):
    """Capture is not in place."""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="istio-init",
        description="Redirects the pod's traffic to its sidecar. One atomic transaction, safe to repeat.",
    )
    parser.add_argument(
        "--config", default="{}", metavar="JSON", help="what to capture (the injector writes it)"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the rules, change nothing")
    parser.add_argument(
        "--backend", choices=["auto", "nft", "iptables"], default="auto", help="default: auto"
    )
    options = parser.parse_args(argv)
    try:
        config = CaptureConfig.from_json(options.config)
        if options.dry_run:
            sys.stdout.write(render_nft(config))
            return 0
        backend = apply(config, options.backend)
    except InitError as error:
        sys.stderr.write(f"istio-init: {error}\n  detail: {error.private}\n")
        return EXIT_FAILED
    except MeshError as error:
        sys.stderr.write(f"istio-init: {error}\n")
        return EXIT_USAGE
    sys.stdout.write(f"istio-init: capture is in place and verified ({backend}, IPv4 and IPv6)\n")
    return 0


def apply(config: CaptureConfig, backend: str = "auto") -> str:
    """Apply and verify; returns the back end that did it (`nft` or `iptables`).

    Raises:
        InitError: no tool could set the rules up, or they are not there afterwards.
    """
    if backend == "auto":
        backend = (
            "nft" if shutil.which("nft") and _run(["nft", "list", "tables"]).returncode == 0 else "iptables"
        )
    if backend == "nft":
        _checked(["nft", "-f", "-"], render_nft(config))
        _verify_nft(config)
    else:
        for version in (4, 6):
            _apply_iptables(config, version)
    _add_passthrough_address()
    return backend


def ensure(config: CaptureConfig) -> str:
    """`apply` unless all rules are there already, as far as a count can tell; "" when nothing was to do.

    Connections and counters of rules that are in force are left alone.

    Raises:
        InitError: as `apply`.
    """
    if _in_place(config):
        _add_passthrough_address()
        return ""
    return apply(config)


def _in_place(config: CaptureConfig) -> bool:
    done = _run(["nft", "-j", "list", "table", "inet", TABLE])
    try:
        return done.returncode == 0 and _count(done.stdout) == _wanted(config)
    except (ValueError, LookupError, TypeError):
        return False


def _count(listing: str) -> int:
    return sum("rule" in item for item in json.loads(listing)["nftables"])


def _wanted(config: CaptureConfig) -> int:
    lines = render_nft(config).splitlines()
    return sum(line.startswith("    ") and "policy accept" not in line for line in lines)


def _verify_nft(config: CaptureConfig) -> None:
    found = _count(_checked(["nft", "-j", "list", "table", "inet", TABLE]))
    wanted = _wanted(config)
    if found != wanted:
        raise InitError(
            InitCode.VERIFY,
            f"{found} capture rules are in place, {wanted} were written; does something else edit them?",
            category=Category.INTERNAL,
        )


def _apply_iptables(config: CaptureConfig, version: int) -> None:
    tool = "iptables" if version == 4 else "ip6tables"
    if shutil.which(f"{tool}-restore") is None:
        if version == 6 and not Path("/proc/net/if_inet6").exists():
            return  # no IPv6 in this kernel: nothing can leak through it
        raise InitError(
            InitCode.NO_TOOL,
            f"neither nft nor {tool} works here; next: use the Gatehouse proxy image, which ships nft",
            category=Category.FAILED_PRECONDITION,
        )
    saved = _checked([f"{tool}-save", "-t", "nat"])
    present = frozenset(base for base, ours in JUMPS.items() if f"-A {base} -p tcp -j {ours}" in saved)
    _checked([f"{tool}-restore", "--noflush"], render_iptables(config, version, present))
    after = _checked([f"{tool}-save", "-t", "nat"])
    missing = [ours for base, ours in JUMPS.items() if f"-A {base} -p tcp -j {ours}" not in after]
    if missing:
        raise InitError(
            InitCode.VERIFY,
            f"{tool}: no jump to {', '.join(missing)} after applying",
            category=Category.INTERNAL,
        )


def _add_passthrough_address() -> None:
    """Envoy's IPv6 connections to the application need a local source address of their own."""
    if not Path("/proc/net/if_inet6").exists() or not Path("/proc/net/if_inet6").read_text(encoding="ascii"):
        return
    done = _run(["ip", "-6", "addr", "add", f"{PASSTHROUGH_V6}/128", "dev", "lo"])
    if done.returncode and "File exists" not in done.stderr and "already assigned" not in done.stderr:
        raise InitError(
            InitCode.APPLY,
            f"the address {PASSTHROUGH_V6} could not be added to lo, inbound IPv6 would fail",
            category=Category.INTERNAL,
            private=done.stderr.strip(),
        )


def _checked(command: list[str], script: str = "") -> str:
    done = _run(command, script)
    if done.returncode:
        raise InitError(
            InitCode.APPLY,
            f"{' '.join(command)} failed with exit code {done.returncode}; the container needs CAP_NET_ADMIN",
            category=Category.INTERNAL,
            private=done.stderr.strip(),
        )
    return done.stdout


def _run(command: list[str], script: str = "") -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(  # noqa: S603  # fixed commands, no shell, the script goes to stdin
            command, input=script, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, 127, "", str(error))


if __name__ == "__main__":
    sys.exit(main())
