"""The marks of every module of cluster tests."""

from __future__ import annotations

import pytest

# One process runs them all: they share the cluster. The first test's time includes starting it, and on a new
# machine building it.
CLUSTER = [pytest.mark.cluster, pytest.mark.xdist_group("cluster"), pytest.mark.timeout(3600)]
