"""One admission of a policy without a transport: what is looked at, the response, what is counted."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from injector.metrics import WebhookMetrics
from injector.policy_admission import PolicyAdmission
from injector.review import MAX_AUDIT, MAX_MESSAGE, MAX_WARNING, ReviewCode, ReviewError
from tests.fakes import injector_reviews as pods
from tests.fakes.policy_reviews import body, review, stored, when

AUTHZ = "AuthorizationPolicy"
BROKEN = stored(AUTHZ, when("request.headers"))


def admission() -> PolicyAdmission:
    return PolicyAdmission(WebhookMetrics(CollectorRegistry()))


def respond(item: Any, old: Any = None, **changes: Any) -> dict[str, Any]:
    answer = admission().answer(body(item, old, **changes), started=time.monotonic())
    found: dict[str, Any] = json.loads(answer.body)["response"]
    assert found["uid"] == review(item)["request"]["uid"]
    return found


def test_a_good_policy() -> None:
    found = respond(stored(AUTHZ))
    assert found["allowed"] is True
    assert found["auditAnnotations"]["reason"] == "policy_accepted"
    assert not {"patch", "patchType", "warnings", "status"} & set(found)


def test_a_broken_policy() -> None:
    found = respond(BROKEN)
    assert found["allowed"] is False
    status = found["status"]
    assert (status["code"], status["reason"]) == (400, "BadRequest"), "kubectl shows the message of it, whole"
    first, second = status["message"].splitlines()
    assert first.startswith("policy_bad_condition_key: AuthorizationPolicy shop/probe ")
    assert second.startswith("- spec.rules[0].when[0].key: found ")
    audit = found["auditAnnotations"]
    assert audit["reason"] == "policy_bad_condition_key"
    assert audit["problems"].startswith("spec.rules[0].when[0].key: ")


def test_remarks_become_warnings_that_arrive_whole() -> None:
    rule = {"to": [{"operation": {"methods": ["get"]}}]}
    found = respond(stored(AUTHZ, {"rules": [rule]}))
    assert found["allowed"] is True
    assert all(len(line) <= MAX_WARNING for line in found["warnings"])
    assert "[policy_never_matches]" in " ".join(line.strip() for line in found["warnings"])


def test_an_update_of_metadata_of_a_broken_policy() -> None:
    found = respond(stored(AUTHZ, BROKEN["spec"], labels={"a": "b"}), BROKEN)
    assert found["allowed"] is True
    assert found["auditAnnotations"]["reason"] == "policy_unchanged"
    assert found["warnings"][0].startswith("not in force: ")


@pytest.mark.parametrize(
    ("item", "changes"),
    [
        pytest.param(None, {"operation": "DELETE", "oldObject": BROKEN}, id="delete"),
        pytest.param(BROKEN, {"operation": "CONNECT"}, id="connect"),
        pytest.param(BROKEN, {"subResource": "status", "operation": "UPDATE"}, id="status"),
        pytest.param(
            BROKEN, {"kind": {"group": "example.com", "version": "v1", "kind": AUTHZ}}, id="other-group"
        ),
        pytest.param(
            BROKEN, {"kind": {"group": "security.istio.io", "version": "v2", "kind": AUTHZ}}, id="version"
        ),
        pytest.param(
            BROKEN, {"kind": {"group": "security.istio.io", "version": "v1", "kind": "X"}}, id="other-kind"
        ),
        pytest.param(BROKEN, {"kind": {"kind": ["X"]}}, id="no-kind"),
    ],
)
def test_what_is_not_looked_at_is_allowed(item: Any, changes: dict[str, Any]) -> None:
    found = respond(item, **changes)
    assert found["allowed"] is True
    assert found["auditAnnotations"] == {"reason": "not_applicable"}


@pytest.mark.parametrize("item", [None, [], "x", 1])
def test_an_object_that_is_none_is_denied(item: Any) -> None:
    found = respond(item)
    assert (found["allowed"], found["status"]["code"]) == (False, 400)
    assert found["auditAnnotations"]["reason"] == "review_bad_policy"


@pytest.mark.parametrize("spec", [None, [], "x", {"rules": {"a": 1}}, {"rules": [None]}])
def test_objects_of_any_shape_get_a_denial_that_names_a_field(spec: Any) -> None:
    found = respond({**BROKEN, "spec": spec})
    assert found["allowed"] is False
    assert "- spec" in found["status"]["message"]


def test_an_object_that_contradicts_its_request_is_denied() -> None:
    found = respond({**stored(AUTHZ), "apiVersion": "v1"}, kind=review(stored(AUTHZ))["request"]["kind"])
    assert found["auditAnnotations"]["reason"] == "policy_unknown_kind"


@pytest.mark.parametrize(
    "metadata",
    [{"name": "probe"}, {"generateName": "probe-"}, {}],
    ids=["no-namespace", "generated", "of-the-request"],
)
def test_names_that_the_api_server_fills_in_later_are_no_mistake(metadata: dict[str, str]) -> None:
    assert respond({**stored(AUTHZ), "metadata": metadata})["allowed"] is True


def test_a_flood_of_problems_is_bounded() -> None:
    found = respond(stored(AUTHZ, when(*("bad" + "x" * 400 for _ in range(90)))))
    assert len(found["status"]["message"]) <= MAX_MESSAGE + 40
    assert " more" in found["status"]["message"].splitlines()[-1]
    assert all(len(text) <= MAX_AUDIT for text in found["auditAnnotations"].values())


def test_control_characters_of_an_author_reach_no_terminal() -> None:
    found = respond(stored(AUTHZ, {"rules": [{"\x1b[2J": 1}]}))
    text = found["status"]["message"] + found["auditAnnotations"]["problems"]
    assert text.replace("\n", "").isprintable()


def test_a_dry_run_gets_the_same_answer() -> None:
    assert respond(BROKEN, dryRun=True) == respond(BROKEN)


def test_everything_is_counted_apart_from_pods() -> None:
    subject = admission()
    for item in (stored(AUTHZ), BROKEN, BROKEN):
        subject.answer(body(item, dryRun=item is not BROKEN), started=time.monotonic())
    subject.answer(pods.body(), started=time.monotonic())
    subject.refused(ReviewError(ReviewCode.CUT, 400, "cut off"), time.monotonic())
    sample = subject.counts.answers
    assert {
        tuple(found.labels.values()): found.value
        for metric in sample.collect()
        for found in metric.samples
        if found.name == "gatehouse_injector_policy_admissions_total"
    } == {
        ("allowed", "policy_accepted"): 1,
        ("denied", "policy_bad_condition_key"): 2,
        ("allowed", "not_applicable"): 1,
        ("failed", "review_cut"): 1,
    }
    registry = subject._metrics.registry
    assert registry.get_sample_value("gatehouse_injector_policy_admission_duration_seconds_count") == 5
    assert registry.get_sample_value("gatehouse_injector_dry_runs_total") == 1
    assert registry.get_sample_value("gatehouse_injector_admission_duration_seconds_count") == 0


def test_what_nobody_waits_for_is_not_worked_on() -> None:
    with pytest.raises(ReviewError, match="time-out") as caught:
        admission().answer(body(BROKEN), started=0.0, deadline=time.monotonic() - 1)
    assert caught.value.code is ReviewCode.LATE


def test_failures_are_counted_from_0_on() -> None:
    """A series that begins with 1 has no increase, and an alert on increases would miss it."""
    metrics = WebhookMetrics(CollectorRegistry())
    PolicyAdmission(metrics).begin()
    (family,) = metrics.policies.collect()
    shown = {tuple(s.labels.values()): s.value for s in family.samples if s.name.endswith("_total")}
    assert shown[("failed", "review_late")] == 0
    assert ("failed", "review_bad_policy") not in shown, "that is a denial"
    assert set(shown.values()) == {0}
