"""The corpus: manifests of every kind, injected as native sidecar and as classic one (injector e.1).

Each case is really injected twice: the second time must change nothing. `reasons.txt` holds what its
author is told.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from injector.core.capture import PortRange
from injector.core.inject import Ceilings, ClusterFeatures, InjectorSettings, Result, inject, uninject
from injector.core.options import PodOptions
from injector.core.patch import apply_patch
from injector.core.workloads import Template, transform
from tests.fakes.golden import DIRECTORY
from tests.fakes.injector_pods import bootstrap_of, injected

CORPUS = DIRECTORY / "inject"
NAMES = sorted(path.parent.name for path in CORPUS.glob("*/input.yaml"))
MODES = {"native": ClusterFeatures(native_sidecars=True), "classic": ClusterFeatures(native_sidecars=False)}

SETTINGS: dict[str, InjectorSettings] = {
    "hello-always": InjectorSettings(image_pull_policy="Always"),
    "hello-image-secrets-in-values": InjectorSettings(image_pull_secrets=("registry", "mine")),
    "traffic-params": InjectorSettings(
        excluded_inbound_ports=(PortRange(9090, 9090),),
        excluded_outbound_ports=(PortRange(25, 25),),
        defaults=PodOptions(include_outbound_cidrs=("10.0.0.0/8",), concurrency=1),
    ),
    "ceilings": InjectorSettings(
        ceilings=Ceilings(cpu="1", memory="512Mi", image_prefixes=("registry.example/mesh/",)),
        defaults=PodOptions(proxy_cpu_limit="1", proxy_memory_limit="512Mi"),
    ),
}
for case in ("node-capture", "node-capture-refused"):
    SETTINGS[case] = InjectorSettings(node_capture=True)
LABELS = {"psa-baseline": "baseline", "psa-restricted-none": "restricted", "node-capture": "restricted"}


def documents(case: str) -> list[Any]:
    return list(yaml.safe_load_all((CORPUS / case / "input.yaml").read_text()))


def run(case: str, mode: str) -> tuple[list[Any], list[str]]:
    """Documents after injection and what is said about each template."""
    said: list[str] = []

    def change(template: Template) -> dict[str, Any]:
        result = once(case, mode, template.pod, template)
        kind = "" if template.kind == "Pod" else f"{template.kind} "
        said.append(
            f"{mode}: {kind}{template.name}: {result.decision.outcome.value} {result.decision.reason}"
        )
        said.extend(f"    {warning}" for warning in result.warnings)
        said.extend(f"    problem: {problem}" for problem in result.problems)
        after = apply_patch(template.pod, result.patch) if result.patch else template.pod
        again = once(case, mode, after, template)
        assert not again.patch, f"the second time must change nothing: {again.patch}"
        if result.patch:
            assert again.decision.reason in {"up_to_date", "pod_security"}
            assert _without_empty(uninject(after)) == _without_empty(template.pod)
        return after

    return [transform(document, change) for document in documents(case)], said


def once(case: str, mode: str, pod: dict[str, Any], template: Template) -> Result:
    labels = {"istio-injection": "enabled"}
    if case in LABELS:
        labels["pod-security.kubernetes.io/enforce"] = LABELS[case]
    return inject(
        pod,
        namespace=template.namespace or "shop",
        namespace_labels=labels,
        namespace_annotations={},
        config=SETTINGS.get(case, InjectorSettings()),
        capabilities=MODES[mode],
        workload="" if template.kind == "Pod" else template.name,
    )


def _without_empty(pod: dict[str, Any]) -> dict[str, Any]:
    """Null labels and annotations are gone after the way there and back; they mean nothing."""
    metadata = {k: v for k, v in pod.get("metadata", {}).items() if v is not None}
    spec = {k: v for k, v in pod["spec"].items() if k not in _NULLABLE or v}
    return {**pod, "metadata": metadata, "spec": spec}


_NULLABLE = ("initContainers", "volumes", "imagePullSecrets")


def readable(value: Any) -> Any:
    """Long arguments as data, and of the bootstrap only what differs between pods."""
    if isinstance(value, dict):
        return {key: readable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [readable(item) for item in value]
    if isinstance(value, str) and value.startswith('{"admin"'):
        return _summary(json.loads(value))
    if isinstance(value, str) and value.startswith('{"annotations"'):
        return {"json": {k: v for k, v in json.loads(value).items() if k != "digest"}}
    return value


def _summary(bootstrap: dict[str, Any]) -> dict[str, Any]:
    static = bootstrap["static_resources"]
    manager = static["listeners"][-1]["filter_chains"][0]["filters"][0]["typed_config"]
    checks = [f["typed_config"] for f in manager["http_filters"] if f["name"].endswith("health_check")]
    return {
        "routes": {
            route["name"]: route.get("route", {}).get("prefix_rewrite", "(answered here)")
            for route in manager["route_config"]["virtual_hosts"][0].get("routes", [])
        },
        "checks": [check["headers"][0]["string_match"]["exact"] for check in checks],
        "clusters": [c["name"] for c in static["clusters"]],
        "node": bootstrap["node"],
    }


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", NAMES)
def test_golden_corpus(case: str, mode: str, golden: Callable[[str, Any], None]) -> None:
    output, said = run(case, mode)
    unchanged = output == documents(case)
    golden(f"inject/{case}/{mode}.yaml", "unchanged" if unchanged else readable(output))
    golden(f"inject/{case}/reasons-{mode}.txt", "\n".join(said) + "\n")


def test_golden_bootstrap(golden: Callable[[str, Any], None]) -> None:
    """The whole of one bootstrap, so that a change of it is read by a person."""
    pod = yaml.safe_load((CORPUS / "startup_ready_live" / "input.yaml").read_text())["spec"]["template"]
    golden("inject/bootstrap.json", bootstrap_of(injected(pod, MODES["classic"])))


def test_the_corpus_is_whole() -> None:
    """Every case has both outputs and no output is left over from a case that is gone."""
    expected = {"input.yaml", "native.yaml", "classic.yaml", "reasons-native.txt", "reasons-classic.txt"}
    for directory in CORPUS.iterdir():
        if directory.is_dir():
            assert {path.name for path in directory.iterdir()} == expected, directory.name
    assert set(SETTINGS) | set(LABELS) <= set(NAMES)
    assert len(NAMES) > 70
