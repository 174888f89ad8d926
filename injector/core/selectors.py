"""Label selectors as the API server evaluates them (meta/v1 LabelSelector)."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mesh.errors import Code, MeshError


class SelectorCode(Code):
    """Why a selector was refused."""

    INVALID = "selector_invalid"


class SelectorError(MeshError):
    """A label selector that no API server would accept."""


class Operator(enum.Enum):
    """Operators of `matchExpressions`."""

    IN = "In"
    NOT_IN = "NotIn"
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"


@dataclass(frozen=True, slots=True)
class Requirement:
    """One expression. A missing key satisfies `NotIn`, as in Kubernetes."""

    key: str
    operator: Operator
    values: tuple[str, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """True when the labels satisfy the expression."""
        match self.operator:
            case Operator.IN:
                return labels.get(self.key) in self.values
            case Operator.NOT_IN:
                return labels.get(self.key) not in self.values
            case Operator.EXISTS:
                return self.key in labels
            case Operator.DOES_NOT_EXIST:
                return self.key not in labels


@dataclass(frozen=True, slots=True)
class LabelSelector:
    """All requirements must hold; without any, everything matches."""

    requirements: tuple[Requirement, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """True when every requirement holds."""
        return all(r.matches(labels) for r in self.requirements)

    def __str__(self) -> str:
        return ", ".join(f"{r.key} {r.operator.value} {list(r.values)}" for r in self.requirements) or "(all)"

    @classmethod
    def parse(cls, value: object, field: str = "selector") -> LabelSelector:
        """From `{matchLabels: {...}, matchExpressions: [...]}`.

        Raises:
            SelectorError: naming the field that is not as meta/v1 has it.
        """
        found = _mapping(value, field)
        unknown = sorted(set(found) - {"matchLabels", "matchExpressions"})
        if unknown:
            raise _error(f"{field}.{unknown[0]}: allowed are matchLabels and matchExpressions")
        requirements = []
        for key, wanted in sorted(_mapping(found.get("matchLabels") or {}, f"{field}.matchLabels").items()):
            if not isinstance(wanted, str):
                raise _error(f"{field}.matchLabels.{key}: expected text, found {wanted!r:.40}")
            requirements.append(Requirement(key, Operator.IN, (wanted,)))
        expressions = found.get("matchExpressions") or []
        if not isinstance(expressions, list):
            raise _error(f"{field}.matchExpressions: expected a list")
        requirements += [_expression(e, f"{field}.matchExpressions[{i}]") for i, e in enumerate(expressions)]
        return cls(tuple(requirements))


def _expression(value: object, field: str) -> Requirement:
    found = _mapping(value, field)
    key, values = found.get("key"), found.get("values") or []
    try:
        operator = Operator(found.get("operator"))
    except ValueError:
        allowed = ", ".join(o.value for o in Operator)
        raise _error(f"{field}.operator: {found.get('operator')!r:.40}; allowed are {allowed}") from None
    if not isinstance(key, str) or not key:
        raise _error(f"{field}.key: expected a label key")
    if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
        raise _error(f"{field}.values: expected a list of texts")
    if bool(values) != (operator in {Operator.IN, Operator.NOT_IN}):
        raise _error(f"{field}.values: In and NotIn need values, the other operators have none")
    return Requirement(key, operator, tuple(values))


def _mapping(value: object, field: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise _error(f"{field}: expected a mapping, found {value!r:.40}")
    return value


def _error(public: str) -> SelectorError:
    return SelectorError(SelectorCode.INVALID, public)
