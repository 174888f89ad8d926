"""A declared istio-proxy container: what is merged and what is refused (b.9)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from injector.core.inject import Ceilings, InjectorSettings, uninject
from injector.core.overrides import from_json, to_json
from injector.core.podjson import PodError
from tests.fakes.injector_pods import (
    CLASSIC,
    NATIVE,
    a_pod,
    container,
    find,
    injected,
    injecting,
    names,
    status,
)

DATA = [{"name": "data", "emptyDir": {}}]


def declared(**fields: Any) -> dict[str, Any]:
    return {"name": "istio-proxy", "image": "auto", **fields}


def pod(**fields: Any) -> dict[str, Any]:
    return a_pod(container(), declared(**fields), volumes=DATA)


def test_allowed_fields_are_merged() -> None:
    mine = {
        "resources": {"requests": {"cpu": "1"}, "limits": {"memory": "2Gi", "ephemeral-storage": "1Gi"}},
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", "1"]}}},
        "volumeMounts": [{"name": "data", "mountPath": "/data", "readOnly": True}],
        "imagePullPolicy": "Always",
        "terminationMessagePath": "/dev/x",
        "terminationMessagePolicy": "File",
    }
    proxy = find(injected(pod(**mine), CLASSIC), "istio-proxy")
    assert proxy["resources"] == {
        "requests": {"cpu": "1", "memory": "128Mi"},
        "limits": {"cpu": "2", "memory": "2Gi", "ephemeral-storage": "1Gi"},
    }, "every default stays when only one is overridden"
    assert proxy["lifecycle"]["preStop"] == mine["lifecycle"]["preStop"]  # type: ignore[index]  # a dict above
    assert "wait_ready" in str(proxy["lifecycle"]["postStart"]), (
        "trap: a custom hook must not disable the hold"
    )
    assert [m["mountPath"] for m in proxy["volumeMounts"]] == ["/run/gatehouse", "/data"]
    assert {
        k: proxy[k] for k in ("imagePullPolicy", "terminationMessagePath", "terminationMessagePolicy")
    } == {k: mine[k] for k in ("imagePullPolicy", "terminationMessagePath", "terminationMessagePolicy")}
    assert proxy["image"] == "gatehouse/proxy:0.1.0"


@pytest.mark.parametrize("where", ["containers", "initContainers"])
@pytest.mark.parametrize("mode", [NATIVE, CLASSIC], ids=["native", "classic"])
def test_saved_reapplied_and_given_back(mode: Any, where: str) -> None:
    before = a_pod(container("first"), container("last"))
    mine = declared(resources={"requests": {"cpu": "7m"}})
    before["spec"].setdefault(where, []).insert(1, mine)
    after = injected(before, mode)
    assert json.loads(after["metadata"]["annotations"]["proxy.istio.io/overrides"]) == {"containers": [mine]}
    assert find(after, "istio-proxy")["resources"]["requests"]["cpu"] == "7m"
    assert [*names(after), *names(after, "initContainers")].count("istio-proxy") == 1
    assert injecting(after, mode).patch == ()
    newer = injected(after, mode, config=InjectorSettings(version="9"))
    assert find(newer, "istio-proxy")["resources"]["requests"]["cpu"] == "7m"
    assert status(newer)["declared"]["list"] == where
    assert uninject(newer) == before


def test_what_the_api_server_fills_in_is_no_override() -> None:
    defaults = {
        "resources": {},
        "securityContext": None,
        "env": [],
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "File",
        "imagePullPolicy": "IfNotPresent",
        "restartPolicy": "Always",
    }
    assert not injecting(pod(**defaults)).problems


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"image": "evil.example/x"}, "image is 'evil.example/x'; write \"auto\""),
    ({"args": ["x"]}, "args is set"),
    ({"command": ["x"]}, "command is set"),
    ({"env": [{"name": "A", "value": "b"}]}, "env is set"),
    ({"envFrom": [{}]}, "envFrom is set"),
    ({"securityContext": {"runAsUser": 0}}, "securityContext is set; it is the boundary"),
    ({"ports": [{"containerPort": 1}]}, "ports is set"),
    ({"livenessProbe": {"exec": {}}}, "livenessProbe is set"),
    ({"stdin": True}, "stdin is set; it cannot be set"),
    ({"workingDir": "/x"}, "workingDir is set"),
    (
        {"lifecycle": {"postStart": {"exec": {}}}},
        "lifecycle.postStart is a hook; it holds the application back",
    ),
    (
        {"lifecycle": {"stopSignal": "SIGKILL"}},
        "lifecycle.stopSignal is a hook; allowed are postStart and preStop",
    ),
    (
        {"resources": {"claims": [{"name": "gpu"}]}},
        "resources is ['claims']; allowed are limits and requests",
    ),
    ({"resources": {"limits": "x"}}, "resources.limits is 'x'; expected quantities by resource"),
    ({"resources": {"limits": {"cpu": "lots"}}}, "resources.limits.cpu is 'lots'; expected a quantity"),
    ({"resources": {"limits": {"cpu": "4"}}}, "resources.limits.cpu is 4; at most 3 is allowed"),
    ({"resources": {"limits": {"cpu": "0"}}}, "resources.limits.cpu is 0; at most 3 is allowed"),
    (
        {"resources": {"requests": {"memory": "9Gi"}}},
        "resources.requests.memory is 9Gi; at most 2Gi is allowed",
    ),
    ({"resources": {"requests": {"cpu": "3"}}}, "cpu request 3 is above the limit 2"),
    (
        {"volumeMounts": [{"name": "none", "mountPath": "/x"}]},
        "volumeMounts[0].name is 'none'; the pod has no",
    ),
    ({"volumeMounts": [{"name": "data", "mountPath": "x"}]}, "mountPath: 'x' is not an absolute path"),
    ({"volumeMounts": [{"name": "data", "mountPath": "/a/../b"}]}, "is not an absolute path"),
    ({"volumeMounts": [{"name": "data"}]}, "mountPath: None is not an absolute path"),
    ({"volumeMounts": [{"name": "data", "mountPath": "/run"}]}, "'/run' would cover /run/gatehouse"),
    ({"volumeMounts": [{"name": "data", "mountPath": "/run/gatehouse/"}]}, "would cover /run/gatehouse"),
    ({"volumeMounts": [{"name": "data", "mountPath": "/run/gatehouse/agent.sock"}]}, "would cover"),
    ({"volumeMounts": [{"name": "data", "mountPath": "/"}]}, "would cover /run/gatehouse"),
    (
        {"volumeMounts": [{"name": "data", "mountPath": "/x", "readOnly": "yes"}]},
        "readOnly: expected true or false",
    ),
    (
        {"volumeMounts": [{"name": "data", "mountPath": "/x", "subPath": "../y"}]},
        "subPath: expected a relative",
    ),
    (
        {"volumeMounts": [{"name": "data", "mountPath": "/x", "subPath": "/y"}]},
        "subPath: expected a relative",
    ),
    (
        {"volumeMounts": [{"name": "data", "mountPath": "/x", "mountPropagation": "Bidirectional"}]},
        "volumeMounts[0].mountPropagation: allowed are",
    ),
    (
        {"volumeMounts": [{"name": "data", "mountPath": "/x"}, {"name": "data", "mountPath": "/x/"}]},
        "two volumes are mounted at '/x'",
    ),
]


@pytest.mark.parametrize(("fields", "said"), REFUSED, ids=[str(i) for i in range(len(REFUSED))])
def test_everything_else_is_refused_by_name(fields: dict[str, Any], said: str) -> None:
    config = InjectorSettings(ceilings=Ceilings(cpu="3", memory="2Gi"))
    result = injecting(pod(**fields), CLASSIC, config=config)
    assert result.decision.reason == "invalid_option"
    assert len(result.problems) == 1, result.problems
    assert result.problems[0].startswith("container istio-proxy: ")
    assert said in result.problems[0]


def test_all_refusals_at_once() -> None:
    assert len(injecting(pod(args=["x"], env=[{"name": "A"}], image="x")).problems) == 3


@pytest.mark.parametrize(
    ("mode", "annotations"),
    [(NATIVE, {}), (CLASSIC, {"sidecar.istio.io/holdApplicationUntilProxyStarts": "false"})],
    ids=["native", "no-hold"],
)
def test_a_post_start_hook_where_nothing_is_held(mode: Any, annotations: dict[str, str]) -> None:
    before = pod(lifecycle={"postStart": {"exec": {"command": ["true"]}}})
    before["metadata"]["annotations"] = annotations
    assert find(injected(before, mode), "istio-proxy")["lifecycle"]["postStart"] == {
        "exec": {"command": ["true"]}
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "expected JSON"),
        ("[]", "expected an object with one container"),
        ('{"containers":[]}', "expected an object with one container"),
        ('{"containers":[1]}', "expected an object with one container"),
        ('{"containers":[{"name":"web"}]}', "expected the container istio-proxy"),
        ('{"containers":[{"name":"istio-proxy","resources":1}]}', "expected an object, found 1"),
    ],
)
def test_a_broken_annotation_is_refused(text: str, said: str) -> None:
    after = injected(pod())
    after["metadata"]["annotations"]["proxy.istio.io/overrides"] = text
    result = injecting(after)
    assert result.decision.reason == "invalid_option"
    assert said in result.problems[0]


def test_a_forged_annotation_is_checked_like_a_declaration() -> None:
    after = injected(pod())
    evil = to_json(declared(command=["sh"], securityContext={"runAsUser": 0}))
    after["metadata"]["annotations"]["proxy.istio.io/overrides"] = evil
    result = injecting(after)
    assert len(result.problems) == 2
    assert "command is set" in result.problems[0]


def test_round_trip() -> None:
    mine = declared(resources={"limits": {"cpu": "1"}})
    assert from_json(to_json(mine)) == mine
    with pytest.raises(PodError, match="lifecycle: expected an object"):
        from_json(to_json(declared(lifecycle=[])))
