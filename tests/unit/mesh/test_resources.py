"""Named, versioned resources and sets of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.envoy.resources import (
    CLUSTER,
    LISTENER,
    SECRET,
    STATE_OF_THE_WORLD,
    TYPE_URLS,
    Resource,
    ResourceSet,
)


@given(st.binary(max_size=64), st.binary(max_size=64))
def test_a_version_is_the_hash_of_the_content(one: bytes, two: bytes) -> None:
    first, second = Resource.of(SECRET, "default", one), Resource.of(SECRET, "other", two)
    assert (first.version == second.version) is (one == two)


def test_a_body_never_shows_in_a_log() -> None:
    assert "key-bytes" not in repr(Resource.of(SECRET, "default", b"key-bytes"))


def test_a_set_answers_by_type_and_name() -> None:
    listener, cluster = Resource.of(LISTENER, "in", b"l"), Resource.of(CLUSTER, "in", b"c")
    both = ResourceSet([listener, cluster])
    assert both.of_type(LISTENER) == {"in": listener}
    assert both.of_type(SECRET) == {}
    assert (len(both), list(both)) == (2, [listener, cluster])
    with pytest.raises(TypeError):
        both.of_type(LISTENER)["x"] = cluster  # type: ignore[index]  # that it is an error is the test


def test_two_resources_of_one_name_are_refused() -> None:
    """S-08: Envoy would refuse the whole response."""
    one, two = Resource.of(SECRET, "default", b"1"), Resource.of(SECRET, "default", b"2")
    with pytest.raises(ValueError, match="two resources named 'default'"):
        ResourceSet([one, two])
    with pytest.raises(ValueError, match="two resources named 'default'"):
        ResourceSet([one]).merged(ResourceSet([two]))


def test_sets_are_merged_without_changing_either() -> None:
    one, two = (ResourceSet([Resource.of(SECRET, name, b"")]) for name in ("a", "b"))
    assert list(one.merged(two).of_type(SECRET)) == ["a", "b"]
    assert len(one) == len(two) == 1


def test_state_of_the_world_types_are_known_types() -> None:
    assert STATE_OF_THE_WORLD < TYPE_URLS
