"""One user of the test cluster at a time."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster.cluster import exclusive
from tests.cluster.layout import Layout
from tests.cluster.run import ClusterError


def test_a_second_user_is_turned_away_and_a_later_one_is_not(tmp_path: Path) -> None:
    place = Layout(tmp_path / "state", tmp_path / "cache")
    with (
        exclusive(place, wait=False),
        pytest.raises(ClusterError, match="a run of tests uses the cluster"),
        exclusive(place, wait=False),
    ):
        raise AssertionError("two users")
    with exclusive(place, wait=True):
        pass
