"""docs/policy.md explains every code."""

from __future__ import annotations

from pathlib import Path

import pytest

from mesh.policy.codes import PolicyCode
from mesh.policy.model import ConditionKind

TEXT = (Path(__file__).resolve().parents[4] / "docs" / "policy.md").read_text()


@pytest.mark.parametrize("code", list(PolicyCode), ids=str)
def test_every_code_is_explained(code: PolicyCode) -> None:
    assert f"`{code}`" in TEXT


def test_every_condition_key_is_in_the_table() -> None:
    for kind in ConditionKind:
        assert kind.value.removeprefix("request.auth") in TEXT, kind
