"""The gates of CI close when they should: skips, coverage, golden files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import golden

ROOT = Path(__file__).resolve().parents[2]


def run(script: str, *reports: Path) -> tuple[int, str]:
    command = [sys.executable, str(ROOT / "scripts" / script), *map(str, reports)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return done.returncode, done.stdout + done.stderr


def case(name: str, skip: str = "", needs: str = "", kind: str = "pytest.skip") -> str:
    properties = f'<properties><property name="needs" value="{needs}"/></properties>' if needs else ""
    skipped = f'<skipped type="{kind}" message="{skip}"/>' if skip else ""
    return f'<testcase classname="tests.x" name="{name}">{properties}{skipped}</testcase>'


@pytest.mark.parametrize(
    ("cases", "status", "said"),
    [
        pytest.param(
            case("a") + case("b", needs="envoy"), 0, "2 tests in the report, 0 forbidden", id="none"
        ),
        pytest.param(case("a", "no envoy", "envoy"), 1, "tests.x::a (needs envoy): no envoy", id="envoy"),
        pytest.param(
            case("a", "needs root to become another user", "openssl"), 1, "needs openssl", id="openssl"
        ),
        pytest.param(case("a", "lazy"), 1, "tests.x::a: lazy", id="unknown-reason"),
        pytest.param(case("a", "needs root to become another user"), 0, "0 forbidden", id="allowed"),
        pytest.param(case("a", "known", kind="pytest.xfail"), 0, "0 forbidden", id="expected-failure"),
        pytest.param("", 1, "no test ran", id="nothing-ran"),
    ],
)
def test_skips(tmp_path: Path, cases: str, status: int, said: str) -> None:
    report = tmp_path / "junit.xml"
    report.write_text(f"<testsuites><testsuite>{cases}</testsuite></testsuites>")
    code, out = run("check_skips.py", report)
    assert code == status, out
    assert said in out


def test_each_report_must_be_there(tmp_path: Path) -> None:
    good, absent = tmp_path / "good.xml", tmp_path / "absent.xml"
    good.write_text(f"<testsuite>{case('a')}</testsuite>")
    code, out = run("check_skips.py", good, absent)
    assert code == 1
    assert f"{absent}: no test ran" in out


PACKAGES = (
    "ca/core/a.py",
    "injector/core/a.py",
    "nodeagent/core/a.py",
    "mesh/spiffe.py",
    "mesh/x509/a.py",
    "mesh/policy/a.py",
)


def measured(lines: int = 100, branches: int = 100) -> dict[str, Any]:
    summary = {
        "covered_lines": lines,
        "num_statements": 100,
        "covered_branches": branches,
        "num_branches": 100,
    }
    return {"summary": summary, "missing_lines": [7] if lines < 100 else [], "missing_branches": []}


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        pytest.param({}, 0, "mesh/x509/", id="full"),
        pytest.param({"mesh/x509/a.py": measured(95, 95)}, 0, "95.0", id="at-the-floor"),
        pytest.param({"mesh/x509/a.py": measured(94)}, 1, "mesh/x509/a.py: lines [7]", id="lines"),
        pytest.param({"ca/core/a.py": measured(100, 94)}, 1, "BELOW", id="branches"),
        pytest.param({"mesh/policy/a.py": None}, 1, "BELOW", id="not-measured"),
        pytest.param({"ca/service.py": measured(0, 0)}, 0, "ca/core/", id="not-gated"),
    ],
)
def test_coverage_floors(tmp_path: Path, change: dict[str, Any], status: int, said: str) -> None:
    files = {name: measured() for name in PACKAGES} | change
    report = tmp_path / "coverage.json"
    report.write_text(json.dumps({"files": {name: data for name, data in files.items() if data}}))
    code, out = run("coverage_gate.py", report)
    assert code == status, out
    assert said in out


@pytest.mark.parametrize(
    ("name", "value"), [("a/x.json", {"b": [1, None]}), ("x.yaml", {"b": 1}), ("x.txt", "é\n")]
)
def test_golden_files_are_written_once_and_then_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: object
) -> None:
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("UPDATE_GOLDEN", "1")
    golden.check_golden(name, value, directory=tmp_path)
    monkeypatch.delenv("UPDATE_GOLDEN")
    golden.check_golden(name, value, directory=tmp_path)
    with pytest.raises(AssertionError, match=r"\+.*other[\s\S]*make golden"):
        golden.check_golden(name, "other" if name.endswith(".txt") else {"b": "other"}, directory=tmp_path)


def test_golden_files_are_compared_by_meaning(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"b": 1,\n\n"a": 2}')
    golden.check_golden("x.json", {"a": 2, "b": 1}, directory=tmp_path)
    assert golden.semantic_diff({"a": 1}, {"a": 1}) == ""


def test_golden_files_are_never_written_in_ci(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    monkeypatch.setenv("UPDATE_GOLDEN", "1")
    with pytest.raises(AssertionError, match="not rewritten in CI"):
        golden.check_golden("x.json", {}, directory=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "message"), [("none.json", "make golden"), ("x.bin", "must end in")])
def test_golden_files_that_cannot_be_compared(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "x.bin").write_text("")
    with pytest.raises((AssertionError, ValueError), match=message):
        golden.check_golden(name, {}, directory=tmp_path)
