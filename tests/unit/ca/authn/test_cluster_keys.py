"""Token keys of the API server: last good, refreshed on an unknown key, never over-asked."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator
from typing import Any

import pytest

from ca.authn import AuthnCode, AuthnError
from ca.authn.cluster_keys import KEYS_PATH, ClusterKeys, issuer_of
from ca.authn.keys import JwksCode, JwksError
from mesh.kube.api import KubeError
from tests.fakes import ca_tokens
from tests.fakes.kube_api import FakeKube

NOW = dt.datetime(2026, 6, 1, tzinfo=dt.UTC)


@pytest.fixture
def kube() -> Iterator[FakeKube]:
    with FakeKube() as server:
        server.documents[KEYS_PATH] = json.loads(ca_tokens.jwks({"k1": "RS256"}))
        yield server


class Lab:
    def __init__(self, kube: FakeKube) -> None:
        self.seconds = 0.0
        self.keys = ClusterKeys(kube.api(), every=dt.timedelta(minutes=5), monotonic=lambda: self.seconds)


def test_reads_and_reads_again(kube: FakeKube) -> None:
    lab = Lab(kube)
    assert lab.keys.current is None
    assert lab.keys.reload(NOW)
    assert lab.keys.current is not None
    assert set(lab.keys.current.keys) == {("RS256", "k1")}
    kube.documents[KEYS_PATH] = json.loads(ca_tokens.jwks())
    assert not lab.keys.reload(NOW)  # not old yet
    lab.seconds += 300
    assert lab.keys.reload(NOW)
    assert len(lab.keys.current.keys) == 2
    lab.seconds += 300
    assert not lab.keys.reload(NOW)


def test_unknown_key_has_them_read_but_not_too_often(kube: FakeKube) -> None:
    lab = Lab(kube)
    lab.keys.reload(NOW)
    for _ in range(10):
        assert not lab.keys.refresh(NOW)
    assert len(kube.asked("GET", KEYS_PATH)) == 1
    kube.documents[KEYS_PATH] = json.loads(ca_tokens.jwks())
    lab.seconds += 5
    assert lab.keys.refresh(NOW)


@pytest.mark.parametrize(
    ("document", "code"),
    [
        ({"keys": []}, JwksCode.NO_USABLE_KEY),
        ({}, JwksCode.MALFORMED),
        (b"<html>", JwksCode.UNREADABLE),
    ],
)
def test_last_good_set_stays(kube: FakeKube, document: Any, code: JwksCode) -> None:
    lab = Lab(kube)
    lab.keys.reload(NOW)
    good, held = lab.keys.current, kube.documents[KEYS_PATH]
    kube.documents[KEYS_PATH] = document
    lab.seconds += 300
    with pytest.raises(JwksError) as e:
        lab.keys.reload(NOW)
    assert (e.value.code, lab.keys.current, lab.keys.last_error) == (code, good, e.value)
    with pytest.raises(AuthnError) as later:
        lab.keys.refresh(NOW)
    assert later.value.code is AuthnCode.NO_KEYS  # the key may be good: nobody could tell
    kube.documents[KEYS_PATH] = held
    lab.seconds += 5
    assert not lab.keys.reload(NOW)
    assert lab.keys.last_error is None


def test_api_server_away(kube: FakeKube) -> None:
    """G-01."""
    lab = Lab(kube)
    kube.stop()
    with pytest.raises(AuthnError, match="cannot check tokens yet"):
        lab.keys.refresh(NOW)
    assert lab.keys.current is None


def test_issuer(kube: FakeKube) -> None:
    path = "/.well-known/openid-configuration"
    kube.documents[path] = {"issuer": "https://i"}
    assert issuer_of(kube.api()) == "https://i"
    for document in ({}, [], {"issuer": ""}, {"issuer": 7}):
        kube.documents[path] = document
        with pytest.raises(KubeError, match="no issuer in the answer"):
            issuer_of(kube.api())
