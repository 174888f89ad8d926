"""One key of a ConfigMap: what others keep there stays, and what the API server refuses is told."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from injector.published import PublishedText
from mesh.kube.api import KubeCode, KubeError
from tests.fakes.kube_api import FakeKube

NAMESPACE, NAME, KEY = "istio-system", "gatehouse-x", "x.json"
PATH = f"/api/v1/namespaces/{NAMESPACE}/configmaps"


@pytest.fixture
def kube() -> Iterator[FakeKube]:
    with FakeKube() as kube:
        kube.add({"kind": "Namespace", "metadata": {"name": NAMESPACE}})
        yield kube


@pytest.fixture
def text(kube: FakeKube) -> PublishedText:
    return PublishedText(kube.api(), namespace=NAMESPACE, name=NAME, key=KEY)


def test_it_is_made_when_it_is_missing(kube: FakeKube, text: PublishedText) -> None:
    assert text.read() == ""
    text.write("one")
    assert text.read() == "one"
    assert kube.find("ConfigMap", NAME, NAMESPACE)["metadata"]["labels"] == {"app": "gatehouse"}


def test_what_others_keep_there_stays(kube: FakeKube, text: PublishedText) -> None:
    metadata = {"name": NAME, "namespace": NAMESPACE, "labels": {"team": "a"}}
    kube.add({"kind": "ConfigMap", "metadata": metadata, "data": {"other": "theirs"}})
    assert text.read() == ""
    text.write("one")
    found = kube.find("ConfigMap", NAME, NAMESPACE)
    assert found["data"] == {"other": "theirs", KEY: "one"}
    assert found["metadata"]["labels"] == {"team": "a", "app": "gatehouse"}


@pytest.mark.parametrize("data", [None, {}], ids=["no-data", "empty"])
def test_without_the_key_nothing_is_published(kube: FakeKube, text: PublishedText, data: object) -> None:
    kube.add({"kind": "ConfigMap", "metadata": {"name": NAME, "namespace": NAMESPACE}, "data": data})
    assert text.read() == ""


@pytest.mark.parametrize(
    ("method", "path"), [("PATCH", f"{PATH}/{NAME}"), ("POST", PATH)], ids=["change", "make"]
)
def test_a_refused_write_is_told(kube: FakeKube, text: PublishedText, method: str, path: str) -> None:
    if method == "PATCH":
        text.write("one")
    kube.routes[method, path] = lambda _: (403, {})
    with pytest.raises(KubeError) as refused:
        text.write("two")
    assert refused.value.code is KubeCode.FORBIDDEN
    assert text.read() == ("one" if method == "PATCH" else "")
