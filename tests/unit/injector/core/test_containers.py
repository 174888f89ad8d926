"""The two containers: rights, resources, order, holding, termination (b.2, b.3, b.7, D10a)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from injector.core.bootstrap import MAX_BYTES, Shape, bootstrap_argument, escape, expand
from injector.core.capture import CaptureConfig, PortRange
from injector.core.containers import volume
from injector.core.inject import InjectorSettings
from injector.core.options import PodOptions
from injector.core.psa import violations
from tests.fakes.injector_pods import (
    CLASSIC,
    NATIVE,
    a_pod,
    bootstrap_of,
    container,
    find,
    injected,
    injecting,
    names,
    proxy_arguments,
)

S, T = "sidecar.istio.io/", "traffic.sidecar.istio.io/"
MODES = pytest.mark.parametrize("mode", [NATIVE, CLASSIC], ids=["native", "classic"])


@MODES
def test_the_proxy_has_no_right_and_no_secret(mode: Any) -> None:
    pod = injected(a_pod(), mode)
    proxy = find(pod, "istio-proxy")
    assert violations("restricted", [proxy], pod["spec"]["volumes"]) == []
    assert proxy["securityContext"]["readOnlyRootFilesystem"] is True
    assert proxy["securityContext"]["runAsUser"] == proxy["securityContext"]["runAsGroup"] == 1337
    assert proxy["volumeMounts"] == [{"name": "gatehouse", "mountPath": "/run/gatehouse", "readOnly": True}]
    assert "command" not in proxy
    assert "livenessProbe" not in proxy
    assert pod["spec"]["volumes"] == [volume()]
    assert volume()["csi"] == {"driver": "csi.gatehouse.dev", "readOnly": True}


@MODES
def test_istio_init_has_one_capability(mode: Any) -> None:
    init = find(injected(a_pod(), mode), "istio-init")
    context = init["securityContext"]
    assert context["capabilities"] == {"add": ["NET_ADMIN"], "drop": ["ALL"]}
    assert (context["runAsUser"], context["allowPrivilegeEscalation"], context["privileged"]) == (
        0,
        False,
        False,
    )
    assert context["readOnlyRootFilesystem"] is True
    assert violations("baseline", [init]) == ["container istio-init: capability NET_ADMIN"]
    assert init["resources"] == find(injected(a_pod(), mode), "istio-proxy")["resources"], "quotas"


def test_native_order() -> None:
    """b.7: rules, proxy, then the author's, which are in the mesh."""
    own = container("logs", restartPolicy="Always")
    pod = injected(a_pod(initContainers=[container("setup"), own]))
    assert names(pod, "initContainers") == ["istio-init", "istio-proxy", "setup", "logs"]
    proxy = find(pod, "istio-proxy")
    assert proxy["restartPolicy"] == "Always"
    assert (proxy["startupProbe"]["periodSeconds"], proxy["startupProbe"]["failureThreshold"]) == (1, 600)
    assert "lifecycle" not in proxy


def test_classic_order_and_hold() -> None:
    pod = injected(a_pod(initContainers=[container("setup")]), CLASSIC)
    assert names(pod, "initContainers") == ["setup", "istio-init"]
    assert names(pod) == ["istio-proxy", "web"]
    proxy = find(pod, "istio-proxy")
    assert proxy["lifecycle"]["postStart"]["exec"]["command"] == [
        *("python3", "-m", "injector.wait_ready", "--timeout", "60")
    ]
    assert "restartPolicy" not in proxy
    assert "startupProbe" not in proxy
    assert pod["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"] == "web"


def test_classic_without_hold() -> None:
    pod = injected(a_pod(annotations={S + "holdApplicationUntilProxyStarts": "false"}), CLASSIC)
    assert names(pod) == ["web", "istio-proxy"]
    assert "postStart" not in find(pod, "istio-proxy")["lifecycle"]


@pytest.mark.parametrize(
    ("annotation", "grace", "path"),
    [
        (None, None, "/prestop/25"),
        (None, 20, "/prestop/15"),
        (None, 600, "/prestop/25"),
        (None, 5, None),
        (None, 0, None),
        ("0", None, None),
        ("7", 60, "/prestop/7"),
        ("30", None, "/prestop/30"),
    ],
)
def test_termination_in_classic_mode(annotation: str | None, grace: int | None, path: str | None) -> None:
    """prototype-cluster 8, S8: the proxy outlives the application, within the grace period."""
    annotations = {} if annotation is None else {S + "terminationDelaySeconds": annotation}
    spec = {} if grace is None else {"terminationGracePeriodSeconds": grace}
    pod = injected(a_pod(annotations=annotations, **spec), CLASSIC)
    lifecycle = find(pod, "istio-proxy")["lifecycle"]
    if path is None:
        assert "preStop" not in lifecycle
    else:
        assert lifecycle["preStop"] == {"httpGet": {"path": path, "port": 15020, "scheme": "HTTP"}}
    listener = bootstrap_of(pod)["static_resources"]["listeners"][-1]
    assert (f'"path": "{path}"' in json.dumps(listener)) is bool(path)


def test_the_drain_is_immediate() -> None:
    arguments = proxy_arguments(injected(a_pod(), config=InjectorSettings(drain_seconds=12)))
    assert arguments[arguments.index("--drain-strategy") + 1] == "immediate"
    assert arguments[arguments.index("--drain-time-s") + 1] == "12"


@pytest.mark.parametrize(
    ("pod", "finite"),
    [
        (a_pod(restartPolicy="Never"), True),
        (a_pod(restartPolicy="OnFailure"), True),
        (a_pod(restartPolicy="Always"), False),
        (a_pod(), False),
    ],
)
def test_jobs_end_in_classic_mode(pod: dict[str, Any], finite: bool) -> None:
    proxy = find(injected(pod, CLASSIC), "istio-proxy")
    expected = ["python3", "-m", "injector.until_finished", "--", "envoy"] if finite else None
    assert proxy.get("command") == expected
    assert "command" not in find(injected(pod, NATIVE), "istio-proxy"), "the kubelet ends native sidecars"


def test_jobs_by_owner() -> None:
    pod = a_pod()
    pod["metadata"]["ownerReferences"] = [{"kind": "Job", "name": "sums", "controller": True}]
    assert "until_finished" in str(find(injected(pod, CLASSIC), "istio-proxy")["command"])


@pytest.mark.parametrize(
    ("annotations", "resources"),
    [
        ({}, ("100m", "128Mi", "2", "1Gi")),
        ({"proxyCPU": "50m"}, ("50m", "128Mi", "2", "1Gi")),
        ({"proxyMemory": "64Mi"}, ("100m", "64Mi", "2", "1Gi")),
        ({"proxyCPULimit": "0"}, ("100m", "128Mi", None, "1Gi")),
        ({"proxyMemoryLimit": "0"}, ("100m", "128Mi", "2", None)),
    ],
)
def test_one_resource_changes_alone(annotations: dict[str, str], resources: tuple[str | None, ...]) -> None:
    """Trap: one annotation discarded the whole block of defaults upstream; zero is no limit, not null."""
    pod = injected(a_pod(annotations={S + k: v for k, v in annotations.items()}))
    found = find(pod, "istio-proxy")["resources"]
    requests, limits = found["requests"], found["limits"]
    assert (requests["cpu"], requests["memory"], limits.get("cpu"), limits.get("memory")) == resources


@pytest.mark.parametrize(
    ("annotations", "threads"),
    [
        ({}, "2"),
        ({"proxyCPULimit": "1500m"}, "2"),
        ({"proxyCPULimit": "500m"}, "1"),
        ({"proxyCPULimit": "0", "proxyCPU": "3"}, "3"),
        ({"proxyCPULimit": "900"}, "64"),
        ({"concurrency": "7"}, "7"),
    ],
)
def test_threads_from_the_limit(annotations: dict[str, str], threads: str) -> None:
    arguments = proxy_arguments(injected(a_pod(annotations={S + k: v for k, v in annotations.items()})))
    assert arguments[arguments.index("--concurrency") + 1] == threads


def test_levels() -> None:
    levels = {S + "logLevel": "info", S + "componentLogLevel": "rbac:trace,upstream:debug"}
    arguments = proxy_arguments(injected(a_pod(annotations=levels)))
    assert arguments[-4:] == ["--log-level", "info", "--component-log-level", "rbac:trace,upstream:debug"]


def test_statistics_that_a_pod_wants() -> None:
    wanted = {S + "statsInclusionPrefixes": "cluster.x", S + "statsInclusionSuffixes": "rq_y"}
    found = bootstrap_of(injected(a_pod(annotations=wanted)))
    patterns = found["stats_config"]["stats_matcher"]["inclusion_list"]["patterns"]
    assert {"prefix": "cluster.x"} in patterns
    assert {"suffix": "rq_y"} in patterns


def test_capture_options_reach_the_init_container() -> None:
    annotations = {
        T + "includeInboundPorts": "80",
        T + "excludeInboundPorts": "90",
        T + "includeOutboundIPRanges": "10.0.0.0/8",
        T + "excludeOutboundIPRanges": "10.1.0.0/16",
        T + "includeOutboundPorts": "443",
        T + "excludeOutboundPorts": "25",
        T + "excludeInterfaces": "eth1",
        "istio.io/reroute-virtual-interfaces": "net1",
    }
    settings = InjectorSettings(
        excluded_inbound_ports=(PortRange(9, 9),), excluded_outbound_ports=(PortRange(7, 7),), proxy_uid=4242
    )
    pod = injected(a_pod(annotations=annotations), config=settings)
    init = find(pod, "istio-init")
    assert CaptureConfig.from_json(init["args"][1]) == CaptureConfig(
        include_inbound=(PortRange(80, 80),),
        exclude_inbound=(PortRange(9, 9), PortRange(90, 90)),
        include_outbound_cidrs=("10.0.0.0/8",),
        exclude_outbound_cidrs=("10.1.0.0/16",),
        include_outbound_ports=(PortRange(443, 443),),
        exclude_outbound_ports=(PortRange(7, 7), PortRange(25, 25)),
        exclude_interfaces=("eth1",),
        reroute_interfaces=("net1",),
        proxy_uid=4242,
    )
    assert find(pod, "istio-proxy")["securityContext"]["runAsUser"] == 4242


def test_the_pull_policy_is_the_api_servers_unless_set() -> None:
    assert "imagePullPolicy" not in find(injected(a_pod()), "istio-proxy")
    pod = injected(a_pod(), config=InjectorSettings(image_pull_policy="Always"))
    assert (
        find(pod, "istio-init")["imagePullPolicy"] == find(pod, "istio-proxy")["imagePullPolicy"] == "Always"
    )


def test_pull_secrets_are_merged_by_name() -> None:
    settings = InjectorSettings(image_pull_secrets=("a", "b"))
    pod = injected(a_pod(imagePullSecrets=[{"name": "b"}, {"name": "c"}]), config=settings)
    assert [s["name"] for s in pod["spec"]["imagePullSecrets"]] == ["b", "c", "a"]


def test_user_volumes() -> None:
    annotations = {
        S + "userVolume": '{"extra":{"configMap":{"name":"x"}}}',
        S + "userVolumeMount": '{"extra":{"mountPath":"/x"},"data":{"mountPath":"/d","readOnly":true}}',
    }
    pod = injected(a_pod(annotations=annotations, volumes=[{"name": "data", "emptyDir": {}}]))
    assert [v["name"] for v in pod["spec"]["volumes"]] == ["data", "gatehouse", "extra"]
    mounts = find(pod, "istio-proxy")["volumeMounts"]
    assert [(m["name"], m["mountPath"]) for m in mounts[1:]] == [("data", "/d"), ("extra", "/x")]


@pytest.mark.parametrize(
    ("annotations", "said"),
    [
        ({"userVolume": '{"a":{"hostPath":{"path":"/"}}}'}, "needs exactly one source of"),
        ({"userVolume": '{"a":{"emptyDir":{},"secret":{}}}'}, "needs exactly one source of"),
        ({"userVolume": '{"a":{"emptyDir":1}}'}, "needs exactly one source of"),
        ({"userVolume": '{"data":{"emptyDir":{}}}'}, "the pod has a volume 'data' already"),
        ({"userVolumeMount": '{"data":{"mountPath":"/run/gatehouse/x"}}'}, "would cover /run/gatehouse"),
        ({"userVolumeMount": '{"nope":{"mountPath":"/x"}}'}, "neither the pod nor userVolume declares"),
        (
            {
                "userVolume": '{"a":{"emptyDir":{}}}',
                "userVolumeMount": '{"a":{"mountPath":"/x"},"data":{"mountPath":"/x/"}}',
            },
            "two mounts have the path '/x'",
        ),
    ],
)
def test_bad_user_volumes(annotations: dict[str, str], said: str) -> None:
    pod = a_pod(
        annotations={S + k: v for k, v in annotations.items()}, volumes=[{"name": "data", "emptyDir": {}}]
    )
    problems = injecting(pod).problems
    assert len(problems) == 1, problems
    assert said in problems[0]


@pytest.mark.parametrize(
    ("pod", "said"),
    [
        (a_pod({"name": "istio-proxy", "image": "auto"}), "the pod has no container of its own"),
        (a_pod(container("istio-init")), "container name istio-init belongs to the mesh"),
        (a_pod(initContainers=[container("istio-init")]), "container name istio-init belongs to the mesh"),
        (
            a_pod(container(ports=[{"containerPort": 15006}])),
            "container web: port 15006 belongs to the proxy",
        ),
        (a_pod(volumes=[{"name": "gatehouse", "emptyDir": {}}]), "volume name gatehouse belongs to the mesh"),
    ],
)
def test_collisions(pod: dict[str, Any], said: str) -> None:
    problems = injecting(pod).problems
    assert len(problems) == 1
    assert said in problems[0]
    assert "next: " in problems[0]


def test_an_application_may_have_the_socket_too() -> None:
    """D3 "one socket, every API": the author declares the volume as we would, and mounts it."""
    own = container(volumeMounts=[{"name": "gatehouse", "mountPath": "/spiffe", "readOnly": True}])
    pod = injected(a_pod(own, volumes=[volume()]))
    assert [v["name"] for v in pod["spec"]["volumes"]] == ["gatehouse"]


@MODES
@pytest.mark.parametrize(
    ("annotations", "port"),
    [
        ({}, 15020),
        ({S + "interceptionMode": "NONE"}, 8080),
        ({T + "includeInboundPorts": ""}, 8080),
        ({S + "rewriteAppHTTPProbers": "false"}, 8080),
    ],
    ids=["captured", "none", "no-inbound", "off"],
)
def test_probes_are_redirected_where_they_would_be_captured(
    mode: Any, annotations: dict[str, str], port: int
) -> None:
    probe = {"httpGet": {"path": "/", "port": 8080}}
    pod = injected(a_pod(container(livenessProbe=probe), annotations=annotations), mode)
    assert find(pod, "web")["livenessProbe"]["httpGet"]["port"] == port


def test_without_capture_nothing_is_bound_to_the_passthrough_address() -> None:
    """::6 exists only where istio-init added it."""
    annotations = {S + "interceptionMode": "NONE", "prometheus.istio.io/scrape-targets": "80"}
    text = json.dumps(bootstrap_of(injected(a_pod(annotations=annotations))))
    assert "metrics|80" in text
    assert "127.0.0.6" not in text


@pytest.mark.parametrize("name", ["POD_NAME", "POD_NAMESPACE", "POD_IP"])
def test_the_kubelet_knows_the_variables(name: str) -> None:
    env = {
        e["name"]: e["valueFrom"]["fieldRef"]["fieldPath"]
        for e in find(injected(a_pod()), "istio-proxy")["env"]
    }
    assert env == {
        "POD_NAME": "metadata.name",
        "POD_NAMESPACE": "metadata.namespace",
        "POD_IP": "status.podIP",
    }
    raw = find(injected(a_pod()), "istio-proxy")["args"][1]
    assert f"$({name})" in raw


def test_the_bootstrap_knows_the_pod() -> None:
    found = bootstrap_of(injected(a_pod()), "fd00::7")
    assert found["node"]["id"] == "web.shop"
    assert found["node"]["metadata"]["trust_domain"] == "cluster.local"
    for listener, port in zip(found["static_resources"]["listeners"], (15090, 15021, 15020), strict=True):
        assert listener["address"]["socket_address"] == {"address": "fd00::7", "port_value": port}
        extra = listener["additional_addresses"][0]["address"]["socket_address"]
        assert extra == {"address": "127.0.0.1", "port_value": port}
    assert found["admin"]["address"]["pipe"]["path"] == "@gatehouse-admin", "read-only file system"
    assert {p.get("exact") or p["prefix"] for p in found["admin"]["allow_paths"]} == {"/ready", "/stats"}


def test_equal_shapes_have_equal_bytes() -> None:
    bootstrap_argument.cache_clear()
    first = bootstrap_argument(Shape(workload="a", trust_domain="t"))
    bootstrap_argument.cache_clear()
    assert bootstrap_argument(Shape(workload="a", trust_domain="t")) == first
    assert len(first) < MAX_BYTES / 4


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("$(A)", "1"),
        ("$$(A)", "$(A)"),
        ("$$$(A)", "$1"),
        ("$(B)", "$(B)"),
        ("$(A", "$(A"),
        ("$A $", "$A $"),
        ("$(A)$(A)", "11"),
        ("$()", "$()"),
    ],
)
def test_expansion_is_the_kubelets(text: str, expanded: str) -> None:
    assert expand(text, {"A": "1"}) == expanded
    assert expand(escape(text), {"A": "1"}) == text


def test_the_digest_tells_settings_apart() -> None:
    assert InjectorSettings().digest == InjectorSettings().digest
    assert InjectorSettings().digest != InjectorSettings(defaults=PodOptions(concurrency=1)).digest
    assert len(InjectorSettings().digest) == 16
