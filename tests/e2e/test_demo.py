"""The demo, run as a person runs it: every check by name, clean-up, `--keep`, and proof that it can fail."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.demo_run import KeptDemo, Run, leftovers, processes_of, run_demo, until

pytestmark = [
    pytest.mark.envoy,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    # One worker for all of these: they share addresses and the two cores.
    pytest.mark.xdist_group("demo"),
]

CHECKS = {
    1: "web -> reviews over mutual TLS",
    2: "plaintext is refused under STRICT, and has no identity under PERMISSIVE",
    3: "strangers are refused in the handshake",
    4: "access by identity",
    5: "end-user tokens (JWT)",
    6: "claims of a token decide",
    7: "ratings' database is for ratings only (TCP)",
    8: "an impostor that answers for ratings is refused by its caller (secure naming)",
    9: "path tricks do not get past a DENY on /admin",
    10: "rotation under load: new serial, new key, no failed request",
    11: "the authority is killed and started again",
    12: "a policy is edited while running",
    13: "a resumed TLS session gets the same answer",
}

ROWS = {
    1: {"chain", "reviews saw", "ratings saw", "forged header, by proxy", "forged header, direct"},
    2: {
        "STRICT",
        "PERMISSIVE",
        "PERMISSIVE, forged",
        "PERMISSIVE, mutual TLS",
        "STRICT again",
        "old connection",
    },
    3: {
        "no certificate",
        "other CA",
        "other trust domain",
        "look-alike trust domain",
        "expired",
        "not yet valid",
        "reasons",
        "application",
        "twin: web's own",
        "twin: insider",
    },
    4: {
        "web GET",
        "intruder GET",
        "web POST",
        "intruder, direct",
        "twin: reviews, ratings",
        "twin: intruder, web",
    },
    5: {
        "no token where needed",
        "no token elsewhere",
        "good",
        "garbage",
        "expired",
        "wrong issuer",
        "wrong key",
        "alg none",
        "HMAC",
        "wrong audience",
    },
    6: {"admin", "readers", "look-alike", "no groups", "no token", "stolen"},
    7: {
        "intruder",
        "reviews",
        "no certificate",
        "plaintext",
        "database",
        "twin: ratings",
        "twin: ratings, TLS 1.3",
    },
    8: {"before", "impostor", "twin: declared", "other CA", "after"},
    9: {"//admin", "/%2fadmin", "/a/../admin", "/%61dmin", "application", "twin: //public", "twin: /ADMIN"},
    10: {"web", "reviews", "ratings", "intruder", "in use", "load"},
    11: {"killed", "reported", "traffic", "new connections", "resumed", "healthy", "load"},
    12: {
        "before",
        "deny, direct",
        "deny, by web's proxy",
        "allow again, direct",
        "not closed",
        "unknown field",
        "unknown field, last good",
        "not YAML",
        "not YAML, last good",
        "mended",
    },
    13: {
        "client, TLS 1.2",
        "client, TLS 1.3",
        "DENY, TLS 1.2",
        "DENY, TLS 1.3",
        "ALLOW, TLS 1.2",
        "ALLOW, TLS 1.3",
    },
}


@pytest.fixture(scope="module")
def whole() -> Iterator[tuple[Run, Path]]:
    with tempfile.TemporaryDirectory(prefix="gh", dir="/tmp") as directory:
        yield run_demo(Path(directory), "--json"), Path(directory)


@pytest.mark.parametrize("number", sorted(CHECKS), ids=[f"check-{n}" for n in sorted(CHECKS)])
def test_check_is_good(whole: tuple[Run, Path], number: int) -> None:
    run, _ = whole
    found = {check["name"]: check for check in run.result["checks"]}
    check = found[f"{number}. {CHECKS[number]}"]
    bad = [row for row in check["rows"] if not row["ok"]]
    assert not bad, f"{bad}\n{run.err[-4000:]}"
    assert ROWS[number] <= {row["name"] for row in check["rows"]}
    assert check["ok"] is True
    assert check["expected"]
    assert check["got"]


def test_whole_run_is_good_and_prints_one_object(whole: tuple[Run, Path]) -> None:
    run, _ = whole
    assert run.code == 0, run.err[-4000:]
    assert run.out.count("\n") == 1
    assert run.result["ok"] is True
    assert len(run.result["checks"]) == len(CHECKS)
    assert "13 of 13 checks good" in run.err


def test_every_refusal_has_a_positive_twin(whole: tuple[Run, Path]) -> None:
    """A dead listener refuses everything: each check must also show what is let through."""
    run, _ = whole
    for check in run.result["checks"]:
        texts = [row["got"] for row in check["rows"]]
        good = [
            text for text in texts if re.search(r"\b200\b|bytes: |all four|known|0 of [\d,]+ failed", text)
        ]
        assert good, check["name"]


def test_nothing_is_left_behind(whole: tuple[Run, Path]) -> None:
    _, tmp = whole
    assert leftovers(tmp) == []
    until(lambda: not processes_of(tmp), what="all processes to end", seconds=30)


def test_report_is_at_most_100_columns(whole: tuple[Run, Path]) -> None:
    run, _ = whole
    long = [line for line in run.err.splitlines() if len(line) > 100]
    assert long == []
    assert "\x1b" not in run.err


_SABOTAGE = """
from examples.demo import meshfiles as files
whole = files.POLICIES["mtls.yaml"]
files.POLICIES.update({
    "mtls-reviews.yaml": files.REVIEWS_MTLS.replace("STRICT", "PERMISSIVE"),
    "reviews.yaml": "# whoever edits here opens everything\\n",
    "ratings.yaml": "# the same\\n",
    "web.yaml": "# the same\\n",
})
mesh = files._mesh()
mesh["spec"].update(pathNormalization="NONE", trustDomainAliases=["cluster.local.evil"])
files._mesh = lambda: mesh
"""


def test_a_mesh_without_policies_fails_the_checks(short_dir: Path) -> None:
    """Proof that the demo can fail: with the rules taken away, what they forbid is reported as wrong."""
    run = run_demo(short_dir, "--json", "--only", "2,3,4,5,6,7,9,13", prelude=_SABOTAGE)
    assert run.code == 1
    assert run.result["ok"] is False
    failed = {
        f"{check['number']}: {row['name']}"
        for check in run.result["checks"]
        for row in check["rows"]
        if not row["ok"]
    }
    assert {check["number"] for check in run.result["checks"] if not check["ok"]} == {2, 3, 4, 5, 6, 7, 9, 13}
    assert {
        "2: STRICT",
        "3: look-alike trust domain",
        "4: intruder GET",
        "5: alg none",
        "6: readers",
        "7: intruder",
        "9: //admin",
        "13: DENY, TLS 1.3",
    } <= failed
    assert "3: other CA" not in failed
    assert "FAILED" in run.err
    assert "next: read" in run.err
    assert leftovers(short_dir), "the logs of a failed run are kept"
    until(lambda: not processes_of(short_dir), what="all processes to end", seconds=30)


def test_a_wrong_expectation_is_a_failure(short_dir: Path) -> None:
    prelude = "from examples.demo.checks import c04_identity as c\nc._DENIED = '200'"
    run = run_demo(short_dir, "--json", "--only", "4", prelude=prelude)
    assert run.code == 1
    assert run.result["ok"] is False
    rows = {row["name"]: row for row in run.result["checks"][0]["rows"]}
    assert rows["intruder GET"]["got"] == "403 RBAC: access denied"
    assert rows["intruder GET"]["ok"] is False
    assert rows["web GET"]["ok"] is True


def test_a_part_that_dies_is_named_with_its_log(short_dir: Path) -> None:
    prelude = (
        "import examples.demo.harness as h\n"
        "h.Demo._write_configuration = lambda self: "
        "(self.layout.root / 'ca.yaml').write_text('state_dir: x\\nnonsense: 1\\n')"
    )
    run = run_demo(short_dir, "--json", "--only", "1", prelude=prelude)
    assert run.code == 2
    assert "the demo could not run: ca ended with status 2" in run.err
    assert "nonsense" in run.err
    assert "files and logs are kept in" in run.err
    assert (run.result["checks"], run.result["ok"]) == ([], False)
    assert "ca ended with status 2" in run.result["error"]
    until(lambda: not processes_of(short_dir), what="all processes to end", seconds=30)


def test_keep_says_how_to_poke_and_stops_on_ctrl_c(short_dir: Path) -> None:
    demo = KeptDemo(short_dir, "--keep", "--only", "1")
    try:
        text = demo.wait_for_text("intruder  proxy")
        lines = re.findall(r"^  # (.*)\n  (curl .*)$", text, re.MULTILINE)
        assert len(lines) >= 10
        for shows, command in lines:
            _try_curl(shows, command)
        policy = Path(re.search(r"(\S+live\.yaml)", text).group(1))
        url = next(c for s, c in lines if "web may read" in s)
        policy.write_text(policy.read_text().replace("[/closed]", "[/closed, /reviews/*]"))
        until(lambda: "RBAC: access denied" in _shell(url), what="the edit to hold", seconds=30)
        assert len(processes_of(short_dir)) > 8
        os.kill(int(re.search(r"authority +pid (\d+)", text).group(1)), signal.SIGTERM)
        again = demo.wait_for_text("start it again: ").partition("start it again: ")[2].splitlines()[0]
        assert again.endswith("ca.yaml")
        assert "ca has ended" in demo.text
        assert demo.interrupt() == 0
        assert "stopping" in demo.text
    finally:
        demo.close()
    assert leftovers(short_dir) == []
    until(lambda: not processes_of(short_dir), what="all processes to end", seconds=30)


def _try_curl(shows: str, command: str) -> None:
    answer = _shell(command)
    if shows.startswith("RBAC"):
        assert answer == "RBAC: access denied", command
    elif shows.startswith("no answer"):
        assert answer == "", command
    else:
        assert answer.startswith("{"), (command, answer[:300])


def _shell(command: str) -> str:
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=20, check=False)
    return done.stdout


@pytest.mark.parametrize(
    ("number", "moment"),
    [(signal.SIGINT, "authority"), (signal.SIGTERM, "everything is up")],
    ids=["ctrl-c-while-starting", "kill-while-checking"],
)
def test_an_interrupted_run_leaves_nothing(short_dir: Path, number: signal.Signals, moment: str) -> None:
    demo = KeptDemo(short_dir)
    try:
        demo.wait_for_text(moment)
        assert demo.interrupt(number) == 130
    finally:
        demo.close()
    assert "interrupted; everything is stopped" in demo.text
    assert leftovers(short_dir) == []
    until(lambda: not processes_of(short_dir), what="all processes to end", seconds=30)


def test_a_killed_demo_takes_its_children_with_it(short_dir: Path) -> None:
    """SIGKILL cannot be caught; the kernel ends the children (PR_SET_PDEATHSIG)."""
    demo = KeptDemo(short_dir, "--keep", "--only", "1")
    try:
        demo.wait_for_text("intruder  proxy")
        assert demo.interrupt(signal.SIGKILL) == -signal.SIGKILL
    finally:
        demo.close()
    until(lambda: not processes_of(short_dir), what="all processes to end", seconds=30)


def test_two_demos_at_once_use_other_addresses(short_dir: Path) -> None:
    first = KeptDemo(short_dir, "--keep", "--only", "1")
    try:
        text = first.wait_for_text("intruder  proxy")
        second_tmp = short_dir / "second"
        second_tmp.mkdir()
        run = run_demo(second_tmp, "--only", "1")
        assert run.code == 0, run.out
        blocks = {re.search(r"demo: (127\.0\.\d+)\.x", out).group(1) for out in (text, run.out)}
        assert len(blocks) == 2
    finally:
        assert first.interrupt() == 0
