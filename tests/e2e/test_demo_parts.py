"""Parts of the demo that need nothing running: verdicts, report, arguments, XFCC."""

from __future__ import annotations

import datetime as dt
import io
import json
import socket
import ssl
import threading
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from examples.demo import xfcc
from examples.demo.__main__ import main
from examples.demo.apps import GREETING, Database, Seen
from examples.demo.checks import ALL, ORDER, Spec, in_order
from examples.demo.forge import outsider
from examples.demo.harness import Demo
from examples.demo.layout import Layout, claim_block
from examples.demo.model import Check, DemoError
from examples.demo.plain import read_greeting
from examples.demo.processes import Process, wait_for
from examples.demo.report import Report, as_json
from examples.demo.runner import run_checks, verdict
from examples.demo.server import TlsServer
from examples.demo.tls import TLS12, TLS13, attempt, client_context


def check_of(*pairs: tuple[str, str]) -> Check:
    check = Check(4, "access", "who may call whom")
    for expected, got in pairs:
        check.expect(f"{expected}-{got}", "something", expected=expected, got=got)
    return check


@pytest.mark.parametrize(
    ("pairs", "ok"),
    [([("200", "200")], True), ([("200", "200"), ("403", "200")], False), ([], False)],
    ids=["good", "one-wrong-row", "nothing-was-tried"],
)
def test_verdict(pairs: list[tuple[str, str]], ok: bool) -> None:
    check = check_of(*pairs)
    assert check.ok is ok
    assert verdict([check]) == (0 if ok else 1)
    assert json.loads(as_json([check]))["ok"] is ok


def test_no_checks_at_all_are_a_failure() -> None:
    assert verdict([]) == 1
    assert json.loads(as_json([])) == {"checks": [], "ok": False}


def test_json_has_the_agreed_fields() -> None:
    found = json.loads(as_json([check_of(("200", "200"), ("403", "200"))]))
    assert found["ok"] is False
    check = found["checks"][0]
    assert check["name"] == "4. access"
    assert check["expected"] == "200-200: 200; 403-200: 403"
    assert check["got"] == "200-200: 200; 403-200: 200"
    assert check["ok"] is False


def test_a_check_that_breaks_down_is_a_failed_row_and_the_next_one_runs(tmp_path: Path) -> None:
    def breaks(demo: Demo, check: Check) -> None:
        check.expect("first", "something", expected="200", got="200")
        raise DemoError("waited 5 s in vain for the edit")

    def good(demo: Demo, check: Check) -> None:
        check.expect("only", "something", expected="200", got="200")

    demo = Demo(Layout(10, tmp_path), Report(io.StringIO()))
    announced: list[Check] = []
    specs = [Spec(1, "a", "a", breaks), Spec(2, "b", "b", good)]
    checks = run_checks(demo, specs, announced.append)
    assert [check.ok for check in checks] == [False, True]
    assert "waited 5 s in vain" in checks[0].rows[-1].got
    assert announced == checks


def test_report_shows_expected_got_and_evidence_in_100_columns() -> None:
    out = io.StringIO()
    check = check_of(("200", "403 RBAC: access denied"))
    long = "spiffe://cluster.local/ns/demo/sa/" + "w" * 100
    check.judge("long", "tried " * 30, expected=long, got=long, ok=True, evidence="x" * 1000)
    report = Report(out)
    report.check(check)
    report.summary([check], 12.3)
    text = out.getvalue()
    assert "FAILED something" in text
    assert "403 RBAC: access denied" in text
    assert "1 FAILED" in text
    assert "12.3 s" in text
    assert max(len(line) for line in text.splitlines()) <= 100
    assert "\x1b" not in text


def test_report_colours_only_when_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    colored = Terminal()
    Report(colored).title("hello")
    assert colored.getvalue() == "\x1b[1mhello\x1b[0m\n"
    monkeypatch.setenv("NO_COLOR", "1")
    plain = Terminal()
    Report(plain).title("hello")
    assert plain.getvalue() == "hello\n"


def test_thirteen_checks_each_run_once() -> None:
    assert [spec.number for spec in ALL] == list(range(1, 14))
    assert sorted(ORDER) == list(range(1, 14))
    assert [spec.number for spec in in_order(frozenset({10, 4, 13}))] == [4, 13, 10]


@pytest.mark.parametrize("text", ["0", "14", "x", "", "4,,x"], ids=lambda text: text or "empty")
def test_only_refuses_numbers_that_are_no_checks(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--only", text])
    assert stop.value.code == 2
    assert "numbers of checks, 1 to 13" in capsys.readouterr().err


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "exit codes: 0 all checks are good; 1 a check failed" in text
    for spec in ALL:
        assert spec.name in text


def test_blocks_are_claimed() -> None:
    with claim_block() as first, claim_block() as second:
        assert first != second


def test_waiting_in_vain_says_for_what() -> None:
    with pytest.raises(DemoError, match=r"waited 0\.01 s in vain for a miracle"):
        wait_for("a miracle", lambda: False, seconds=0.01, every=0.001)


def test_a_dead_process_is_reported_with_the_end_of_its_log(tmp_path: Path) -> None:
    process = Process("part", ["sh", "-c", "echo the reason; exit 3"], tmp_path / "part.log")
    process.start()
    process.reap(5)
    with pytest.raises(DemoError, match=r"part ended with status 3(?s:.)*the reason"):
        process.require_running()


@pytest.mark.parametrize(
    ("values", "peers"),
    [
        ([], "none"),
        (["By=spiffe://td/b;Hash=1;URI=spiffe://td/a"], "spiffe://td/a"),
        (["By=x;URI=spiffe://td/a,By=y;URI=spiffe://td/b"], "spiffe://td/a, spiffe://td/b"),
        (["URI=spiffe://td/a", "URI=spiffe://td/b"], "spiffe://td/a, spiffe://td/b"),
        (['Subject="CN=x,O=y;URI=spiffe://td/evil";URI=spiffe://td/a'], "spiffe://td/a"),
        (["By=x"], "no URI"),
    ],
    ids=["none", "one", "two-elements", "two-headers", "quoted", "no-uri"],
)
def test_xfcc_elements(values: list[str], peers: str) -> None:
    assert xfcc.peers(values) == peers


def test_the_database_counts_peers_that_never_spoke() -> None:
    """Check 7 rests on it: a refused peer that reached the database cannot speak, and stays counted."""
    seen = Seen()
    with Database(("127.0.0.1", 0), seen) as database:
        host, port = str(database.server_address[0]), int(database.server_address[1])
        thread = threading.Thread(target=database.serve_forever, args=(0.02,))
        thread.start()
        try:
            assert read_greeting((host, port)) == GREETING
            wait_for("the words", lambda: seen.view()["silent"] == 0 and seen.view()["opened"] == 1)
            with socket.create_connection((host, port)) as silent:
                assert silent.recv(100) == GREETING
            wait_for("the silent one", lambda: seen.view() == {"paths": {}, "opened": 2, "silent": 1})
        finally:
            database.shutdown()
            thread.join(30)


def test_a_greeting_counts_even_when_the_server_then_cuts_off() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def greet_and_cut() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(GREETING)

        thread = threading.Thread(target=greet_and_cut)
        thread.start()
        assert read_greeting(server.getsockname()) == GREETING
        thread.join(30)


def test_a_refused_certificate_is_told_by_its_alert() -> None:
    """What check 3 compares: a client that refuses, and one that is refused, both by name."""
    stranger, server_identity = outsider(), outsider().issue("spiffe://td/ns/a/sa/server")
    with TlsServer(("127.0.0.1", 0), server_identity) as server:
        trusting = attempt(server.address, client_context(None), "/")
        roots = stranger.certificate.public_bytes(Encoding.PEM)
        careful = attempt(server.address, client_context(None, roots_pem=roots), "/")
    assert trusting.short == "200"
    assert careful.status is None
    assert careful.refusal == "certificate_verify_failed"


@pytest.mark.parametrize("version", [TLS12, TLS13], ids=["tls-1.2", "tls-1.3"])
def test_the_client_of_check_13_resumes_where_it_may(version: ssl.TLSVersion) -> None:
    context = client_context(None, version=version)
    with TlsServer(("127.0.0.1", 0), outsider().issue("spiffe://td/ns/a/sa/server")) as server:
        first = attempt(server.address, context, "/")
        second = attempt(server.address, context, "/", session=first.session)
    assert (first.reused, second.reused) == (False, True)


def test_an_expired_certificate_is_expired_and_an_early_one_is_early() -> None:
    hour = dt.timedelta(hours=1)
    now = dt.datetime.now(dt.UTC)
    signer = outsider()
    old = signer.issue("spiffe://td/x", start=-2 * hour, end=-hour)
    early = signer.issue("spiffe://td/x", start=hour, end=2 * hour)
    assert old.not_after < now
    assert x509.load_pem_x509_certificate(early.chain_pem).not_valid_before_utc > now


def test_keys_of_the_demo_are_not_shown() -> None:
    identity = outsider().issue("spiffe://td/x")
    assert b"PRIVATE KEY" in identity.key_pem
    assert "PRIVATE" not in repr(identity)
