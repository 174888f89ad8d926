"""Objects of a fake API server: versions, conflicts, selectors, patches and the history for watches.

What it does is held against a real API server by tests/contract/test_kube_contract.py.
"""

from __future__ import annotations

import base64
import copy
import datetime as dt
import json
import re
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import jsonpatch

Obj = dict[str, Any]
Key = tuple[str, str]
_DNS = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")


class ApiError(Exception):
    """An answer with a Status object."""

    def __init__(self, status: int, reason: str, message: str, **details: Any) -> None:
        super().__init__(message)
        self.status, self.reason, self.message, self.details = status, reason, message, details

    def body(self) -> Obj:
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            **({"details": self.details} if self.details else {}),
            "code": self.status,
        }


@dataclass(frozen=True)
class Resource:
    """A collection: where it is served and what its objects are called."""

    group: str
    versions: tuple[str, ...]  # the preferred one first
    plural: str
    kind: str
    namespaced: bool = True
    fields: frozenset[str] = frozenset()  # of field selectors, beside name and namespace
    custom: bool = False
    needs_version: bool = False  # PUT without a resourceVersion is refused
    create_on_update: bool = False

    def api_version(self, version: str) -> str:
        return f"{self.group}/{version}" if self.group else version


@dataclass(frozen=True)
class Event:
    """One entry of the history; `old` is what the object was before."""

    version: int
    type: str
    resource: Resource
    new: Obj
    old: Obj | None


def builtin(minor: int) -> tuple[Resource, ...]:
    """What a cluster of version 1.`minor` serves, with the kinds of Gatehouse installed."""
    pods = frozenset({"spec.nodeName", "spec.restartPolicy", "spec.serviceAccountName"})
    pods |= {"status.phase", "status.podIP", "spec.schedulerName", "status.nominatedNodeName"}
    event = frozenset({"involvedObject.name", "involvedObject.kind", "involvedObject.namespace"})
    event |= {"involvedObject.uid", "reason", "type"}
    core, apps = ("v1",), ("v1",)
    admission = "admissionregistration.k8s.io"
    slices = ("v1beta1",) if minor < 21 else ("v1", "v1beta1") if minor < 25 else ("v1",)
    cron = ("v1beta1",) if minor < 21 else ("v1", "v1beta1") if minor < 25 else ("v1",)
    budgets = cron
    found = [
        Resource("", core, "namespaces", "Namespace", False, frozenset({"status.phase"})),
        Resource("", core, "nodes", "Node", False, frozenset({"spec.unschedulable"})),
        Resource("", core, "pods", "Pod", fields=pods),
        Resource("", core, "services", "Service"),
        Resource("", core, "endpoints", "Endpoints"),
        Resource("", core, "configmaps", "ConfigMap"),
        Resource("", core, "secrets", "Secret", fields=frozenset({"type"})),
        Resource("", core, "serviceaccounts", "ServiceAccount"),
        Resource("", core, "events", "Event", fields=event),
        Resource("", core, "replicationcontrollers", "ReplicationController"),
        Resource("apps", apps, "deployments", "Deployment"),
        Resource("apps", apps, "replicasets", "ReplicaSet"),
        Resource("apps", apps, "statefulsets", "StatefulSet"),
        Resource("apps", apps, "daemonsets", "DaemonSet"),
        Resource("batch", ("v1",), "jobs", "Job"),
        Resource("batch", cron, "cronjobs", "CronJob"),
        Resource("policy", budgets, "poddisruptionbudgets", "PodDisruptionBudget"),
        Resource("discovery.k8s.io", slices, "endpointslices", "EndpointSlice"),
        Resource(
            "coordination.k8s.io", ("v1",), "leases", "Lease", needs_version=True, create_on_update=True
        ),
        Resource("storage.k8s.io", ("v1",), "csidrivers", "CSIDriver", False),
        Resource(admission, ("v1",), "mutatingwebhookconfigurations", "MutatingWebhookConfiguration", False),
        Resource(
            admission, ("v1",), "validatingwebhookconfigurations", "ValidatingWebhookConfiguration", False
        ),
        Resource(
            "apiextensions.k8s.io",
            ("v1",),
            "customresourcedefinitions",
            "CustomResourceDefinition",
            False,
        ),
    ]
    rbac = "rbac.authorization.k8s.io"
    found += [
        Resource(rbac, ("v1",), "clusterroles", "ClusterRole", False),
        Resource(rbac, ("v1",), "clusterrolebindings", "ClusterRoleBinding", False),
        Resource(rbac, ("v1",), "roles", "Role"),
        Resource(rbac, ("v1",), "rolebindings", "RoleBinding"),
    ]
    policies = (
        ("peerauthentications", "PeerAuthentication"),
        ("requestauthentications", "RequestAuthentication"),
        ("authorizationpolicies", "AuthorizationPolicy"),
    )
    found += [
        Resource("security.istio.io", ("v1", "v1beta1"), plural, kind, custom=True, needs_version=True)
        for plural, kind in policies
    ]
    if minor >= 33:
        found.append(
            Resource("certificates.k8s.io", ("v1beta1",), "clustertrustbundles", "ClusterTrustBundle", False)
        )
    return tuple(found)


def _now() -> str:
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass
class Storage:
    """All objects, under one lock; `changed` is notified after each write."""

    changed: threading.Condition = field(default_factory=lambda: threading.Condition(threading.RLock()))
    version: int = 100
    oldest: int = 0  # watches and continue tokens from before it get 410
    objects: dict[Resource, dict[Key, Obj]] = field(default_factory=dict)
    history: list[Event] = field(default_factory=list)

    def expire(self) -> None:
        """Forget the history, as compaction does."""
        with self.changed:
            self.version += 1
            self.oldest = self.version
            self.history.clear()
            self.changed.notify_all()

    def _record(self, kind: str, resource: Resource, key: Key, new: Obj, old: Obj | None) -> Obj:
        self.version += 1
        new["metadata"]["resourceVersion"] = str(self.version)
        collection = self.objects.setdefault(resource, {})
        if kind == "DELETED":
            collection.pop(key, None)
        else:
            collection[key] = new
        self.history.append(Event(self.version, kind, resource, new, old))
        del self.history[:-20_000]
        self.changed.notify_all()
        return new

    # --- reading ---

    def get(self, resource: Resource, key: Key) -> Obj:
        with self.changed:
            found = self.objects.get(resource, {}).get(key)
            if found is None:
                raise _not_found(resource, key[1])
            return found

    def list(
        self,
        resource: Resource,
        namespace: str,
        matches: Callable[[Obj], bool],
        limit: int = 0,
        token: str = "",
    ) -> tuple[list[Obj], Obj]:
        """One page and its metadata."""
        with self.changed:
            version, after = self.version, None
            if token:
                try:
                    version, after = _decode_token(token)
                except ValueError as e:
                    raise ApiError(400, "BadRequest", "continue key is not valid") from e
                if version < self.oldest:
                    raise ApiError(410, "Expired", "The provided continue parameter is too old")
            keys = sorted(k for k in self.objects.get(resource, {}) if not namespace or k[0] == namespace)
            rest = [k for k in keys if after is None or k > after]
            found = [k for k in rest if matches(self.objects[resource][k])]
            meta: Obj = {"resourceVersion": str(version)}
            if limit and len(found) > limit:
                meta["continue"] = _token(version, found[limit - 1])
                meta["remainingItemCount"] = len(found) - limit
                found = found[:limit]
            return [self.objects[resource][k] for k in found], meta

    # --- writing ---

    def create(self, resource: Resource, namespace: str, body: Obj, *, dry: bool = False) -> Obj:
        item = copy.deepcopy(body)
        meta = item.setdefault("metadata", {})
        if not meta.get("name") and meta.get("generateName"):
            meta["name"] = meta["generateName"] + uuid.uuid4().hex[:5]
        name = meta.get("name") or ""
        _check_name(resource, name)
        if meta.get("namespace", namespace) != namespace:
            raise ApiError(
                400,
                "BadRequest",
                "the namespace of the provided object does not match the namespace sent on the request",
            )
        if meta.get("resourceVersion"):
            raise ApiError(400, "BadRequest", "resourceVersion should not be set on objects to be created")
        with self.changed:
            if resource.namespaced:
                self._check_namespace(resource, namespace, name)
                meta["namespace"] = namespace
            if (namespace, name) in self.objects.get(resource, {}):
                raise ApiError(
                    409,
                    "AlreadyExists",
                    f'{resource.plural} "{name}" already exists',
                    name=name,
                    kind=resource.plural,
                )
            _fill(resource, item)
            if dry:
                return item
            return self._record("ADDED", resource, (namespace, name), item, None)

    def update(
        self,
        resource: Resource,
        key: Key,
        change: Callable[[Obj], Obj],
        *,
        subresource: str = "",
        dry: bool = False,
    ) -> Obj:
        """PUT and PATCH: `change` gets a copy of the present object."""
        with self.changed:
            old = self.get(resource, key)
            new = change(copy.deepcopy(old))
            meta = new.setdefault("metadata", {})
            wanted = meta.get("resourceVersion")
            if wanted and wanted != old["metadata"]["resourceVersion"]:
                raise ApiError(
                    409,
                    "Conflict",
                    f'Operation cannot be fulfilled on {resource.plural} "{key[1]}": the object has been'
                    " modified; please apply your changes to the latest version and try again",
                )
            if meta.get("uid", old["metadata"]["uid"]) != old["metadata"]["uid"]:
                raise ApiError(409, "Conflict", "Precondition failed: UID in precondition")
            if subresource:
                new = {**copy.deepcopy(old), subresource: new.get(subresource, {})}
            elif not resource.custom and "status" in old:
                new["status"] = copy.deepcopy(old["status"])
            keep = ("uid", "creationTimestamp", "namespace", "name", "deletionTimestamp", "generation")
            new["metadata"] |= {k: old["metadata"][k] for k in keep if k in old["metadata"]}
            new["metadata"]["resourceVersion"] = old["metadata"]["resourceVersion"]
            _strings(resource, new)
            if dry or new == old:
                return new
            if new.get("spec") != old.get("spec"):
                new["metadata"]["generation"] = int(old["metadata"].get("generation", 1)) + 1
            if new["metadata"].get("deletionTimestamp") and not new["metadata"].get("finalizers"):
                return self._record("DELETED", resource, key, new, old)
            return self._record("MODIFIED", resource, key, new, old)

    def delete(self, resource: Resource, key: Key) -> Obj:
        with self.changed:
            old = self.get(resource, key)
            gone = copy.deepcopy(old)
            if old["metadata"].get("finalizers"):
                gone["metadata"].setdefault("deletionTimestamp", _now())
                return self._record("MODIFIED", resource, key, gone, old)
            return self._record("DELETED", resource, key, gone, old)

    def force(self, resource: Resource, item: Mapping[str, Any]) -> Obj:
        """Add or replace whatever a test wants, unchecked; makes the namespace too."""
        new = copy.deepcopy(dict(item))
        meta = new.setdefault("metadata", {})
        namespace = (meta.setdefault("namespace", "default")) if resource.namespaced else ""
        key = (namespace, meta["name"])
        with self.changed:
            old = self.objects.get(resource, {}).get(key)
            _fill(resource, new)
            return self._record("MODIFIED" if old else "ADDED", resource, key, new, old)

    def _check_namespace(self, resource: Resource, namespace: str, name: str) -> None:
        for known, objects in self.objects.items():
            if known.plural == "namespaces" and ("", namespace) in objects:
                found = objects["", namespace]
                if found.get("status", {}).get("phase") == "Terminating":
                    raise ApiError(
                        403,
                        "Forbidden",
                        f'{resource.plural} "{name}" is forbidden: unable to create new content in'
                        f" namespace {namespace} because it is being terminated",
                        causes=[{"reason": "NamespaceTerminating"}],
                    )
                return
        raise ApiError(404, "NotFound", f'namespaces "{namespace}" not found')


def _not_found(resource: Resource, name: str) -> ApiError:
    plural = f"{resource.plural}.{resource.group}" if resource.group else resource.plural
    return ApiError(404, "NotFound", f'{plural} "{name}" not found', name=name, kind=resource.plural)


def _check_name(resource: Resource, name: str) -> None:
    if not name:
        raise ApiError(
            422, "Invalid", f"{resource.kind} is invalid: metadata.name: Required value: name is required"
        )
    if resource.plural == "clustertrustbundles":
        valid = ":" in name and all(_DNS.fullmatch(part) for part in name.split(":"))  # SIGNER:NAME
    else:
        valid = "rbac" in resource.group or _DNS.fullmatch(name) is not None
    if not valid:
        raise ApiError(
            422, "Invalid", f'{resource.kind} "{name}" is invalid: metadata.name: Invalid value: "{name}"'
        )


def _fill(resource: Resource, item: Obj) -> None:
    meta = item["metadata"]
    meta.setdefault("uid", str(uuid.uuid4()))
    meta.setdefault("creationTimestamp", _now())
    if "spec" in item:
        meta.setdefault("generation", 1)
    if resource.plural == "namespaces":
        item.setdefault("status", {"phase": "Active"})
        meta["labels"] = {"kubernetes.io/metadata.name": meta["name"], **(meta.get("labels") or {})}
    if resource.plural == "secrets":
        item.setdefault("type", "Opaque")
    _strings(resource, item)


def _strings(resource: Resource, item: Obj) -> None:
    if resource.plural == "secrets" and "stringData" in item:
        plain = item.pop("stringData") or {}
        item["data"] = {
            **(item.get("data") or {}),
            **{k: base64.b64encode(v.encode()).decode() for k, v in plain.items()},
        }


def _token(version: int, key: Key) -> str:
    return base64.urlsafe_b64encode(json.dumps([version, *key]).encode()).decode()


def _decode_token(token: str) -> tuple[int, Key]:
    version, namespace, name = json.loads(base64.urlsafe_b64decode(token))
    return int(version), (namespace, name)


# --- selectors ---


def selector(resource: Resource, labels: str, fields: str) -> Callable[[Obj], bool]:
    """A predicate from the two query parameters."""
    tests = [*_label_tests(labels), *_field_tests(resource, fields)]
    return lambda item: all(test(item) for test in tests)


Test = Callable[[Obj], bool]


def _label_tests(text: str) -> Iterator[Test]:
    for part in re.split(r",(?![^(]*\))", text) if text else []:
        term = part.strip()
        if found := re.fullmatch(r"(\S+)\s+(in|notin)\s+\(([^)]*)\)", term):
            values = {v.strip() for v in found[3].split(",")}
            yield _label_in(found[1], values, wanted=found[2] == "in")
        elif found := re.fullmatch(r"([^=!\s]+)\s*(==|=|!=)\s*(\S*)", term):
            yield _label_in(found[1], {found[3]}, wanted=found[2] != "!=")
        elif found := re.fullmatch(r"(!?)([^=!\s()]+)", term):
            yield _label_exists(found[2], wanted=not found[1])
        else:
            raise ApiError(400, "BadRequest", f"unable to parse requirement: {term}")


def _label_in(key: str, values: set[str], *, wanted: bool) -> Test:
    return lambda item: (_labels(item).get(key) in values) == wanted


def _label_exists(key: str, *, wanted: bool) -> Test:
    return lambda item: (key in _labels(item)) == wanted


def _labels(item: Obj) -> Mapping[str, str]:
    return item["metadata"].get("labels") or {}


def _field_tests(resource: Resource, text: str) -> Iterator[Test]:
    allowed = {"metadata.name", *(["metadata.namespace"] if resource.namespaced else []), *resource.fields}
    for term in text.split(",") if text else []:
        found = re.fullmatch(r"([^=!]+)(==|=|!=)(.*)", term.strip())
        if found is None or found[1] not in allowed:
            raise ApiError(400, "BadRequest", f"field label not supported: {term}")
        yield _field_is(found[1], found[3], wanted=found[2] != "!=")


def _field_is(path: str, value: str, *, wanted: bool) -> Test:
    return lambda item: (_lookup(item, path) == value) == wanted


def _lookup(item: Any, path: str) -> str:
    for step in path.split("."):
        item = item.get(step) if isinstance(item, dict) else None
    return "" if item is None else str(item)


# --- patches ---


def merge(target: Any, patch: Any) -> Any:
    """JSON merge patch (RFC 7386)."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    result = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merge(result.get(name), value)
    return result


def json_patch(target: Obj, operations: Any) -> Obj:
    """RFC 6902; a failing test operation is 422 as on a real server."""
    try:
        return dict(jsonpatch.apply_patch(target, operations))
    except (jsonpatch.JsonPatchException, jsonpatch.JsonPointerException) as e:
        raise ApiError(
            422, "Invalid", "the server rejected our request due to an error in our request"
        ) from e
    except (TypeError, KeyError) as e:
        raise ApiError(400, "BadRequest", "error decoding patch") from e
