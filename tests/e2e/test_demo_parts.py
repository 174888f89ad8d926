"""Parts of the demo that need nothing running: verdicts, report, arguments, XFCC."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from examples.demo import xfcc
from examples.demo.__main__ import main
from examples.demo.checks import ALL, ORDER, Spec, in_order
from examples.demo.harness import Demo
from examples.demo.layout import Layout, claim_block
from examples.demo.model import Check, DemoError
from examples.demo.processes import Process, wait_for
from examples.demo.report import Report, as_json
from examples.demo.runner import run_checks, verdict


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
