"""`python -m ca` as a process: start, signals, workers, exit codes, TLS as openssl sees it (F-57)."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ca.core.bundle import decode_bundle
from mesh.spiffe import TrustDomain
from mesh.x509 import pem
from tests.fakes import ca_tokens
from tests.fakes.ca_factory import make_hierarchy, new_key
from tests.fakes.ca_running import Client, bearer, make_csr, settings
from tests.fakes.ports import claim_port

DEADLINE_SECONDS = 30.0


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    """Poll until the condition is true; fails with `what`."""
    ends = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < ends:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError(f"not within {DEADLINE_SECONDS} s: {what}")


def write_config(directory: Path, **overrides: object) -> Path:
    """A YAML file with ports of its own."""
    found: dict[str, Any] = {}
    values = settings(directory, **overrides)
    for name in ("grpc", "http", "plain"):
        values[f"listen.{name}"] = f"127.0.0.1:{claim_port()}"
    del values["listen.mtls"]
    values["token.audiences"] = [ca_tokens.AUDIENCE]
    for path, value in values.items():
        at = found
        *parents, last = path.split(".")
        for parent in parents:
            at = at.setdefault(parent, {})
        at[last] = value
    file = directory / "ca.yaml"
    file.write_text(yaml.safe_dump(found))
    return file


class Process:
    """A running `python -m ca serve`."""

    def __init__(self, file: Path) -> None:
        self.config = yaml.safe_load(file.read_text())
        self.directory = file.parent
        self.log = file.with_suffix(".log")
        with self.log.open("wb") as out:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "ca", "serve", "--config", str(file)],
                stdout=out,
                stderr=out,
                cwd=Path.cwd(),
            )

    def port(self, name: str) -> int:
        return int(self.config["listen"][name].rpartition(":")[2])

    def ready(self) -> bool:
        if self.popen.poll() is not None:
            raise AssertionError(self.log.read_text())
        try:
            return bool(self.get("/readyz").status == 200)
        except OSError:
            return False

    def context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.directory / "state/root-cert.pem"))

    def get(self, path: str, *, tls: bool = False, **headers: str) -> Any:
        """GET over the plain port, or over HTTPS with the root trusted."""
        scheme, port = ("https", self.port("http")) if tls else ("http", self.port("plain"))
        request = urllib.request.Request(f"{scheme}://localhost:{port}{path}", headers=headers)
        return urllib.request.urlopen(request, timeout=10, context=self.context() if tls else None)

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def said(self, message: str) -> int:
        return sum(line["msg"] == message for line in self.lines())

    def create(self) -> bool:
        import datetime as dt

        client = Client(self.port("grpc"), (self.directory / "state/root-cert.pem").read_bytes())
        try:
            return client.create([bearer(ca_tokens.token(dt.datetime.now(dt.UTC)))], make_csr(new_key())).ok
        finally:
            client.close()

    def workers(self) -> list[int]:
        children = Path(f"/proc/{self.popen.pid}/task/{self.popen.pid}/children").read_text()
        return [int(pid) for pid in children.split()]

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.popen.send_signal(number)
        return self.popen.wait(DEADLINE_SECONDS)


@contextlib.contextmanager
def serve(directory: Path, **overrides: object) -> Iterator[Process]:
    process = Process(write_config(directory, **overrides))
    try:
        wait_for(process.ready, "ready")
        yield process
    finally:
        if process.popen.poll() is None:
            process.popen.terminate()
            process.popen.wait(DEADLINE_SECONDS)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with serve(tmp_path_factory.mktemp("ca")) as process:
        yield process


def test_issues_and_publishes_its_bundle(running: Process) -> None:
    assert running.create()
    with running.get("/bundle", tls=True) as response:
        body, etag = response.read(), response.headers["ETag"]
        assert response.headers["Content-Type"] == "application/json"
    bundle = decode_bundle(body, TrustDomain("cluster.local"))
    root = (running.directory / "state/root-cert.pem").read_text()
    assert bundle.roots_der == pem.decode_certificates(root)
    with pytest.raises(urllib.error.HTTPError) as error:
        running.get("/bundle", tls=True, **{"If-None-Match": etag})
    assert error.value.code == 304
    error.value.close()


def test_metrics_over_both(running: Process) -> None:
    for tls in (True, False):
        with running.get("/metrics", tls=tls) as response:
            assert b"gatehouse_ca_ready 1.0" in response.read()


def test_the_parent_never_loads_grpc(running: Process) -> None:
    """Its threads would not survive the fork. Memory is locked away from us, so the map of a parent
    made the same way is looked at from inside."""
    code = (
        "import sys; sys.argv = ['ca', 'serve', '--config', sys.argv[1]]\n"
        "from ca import config, gunicorn_conf\nfrom pathlib import Path\nimport ca.__main__\n"
        "gunicorn_conf.CaApplication(config.load(Path(sys.argv[3]), {}))\n"
        "sys.exit('grpc' in sys.modules or any(m.startswith('grpc') for m in sys.modules))"
    )
    file = running.directory / "ca.yaml"
    assert subprocess.run([sys.executable, "-c", code, str(file)], check=False).returncode == 0


def test_memory_cannot_be_read_by_others_of_the_same_user(running: Process) -> None:
    (worker,) = running.workers()
    if os.geteuid() != 0:
        with pytest.raises(PermissionError):
            Path(f"/proc/{worker}/mem").open("rb").close()
    lines = Path(f"/proc/{worker}/limits").read_text().splitlines()
    (core,) = [line.split() for line in lines if line.startswith("Max core file size")]
    assert core[4:6] == ["0", "0"]


# --- TLS ------------------------------------------------------------------------------------------------


def s_client(running: Process, name: str, *arguments: str) -> str:
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{running.port(name)}", *arguments]
    command += ["-CAfile", str(running.directory / "state/root-cert.pem")]
    done = subprocess.run(command, input=b"", capture_output=True, timeout=20, check=False)
    return (done.stdout + done.stderr).decode(errors="replace")


@pytest.mark.openssl
@pytest.mark.parametrize("name", ["grpc", "http"])
@pytest.mark.parametrize("version", ["-tls1", "-tls1_1"])
def test_f57_old_tls_is_refused(running: Process, name: str, version: str) -> None:
    found = s_client(running, name, version, "-cipher", "ALL:@SECLEVEL=0", "-alpn", "h2")
    assert "Cipher is (NONE)" in found
    # gRPC closes the connection without an alert; both are refusals.
    assert "alert protocol version" in found or "unexpected eof" in found


@pytest.mark.openssl
@pytest.mark.parametrize("name", ["grpc", "http"])
@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
@pytest.mark.parametrize(
    "sni", [["-noservername"], ["-servername", "wrong.example"]], ids=["no SNI", "wrong SNI"]
)
def test_f57_served_without_and_with_a_wrong_name(
    running: Process, name: str, version: str, sni: list[str]
) -> None:
    found = s_client(running, name, version, "-alpn", "h2,http/1.1", *sni)
    assert "Verify return code: 0 (ok)" in found


@pytest.mark.openssl
def test_serving_certificate_names_what_was_configured(running: Process) -> None:
    found = s_client(running, "http", "-showcerts")
    leaf = found[found.index("-----BEGIN CERT") : found.index("-----END CERTIFICATE-----") + 26]
    text = subprocess.run(
        ["openssl", "x509", "-noout", "-text"], input=leaf.encode(), capture_output=True, check=True
    ).stdout.decode()
    assert "DNS:localhost" in text
    assert "IP Address:127.0.0.1" in text
    assert "TLS Web Server Authentication\n" in text
    assert "URI:" not in text


# --- signals, files, workers ------------------------------------------------------------------------------


def test_new_token_keys_are_picked_up_live(tmp_path: Path) -> None:
    with serve(tmp_path, reload_interval="100ms") as process:
        assert process.create()
        (tmp_path / "jwks.json").write_bytes(b"{")
        wait_for(lambda: process.said("what was loaded before stays in force"), "report of the broken file")
        assert process.create(), "the last good keys stay in force"
        assert b"jwks.json: key set is not JSON" in process.get("/readyz").read()
        (tmp_path / "jwks.json").write_bytes(ca_tokens.jwks({"e1": "ES256"}))
        wait_for(lambda: not process.create(), "the removed key to stop working")


def test_hup_reads_the_plugged_in_ca_again(tmp_path: Path) -> None:
    import datetime as dt

    plugged = tmp_path / "cacerts"
    plugged.mkdir()
    hierarchy = make_hierarchy(now=dt.datetime.now(dt.UTC))
    hierarchy.write_cacerts(plugged)
    overrides = {"ca_dir": str(plugged), "reload_interval": "1h"}
    file = write_config(tmp_path, **overrides)
    (tmp_path / "state").mkdir(mode=0o700)
    (tmp_path / "state/root-cert.pem").write_text(hierarchy.roots_pem)  # for the client of this test
    process = Process(file)
    try:
        wait_for(process.ready, "ready")
        assert process.create()
        (worker,) = process.workers()
        process.popen.send_signal(signal.SIGHUP)
        wait_for(lambda: any("hup" in line["msg"] for line in process.lines()), "the signal")
        (plugged / "ca-key.pem").write_text("garbage")
        process.popen.send_signal(signal.SIGHUP)
        wait_for(lambda: process.said("what was loaded before stays in force"), "the report")
        assert process.create(), "G-16: what was good stays in force"
        assert process.workers() == [worker], "nothing was restarted"
    finally:
        assert process.stop() == 0


def test_two_workers_share_ports_and_root(tmp_path: Path) -> None:
    with serve(tmp_path, workers=2) as process:
        wait_for(lambda: process.said("authority is serving") == 2, "both workers")
        assert len(process.workers()) == 2
        assert all(process.create() for _ in range(8))
        victim = process.workers()[0]
        os.kill(victim, signal.SIGKILL)
        wait_for(lambda: process.said("authority is serving") == 3, "a replacement")
        assert all(process.create() for _ in range(4))
        assert len(list((tmp_path / "state").glob("root.*"))) == 1
        assert process.stop() == 0


def test_a_crashed_worker_is_replaced(tmp_path: Path) -> None:
    """G-03 with one worker: the port is free again for its successor."""
    with serve(tmp_path) as process:
        (victim,) = process.workers()
        os.kill(victim, signal.SIGKILL)
        wait_for(lambda: process.said("authority is serving") == 2, "a replacement")
        wait_for(process.create, "service")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stops_when_told(tmp_path: Path, number: int) -> None:
    with serve(tmp_path) as process:
        assert process.stop(number) == 0
    if number == signal.SIGTERM:
        assert process.said("authority has stopped") == 1


# --- exit codes -------------------------------------------------------------------------------------------


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ca", *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def test_wrong_configuration_is_exit_2(tmp_path: Path) -> None:
    file = write_config(tmp_path)
    file.write_text(file.read_text() + "trust_domian: x\n")
    done = run("serve", "--config", str(file))
    assert done.returncode == 2
    assert "trust_domian" in done.stderr
    assert "did you mean 'trust_domain'?" in done.stderr


def test_a_worker_that_cannot_start_is_exit_3(tmp_path: Path) -> None:
    file = write_config(tmp_path, ca_dir=str(tmp_path / "nothing"))
    done = run("serve", "--config", str(file))
    assert done.returncode == 3
    assert "the authority cannot start" in done.stderr


def test_a_port_in_use_is_exit_3(tmp_path: Path) -> None:
    file = write_config(tmp_path)
    host, _, port = yaml.safe_load(file.read_text())["listen"]["grpc"].rpartition(":")
    with socket.socket() as other:
        other.bind((host, int(port)))
        other.listen()
        done = run("serve", "--config", str(file))
    assert done.returncode == 3
    assert f"cannot listen on {host}:{port}" in done.stderr


def test_check(tmp_path: Path) -> None:
    file = write_config(tmp_path)
    done = run("check", "--config", str(file))
    assert done.returncode == 0
    assert "will be made in" in done.stdout
    assert not (tmp_path / "state").exists(), "check makes nothing"
    (tmp_path / "jwks.json").unlink()
    done = run("check", "--config", str(file))
    assert done.returncode == 1
    assert "PROBLEM" in done.stdout


def test_help_and_settings() -> None:
    assert "exit codes:" in run("--help").stdout
    assert "listen.grpc" in run("settings").stdout
    assert run().returncode == 2
