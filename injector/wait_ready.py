"""Hold the application back until the proxy answers: the postStart hook of the classic sidecar.

The kubelet starts the next container only after this returns. It ends after a bounded time whatever
happens, and always with success: a failing hook would have the kubelet kill the proxy, which is only
waiting for the node agent. The pod's traffic is captured meanwhile, so nothing leaves it in plaintext.
Standard library only.
"""

from __future__ import annotations

import argparse
import http.client
import sys
import time
from collections.abc import Sequence

_POLL_SECONDS = 0.1
_REQUEST_SECONDS = 1.0
_LONGEST_SECONDS = 600


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code, which is always 0."""
    parser = argparse.ArgumentParser(prog="wait-ready", description="Waits until the proxy is ready.")
    parser.add_argument("--timeout", type=float, default=60.0, metavar="SECONDS", help="at most 600")
    parser.add_argument("--address", default="127.0.0.1:15021", metavar="HOST:PORT")
    parser.add_argument("--path", default="/healthz/ready")
    options = parser.parse_args(argv)
    host, _, port = options.address.rpartition(":")
    timeout = max(0.0, min(options.timeout, _LONGEST_SECONDS))
    if wait(host, int(port), options.path, timeout):
        return 0
    sys.stderr.write(
        f"wait-ready: the proxy is not ready after {timeout:g} s, the application starts without it;"
        " next: look at the node agent of this node\n"
    )
    return 0


def wait(host: str, port: int, path: str, timeout: float) -> bool:
    """Ask until the answer is 200 or `timeout` seconds are over."""
    end = time.monotonic() + timeout
    while True:
        if _ready(host, port, path):
            return True
        if time.monotonic() + _POLL_SECONDS >= end:
            return False
        time.sleep(_POLL_SECONDS)


def _ready(host: str, port: int, path: str) -> bool:
    connection = http.client.HTTPConnection(host, port, timeout=_REQUEST_SECONDS)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main())
