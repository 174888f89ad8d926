"""The chart with Helm 4: it renders the same objects as with Helm 3.10, and refuses the same values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.charts.test_golden_chart import PRODUCTION
from tests.charts.test_values_schema import PROFILES, REFUSED
from tests.fakes.helm import CHART, HelmError, helm, render
from tests.fakes.helm4 import VERSION, helm4_path, why_not_here

pytestmark = pytest.mark.skipif(bool(why_not_here()), reason=why_not_here())


def helm4(*words: str) -> str:
    return helm(*words, program=helm4_path())


def template(directory: Path, values: dict[str, Any], kube: str) -> str:
    file = directory / "values.json"
    file.write_text(json.dumps(values))
    place = ("--namespace=istio-system", f"--kube-version={kube}", "--skip-tests")
    return helm4("template", "gatehouse", str(CHART), *place, f"--values={file}")


def test_it_is_the_version_that_is_said() -> None:
    assert VERSION in helm4("version", "--short")


@pytest.mark.parametrize("profile", PROFILES)
def test_lint(profile: str) -> None:
    values = [f"--values={CHART / profile}"] if profile else []
    output = helm4("lint", "--strict", str(CHART), "--namespace=istio-system", *values)
    assert "0 chart(s) failed" in output
    for level in ("[INFO]", "[WARNING]", "[ERROR]"):
        assert level not in output


@pytest.mark.parametrize("kube", ["1.20.2", "1.32.0"])
@pytest.mark.parametrize("values", [{}, PRODUCTION], ids=["defaults", "production"])
def test_the_release_is_the_same_as_with_helm_3(tmp_path: Path, values: dict[str, Any], kube: str) -> None:
    """In another order: Helm 4 sorts kinds anew."""
    text = template(tmp_path, values, kube)
    found = [item for item in yaml.safe_load_all(text) if item]
    assert sorted(found, key=_name) == sorted(render(values=values, kube=kube).objects, key=_name)
    assert template(tmp_path, values, kube) == text


def _name(item: dict[str, Any]) -> tuple[str, str, str]:
    metadata = item["metadata"]
    return item["kind"], metadata.get("namespace", ""), metadata["name"]


# What Helm 4 says of the rows of REFUSED, after `at 'PLACE': `.
SAID = {
    "top": ("", "additional properties 'replica' not allowed"),
    "nested": ("/image/control", "additional properties 'tag' not allowed"),
    "deep": ("/injector/webhook", "additional properties 'timeout' not allowed"),
    "setting-typo": ("/ca/config/issue", "additional properties 'default_lifetme' not allowed"),
    "setting-kept": ("/ca/config", "additional properties 'state_dir' not allowed"),
    "setting-range": ("/injector/config/workers", "maximum: got 99, want 16"),
    "setting-choice": ("/ca/config/issue/excess", "value must be one of 'refuse', 'cap'"),
    "duration": ("/ca/config/issue/backdate", "'2 minutes' does not match pattern"),
    "type": ("/ca/replicas", "got string, want integer"),
    "zero": ("/injector/replicas", "minimum: got 0, want 1"),
    "choice": ("/log/level", "value must be one of 'debug', 'info', 'warning', 'error'"),
    "digest": ("/image/proxy/digest", "'sha256:abc' does not match pattern"),
    "tag": ("/image/tag", "'a b' does not match pattern"),
    "trust-domain": ("/trustDomain", "'Cluster.Local' does not match pattern"),
    "path": ("/nodeagent/kubeletDir", "'var/lib' does not match pattern"),
    "webhook-seconds": ("/injector/webhook/timeoutSeconds", "maximum: got 31, want 30"),
    "scale-zero": ("/ca/autoscaling/minReplicas", "minimum: got 0, want 1"),
    "scale-typo": ("/ca/autoscaling", "additional properties 'targetCpu' not allowed"),
    "global": ("/global/imagePullSecrets/0", "missing property 'name'"),
    "root": ("/podSecurity/runAsUser", "minimum: got 0, want 1"),
    "extra-object": ("/extraObjects/0", "missing properties 'apiVersion', 'metadata'"),
    "extra-number": ("/extraObjects/0", "got number, want string or object"),
    "quantity": ("/ca/resources/limits/memory", "'lots' does not match pattern"),
}


def test_every_refusal_of_helm_3_is_asked_of_helm_4() -> None:
    assert list(SAID) == [row[0] for row in REFUSED]


@pytest.mark.parametrize(("name", "values"), [row[:2] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_bad_values_are_refused_with_field_and_reason(
    tmp_path: Path, name: str, values: dict[str, Any]
) -> None:
    place, reason = SAID[name]
    with pytest.raises(HelmError) as refused:
        template(tmp_path, values, "1.32.0")
    assert f"- at '{place}': {reason}" in str(refused.value)


def test_old_clusters_and_what_they_cannot_do_are_refused(tmp_path: Path) -> None:
    with pytest.raises(HelmError, match="incompatible with Kubernetes"):
        template(tmp_path, {}, "1.19.0")
    with pytest.raises(HelmError, match=r"needs Kubernetes 1\.21.*istio-injection=enabled"):
        template(tmp_path, {"injector": {"namespacesByDefault": True}}, "1.20.2")


def test_notes_are_shown() -> None:
    """Helm 4 shows them without a cluster, with `--dry-run=client`."""
    words = ("--namespace=istio-system", "--dry-run=client", "--set=injector.policyWebhook.enabled=false")
    _, _, notes = helm4("install", "gatehouse", str(CHART), *words).partition("NOTES:")
    assert "WARNING" in notes
    assert "policies that cannot be enforced are stored" in " ".join(notes.split())
    assert "image.registry is empty" in notes
