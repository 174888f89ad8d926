"""The program in the pods of `meshctl check --traffic`: how answers are told apart, and when it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from meshctl.traffic import probe
from meshctl.traffic.plan import CLIENTS
from meshctl.traffic.probe import CLOSED, MAX_REPORT, Ask, Got, Report, ask_until, get, meets, read_report
from tests.fakes.meshctl_traffic import plan

ROOT = Path(__file__).parents[3]
GOOD = Ask(name="a", path="/a", status=200, text="hello")


@contextmanager
def listener(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """A port on loopback where each connection is given to `answer`, then closed."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    answer(connection)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join(5)


@contextmanager
def served() -> Iterator[int]:
    with probe.Server(0, "hello") as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join(5)


def reset(connection: socket.socket) -> None:
    connection.recv(1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


def test_an_answer_is_status_and_text() -> None:
    with served() as port:
        got = get("127.0.0.1", port, GOOD)
    assert got == Got(name="a", status=200, text="hello")
    assert meets(GOOD, got)


def test_the_token_is_sent_as_a_bearer_token() -> None:
    seen: list[bytes] = []

    def answer(connection: socket.socket) -> None:
        seen.append(connection.recv(4096))
        connection.sendall(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 5\r\n\r\nJwt x")

    with listener(answer) as port:
        got = get("127.0.0.1", port, Ask(name="t", path="/p?q", token="abc"))
    assert got == Got(name="t", status=401, text="Jwt x")
    assert seen[0].startswith(b"GET /p?q HTTP/1.1\r\n")
    assert b"\r\nAuthorization: Bearer abc\r\n" in seen[0]


@pytest.mark.parametrize(
    "answer", [lambda c: c.recv(4096), reset, lambda c: None], ids=["read, closed", "reset", "closed at once"]
)
def test_closed_without_an_answer(answer: Callable[[socket.socket], None]) -> None:
    with listener(answer) as port:
        got = get("127.0.0.1", port, GOOD)
    assert got.error == CLOSED, got
    assert not meets(GOOD, got)
    assert meets(Ask(name="a", path="/", error=CLOSED), got)


def test_no_connection_is_not_closed() -> None:
    """Else a name that is not found, or a network that is shut, would count as refused plaintext."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    refused = get("127.0.0.1", port, GOOD)
    unknown = get("no such host", port, GOOD)
    assert (refused.error, unknown.error) == ("unreachable", "name")
    assert not any(meets(Ask(name="a", path="/", error=CLOSED), got) for got in (refused, unknown))


def test_silence_and_what_is_no_http() -> None:
    done = threading.Event()
    with listener(lambda _: done.wait(5) and None) as port:
        assert get("127.0.0.1", port, GOOD, timeout=0.05).error == "timeout"
        done.set()
    with listener(lambda c: (c.recv(4096), c.sendall(b"220 smtp\r\n"))[0] and None) as port:
        assert get("127.0.0.1", port, GOOD).error == "garbled"


def test_another_text_is_another_answer() -> None:
    denied = Ask(name="d", path="/", status=403, text="RBAC: access denied")
    assert meets(denied, Got(name="d", status=403, text="RBAC: access denied"))
    assert not meets(denied, Got(name="d", status=403, text="a firewall says no"))


def test_one_whole_round_must_be_good() -> None:
    """Answers that are right only one after the other are none: each was wrong while the other was right."""
    two = (GOOD, Ask(name="b", path="/b", status=403))
    good, bad = Got(name="a", status=200, text="hello"), Got(name="b", status=403)
    rounds = [(good, Got(name="b", status=200)), (Got(name="a", status=503), bad), (good, bad)]
    answers = iter([got for group in rounds for got in group])
    clock = iter(range(100))
    slept: list[float] = []
    report = ask_until(two, lambda _: next(answers), 60, now=lambda: next(clock), sleep=slept.append)
    assert (report.good, report.rounds, report.got) == (True, 3, rounds[-1])
    assert len(slept) == 2


def test_the_time_is_bounded_and_one_round_always_happens() -> None:
    clock = iter([0.0, 31.0])
    report = ask_until(
        (GOOD,), lambda ask: Got(name=ask.name), 30, now=lambda: next(clock), sleep=pytest.fail
    )
    assert (report.good, report.rounds, report.seconds) == (False, 1, 31.0)


def test_every_report_fits_into_a_termination_message() -> None:
    worst = "\u20ac" * 100  # six characters of JSON each
    for role in CLIENTS:
        got = tuple(
            Got(name=ask.name, status=999, error="unreachable", text=worst) for ask in plan().asks(role)
        )
        line = Report(good=False, rounds=10**6, seconds=10.0**6, got=got).to_line()
        assert len(line.encode()) <= MAX_REPORT
        assert read_report(line) is not None


@pytest.mark.parametrize("line", ["", "No module named x", "{}", '{"got": [{"x": 1}]}', "[1]"])
def test_what_is_no_report(line: str) -> None:
    assert read_report(line) is None


def test_a_client_reports_and_ends_and_a_server_ends_when_told(tmp_path: Path) -> None:
    """As processes, with nothing but the standard library: this is what the image runs."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    module = [sys.executable, "-m", "meshctl.traffic.probe"]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    where = ["ask", "--host=127.0.0.1", f"--port={port}", "--seconds=30"]
    asks = f"--requests={probe.write_requests([GOOD])}"

    def ask(report: Path) -> subprocess.CompletedProcess[str]:
        command = [*module, *where, asks, f"--report={report}"]
        return subprocess.run(
            command, env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
        )

    command = [*module, "serve", f"--port={port}", "--answer=hello"]
    with subprocess.Popen(command, env=environ, cwd=tmp_path) as server:
        try:
            done = ask(tmp_path / "report")
            assert (done.returncode, done.stdout) == (0, (tmp_path / "report").read_text() + "\n"), (
                done.stderr
            )
            assert json.loads(done.stdout)["good"] is True
            done = ask(tmp_path / "none" / "report")
            assert done.returncode == 1  # the kubelet takes the end of the log then
            assert read_report(done.stdout) is not None
        finally:
            server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0


def test_a_client_says_the_same_on_standard_output_and_in_its_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = Ask(name="b", path="/", status=403)
    with served() as port:
        words = ["ask", "--host=127.0.0.1", f"--port={port}", f"--report={tmp_path / 'report'}"]
        words += ["--seconds=0", f"--requests={probe.write_requests([GOOD, wrong])}"]
        assert probe.main(words) == 0  # it has reported; what it says is judged elsewhere
    report = read_report((tmp_path / "report").read_text())
    assert report == read_report(capsys.readouterr().out)
    assert report is not None
    assert (report.good, [got.status for got in report.got]) == (False, [200, 200])


@pytest.mark.parametrize("text", ["", "{}", '[{"name": 1}]', '[{"x": 1}]'])
def test_requests_that_are_none(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["ask", "--host=h", "--port=1", "--seconds=1", f"--requests={text}"]
    with pytest.raises(SystemExit):
        probe.main(words)
    assert "argument --requests: invalid" in capsys.readouterr().err


def test_it_loads_nothing_but_the_standard_library() -> None:
    code = "import meshctl.traffic.probe, sys; print([m for m in sys.modules if m.split('.')[0] in"
    code += " {'mesh', 'injector', 'jwt', 'cryptography', 'orjson', 'yaml'}])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout.strip() == "[]"
