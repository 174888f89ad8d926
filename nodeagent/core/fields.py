"""Reads typed fields out of one YAML document and collects every problem with its path and line.

A reader never raises for bad input: it records the problem, answers with a harmless default, and the
caller throws the whole object away when there were any. So one look at a file reports all its faults.
"""

from __future__ import annotations

import difflib
import enum
import ipaddress
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, TypeVar

from mesh.errors import Code
from mesh.policy.effective import Finding, ObjectRef, Severity
from mesh.topology import SocketAddress
from mesh.yamldoc import Document, FieldPath, format_path

MAX_TEXT: Final = 2048
MAX_ITEMS: Final = 4096
MAX_PORT: Final = 65535

_LABEL_PREFIX = r"([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/)?"
_LABEL_NAME = re.compile(_LABEL_PREFIX + r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?")
_NO_LABELS: Final[Mapping[str, str]] = MappingProxyType({})  # one for all: most things have none
_E = TypeVar("_E", bound=enum.Enum)


class DocumentCode(Code):
    """What is wrong with a document of a file-mode directory."""

    API_VERSION = "document_api_version"
    KIND = "document_kind"
    MISSING = "document_field_missing"
    UNKNOWN = "document_field_unknown"
    TYPE = "document_field_type"
    VALUE = "document_field_value"
    DUPLICATE = "document_duplicate"
    REFERENCE = "document_reference"
    FILE = "document_file"
    YAML = "document_yaml"


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault of a document; `path` leads to the field."""

    code: DocumentCode
    path: FieldPath
    message: str


def describe(value: Any) -> str:
    """A value as it is quoted in messages: never long, never more than its type for structures."""
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    return repr(value)[:80]


class Fields:
    """A mapping inside a document.

    Args:
        document: the document, for line numbers.
        path: where the mapping stands.
        data: its value, of any type: what is not a mapping is reported and read as empty.
        problems: shared list that problems are added to.
    """

    __slots__ = ("_data", "document", "path", "problems")

    def __init__(self, document: Document, path: FieldPath, data: Any, problems: list[Problem]) -> None:
        self.document = document
        self.path = path
        self.problems = problems
        self._data: dict[str, Any] = data if isinstance(data, dict) else {}
        if not isinstance(data, dict):
            self.report(DocumentCode.TYPE, (), f"expected a mapping, found {describe(data)}")

    def report(self, code: DocumentCode, steps: Iterable[str | int], message: str) -> None:
        """Record a problem of a field below this mapping."""
        self.problems.append(Problem(code, (*self.path, *steps), message))

    def only(self, *known: str) -> None:
        """Report every key that is not known, with the nearest one that is."""
        for key in self._data:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(sorted(known))}"
                self.report(DocumentCode.UNKNOWN, (key,), f"unknown field {key[:80]!r}{hint}")

    def has(self, key: str) -> bool:
        """True when the field is written and not null."""
        return self._data.get(key) is not None

    def is_text(self, key: str) -> bool:
        """True when the field is text (for fields that may be a name or a number)."""
        return isinstance(self._data.get(key), str)

    def sub(self, key: str) -> Fields:
        """A mapping below this one; an absent one reads as empty."""
        value = self._data.get(key)
        return Fields(self.document, (*self.path, key), {} if value is None else value, self.problems)

    def required(self, key: str, what: str) -> bool:
        """True when the field is there; else a problem that says what it is for."""
        if self.has(key):
            return True
        self.report(DocumentCode.MISSING, (key,), f"{key} is missing: {what}")
        return False

    def text(
        self, key: str, default: str = "", *, pattern: re.Pattern[str] | None = None, allowed: str = ""
    ) -> str:
        """A string, bounded, that matches `pattern` as a whole; `allowed` says so in words.

        Interned: a directory says the same few names in each of its documents.
        """
        value = self._data.get(key)
        if value is None:
            return default
        if not isinstance(value, str):
            self.report(DocumentCode.TYPE, (key,), f"{key} must be text, found {describe(value)}")
            return default
        if len(value) > MAX_TEXT or (pattern is not None and not pattern.fullmatch(value)):
            expected = allowed or f"at most {MAX_TEXT} characters"
            self.report(DocumentCode.VALUE, (key,), f"{key} is {value[:80]!r}; allowed: {expected}")
            return default
        return sys.intern(value)

    def integer(self, key: str, default: int, low: int, high: int) -> int:
        """A whole number within bounds."""
        value = self._data.get(key)
        if value is None:
            return default
        # bool is an int in Python, not in YAML
        if isinstance(value, bool) or not isinstance(value, int):
            self.report(DocumentCode.TYPE, (key,), f"{key} must be a whole number, found {describe(value)}")
            return default
        if not low <= value <= high:
            self.report(DocumentCode.VALUE, (key,), f"{key} is {value}; allowed: {low} to {high}")
            return default
        return value

    def boolean(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self._data.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.report(DocumentCode.TYPE, (key,), f"{key} must be true or false, found {describe(value)}")
            return default
        return value

    def choice(self, key: str, kind: type[_E], default: _E) -> _E:
        """A member of an enum, by its value."""
        value = self._data.get(key)
        if value is None:
            return default
        for member in kind:
            if member.value == value:
                return member
        names = ", ".join(str(m.value) for m in kind)
        self.report(DocumentCode.VALUE, (key,), f"{key} is {describe(value)}; allowed: {names}")
        return default

    def strings(self, key: str) -> tuple[str, ...]:
        """A list of strings; absent reads as empty."""
        items = self._items(key)
        for index, item in enumerate(items):
            if not isinstance(item, str) or len(item) > MAX_TEXT:
                self.report(DocumentCode.TYPE, (key, index), f"expected text, found {describe(item)}")
        return tuple(item for item in items if isinstance(item, str))

    def mappings(self, key: str) -> tuple[Fields, ...]:
        """A list of mappings; absent reads as empty."""
        items = self._items(key)
        return tuple(
            Fields(self.document, (*self.path, key, index), item, self.problems)
            for index, item in enumerate(items)
        )

    def labels(self, key: str) -> Mapping[str, str]:
        """Kubernetes labels."""
        fields = self.sub(key)
        found: dict[str, str] = {}
        for name, value in fields._data.items():  # noqa: SLF001 - its own class
            if not isinstance(value, str) or not _LABEL_VALUE.fullmatch(value):
                fields.report(
                    DocumentCode.VALUE,
                    (name,),
                    f"label {name[:80]!r} is {describe(value)}; allowed: text of at most 63 letters, digits,"
                    " '-', '_', '.' (quote numbers and booleans)",
                )
            elif not _LABEL_NAME.fullmatch(name):
                fields.report(DocumentCode.VALUE, (name,), f"{name[:80]!r} is not a label name")
            else:
                found[name] = value
        return found or _NO_LABELS

    def address(self, key: str) -> str:
        """An IP address literal."""
        value = self.text(key)
        if not value:
            return ""
        try:
            return sys.intern(str(ipaddress.ip_address(value)))
        except ValueError:
            self.report(
                DocumentCode.VALUE,
                (key,),
                f"{key} is {value[:80]!r}; allowed: an IP address such as 127.0.10.1",
            )
            return ""

    def socket_address(self, key: str) -> SocketAddress | None:
        """`host:port` with an IP address literal, `[...]` around IPv6."""
        value = self.text(key)
        if not value:
            return None
        host, _, port = value.rpartition(":")
        bracketed = host.startswith("[") and host.endswith("]")
        try:
            ip = ipaddress.ip_address(host[1:-1] if bracketed else host)
            number = int(port) if port.isascii() and port.isdigit() and len(port) <= 5 else 0
            if not 1 <= number <= MAX_PORT or bracketed != (ip.version == 6):
                raise ValueError
        except ValueError:
            self.report(
                DocumentCode.VALUE,
                (key,),
                f"{key} is {value[:80]!r}; allowed: an IP address and a port, 127.0.0.1:8080 or [::1]:8080",
            )
            return None
        return SocketAddress(sys.intern(str(ip)), number)

    def _items(self, key: str) -> list[Any]:
        value = self._data.get(key)
        if value is None:
            return []
        if not isinstance(value, list):
            self.report(DocumentCode.TYPE, (key,), f"{key} must be a list, found {describe(value)}")
            return []
        if len(value) > MAX_ITEMS:
            self.report(DocumentCode.VALUE, (key,), f"{key} has {len(value)} items; allowed: {MAX_ITEMS}")
            return []
        return value


def findings_of(problems: Iterable[Problem], document: Document, ref: ObjectRef) -> tuple[Finding, ...]:
    """Problems as findings that name file and line."""
    return tuple(
        Finding(
            p.code,
            Severity.ERROR,
            ObjectRef(ref.kind, ref.namespace, ref.name, source=document.where()),
            format_path(p.path),
            p.message,
            document.where(p.path),
        )
        for p in problems
    )
