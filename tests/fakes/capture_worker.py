"""A capture worker that writes nothing: it remembers what it is asked and answers what a test says."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from injector.core.capture_messages import MAX_LINE, Answer, Request

APPLIED = Answer(network="4:1", backend="nft")
IN_PLACE = Answer(network="4:1")


class FakeWorker:
    """Listens on a Unix socket; a context manager.

    Attributes:
        answer: what a request about a pod is answered; asked in the connection's thread.
        asked: requests about pods, in order.
    """

    def __init__(self, path: Path, answer: Callable[[Request], Answer] = lambda _: APPLIED) -> None:
        self.path = path
        self.answer = answer
        self.asked: list[Request] = []
        worker = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                request = Request.of_line(self.rfile.readline(MAX_LINE + 1))
                self.wfile.write(worker.respond(request).to_line())

        class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
            daemon_threads = True

        self._server = Server(str(path), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    def respond(self, request: Request) -> Answer:
        """Answer, and remember."""
        if request.uid is None:
            return Answer()
        self.asked.append(request)
        return self.answer(request)

    def __enter__(self) -> FakeWorker:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self.path.unlink()
