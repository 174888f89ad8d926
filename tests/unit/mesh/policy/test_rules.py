"""CEL rules of the definitions: they refuse what the parser refuses, for the same reason, and no more."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import celpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.policy.effective import Severity
from mesh.policy.model import KINDS
from mesh.policy.parse import parse_policy
from mesh.policy.rules import PORTS_NEED_SELECTOR, RULES, Rule, schema_path
from tests.fakes.crd_rules import (
    MISTAKES,
    NO_MISTAKES,
    corpus,
    definitions,
    every_case,
    fields_of,
    parts,
    specs,
)
from tests.fakes.helm import ROOT
from tests.fakes.policy_objects import policy_object


@functools.cache
def _program(rule: Rule) -> celpy.Runner:
    environment = celpy.Environment()
    return environment.program(environment.compile(rule.expression))


def _holds(rule: Rule, part: Mapping[str, Any]) -> bool:
    return bool(_program(rule).evaluate({"self": celpy.json_to_cel(part)}))


def broken(item: Mapping[str, Any]) -> set[Rule]:
    """The rules that an object does not keep, as CEL sees it."""
    return {
        rule
        for rule in RULES
        for kind, path in rule.places
        if kind == item["kind"]
        for part in parts(item, path)
        if not _holds(rule, part)
    }


def said(item: Mapping[str, Any]) -> set[Rule]:
    """The rules that the parser says are not kept."""
    found = {
        (finding.code, finding.message)
        for finding in parse_policy(item).findings
        if finding.severity is Severity.ERROR
    }
    return {rule for rule in RULES if (rule.code, rule.sentence) in found}


@pytest.mark.parametrize(("rule", "kind", "spec"), MISTAKES)
def test_a_mistake_is_refused_by_its_rule_and_by_the_parser(
    rule: Rule, kind: str, spec: dict[str, Any]
) -> None:
    item = policy_object(kind, spec)
    assert broken(item) == {rule}
    assert rule in said(item)
    assert parse_policy(item).policy is None


def test_every_rule_has_a_mistake_at_each_of_its_places() -> None:
    shown = {(rule.expression, kind) for rule, kind, _ in MISTAKES}
    assert shown == {(rule.expression, kind) for rule in RULES for kind, _ in rule.places}


@pytest.mark.parametrize(("kind", "spec"), NO_MISTAKES)
def test_what_is_near_to_a_mistake_is_accepted(kind: str, spec: dict[str, Any]) -> None:
    item = policy_object(kind, spec)
    assert broken(item) == set()
    assert parse_policy(item).unwrap()


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_and_the_parser_agree_on_every_case(rule: Rule) -> None:
    cases = list(every_case(rule))
    found = [(rule in broken(item), rule in said(item)) for item in cases]
    assert {by_rule for by_rule, _ in found} == {True, False}
    for item, (by_rule, by_parser) in zip(cases, found, strict=True):
        assert by_rule == by_parser, item


def test_the_corpus_keeps_every_rule_that_the_parser_finds_kept() -> None:
    items = list(corpus())
    assert {item["kind"] for item in items} == set(KINDS)
    for item in items:
        assert broken(item) == said(item), item
        if parse_policy(item).policy is not None:
            assert broken(item) == set()


@given(st.sampled_from(KINDS).flatmap(specs))
def test_rules_and_parser_refuse_the_same_objects_for_the_same_reasons(item: dict[str, Any]) -> None:
    by_rule, by_parser = broken(item), said(item)
    assert by_rule <= by_parser
    # A selector of which no label is legal selects nothing either; the parser says both.
    assert by_parser - by_rule <= {PORTS_NEED_SELECTOR}
    if by_parser - by_rule:
        assert any("matchLabels" in finding.field for finding in parse_policy(item).findings)


@pytest.mark.parametrize("rule", RULES)
def test_the_fields_of_a_rule_are_in_the_schema_of_every_place(rule: Rule) -> None:
    """A field that the schema does not declare cannot be seen by a rule: the server would refuse the kind."""
    for kind, path in rule.places:
        schema: Any = definitions()[kind]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        for step in schema_path(path):
            schema = schema[step]
        assert set(fields_of(rule)) <= set(schema["properties"])


@pytest.mark.parametrize("rule", RULES)
def test_no_rule_iterates_or_breaks_lines(rule: Rule) -> None:
    for word in (".all(", ".exists", ".map(", ".filter(", "matches(", "oldSelf", "\n"):
        assert word not in rule.expression
    assert "\n" not in rule.message
    assert rule.message.endswith(f"[{rule.code}]")


def test_the_documentation_lists_the_rules() -> None:
    text = (ROOT / "docs" / "policy.md").read_text(encoding="utf-8")
    table = text.partition("| kind | must hold | code |\n| --- | --- | --- |\n")[2].partition("\n\n")[0]
    rows = [[cell.strip(" `") for cell in row.strip("|").split("|")] for row in table.splitlines()]
    assert sorted((row[0], row[2]) for row in rows) == sorted(
        (", ".join(kind for kind, _ in rule.places), str(rule.code)) for rule in RULES
    )
