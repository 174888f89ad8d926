"""Pods that come back: what others added stays, what they broke is put right (e.2 (4), (5))."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from injector.core.inject import ClusterFeatures, InjectorSettings, uninject
from injector.core.patch import apply_patch
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

S = "sidecar.istio.io/"
MODES = pytest.mark.parametrize("mode", [NATIVE, CLASSIC], ids=["native", "classic"])


def probe(port: int = 8080, **fields: Any) -> dict[str, Any]:
    return {"httpGet": {"path": "/h", "port": port}, **fields}


@MODES
def test_others_add_a_container_with_probes_after_us(mode: ClusterFeatures) -> None:
    """e.2 (4): probes added by later webhooks are redirected too; earlier ones keep their records."""
    after = injected(a_pod(container(readinessProbe=probe())), mode)
    after["spec"]["containers"].append(container("late", livenessProbe=probe(9), image="x"))
    after["spec"].setdefault("initContainers", []).insert(0, container("vault"))
    result = injecting(after, mode)
    assert result.decision.reason == "repaired"
    again = apply_patch(after, result.patch)
    assert find(again, "late")["livenessProbe"]["httpGet"]["port"] == 15020
    assert set(status(again)["probes"]) == {"/app-health/web/readyz", "/app-health/late/livez"}
    assert status(again)["reason"] == "repaired"
    if mode is NATIVE:
        assert names(again, "initContainers") == ["istio-init", "istio-proxy", "vault"]
    else:
        assert names(again, "initContainers") == ["vault", "istio-init"], "rules come last: vault has network"
        assert names(again) == ["istio-proxy", "web", "late"]
    assert injecting(again, mode).decision.reason == "up_to_date"
    undone = uninject(again)
    assert find(undone, "late")["livenessProbe"] == probe(9)
    assert find(undone, "web")["readinessProbe"] == probe()


def test_others_strip_restart_policy() -> None:
    """e.2 (5): an old client library drops the field it does not know, and the pod would hang in Init."""
    after = injected(a_pod())
    del find(after, "istio-proxy")["restartPolicy"]
    result = injecting(after)
    assert result.decision.reason == "repaired"
    changes = [o for o in result.patch if "annotations" not in o["path"]]
    assert changes == [{"op": "add", "path": "/spec/initContainers/1/restartPolicy", "value": "Always"}]


@MODES
@pytest.mark.parametrize(
    "break_it",
    [
        lambda c: c.update(command=["sh"]),
        lambda c: c.update(image="evil.example/x"),
        lambda c: c["securityContext"].update(privileged=True),
        lambda c: c["securityContext"]["capabilities"].update(add=["SYS_ADMIN"]),
        lambda c: c.update(args=[]),
        lambda c: c.update(livenessProbe=probe()),
        lambda c: c.pop("readinessProbe"),
        lambda c: c["volumeMounts"].clear(),
        lambda c: c["env"].clear(),
        lambda c: c.update(envFrom=[{"secretRef": {"name": "x"}}]),
    ],
    ids=[
        "command",
        "image",
        "privileged",
        "capability",
        "args",
        "liveness",
        "readiness",
        "mounts",
        "env",
        "envFrom",
    ],
)
def test_what_others_break_is_put_right(mode: ClusterFeatures, break_it: Any) -> None:
    good = injected(a_pod(), mode)
    bad = copy.deepcopy(good)
    break_it(find(bad, "istio-proxy"))
    result = injecting(bad, mode)
    assert result.decision.reason == "repaired"
    right = apply_patch(bad, result.patch)
    right["metadata"] = good["metadata"]
    assert right == good


@MODES
def test_what_others_may_add_stays(mode: ClusterFeatures) -> None:
    """Defaults of the API server, its token mount, variables of other webhooks, LimitRanges."""
    after = injected(a_pod(), mode)
    proxy = find(after, "istio-proxy")
    proxy["imagePullPolicy"] = "IfNotPresent"
    proxy["env"].append({"name": "HTTP_PROXY", "value": "x"})
    proxy["volumeMounts"].append({"name": "kube-api-access", "mountPath": "/var/run/secrets/token"})
    proxy["resources"]["limits"]["ephemeral-storage"] = "1Gi"
    proxy["securityContext"]["procMount"] = "Default"
    after["spec"]["volumes"].insert(0, {"name": "kube-api-access", "projected": {"sources": []}})
    after["spec"]["volumes"].append({"name": "later", "emptyDir": {}})
    result = injecting(after, mode)
    assert (result.decision.reason, result.patch) == ("up_to_date", ())


def test_other_settings_replace_the_sidecar() -> None:
    after = injected(a_pod())
    newer = InjectorSettings(proxy_image="gatehouse/proxy:9", version="9")
    result = injecting(after, config=newer)
    assert result.decision.reason == "reinjected"
    again = apply_patch(after, result.patch)
    assert find(again, "istio-proxy")["image"] == "gatehouse/proxy:9"
    assert status(again)["version"] == "9"
    assert injecting(again, config=newer).decision.reason == "up_to_date"


def test_from_classic_to_native_and_back() -> None:
    pod = a_pod(container(livenessProbe=probe()), initContainers=[container("setup")])
    classic = injected(pod, CLASSIC)
    result = injecting(classic, NATIVE)
    assert result.decision.reason == "reinjected"
    native = apply_patch(classic, result.patch)
    assert names(native, "initContainers") == ["istio-init", "istio-proxy", "setup"]
    assert names(native) == ["web"]
    assert "lifecycle" not in find(native, "istio-proxy")
    assert apply_patch(native, injecting(native, CLASSIC).patch)["spec"] == classic["spec"]


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"schema":2}',
        '{"schema":1,"probes":[]}',
        '{"schema":1,"containers":[1]}',
        "[" * 9999,
        "x" * 200_000,
    ],
    ids=["syntax", "list", "newer", "probes", "names", "deep", "long"],
)
def test_a_broken_status_is_refused(text: str) -> None:
    result = injecting(a_pod(annotations={S + "status": text}))
    assert result.decision.reason == "invalid_option"
    assert "is not what the injector wrote" in result.problems[0]
    assert "next: remove it" in result.problems[0]


def test_a_forged_status_cannot_remove_the_authors_parts() -> None:
    forged = json.dumps(
        {"schema": 1, "containers": ["web"], "initContainers": ["setup"], "volumes": ["data"], "labels": []}
    )
    pod = a_pod(
        container(volumeMounts=[{"name": "data", "mountPath": "/d"}]),
        annotations={S + "status": forged},
        initContainers=[container("setup")],
        volumes=[{"name": "data", "emptyDir": {}}],
    )
    after = injected(pod)
    assert names(after) == ["web"]
    assert names(after, "initContainers") == ["istio-init", "istio-proxy", "setup"]
    assert [v["name"] for v in after["spec"]["volumes"]] == ["data", "gatehouse"]


def test_a_forged_status_does_not_keep_the_sidecar_away() -> None:
    """The digest alone proves nothing: what counts is whether there is anything to change."""
    genuine = injected(a_pod())["metadata"]["annotations"][S + "status"]
    after = injected(a_pod(annotations={S + "status": genuine}))
    assert "istio-proxy" in names(after, "initContainers")


def test_a_declaration_whose_place_is_unknown_comes_back_first() -> None:
    mine = {"name": "istio-proxy", "image": "auto", "resources": {"requests": {"cpu": "7m"}}}
    after = injected(a_pod(container(), mine))
    text = status(after)
    del text["declared"]
    after["metadata"]["annotations"][S + "status"] = json.dumps(text)
    assert names(uninject(after)) == ["istio-proxy", "web"]


def test_what_was_never_injected_is_returned_as_it_is() -> None:
    pod = a_pod()
    assert uninject(pod) == pod


def test_volumes_that_are_not_wanted_any_more_go() -> None:
    volume = {
        S + "userVolume": '{"extra":{"emptyDir":{}}}',
        S + "userVolumeMount": '{"extra":{"mountPath":"/x"}}',
    }
    after = injected(a_pod(annotations=volume))
    for key in volume:
        del after["metadata"]["annotations"][key]
    again = apply_patch(after, injecting(after).patch)
    assert [v["name"] for v in again["spec"]["volumes"]] == ["gatehouse"]


def test_a_target_of_prometheus_that_others_set_since_stays() -> None:
    after = injected(a_pod(annotations={"prometheus.io/scrape": "true", "prometheus.io/port": "1"}))
    after["metadata"]["annotations"]["prometheus.io/port"] = "9100"
    assert uninject(after)["metadata"]["annotations"]["prometheus.io/port"] == "9100"
