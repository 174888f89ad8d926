"""The definitions of the policy kinds, put to the code of a real and new API server.

What it showed with Kubernetes 1.36.4, also as 1.25, 1.30 and 1.33: the definitions are accepted; the dearest
rule is estimated at a fifth of what one may cost; the largest objects keep within the budget; and a server
that behaves as 1.29 refuses to write the condition of an object that was stored broken, where 1.30 writes it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mesh.policy.effective import Severity
from mesh.policy.model import AUTHORIZATION_POLICY, KINDS
from mesh.policy.parse import parse_policy
from mesh.policy.parse_authz import MAX_ITEMS, MAX_RULES, MAX_VALUES
from mesh.policy.rules import PORTS_NEED_SELECTOR, RULES, Rule
from tests.fakes import crd_server
from tests.fakes.crd_rules import MISTAKES, NO_MISTAKES, corpus, definitions, every_case, specs
from tests.fakes.crd_server import Answers, NotHereError, Question
from tests.fakes.policy_objects import policy_object

pytestmark = [pytest.mark.timeout(1500), pytest.mark.xdist_group("crd-server"), pytest.mark.slow]

MOST_OF_A_RULE, MOST_OF_A_VERSION = 10_000_000, 100_000_000
"""What a server allows as estimated cost (k8s.io/apiextensions-apiserver, apis/apiextensions/validation)."""
SPARE = 4
"""Estimates are not alike in all versions: none comes nearer to a limit than this part of it."""


@pytest.fixture(scope="module", autouse=True)
def _server() -> None:
    try:
        crd_server.binary()
    except NotHereError as error:
        pytest.skip(str(error))


def ask(*questions: Question, version: str = "") -> Answers:
    found = crd_server.ask(list(definitions().values()), questions, version=version)
    assert found.definitions == [[]] * len(KINDS)
    return found


def refusals(errors: list[str]) -> set[Rule]:
    """The rules that are named; other errors are of the schema."""
    return {rule for rule in RULES if any(rule.message in error for error in errors)}


@pytest.mark.parametrize("version", ["1.25", "1.30", "1.33", ""])
def test_a_server_takes_the_definitions_and_knows_what_the_rules_cost(version: str) -> None:
    found = ask(version=version)
    assert float(found.server) >= 1.36
    for costs, kind in zip(found.costs, definitions(), strict=True):
        wanted = sum(kind == of for rule in RULES for of, _ in rule.places)
        for served in ("v1", "v1beta1"):
            mine = [cost for name, cost in costs.items() if name.startswith(f"{served}.")]
            assert len(mine) == wanted
            assert max(mine) * SPARE <= MOST_OF_A_RULE
            assert sum(mine) * SPARE <= MOST_OF_A_VERSION


def test_a_server_takes_the_definitions_without_rules() -> None:
    old = list(definitions("1.29.0").values())
    found = crd_server.ask(old)
    assert (found.definitions, found.costs) == ([[]] * len(KINDS), [{}] * len(KINDS))


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("has(self.noSuchField)", "undefined field 'noSuchField'"),
        ("self.rules.all(a, self.rules.all(b, self.rules.all(c, a == b || b == c)))", "cost exceeds"),
        ("oldSelf.hasValue()", "no matching overload"),
    ],
)
def test_the_server_would_refuse_a_bad_rule(expression: str, reason: str) -> None:
    broken = copy.deepcopy(definitions()[AUTHORIZATION_POLICY])
    spec = broken["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    spec["x-kubernetes-validations"] = [{"rule": expression, "message": "no"}]
    ((*errors,),) = crd_server.ask([broken]).definitions
    assert any(reason in error and "x-kubernetes-validations" in error for error in errors), errors


def test_every_mistake_is_refused_with_the_sentence_of_the_parser() -> None:
    for version in ("v1", "v1beta1"):
        asked = [Question(policy_object(kind, spec, version=version)) for _, kind, spec in MISTAKES]
        for (rule, _, spec), errors in zip(MISTAKES, ask(*asked).objects, strict=True):
            assert len(errors) == 1, (spec, errors)
            assert errors[0].endswith(rule.message), spec


def test_what_the_parser_accepts_is_accepted() -> None:
    items = [policy_object(kind, spec) for kind, spec in NO_MISTAKES]
    items += [item for item in corpus() if parse_policy(item).policy is not None]
    assert len(items) > 50
    for item, errors in zip(items, ask(*map(Question, items)).objects, strict=True):
        assert errors == [], item


def by_parser(item: Mapping[str, Any]) -> set[Rule]:
    """The rules that the parser says are not kept."""
    found = parse_policy(item).findings
    said = {(one.code, one.message) for one in found if one.severity is Severity.ERROR}
    return {rule for rule in RULES if (rule.code, rule.sentence) in said}


def test_server_and_parser_agree_on_every_case() -> None:
    items = [item for rule in RULES for item in every_case(rule)]
    for item, errors in zip(items, ask(*map(Question, items)).objects, strict=True):
        assert refusals(errors) == by_parser(item), (item, errors)


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.sampled_from(KINDS).flatmap(specs), min_size=60, max_size=120))
def test_server_and_parser_refuse_the_same_objects_for_the_same_reasons(items: list[dict[str, Any]]) -> None:
    for item, errors in zip(items, ask(*map(Question, items)).objects, strict=True):
        assert len(errors) == sum(any(rule.message in error for rule in RULES) for error in errors), errors
        assert refusals(errors) <= by_parser(item)
        assert by_parser(item) - refusals(errors) <= {
            PORTS_NEED_SELECTOR
        }  # labels that are none: the parser's alone


# --- objects that were stored before there were rules ----------------------------------------------


def _changes(item: Mapping[str, Any]) -> Iterator[tuple[str, Question]]:
    old = {**item, "metadata": {**item["metadata"], "finalizers": ["example.com/f"]}}
    status = {"conditions": [{"type": "Accepted", "status": "False", "reason": "r", "message": "m"}]}
    yield "condition", Question({**old, "status": status}, old, status=True)
    yield "label", Question({**old, "metadata": {**old["metadata"], "labels": {"a": "b"}}}, old)
    yield "finalizer", Question({**old, "metadata": {**old["metadata"], "finalizers": []}}, old)


@pytest.mark.parametrize(
    ("version", "refused"), [("1.29", True), ("1.30", False), ("1.33", False), ("", False)]
)
def test_a_broken_object_can_be_labelled_and_told_so_where_the_chart_has_rules(
    version: str, refused: bool
) -> None:
    asked = [
        (rule, what, question)
        for rule, kind, spec in MISTAKES
        for what, question in _changes(policy_object(kind, spec))
    ]
    found = ask(*(question for *_, question in asked), version=version)
    for (rule, what, _), errors in zip(asked, found.objects, strict=True):
        assert refusals(errors) == ({rule} if refused else set()), (what, errors)


def test_a_broken_object_can_be_mended_and_not_be_changed_otherwise() -> None:
    old = policy_object(AUTHORIZATION_POLICY, {"action": "DENY"})
    mended = policy_object(AUTHORIZATION_POLICY, {"action": "DENY", "rules": [{}]})
    other = policy_object(AUTHORIZATION_POLICY, {"action": "AUDIT"})
    found = ask(Question(mended, old), Question(other, old)).objects
    assert found[0] == []
    assert [error.rpartition("[")[2] for error in found[1]] == ["policy_needs_rules]"]


def test_the_largest_object_keeps_within_the_budget() -> None:
    """About 3 MiB, the most that a server reads at once; more parts with rules do not go into it."""
    source = [{"source": {"principals": ["a"]}}] * MAX_ITEMS
    when = [{"key": "source.ip", "values": ["a"]}] * MAX_ITEMS
    wide = policy_object(AUTHORIZATION_POLICY, {"rules": [{"from": source, "when": when}] * 80})
    long = [str(number) for number in range(MAX_VALUES)]
    deep = policy_object(AUTHORIZATION_POLICY, {"rules": [{"to": [{"operation": {"paths": long}}]}] * 60})
    many = policy_object(
        AUTHORIZATION_POLICY, {"rules": [{"from": source[:180], "when": when[:1]}] * MAX_RULES}
    )
    for errors in ask(*map(Question, (wide, deep, many))).objects:
        assert errors == []
