"""The same cases against the fake API server and, with a cluster, against the real one.

What the fake answers is worth as much as this file says: a case that passes on one and fails on the other
is a fault of the fake.
"""

from __future__ import annotations

import datetime as dt
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import pytest

from mesh.clock import SystemClock
from mesh.kube.access import from_kubeconfig
from mesh.kube.api import KubeCode, KubeError, PatchType
from mesh.kube.client import KubeClient
from mesh.kube.discovery import discover
from mesh.kube.lease import Elector, LeaseConfig
from mesh.kube.reflector import Collection, Reflector
from mesh.kube.store import Store
from tests.cluster.marks import CLUSTER
from tests.fakes.kube_api import FakeKube

SILENCE = dt.timedelta(seconds=20)


@dataclass
class Place:
    """A server and a namespace of our own on it."""

    api: KubeClient
    namespace: str
    kube: FakeKube | None = None

    @property
    def maps(self) -> str:
        return f"/api/v1/namespaces/{self.namespace}/configmaps"

    @property
    def secrets(self) -> str:
        return f"/api/v1/namespaces/{self.namespace}/secrets"

    @property
    def leases(self) -> str:
        return f"/apis/coordination.k8s.io/v1/namespaces/{self.namespace}/leases"

    def put(self, name: str, **fields: Any) -> Any:
        labels = fields.pop("labels", {})
        return self.api.create(self.maps, {"metadata": {"name": name, "labels": labels}, **fields})


@contextmanager
def _namespace(api: KubeClient) -> Iterator[Place]:
    name = f"contract-{uuid.uuid4().hex[:8]}"
    api.create("/api/v1/namespaces", {"metadata": {"name": name}})
    try:
        yield Place(api, name)
    finally:
        with suppress(KubeError):
            api.delete(f"/api/v1/namespaces/{name}")


@pytest.fixture(params=["fake", pytest.param("cluster", marks=CLUSTER)])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    if request.param == "fake":
        with FakeKube() as kube, _namespace(kube.api()) as found:
            found.kube = kube
            yield found
        return
    api = KubeClient(from_kubeconfig(request.getfixturevalue("kubeconfig")), user_agent="contract")
    try:
        with _namespace(api) as found:
            yield found
    finally:
        api.close()


def _refused(code: KubeCode, status: int, action: Any) -> KubeError:
    with pytest.raises(KubeError) as e:
        action()
    assert (e.value.code, e.value.status) == (code, status), e.value
    return e.value


def test_discovery(place: Place) -> None:
    found = discover(place.api)
    assert found.minor >= 20
    assert found.serves("coordination.k8s.io", "v1")
    assert found.serves("admissionregistration.k8s.io", "v1")
    assert found.endpoint_slices in {"v1", "v1beta1"}


def test_create_gives_identity_and_version(place: Place) -> None:
    made = place.put("one", data={"a": "1"})
    assert {"uid", "resourceVersion", "creationTimestamp", "namespace"} <= set(made["metadata"])
    assert (made["kind"], made["apiVersion"]) == ("ConfigMap", "v1")
    _refused(KubeCode.ALREADY_EXISTS, 409, lambda: place.put("one"))
    same = place.api.get(f"{place.maps}/one")
    assert same["metadata"]["resourceVersion"] == made["metadata"]["resourceVersion"]


@pytest.mark.parametrize(
    ("body", "code", "status"),
    [
        ({"metadata": {}}, KubeCode.INVALID, 422),
        ({"metadata": {"name": "Not_Good"}}, KubeCode.INVALID, 422),
        ({"metadata": {"name": "x", "namespace": "elsewhere"}}, KubeCode.INVALID, 400),
    ],
    ids=["no-name", "bad-name", "other-namespace"],
)
def test_create_refuses(place: Place, body: dict[str, Any], code: KubeCode, status: int) -> None:
    _refused(code, status, lambda: place.api.create(place.maps, body))


def test_create_with_a_version_is_refused(place: Place) -> None:
    body = {"metadata": {"name": "x", "resourceVersion": "7"}}
    with pytest.raises(KubeError):
        place.api.create(place.maps, body)


def test_generated_name_and_dry_run(place: Place) -> None:
    made = place.api.create(place.maps, {"metadata": {"generateName": "gen-"}})
    assert made["metadata"]["name"].startswith("gen-")
    place.api.create(place.maps, {"metadata": {"name": "dry"}}, dryRun="All")
    _refused(KubeCode.NOT_FOUND, 404, lambda: place.api.get(f"{place.maps}/dry"))


def test_missing_things(place: Place) -> None:
    api = place.api
    _refused(KubeCode.NOT_FOUND, 404, lambda: api.get(f"{place.maps}/none"))
    _refused(KubeCode.NOT_FOUND, 404, lambda: api.delete(f"{place.maps}/none"))
    _refused(
        KubeCode.NOT_FOUND, 404, lambda: api.replace(f"{place.maps}/none", {"metadata": {"name": "none"}})
    )
    _refused(KubeCode.NOT_FOUND, 404, lambda: api.patch(f"{place.maps}/none", {}, PatchType.MERGE))
    _refused(KubeCode.NOT_FOUND, 404, lambda: api.get("/apis/none.test/v1/things"))
    body = {"metadata": {"name": "x"}}
    _refused(KubeCode.NOT_FOUND, 404, lambda: api.create("/api/v1/namespaces/no-such-ns/configmaps", body))


def test_replace_is_compare_and_swap(place: Place) -> None:
    made = place.put("one", data={"a": "1"})
    changed = place.api.replace(f"{place.maps}/one", {**made, "data": {"a": "2"}})
    assert changed["metadata"]["resourceVersion"] != made["metadata"]["resourceVersion"]
    _refused(KubeCode.CONFLICT, 409, lambda: place.api.replace(f"{place.maps}/one", {**made, "data": {}}))
    free = {"metadata": {"name": "one"}, "data": {"a": "3"}}
    assert place.api.replace(f"{place.maps}/one", free)["data"] == {"a": "3"}
    same = place.api.get(f"{place.maps}/one")
    again = place.api.replace(f"{place.maps}/one", same)
    assert again["metadata"]["resourceVersion"] == same["metadata"]["resourceVersion"]
    _refused(
        KubeCode.INVALID, 400, lambda: place.api.replace(f"{place.maps}/one", {"metadata": {"name": "other"}})
    )


def test_patches(place: Place) -> None:
    place.put("one", data={"a": "1", "b": "2"})
    path = f"{place.maps}/one"
    api = place.api
    assert api.patch(path, {"data": {"a": None, "c": "3"}}, PatchType.MERGE)["data"] == {"b": "2", "c": "3"}
    operations = [{"op": "test", "path": "/data/b", "value": "2"}, {"op": "remove", "path": "/data/b"}]
    assert api.patch(path, operations, PatchType.JSON)["data"] == {"c": "3"}
    _refused(KubeCode.INVALID, 422, lambda: api.patch(path, operations, PatchType.JSON))
    stale = {"metadata": {"resourceVersion": "1"}, "data": {"c": "4"}}
    _refused(KubeCode.CONFLICT, 409, lambda: api.patch(path, stale, PatchType.MERGE))


def test_apply_creates_and_changes(place: Place) -> None:
    path = f"{place.maps}/applied"
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "applied"}, "data": {"a": "1"}}
    made = place.api.patch(path, body, PatchType.APPLY, fieldManager="contract")
    assert made["data"] == {"a": "1"}
    body["data"] = {"a": "2"}
    changed = place.api.patch(path, body, PatchType.APPLY, fieldManager="contract", force="true")
    assert changed["data"] == {"a": "2"}
    with pytest.raises(KubeError) as e:
        place.api.patch(path, body, PatchType.APPLY)
    assert e.value.code is KubeCode.INVALID


def test_secrets(place: Place) -> None:
    body = {"metadata": {"name": "s"}, "type": "gatehouse.dev/ca-root", "stringData": {"a": "x"}}
    made = place.api.create(place.secrets, body)
    assert (made["data"], made["type"]) == ({"a": "eA=="}, "gatehouse.dev/ca-root")
    place.api.create(place.secrets, {"metadata": {"name": "empty"}})
    empty = place.api.get(f"{place.secrets}/empty")
    assert (empty.get("data"), empty["type"]) == (None, "Opaque")
    query = {"fieldSelector": "type=gatehouse.dev/ca-root"}
    assert [i["metadata"]["name"] for i in place.api.get(place.secrets, **query)["items"]] == ["s"]


def _names(listing: Any) -> list[str]:
    """Without what controllers put into every namespace: Kubernetes' own, and those of an installed mesh."""
    names = [item["metadata"]["name"] for item in listing["items"]]
    return [name for name in names if name not in {"kube-root-ca.crt", "istio-ca-root-cert"}]


def test_selectors(place: Place) -> None:
    place.put("a", labels={"app": "x", "tier": "1"})
    place.put("b", labels={"app": "y"})
    place.put("c")

    def by(labels: str) -> list[str]:
        return _names(place.api.get(place.maps, labelSelector=labels))

    assert by("app=x") == ["a"]
    assert by("app==x,tier=1") == ["a"]
    assert by("app!=x") == ["b", "c"]
    assert by("app in (x, y)") == ["a", "b"]
    assert by("app notin (x)") == ["b", "c"]
    assert by("app") == ["a", "b"]
    assert by("!app") == ["c"]
    assert _names(place.api.get(place.maps, fieldSelector="metadata.name=b")) == ["b"]
    assert _names(place.api.get(place.maps, fieldSelector="metadata.name!=b")) == ["a", "c"]
    _refused(KubeCode.INVALID, 400, lambda: place.api.get(place.maps, fieldSelector="data.a=b"))
    _refused(KubeCode.INVALID, 400, lambda: place.api.get(place.maps, labelSelector="a in x"))


def test_pages(place: Place) -> None:
    for i in range(5):
        place.put(f"m{i}", labels={"page": "1"})
    names, query = [], {"limit": "2", "labelSelector": "page=1"}
    for _ in range(3):
        page = place.api.get(place.maps, **query)
        names += _names(page)
        assert "kind" not in page["items"][0]  # typed lists say it once
        query["continue"] = page["metadata"].get("continue", "")
    assert (names, query["continue"]) == ([f"m{i}" for i in range(5)], "")
    _refused(KubeCode.INVALID, 400, lambda: place.api.get(place.maps, limit="2", **{"continue": "garbage"}))


def test_watch(place: Place) -> None:
    first = place.put("w", labels={"w": "1"}, data={"v": "1"})
    version = place.api.get(place.maps)["metadata"]["resourceVersion"]
    query = {"labelSelector": "w=1", "resourceVersion": version, "timeoutSeconds": "5"}
    with place.api.watch(place.maps, silence=SILENCE, **query) as events:
        place.api.patch(f"{place.maps}/w", {"data": {"v": "2"}}, PatchType.MERGE)
        event = next(events)
        assert (event["type"], event["object"]["data"], event["object"]["kind"]) == (
            "MODIFIED",
            {"v": "2"},
            "ConfigMap",
        )
        place.api.patch(f"{place.maps}/w", {"metadata": {"labels": None}}, PatchType.MERGE)
        left = next(events)
        assert left["type"] == "DELETED"  # left the selection
        place.api.patch(f"{place.maps}/w", {"metadata": {"labels": {"w": "1"}}}, PatchType.MERGE)
        assert next(events)["type"] == "ADDED"
        place.api.delete(f"{place.maps}/w")
        gone = next(events)
        assert (gone["type"], gone["object"]["metadata"]["uid"]) == ("DELETED", first["metadata"]["uid"])
        assert int(gone["object"]["metadata"]["resourceVersion"]) > int(version)
        assert list(events) == []  # ends by itself after timeoutSeconds


def test_watch_from_nowhere_begins_with_what_is_there(place: Place) -> None:
    place.put("w", labels={"w": "1"})
    query = {"labelSelector": "w=1", "resourceVersion": "0", "timeoutSeconds": "2"}
    with place.api.watch(place.maps, silence=SILENCE, **query) as events:
        assert next(events)["type"] == "ADDED"


def test_watch_of_a_kind_that_is_not_there(place: Place) -> None:
    with pytest.raises(KubeError) as e, place.api.watch("/apis/none.test/v1/things", silence=SILENCE):
        pass
    assert e.value.code is KubeCode.NOT_FOUND


def test_watch_from_a_version_that_is_compacted(place: Place) -> None:
    """410 in one of its two shapes: a status, or an ERROR event on an open stream."""
    if place.kube is not None:
        place.kube.expire()
    try:
        with place.api.watch(place.maps, silence=SILENCE, resourceVersion="1", timeoutSeconds="5") as events:
            event = dict(next(events))
    except KubeError as e:
        event = {"type": "ERROR", "object": {"code": e.status, "reason": "Expired"}}
    if place.kube is None and event["type"] == "ADDED":
        return  # a cluster in its first minutes still has everything
    assert (event["type"], event["object"]["code"]) == ("ERROR", 410)
    assert event["object"]["reason"] in {"Expired", "Gone"}


def test_finalizers_hold_an_object(place: Place) -> None:
    body = {"metadata": {"name": "held", "finalizers": ["gatehouse.dev/test"]}}
    place.api.create(place.maps, body)
    place.api.delete(f"{place.maps}/held")
    held = place.api.get(f"{place.maps}/held")
    assert held["metadata"]["deletionTimestamp"]
    place.api.patch(f"{place.maps}/held", {"metadata": {"finalizers": None}}, PatchType.MERGE)
    _refused(KubeCode.NOT_FOUND, 404, lambda: place.api.get(f"{place.maps}/held"))


def test_leases_need_a_version(place: Place) -> None:
    body = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "l"}}
    made = place.api.create(place.leases, {**body, "spec": {"holderIdentity": "a"}})
    _refused(KubeCode.INVALID, 422, lambda: place.api.replace(f"{place.leases}/l", {**body, "spec": {}}))
    place.api.replace(f"{place.leases}/l", {**made, "spec": {"holderIdentity": "b"}})
    _refused(KubeCode.CONFLICT, 409, lambda: place.api.replace(f"{place.leases}/l", made))
    place.api.delete(f"{place.leases}/l")
    with pytest.raises(KubeError) as e:
        place.api.replace(f"{place.leases}/l", {**made, "spec": {}})
    assert e.value.code in {KubeCode.NOT_FOUND, KubeCode.CONFLICT, KubeCode.INVALID}


def test_election(place: Place) -> None:
    def elector(name: str) -> Elector:
        config = LeaseConfig(namespace=place.namespace, name="lead", holder=name)
        return Elector(place.api, config, clock=SystemClock(), monotonic=time.monotonic)

    one, two = elector("one"), elector("two")
    assert [one.step(), two.step(), one.step(), two.step()] == [True, False, True, False]
    one.release()
    assert [two.step(), one.step()] == [True, False]
    place.api.delete(f"{place.leases}/lead")
    two.step()
    two.step()
    assert two.leading
    spec = place.api.get(f"{place.leases}/lead")["spec"]
    assert (spec["holderIdentity"], spec["leaseDurationSeconds"]) == ("two", 15)


def test_reflector_follows(place: Place) -> None:
    store: Store[str] = Store()
    reflector = Reflector(
        place.api,
        Collection(path=place.maps, name="maps", query={"labelSelector": "r=1"}),
        lambda item: str((item.get("data") or {}).get("v")),
        store,
        monotonic=time.monotonic,
    )
    place.put("a", labels={"r": "1"}, data={"v": "1"})
    thread = reflector.start()
    assert store.wait_synced(20)
    place.put("b", labels={"r": "1"}, data={"v": "2"})
    place.api.delete(f"{place.maps}/a")
    end = time.monotonic() + 20
    while store.items() != {(place.namespace, "b"): "2"}:
        assert time.monotonic() < end, store.items()
        time.sleep(0.05)
    reflector.stop()
    place.put("c", labels={"r": "1"})
    thread.join(20)
    assert not thread.is_alive()


def test_reviews(place: Place) -> None:
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": "not-a-token"}}
    answer = place.api.create("/apis/authentication.k8s.io/v1/tokenreviews", body)
    assert answer["status"].get("authenticated", False) is False
    access = {"resourceAttributes": {"verb": "get", "resource": "pods", "namespace": place.namespace}}
    body = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": access}
    answer = place.api.create("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", body)
    assert answer["status"]["allowed"] is True
