"""A light Kubernetes client on the standard library's HTTP.

The official package costs 100 ms and 20 MB at start-up, which the agent would pay on every node.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import http.client
import select
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, Final
from urllib.parse import quote, urlencode

import orjson

from mesh.errors import Category
from mesh.kube.access import Access
from mesh.kube.api import KubeCode, KubeError, PatchType

_MAX_BODY = 64 << 20
_MAX_EVENT = 4 << 20  # etcd refuses objects over 1.5 MiB; managedFields may double one
_MAX_IDLE = 4  # connections that are kept; threads come and go, and share them
_IDLE_SECONDS = 30.0  # load balancers forget connections after a minute, without a word
_ACCEPT: Final = (
    "application/json, application/jwk-set+json"  # key sets of the cluster are served as such only
)
_PATH_SAFE: Final = "/:@!$&'()*+,;=-._~"  # of RFC 3986 a segment's characters, and the slash


class KubeClient:
    """`mesh.kube.api.KubeApi` over HTTPS with keep-alive; safe to use from any thread.

    Only reads are tried again, once, when a kept connection turns out to be dead: whether a write has
    been done is not known then, and its caller decides.

    Args:
        access: server and credentials.
        user_agent: names the process in the server's audit log.
        timeout: for a whole request; of a watch, for its start.
    """

    def __init__(
        self, access: Access, *, user_agent: str, timeout: dt.timedelta = dt.timedelta(seconds=15)
    ) -> None:
        self._access = access
        self._user_agent = user_agent
        self._timeout = timeout.total_seconds()
        self._lock = threading.Lock()
        self._idle: list[tuple[_Connection, float]] = []  # newest last
        self._watches: set[socket.socket] = set()
        self._closed = False

    def get(self, path: str, **query: str) -> Any:
        """See `KubeApi`."""
        return self._call("GET", path, None, "", query)

    def create(self, path: str, body: Mapping[str, Any], **query: str) -> Any:
        """See `KubeApi`."""
        return self._call("POST", path, body, "application/json", query)

    def replace(self, path: str, body: Mapping[str, Any], **query: str) -> Any:
        """See `KubeApi`."""
        return self._call("PUT", path, body, "application/json", query)

    def patch(self, path: str, body: Any, kind: PatchType, **query: str) -> Any:
        """See `KubeApi`."""
        return self._call("PATCH", path, body, kind.value, query)

    def delete(self, path: str, **query: str) -> Any:
        """See `KubeApi`."""
        return self._call("DELETE", path, None, "", query)

    def watch(
        self, path: str, *, silence: dt.timedelta, **query: str
    ) -> AbstractContextManager[Iterator[Mapping[str, Any]]]:
        """See `KubeApi`."""
        return self._watch(path, silence.total_seconds(), {**query, "watch": "true"})

    def close(self) -> None:
        """Close what is idle and cut every watch, so that whoever reads one goes on at once."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            watches = list(self._watches)
        for connection, _ in idle:
            connection.close()
        for sock in watches:
            with contextlib.suppress(OSError):
                # Past the TLS layer, whose state belongs to the thread that reads.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    # --- watches ---

    @contextlib.contextmanager
    def _watch(
        self, path: str, silence: float, query: Mapping[str, str]
    ) -> Iterator[Iterator[Mapping[str, Any]]]:
        deadline = time.monotonic() + self._timeout
        connection = self._connect(path)
        sock = connection.held
        try:
            response = self._send(connection, "GET", path, None, content_type="", query=query)
            if response.status != http.HTTPStatus.OK:
                raise _refused("GET", path, response, deadline)
            with self._lock:
                if self._closed:
                    raise _unreachable(path, ConnectionAbortedError("the client was closed"))
                self._watches.add(sock)
            sock.settimeout(silence)
            yield _events(response, path)
        finally:
            with self._lock:
                self._watches.discard(sock)
            connection.close()

    # --- single requests ---

    def _call(self, method: str, path: str, body: Any, content_type: str, query: Mapping[str, str]) -> Any:
        deadline = time.monotonic() + self._timeout
        connection, response = self._respond(method, path, body, content_type, query)
        try:
            if response.status >= http.HTTPStatus.BAD_REQUEST:
                raise _refused(method, path, response, deadline)
            return _json(_body(response, path, deadline), path)
        finally:
            self._give_back(connection, response)

    def _respond(
        self, method: str, path: str, body: Any, content_type: str, query: Mapping[str, str]
    ) -> tuple[_Connection, http.client.HTTPResponse]:
        connection = self._take()
        if connection is not None:
            try:
                return connection, self._send(
                    connection, method, path, body, content_type=content_type, query=query
                )
            except KubeError as error:
                connection.close()
                # After a time-out the server may be at work on it; a load that made it slow is not doubled.
                if method != "GET" or isinstance(error.__cause__, TimeoutError):
                    raise
        connection = self._connect(path)
        try:
            return connection, self._send(
                connection, method, path, body, content_type=content_type, query=query
            )
        except KubeError:
            connection.close()
            raise

    def _take(self) -> _Connection | None:
        """A kept connection that still looks alive."""
        stale: list[_Connection] = []
        found = None
        now = time.monotonic()
        with self._lock:
            while self._idle and found is None:
                connection, since = self._idle.pop()
                if now - since < _IDLE_SECONDS and not connection.ended():
                    found = connection
                else:
                    stale.append(connection)
        for connection in stale:
            connection.close()
        return found

    def _give_back(self, connection: _Connection, response: http.client.HTTPResponse) -> None:
        """Keep a connection whose answer was read to its end; close any other."""
        if response.isclosed() and connection.sock is not None:
            with self._lock:
                if not self._closed and len(self._idle) < _MAX_IDLE:
                    self._idle.append((connection, time.monotonic()))
                    return
        response.close()
        connection.close()

    def _connect(self, path: str) -> _Connection:
        access = self._access
        try:
            connection = _Connection(access, self._timeout, access.tls())
        except (OSError, ValueError) as error:
            raise KubeError(
                KubeCode.CONFIG,
                f"the credentials for {access.host} cannot be used: {error}",
                category=Category.FAILED_PRECONDITION,
            ) from error
        try:
            connection.connect()
        except OSError as error:
            connection.close()
            raise _unreachable(path, error) from error
        return connection

    def _send(
        self,
        connection: _Connection,
        method: str,
        path: str,
        body: Any,
        *,
        content_type: str,
        query: Mapping[str, str],
    ) -> http.client.HTTPResponse:
        headers = {"Accept": _ACCEPT, "User-Agent": self._user_agent}
        token = self._access.bearer()
        if token:
            headers["Authorization"] = f"Bearer {token}"
        if content_type:
            headers["Content-Type"] = content_type
        target = self._access.prefix + quote(path, safe=_PATH_SAFE)
        if query:
            target += f"?{urlencode(query)}"
        try:
            connection.held.settimeout(self._timeout)
            connection.request(method, target, None if body is None else orjson.dumps(body), headers)
            return connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            raise _unreachable(f"{method} {path}", error) from error


class _Connection(http.client.HTTPSConnection):
    """One TLS connection; the certificate is checked for `Access.server_name` when there is one."""

    def __init__(self, access: Access, timeout: float, context: ssl.SSLContext) -> None:
        super().__init__(access.host, access.port, timeout=timeout, context=context)
        self._tls = context
        self._server_name = access.server_name or access.host

    def connect(self) -> None:
        plain = socket.create_connection((self.host, self.port), self.timeout)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            self.sock = self._tls.wrap_socket(plain, server_hostname=self._server_name)
        except BaseException:
            plain.close()
            raise

    @property
    def held(self) -> socket.socket:
        """The socket; a connection that has lost it counts as cut."""
        if self.sock is None:
            raise ConnectionResetError("the connection was closed")
        return self.sock

    def ended(self) -> bool:
        """True when the server has closed an idle connection, or sent what nobody asked for."""
        if self.sock is None:
            return True
        poll = select.poll()  # select() cannot take descriptors above 1023
        poll.register(self.sock, select.POLLIN)
        return bool(poll.poll(0))


def _unreachable(what: str, error: Exception) -> KubeError:
    detail = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return KubeError(
        KubeCode.UNREACHABLE,
        f"{what}: no answer from the API server: {detail}",
        category=Category.UNAVAILABLE,
    )


def _refused(method: str, path: str, response: http.client.HTTPResponse, deadline: float) -> KubeError:
    try:
        body = orjson.loads(_body(response, path, deadline))
    except orjson.JSONDecodeError:
        body = None  # a proxy before the server answers in HTML; the status says enough
    return KubeError.of_status(response.status, f"{method} {path}", body, response.getheader("Retry-After"))


def _body(response: http.client.HTTPResponse, path: str, deadline: float) -> bytes:
    parts: list[bytes] = []
    size = 0
    try:
        # read1 comes back with what is there: read would wait for all of it, however slow it trickles.
        while response.length != 0 and (part := response.read1(1 << 20)):
            parts.append(part)
            size += len(part)
            if size > _MAX_BODY:
                raise KubeError(
                    KubeCode.RESPONSE,
                    f"{path}: answer is over {_MAX_BODY >> 20} MiB",
                    category=Category.UNAVAILABLE,
                )
            if time.monotonic() > deadline:
                raise TimeoutError("the answer did not end in time")
    except (OSError, http.client.HTTPException) as error:
        raise _unreachable(path, error) from error
    if response.length:  # nor does it say that bytes are missing
        raise _unreachable(path, http.client.IncompleteRead(b"", response.length))
    response.close()  # read to its end: the connection can be used again
    return b"".join(parts)


def _json(body: bytes, path: str) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise KubeError(
            KubeCode.RESPONSE, f"{path}: answer is not JSON: {error}", category=Category.UNAVAILABLE
        ) from error


def _events(response: http.client.HTTPResponse, path: str) -> Iterator[Mapping[str, Any]]:
    while True:
        try:
            line = response.readline(_MAX_EVENT + 1)
        except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: closed by `close`
            raise _unreachable(path, error) from error
        if not line:
            return
        if len(line) > _MAX_EVENT:
            raise KubeError(
                KubeCode.RESPONSE,
                f"{path}: event is over {_MAX_EVENT >> 20} MiB",
                category=Category.UNAVAILABLE,
            )
        if not line.endswith(b"\n"):
            raise _unreachable(path, http.client.IncompleteRead(line[-20:]))
        event = _json(line, path)
        if not isinstance(event, dict) or not isinstance(event.get("object"), dict):
            raise KubeError(KubeCode.RESPONSE, f"{path}: not a watch event", category=Category.UNAVAILABLE)
        yield event
