"""YAML with positions: text in, plain data out, and the line of every field.

Pure: the caller reads the file. Values follow what `kubectl` makes of the same text (JSON types;
`yes`, `no`, `on`, `off` are booleans), with three refusals that JSON would not need: duplicate keys,
merge keys, and tags. Mapping keys are the text as it is written, so `8080: {...}` has the key `"8080"`.

Bounded: size, depth, and the number of nodes *after* aliases are expanded, so that a small file
cannot become a large structure. Aliased parts are shared: treat the data as read-only.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

from mesh.errors import Code, MeshError

MAX_BYTES: Final = 1024 * 1024
MAX_DEPTH: Final = 64
MAX_NODES: Final = 250_000  # after expansion of aliases, over all documents of one text

FieldPath = tuple[str | int, ...]
"""Path into a document, e.g. `("spec", "rules", 0, "from")`."""

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml where PyYAML was built with it

_CORE = "tag:yaml.org,2002:"
_SCALAR_TAGS = {_CORE + name: name for name in ("str", "int", "float", "bool", "null")}
_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_TRUE = frozenset({"true", "True", "TRUE", "yes", "Yes", "YES", "on", "On", "ON"})
_FALSE = frozenset({"false", "False", "FALSE", "no", "No", "NO", "off", "Off", "OFF"})
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
_BASED = re.compile(r"[-+]?0(?:[xX][0-9a-fA-F]+|[oO]?[0-7]+|[bB][01]+)")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_MAX_NUMBER_CHARS = 40
_PROBLEM_CHARS = 200


class YamlCode(Code):
    """Why a YAML text was refused."""

    TOO_LARGE = "yaml_too_large"
    TOO_DEEP = "yaml_too_deep"
    TOO_MANY_NODES = "yaml_too_many_nodes"
    SYNTAX = "yaml_syntax"
    DUPLICATE_KEY = "yaml_duplicate_key"
    KEY = "yaml_key"
    ALIAS = "yaml_alias"
    TAG = "yaml_tag"
    NUMBER = "yaml_number"


class YamlError(MeshError):
    """A text that is not YAML, or not the YAML that is accepted here.

    Attributes:
        source: as given to `load_documents`.
        line: 1-based; 1 when the text as a whole is refused.
    """

    def __init__(self, code: YamlCode, message: str, *, source: str, line: int) -> None:
        super().__init__(code, f"{source}:{line}: {message}")
        self.source = source
        self.line = line


@dataclass(slots=True)
class _Spot:
    """Where a node stands, and its children's spots by key or index."""

    line: int
    size: int = 1  # nodes, with aliases expanded
    height: int = 1  # levels, with aliases expanded
    children: dict[str | int, _Spot] = field(default_factory=dict)

    def add(self, step: str | int, child: _Spot) -> None:
        self.children[step] = child
        self.size += child.size
        self.height = max(self.height, child.height + 1)


@dataclass(frozen=True, slots=True)
class Document:
    """One YAML document.

    Attributes:
        data: `dict`, `list`, `str`, `int`, `float`, `bool` or None; read-only by agreement.
        source: what the text was called, usually a file name.
        line: 1-based line where the document's content starts.
    """

    data: Any
    source: str
    line: int
    _root: _Spot = field(repr=False, compare=False)

    def line_of(self, path: Sequence[str | int]) -> int:
        """1-based line of a field: of its key in a mapping, of the item in a list.

        A path that does not exist answers with the line of its deepest part that does, which is
        where a missing field should be reported.
        """
        spot = self._root
        for step in path:
            child = spot.children.get(step)
            if child is None:
                break
            spot = child
        return spot.line

    def where(self, path: Sequence[str | int] = ()) -> str:
        """`source:line` of a field, as an editor understands it."""
        return f"{self.source}:{self.line_of(path)}"


def format_path(path: Sequence[str | int]) -> str:
    """A path as people write it: `spec.rules[0].from`."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            text += f".{step}" if text else step
    return text


def load_documents(text: str, source: str) -> tuple[Document, ...]:
    """Parse a text of one or more YAML documents; empty documents are left out.

    Args:
        text: the whole text, at most `MAX_BYTES` as UTF-8.
        source: name used in positions, usually the file name.

    Raises:
        YamlError: with the line and the reason.
    """
    if len(text) > MAX_BYTES or len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise YamlError(
            YamlCode.TOO_LARGE,
            f"the text is longer than {MAX_BYTES} bytes; split it into several files",
            source=source,
            line=1,
        )
    return tuple(_Builder(text, source).documents())


class _Builder:
    """Builds documents from the parser's events; never recurses deeper than `MAX_DEPTH`."""

    def __init__(self, text: str, source: str) -> None:
        self._text = text
        self._source = source
        self._nodes = 0
        self._anchors: dict[str, tuple[Any, _Spot] | None] = {}

    def documents(self) -> Iterator[Document]:
        try:
            events = iter(yaml.parse(self._text, Loader=_Loader))
            for event in events:
                if isinstance(event, yaml.DocumentStartEvent):
                    self._anchors = {}
                    data, spot = self._node(next(events), events, 1)
                    if data is not None:
                        yield Document(data, self._source, spot.line, spot)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = mark.line + 1 if mark is not None else 1
            raise self._fail(YamlCode.SYNTAX, _problem(error), line) from error
        except (yaml.YAMLError, UnicodeEncodeError) as error:
            # The reader: a control character, or half of a surrogate pair.
            raise self._fail(
                YamlCode.SYNTAX, f"not YAML: {' '.join(str(error)[:_PROBLEM_CHARS].split())}", 1
            ) from error

    def _fail(self, code: YamlCode, message: str, line: int) -> YamlError:
        return YamlError(code, message, source=self._source, line=line)

    def _count(self, nodes: int, line: int) -> None:
        self._nodes += nodes
        if self._nodes > MAX_NODES:
            raise self._fail(
                YamlCode.TOO_MANY_NODES,
                f"more than {MAX_NODES} values, aliases counted each time they are used",
                line,
            )

    def _node(self, event: Any, events: Iterator[Any], depth: int) -> tuple[Any, _Spot]:
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            return self._alias(str(event.anchor), depth, line)
        self._count(1, line)
        self._check_depth(depth, line)
        if event.anchor is not None:
            self._anchors[event.anchor] = None  # open: an alias to it from inside would be endless
        spot = _Spot(line)
        data: Any
        if isinstance(event, yaml.ScalarEvent):
            data = self._scalar(event, line)
        elif isinstance(event, yaml.SequenceStartEvent):
            data = self._sequence(event, events, depth, spot)
        else:
            data = self._mapping(event, events, depth, spot)
        if event.anchor is not None:
            self._anchors[event.anchor] = (data, spot)
        return data, spot

    def _check_depth(self, depth: int, line: int) -> None:
        if depth > MAX_DEPTH:
            raise self._fail(YamlCode.TOO_DEEP, f"nested deeper than {MAX_DEPTH} levels", line)

    def _alias(self, anchor: str, depth: int, line: int) -> tuple[Any, _Spot]:
        if anchor not in self._anchors:
            raise self._fail(YamlCode.ALIAS, f"alias *{anchor} has no anchor before it", line)
        target = self._anchors[anchor]
        if target is None:
            raise self._fail(YamlCode.ALIAS, f"alias *{anchor} stands inside its own anchor", line)
        data, spot = target
        self._count(spot.size, line)
        self._check_depth(depth + spot.height - 1, line)
        # Reported where it is used; the parts inside, where they are written.
        return data, _Spot(line, spot.size, spot.height, spot.children)

    def _sequence(self, event: Any, events: Iterator[Any], depth: int, spot: _Spot) -> list[Any]:
        self._check_tag(event, "seq", spot.line)
        items: list[Any] = []
        while not isinstance(item := next(events), yaml.SequenceEndEvent):
            value, child = self._node(item, events, depth + 1)
            spot.add(len(items), child)
            items.append(value)
        return items

    def _mapping(self, event: Any, events: Iterator[Any], depth: int, spot: _Spot) -> dict[str, Any]:
        self._check_tag(event, "map", spot.line)
        fields: dict[str, Any] = {}
        while not isinstance(item := next(events), yaml.MappingEndEvent):
            line = item.start_mark.line + 1
            key = self._key(item, line)
            if key in fields:
                raise self._fail(
                    YamlCode.DUPLICATE_KEY,
                    f"key {key[:80]!r} is written twice, first on line {spot.children[key].line};"
                    " remove one of the two",
                    line,
                )
            value, child = self._node(next(events), events, depth + 1)
            child.line = line
            spot.add(key, child)
            fields[key] = value
        return fields

    def _key(self, event: Any, line: int) -> str:
        self._count(1, line)
        if not isinstance(event, yaml.ScalarEvent) or event.tag not in {None, "!", _CORE + "str"}:
            raise self._fail(
                YamlCode.KEY, "a key must be plain text, not a list, a mapping or an alias", line
            )
        if event.value == "<<" and event.implicit[0]:
            raise self._fail(
                YamlCode.KEY, "merge keys (<<) are not supported; write the fields out where they apply", line
            )
        return str(event.value)

    def _check_tag(self, event: Any, kind: str, line: int) -> None:
        if event.tag not in {None, "!", _CORE + kind}:
            raise self._fail(YamlCode.TAG, f"tag {event.tag[:80]!r} is not supported; remove it", line)

    def _scalar(self, event: Any, line: int) -> str | int | float | bool | None:
        text = str(event.value)
        plain, _ = event.implicit
        if event.tag in {None, "!"}:
            # implicit[0]: a plain scalar, whose form decides; quoted and block scalars are text
            return self._resolve(text, line) if plain and event.tag is None else text
        kind = _SCALAR_TAGS.get(event.tag)
        if kind is None:
            raise self._fail(YamlCode.TAG, f"tag {event.tag[:80]!r} is not supported; remove it", line)
        if kind == "str":
            return text
        value = self._resolve(text, line)
        if kind == "float" and type(value) is int:
            return float(value)
        if ("null" if value is None else type(value).__name__) != kind:
            raise self._fail(YamlCode.TAG, f"{text[:80]!r} is not of the type !!{kind}", line)
        return value

    def _resolve(self, text: str, line: int) -> str | int | float | bool | None:
        if text in _NULLS:
            return None
        if text in _TRUE:
            return True
        if text in _FALSE:
            return False
        integer = _INT.fullmatch(text) or _BASED.fullmatch(text)
        if integer is None and not _FLOAT.fullmatch(text) and not _NOT_FINITE.fullmatch(text):
            return text
        if len(text) > _MAX_NUMBER_CHARS:
            raise self._fail(
                YamlCode.NUMBER,
                f"number of {len(text)} characters; allowed are {_MAX_NUMBER_CHARS} (quote it if it is text)",
                line,
            )
        if integer is not None:
            return _integer(text)
        value = math.inf if _NOT_FINITE.fullmatch(text) else float(text)
        if not math.isfinite(value):
            raise self._fail(
                YamlCode.NUMBER, f"{text!r} is not a finite number (quote it if it is text)", line
            )
        return value


def _integer(text: str) -> int:
    sign, digits = (-1, text[1:]) if text[0] == "-" else (1, text.removeprefix("+"))
    prefix = digits[:2].lower()
    if prefix in {"0x", "0o", "0b"}:
        return sign * int(digits, 0)
    if digits[0] == "0" and len(digits) > 1:
        return sign * int(digits, 8)  # YAML 1.1, as kubectl reads it
    return sign * int(digits)


def _problem(error: yaml.MarkedYAMLError) -> str:
    parts = [part for part in (error.context, error.problem) if part]
    return f"not YAML: {', '.join(parts)[:_PROBLEM_CHARS]}"
