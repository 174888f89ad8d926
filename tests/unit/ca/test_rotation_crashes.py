"""Every single write of a rotation fails once, before or after it was done, and another replica goes on."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from ca.audit import Audit
from ca.core.rotation import RotationSettings
from ca.keystore import KeyStoreConfig
from ca.keystore_secret import SecretKeyStore, SecretPlace
from ca.metrics import CaMetrics
from ca.rotator import Rotator
from mesh.ca_status import AgentCounts, CaStatus, Phase, Step, decode
from tests.fakes.ca_factory import NOW, TRUST_DOMAIN
from tests.fakes.ca_running import audit_lines
from tests.fakes.kube_api import FakeKube

ASK = "gatehouse.dev/ca-request"
CONFIG = KeyStoreConfig(trust_domain=TRUST_DOMAIN, state_dir=Path("/never"))
PLACE = SecretPlace(namespace="istio-system")
STEPS = (Step.PREPARE, Step.ABORT, Step.PREPARE, Step.ACTIVATE, Step.TAINT, Step.RETIRE)
WRITES = 2 * len(STEPS)  # the Secret and the ConfigMap for each; the rest is more of the same


class _Faults:
    """Fails one write of a Secret or a ConfigMap."""

    def __init__(self, kube: FakeKube, number: int, *, done: bool) -> None:
        self.left = number
        self._kube, self._done, self._real = kube, done, kube.store.update
        kube.store.update = self.update  # type: ignore[method-assign]  # until the server ends

    def update(self, resource: Any, *args: Any, **options: Any) -> Any:
        self.left -= 1
        if self.left != -1:
            return self._real(resource, *args, **options)
        if self._done:
            self._real(resource, *args, **options)
        self._kube._server.cut_all()
        raise ConnectionResetError


def _replica(kube: FakeKube, name: str) -> tuple[SecretKeyStore, Rotator]:
    keystore = SecretKeyStore.open(kube.api(), PLACE, CONFIG, NOW, may_renew=lambda: True)
    rotator = Rotator(
        kube.api(),
        PLACE,
        keystore,
        RotationSettings(automatic=False),
        counts=lambda *_: AgentCounts(),
        unpublished=lambda: (),
        leading=lambda: True,
        writer=name,
        metrics=CaMetrics(CollectorRegistry()),
        audit=Audit(),
    )
    return keystore, rotator


def _status(kube: FakeKube) -> CaStatus:
    found = kube.find("ConfigMap", "gatehouse-ca", "istio-system") or {}
    return decode(found["data"]["status.json"])


def _ask(kube: FakeKube, step: Step, name: str) -> None:
    found = kube.find("ConfigMap", "gatehouse-ca", "istio-system") or {}
    asked = {ASK: step.value, f"{ASK}-id": name, f"{ASK}-force": "true"}
    if step is Step.TAINT:
        asked[f"{ASK}-within"] = "60"
    kube.add({**found, "kind": "ConfigMap", "metadata": {**found["metadata"], "annotations": asked}})


def _until(kube: FakeKube, answered: str, turn: Callable[[dt.datetime], object]) -> None:
    for second in range(8):
        turn(NOW + dt.timedelta(seconds=second))
        answer = _status(kube).answer
        if answer is not None and answer.id == answered:
            return
    raise AssertionError(f"{answered} is not answered")


@pytest.mark.parametrize("done", [False, True], ids=["not-done", "done-and-not-told"])
@pytest.mark.parametrize("number", range(WRITES))
def test_a_write_that_fails(number: int, done: bool) -> None:
    with FakeKube() as kube, audit_lines() as lines:
        kube.add({"kind": "Namespace", "metadata": {"name": "istio-system"}})
        replicas = [_replica(kube, "ca-0"), _replica(kube, "ca-1")]

        def turn(now: dt.datetime) -> None:
            """Whoever failed has lost the Lease: the next one is another."""
            keystore, rotator = replicas[0]
            keystore.reload(now)
            rotator.tick(now)
            if keystore.last_error is not None or rotator.problem is not None:
                replicas.reverse()

        turn(NOW)
        faults = _Faults(kube, number, done=done)
        for index, step in enumerate(STEPS):
            name = f"r-{index}"
            _ask(kube, step, name)
            _until(kube, name, turn)
            answer = _status(kube).answer
            assert answer is not None
            assert (answer.step, answer.done) == (step, True)
            _replica(kube, "who starts now")
        assert faults.left < 0, "the fault was met"
        turn(NOW + dt.timedelta(minutes=1))
        status = _status(kube)
        assert (status.phase, status.generation, status.epoch) == (Phase.STABLE, 5, 2)
        told = [line["step"] for line in lines if line["decision"] == "rotated"]
        assert len(told) >= len(STEPS) - 1, "one that was done and not told of is in the Secret"
        assert not [line for line in lines if line["decision"] == "refused"]
