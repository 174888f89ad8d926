"""Our container in a pod that comes back: what stays and what is put right."""

from __future__ import annotations

from typing import Any

import pytest

from injector.core.merge import settle

WANTED = {
    "name": "p",
    "args": ["a"],
    "env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "x"}}}],
    "resources": {"limits": {"cpu": "1"}},
    "securityContext": {"privileged": False},
    "httpGet": {"port": 1},
    "volumeMounts": [{"name": "v", "mountPath": "/v"}],
}


def test_a_new_one() -> None:
    assert settle(None, WANTED) is WANTED


def test_an_equal_one_is_the_same_object() -> None:
    existing = dict(WANTED)
    assert settle(existing, WANTED) is existing


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        ({"imagePullPolicy": "Always"}, True),
        ({"imagePullPolicy": "Sometimes"}, False),
        ({"httpGet": {"port": 1, "scheme": "HTTP"}}, True),
        ({"httpGet": {"port": 1, "scheme": "HTTPS"}}, False),
        ({"httpGet": {"port": 1, "host": "x"}}, False),
        ({"resources": {"limits": {"cpu": "1", "ephemeral-storage": "1Gi"}}}, True),
        ({"resources": {"limits": {"cpu": "2"}}}, False),
        ({"resources": {"limits": {"cpu": "1"}, "claims": []}}, False),
        ({"resizePolicy": [{"resourceName": "cpu", "restartPolicy": "NotRequired"}]}, True),
        ({"securityContext": {"privileged": False, "procMount": "Default"}}, True),
        ({"securityContext": {"privileged": False, "procMount": "Unmasked"}}, False),
        ({"securityContext": {"privileged": True}}, False),
        ({"command": ["sh"]}, False),
        ({"args": ["a", "b"]}, False),
        ({"args": ["b"]}, False),
        ({"env": [*WANTED["env"], {"name": "B", "value": "c"}]}, True),  # type: ignore[misc]  # a list
        ({"env": [{"name": "B", "value": "c"}, *WANTED["env"]]}, False),  # type: ignore[misc]  # a list
        ({"env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "x", "apiVersion": "v1"}}}]}, True),
        ({"env": [{"name": "A", "value": "x"}]}, False),
        ({"volumeMounts": [{"name": "v", "mountPath": "/v"}, {"name": "t", "mountPath": "/t"}]}, True),
        ({"volumeMounts": [{"name": "other", "mountPath": "/v"}]}, False),
        ({"volumeMounts": [{"name": "v", "mountPath": "/v", "recursiveReadOnly": "Disabled"}]}, True),
    ],
)
def test_additions(change: dict[str, Any], kept: bool) -> None:
    existing = {**WANTED, **change}
    found = settle(existing, WANTED)
    assert (found is existing) is kept
    again = settle(found, WANTED)
    assert again is found, "settled is settled"


def test_others_variables_survive_a_repair() -> None:
    existing = {**WANTED, "env": [{"name": "B", "value": "c"}], "command": ["sh"]}
    found = settle(existing, WANTED)
    assert [e["name"] for e in found["env"]] == ["A", "B"]
    assert "command" not in found


def test_lists_that_only_we_have() -> None:
    open_one = {"name": "p", "envFrom": [{"x": 1}], "env": [{"name": "B"}]}
    assert settle(open_one, {"name": "p"}) == {"name": "p", "env": [{"name": "B"}]}
