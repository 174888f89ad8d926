"""From parsed arguments to a command, and from a refusal to an exit code."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import sys
from typing import Final

from mesh.errors import Category, MeshError
from meshctl.exits import EXIT_PROBLEM, EXIT_UNREACHABLE, EXIT_USAGE
from meshctl.terminal import Screen

_COMMANDS: Final = {
    "inject": ("meshctl.inject", "run_inject"),
    "uninject": ("meshctl.inject", "run_uninject"),
    "explain": ("meshctl.explain", "run_explain"),
    "check": ("meshctl.check", "run_check_command"),
    "ca": ("meshctl.ca", "run_ca"),
    "images": ("meshctl.images", "run_images"),
    "identity": ("meshctl.identity", "run_identity"),
    "version": ("meshctl.version", "run_version"),
}
_EXITS: Final = {
    Category.UNAVAILABLE: EXIT_UNREACHABLE,
    Category.UNAUTHENTICATED: EXIT_UNREACHABLE,
    Category.PERMISSION_DENIED: EXIT_UNREACHABLE,
    Category.INTERNAL: EXIT_PROBLEM,
}


def run(options: argparse.Namespace, screen: Screen | None = None) -> int:
    """Run the command that was parsed; the exit code."""
    found = screen if screen is not None else Screen.of_process(sys.stdout, sys.stderr)
    try:
        module, name = _COMMANDS[options.command]
        with contextlib.ExitStack() as options.at_exit:
            code: int = getattr(importlib.import_module(module), name)(options, found)
    except MeshError as error:
        found.refuse(error.public, str(error.code))
        return _EXITS.get(error.category, EXIT_USAGE)
    return code
