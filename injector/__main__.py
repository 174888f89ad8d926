"""Command line of the injector: `python -m injector serve`, `certificate`, `upkeep`, `capture`, `check`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from injector import config as configuration
from injector.config import InjectorConfig
from mesh import settings
from mesh.errors import MeshError
from mesh.hardening import harden

EXIT_OK, EXIT_PROBLEM, EXIT_CONFIG = 0, 1, 2

_EPILOG = """\
exit codes:
  0  stopped as asked; check: everything is good
  1  something does not work
  2  the arguments or the configuration are wrong
  3  a worker could not start; the log says why

signals: TERM drains and stops, INT stops at once, HUP looks at the files now.
Every setting may also come from the environment: GATEHOUSE_INJECTOR_LISTEN__HTTPS=0.0.0.0:15017.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run a command; the exit code."""
    options = _parser().parse_args(arguments)
    if options.command == "settings":
        _print_settings()
        return EXIT_OK
    try:
        config = configuration.load(options.config, os.environ, _overrides(options.set))
    except MeshError as error:
        print(f"injector: {error.public}", file=sys.stderr)  # noqa: T201 - the log is not set up yet
        return EXIT_CONFIG
    if options.command == "check":
        print(f"ok: settings {config.settings().digest}")  # noqa: T201 - the output
        return EXIT_OK
    try:
        harden()
        return _run(options.command, config, options.config)
    except MeshError as error:
        print(f"injector: {error.public}", file=sys.stderr)  # noqa: T201 - for `kubectl logs`
        return EXIT_PROBLEM


def _run(command: str, config: InjectorConfig, file: Path | None) -> int:
    if command == "serve":
        from injector.gunicorn_conf import InjectorApplication, prepare_metrics

        prepare_metrics(config)
        InjectorApplication(config, file).run()
        return EXIT_OK
    from mesh.obs import logs

    logs.configure(service=f"injector-{command}", level=config.log_level, json=config.log_json)
    if command == "capture":
        from injector import capture_agent

        return capture_agent.run(config)
    from injector import upkeep

    return upkeep.run(config, certificate=command == "certificate")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="injector",
        description="Sidecar injector of Gatehouse: the mutating webhook and what keeps it going.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in (
        ("serve", "run the webhook"),
        ("certificate", "keep the webhook's certificate: beside each webhook, in its pod"),
        ("upkeep", "keep caBundle and key sets: one leader of the cluster works"),
        ("capture", "the agent of a node that has the capture rules of its pods written"),
        ("check", "check the configuration"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--config", type=Path, metavar="FILE", help="YAML file; see `injector settings`")
        command.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="NAME=VALUE",
            help="a setting, e.g. listen.https=[::]:15017",
        )
    commands.add_parser("settings", help="list every setting with its default")
    return parser


def _overrides(pairs: list[str]) -> dict[str, object]:
    return {name: value for name, _, value in (pair.partition("=") for pair in pairs)}


def _print_settings() -> None:
    for row in settings.describe(InjectorConfig, configuration.ENV_PREFIX):
        default = "required" if row.default is None else f"default {row.default or 'none'}"
        print(f"{row.path}  ({row.type}; {default})\n    {row.doc}")  # noqa: T201 - the output


if __name__ == "__main__":
    sys.exit(main())
