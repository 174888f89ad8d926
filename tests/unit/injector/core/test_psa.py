"""Pod Security Standards on what injection can add."""

from __future__ import annotations

from typing import Any

import pytest

from injector.core.psa import violations

CLEAN: dict[str, Any] = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "runAsNonRoot": True,
    "seccompProfile": {"type": "RuntimeDefault"},
}


@pytest.mark.parametrize(
    ("change", "baseline", "restricted"),
    [
        ({}, 0, 0),
        ({"privileged": True}, 1, 1),
        ({"capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN"]}}, 1, 1),
        ({"capabilities": {"drop": ["ALL"], "add": ["CHOWN"]}}, 0, 1),
        ({"capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}}, 0, 0),
        ({"capabilities": None}, 0, 1),
        ({"procMount": "Unmasked"}, 1, 1),
        ({"seccompProfile": {"type": "Unconfined"}}, 1, 2),
        ({"seccompProfile": None}, 0, 1),
        ({"allowPrivilegeEscalation": None}, 0, 1),
        ({"runAsNonRoot": None}, 0, 1),
        ({"runAsUser": 0}, 0, 1),
    ],
)
def test_contexts(change: dict[str, Any], baseline: int, restricted: int) -> None:
    containers = [{"name": "c", "securityContext": {**CLEAN, **change}}]
    assert len(violations("baseline", containers)) == baseline
    assert len(violations("restricted", containers)) == restricted
    assert violations("privileged", containers) == violations("", containers) == []


@pytest.mark.parametrize(
    ("volume", "baseline", "restricted"),
    [
        ({"csi": {}}, 0, 0),
        ({"emptyDir": {}}, 0, 0),
        ({"hostPath": {}}, 1, 1),
        ({"nfs": {}}, 0, 1),
    ],
)
def test_volumes(volume: dict[str, Any], baseline: int, restricted: int) -> None:
    volumes = [{"name": "v", **volume}]
    assert len(violations("baseline", [], volumes)) == baseline
    assert len(violations("restricted", [], volumes)) == restricted


def test_host_ports() -> None:
    found = violations("baseline", [{"name": "c", "ports": [{"hostPort": 80}]}])
    assert found == ["container c: hostPort"]
