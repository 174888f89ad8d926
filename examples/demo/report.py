"""The report: progressive and readable for people, one JSON object for programs."""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Sequence
from typing import TextIO

from examples.demo.model import Check, Row

WIDTH = 100
_TRIED = 31
_EXPECTED = 28
_GOT = WIDTH - 9 - _TRIED - _EXPECTED - 4
_INDENT = " " * 9
_EVIDENCE_LINES = 4


class Report:
    """Writes to one stream as things happen.

    Args:
        out: where people read.
        color: None = only on a terminal, and never with NO_COLOR (https://no-color.org) or TERM=dumb.
    """

    def __init__(self, out: TextIO, *, color: bool | None = None) -> None:
        self._out = out
        self._terminal = out.isatty() and os.environ.get("TERM") != "dumb"
        self._color = _wants_color(out) if color is None else color

    def title(self, text: str) -> None:
        self._line(self._paint(text, "1"))

    def text(self, text: str = "") -> None:
        """A paragraph, wrapped; lines that begin with a space stay as they are."""
        for line in text.splitlines() or [""]:
            if line.startswith(" ") or not line:
                self._line(line)
                continue
            for part in textwrap.wrap(line, WIDTH, break_long_words=False, break_on_hyphens=False):
                self._line(part)

    def step(self, what: str, detail: str = "") -> None:
        """One thing that was started, with its evidence."""
        self._line(f"  {self._mark(ok=True)} {what:<22}{detail}".rstrip())

    def progress(self, text: str) -> None:
        """What is being waited for: one line that is written over, on terminals only."""
        if self._terminal:
            self._out.write(f"\r\x1b[K{text[:WIDTH]}")
            self._out.flush()

    def check(self, check: Check) -> None:
        """One check with all of its rows."""
        self.progress("")
        self._line("")
        head = f"{check.number:>2}  {check.name}"
        tail = f"{check.seconds:.1f} s  {self._mark(ok=check.ok)}"
        plain = f"{check.seconds:.1f} s  {'ok' if check.ok else 'FAILED'}"
        space = max(2, WIDTH - len(head) - len(plain))
        self._line(self._paint(head, "1") + " " * space + tail)
        for line in textwrap.wrap(check.intent, WIDTH - 4):
            self._line("    " + self._paint(line, "2"))
        self._line(self._paint(_cells("", "tried", "expected", "got")[0], "2"))
        for row in check.rows:
            self._row(row)

    def summary(self, checks: Sequence[Check], seconds: float) -> None:
        """How many passed, and in what time."""
        good = sum(check.ok for check in checks)
        rows = sum(len(check.rows) for check in checks)
        self._line("")
        verdict = "all passed" if good == len(checks) else f"{len(checks) - good} FAILED"
        text = f"{good} of {len(checks)} checks good, {rows} rows, {seconds:.1f} s: {verdict}"
        self._line(self._paint(text, "1;32" if good == len(checks) else "1;31"))
        for check in checks:
            for row in check.rows:
                if not row.ok:
                    self._line(f"  check {check.number}, {row.name}: expected {row.expected}; got {row.got}")

    def _row(self, row: Row) -> None:
        lines = _cells("ok" if row.ok else "FAILED", row.tried, row.expected, row.got)
        for index, line in enumerate(lines):
            plain = "ok" if row.ok else "FAILED"
            self._line(line[:2] + self._mark(ok=row.ok) + line[2 + len(plain) :] if index == 0 else line)
        wrapped = textwrap.wrap(
            row.evidence, WIDTH - len(_INDENT) - 2, break_long_words=True, break_on_hyphens=False
        )
        if len(wrapped) > _EVIDENCE_LINES:
            wrapped = [*wrapped[: _EVIDENCE_LINES - 1], wrapped[_EVIDENCE_LINES - 1][:-3] + "..."]
        for line in wrapped:
            self._line(_INDENT + self._paint("| " + line, "2"))

    def _mark(self, *, ok: bool) -> str:
        return self._paint("ok", "32") if ok else self._paint("FAILED", "1;31")

    def _paint(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._color and text else text

    def _line(self, text: str) -> None:
        print(text, file=self._out, flush=True)


def as_json(checks: Sequence[Check], *, error: str = "") -> str:
    """One object for programs; `expected` and `got` hold every row, `rows` has them one by one.

    Args:
        error: why the demo itself could not run; then there is nothing to show, and nothing is good.
    """
    return json.dumps(
        {
            **({"error": error} if error else {}),
            "checks": [
                {
                    "name": f"{check.number}. {check.name}",
                    "number": check.number,
                    "expected": "; ".join(f"{row.name}: {row.expected}" for row in check.rows),
                    "got": "; ".join(f"{row.name}: {row.got}" for row in check.rows),
                    "ok": check.ok,
                    "seconds": round(check.seconds, 3),
                    "rows": [
                        {
                            "name": row.name,
                            "tried": row.tried,
                            "expected": row.expected,
                            "got": row.got,
                            "evidence": row.evidence,
                            "ok": row.ok,
                        }
                        for row in check.rows
                    ],
                }
                for check in checks
            ],
            "ok": bool(checks) and all(check.ok for check in checks),
        }
    )


def _wants_color(out: TextIO) -> bool:
    return out.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _wrap(text: str, width: int) -> list[str]:
    """Lines of at most `width`; a word that is too long (a SPIFFE ID) is parted at its slashes."""
    words: list[str] = []
    for word in text.split():
        if len(word) <= width:
            words.append(word)
            continue
        head, _, tail = word[:width].rpartition("/")
        at = len(head) + 1 if head and tail else width
        words += [word[:at], word[at:]]
    return textwrap.wrap(" ".join(words), width, break_on_hyphens=False)


def _cells(mark: str, tried: str, expected: str, got: str) -> list[str]:
    """The lines of one table row; long cells are wrapped in their column."""
    columns = [
        _wrap(text, width) or [""] for text, width in ((tried, _TRIED), (expected, _EXPECTED), (got, _GOT))
    ]
    lines: list[str] = []
    for index in range(max(len(column) for column in columns)):
        parts = [column[index] if index < len(column) else "" for column in columns]
        head = f"  {mark if index == 0 else '':<7}"
        lines.append(f"{head}{parts[0]:<{_TRIED}}  {parts[1]:<{_EXPECTED}}  {parts[2]}".rstrip())
    return lines
