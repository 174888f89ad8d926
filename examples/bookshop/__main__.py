"""`python -m bookshop SERVICE`: one of the bookshop's services.

productpage | details | reviews | ratings | database    serve
set-ratings STARS STARS                                 change what the database holds
get URL                                                 print what a GET of URL gives; exit code 1 on failure
"""

from __future__ import annotations

import argparse
import os
import sys
import urllib.error
import urllib.request

from . import backends
from .productpage import productpage
from .web import PORT, serve

_SERVICES = {
    "productpage": productpage,
    "details": backends.details,
    "reviews": backends.reviews,
    "ratings": backends.ratings,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="bookshop", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("service", choices=[*_SERVICES, "database", "set-ratings", "get"])
    parser.add_argument("arguments", nargs="*")
    parser.add_argument(
        "--version", choices=["v1", "v2", "v3"], default=os.environ.get("SERVICE_VERSION", "v1")
    )
    parser.add_argument("--port", type=int, help=f"default {PORT}, the database's {backends.DATABASE_PORT}")
    options = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # a real file, not a test's
    if options.service in _SERVICES:
        serve(
            options.service,
            _SERVICES[options.service](options.version),
            PORT if options.port is None else options.port,
        )
    elif options.service == "database":
        backends.serve_database(backends.DATABASE_PORT if options.port is None else options.port)
    elif options.service == "set-ratings":
        stars = dict(zip(("Reviewer1", "Reviewer2"), map(int, options.arguments), strict=False))
        port = options.port or backends.DATABASE_PORT
        sys.stdout.write(f"{backends.ask_database('127.0.0.1', port, {'set': stars})}\n")
    else:
        return _get(options.arguments[0])
    return 0


def _get(url: str) -> int:
    """For trying things from inside a pod: the image has no curl."""
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            sys.stdout.write(response.read().decode(errors="replace") + "\n")
    except urllib.error.HTTPError as error:
        sys.stdout.write(error.read().decode(errors="replace") + "\n")
        sys.stderr.write(f"{error.code} {error.reason}\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
