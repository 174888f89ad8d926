"""Fixtures for every kind of test."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.fakes.clock import FakeClock
from tests.fakes.envoy_process import find_envoy
from tests.fakes.golden import check_golden
from tests.fakes.xdist_groups import pytest_xdist_make_scheduler as pytest_xdist_make_scheduler

pytest_plugins = ["tests.cluster.fixtures"]

# A shared, loaded machine makes single examples slow: no law is about time. Derandomised, so that a
# red run is red again; `--hypothesis-profile=explore` looks further.
settings.register_profile(
    "gatehouse", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("explore", deadline=None, max_examples=2000)
settings.load_profile("gatehouse")


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A temporary directory with a short path: a Unix socket address holds 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="gh", dir="/tmp") as directory:
        yield Path(directory)


@pytest.fixture
def clock() -> FakeClock:
    """A clock that only the test moves."""
    return FakeClock()


@pytest.fixture(scope="session")
def envoy_path() -> Path:
    """The Envoy binary; fails when there is none."""
    return find_envoy()


@pytest.fixture(scope="session")
def golden() -> Callable[[str, Any], None]:
    """`golden("policy/x.json", data)`: equal by meaning to the file under tests/golden."""
    return check_golden


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What a test needs goes into the JUnit report, where `scripts/check_skips.py` looks for it."""
    for item in items:
        needs = [name for name in ("envoy", "openssl", "cluster", "netns") if item.get_closest_marker(name)]
        item.user_properties += [("needs", name) for name in needs]
