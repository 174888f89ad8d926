"""What people see: colours on a terminal only, lines that fit, a next step after each refusal."""

from __future__ import annotations

import datetime as dt
import json
import os
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, TextIO

from mesh.obs.table import MAX_WIDTH

NEXT: Final = "next: "


class Colour(Enum):
    """SGR codes."""

    RED = "31"
    GREEN = "32"
    YELLOW = "33"
    BOLD = "1"
    DIM = "2"


@dataclass(frozen=True, slots=True)
class Screen:
    """Where answers (`out`) and remarks (`err`) go.

    Attributes:
        colours: for `out`; `err_colours` for `err`.
    """

    out: TextIO
    err: TextIO
    colours: bool = False
    err_colours: bool = False

    @classmethod
    def of_process(cls, out: TextIO, err: TextIO, environ: Mapping[str, str] = os.environ) -> Screen:
        """Colours on terminals, unless NO_COLOR is set (no-color.org) or the terminal is dumb."""
        wanted = not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"
        return cls(out, err, wanted and out.isatty(), wanted and err.isatty())

    def paint(self, text: str, colour: Colour | None) -> str:
        """The text for `out`, in a colour where there are any."""
        return _paint(text, colour) if self.colours and colour else text

    def say(self, text: str = "") -> None:
        """A line of the answer."""
        self.out.write(f"{text}\n")

    def say_json(self, value: Any) -> None:
        """The answer for programs."""
        self.say(json.dumps(value, indent=2, ensure_ascii=False))

    def remark(self, text: str, colour: Colour | None = None) -> None:
        """A line on standard error."""
        self.err.write(f"{_paint(text, colour) if self.err_colours and colour else text}\n")

    def refuse(self, public: str, code: str) -> None:
        """A refusal on standard error: what is wrong, and on a line of its own what to do."""
        what, _, hint = public.partition(f"; {NEXT}")
        self.remark(f"meshctl: {_plain(what)} [{code}]", Colour.RED)
        if hint:
            self.remark(f"{NEXT}{_plain(hint)}")


def wrapped(text: str, *, first: str, rest: str, width: int = MAX_WIDTH) -> str:
    """Text in lines that fit; words are never broken, so that commands can be copied."""
    return "\n".join(
        textwrap.wrap(
            _plain(text),
            width,
            initial_indent=first,
            subsequent_indent=rest,
            break_long_words=False,
            break_on_hyphens=False,
        )
    )


def counted(counts: Iterable[tuple[int, str]]) -> str:
    """`2 injected, 1 left alone`, without what is zero."""
    return ", ".join(f"{count} {name}" for count, name in counts if count) or "nothing"


def span(length: dt.timedelta) -> str:
    """`23h52m`, `4m07s`, `9d3h`, `-12s`."""
    seconds = int(length.total_seconds())
    sign, seconds = ("-", -seconds) if seconds < 0 else ("", seconds)
    days, rest = divmod(seconds, 86400)
    hours, rest = divmod(rest, 3600)
    minutes, seconds = divmod(rest, 60)
    if days:
        return f"{sign}{days}d{hours}h"
    if hours:
        return f"{sign}{hours}h{minutes:02}m"
    return f"{sign}{minutes}m{seconds:02}s" if minutes else f"{sign}{seconds}s"


def _paint(text: str, colour: Colour | None) -> str:
    return f"\x1b[{colour.value}m{text}\x1b[0m" if colour else text


def _plain(text: str) -> str:
    """One line without control characters: names and messages come from outside."""
    return "".join(c if c.isprintable() else " " for c in text)
