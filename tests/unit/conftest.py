"""Unit tests are offline: Unix sockets and loopback only (pytest-socket enforces it)."""

from __future__ import annotations

from pathlib import Path

import pytest

_HERE = Path(__file__).parent
_ALLOWED = ["127.0.0.0/8", "::1", "localhost"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(_HERE):
            item.add_marker(pytest.mark.allow_hosts(_ALLOWED))
