"""The command line, in processes of its own and in this one."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml

from mesh.obs.table import render_table
from nodeagent.__main__ import main
from nodeagent.config import Listen
from nodeagent.http import HttpServer, Page, Route
from tests.fakes.nodeagent_tree import NodeagentTree, nodeagent_workload

ROOT = Path(__file__).parents[3]


def run(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nodeagent", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        **options,
    )


@pytest.fixture
def tree(tmp_path: Path) -> NodeagentTree:
    found = NodeagentTree(tmp_path)
    found.write("a.yaml", nodeagent_workload("web", 8080))
    found.configure(1)
    return found


def test_help_teaches_and_loads_nothing_heavy() -> None:
    code = (
        "import sys, runpy\nsys.argv = ['nodeagent', '--help']\n"
        "try: runpy.run_module('nodeagent', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "heavy = {'grpc', 'cryptography', 'yaml', 'asyncio', 'prometheus_client', 'google', 'orjson'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    for word in ("first steps:", "exit codes:", "nodeagent check --dir", "GATEHOUSE_AGENT_CA__ADDRESS"):
        assert word in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100


@pytest.mark.parametrize("command", ["serve", "check", "bootstrap", "status", "settings"])
def test_each_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert "usage: nodeagent" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith("nodeagent (gatehouse)")


@pytest.mark.parametrize("arguments", [[], ["fly"], ["check"]], ids=["none", "unknown", "no-dir"])
def test_wrong_arguments_exit_with_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2


# --- check -------------------------------------------------------------------------------------------


def test_check_of_a_good_directory(tree: NodeagentTree, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--dir", str(tree.docs)]) == 0
    assert (
        capsys.readouterr().out == "1 workloads, 0 services, 0 policies, 0 key sets, 0 errors, 0 warnings\n"
    )


def test_check_names_file_line_and_field(tree: NodeagentTree, capsys: pytest.CaptureFixture[str]) -> None:
    tree.write("b.yaml", nodeagent_workload("api", 99999))
    assert main(["check", "--dir", str(tree.docs)]) == 1
    out = capsys.readouterr().out
    assert "b.yaml:9: error: Workload demo/api: spec.ports[0].number\n" in out
    assert "99999; allowed: 1 to 65535 [document_field_value]" in out
    assert main(["check", "--dir", str(tree.docs), "-o", "json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["ok"], found["summary"]["errors"]) == (False, 2)
    assert found["findings"][0]["place"] == "b.yaml:9"


def test_check_of_no_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--dir", str(tmp_path / "none")]) == 1
    assert "is not a directory" in capsys.readouterr().out


# --- bootstrap ---------------------------------------------------------------------------------------


def test_bootstrap_knows_the_socket(tree: NodeagentTree, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["bootstrap", "--config", str(tree.config), "--workload", "demo/web"]
    assert main([*arguments, "--admin", "127.0.0.1:1500", "--readiness", "127.0.0.1:1501"]) == 0
    text = capsys.readouterr().out
    found = json.loads(text)
    assert found["node"]["id"] == "demo/web"
    assert str(tree.base / "s" / "demo_web" / "agent.sock") in text
    assert found["admin"]["address"]["socket_address"]["port_value"] == 1500


def test_bootstrap_prints_a_whole_command(tree: NodeagentTree, capsys: pytest.CaptureFixture[str]) -> None:
    tree.write(
        "m.yaml",
        "apiVersion: gatehouse.dev/v1alpha1\nkind: Mesh\nmetadata: {name: m}\n"
        "spec: {trustDomain: cluster.local, drainSeconds: 7}\n",
    )
    arguments = ["bootstrap", "--config", str(tree.config), "--workload", "demo/web", "--command"]
    assert main([*arguments, "--envoy", "/opt/my envoy", "--admin", str(tree.base / "admin")]) == 0
    words = shlex.split(capsys.readouterr().out)
    assert words[0] == "/opt/my envoy"
    assert words[words.index("--drain-time-s") + 1] == "7"
    assert json.loads(words[words.index("--config-yaml") + 1])["admin"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["--workload", "demo/nobody"], "has demo/web", id="unknown-workload"),
        pytest.param(["--workload", "demo/web", "--admin", "here"], "--admin 'here': an address", id="admin"),
        pytest.param(["--workload", "demo/web", "--stats", "127.0.0.1:1"], "admin", id="stats-without-admin"),
        pytest.param(["--workload", "demo/web", "--set", "x"], "written NAME=VALUE", id="set"),
        pytest.param(
            ["--workload", "demo/web", "--set", "sokets=/x"], "did you mean 'sockets'", id="set-typo"
        ),
    ],
)
def test_bootstrap_refusals(
    tree: NodeagentTree, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["bootstrap", "--config", str(tree.config), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_configuration_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--config", "/nonexistent/agent.yaml"]) == 2
    assert "cannot be read" in capsys.readouterr().err


# --- status and settings -----------------------------------------------------------------------------

STATUS = {
    "time": "2026-11-20T12:00:00Z",
    "ready": False,
    "reasons": ["identities: demo/web expired"],
    "directory": "/d",
    "ca": "ca:1",
    "revision": 3,
    "queued": 0,
    "workloads": [
        {
            "workload": "demo/" + "w" * 90,
            "state": "expired",
            "serial": "0123456789abcdef",
            "not_after": "2026-11-20T11:59:30Z",
            "renew_at": "2026-11-22T13:01:00Z",
            "issued": 4,
            "streams": 1,
            "accepted": 7,
            "refused": [{"type": "Listener", "name": "inbound", "message": "bad regex"}],
            "error": "authority ca:1: not reachable",
            "code": "ca_unreachable",
            "socket_error": "",
        },
        {
            "workload": "demo/new",
            "state": "waiting",
            "serial": "",
            "not_after": None,
            "renew_at": None,
            "issued": 0,
            "streams": 0,
            "accepted": 0,
            "refused": [],
            "error": "",
            "code": "",
            "socket_error": "/s/demo_new: must be a directory",
        },
    ],
    "findings": [
        {
            "severity": "error",
            "code": "document_yaml",
            "place": "a.yaml:3",
            "object": "file a.yaml",
            "field": "",
            "message": "not YAML",
        }
    ],
}


class StatusPage:
    """A status server on a thread with a loop of its own, for commands that block."""

    def __enter__(self) -> str:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        page = Page(200, json.dumps(STATUS).encode(), "application/json")
        self.server = HttpServer(Listen("127.0.0.1", 0), {"/status": Route(lambda: page, local=True)})
        self._call(self.server.start())
        return self.server.address

    def __exit__(self, *_: object) -> None:
        self._call(self.server.stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    def _call(self, work) -> None:
        asyncio.run_coroutine_threadsafe(work, self.loop).result(10)


def test_status_is_a_table_that_fits_a_screen(
    tree: NodeagentTree, capsys: pytest.CaptureFixture[str]
) -> None:
    with StatusPage() as address:
        assert main(["status", "--address", address]) == 1  # not ready
    out = capsys.readouterr().out
    table = out.splitlines()[:3]
    heads = ["WORKLOAD", "SVID", "SERIAL", "ENDS", "IN", "RENEWS", "IN", "ISSUED", "STREAMS", "ACK/NACK"]
    assert max(map(len, table)) <= 100
    assert table[0].split() == heads
    assert table[1].split()[1:] == ["expired", "0123456789ab", "-30s", "49h01m", "4", "1", "7/1"]
    assert table[2].split() == ["demo/new", "waiting", "-", "-", "0", "0", "0/0"]
    assert "not reachable [ca_unreachable]" in out
    assert "must be a directory" in out
    assert "proxy refused Listener inbound: bad regex" in out
    assert "a.yaml:3: error: file a.yaml" in out
    assert "not ready: identities: demo/web expired" in out


def test_status_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    with StatusPage() as address:
        assert main(["status", "--address", address, "-o", "json"]) == 1
    assert json.loads(capsys.readouterr().out) == STATUS


def test_status_without_an_agent(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--address", "127.0.0.1:1"]) == 3
    assert "no agent answers at 127.0.0.1:1" in capsys.readouterr().err
    assert main(["status", "--address", "nowhere"]) == 2


def test_settings_lists_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["settings"]) == 0
    text = capsys.readouterr().out
    assert "ca.root_file" in text
    assert "GATEHOUSE_AGENT_ROTATION__RATIO" in text
    assert main(["settings", "-o", "json"]) == 0
    assert {"ca.address", "sockets", "debounce"} <= {
        row["path"] for row in json.loads(capsys.readouterr().out)
    }


def test_tables_are_aligned_and_cut() -> None:
    text = render_table(["NAME", "N"], [["a" * 50, "1"], ["b", "22"]], width=20)
    assert text.splitlines() == ["NAME              N", f"{'a' * 15}~  1", "b                 22"]


# --- serve, as a process --------------------------------------------------------------------------------


def test_serve_is_hardened_logs_json_and_stops_on_term(tree: NodeagentTree) -> None:
    socket = tree.base / "status.sock"
    tree.configure(1, f"unix:{socket}")
    process = subprocess.Popen(
        [sys.executable, "-m", "nodeagent", "serve", "--config", str(tree.config)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    lines: list[dict[str, object]] = []
    try:
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(json.loads(line))
            if lines[-1]["msg"] == "directory applied":
                break
        limits = Path(f"/proc/{process.pid}/limits").read_text()
        core = next(line for line in limits.splitlines() if line.startswith("Max core file size"))
        assert core.split()[4:6] == ["0", "0"]
        done = run("status", "--config", str(tree.config), "-o", "json")
        assert done.returncode == 1  # no authority: not ready
        assert json.loads(done.stdout)["workloads"][0]["workload"] == "demo/web"
        process.send_signal(signal.SIGTERM)
        rest = process.communicate(timeout=20)[0:2][1] or ""
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0
    assert "node agent stops" in rest
    assert "Traceback" not in rest
    assert not socket.exists()
    assert {line["service"] for line in lines} == {"nodeagent"}


def test_serve_that_cannot_start_says_why(tree: NodeagentTree) -> None:
    (tree.base / "s").symlink_to("/tmp")
    done = run("serve", "--config", str(tree.config))
    assert done.returncode == 1
    assert "socket_not_a_directory" in done.stderr
    assert "Traceback" not in done.stderr


def test_serve_on_a_taken_port_says_why(tree: NodeagentTree) -> None:
    import socket as sockets

    with sockets.create_server(("127.0.0.1", 0)) as taken:
        config = yaml.safe_load(tree.config.read_text()) | {"listen": f"127.0.0.1:{taken.getsockname()[1]}"}
        tree.config.write_text(yaml.safe_dump(config))
        done = run("serve", "--config", str(tree.config))
    assert done.returncode == 1
    assert "ddress already in use" in done.stderr


def test_a_reader_that_leaves_is_no_error(tree: NodeagentTree) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as broken:
        done = subprocess.run(
            [sys.executable, "-m", "nodeagent", "settings"],
            cwd=ROOT,
            stdout=broken,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert b"Traceback" not in done.stderr


def test_version_is_that_of_the_installed_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gatehouse-1.2.3.dist-info").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path / "missing"), str(tmp_path), *sys.path])
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == "nodeagent (gatehouse) 1.2.3\n"
