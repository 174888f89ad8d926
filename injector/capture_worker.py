"""The capture worker: `python3 -m injector.capture_worker`, the only process with rights on a node.

It listens on a Unix socket that it shares with the capture agent of its pod, and does one thing: write the
capture rules into the network namespace of a pod of this node, by the code of `istio-init`. It has no
token, no port, and reads nothing but that socket and `/proc`. Each request is answered by a child
process, so the worker itself never leaves its own namespace. Standard library only.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socketserver
import sys
from collections.abc import Sequence
from pathlib import Path

from injector import istio_init
from injector.capture_namespaces import PROC, Node, enter
from injector.core.capture_messages import MAX_LINE, Answer, Request
from injector.istio_init import InitError
from mesh.errors import Code, MeshError

EXIT_OK, EXIT_FAILED = 0, 1
SOCKET = "/run/gatehouse-capture/worker.sock"
_CHILDREN = 8
_CHILD_SECONDS = 90
_READ_SECONDS = 10.0
_MODE = 0o660


class WorkerCode(Code):
    """Why the capture worker did nothing, beside the pod's network and the rules."""

    INTERNAL = "capture_internal"


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="capture-worker", description="Writes capture rules into the pods of this node."
    )
    parser.add_argument("--socket", default=SOCKET, metavar="FILE")
    parser.add_argument("--proc", default=str(PROC), metavar="DIRECTORY", help="the node's processes")
    options = parser.parse_args(argv)
    try:
        node = Node.look(Path(options.proc))
    except MeshError as error:
        sys.stderr.write(f"capture-worker: {error}\n")
        return EXIT_FAILED
    with Worker(Path(options.socket), node) as worker:
        # Not an Event: a handler that only raises cannot wait for a lock.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_OK))
        sys.stdout.write(f"capture-worker: listening on {options.socket}\n")
        sys.stdout.flush()
        worker.serve_forever()
    return EXIT_OK


class Worker(socketserver.ForkingMixIn, socketserver.UnixStreamServer):
    """Answers each connection in a child process, at most eight at a time."""

    max_children = _CHILDREN
    block_on_close = False  # children end by themselves
    request_queue_size = 64

    def __init__(self, path: Path, node: Node) -> None:
        self.node = node
        with contextlib.suppress(FileNotFoundError):
            path.unlink()  # of a worker before this one
        super().__init__(str(path), _Handler)
        # Others than the agent's group have no business here.
        path.chmod(_MODE)


class _Handler(socketserver.StreamRequestHandler):
    server: Worker
    timeout = _READ_SECONDS

    def handle(self) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.alarm(_CHILD_SECONDS)  # whatever hangs, the child ends
        answer = respond(self.server.node, self.rfile.readline(MAX_LINE + 1))
        with contextlib.suppress(OSError):
            self.wfile.write(answer.to_line())


def respond(node: Node, line: bytes) -> Answer:
    """Do what a request asks; in a child, which ends up in the pod's namespace."""
    try:
        request = Request.of_line(line)
        return Answer() if request.uid is None else capture(node, request.uid, request)
    except InitError as error:
        return Answer(code=str(error.code), message=f"{error.public} ({error.private})")
    except MeshError as error:
        return Answer(code=str(error.code), message=error.public)
    except Exception as error:  # noqa: BLE001 - the agent must hear of it, whatever it is
        return Answer(code=str(WorkerCode.INTERNAL), message=f"{type(error).__name__}: {error}")


def capture(node: Node, uid: str, request: Request) -> Answer:
    """Write the rules of a pod.

    Raises:
        NamespaceError: its network cannot be used.
        InitError: the rules cannot be written.
    """
    descriptor = node.open_network(uid)
    try:
        device, inode = enter(descriptor)
        backend = istio_init.ensure(request.config)
    finally:
        os.close(descriptor)
    return Answer(network=f"{device}:{inode}", backend=backend)


if __name__ == "__main__":
    sys.exit(main())
