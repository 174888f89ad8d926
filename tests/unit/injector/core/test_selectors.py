"""Label selectors, as an API server evaluates them."""

from __future__ import annotations

from typing import Any

import pytest

from injector.core.selectors import LabelSelector, SelectorCode, SelectorError


def expression(operator: str, *values: str, key: str = "a") -> dict[str, Any]:
    found: dict[str, Any] = {"key": key, "operator": operator}
    return {"matchExpressions": [found | ({"values": list(values)} if values else {})]}


@pytest.mark.parametrize(
    ("selector", "labels", "matches"),
    [
        ({}, {}, True),
        ({"matchLabels": {"a": "1"}}, {"a": "1", "b": "2"}, True),
        ({"matchLabels": {"a": "1", "b": "3"}}, {"a": "1", "b": "2"}, False),
        ({"matchLabels": None, "matchExpressions": None}, {}, True),
        (expression("In", "1", "2"), {"a": "2"}, True),
        (expression("In", "1", "2"), {}, False),
        (expression("NotIn", "1"), {"a": "1"}, False),
        (expression("NotIn", "1"), {"a": "2"}, True),
        (expression("NotIn", "1"), {}, True),
        (expression("Exists"), {"a": ""}, True),
        (expression("Exists"), {}, False),
        (expression("DoesNotExist"), {}, True),
        (expression("DoesNotExist"), {"a": "1"}, False),
    ],
)
def test_matching(selector: dict[str, Any], labels: dict[str, str], matches: bool) -> None:
    assert LabelSelector.parse(selector).matches(labels) is matches


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("app=web", "expected a mapping, found 'app=web'"),
        ({"app": "web"}, "selector.app: allowed are matchLabels and matchExpressions"),
        ({"matchLabels": {"a": 1}}, "selector.matchLabels.a: expected text, found 1"),
        ({"matchLabels": ["a"]}, "selector.matchLabels: expected a mapping"),
        ({"matchExpressions": {}}, None),
        ({"matchExpressions": "x"}, "selector.matchExpressions: expected a list"),
        ({"matchExpressions": ["x"]}, r"matchExpressions\[0\]: expected a mapping"),
        (expression("Equals", "1"), r"\[0\].operator: 'Equals'; allowed are In, NotIn, Exists, DoesNotExist"),
        (expression("In"), r"\[0\].values: In and NotIn need values"),
        (expression("Exists", "1"), r"\[0\].values: In and NotIn need values"),
        (expression("In", "1", key=""), r"\[0\].key: expected a label key"),
        ({"matchExpressions": [{"key": "a", "operator": "In", "values": [1]}]}, "expected a list of texts"),
    ],
)
def test_bad_selectors_name_the_field(value: Any, said: str | None) -> None:
    if said is None:
        assert LabelSelector.parse(value).matches({})
        return
    with pytest.raises(SelectorError, match=said) as caught:
        LabelSelector.parse(value)
    assert caught.value.code is SelectorCode.INVALID


def test_text() -> None:
    assert str(LabelSelector()) == "(all)"
    assert str(LabelSelector.parse(expression("In", "1"))) == "a In ['1']"
