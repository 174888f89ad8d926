"""Tables for people: aligned columns, never wider than a screen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

MAX_WIDTH: Final = 100
_GAP: Final = "  "


def render_table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, width: int = MAX_WIDTH) -> str:
    """A table with a head line; the first column is cut when the whole is too wide.

    Args:
        heads: column names.
        rows: cells, as many as heads.
        width: most characters in a line.
    """
    lines = [list(heads), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    others = sum(widths[1:]) + len(_GAP) * (len(widths) - 1)
    widths[0] = min(widths[0], max(width - others, 8))
    return "\n".join(
        _GAP.join(_cut(cell, size).ljust(size) for cell, size in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _cut(text: str, size: int) -> str:
    return text if len(text) <= size else f"{text[: size - 1]}~"
