"""The hook that holds the application back: ready, late, never, and always bounded."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from injector.wait_ready import main


class _Proxy(BaseHTTPRequestHandler):
    answers: list[int]

    def do_GET(self) -> None:
        answers = type(self).answers
        self.send_response(answers.pop(0) if len(answers) > 1 else answers[0])
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def proxy() -> Iterator[tuple[type[_Proxy], str]]:
    handler = type("Proxy", (_Proxy,), {"answers": [200]})
    server = HTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield handler, f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_ready_at_once(proxy: tuple[type[_Proxy], str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--address", proxy[1]]) == 0
    assert capsys.readouterr().err == ""


def test_ready_after_a_while(proxy: tuple[type[_Proxy], str], capsys: pytest.CaptureFixture[str]) -> None:
    proxy[0].answers = [503, 404, 200]
    assert main(["--address", proxy[1], "--timeout", "20"]) == 0
    assert proxy[0].answers == [200]
    assert capsys.readouterr().err == ""


def test_never_ready_is_bounded_and_no_failure(capsys: pytest.CaptureFixture[str]) -> None:
    """A failing hook would have the kubelet kill a proxy that is only waiting for its agent."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    begin = time.monotonic()
    assert main(["--address", address, "--timeout", "0.3"]) == 0
    assert time.monotonic() - begin < 10
    assert "the proxy is not ready after 0.3 s" in capsys.readouterr().err


def test_a_server_that_speaks_nonsense(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"hello\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        assert main(["--address", f"127.0.0.1:{server.getsockname()[1]}", "--timeout", "0"]) == 0
        thread.join()
    assert "next: look at the node agent" in capsys.readouterr().err
