"""Command line of the node agent: `python -m nodeagent serve|check|bootstrap|status|settings`.

Nothing heavy is imported before the command is known: `--help` answers like a shell command.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

DEFAULT_CONFIG = Path("/etc/gatehouse/nodeagent.yaml")
EXIT_OK = 0
EXIT_PROBLEM = 1
EXIT_CONFIG = 2
EXIT_UNREACHABLE = 3

_EPILOG = """\
first steps:
  nodeagent check --dir ./demo                     is everything in the directory understood?
  nodeagent serve --config nodeagent.yaml          serve its workloads
  nodeagent status --config nodeagent.yaml         who has a certificate, what was refused
  nodeagent bootstrap --config nodeagent.yaml --workload demo/web --command | sh

exit codes:
  0  all good
  1  check: errors were found; status: the agent is not ready; serve: it could not start
  2  the arguments or the configuration are wrong
  3  status: no agent answers

Every setting may also come from the environment: GATEHOUSE_AGENT_CA__ADDRESS=ca.example:15012.
`nodeagent settings` lists them. TERM and INT end all streams and stop the agent.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run a command; the exit code."""
    if (sys.argv[1:] if arguments is None else arguments) == ["--version"]:
        _print_version()  # without a parser, which takes as long to make as the answer
        sys.exit(EXIT_OK)
    options = _parser().parse_args(arguments)
    from mesh.errors import MeshError
    from nodeagent import commands

    try:
        return {
            "serve": commands.serve,
            "check": commands.check,
            "bootstrap": commands.print_bootstrap,
            "status": commands.status,
            "settings": commands.print_settings,
        }[options.command](options)
    except MeshError as error:
        print(f"nodeagent: {error.public}", file=sys.stderr)  # noqa: T201 - the answer to a person
        return EXIT_CONFIG
    except BrokenPipeError:
        os.close(sys.stdout.fileno())  # the reader left: `nodeagent status | head`
        return EXIT_OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nodeagent",
        description="Node agent of Gatehouse: gives each workload of this machine an identity that renews\n"
        "by itself, and its proxy the configuration that enforces the policies.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="serve the workloads of a directory until told to stop")
    _config(serve)

    check = commands.add_parser("check", help="validate a directory and print what is wrong")
    check.add_argument("--dir", type=Path, required=True, help="directory with the documents")
    _output(check)

    bootstrap = commands.add_parser(
        "bootstrap", help="print the Envoy bootstrap (JSON) of a workload, or its whole command line"
    )
    _config(bootstrap)
    bootstrap.add_argument("--workload", required=True, metavar="NAMESPACE/NAME")
    bootstrap.add_argument(
        "--admin",
        metavar="HOST:PORT|PATH",
        help="Envoy's admin endpoint: a loopback address or a Unix socket; default is none",
    )
    bootstrap.add_argument(
        "--admin-all", action="store_true", help="allow every admin path, not only /ready and /stats"
    )
    bootstrap.add_argument("--readiness", metavar="HOST:PORT", help="serve /healthz/ready here")
    bootstrap.add_argument("--stats", metavar="HOST:PORT", help="serve /stats/prometheus here; needs --admin")
    bootstrap.add_argument("--concurrency", type=int, default=2, help="Envoy's worker threads (default 2)")
    bootstrap.add_argument("--envoy", default="envoy", help="the envoy command of --command (default envoy)")
    bootstrap.add_argument(
        "--command", dest="whole", action="store_true", help="print the whole command line for a shell"
    )

    status = commands.add_parser("status", help="ask the running agent")
    _config(status)
    status.add_argument("--address", help="where it listens, instead of the configuration's `listen`")
    _output(status)

    settings = commands.add_parser("settings", help="list every setting, its variable and its default")
    _output(settings)
    return parser


class _Version(argparse.Action):
    """Looks the version up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        _print_version()
        parser.exit()


def _print_version() -> None:
    print(f"nodeagent (gatehouse) {_installed_version()}")  # noqa: T201 - the answer to a person


def _installed_version() -> str:
    """From the name of `gatehouse-<version>.dist-info`: `importlib.metadata` takes as long as the rest."""
    for entry in sys.path:
        try:
            names = [path.name for path in Path(entry or ".").iterdir()]
        except OSError:
            continue  # sys.path may name what is not there, or an archive
        for name in names:
            if name.startswith("gatehouse-") and name.endswith(".dist-info"):
                return name.removeprefix("gatehouse-").removesuffix(".dist-info")
    return "from a checkout"


def _config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        type=Path,
        default=DEFAULT_CONFIG,
        help=f"configuration file (default {DEFAULT_CONFIG})",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="one setting, e.g. log_level=debug"
    )


def _output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o", "--output", choices=("table", "json"), default="table", help="form (default table)"
    )


if __name__ == "__main__":
    sys.exit(main())
