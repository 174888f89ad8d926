"""Exit codes of every command; `meshctl --help` and docs/meshctl.md tell them."""

from __future__ import annotations

from typing import Final

EXIT_OK: Final = 0
EXIT_PROBLEM: Final = 1
"""The answer is that something is wrong."""
EXIT_USAGE: Final = 2
"""The question is wrong: arguments, files, names."""
EXIT_UNREACHABLE: Final = 3
"""There is no answer: cluster or agent are silent, or refuse."""
