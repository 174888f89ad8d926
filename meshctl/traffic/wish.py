"""What the arguments of `meshctl check --traffic` ask for."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Final

from meshctl.errors import bad_argument

MAX_SECONDS: Final = 600
SECONDS: Final = 120.0
"""A pod of three containers needs half a minute to start on a busy node; most clusters need a third."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What was asked for.

    Attributes:
        namespace: an existing one; empty = one is made.
        image: of the pods; empty = the control plane's.
        seconds: for the whole run, without the cleaning up.
        keep: leave everything there.
    """

    namespace: str = ""
    image: str = ""
    seconds: float = SECONDS
    keep: bool = False


def read_wish(options: argparse.Namespace) -> Wish | None:
    """What the arguments ask for; None without `--traffic`.

    Raises:
        CtlError: arguments that do not fit each other.
    """
    if not options.traffic:
        given = {
            "--traffic-namespace": options.traffic_namespace,
            "--traffic-timeout": options.traffic_timeout is not None,
            "--image": options.image,
            "--keep": options.keep,
        }
        for name, value in given.items():
            if value:
                raise bad_argument(f"{name} says how --traffic is done; next: add --traffic, or leave it out")
        return None
    if options.pre:
        raise bad_argument("--traffic needs an installation, --pre is before it; next: leave one of them out")
    seconds = SECONDS if options.traffic_timeout is None else options.traffic_timeout
    if not 1 <= seconds <= MAX_SECONDS:
        raise bad_argument(f"--traffic-timeout {seconds:g}: allowed are seconds from 1 to {MAX_SECONDS}")
    return Wish(
        namespace=options.traffic_namespace or "",
        image=options.image or "",
        seconds=seconds,
        keep=options.keep,
    )
