"""Command line of the demo: `python -m examples.demo`, or `make demo ARGS=...`."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # before grpc is loaded: it speaks of every lost peer

from examples.demo import keep
from examples.demo.checks import ALL, in_order
from examples.demo.harness import Demo
from examples.demo.layout import Layout, claim_block
from examples.demo.model import Check, DemoError
from examples.demo.report import Report, as_json
from examples.demo.runner import run_checks, verdict

EXIT_FAILED = 1
EXIT_BROKEN = 2
EXIT_INTERRUPTED = 130
_LONGEST_TMP = 60  # a socket's path ends at 107 bytes

_DESCRIPTION = """\
The whole path of Gatehouse on this machine, on loopback addresses and without root: one certificate
authority, one node agent, and four services (web -> reviews -> ratings, and an intruder), each behind a
real Envoy. Thirteen checks try what should work and what should not, and show the evidence.
"""
_EPILOG = """\
checks:
{checks}

examples:
  make demo                        run all checks, print a report, stop and remove everything
  make demo ARGS=--keep            ... then leave it running, and say how to poke at it
  make demo ARGS='--only 4,9'      some checks only
  make demo ARGS=--json            one JSON object: {{"checks": [{{"name", "expected", "got", "ok"}}], "ok"}}
                                   (and "error" when the demo itself could not run)

exit codes: 0 all checks are good; 1 a check failed; 2 the demo itself could not run; 130 interrupted.
docs/demo.md explains what each check shows. NO_COLOR=1 turns colours off.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; the exit code."""
    options = _parser().parse_args(arguments)
    report = Report(sys.stderr if options.json else sys.stdout)
    _clean_up_on_signals()
    directory = Path(tempfile.mkdtemp(prefix="gh-demo-", dir=_temporary_base()))
    code = EXIT_BROKEN
    try:
        code = _run(options, report, directory)
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
        report.text("\ninterrupted; everything is stopped")
    except BrokenPipeError:
        # `make demo | head`: nobody reads any more. Python would complain again at its end.
        code = EXIT_INTERRUPTED
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    except DemoError as error:
        report.text(f"\nthe demo could not run: {error}")
        if options.json:
            print(as_json([], error=str(error)), flush=True)
    finally:
        _clean_up(directory, report, keep_files=code in {EXIT_FAILED, EXIT_BROKEN})
    return code


def _run(options: argparse.Namespace, report: Report, directory: Path) -> int:
    began = time.monotonic()
    with claim_block() as block, Demo(Layout(block, directory), report) as demo:
        report.title(f"Gatehouse demo: 127.0.{block}.x, files in {directory}")
        demo.start()
        report.text(f"  everything is up after {time.monotonic() - began:.1f} s")
        checks = run_checks(demo, in_order(options.only), report.check)
        report.summary(checks, time.monotonic() - began)
        if options.json:
            print(as_json(sorted(checks, key=lambda check: check.number)), flush=True)
        code = verdict(checks)
        _advise(report, checks, code, directory)
        if options.keep:
            demo.load.stop()
            keep.write_user_tokens(demo)
            report.text(keep.describe(demo))
            _stay(demo, report)
        return code


def _stay(demo: Demo, report: Report) -> None:
    try:
        keep.stay(demo)
    except KeyboardInterrupt:
        report.text("\nstopping")


def _advise(report: Report, checks: list[Check], code: int, directory: Path) -> None:
    if code == 0:
        report.text(
            "next: make demo ARGS=--keep leaves it running, to try things by hand; docs/demo.md says what"
            " each check shows; docs/file-mode.md is the format of the files that were used."
        )
        return
    failed = sorted(check.number for check in checks if not check.ok)
    first = ",".join(str(number) for number in failed)
    report.text(
        f"next: read {directory}/logs/agent.log (what the agent could not do), then envoy-reviews.log and"
        f" ca.log beside it; ARGS='--keep --only {first}' runs the failed checks alone and leaves it running."
    )


def _clean_up(directory: Path, report: Report, *, keep_files: bool) -> None:
    if keep_files:
        report.text(
            f"files and logs are kept in {directory} (they hold the demo's keys; remove them when done)"
        )
        return
    shutil.rmtree(directory, ignore_errors=True)


def _temporary_base() -> str | None:
    return "/tmp" if len(tempfile.gettempdir()) > _LONGEST_TMP else None


def _clean_up_on_signals() -> None:
    """A plain `kill` cleans up as Ctrl-C does; a shell that ignores SIGINT for background jobs, too."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # not under nohup
        signal.signal(signal.SIGHUP, _interrupt)


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def _numbers(text: str) -> frozenset[int]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() and 1 <= int(part) <= len(ALL) for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r}: numbers of checks, 1 to {len(ALL)}, separated by commas")
    return frozenset(int(part) for part in parts)


def _parser() -> argparse.ArgumentParser:
    listed = "\n".join(f"  {spec.number:>2}  {spec.name}" for spec in ALL)
    parser = argparse.ArgumentParser(
        prog="python -m examples.demo",
        description=_DESCRIPTION,
        epilog=_EPILOG.format(checks=listed),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--json", action="store_true", help="one JSON object on stdout; the report goes to stderr"
    )
    parser.add_argument("--keep", action="store_true", help="leave it running after the checks, until Ctrl-C")
    parser.add_argument(
        "--only",
        type=_numbers,
        default=frozenset(spec.number for spec in ALL),
        metavar="N,M",
        help="run these checks only",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
