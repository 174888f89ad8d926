"""The schema of the values: it is made from the processes' own settings, and refuses what they would."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml

from tests.charts.chart_docs import values_table
from tests.charts.chart_schema import CLASSES, OWN, SCHEMA_FILE, settings_paths, values_schema
from tests.fakes.golden import semantic_diff
from tests.fakes.helm import CHART, HelmError, helm, render


def test_the_schema_is_the_golden_one_of_the_settings() -> None:
    written = json.loads(SCHEMA_FILE.read_text())
    difference = semantic_diff(written, values_schema(), name=SCHEMA_FILE.name)
    assert not difference, f"{difference}\nsettings changed; if this is right: make golden"


@pytest.mark.parametrize("component", sorted(OWN))
def test_the_settings_that_the_chart_keeps_to_itself_exist(component: str) -> None:
    assert OWN[component] <= set(settings_paths(CLASSES[component]))


def _defaults() -> dict[str, Any]:
    loaded = yaml.safe_load((CHART / "values.yaml").read_text())
    assert isinstance(loaded, dict)
    return loaded


def _pairs(values: Any, schema: Any, path: str) -> list[str]:
    """Where values.yaml and the schema differ."""
    if not (isinstance(values, dict) and "properties" in schema):
        return []
    known = set(schema["properties"])
    wrong = [f"{path}{key}" for key in known ^ set(values)]
    return wrong + [
        problem
        for key in known & set(values)
        if key != "config"
        for problem in _pairs(values[key], schema["properties"][key], f"{path}{key}.")
    ]


def test_values_yaml_shows_every_key_of_the_schema_and_no_other() -> None:
    free = (".requests", ".limits", ".seLinuxOptions.")
    wrong = _pairs(_defaults(), values_schema(), "")
    assert [path for path in wrong if not any(part in path for part in free)] == []


def _objects(schema: Any, path: str = "$") -> list[tuple[str, Any]]:
    found = [(path, schema)] if isinstance(schema, dict) and "properties" in schema else []
    for key, value in schema.items() if isinstance(schema, dict) else ():
        found += _objects(value, f"{path}.{key}")
    return found


def test_no_fixed_object_of_the_schema_is_open() -> None:
    objects = _objects(json.loads(SCHEMA_FILE.read_text()))
    assert len(objects) > 40
    open_ = [path for path, schema in objects if schema.get("additionalProperties") is not False]
    assert open_ == ["$.properties.global"]  # keys of other charts, from a parent


def test_every_key_of_values_yaml_has_a_comment() -> None:
    lines = (CHART / "values.yaml").read_text().splitlines()
    bare = []
    for number, line in enumerate(lines):
        key = line.strip()
        if not key or key.startswith(("#", "-")) or key.endswith(":"):
            continue
        name = key.partition(":")[0]
        if name in {"requests", "limits", "kubernetes.io/os"}:
            continue
        if not lines[number - 1].strip().startswith("#"):
            bare.append(f"{number + 1}: {key}")
    assert bare == []


def test_a_path_for_set_is_three_keys_at_most() -> None:
    keys = re.findall(r"^\| `([A-Za-z.]+)` \|", values_table(), re.MULTILINE)
    assert len(keys) > 100
    assert [key for key in keys if key.count(".") > 2] == []


REFUSED = [
    ("top", {"replica": 2}, "Additional property replica is not allowed"),
    ("nested", {"image": {"control": {"tag": "1"}}}, "image.control: Additional property tag is not allowed"),
    ("deep", {"injector": {"webhook": {"timeout": 3}}}, "injector.webhook: Additional property timeout"),
    ("setting-typo", {"ca": {"config": {"issue": {"default_lifetme": "12h"}}}}, "issue: Additional property"),
    ("setting-kept", {"ca": {"config": {"state_dir": "/x"}}}, "ca.config: Additional property state_dir"),
    ("setting-range", {"injector": {"config": {"workers": 99}}}, "injector.config.workers: Must be"),
    ("setting-choice", {"ca": {"config": {"issue": {"excess": "raise"}}}}, "ca.config.issue.excess"),
    ("duration", {"ca": {"config": {"issue": {"backdate": "2 minutes"}}}}, "backdate: Does not match"),
    ("type", {"ca": {"replicas": "2"}}, "ca.replicas: Invalid type. Expected: integer, given: string"),
    ("zero", {"injector": {"replicas": 0}}, "injector.replicas: Must be greater than or equal to 1"),
    ("choice", {"log": {"level": "loud"}}, "log.level must be one of the following"),
    ("digest", {"image": {"proxy": {"digest": "sha256:abc"}}}, "image.proxy.digest: Does not match pattern"),
    ("tag", {"image": {"tag": "a b"}}, "image.tag: Does not match pattern"),
    ("trust-domain", {"trustDomain": "Cluster.Local"}, "trustDomain: Does not match pattern"),
    ("path", {"nodeagent": {"kubeletDir": "var/lib"}}, "nodeagent.kubeletDir: Does not match pattern"),
    ("webhook-seconds", {"injector": {"webhook": {"timeoutSeconds": 31}}}, "timeoutSeconds: Must be"),
    ("scale-zero", {"ca": {"autoscaling": {"minReplicas": 0}}}, "ca.autoscaling.minReplicas: Must be"),
    ("scale-typo", {"ca": {"autoscaling": {"targetCpu": 50}}}, "Additional property targetCpu"),
    ("global", {"global": {"imagePullSecrets": [{"nam": "a"}]}}, "imagePullSecrets.0: name is required"),
    ("root", {"podSecurity": {"runAsUser": 0}}, "podSecurity.runAsUser: Must be greater than or equal to 1"),
    ("extra-object", {"extraObjects": [{"kind": "ConfigMap"}]}, "extraObjects.0: apiVersion is required"),
    ("extra-number", {"extraObjects": [1]}, "extraObjects.0: Invalid type"),
    ("quantity", {"ca": {"resources": {"limits": {"memory": "lots"}}}}, "ca.resources.limits.memory"),
]  # fmt: skip


@pytest.mark.parametrize(("values", "message"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_bad_values_are_refused_with_the_field(values: dict[str, Any], message: str) -> None:
    with pytest.raises(HelmError) as refused:
        render(values=values)
    assert message in str(refused.value)


def test_namespaces_by_default_needs_names_of_namespaces() -> None:
    with pytest.raises(HelmError, match=r"needs Kubernetes 1\.21.*istio-injection=enabled"):
        render(values={"injector": {"namespacesByDefault": True}}, kube="1.20.2")


@pytest.mark.parametrize("component", ["ca", "injector"])
def test_fewest_replicas_above_most_are_refused(component: str) -> None:
    scaling = {"enabled": True, "minReplicas": 5, "maxReplicas": 4}
    with pytest.raises(HelmError) as refused:
        render(values={component: {"autoscaling": scaling}})
    wanted = f"{component}.autoscaling.minReplicas is 5 and {component}.autoscaling.maxReplicas is 4"
    assert wanted in str(refused.value)
    assert render(values={component: {"autoscaling": {**scaling, "enabled": False}}})


def test_too_old_clusters_are_refused() -> None:
    with pytest.raises(HelmError, match="incompatible with Kubernetes"):
        render(kube="1.19.0")


PROFILES = ("", *sorted(path.name for path in CHART.glob("values-*.yaml")))


@pytest.mark.parametrize("profile", PROFILES)
def test_helm_lint(profile: str) -> None:
    values = [f"--values={CHART / profile}"] if profile else []
    output = helm("lint", "--strict", str(CHART), "--namespace=istio-system", *values)
    assert "0 chart(s) failed" in output
    for level in ("[INFO]", "[WARNING]", "[ERROR]"):
        assert level not in output


def test_the_profiles_are_the_documented_ones() -> None:
    assert PROFILES == ("", "values-ha.yaml", "values-minimal.yaml", "values-openshift.yaml")
    readme = (CHART / "README.md").read_text()
    assert all(profile in readme for profile in PROFILES)
