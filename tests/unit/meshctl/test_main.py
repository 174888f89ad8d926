"""The command line itself: help that teaches, quick starts, versions, ends of pipes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from meshctl.check import AFTER
from meshctl.checks.before import BEFORE
from meshctl.errors import CtlCode
from meshctl.exits import EXIT_OK, EXIT_PROBLEM, EXIT_UNREACHABLE, EXIT_USAGE
from meshctl.inject import OfflineCode
from meshctl.sidecars import restart_command
from tests.fakes.kube_api import FakeKube
from tests.fakes.meshctl_cli import ctl, golden_script
from tests.fakes.meshctl_cluster import install, pod

ROOT = Path(__file__).parents[3]
COMMANDS = ("inject", "uninject", "explain", "check", "identity", "version")
HEAVY = {
    "typing",
    "dataclasses",
    "grpc",
    "cryptography",
    "yaml",
    "asyncio",
    "prometheus_client",
    "google",
    "orjson",
    "kubernetes",
}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "meshctl", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def loaded(*arguments: str) -> set[str]:
    """Modules that a run has loaded."""
    code = (
        f"import sys, runpy\nsys.argv = {['meshctl', *arguments]!r}\n"
        "try: runpy.run_module('meshctl', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "print(*sys.modules, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stderr.split())


def test_help_teaches_and_loads_nothing_heavy() -> None:
    assert not loaded("--help") & HEAVY
    ran = ctl("--help")
    golden_script("help", ran)
    assert max(map(len, ran.out.splitlines())) <= 100
    for word in ("first steps:", "exit codes:", "NO_COLOR", *COMMANDS):
        assert word in ran.out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_examples(command: str) -> None:
    ran = ctl(command, "--help")
    assert ran.code == 0
    assert f"examples:\n  meshctl {command}" in ran.out
    assert max(map(len, ran.out.splitlines())) <= 100


def test_the_kubernetes_package_stays_out(tmp_path: Path) -> None:
    with FakeKube() as kube:
        install(kube)
        found = loaded("check", "--kubeconfig", str(kube.kubeconfig(tmp_path)))
    assert "meshctl.checks.control" in found
    assert not found & {"kubernetes", "grpc", "flask", "prometheus_client"}


def test_versions(tmp_path: Path) -> None:
    assert run("--version").stdout.startswith("meshctl (gatehouse) ")
    assert set(json.loads(ctl("version", "-o", "json").out)) == {"meshctl"}
    with FakeKube() as kube:
        config = ("--kubeconfig", str(kube.kubeconfig(tmp_path)))
        empty = ctl("version", "--cluster", *config)
        assert "Gatehouse is not installed" in empty.err
        install(kube)
        found = json.loads(ctl("version", "--cluster", "-o", "json", *config).out)
        text = ctl("version", "--cluster", *config).out
    assert found["kubernetes"] == "v1.20.2"
    assert found["sidecars"] == [{"version": "0.1.0", "mode": "classic", "pods": 1}]
    assert found["control_plane"]["ca"] == "gatehouse/control:0.1.0"
    assert "   1 sidecars  0.1.0 (classic)\n" in text


def test_unknown_words() -> None:
    for arguments in ((), ("nothing",), ("check", "--post"), ("explain", "policy"), ("inject",)):
        ran = ctl(*arguments)
        assert (ran.code, ran.out, "usage: meshctl" in ran.err) == (2, "", True)


def test_no_kubeconfig(tmp_path: Path) -> None:
    ran = ctl("check", "--kubeconfig", str(tmp_path / "none"))
    assert (ran.code, "[kube_config]" in ran.err) == (2, True)


def test_a_reader_that_leaves() -> None:
    text = "".join(
        f"---\nkind: ConfigMap\nmetadata: {{name: c{i}}}\ndata: {{a: {'x' * 2000}}}\n" for i in range(200)
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "meshctl", "inject", "-q", "-f", "-"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    with process:
        process.stdout.close()
        process.stdin.write(text)
        process.stdin.close()
        error = process.stderr.read()
    assert "Traceback" not in error
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("kind", "name", "command"),
    [
        ("ReplicaSet", "web-5d9c", "kubectl -n shop rollout restart deployment/web"),
        ("ReplicaSet", "web", "kubectl -n shop delete pod p"),
        ("StatefulSet", "db", "kubectl -n shop rollout restart statefulset/db"),
        ("DaemonSet", "log", "kubectl -n shop rollout restart daemonset/log"),
        ("Job", "once", "kubectl -n shop delete pod p"),
        ("", "", "make pod shop/p anew: nothing owns it"),
    ],
)
def test_how_a_pod_is_made_anew(kind: str, name: str, command: str) -> None:
    owners = [{"kind": kind, "name": name, "controller": True}] if kind else []
    assert restart_command(pod("p", ownerReferences=owners), "shop") == command


def test_the_manual_has_every_code_row_and_exit() -> None:
    text = (ROOT / "docs" / "meshctl.md").read_text()
    wanted = {str(code) for code in (*CtlCode, *OfflineCode)}
    for sections in (BEFORE, AFTER):
        for checks in sections.values():
            wanted |= set(checks)
    source = "".join(path.read_text() for path in (ROOT / "meshctl" / "checks").glob("*.py"))
    wanted |= set(re.findall(r'(?:ok|warn|fail|skip)\(\s*"([a-z-]+)"', source))
    assert {word for word in wanted if f"`{word}`" not in text} == set()
    for code in (EXIT_OK, EXIT_PROBLEM, EXIT_USAGE, EXIT_UNREACHABLE):
        assert f"| {code} | " in text
        assert f"\n  {code}  " in ctl("--help").out
