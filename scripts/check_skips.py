"""Fails when a test was skipped that must not be: `check_skips.py JUNIT_XML`.

A skipped test that needs a real Envoy or openssl proves nothing, so such a skip is a failure. So is
any other skip whose reason is not on the list below.
"""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from pathlib import Path

ALLOWED_REASONS = ("needs root to become another user",)


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
    report = Path(sys.argv[1])
    total = sum(1 for _ in ET.parse(report).iter("testcase"))
    if not total:
        print(f"{report}: no test ran")
        return 1
    found = forbidden_skips(report)
    for line in found:
        print(f"skipped, but must not be: {line}")
    print(f"{total} tests in the report, {len(found)} forbidden skips")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
