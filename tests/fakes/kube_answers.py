"""How a fake API server answers: collections, reviews, discovery and watches, without HTTP."""

from __future__ import annotations

import datetime as dt
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tests.fakes.kube_store import ApiError, Obj, Resource, Storage, builtin, json_patch, merge, selector

PATH = re.compile(
    r"/(?:api/(?P<core>v1)|apis/(?P<group>[^/]+)/(?P<version>v[^/]+))"
    r"(?:/namespaces/(?P<ns>[^/]+)(?=/[^/]))?/(?P<plural>[^/]+)(?:/(?P<name>[^/]+))?(?:/(?P<sub>[^/]+))?"
)
_SUBRESOURCES = ("status", "finalize", "scale")
_PATCHES = ("application/json-patch+json", "application/merge-patch+json", "application/apply-patch+yaml")


@dataclass(frozen=True)
class Request:
    """What a client asked."""

    method: str
    path: str
    query: Mapping[str, str]
    body: Any
    headers: Mapping[str, str]

    @property
    def watch(self) -> bool:
        return self.query.get("watch") in {"true", "1"}

    @property
    def token(self) -> str:
        return self.headers.get("authorization", "").removeprefix("Bearer ")


Handler = Callable[[Request], tuple[int, Any]]


class KubeAnswers:
    """What is answered to a request.

    Args:
        minor: of the version 1.x that it claims to be; decides what is served.
        tokens: when given, other bearer tokens get 401.
    """

    def __init__(self, minor: int, tokens: set[str] | None) -> None:
        self.minor = minor
        self.tokens = tokens
        self.store = Storage()
        self.resources = list(builtin(minor))
        self.routes: dict[tuple[str, str], Handler] = {}
        """Answers of a test's own by (method, path): status and JSON data."""
        self.documents: dict[str, Any] = {}
        """Non-resource paths, e.g. /openid/v1/jwks: JSON data, or bytes as they are."""
        self.token_review: Callable[[Obj], Obj] = lambda _spec: {"authenticated": False}
        """From the spec of a TokenReview to its status."""
        self.access_review: Callable[[Obj], Obj] = lambda _spec: {"allowed": True}
        """From the spec of a (Self)SubjectAccessReview to its status."""
        self.watchers = 0
        self.released = threading.Event()
        self.stopping = False
        self.muted = False
        self.watch_commands: list[tuple[str, Any]] = []

    def answer(self, request: Request) -> tuple[int, Any]:
        """Status and JSON data of everything but a watch."""
        if self.tokens is not None and request.token not in self.tokens:
            raise ApiError(401, "Unauthorized", "Unauthorized")
        handler = self.routes.get((request.method, request.path))
        if handler is not None:
            return handler(request)
        if request.path == "/openid/v1/jwks" and "jwk-set+json" not in request.headers.get("accept", ""):
            raise ApiError(406, "NotAcceptable", "406: Not Acceptable")
        if request.path in self.documents:
            return 200, self.documents[request.path]
        review = self._review(request)
        if review is not None:
            return 201, review
        found = self._discovery(request.path)
        if found is not None:
            return 200, found
        resource, version, match = self.parse(request.path)
        status, item = self._resource(request, resource, match)
        if item.get("kind") != "Status" and "items" not in item:
            item = {"kind": resource.kind, "apiVersion": resource.api_version(version), **item}
        return status, item

    def parse(self, path: str) -> tuple[Resource, str, re.Match[str]]:
        match = PATH.fullmatch(path)
        if match is not None:
            group, version = match["group"] or "", match["core"] or match["version"]
            for resource in self.resources:
                if (resource.group, resource.plural) != (group, match["plural"]):
                    continue
                if version in resource.versions and match["sub"] in {None, *_SUBRESOURCES}:
                    return resource, version, match
        raise ApiError(404, "NotFound", "the server could not find the requested resource")

    def _resource(self, request: Request, resource: Resource, match: re.Match[str]) -> tuple[int, Obj]:
        method, body, query = request.method, request.body, request.query
        key = (match["ns"] or "", match["name"] or "")
        dry = query.get("dryRun") == "All"
        if method == "GET" and not key[1]:
            return 200, self._list(request, resource, match)
        if method == "GET":
            return 200, self.store.get(resource, key)
        if method == "POST" and not key[1]:
            return 201, self.store.create(resource, key[0], _object(body), dry=dry)
        if method == "PUT" and key[1]:
            return self._put(resource, key, _object(body), sub=match["sub"] or "", dry=dry)
        if method == "PATCH" and key[1]:
            return self._patch(request, resource, key, sub=match["sub"] or "", dry=dry)
        if method == "DELETE" and key[1]:
            gone = self.store.delete(resource, key)
            if gone["metadata"].get("finalizers"):
                return 200, gone
            return 200, {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}
        raise ApiError(405, "MethodNotAllowed", "the server does not allow this method on the resource")

    def _list(self, request: Request, resource: Resource, match: re.Match[str]) -> Obj:
        query = request.query
        matches = selector(resource, query.get("labelSelector", ""), query.get("fieldSelector", ""))
        limit = int(query.get("limit") or 0)
        items, meta = self.store.list(resource, match["ns"] or "", matches, limit, query.get("continue", ""))
        version = resource.api_version(match["core"] or match["version"])
        if resource.custom:  # only custom objects carry their type in lists
            items = [{"kind": resource.kind, "apiVersion": version, **i} for i in items]
        return {"kind": f"{resource.kind}List", "apiVersion": version, "metadata": meta, "items": items}

    def _put(
        self, resource: Resource, key: tuple[str, str], body: Obj, *, sub: str, dry: bool
    ) -> tuple[int, Obj]:
        meta = body.get("metadata") or {}
        if meta.get("name", key[1]) != key[1]:
            raise ApiError(400, "BadRequest", "the name of the object does not match the name on the URL")
        exists = key in self.store.objects.get(resource, {})
        if not exists and resource.create_on_update:
            return 201, self.store.create(resource, key[0], body, dry=dry)
        if exists and resource.needs_version and not meta.get("resourceVersion"):
            raise ApiError(
                422,
                "Invalid",
                "metadata.resourceVersion: Invalid value: 0x0: must be specified for an update",
            )
        return 200, self.store.update(resource, key, lambda _old: _bare(body), subresource=sub, dry=dry)

    def _patch(
        self, request: Request, resource: Resource, key: tuple[str, str], *, sub: str, dry: bool
    ) -> tuple[int, Obj]:
        kind = request.headers.get("content-type", "")
        body = request.body
        if kind == "application/apply-patch+yaml":
            if not request.query.get("fieldManager"):
                raise ApiError(422, "Invalid", "PatchOptions is invalid: fieldManager: Required value")
            if key not in self.store.objects.get(resource, {}):
                return 201, self.store.create(resource, key[0], _bare(_object(body)), dry=dry)

        def change(old: Obj) -> Obj:
            if kind == "application/json-patch+json":
                return json_patch(old, body)
            return dict(merge(old, _bare(_object(body))))

        if kind not in _PATCHES:
            raise ApiError(415, "UnsupportedMediaType", "the body of the request was in an unknown format")
        return 200, self.store.update(resource, key, change, subresource=sub, dry=dry)

    def _review(self, request: Request) -> Obj | None:
        kinds = {
            "/apis/authentication.k8s.io/v1/tokenreviews": self.token_review,
            "/apis/authorization.k8s.io/v1/subjectaccessreviews": self.access_review,
            "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews": self.access_review,
        }
        script = kinds.get(request.path)
        if script is None or request.method != "POST":
            return None
        return {**_object(request.body), "status": script(dict(request.body.get("spec") or {}))}

    def _discovery(self, path: str) -> Obj | None:
        if path == "/version":
            return {"major": "1", "minor": str(self.minor), "gitVersion": f"v1.{self.minor}.2"}
        if path in {"/livez", "/readyz", "/healthz"}:
            return {}
        groups: dict[str, list[str]] = {"authentication.k8s.io": ["v1"], "authorization.k8s.io": ["v1"]}
        for resource in self.resources:
            versions = groups.setdefault(resource.group, [])
            versions += [v for v in resource.versions if v not in versions]
        if path == "/apis":
            found = [
                {
                    "name": name,
                    "versions": [{"groupVersion": f"{name}/{v}", "version": v} for v in versions],
                    "preferredVersion": {"groupVersion": f"{name}/{versions[0]}", "version": versions[0]},
                }
                for name, versions in groups.items()
                if name
            ]
            return {"kind": "APIGroupList", "apiVersion": "v1", "groups": found}
        parts = path.strip("/").split("/")
        group, version = (
            ("", "v1") if path == "/api/v1" else (parts[1], parts[-1]) if len(parts) == 3 else ("", "")
        )
        if parts[0] not in {"api", "apis"} or version not in groups.get(group, []):
            return None
        verbs = ["create", "delete", "get", "list", "patch", "update", "watch"]
        rows = [
            {"name": r.plural, "singularName": "", "namespaced": r.namespaced, "kind": r.kind, "verbs": verbs}
            for r in self.resources
            if r.group == group and version in r.versions
        ]
        name = f"{group}/{version}" if group else version
        return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": name, "resources": rows}

    # --- watches ---

    def watch(self, request: Request) -> Iterator[bytes | None]:
        """Lines of a watch; None asks to cut the connection. Ends at its time-out."""
        if self.tokens is not None and request.token not in self.tokens:
            raise ApiError(401, "Unauthorized", "Unauthorized")
        resource, version, match = self.parse(request.path)
        query = request.query
        matches = selector(resource, query.get("labelSelector", ""), query.get("fieldSelector", ""))
        since = query.get("resourceVersion") or ""
        if since not in {"", "0"} and int(since) < self.store.oldest:
            raise ApiError(410, "Expired", f"too old resource version: {since} ({self.store.oldest})")
        typed = {"kind": resource.kind, "apiVersion": resource.api_version(version)}
        return _Watch(self, resource, typed, match["ns"] or "", matches, query).lines(since)


class _Watch:
    """One open watch."""

    def __init__(
        self,
        kube: KubeAnswers,
        resource: Resource,
        typed: Mapping[str, str],
        scope: str,
        matches: Callable[[Obj], bool],
        query: Mapping[str, str],
    ) -> None:
        self.kube, self.resource, self.typed, self.scope = kube, resource, typed, scope
        self.matches = matches
        self.bookmarks = query.get("allowWatchBookmarks") == "true"
        seconds = float(query.get("timeoutSeconds") or 1800)
        self.deadline = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=seconds)
        self.seen = 0

    def lines(self, since: str) -> Iterator[bytes | None]:
        kube, store = self.kube, self.kube.store
        first: list[Obj] = []
        with store.changed:
            if since in {"", "0"}:
                self.seen = store.version
                first = store.list(self.resource, self.scope, self.matches)[0]
            else:
                self.seen = int(since)
            done = len(kube.watch_commands)
            kube.watchers += 1
            store.changed.notify_all()
        try:
            for item in first:
                yield _line("ADDED", {**self.typed, **item})
            while not kube.stopping:
                todo, orders, left = self._wait(done)
                yield from todo
                for kind, data in orders:
                    done += 1
                    yield from self._obey(kind, data)
                    if kind in {"end", "error", "cut"}:
                        return
                if left <= 0:
                    return
        finally:
            with store.changed:
                kube.watchers -= 1
                store.changed.notify_all()

    def _wait(self, done: int) -> tuple[list[bytes], list[tuple[str, Any]], float]:
        """What is to be sent now; waits until there is something, or the time is over."""
        kube, store = self.kube, self.kube.store
        with store.changed:
            while True:
                orders = kube.watch_commands[done:]
                left = (self.deadline - dt.datetime.now(dt.UTC)).total_seconds()
                new = [] if kube.muted else [e for e in store.history if e.version > self.seen]
                if new or orders or left <= 0 or kube.stopping:
                    break
                store.changed.wait(left)
        found = []
        for event in new:
            self.seen = event.version
            if event.resource is not self.resource:
                continue
            if self.scope not in {"", event.new["metadata"].get("namespace")}:
                continue
            kind = _event_type(event.type, event.new, event.old, self.matches)
            if kind:
                found.append(_line(kind, {**self.typed, **event.new}))
        return found, orders, left

    def _obey(self, kind: str, data: Any) -> Iterator[bytes | None]:
        if kind == "cut":
            yield None
        elif kind == "error":
            yield _line("ERROR", data)
        elif kind == "raw":
            yield data
        elif kind == "bookmark" and self.bookmarks:
            self.seen = max(self.seen, self.kube.store.version)
            yield _line("BOOKMARK", {**self.typed, "metadata": {"resourceVersion": str(self.seen)}})


def _event_type(kind: str, new: Obj, old: Obj | None, matches: Callable[[Obj], bool]) -> str:
    """What a watch with a selector sees: an object that leaves the selection is deleted for it."""
    before = old is not None and matches(old)
    now = kind != "DELETED" and matches(new)
    if now:
        return "MODIFIED" if before else "ADDED"
    return "DELETED" if before else ""


def _line(kind: str, item: Any) -> bytes:
    return json.dumps({"type": kind, "object": item}).encode() + b"\n"


def _object(body: Any) -> Obj:
    if not isinstance(body, dict):
        raise ApiError(400, "BadRequest", "the object provided is unrecognized")
    return body


def _bare(body: Obj) -> Obj:
    return {k: v for k, v in body.items() if k not in {"kind", "apiVersion"}}
