"""What the capture agent asks the worker on its node, and what that answers: one JSON line each way.

The worker has the rights and no knowledge of the cluster; the agent has the knowledge and no right. So the
worker believes nothing: a request is a pod's UID and what to capture, in strict types, and nothing else.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from injector.core.capture import MAX_CHARACTERS, CaptureConfig
from injector.core.capture_cgroups import POD_UID
from mesh.errors import Code, MeshError

MAX_LINE = 2 * MAX_CHARACTERS
"""Bytes of a line: the configuration is a text in a text."""
_MAX_TEXT = 1000


class MessageCode(Code):
    """Why the capture agent and its worker did not understand each other."""

    REQUEST = "capture_bad_request"
    ANSWER = "capture_bad_answer"
    AWAY = "capture_worker_away"  # it does not answer at all


class NamespaceCode(Code):
    """Why the network of a pod was not touched."""

    NO_SANDBOX = "capture_no_sandbox"  # no process of the pod yet; the next try may find it
    NODE_NETWORK = "capture_node_network"  # the pod is in the network of the node itself
    SHARED = "capture_shared_network"  # another pod is in the same network
    ENTER = "capture_cannot_enter"
    NO_HOST = "capture_no_host_processes"  # hostPID or SYS_PTRACE is missing


class MessageError(MeshError):
    """A line that is no message, or none at all."""


@dataclass(frozen=True, slots=True)
class Request:
    """Have the pod with this UID captured; None asks whether the worker is there."""

    uid: str | None
    config: CaptureConfig

    def to_line(self) -> bytes:
        """One line."""
        data = {"uid": self.uid, "config": self.config.to_json()} if self.uid else {}
        return json.dumps(data, separators=(",", ":")).encode() + b"\n"

    @classmethod
    def of_line(cls, line: bytes) -> Request:
        """The inverse of `to_line`.

        Raises:
            MessageError: another form.
            CaptureError: a configuration that cannot become rules.
        """
        data = _object(line, MessageCode.REQUEST)
        if not data:
            return cls(None, CaptureConfig())
        uid, config = data.get("uid"), data.get("config")
        if set(data) != {"uid", "config"} or not isinstance(uid, str) or not isinstance(config, str):
            raise MessageError(MessageCode.REQUEST, "a request has a uid and a config, both texts")
        if not POD_UID.fullmatch(uid):
            raise MessageError(MessageCode.REQUEST, f"uid {uid[:60]!r} is not that of a pod")
        return cls(uid, CaptureConfig.from_json(config))


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the worker did.

    Attributes:
        code: why nothing was done, "" = the rules are in force.
        message: the sentence that goes with it.
        network: identity of the namespace, as a text; another one means another sandbox.
        backend: what wrote the rules, "" = they were there already.
    """

    code: str = ""
    message: str = ""
    network: str = ""
    backend: str = ""

    def to_line(self) -> bytes:
        """One line."""
        data = {name: getattr(self, name)[:_MAX_TEXT] for name in self.__slots__}
        return json.dumps(data, separators=(",", ":")).encode() + b"\n"

    @classmethod
    def of_line(cls, line: bytes) -> Answer:
        """The inverse of `to_line`.

        Raises:
            MessageError: another form.
        """
        data = _object(line, MessageCode.ANSWER)
        if set(data) != set(cls.__slots__) or not all(isinstance(value, str) for value in data.values()):
            raise MessageError(MessageCode.ANSWER, "the worker's answer has not the fields of an answer")
        return cls(**data)


def _object(line: bytes, code: MessageCode) -> dict[str, Any]:
    if len(line) > MAX_LINE:
        raise MessageError(code, f"a line of {len(line)} bytes; at most {MAX_LINE} are allowed")
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise MessageError(code, f"a line that is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise MessageError(code, "a line that is not a JSON object")
    return data
