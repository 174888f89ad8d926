"""Runs meshctl in this process, and keeps whole runs as golden scripts."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from meshctl.__main__ import main
from tests.fakes.golden import check_golden


@dataclass(frozen=True)
class Ran:
    """A run as a person sees it."""

    arguments: tuple[str, ...]
    code: int
    out: str
    err: str

    def script(self, names: Mapping[str, str]) -> str:
        """Command, both outputs and exit code; `names` replaces what differs between runs."""
        text = f"$ meshctl {shlex.join(self.arguments)}\n{self.out}"
        text += "".join(f"2> {line}\n" for line in self.err.splitlines())
        text += f"exit {self.code}\n"
        for old, new in names.items():
            text = text.replace(old, new)
        return text


def ctl(*arguments: str, stdin: str = "") -> Ran:
    """Run the command line."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), _around(stdin):
        try:
            code = main(list(arguments))
        except SystemExit as end:
            code = int(end.code or 0)
    return Ran(arguments, code, out.getvalue(), err.getvalue())


def golden_script(name: str, *runs: Ran, names: Mapping[str, str] | None = None) -> None:
    """Compare runs, literally, with `tests/golden/meshctl/<name>.txt`."""
    check_golden(f"meshctl/{name}.txt", "\n".join(run.script(names or {}) for run in runs))


@contextlib.contextmanager
def _around(text: str) -> Iterator[None]:
    """Standard input, and a terminal of 80 columns for argparse."""
    before, columns = sys.stdin, os.environ.get("COLUMNS")
    sys.stdin, os.environ["COLUMNS"] = io.StringIO(text), "80"
    try:
        yield
    finally:
        sys.stdin = before
        del os.environ["COLUMNS"]
        if columns is not None:
            os.environ["COLUMNS"] = columns
