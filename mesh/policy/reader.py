"""Reading untrusted data: a cursor that knows its field path and notes everything that is wrong.

All errors of an object are found in one pass: a bad value is noted and read as None, and reading
goes on.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final, TypeVar

from mesh.policy.codes import PolicyCode
from mesh.policy.effective import Finding, ObjectRef, Severity
from mesh.policy.rules import Rule

FieldPath = tuple[str | int, ...]
LineOf = Callable[[FieldPath], int]

MAX_TEXT: Final = 2048  # characters of one string, if its field says nothing smaller
MAX_FINDINGS: Final = 100  # per object; one more says that there were more
_MAX_SHOWN: Final = 60
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]+")
# Control characters would break logs and configuration; lone surrogates cannot be encoded.
_BAD_CHARACTER = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_TYPES: Final = ((bool, "boolean"), (int, "number"), (float, "number"), (str, "text"), (list, "list"))

E = TypeVar("E")


def format_path(path: FieldPath) -> str:
    """A path as people write it: `spec.rules[0].from`, `metadata.labels["a.b/c"]`."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        elif _PLAIN_KEY.fullmatch(step):
            text += f".{step}" if text else step
        else:
            text += f"[{show(step)}]"
    return text


def show(value: object) -> str:
    """A value for a message: short, printable, on one line."""
    if value is None:
        return "null"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    text = ascii(value).replace("'", '"') if isinstance(value, str) else str(value)
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "..."


def kind_of(value: object) -> str:
    """The JSON type of a value, with the value."""
    if value is None or isinstance(value, Mapping | list):
        return show(value)
    name = next((name for kind, name in _TYPES if isinstance(value, kind)), type(value).__name__)
    return f"the {name} {show(value)}"


def nearest(word: str, known: Collection[str]) -> str:
    """`; did you mean x?`, or nothing when no known word is near."""
    lowered = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower()[:80], lowered, n=1, cutoff=0.6)
    return f"; did you mean {lowered[close[0]]!r}?" if close else ""


class Report:
    """Collects the findings about one object."""

    __slots__ = ("_line_of", "_source", "findings", "ref")

    def __init__(self, ref: ObjectRef, *, source: str = "", line_of: LineOf | None = None) -> None:
        self.ref = ref
        self.findings: list[Finding] = []
        self._source = source
        self._line_of = line_of

    def place(self, path: FieldPath) -> str:
        """`file:line` of a field; the file alone, or nothing, when that is all that is known."""
        if self._line_of is None:
            return self._source
        return f"{self._source}:{self._line_of(path)}"

    def error(self, path: FieldPath, code: PolicyCode, message: str) -> None:
        """Note a reason why the object is refused."""
        self._add(path, code, Severity.ERROR, message)

    def warn(self, path: FieldPath, code: PolicyCode, message: str) -> None:
        """Note something that the author may not expect."""
        self._add(path, code, Severity.WARNING, message)

    @property
    def failed(self) -> bool:
        """True when the object is refused."""
        return any(finding.severity is Severity.ERROR for finding in self.findings)

    def _add(self, path: FieldPath, code: PolicyCode, severity: Severity, message: str) -> None:
        # An error is never lost to a flood of warnings: the last slot is kept for one.
        if len(self.findings) > MAX_FINDINGS or (
            len(self.findings) == MAX_FINDINGS and (severity is Severity.WARNING or self.failed)
        ):
            return
        self.findings.append(
            Finding(code, severity, self.ref, format_path(path) or "(document)", message, self.place(path))
        )


class Node:
    """A value somewhere in the object. Readers return None after noting what is wrong."""

    __slots__ = ("path", "report", "value")

    def __init__(self, report: Report, path: FieldPath, value: Any) -> None:
        self.report = report
        self.path = path
        self.value = value

    def error(self, code: PolicyCode, message: str) -> None:
        """Note an error about this value."""
        self.report.error(self.path, code, message)

    def breaks(self, rule: Rule) -> None:
        """Note that this value does not keep a rule that API servers know too."""
        self.error(rule.code, rule.sentence)

    def warn(self, code: PolicyCode, message: str) -> None:
        """Note a warning about this value."""
        self.report.warn(self.path, code, message)

    def child(self, step: str | int, value: Any) -> Node:
        """A value within this one."""
        return Node(self.report, (*self.path, step), value)

    def wrong_type(self, wanted: str) -> None:
        """Note that the value has another type than `wanted`."""
        hint = "; write a value or remove the field" if self.value is None else ""
        if wanted.startswith("text") and isinstance(self.value, bool | int | float):
            hint = "; put it in quotes"
        self.error(PolicyCode.WRONG_TYPE, f"found {kind_of(self.value)}, allowed is {wanted}{hint}")

    def mapping(self) -> dict[str, Node] | None:
        """The entries of a mapping with any text keys."""
        if not isinstance(self.value, Mapping):
            self.wrong_type("a mapping")
            return None
        entries = {}
        for key, value in self.value.items():
            if isinstance(key, str):
                entries[key] = self.child(key, value)
            else:
                self.error(PolicyCode.WRONG_TYPE, f"the key {show(key)} is not text; put it in quotes")
        return entries

    def fields(self, *known: str) -> dict[str, Node]:
        """The fields of an object; those that are not known are noted with the nearest known name."""
        entries = self.mapping() or {}
        for name in [name for name in entries if name not in known]:
            near = nearest(name, known)
            entries.pop(name).error(
                PolicyCode.UNKNOWN_FIELD,
                f"unknown field {show(name)}; allowed here: {', '.join(known)}{near}",
            )
        return entries

    def items(self, *, most: int, may_be_empty: bool = False) -> list[Node]:
        """The items of a list of at most `most`."""
        if not isinstance(self.value, list):
            self.wrong_type("a list")
            return []
        if not self.value and not may_be_empty:
            self.error(PolicyCode.EMPTY, "found an empty list; name at least one item or remove the field")
        if len(self.value) > most:
            self.error(PolicyCode.TOO_MANY, f"found {len(self.value)} items, allowed are at most {most}")
            return []
        return [self.child(index, item) for index, item in enumerate(self.value)]

    def text(self, *, most: int = MAX_TEXT, may_be_empty: bool = False) -> str | None:
        """A string without control characters of at most `most` characters."""
        if not isinstance(self.value, str):
            self.wrong_type("text")
            return None
        if not self.value and not may_be_empty:
            self.error(PolicyCode.EMPTY, "found an empty text; write a value or remove the field")
            return None
        if len(self.value) > most:
            self.error(PolicyCode.TOO_LONG, f"found {len(self.value)} characters, allowed are at most {most}")
            return None
        if _BAD_CHARACTER.search(self.value):
            self.error(
                PolicyCode.BAD_CHARACTER,
                f"found {show(self.value)}; control characters and line breaks are not allowed",
            )
            return None
        return self.value

    def texts(self, *, most: int, longest: int = MAX_TEXT) -> list[tuple[Node, str]]:
        """The strings of a list, each with its node; duplicates are noted as errors."""
        found: dict[str, Node] = {}
        for node in self.items(most=most):
            text = node.text(most=longest)
            if text is None:
                continue
            if text in found:
                node.error(PolicyCode.DUPLICATE, f"{show(text)} is listed twice; remove one")
            else:
                found[text] = node
        return [(node, text) for text, node in found.items()]

    def boolean(self) -> bool | None:
        """True or false."""
        if not isinstance(self.value, bool):
            self.wrong_type("true or false")
            return None
        return self.value

    def choice(self, allowed: Mapping[str, E]) -> E | None:
        """One of some words."""
        text = self.text(most=64)
        if text is None:
            return None
        if text not in allowed:
            near = nearest(text, allowed)
            self.error(PolicyCode.BAD_VALUE, f"found {show(text)}, allowed are {', '.join(allowed)}{near}")
            return None
        return allowed[text]
