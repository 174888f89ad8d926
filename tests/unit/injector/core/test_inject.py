"""Laws of injection: applying, again, undoing; who may touch what; later rows of the decision (d.2, e.2)."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from injector.core.inject import Ceilings, ClusterFeatures, InjectorSettings, inject, uninject
from injector.core.options import PodOptions
from injector.core.patch import apply_patch
from injector.core.podjson import PodCode, PodError
from injector.core.psa import violations
from tests.fakes.injector_pods import (
    CLASSIC,
    ENABLED,
    NATIVE,
    a_pod,
    bootstrap_of,
    container,
    find,
    injected,
    injecting,
    names,
    proxy_arguments,
    status,
)

S = "sidecar.istio.io/"
MODES = pytest.mark.parametrize("mode", [NATIVE, CLASSIC], ids=["native", "classic"])


def probe(port: int = 8080, **fields: Any) -> dict[str, Any]:
    return {"httpGet": {"path": "/h", "port": port}, **fields}


# --- laws -----------------------------------------------------------------------------------------------

texts = st.text(max_size=12)
foreign = st.dictionaries(
    texts.map(lambda t: f"x{t}"), st.none() | st.booleans() | texts | st.integers(), max_size=3
)
probes = st.none() | st.builds(
    lambda kind, more: {**kind, **more},
    st.sampled_from(
        [
            {"httpGet": {"path": "/a", "port": 8080, "httpHeaders": [{"name": "A", "value": "b"}]}},
            {"httpGet": {"port": "http"}},
            {"httpGet": {"path": "/x", "port": 1, "host": "elsewhere"}},
            {"tcpSocket": {"port": 5}},
            {"grpc": {"port": 6, "service": "a.B"}},
            {"exec": {"command": ["true"]}},
            {},
        ]
    ),
    st.fixed_dictionaries(
        {}, optional={k: st.integers(1, 9) for k in ("timeoutSeconds", "periodSeconds", "failureThreshold")}
    ),
)
containers = st.builds(
    lambda name, more, found: {"name": name, **more, **found},
    st.sampled_from(["a", "b", "c", "d"]),
    foreign,
    st.fixed_dictionaries(
        {},
        optional={
            "livenessProbe": probes,
            "readinessProbe": probes,
            "startupProbe": probes,
            "ports": st.just([{"name": "http", "containerPort": 8080}]),
            "lifecycle": st.sampled_from([None, {}, {"preStop": {"httpGet": {"path": "/b", "port": 8080}}}]),
        },
    ),
)
lists = st.lists(containers, max_size=3, unique_by=lambda c: c["name"])
pods = st.builds(
    lambda metadata, spec, more: {"metadata": metadata, "spec": {**spec, **more}},
    st.fixed_dictionaries(
        {},
        optional={
            "name": st.just("web"),
            "labels": st.dictionaries(st.sampled_from(["app", "version", "~/"]), st.sampled_from("xyz")),
            "annotations": st.fixed_dictionaries(
                {},
                optional={
                    "note": texts,
                    "prometheus.io/scrape": st.sampled_from(["true", "false"]),
                    "prometheus.io.port": st.just("9100"),
                    S + "holdApplicationUntilProxyStarts": st.sampled_from(["true", "false"]),
                    S + "interceptionMode": st.sampled_from(["REDIRECT", "NONE"]),
                    S + "userVolume": st.just('{"extra":{"emptyDir":{}}}'),
                },
            ),
        },
    ),
    st.fixed_dictionaries(
        {"containers": st.lists(containers, min_size=1, max_size=3, unique_by=lambda c: c["name"])},
        optional={
            "initContainers": st.lists(
                containers.map(lambda c: {**c, "name": f"i{c['name']}"}),
                max_size=2,
                min_size=1,
                unique_by=lambda c: c["name"],
            ),
            "volumes": st.just([{"name": "data", "emptyDir": {}}]),
            "imagePullSecrets": st.just([{"name": "mine"}]),
            "restartPolicy": st.sampled_from(["Always", "Never"]),
        },
    ),
    foreign,
)
modes = st.sampled_from([NATIVE, CLASSIC])


@given(pods, modes)
def test_laws(pod: dict[str, Any], mode: ClusterFeatures) -> None:
    """Deterministic; leaves its input alone; twice equals once; taking back gives what there was."""
    before = copy.deepcopy(pod)
    result = injecting(pod, mode, config=InjectorSettings(image_pull_secrets=("registry",)))
    assert pod == before
    assert result.decision.reason == "injected"
    assert result == injecting(
        copy.deepcopy(pod), mode, config=InjectorSettings(image_pull_secrets=("registry",))
    )
    after = apply_patch(pod, result.patch)
    again = injecting(after, mode, config=InjectorSettings(image_pull_secrets=("registry",)))
    assert (again.decision.reason, again.patch) == ("up_to_date", ())
    assert _bare(uninject(after)) == _bare(pod)
    json.dumps(after, allow_nan=False)


def _bare(pod: dict[str, Any]) -> dict[str, Any]:
    metadata = {k: v for k, v in pod["metadata"].items() if v != {}}
    return {**pod, "metadata": metadata}


_TOUCHED = {"livenessProbe", "readinessProbe", "startupProbe", "lifecycle"}


@given(pods, modes)
def test_foreign_fields_are_untouched(pod: dict[str, Any], mode: ClusterFeatures) -> None:
    after = injected(pod, mode)
    for kind in ("containers", "initContainers"):
        mine = [c for c in after["spec"].get(kind, []) if c["name"] not in {"istio-init", "istio-proxy"}]
        strip = [{k: v for k, v in c.items() if k not in _TOUCHED} for c in mine]
        assert strip == [{k: v for k, v in c.items() if k not in _TOUCHED} for c in pod["spec"].get(kind, [])]
    ours = {"containers", "initContainers", "volumes", "imagePullSecrets"}
    assert {k: v for k, v in after["spec"].items() if k not in ours} == {
        k: v for k, v in pod["spec"].items() if k not in ours
    }
    mounts = [c for c in after["spec"]["containers"] if c["name"] != "istio-proxy" and c.get("volumeMounts")]
    assert not mounts, "the agent's socket is for the proxy alone"


@given(pods, modes)
def test_structure_is_valid(pod: dict[str, Any], mode: ClusterFeatures) -> None:
    """Names are unique across both lists, mount paths within a container, volumes exist."""
    spec = injected(pod, mode)["spec"]
    every = [c["name"] for kind in ("containers", "initContainers") for c in spec.get(kind, [])]
    assert len(set(every)) == len(every)
    volumes = [v["name"] for v in spec["volumes"]]
    assert len(set(volumes)) == len(volumes)
    for found in [*spec["containers"], *spec.get("initContainers", [])]:
        paths = [m["mountPath"] for m in found.get("volumeMounts", ())]
        assert len(set(paths)) == len(paths)
        assert {m["name"] for m in found.get("volumeMounts", ())} <= set(volumes)


HOSTILE = [
    "x\n  y: z",
    '"}}],"privileged":true',
    "{{ .Values }}",
    "$(POD_IP)",
    "`id`",
    "a'; rm -rf /",
    "\x00",
    "\u202e\U0001f600",
    "*&anchor",
    "%s%n",
    "</script>",
    "x" * 5000,
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
@MODES
def test_hostile_texts_change_only_their_own_field(mode: ClusterFeatures, text: str) -> None:
    """e.2 (3): whatever stands in a foreign annotation, label or field stays there and nowhere else."""
    plain = a_pod(container(args=["-"]), annotations={"note": "-"}, labels={"app": "shop", "note": "-"})
    hostile = json.loads(json.dumps(plain))
    hostile["metadata"]["annotations"]["note"] = text
    hostile["metadata"]["labels"]["note"] = text
    hostile["spec"]["containers"][0]["args"] = [text]
    after = injected(hostile, mode)
    assert after["metadata"]["annotations"].pop("note") == text
    assert after["metadata"]["labels"].pop("note") == text
    assert find(after, "web").pop("args") == [text]
    expected = injected(plain, mode)
    del expected["metadata"]["annotations"]["note"], expected["metadata"]["labels"]["note"]
    del find(expected, "web")["args"]
    assert after == expected


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
@pytest.mark.parametrize("field", ["path", "service"])
def test_hostile_probes_stay_data(text: str, field: str) -> None:
    """A probe's path reaches the bootstrap: as one string, expanded to itself, or not at all."""
    handler = (
        {"httpGet": {"path": text, "port": 80}}
        if field == "path"
        else {"grpc": {"port": 80, "service": text}}
    )
    result = injecting(a_pod(container(livenessProbe=handler)))
    after = apply_patch(a_pod(container(livenessProbe=handler)), result.patch)
    bootstrap = bootstrap_of(after)
    manager = bootstrap["static_resources"]["listeners"][-1]["filter_chains"][0]["filters"][0]["typed_config"]
    routes = manager["route_config"]["virtual_hosts"][0]["routes"]
    assert len(routes) <= 2
    for argument in proxy_arguments(after):
        assert "10.1.2.3" not in argument.replace('"address":"10.1.2.3"', ""), (
            "nothing of the pod was expanded"
        )


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_options_are_refused(text: str) -> None:
    for key in (
        "proxyImage",
        "proxyCPU",
        "logLevel",
        "userVolume",
        "interceptionMode",
        "statsInclusionPrefixes",
    ):
        result = injecting(a_pod(annotations={S + key: text}))
        if not result.problems:  # a harmless word among the hostile ones
            assert key == "statsInclusionPrefixes"
            continue
        assert result.decision.reason == "invalid_option"
        assert all("\n" not in warning and len(warning) <= 256 for warning in result.warnings)


# --- later rows -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1337, 4242])
@pytest.mark.parametrize("field", ["runAsUser", "runAsGroup"])
@pytest.mark.parametrize("where", ["pod", "container", "init"])
def test_row_12_clash(field: str, where: str, number: int) -> None:
    context = {"securityContext": {field: number}}
    pod = {
        "pod": a_pod(**context),
        "container": a_pod(container(**context)),
        "init": a_pod(initContainers=[container("setup", **context)]),
    }[where]
    code = "uid_clash" if field == "runAsUser" else "gid_clash"
    result = injecting(pod, config=InjectorSettings(proxy_uid=number))
    assert result.decision.reason == code
    assert result.decision.outcome.value == "deny"
    assert f"securityContext.{field} is {number}" in result.problems[0]
    assert not result.patch
    other = injecting(pod, config=InjectorSettings(proxy_uid=number + 1))
    assert other.decision.reason == "injected"


def test_row_12_comes_before_row_13() -> None:
    pod = a_pod(annotations={S + "proxyCPU": "x"}, securityContext={"runAsUser": 1337})
    assert injecting(pod).decision.reason == "uid_clash"


def test_row_13_all_problems_at_once() -> None:
    pod = a_pod(
        container(ports=[{"containerPort": 15090}]),
        {"name": "istio-proxy", "image": "auto", "args": ["x"]},
        annotations={S + "proxyCPU": "x", S + "terminationDelaySeconds": "600"},
        volumes=[{"name": "gatehouse", "emptyDir": {}}],
    )
    result = injecting(pod, CLASSIC)
    assert len(result.problems) == 5
    assert result.decision.message.endswith("(and 4 more)")
    assert len(result.warnings) == 5
    assert result.audit == {"reason": "invalid_option", "message": result.decision.message}


@MODES
@pytest.mark.parametrize("level", ["privileged", "baseline", "restricted", "nonsense"])
def test_row_14_pod_security(mode: ClusterFeatures, level: str) -> None:
    """e.2 (10): what the API server will refuse is told beforehand, with the field."""
    labels = {**ENABLED, "pod-security.kubernetes.io/enforce": level}
    result = injecting(a_pod(), mode, namespace_labels=labels)
    if level in {"privileged", "nonsense"}:
        assert result.decision.reason == "injected"
        return
    assert (result.decision.outcome.value, result.decision.reason) == ("inject", "pod_security")
    assert "container istio-init: capability NET_ADMIN" in result.warnings[0]
    assert result.patch
    after = apply_patch(a_pod(), result.patch)
    again = injecting(after, mode, namespace_labels=labels)
    assert (again.decision.reason, again.patch) == ("pod_security", ())
    denied = injecting(
        a_pod(), mode, namespace_labels=labels, config=InjectorSettings(deny_pod_security=True)
    )
    assert (denied.decision.outcome.value, denied.decision.reason, denied.patch) == (
        "deny",
        "pod_security",
        (),
    )


@MODES
def test_without_capture_the_result_is_restricted(mode: ClusterFeatures) -> None:
    after = injected(a_pod(annotations={S + "interceptionMode": "NONE"}), mode)
    proxy = find(after, "istio-proxy")
    assert "istio-init" not in names(after, "initContainers")
    assert violations("restricted", [proxy], after["spec"]["volumes"]) == []


def test_skips_have_no_patch_and_a_reason() -> None:
    result = injecting(a_pod(labels={S + "inject": "false"}))
    assert (result.decision.reason, result.patch, result.warnings) == ("pod_opt_out", (), ())
    assert result.audit["reason"] == "pod_opt_out"


def test_an_explicit_yes_that_is_skipped_warns() -> None:
    result = injecting(a_pod(labels={S + "inject": "true"}), namespace_labels={"istio-injection": "disabled"})
    assert result.warnings[0].startswith(
        "gatehouse: namespace_disabled: not injected although the pod asks: "
    )


def test_native_needs_the_cluster() -> None:
    result = injecting(a_pod(annotations={S + "nativeSidecar": "true"}), CLASSIC)
    assert "not every node where this pod may run has native sidecars" in result.problems[0]
    opted_out = injected(a_pod(annotations={S + "nativeSidecar": "false"}), NATIVE)
    assert status(opted_out)["mode"] == "classic"


def test_ceilings() -> None:
    config = InjectorSettings(
        ceilings=Ceilings(
            cpu="1", memory="512Mi", image_prefixes=("registry.example/",), termination_delay=10
        ),
        defaults=PodOptions(proxy_cpu_limit="1", proxy_memory_limit="512Mi"),
    )
    assert not injecting(a_pod(), config=config).problems
    greedy = {
        S + "proxyCPU": "2",
        S + "proxyCPULimit": "2",
        S + "proxyMemory": "1Gi",
        S + "proxyMemoryLimit": "0",
        S + "proxyImage": "evil.example/x:1",
        S + "terminationDelaySeconds": "20",
    }
    problems = injecting(a_pod(annotations=greedy), config=config).problems
    for field in ("proxyCPU is 2", "proxyCPULimit is 2", "proxyMemory is 1Gi", "proxyMemoryLimit is 0"):
        assert any(field in p and "is allowed" in p for p in problems), field
    assert any("allowed are images below registry.example/" in p for p in problems)
    assert any("terminationDelaySeconds is 20; at most 10" in p for p in problems)


def test_warnings_are_bounded() -> None:
    """API servers cut long warnings and drop all beyond 4 KiB."""
    many = {f"{S}unknown{i:04}": "x" * 100 for i in range(200)}
    result = injecting(a_pod(annotations=many))
    assert len(result.problems) == 200
    assert sum(len(w.encode()) for w in result.warnings) <= 4096
    assert all(len(w) <= 256 for w in result.warnings)


def test_too_many_probes_for_one_argument() -> None:
    """Linux takes 128 KiB in an argument; the container would never start."""
    many = [
        container(f"c{i}", livenessProbe=probe(1000 + i, httpGet={"path": "/" + "x" * 900, "port": 1 + i}))
        for i in range(99)
    ]
    problems = injecting(a_pod(*many)).problems
    assert "next: remove some probes" in problems[0]


@pytest.mark.parametrize(
    ("pod", "field"),
    [
        ([], "pod"),
        ({}, "spec.containers"),
        ({"spec": {"containers": {}}}, "spec.containers"),
        ({"spec": {"containers": [1]}}, r"spec.containers\[0\]"),
        ({"spec": {"containers": [{}]}}, r"spec.containers\[0\].name"),
        ({"spec": {"containers": [{"name": "A b"}]}}, r"spec.containers\[0\].name"),
        ({"metadata": [], "spec": {"containers": []}}, "metadata"),
        ({"metadata": {"labels": {"a": 1}}, "spec": {"containers": []}}, r"metadata.labels\['a'\]"),
        (a_pod(annotations={"a": True}), r"metadata.annotations\['a'\]"),  # type: ignore[dict-item]  # on purpose
        (a_pod(initContainers="x"), "spec.initContainers"),
        (a_pod(imagePullSecrets=["x"]), r"spec.imagePullSecrets\[0\]"),
        (a_pod(terminationGracePeriodSeconds=True), "spec.terminationGracePeriodSeconds"),
        (a_pod(terminationGracePeriodSeconds=-1), "spec.terminationGracePeriodSeconds"),
        (a_pod(container(livenessProbe="x")), r"containers\[0\].livenessProbe"),
        (a_pod(container(livenessProbe={"httpGet": []})), r"livenessProbe.httpGet"),
        (a_pod(container(livenessProbe={"periodSeconds": "1"})), r"livenessProbe.periodSeconds"),
        (a_pod(container(livenessProbe={"httpGet": {"path": 1}})), r"httpGet.path"),
        (a_pod(container(livenessProbe={"httpGet": {"httpHeaders": [1]}})), r"httpHeaders\[0\]"),
        (a_pod(container(lifecycle={"preStop": 1})), r"lifecycle.preStop"),
        (a_pod(container(ports=[1])), r"ports\[0\]"),
        (a_pod(container(securityContext=1)), "securityContext"),
        (a_pod(*[container(f"c{i}") for i in range(251)]), "spec.containers"),
        ({"metadata": {"ownerReferences": [{"kind": "Job"}]}, "spec": {"containers": []}}, "ownerReferences"),
    ],
)
def test_what_is_no_pod_is_refused(pod: Any, field: str) -> None:
    with pytest.raises(PodError, match=f"{field}.*: expected .*, found ") as caught:
        injecting(pod)
    assert caught.value.code is PodCode.SHAPE
    with pytest.raises(PodError):
        uninject(pod)


def test_the_namespace_of_the_request_counts() -> None:
    pod = a_pod()
    pod["metadata"]["namespace"] = "kube-system"
    result = inject(
        pod,
        namespace="shop",
        namespace_labels=ENABLED,
        namespace_annotations={S + "logLevel": "debug"},
        config=InjectorSettings(),
        capabilities=NATIVE,
    )
    after = apply_patch(pod, result.patch)
    assert proxy_arguments(after)[-1] == "debug"


def test_mutations_are_told_in_words() -> None:
    result = injecting(a_pod(container(livenessProbe=probe())))
    assert "init container istio-init: capture rules" in result.mutations
    assert "native sidecar istio-proxy: gatehouse/proxy:0.1.0" in result.mutations
    assert "probe /app-health/web/livez" in result.mutations
    assert "container istio-proxy: gatehouse/proxy:0.1.0" in injecting(a_pod(), CLASSIC).mutations
