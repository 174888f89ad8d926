"""A light Kubernetes client on the standard library's HTTP.

The official package costs 100 ms and 20 MB at start-up, which the agent would pay on every node.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import http.client
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any
from urllib.parse import urlencode

import orjson

from mesh.errors import Category
from mesh.kube.access import Access
from mesh.kube.api import KubeCode, KubeError, PatchType

_MAX_BODY = 64 << 20
_MAX_EVENT = 4 << 20  # etcd refuses objects over 1.5 MiB; managedFields may double one


class KubeClient:
    """`mesh.kube.api.KubeApi` over HTTPS with keep-alive; one connection for each thread.

    Args:
        access: server and credentials.
        user_agent: names the process in the server's audit log.
        timeout: for a whole request (not for watches).
    """

    def __init__(
        self, access: Access, *, user_agent: str, timeout: dt.timedelta = dt.timedelta(seconds=15)
    ) -> None:
        self._access = access
        self._user_agent = user_agent
        self._timeout = timeout.total_seconds()
        self._local = threading.local()

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

    @contextlib.contextmanager
    def _watch(
        self, path: str, silence: float, query: Mapping[str, str]
    ) -> Iterator[Iterator[Mapping[str, Any]]]:
        connection = self._connect(silence)
        try:
            response = self._send(connection, "GET", path, None, content_type="", query=query)
            if response.status != http.HTTPStatus.OK:
                raise self._error("GET", path, response)
            yield _events(response, path)
        finally:
            connection.close()

    def _call(self, method: str, path: str, body: Any, content_type: str, query: Mapping[str, str]) -> Any:
        response = self._respond(method, path, body, content_type, query)
        if response.status >= http.HTTPStatus.BAD_REQUEST:
            raise self._error(method, path, response)
        return _json(_body(response, path), path)

    def _respond(
        self, method: str, path: str, body: Any, content_type: str, query: Mapping[str, str]
    ) -> http.client.HTTPResponse:
        connection: http.client.HTTPSConnection | None = getattr(self._local, "connection", None)
        if connection is not None:
            try:
                return self._send(connection, method, path, body, content_type=content_type, query=query)
            except KubeError as error:
                connection.close()
                self._local.connection = None
                # The server closes idle connections. Only that is tried again on a new one: after
                # a time-out the request may still be under way.
                if not isinstance(error.__cause__, ConnectionError):
                    raise
        self._local.connection = connection = self._connect(self._timeout)
        try:
            return self._send(connection, method, path, body, content_type=content_type, query=query)
        except KubeError:
            self._local.connection = None
            connection.close()
            raise

    def _connect(self, timeout: float) -> http.client.HTTPSConnection:
        access = self._access
        try:
            return http.client.HTTPSConnection(
                access.host, access.port, timeout=timeout, context=access.tls()
            )
        except (OSError, ssl.SSLError) as error:
            raise KubeError(
                KubeCode.CONFIG,
                f"the credentials for {access.host} cannot be used: {error}",
                category=Category.FAILED_PRECONDITION,
            ) from error

    def _send(
        self,
        connection: http.client.HTTPSConnection,
        method: str,
        path: str,
        body: Any,
        *,
        content_type: str,
        query: Mapping[str, str],
    ) -> http.client.HTTPResponse:
        headers = {"Accept": "application/json", "User-Agent": self._user_agent}
        token = self._access.bearer()
        if token:
            headers["Authorization"] = f"Bearer {token}"
        if content_type:
            headers["Content-Type"] = content_type
        target = f"{path}?{urlencode(query)}" if query else path
        try:
            connection.request(method, target, None if body is None else orjson.dumps(body), headers)
            return connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            raise _unreachable(f"{method} {path}", error) from error

    @staticmethod
    def _error(method: str, path: str, response: http.client.HTTPResponse) -> KubeError:
        try:
            body = orjson.loads(_body(response, path))
        except orjson.JSONDecodeError:
            body = None
        return KubeError.of_status(
            response.status, f"{method} {path}", body, response.getheader("Retry-After")
        )


def _unreachable(what: str, error: Exception) -> KubeError:
    detail = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return KubeError(
        KubeCode.UNREACHABLE,
        f"{what}: no answer from the API server: {detail}",
        category=Category.UNAVAILABLE,
    )


def _body(response: http.client.HTTPResponse, path: str) -> bytes:
    try:
        body = response.read(_MAX_BODY + 1)
    except (OSError, http.client.HTTPException) as error:
        raise _unreachable(path, error) from error
    if len(body) > _MAX_BODY:
        raise KubeError(
            KubeCode.RESPONSE, f"{path}: answer is over {_MAX_BODY >> 20} MiB", category=Category.INTERNAL
        )
    return body


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
        except (OSError, http.client.HTTPException) as error:
            raise _unreachable(path, error) from error
        if not line:
            return
        if len(line) > _MAX_EVENT:
            raise KubeError(
                KubeCode.RESPONSE,
                f"{path}: event is over {_MAX_EVENT >> 20} MiB",
                category=Category.UNAVAILABLE,
            )
        event = _json(line, path)
        if not isinstance(event, dict) or not isinstance(event.get("object"), dict):
            raise KubeError(KubeCode.RESPONSE, f"{path}: not a watch event", category=Category.UNAVAILABLE)
        yield event
