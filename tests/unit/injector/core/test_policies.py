"""The judgement of a policy: admission, condition and node agents can never disagree."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from injector.core.policies import (
    MAX_MESSAGE,
    PolicyDecision,
    PolicyReason,
    condition,
    decide_policy,
    judge,
    reason_word,
)
from mesh.policy.codes import PolicyCode
from mesh.policy.model import KINDS
from nodeagent.core.kube_objects import read_policy
from tests.fakes.policy_reviews import GOOD_SPECS, Object, stored, when

DRY_RUN = "istio.io/dry-run"
AUTHZ = "AuthorizationPolicy"


def decide(new: Object, old: Object | None = None) -> PolicyDecision:
    return decide_policy(new, old, new["kind"])


@pytest.mark.parametrize("version", ["v1", "v1beta1"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_good_policy_is_allowed_without_a_word(kind: str, version: str) -> None:
    found = decide(stored(kind, version=version))
    assert (found.allowed, found.reason) == (True, PolicyReason.ACCEPTED)
    assert (found.problems, found.warnings) == ((), ())


@pytest.mark.parametrize(
    ("kind", "spec", "code", "field", "text"),
    [
        (AUTHZ, when("request.header[x]"), PolicyCode.BAD_CONDITION_KEY, "[0].when[0].key", "did you mean"),
        (
            AUTHZ,
            when("request.headers"),
            PolicyCode.BAD_CONDITION_KEY,
            "[0].when[0].key",
            "did you mean 'request.headers[name]'",
        ),
        (
            AUTHZ,
            {"rules": [{"to": [{"operation": {"method": ["GET"]}}]}]},
            PolicyCode.UNKNOWN_FIELD,
            "spec.rules[0].to[0].operation.method",
            "did you mean 'methods'",
        ),
        (AUTHZ, {"action": "DENY"}, PolicyCode.NEEDS_RULES, "spec", "rules: [{}]"),
        (
            "PeerAuthentication",
            {"mtls": {"mode": "strict"}},
            PolicyCode.BAD_VALUE,
            "spec.mtls.mode",
            "did you mean 'STRICT'",
        ),
        (
            "RequestAuthentication",
            {"jwtRules": [{"audiences": ["a"]}]},
            PolicyCode.MISSING,
            "spec.jwtRules[0]",
            "issuer is missing",
        ),
    ],
)
def test_a_broken_policy_is_denied_with_code_field_and_advice(
    kind: str, spec: Any, code: PolicyCode, field: str, text: str
) -> None:
    found = decide(stored(kind, spec))
    assert (found.allowed, found.reason) == (False, code)
    assert f"{kind} shop/probe cannot be enforced as it is written, 1 problem; nothing was stored" in (
        found.message
    )
    assert "next: correct" in found.message
    (problem,) = found.problems
    assert field in problem
    assert text in problem
    assert problem.endswith(f"[{code}]")


def test_every_problem_is_told_at_once() -> None:
    spec = when("request.headers", "source.nonsense") | {"action": "SOMETIMES"}
    found = decide(stored(AUTHZ, spec))
    assert [problem.partition(":")[0] for problem in found.problems] == [
        "spec.action",
        "spec.rules[0].when[0].key",
        "spec.rules[0].when[1].key",
    ]
    assert "3 problems" in found.message


def test_remarks_are_warnings_and_refuse_nothing() -> None:
    found = decide(stored(AUTHZ, {"rules": [{"to": [{"operation": {"methods": ["get"]}}]}]}))
    assert (found.allowed, found.reason) == (True, PolicyReason.ACCEPTED)
    (warning,) = found.warnings
    assert warning.startswith("spec.rules[0].to[0].operation.methods[0]: ")
    assert warning.endswith(f"[{PolicyCode.NEVER_MATCHES}]")


# --- updates ---


@pytest.mark.parametrize(
    "metadata",
    [
        {"labels": {"a": "b"}},
        {"annotations": {"note": "x"}},
        {"finalizers": []},
        {"deletionTimestamp": "2026-06-02T12:00:00Z", "finalizers": []},
        {"ownerReferences": [{"kind": "X", "name": "y"}]},
        {"resourceVersion": "7", "managedFields": []},
    ],
    ids=lambda meta: next(iter(meta)),
)
def test_an_update_of_metadata_is_never_refused(metadata: Object) -> None:
    """A broken object from before the webhook: labels, finalizers and owners stay everybody's to change."""
    broken = when("request.headers")
    found = decide(stored(AUTHZ, broken, **metadata), stored(AUTHZ, broken, finalizers=["x/y"]))
    assert (found.allowed, found.reason) == (True, PolicyReason.UNCHANGED)
    (warning,) = found.warnings
    assert warning.startswith("not in force: spec.rules[0].when[0].key: ")


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=30)
@given(spec=st.dictionaries(st.text(max_size=5), st.integers() | st.none() | st.lists(st.text(), max_size=2)))
def test_whatever_is_stored_an_update_that_leaves_it_so_is_allowed(kind: str, spec: Any) -> None:
    assert decide(stored(kind, copy.deepcopy(spec), labels={"a": "b"}), stored(kind, spec)).allowed


def test_a_spec_too_deep_to_compare_is_compared_by_its_errors() -> None:
    def deep() -> Any:
        value: Any = []
        for _ in range(100_000):
            value = [value]
        return value

    found = decide(stored(AUTHZ, {"nested": deep()}), stored(AUTHZ, {"nested": deep()}))
    assert (found.allowed, found.reason) == (True, PolicyReason.NO_WORSE)


def test_mistakes_may_be_repaired_one_by_one() -> None:
    old, new = (stored(AUTHZ, when(*keys)) for keys in (("bad", "worse"), ("bad", "source.ip")))
    new["spec"]["rules"][0]["when"][1]["values"] = ["10.0.0.1"]
    found = decide(new, old)
    assert (found.allowed, found.reason) == (True, PolicyReason.NO_WORSE)
    assert found.warnings[0].startswith("not in force: spec.rules[0].when[0].key: ")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (when("bad"), when("worse")),
        (when("bad"), when("bad", "worse")),
        (when("source.namespace"), when("bad")),
    ],
    ids=["another", "one-more", "was-good"],
)
def test_a_new_mistake_is_refused_whatever_was_there_before(old: Object, new: Object) -> None:
    found = decide(stored(AUTHZ, new), stored(AUTHZ, old))
    assert (found.allowed, found.reason) == (False, PolicyCode.BAD_CONDITION_KEY)


def test_a_repair_is_allowed_and_needs_no_word() -> None:
    found = decide(stored(AUTHZ), stored(AUTHZ, when("bad")))
    assert (found.allowed, found.reason, found.warnings) == (True, PolicyReason.ACCEPTED, ())


def test_the_dry_run_annotation_counts_as_a_part_of_the_policy() -> None:
    """It is metadata, and decides whether the object is in force."""
    old = stored("PeerAuthentication")
    found = decide(stored("PeerAuthentication", annotations={DRY_RUN: "true"}), old)
    assert (found.allowed, found.reason) == (False, PolicyCode.UNSUPPORTED)
    assert "metadata.annotations" in found.problems[0]
    assert decide(stored(AUTHZ, annotations={DRY_RUN: "true"}), stored(AUTHZ)).allowed


# --- one judgement ---


def paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(path for key, inner in items for path in paths(inner, (*at, key)))]


_ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 70_000)
    | st.sampled_from(["", "*", "STRICT", "ALLOW", "request.headers", "source.ip", "10.0.0.1/8", "\x00"])
    | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=6), inner, max_size=2),
    max_leaves=4,
)
_PLACES = [(kind, path) for kind in KINDS for path in paths(GOOD_SPECS[kind]) if path]


@settings(max_examples=500)
@given(st.sampled_from(_PLACES), _ANYTHING)
def test_webhook_condition_and_agent_agree_on_any_object(place: tuple[str, Any], value: Any) -> None:
    """One field of a good policy is replaced by anything."""
    kind, path = place
    item = copy.deepcopy(stored(kind))
    at: Any = item["spec"]
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    record = read_policy(item, kind=kind, version="v1")
    found = decide(item)
    assert found.allowed == (record.policy is not None)
    assert condition(judge(item, kind), 1).status == ("True" if found.allowed else "False")
    assert len(found.problems) + len(found.warnings) == len(record.findings)


# --- the condition ---


def test_the_condition_of_a_good_policy() -> None:
    found = condition(judge(stored(AUTHZ), AUTHZ), 4)
    assert (found.status, found.reason, found.generation) == ("True", "Accepted", 4)


def test_the_condition_of_a_refused_policy_has_its_code_and_every_problem() -> None:
    found = condition(judge(stored(AUTHZ, when("bad", "worse")), AUTHZ), 2)
    assert (found.status, found.reason) == ("False", "PolicyBadConditionKey")
    first, *lines = found.message.splitlines()
    assert first.startswith("not in force; ")
    assert [line.partition(":")[0] for line in lines] == [
        "spec.rules[0].when[0].key",
        "spec.rules[0].when[1].key",
    ]
    assert all(line.endswith("[policy_bad_condition_key]") for line in lines)


def test_the_condition_of_a_policy_with_remarks() -> None:
    rule = {"to": [{"operation": {"methods": ["get"]}}]}
    found = condition(judge(stored(AUTHZ, {"rules": [rule]}), AUTHZ), 1)
    assert (found.status, found.reason) == ("True", "AcceptedWithRemarks")
    assert "[policy_never_matches]" in found.message


def test_a_message_is_bounded_and_says_what_is_left_out() -> None:
    found = condition(judge(stored(AUTHZ, when(*(f"bad{n}" for n in range(90)))), AUTHZ), 1)
    assert len(found.message) <= MAX_MESSAGE
    told = found.message.count("\n") - 1
    assert found.message.endswith(f"\nand {90 - told} more")


@pytest.mark.parametrize("code", list(PolicyCode))
def test_reasons_are_words_that_kubernetes_accepts(code: PolicyCode) -> None:
    """metav1.Condition: begins with a letter, letters and digits."""
    word = reason_word(code)
    assert word.isalnum()
    assert word.startswith("Policy")
