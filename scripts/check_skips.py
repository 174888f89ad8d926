"""Fails when a test was skipped that must not be: `check_skips.py JUNIT_XML...`.

A skipped test that needs a real Envoy, openssl, a cluster or network namespaces proves nothing, so such a
skip is a failure. So is any other skip whose reason is not on the list below, and a report that is absent or
without a test.
"""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from pathlib import Path

ALLOWED_REASONS = (
    "needs root to become another user",
    # Of a rolling archive nobody can promise that it serves, or still compiles, what one test asks of it.
    "needs Debian's development archive",
    # Nobody offers it for other machines; Helm 3 is tried there all the same.
    "Helm 4 can be had for x86_64 only",
)


def forbidden_skips(report: Path) -> list[str]:
    """One line per skip that is not allowed."""
    found = []
    for case in ET.parse(report).iter("testcase"):
        skip = case.find("skipped")
        if skip is None or skip.get("type") == "pytest.xfail":
            continue
        needs = [item.get("value") for item in case.iter("property") if item.get("name") == "needs"]
        reason = skip.get("message", "")
        if needs or not any(allowed in reason for allowed in ALLOWED_REASONS):
            what = f" (needs {', '.join(filter(None, needs))})" if needs else ""
            found.append(f"{case.get('classname')}::{case.get('name')}{what}: {reason}")
    return found


def main() -> int:
    failed = False
    for report in map(Path, sys.argv[1:]):
        if not report.exists() or not (total := sum(1 for _ in ET.parse(report).iter("testcase"))):
            print(f"{report}: no test ran")
            failed = True
            continue
        found = forbidden_skips(report)
        for line in found:
            print(f"skipped, but must not be: {line}")
        print(f"{report.name}: {total} tests in the report, {len(found)} forbidden skips")
        failed = failed or bool(found)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
