"""The status annotation: written, read back, and refused when it is not ours."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from injector.core.status import Status, StatusCode, StatusError, is_foreign, parse_status

names = st.lists(st.text(max_size=5), max_size=3).map(tuple)
statuses = st.builds(
    Status,
    version=st.text(max_size=5),
    revision=st.text(max_size=5),
    digest=st.text(max_size=5),
    mode=st.sampled_from(["native", "classic"]),
    reason=st.sampled_from(["injected", "repaired"]),
    init_containers=names,
    containers=names,
    volumes=names,
    image_pull_secrets=names,
    labels=names,
    annotations=st.dictionaries(st.text(max_size=5), st.none() | st.text(max_size=5), max_size=3),
    probes=st.dictionaries(
        st.text(max_size=5), st.dictionaries(st.text(max_size=3), st.integers()), max_size=3
    ),
    declared=st.none() | st.tuples(st.sampled_from(["containers", "initContainers"]), st.integers(0, 9)),
)


@given(statuses)
def test_round_trip(status: Status) -> None:
    assert parse_status(status.to_json()) == status
    assert not is_foreign(status.to_json())


def test_text_is_stable() -> None:
    text = Status(version="1", revision="r", digest="d", mode="native").to_json()
    assert (
        text == '{"digest":"d","mode":"native","reason":"injected","revision":"r","schema":1,"version":"1"}'
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema": 2}, "schema 2 is not 1"),
        ({"schema": None}, "schema None is not 1"),
        ({"version": 1}, "must be texts"),
        ({"volumes": "x"}, "volumes must be a list of names"),
        ({"labels": [1]}, "labels must be a list of names"),
        ({"annotations": {"a": 1}}, "annotations must be texts by key"),
        ({"annotations": []}, "annotations must be texts by key"),
        ({"probes": {"a": 1}}, "probes must be objects by path"),
        ({"probes": []}, "probes must be objects by path"),
        ({"declared": []}, "declared must be an object"),
        ({"declared": {"list": "volumes", "index": 0}}, "declared must name a list and an index"),
        ({"declared": {"list": "containers", "index": True}}, "declared must name a list and an index"),
        ({"declared": {"list": "containers", "index": -1}}, "declared must name a list and an index"),
    ],
)
def test_broken(change: dict[str, object], said: str) -> None:
    with pytest.raises(StatusError, match=said) as caught:
        parse_status(json.dumps({"schema": 1} | change))
    assert caught.value.code is StatusCode.INVALID
    assert "next: remove it" in caught.value.public


@pytest.mark.parametrize(
    ("text", "foreign"),
    [
        ('{"containers":["istio-proxy"]}', True),
        ("{}", True),
        ('{"schema":9}', False),
        ("", False),
        ("{", False),
        ("[]", False),
    ],
)
def test_whose_it_is(text: str, foreign: bool) -> None:
    assert is_foreign(text) is foreign
