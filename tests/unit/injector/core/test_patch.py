"""JSON Patch: minimal, by name, and proved by applying it (d.2)."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from injector.core.patch import apply_patch, diff


@pytest.mark.parametrize(
    ("before", "after", "operations"),
    [
        ({}, {}, []),
        ({"a": 1}, {"a": 1}, []),
        ({}, {"metadata": {"labels": {"x": "y"}}}, [("add", "/metadata")]),
        ({"metadata": {}}, {"metadata": {"labels": {"x": "y"}}}, [("add", "/metadata/labels")]),
        ({"metadata": {"labels": None}}, {"metadata": {"labels": {}}}, [("replace", "/metadata/labels")]),
        ({"a": {"x": 1, "y": 2}}, {"a": {"y": 2}}, [("remove", "/a/x")]),
        ({"a/b~c": 1}, {"a/b~c": 2}, [("replace", "/a~1b~0c")]),
        ({"a": 1}, {"a": True}, [("replace", "/a")]),
        ({"a": [1, 2]}, {"a": [1, 3]}, [("replace", "/a")]),
    ],
)
def test_objects(before: dict[str, Any], after: dict[str, Any], operations: list[tuple[str, str]]) -> None:
    found = diff(before, after)
    assert [(o["op"], o["path"]) for o in found] == operations
    assert apply_patch(before, found) == after


def pod(*names: str, kind: str = "containers", **fields: Any) -> dict[str, Any]:
    return {"spec": {kind: [{"name": name, **fields} for name in names]}}


@pytest.mark.parametrize(
    ("before", "after", "operations"),
    [
        ("ab", "ab", []),
        ("ab", "pab", [("add", "/spec/containers/0")]),
        ("ab", "abp", [("add", "/spec/containers/2")]),
        ("ab", "apb", [("add", "/spec/containers/1")]),
        ("pab", "ab", [("remove", "/spec/containers/0")]),
        ("pab", "abp", [("remove", "/spec/containers/0"), ("add", "/spec/containers/2")]),
        ("abp", "pab", [("remove", "/spec/containers/2"), ("add", "/spec/containers/0")]),
        ("", "ip", [("add", "/spec/containers/0"), ("add", "/spec/containers/1")]),
        ("aa", "paa", [("add", "/spec/containers/0")]),
    ],
)
def test_named_lists(before: str, after: str, operations: list[tuple[str, str]]) -> None:
    """Only what changes its place is moved; others are not even named."""
    old, new = pod(*before), pod(*after)
    found = diff(old, new)
    assert [(o["op"], o["path"]) for o in found] == operations
    assert apply_patch(old, found) == new


def test_a_change_of_a_field_is_an_operation_on_that_field() -> None:
    old, new = pod("a", "b", image="x"), pod("a", "b", image="x")
    new["spec"]["containers"][1]["image"] = "y"
    assert diff(old, new) == [{"op": "replace", "path": "/spec/containers/1/image", "value": "y"}]


def test_what_is_the_same_object_is_not_looked_at() -> None:
    class Loud(dict[str, Any]):
        def __eq__(self, other: object) -> bool:
            raise AssertionError("compared")

        __hash__ = None  # type: ignore[assignment]  # as of every dict

    foreign = Loud(name="a")
    assert diff({"spec": {"containers": [foreign]}}, {"spec": {"containers": [foreign]}}) == []


def test_anchors_of_yaml_are_changed_apart() -> None:
    shared = {"image": "x"}
    document = {"spec": {"containers": [{"name": "a", "v": shared}, {"name": "b", "v": shared}]}}
    found = apply_patch(document, [{"op": "replace", "path": "/spec/containers/0/v/image", "value": "y"}])
    assert [c["v"]["image"] for c in found["spec"]["containers"]] == ["y", "x"]
    assert shared == {"image": "x"}


names = st.sampled_from("abcdefg")
values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.text("ab~/", max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("ab~/", max_size=2), inner, max_size=3)
    ),
    max_leaves=8,
)
items = st.builds(lambda name, value: {"name": name, "v": value}, names, values)
lists = st.lists(items, max_size=6) | st.lists(items, max_size=6, unique_by=lambda item: item["name"])
pods = st.fixed_dictionaries(
    {
        "spec": st.fixed_dictionaries(
            {"containers": lists}, optional={"volumes": lists | st.none(), "x": values}
        )
    },
    optional={"metadata": st.dictionaries(st.text("ab~/", max_size=2), values, max_size=3)},
)


@given(pods, pods)
def test_applying_gives_the_wanted(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Law: apply(diff(a, b)) == b, and the inputs are left alone."""
    kept = copy.deepcopy((before, after))
    operations = diff(before, after)
    assert apply_patch(before, operations) == after
    assert (before, after) == kept
    assert diff(before, after) == operations
    assert diff(after, copy.deepcopy(after)) == []
