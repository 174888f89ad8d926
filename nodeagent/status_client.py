"""Asks a running agent for its status, over TCP or a Unix socket."""

from __future__ import annotations

import http.client
import json
import socket
from typing import Any, Final

from mesh.errors import Category, Code, MeshError
from nodeagent.config import Listen

TIMEOUT: Final = 5.0
MAX_BYTES: Final = 64 * 1024 * 1024


class StatusCode(Code):
    """Why there is no status."""

    UNREACHABLE = "status_unreachable"
    UNEXPECTED = "status_unexpected_answer"


class StatusError(MeshError):
    """No agent answers, or something else does."""

    def __init__(self, code: StatusCode, public: str) -> None:
        super().__init__(code, public, category=Category.UNAVAILABLE)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=TIMEOUT)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(TIMEOUT)
        self.sock.connect(self._path)


def fetch_status(listen: Listen) -> dict[str, Any]:
    """The `/status` page of the agent that listens there.

    Raises:
        StatusError: nobody answers, or the answer is not a status.
    """
    if listen.path is not None:
        connection: http.client.HTTPConnection = _UnixConnection(str(listen.path))
    else:
        connection = http.client.HTTPConnection(listen.host, listen.port, timeout=TIMEOUT)
    try:
        connection.request("GET", "/status")
        response = connection.getresponse()
        body = response.read(MAX_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise StatusError(
            StatusCode.UNREACHABLE, f"no agent answers at {listen} ({error}); is it running?"
        ) from error
    finally:
        connection.close()
    try:
        found = json.loads(body)
    except ValueError:
        found = None
    if response.status != http.client.OK or not isinstance(found, dict) or "workloads" not in found:
        raise StatusError(
            StatusCode.UNEXPECTED, f"{listen} answers {response.status}, and not with an agent's status"
        )
    return found
