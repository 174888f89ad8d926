"""The webhook that judges policies: it sees all of them, and can lock nothing out."""

from __future__ import annotations

from typing import Any

import pytest

from injector.app import VALIDATE_PATH
from injector.core.policies import plural_of
from mesh.policy.model import API_VERSIONS, GROUP, KINDS
from mesh.policy.parse import DRY_RUN
from tests.charts.test_policy import VARIANTS
from tests.fakes.helm import Rendered, render


@pytest.fixture(scope="module", params=sorted(VARIANTS))
def chart(request: pytest.FixtureRequest) -> Rendered:
    return render(values=VARIANTS[request.param])


def _validator(chart: Rendered) -> dict[str, Any]:
    (entry,) = chart.one("ValidatingWebhookConfiguration", "gatehouse-policy-validator")["webhooks"]
    assert isinstance(entry, dict)
    return entry


def test_the_validator_looks_at_policies_and_can_lock_nothing_out(chart: Rendered) -> None:
    """Deletion and status are never asked about: a lost webhook prevents no repair."""
    webhook = chart.one("ValidatingWebhookConfiguration", "gatehouse-policy-validator")
    assert webhook["metadata"]["labels"]["app"] == "gatehouse"
    entry = _validator(chart)
    assert "caBundle" not in entry["clientConfig"]
    assert entry["clientConfig"]["service"] == {
        "name": "gatehouse-injector",
        "namespace": "istio-system",
        "path": VALIDATE_PATH,
        "port": 443,
    }
    (rule,) = entry["rules"]
    assert rule == {
        "operations": ["CREATE", "UPDATE"],
        "apiGroups": [GROUP],
        "apiVersions": [version.rpartition("/")[2] for version in API_VERSIONS],
        "resources": [plural_of(kind) for kind in KINDS],
        "scope": "Namespaced",
    }
    assert (entry["failurePolicy"], entry["matchPolicy"]) == ("Fail", "Equivalent")
    assert (entry["sideEffects"], entry["timeoutSeconds"]) == ("None", 5)
    assert entry["admissionReviewVersions"] == ["v1"]


def test_policies_of_every_namespace_are_judged(chart: Rendered) -> None:
    """Those of the release's own concern the whole mesh."""
    assert not {"namespaceSelector", "objectSelector"} & set(_validator(chart))


def test_a_change_of_metadata_does_not_wait_for_the_validator(chart: Rendered) -> None:
    """Where the API server can tell: neither for the finalizer of a broken policy, nor while it is away."""
    (condition,) = _validator(chart)["matchConditions"]
    dry_run = (
        "(has({0}.metadata.annotations) && '{1}' in {0}.metadata.annotations"
        " ? {0}.metadata.annotations['{1}'] : '')"
    )
    assert condition["expression"].split(" || ") == [
        "request.operation == 'CREATE'",
        "has(object.spec) != has(oldObject.spec)",
        "(has(object.spec) && object.spec != oldObject.spec)",
        " != ".join(dry_run.format(name, DRY_RUN) for name in ("object", "oldObject")),
    ]
    assert "matchConditions" not in _validator(render(kube="1.29.3"))


def test_the_validator_by_values() -> None:
    chart = render(values={"injector": {"policyWebhook": {"failurePolicy": "Ignore", "timeoutSeconds": 9}}})
    entry = _validator(chart)
    assert (entry["failurePolicy"], entry["timeoutSeconds"]) == ("Ignore", 9)
    without = render(values={"injector": {"policyWebhook": {"enabled": False}}})
    assert not without.all("ValidatingWebhookConfiguration")


@pytest.mark.parametrize("enabled", [True, False])
def test_upkeep_may_patch_the_configurations_that_are_rendered_and_no_other(enabled: bool) -> None:
    chart = render(values={"injector": {"policyWebhook": {"enabled": enabled}}})
    kinds = {
        "mutatingwebhookconfigurations": "MutatingWebhookConfiguration",
        "validatingwebhookconfigurations": "ValidatingWebhookConfiguration",
    }
    patched = {
        (kinds[resource], name)
        for item in chart.all("ClusterRole", "Role")
        for rule in item["rules"]
        if "patch" in rule["verbs"]
        for resource in set(rule.get("resources", ())) & set(kinds)
        for name in rule["resourceNames"]
    }
    rendered = {(item["kind"], item["metadata"]["name"]) for item in chart.all(*kinds.values())}
    assert patched == rendered
    assert len(rendered) == (2 if enabled else 1)
