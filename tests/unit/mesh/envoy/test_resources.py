"""Named, versioned bytes and sets of them."""

from __future__ import annotations

import pytest

from mesh.envoy.resources import CLUSTER, LISTENER, STATE_OF_THE_WORLD, TYPE_URLS, Resource, ResourceSet


def test_equal_bytes_have_an_equal_version():
    assert Resource.of(CLUSTER, "a", b"x") == Resource.of(CLUSTER, "a", b"x")
    assert Resource.of(CLUSTER, "a", b"x").version != Resource.of(CLUSTER, "a", b"y").version


def test_body_is_not_shown():
    assert "secret" not in repr(Resource.of(CLUSTER, "a", b"secret"))


def test_s08_two_resources_of_one_name_are_refused():
    one = Resource.of(CLUSTER, "a", b"x")
    with pytest.raises(ValueError, match="two resources named 'a'"):
        ResourceSet([one, one])


def test_sets():
    one, two = Resource.of(CLUSTER, "a", b"x"), Resource.of(LISTENER, "a", b"x")
    both = ResourceSet([one]).merged(ResourceSet([two]))
    assert len(both) == 2
    assert list(both) == [one, two]
    assert both.of_type(CLUSTER) == {"a": one}
    assert ResourceSet().of_type(CLUSTER) == {}


def test_types():
    assert STATE_OF_THE_WORLD < TYPE_URLS
