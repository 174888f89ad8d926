"""Contracts run against fakes everywhere, and against a real cluster where there is one."""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """The marker of cases that need a cluster."""
    config.addinivalue_line("markers", "cluster: needs a Kubernetes cluster, named by KUBECONFIG")
