"""caBundle kept: bundle before leaf, overlap, drift repaired, and a real TLS call (injector.md d.5)."""

from __future__ import annotations

import base64
import datetime as dt
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry

from injector.bundle_upkeep import BundleUpkeep
from injector.ca_bundle import BundleCode, BundleError
from injector.metrics import UpkeepMetrics
from mesh.errors import Category
from mesh.kube.api import KubeError
from tests.fakes.clock import EPOCH
from tests.fakes.injector_pki import Root
from tests.fakes.kube_api import FakeKube

MINUTE = dt.timedelta(minutes=1)
NAME = "gatehouse-sidecar-injector"


class World:
    def __init__(self, kube: FakeKube) -> None:
        self.kube = kube
        self.old, self.new = Root(EPOCH, name="old"), Root(EPOCH, name="new")
        self.leaf_of = self.old
        self.called: list[str] = []
        self.metrics = UpkeepMetrics(CollectorRegistry())
        self.upkeep = BundleUpkeep(
            kube.api(),
            namespace="istio-system",
            service="gatehouse-injector",
            selector="app=gatehouse",
            roots_config_map="istio-ca-root-cert",
            call=self.call,
            overlap=15 * MINUTE,
            metrics=self.metrics,
        )
        service = {"namespace": "istio-system", "name": "gatehouse-injector"}
        kube.add(
            {"kind": "Namespace", "metadata": {"name": "istio-system"}},
            {
                "kind": "MutatingWebhookConfiguration",
                "metadata": {"name": NAME, "labels": {"app": "gatehouse"}},
                "webhooks": [
                    {"name": f"w{n}.gatehouse.dev", "clientConfig": {"service": dict(service)}}
                    for n in range(3)
                ],
            },
        )
        self.roots(self.old)

    def call(self, bundle: str) -> None:
        self.called.append(bundle)
        if self.leaf_of.pem not in bundle:
            raise BundleError(BundleCode.CALL, "no path", category=Category.UNAVAILABLE)

    def roots(self, *roots: Root) -> None:
        self.kube.add(
            {
                "kind": "ConfigMap",
                "metadata": {"name": "istio-ca-root-cert", "namespace": "istio-system"},
                "data": {"root-cert.pem": "".join(r.pem for r in roots)},
            }
        )

    def published(self) -> list[str]:
        found = self.kube.find("MutatingWebhookConfiguration", NAME)
        assert found is not None
        return [base64.b64decode(w["clientConfig"].get("caBundle", "")).decode() for w in found["webhooks"]]

    def patches(self) -> int:
        return len(self.kube.asked("PATCH"))


@pytest.fixture
def world() -> Iterator[World]:
    with FakeKube() as kube:
        yield World(kube)


def test_every_entry_gets_the_roots_and_is_tried(world: World) -> None:
    assert world.upkeep.step(EPOCH) == 0
    assert world.published() == [world.old.pem] * 3
    assert world.called == [world.old.pem]
    assert world.patches() == 1


def test_both_kinds_of_configuration_are_kept(world: World) -> None:
    kind = "ValidatingWebhookConfiguration"
    service = {"namespace": "istio-system", "name": "gatehouse-injector", "path": "/validate"}
    other = {"namespace": "elsewhere", "name": "gatehouse-injector"}

    def validator(name: str, target: dict[str, str], **labels: str) -> None:
        webhooks = [{"name": "v.gatehouse.dev", "clientConfig": {"service": target}}]
        world.kube.add({"kind": kind, "metadata": {"name": name, "labels": labels}, "webhooks": webhooks})

    def published(name: str) -> str:
        found = world.kube.find(kind, name)
        assert found is not None
        return base64.b64decode(found["webhooks"][0]["clientConfig"].get("caBundle", "")).decode()

    validator("gatehouse-policy-validator", service, app="gatehouse")
    validator("of-another-service", other, app="gatehouse")
    validator("without-our-label", service)
    assert world.upkeep.step(EPOCH) == 0
    assert world.published() == [world.old.pem] * 3
    assert published("gatehouse-policy-validator") == world.old.pem
    assert (published("of-another-service"), published("without-our-label")) == ("", "")
    world.roots(world.old, world.new)
    world.upkeep.step(EPOCH)
    assert published("gatehouse-policy-validator") == world.old.pem + world.new.pem
    world.leaf_of = Root(EPOCH, name="unknown")
    assert world.upkeep.step(EPOCH) == 4, "every entry of both is counted when the call fails"


def test_nothing_is_written_when_nothing_differs(world: World) -> None:
    for _ in range(3):
        world.upkeep.step(EPOCH)
    assert world.patches() == 1


def test_drift_is_repaired(world: World) -> None:
    """A GitOps tool that renders the field away or to something else (argo-cd#1487)."""
    world.upkeep.step(EPOCH)
    found = world.kube.find("MutatingWebhookConfiguration", NAME)
    assert found is not None
    found["webhooks"][1]["clientConfig"]["caBundle"] = base64.b64encode(b"other").decode()
    del found["webhooks"][2]["clientConfig"]["caBundle"]
    world.kube.add({"kind": "MutatingWebhookConfiguration", **found})
    world.upkeep.step(EPOCH)
    assert world.published() == [world.old.pem] * 3


def test_old_and_new_overlap_until_every_webhook_has_its_new_leaf(world: World) -> None:
    world.upkeep.step(EPOCH)
    world.roots(world.old, world.new)
    world.upkeep.step(EPOCH)
    assert world.published() == [world.old.pem + world.new.pem] * 3
    world.roots(world.new)  # the authority is done with the old one
    world.upkeep.step(EPOCH + MINUTE)
    assert world.published() == [world.new.pem + world.old.pem] * 3, "old leaves may still be served"
    world.upkeep.step(EPOCH + 20 * MINUTE)
    assert world.published() == [world.new.pem + world.old.pem] * 3, "one is still met"
    world.leaf_of = world.new
    world.upkeep.step(EPOCH + 21 * MINUTE)
    assert world.published() == [world.new.pem] * 3


def test_a_root_that_was_withdrawn_stays_for_the_overlap(world: World) -> None:
    world.upkeep.step(EPOCH)
    world.leaf_of = world.new
    world.roots(world.new)
    world.upkeep.step(EPOCH)
    assert world.published() == [world.new.pem + world.old.pem] * 3
    world.upkeep.step(EPOCH + 14 * MINUTE)
    assert world.published() == [world.new.pem + world.old.pem] * 3
    world.upkeep.step(EPOCH + 16 * MINUTE)
    assert world.published() == [world.new.pem] * 3


def test_a_bundle_that_does_not_work_is_an_alarm(world: World) -> None:
    world.leaf_of = world.new
    assert world.upkeep.step(EPOCH) == 3
    assert (
        world.metrics.registry.get_sample_value("gatehouse_injector_published_ca_bundle_mismatched_entries")
        == 3
    )


def test_a_process_that_no_longer_leads_patches_nothing(world: World) -> None:
    world.upkeep.step(EPOCH, lambda: False)
    assert world.patches() == 0


def test_without_roots_nothing_is_published(world: World) -> None:
    world.upkeep.step(EPOCH)
    world.kube.add(
        {
            "kind": "ConfigMap",
            "metadata": {"name": "istio-ca-root-cert", "namespace": "istio-system"},
            "data": {"root-cert.pem": "rubbish"},
        }
    )
    with pytest.raises(BundleError, match="holds no roots") as caught:
        world.upkeep.step(EPOCH)
    assert caught.value.code is BundleCode.ROOTS
    assert world.published() == [world.old.pem] * 3


def test_a_failed_patch_is_tried_again_at_the_next_step(world: World) -> None:
    """The trap of d.5: after a failed update the upstream retry saw "no difference"."""
    world.kube.fail(409, times=1, method="PATCH")
    world.upkeep.step(EPOCH)
    assert world.published() == [""] * 3
    world.upkeep.step(EPOCH)
    assert world.published() == [world.old.pem] * 3


def test_a_server_error_is_told(world: World) -> None:
    world.kube.fail(500, times=1, method="PATCH")
    with pytest.raises(KubeError):
        world.upkeep.step(EPOCH)
