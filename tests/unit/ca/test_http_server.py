"""The HTTP application: bundle (B-01, B-06), health, metrics; only GET."""

from __future__ import annotations

import datetime as dt
import json
import socket
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from prometheus_client import CollectorRegistry

from ca.bundle_document import SEQUENCE_FILE, PublishedBundle
from ca.core.bundle import decode_bundle
from ca.http_server import PlainServer, create_app
from ca.metrics import CaMetrics
from mesh.obs.health import Health
from tests.fakes.ca_factory import NOW, TRUST_DOMAIN, make_hierarchy

ROOTS = make_hierarchy().roots
SECOND = dt.timedelta(seconds=1)


class Parts:
    """An application and what it shows."""

    def __init__(self, state: Path) -> None:
        self.health = Health("keys")
        self.registry = CollectorRegistry()
        self.metrics = CaMetrics(self.registry)
        self.bundle = PublishedBundle(TRUST_DOMAIN, state)
        self.refreshed = 0
        self.app = create_app(
            health=self.health,
            registry=self.registry,
            refresh=self.refresh,
            bundle=lambda: self.bundle.document,
        )

    def refresh(self) -> None:
        self.refreshed += 1
        self.metrics.ready.set(1)

    @property
    def client(self) -> FlaskClient:
        return self.app.test_client()


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    return Parts(tmp_path)


def test_bundle(parts: Parts) -> None:
    assert parts.client.get("/bundle").status_code == 503
    assert parts.bundle.update(ROOTS, NOW) is True
    response = parts.client.get("/bundle")
    assert (response.status_code, response.mimetype) == (200, "application/json")
    bundle = decode_bundle(response.data, TRUST_DOMAIN)
    assert (bundle.roots_der, bundle.sequence, bundle.refresh_hint) == (ROOTS, int(NOW.timestamp()), 300)
    etag = response.headers["ETag"]
    assert parts.client.get("/bundle", headers={"If-None-Match": etag}).status_code == 304
    assert parts.client.get("/bundle", headers={"If-None-Match": '"other"'}).status_code == 200


@pytest.mark.parametrize("path", ["/bundle", "/livez", "/readyz", "/metrics"])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_only_get(parts: Parts, path: str, method: str) -> None:
    assert parts.client.open(path, method=method).status_code == 405


def test_head_is_allowed_and_other_paths_are_not(parts: Parts) -> None:
    parts.bundle.update(ROOTS, NOW)
    assert parts.client.head("/bundle").data == b""
    for path in ("/", "/bundle/", "/static/x", "/../bundle"):
        assert parts.client.get(path).status_code == 404


def test_health(parts: Parts) -> None:
    assert parts.client.get("/livez").status_code == 200
    assert b"has not started" in parts.client.get("/readyz").data
    assert parts.client.get("/readyz").status_code == 503
    parts.health.set("keys", ok=True)
    assert parts.client.get("/readyz").status_code == 200
    parts.health.set("threads", ok=False, detail="stuck", liveness=True)
    assert parts.client.get("/livez").status_code == 503


def test_metrics(parts: Parts) -> None:
    response = parts.client.get("/metrics")
    assert b"gatehouse_ca_ready 1.0" in response.data
    assert parts.refreshed == 1
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Cache-Control"] == "no-store"


def test_without_a_bundle(parts: Parts) -> None:
    app = create_app(health=parts.health, registry=parts.registry, refresh=parts.refresh, bundle=None)
    assert app.test_client().get("/bundle").status_code == 404


# --- sequence -------------------------------------------------------------------------------------------


def sequence(bundle: PublishedBundle) -> Any:
    assert bundle.document is not None
    return json.loads(bundle.document.body)["spiffe_sequence"]


def test_b01_the_sequence_rises_with_every_change_and_survives_restarts(tmp_path: Path) -> None:
    other = make_hierarchy().roots
    first = PublishedBundle(TRUST_DOMAIN, tmp_path)
    assert first.update(ROOTS, NOW) is True
    assert first.update(ROOTS, NOW + SECOND) is False
    start = sequence(first)
    first.update((*ROOTS, *other), NOW - 1000 * SECOND)
    assert sequence(first) == start + 1, "also when the clock was set back"
    again = PublishedBundle(TRUST_DOMAIN, tmp_path)
    again.update((*other, *ROOTS), NOW + 5 * SECOND)
    assert sequence(again) == start + 1, "the same set of roots is the same bundle"
    again.update(ROOTS, NOW + 100 * SECOND)
    assert sequence(again) == start + 100


@pytest.mark.parametrize("text", ["{", "[]", '{"roots": 1, "sequence": "x"}'])
def test_a_damaged_sequence_file_is_replaced(tmp_path: Path, text: str) -> None:
    (tmp_path / SEQUENCE_FILE).write_text(text)
    bundle = PublishedBundle(TRUST_DOMAIN, tmp_path)
    bundle.update(ROOTS, NOW)
    assert sequence(bundle) == int(NOW.timestamp())


# --- the plain port -------------------------------------------------------------------------------------


def test_plain_server(parts: Parts) -> None:
    server = PlainServer(parts.app, "127.0.0.1", 0, share_port=True)
    other = PlainServer(parts.app, "127.0.0.1", server.port, share_port=True)
    assert other.port == server.port
    server.start()
    other.start()
    try:
        for _ in range(4):
            with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/livez", timeout=10) as response:
                assert response.read() == b"ok\n"
    finally:
        server.stop()
        other.stop()


def test_plain_server_bounds_its_threads(parts: Parts) -> None:
    """Silent connections beyond the bound are closed; when they go, there is room again."""
    server = PlainServer(parts.app, "127.0.0.1", 0, share_port=False)
    server.start()
    silent = [socket.create_connection(("127.0.0.1", server.port), timeout=10) for _ in range(40)]
    try:
        closed = sum(connection.recv(1) == b"" for connection in silent[32:])
        assert closed == 8
    finally:
        for connection in silent:
            connection.close()
        server.stop()


def test_plain_port_in_use(parts: Parts) -> None:
    server = PlainServer(parts.app, "127.0.0.1", 0, share_port=False)
    try:
        with pytest.raises(OSError, match="in use"):
            PlainServer(parts.app, "127.0.0.1", server.port, share_port=False)
    finally:
        server.stop()
