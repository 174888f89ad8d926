"""Command line of the authority: `python -m ca serve`, `python -m ca check`."""

from __future__ import annotations

import argparse
import ctypes
import os
import resource
import sys
from pathlib import Path

from ca import config as configuration
from ca.config import CaConfig
from mesh import settings
from mesh.errors import MeshError
from mesh.obs import logs

EXIT_OK = 0
EXIT_PROBLEM = 1
EXIT_CONFIG = 2
_PR_SET_DUMPABLE = 4

_EPILOG = """\
exit codes:
  0  stopped as asked; check: everything is good
  1  check: something does not work
  2  the arguments or the configuration are wrong
  3  a worker could not start; the log says why

signals: TERM drains and stops, INT stops at once, HUP reads keys and token keys again.
Every setting may also come from the environment: GATEHOUSE_CA_LISTEN__GRPC=0.0.0.0:15012.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run a command; the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command == "settings":
        _print_settings()
        return EXIT_OK
    try:
        config = configuration.load(options.config, os.environ, _overrides(options.set))
    except MeshError as e:
        print(f"ca: {e.public}", file=sys.stderr)  # noqa: T201 - the log is not set up yet
        return EXIT_CONFIG
    logs.configure(service="ca", level=config.log_level, json=config.log_json)
    keep_secrets_in_memory()
    if options.command == "check":
        return check(config)
    from ca.gunicorn_conf import CaApplication

    CaApplication(config).run()
    return EXIT_OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ca",
        description="Certificate authority of Gatehouse: issues X.509-SVIDs to proven workloads.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in (
        ("serve", "run the authority"),
        ("check", "check the configuration and the files it names, and say what serve would do"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--config", type=Path, metavar="FILE", help="YAML file; see `ca settings`")
        command.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="NAME=VALUE",
            help="a setting, e.g. listen.grpc=[::]:15012",
        )
    commands.add_parser("settings", help="list every setting with its default")
    return parser


def _overrides(pairs: list[str]) -> dict[str, object]:
    return {name: value for name, _, value in (pair.partition("=") for pair in pairs)}


def _print_settings() -> None:
    for row in settings.describe(CaConfig, configuration.ENV_PREFIX):
        default = "required" if row.default is None else f"default {row.default or 'none'}"
        print(f"{row.path}  ({row.type}; {default})\n    {row.doc}")  # noqa: T201 - the output


def check(config: CaConfig) -> int:
    """Say what `serve` would do; opens no port and makes no root."""
    from ca import check as checks

    lines, good = checks.describe(config)
    for line in lines:
        print(line)  # noqa: T201 - the output
    return EXIT_OK if good else EXIT_PROBLEM


def keep_secrets_in_memory() -> None:
    """No core dumps, and no other process of this user may read our memory."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        logs.logger(__name__).warning("memory stays readable", error=os.strerror(ctypes.get_errno()))


if __name__ == "__main__":
    sys.exit(main())
