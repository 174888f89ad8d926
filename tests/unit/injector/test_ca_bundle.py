"""caBundle: what is ours, the smallest patch, and what an API server would verify (injector.md d.5)."""

from __future__ import annotations

import base64
import datetime as dt
from typing import Any

import jsonpatch
import pytest

from injector import ca_bundle
from injector.ca_bundle import BundleCode, BundleError
from tests.fakes.clock import EPOCH
from tests.fakes.injector_pki import DAY, NAMES, Root
from tests.fakes.kube_api import FakeKube


def configuration(
    *bundles: str | None, name: str = "gatehouse-sidecar-injector", label: str = "gatehouse"
) -> Any:
    webhooks = []
    for number, bundle in enumerate(bundles):
        client: dict[str, Any] = {"service": {"namespace": "istio-system", "name": "gatehouse-injector"}}
        if bundle is not None:
            client["caBundle"] = base64.b64encode(bundle.encode()).decode()
        webhooks.append({"name": f"w{number}.gatehouse.dev", "clientConfig": client, "sideEffects": "None"})
    return {
        "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": name, "labels": {"app": label}},
        "webhooks": webhooks,
    }


def entries(kube: FakeKube) -> tuple[ca_bundle.Entry, ...]:
    return ca_bundle.list_entries(kube.api(), "app=gatehouse", "istio-system", "gatehouse-injector")


def test_only_our_entries_of_our_configurations_are_seen() -> None:
    with FakeKube() as kube:
        foreign = configuration(None)
        foreign["webhooks"].append({"name": "other", "clientConfig": {"url": "https://x"}})
        foreign["webhooks"].append(
            {"name": "o2", "clientConfig": {"service": {"namespace": "a", "name": "gatehouse-injector"}}}
        )
        kube.add(foreign, configuration(None, name="not-ours", label="istio"))
        found = entries(kube)
    assert [(e.path.rpartition("/")[2], e.index, e.raw) for e in found] == [
        ("gatehouse-sidecar-injector", 0, None)
    ]


def test_the_patch_touches_nothing_but_the_bundle_and_is_idempotent() -> None:
    root = Root(EPOCH)
    with FakeKube() as kube:
        before = configuration(None, root.pem, "rubbish")
        kube.add(before)
        operations = ca_bundle.patch_of(entries(kube), root.pem)
    after = jsonpatch.apply_patch(before, operations)
    for old, new in zip(before["webhooks"], after["webhooks"], strict=True):
        assert base64.b64decode(new["clientConfig"].pop("caBundle")).decode() == root.pem
        old["clientConfig"].pop("caBundle", None)
        assert old == new
    assert {op["path"].split("/")[2] for op in operations} == {"0", "2"}


def test_a_patch_for_entries_that_moved_is_refused_as_a_whole() -> None:
    with FakeKube() as kube:
        kube.add(configuration(None))
        operations = ca_bundle.patch_of(entries(kube), Root(EPOCH).pem)
    moved = configuration(None)
    moved["webhooks"][0]["name"] = "another"
    with pytest.raises(jsonpatch.JsonPatchTestFailed):
        jsonpatch.apply_patch(moved, operations)


def test_left_over_are_valid_roots_that_are_no_longer_in_force() -> None:
    new, old, ended = Root(EPOCH, name="new"), Root(EPOCH, name="old"), Root(EPOCH, name="ended", life=DAY)
    published = [new.pem + old.pem + ended.pem, "rubbish", ""]
    assert ca_bundle.left_over((new.der,), published, EPOCH + 2 * DAY) == (old.der,)


def test_a_leaf_is_no_root() -> None:
    leaf = Root(EPOCH).issue().chain_pem.decode()
    assert ca_bundle.left_over((), [leaf], EPOCH) == ()


def test_bundles_are_bounded_and_stable() -> None:
    a, b = Root(EPOCH, name="a"), Root(EPOCH, name="b")
    assert ca_bundle.bundle_of([a.der, b.der, a.der]) == a.pem + b.pem
    for roots in ([], [bytes([n]) for n in range(65)]):
        with pytest.raises(BundleError, match="allowed are 1 to 64") as caught:
            ca_bundle.bundle_of(roots)
        assert caught.value.code is BundleCode.ROOTS


@pytest.mark.parametrize(
    ("name", "at", "server", "good"),
    [
        pytest.param(NAMES[0], EPOCH, True, True, id="good"),
        pytest.param("other.istio-system.svc", EPOCH, True, False, id="other-name"),
        pytest.param(NAMES[0], EPOCH + 2 * DAY, True, False, id="expired"),
        pytest.param(NAMES[0], EPOCH - DAY / 2, True, False, id="not-yet"),
        pytest.param(NAMES[0], EPOCH, False, False, id="client-only"),
    ],
)
def test_what_an_api_server_accepts(name: str, at: dt.datetime, server: bool, good: bool) -> None:
    root = Root(EPOCH)
    issued = root.issue(server=server)
    assert ca_bundle.verifies(issued.chain_pem, root.pem, name, at) is good


def test_another_root_or_rubbish_verifies_nothing() -> None:
    issued = Root(EPOCH).issue()
    for bundle in (Root(EPOCH).pem, "", "rubbish", "ü"):
        assert not ca_bundle.verifies(issued.chain_pem, bundle, NAMES[0], EPOCH)
    assert not ca_bundle.verifies(b"rubbish", Root(EPOCH).pem, NAMES[0], EPOCH)


def test_old_and_new_roots_verify_together() -> None:
    old, new = Root(EPOCH, name="old"), Root(EPOCH, name="new")
    bundle = ca_bundle.bundle_of([new.der, old.der])
    for root in (old, new):
        assert ca_bundle.verifies(root.issue().chain_pem, bundle, NAMES[0], EPOCH)


def test_a_call_that_fails_says_where() -> None:
    with pytest.raises(BundleError, match=r"https://gatehouse-injector\S+ at 127.0.0.1:1 ") as caught:
        ca_bundle.call("127.0.0.1", 1, NAMES[0], Root().pem)
    assert caught.value.code is BundleCode.CALL
