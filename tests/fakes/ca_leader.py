"""The real rotator of an authority, at work beside a test: it answers what people ask for."""

from __future__ import annotations

import contextlib
import datetime as dt
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from ca.audit import Audit
from ca.core.rotation import RotationSettings
from ca.keystore import KeyStore, KeyStoreConfig
from ca.keystore_secret import SecretKeyStore, SecretPlace
from ca.metrics import CaMetrics
from ca.rotator import Rotator
from mesh.ca_status import AgentCounts
from mesh.spiffe import TrustDomain
from tests.fakes.kube_api import FakeKube

NAMESPACE = "istio-system"
LOOK_EVERY = 0.05


class Leader:
    """A replica that leads; `counts` is what agents have reported."""

    def __init__(self, kube: FakeKube, directory: Path | None, settings: RotationSettings) -> None:
        self.counts = AgentCounts()
        self.now = dt.datetime.now(dt.UTC)
        place = SecretPlace(namespace=NAMESPACE)
        config = KeyStoreConfig(
            trust_domain=TrustDomain("cluster.local"),
            state_dir=Path("/never") if directory is None else directory / "state",
            plugged_dir=directory,
        )
        api = kube.api("ca")
        self._store: SecretKeyStore | KeyStore
        if directory is None:
            self._store = SecretKeyStore.open(api, place, config, self.now, may_renew=lambda: True)
        else:
            self._store = KeyStore.open(config, self.now)
        self._rotator = Rotator(
            api,
            place,
            self._store,
            settings,
            counts=lambda *_: self.counts,
            unpublished=lambda: (),
            leading=lambda: True,
            writer="gatehouse-ca-0",
            metrics=CaMetrics(CollectorRegistry()),
            audit=Audit(),
        )
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def tick(self) -> None:
        """One look."""
        self._rotator.tick(dt.datetime.now(dt.UTC))

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(LOOK_EVERY):
            self.tick()


@contextlib.contextmanager
def leader(kube: FakeKube, directory: Path | None = None, **settings: Any) -> Iterator[Leader]:
    """A leader that looks all the time inside the block, and has looked once before it."""
    found = Leader(kube, directory, RotationSettings(**settings))
    found.tick()
    found.start()
    try:
        yield found
    finally:
        found.stop()
