"""Manifests in and out: a stream of YAML or JSON documents, of which the unchanged stay byte for byte.

A line that begins with `---` always separates documents (YAML 1.2 section 9.1: it may not stand inside
any scalar), so the stream is cut there and each document is read by itself. A document that changes is
written anew: its fields keep their order, the comments before it stay, those within it are lost.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import yaml

from mesh.yamldoc import YamlCode, YamlError, load_documents
from meshctl.errors import CtlCode, CtlError

MAX_CHARACTERS: Final = 64 << 20
MAX_DOCUMENTS: Final = 20_000
_MARK: Final = re.compile(r"^---(?=\s|$)", re.MULTILINE)
_COMMENTS: Final = re.compile(r"(?:[ \t]*(?:#[^\n]*)?\r?\n)*")
# What some reader of YAML takes for a number or a truth value although PyYAML would not quote it:
# `1e3`, `0o17`, `1_000`, `12:30`, `y`.
_AMBIGUOUS: Final = re.compile(r"[-+]?\.?[0-9][-+.:_0-9a-fA-FxXoOeE]*|[yYnN]")


@dataclass(frozen=True, slots=True)
class Chunk:
    """One document of a stream.

    Attributes:
        text: as it stands in the stream, with its `---` line.
        source: name of the file, `-` for standard input.
        line: 1-based line of its first character.
        data: None when there is nothing but comments.
        json: it is written as JSON.
    """

    text: str
    source: str
    line: int
    data: Any
    json: bool = False

    @property
    def place(self) -> str:
        """For messages."""
        return f"{'stdin' if self.source == '-' else self.source}:{self.line}"


def split(text: str, source: str) -> Iterator[Chunk]:
    """Cut a stream into its documents and read them.

    Raises:
        CtlError: the stream is too large.
        YamlError: with file and line.
    """
    if len(text) > MAX_CHARACTERS:
        raise CtlError(CtlCode.FILE, f"{source}: longer than {MAX_CHARACTERS >> 20} MiB; split it")
    starts = [0, *(m.start() for m in _MARK.finditer(text) if m.start() > 0), len(text)]
    if len(starts) > MAX_DOCUMENTS:
        raise CtlError(CtlCode.FILE, f"{source}: more than {MAX_DOCUMENTS} documents; split it")
    line = 1
    for begin, end in itertools.pairwise(starts):
        part = text[begin:end]
        if part:
            yield from _chunk(part, source, line)
        line += part.count("\n")


def _chunk(part: str, source: str, line: int) -> Iterator[Chunk]:
    if part.lstrip().startswith("{"):
        try:
            yield Chunk(part, source, line, json.loads(part), json=True)
        except (ValueError, RecursionError):
            pass  # flow YAML looks like this too
        else:
            return
    try:
        documents = load_documents(part, "stdin" if source == "-" else source)
    except YamlError as error:
        message = error.public.removeprefix(f"{error.source}:{error.line}: ")
        raise YamlError(
            YamlCode(error.code), message, source=error.source, line=error.line + line - 1
        ) from error
    body = _body(part)
    first = line + part[: len(part) - len(body)].count("\n")
    yield Chunk(part, source, first if documents else line, documents[0].data if documents else None)


def changed_text(chunk: Chunk, data: Any) -> str:
    """A document that replaces one of the stream."""
    if chunk.json:
        return json.dumps(data, indent=2, ensure_ascii=False) + "\n"
    marker = _MARK.match(chunk.text)
    head = "---\n" if marker else ""
    rest = chunk.text[marker.end() :] if marker else chunk.text
    rest = rest.lstrip(" \t").removeprefix("\r").removeprefix("\n") if marker else rest
    comments = _COMMENTS.match(rest)
    return head + (comments[0] if comments else "") + dump(data)


def join(texts: Iterable[tuple[str, str]]) -> Iterator[str]:
    """A stream of documents from several files: (source, text); marks between files are added.

    Yields:
        Pieces of the stream; documents of one file stand as they stood.
    """
    before, source = "", None
    for name, text in texts:
        if before and not before.endswith("\n"):
            yield "\n"
        if source not in {None, name} and not _MARK.match(text):
            yield "---\n"
        yield text
        before, source = text, name


def dump(data: Any) -> str:
    """YAML that every reader understands alike, fields in their order, text in lines kept in lines."""
    return str(
        yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1_000_000, indent=2)
    )


def _body(part: str) -> str:
    marker = _MARK.match(part)
    rest = part[marker.end() :] if marker else part
    comments = _COMMENTS.match(rest)
    return rest[comments.end() :] if comments else rest


class _Dumper(yaml.SafeDumper):
    """Neither anchors nor tags, and lists indented as `kubectl` does."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - the name is PyYAML's
        return True


def _text(dumper: _Dumper, value: str) -> yaml.ScalarNode:
    style = None
    if _AMBIGUOUS.fullmatch(value):
        style = '"'
    elif "\n" in value and _is_block(value):
        style = "|"
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


def _is_block(value: str) -> bool:
    return all(c.isprintable() or c == "\n" for c in value) and not any(
        line.endswith(" ") for line in value.split("\n")
    )


_Dumper.add_representer(str, _text)
