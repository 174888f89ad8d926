"""Golden cases: policies as people write them -> the effective policy, reviewed as data."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mesh.policy.parse import parse_policy
from mesh.policy.policyset import PolicySet
from mesh.policy.predicates import MatchKind, StringMatch
from mesh.policy.resolve import resolve
from mesh.yamldoc import load_documents
from tests.fakes.golden import DIRECTORY, check_golden
from tests.fakes.policy_objects import FALLBACK, MESH, workload

CASES = sorted(path.parent for path in (DIRECTORY / "policy").glob("*/input.yaml"))
POD = workload(tcp=(9000,))


def plain(value: Any) -> Any:
    """Any part of an effective policy as short JSON-like data."""
    if isinstance(value, StringMatch):
        case = "i:" if value.ignore_case else ""
        text = {
            MatchKind.EXACT: value.value,
            MatchKind.PREFIX: f"{value.value}*",
            MatchKind.SUFFIX: f"*{value.value}",
            MatchKind.PRESENT: "*",
        }
        return case + text[value.kind]
    if isinstance(value, enum.Enum):
        return value.value
    if dataclasses.is_dataclass(value):
        inner = {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        name = type(value).__name__
        if name == "ObjectRef":
            return f"{value} at {value.source}"
        if name == "Finding":
            return f"{value.severity.value} {value}"
        if type(value).__module__.endswith("predicates"):
            return {name: next(iter(inner.values())) if len(inner) == 1 else inner or True}
        return inner
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    return value


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.name)
def test_golden(case: Path) -> None:
    findings: list[Any] = []
    policies = []
    for document in load_documents((case / "input.yaml").read_text(), "input.yaml"):
        result = parse_policy(document.data, source=document.source, line_of=document.line_of)
        findings += result.findings
        policies += [result.policy] if result.policy else []
    policy_set = PolicySet(policies)
    found = resolve(policy_set, POD, MESH, key_sets={}, fallback_jwks=FALLBACK)
    actual = {"parsing": plain([*findings, *policy_set.findings])} | plain(found)
    check_golden(f"policy/{case.name}/effective.yaml", actual)


def test_there_are_cases() -> None:
    assert len(CASES) >= 6
