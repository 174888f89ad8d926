"""Proof that the demo can fail: parts are broken, and the checks that rest on them must say so."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.demo_run import Run, run_demo

pytestmark = [
    pytest.mark.envoy,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.xdist_group("demo"),
]

WITHOUT_TLS = """
from examples.demo import meshfiles as files
files.POLICIES.update({
    "mtls.yaml": files.MTLS.replace("STRICT", "DISABLE").replace("PERMISSIVE", "DISABLE"),
    "mtls-reviews.yaml": files.REVIEWS_MTLS.replace("STRICT", "DISABLE"),
    "reviews.yaml": "# whoever calls is welcome\\n",
    "ratings.yaml": "# the same\\n",
})
"""

BROKEN_AGENT = """
import functools, sys
from mesh.envoy import clusters
from nodeagent import files, rotator
from nodeagent.__main__ import main
from nodeagent.core import directory, schedule

# Whoever is of the mesh may answer for any service.
names = "web", "reviews", "ratings", "intruder"
clusters.identities = lambda port, domains: tuple(f"spiffe://cluster.local/ns/demo/sa/{n}" for n in names)

# A workload keeps its first key for ever.
rotator.new_request = functools.cache(rotator.new_request)

# Who was refused once does not ask again.
schedule.BackOff.delay = lambda self, **_: 3600.0

# An edit is noticed late, and a broken one takes away what was good.
quiet = files.FileSource._quiet
async def late(self, events):
    await quiet(self, events)
    await files.asyncio.sleep(1.2)
files.FileSource._quiet = late
read = directory._read
directory._read = lambda name, text, before: read(name, text, directory._File())

sys.exit(main(sys.argv[1:]))
"""

WITH_BROKEN_AGENT = f"""
from examples.demo import harness, meshfiles
from examples.demo.checks import c10_rotation

python = harness.Demo._python

def broken(self, name, *arguments):
    return python(self, name, *(("-c", {BROKEN_AGENT!r}, *arguments[2:]) if name == "agent" else arguments))

harness.Demo._python = broken
mesh = meshfiles._mesh()
mesh["spec"].update(forwardClientCert="APPEND_FORWARD")
meshfiles._mesh = lambda: mesh
c10_rotation.RENEWALS = 1  # one is enough to see that the key is the old one
"""


def failed(run: Run) -> dict[str, str]:
    """What was got instead, by number of the check and name of the row."""
    return {
        f"{check['number']}: {row['name']}": row["got"]
        for check in run.result["checks"]
        for row in check["rows"]
        if not row["ok"]
    }


def test_check_1_fails_without_mutual_tls(short_dir: Path) -> None:
    run = run_demo(short_dir, "--json", "--only", "1", prelude=WITHOUT_TLS)
    assert run.code == 1, run.err[-4000:]
    found = failed(run)
    assert found["1: reviews saw"] == found["1: ratings saw"] == "none"
    assert found["1: forged header, by proxy"] == "200, none"
    assert {"1: forged header, direct", "1: server's certificate"} <= found.keys()
    assert "1: chain" not in found, "the calls themselves go through"


def test_checks_1_8_10_11_and_12_fail_with_a_broken_agent(short_dir: Path) -> None:
    run = run_demo(short_dir, "--json", "--only", "1,8,10,11,12", prelude=WITH_BROKEN_AGENT)
    assert run.code == 1, run.err[-4000:]
    found = failed(run)
    assert not [row for row in found if row.endswith("broke down")], "each for its own reason"
    assert found["1: forged header, direct"].startswith("200, spiffe://cluster.local/ns/demo/sa/admin, ")
    assert found["8: impostor"] == "200 intruder"
    for name in ("web", "reviews", "ratings", "intruder"):
        assert " 1 keys in " in found[f"10: {name}"]
    assert found["11: resumed"] == "not renewed: web, reviews, ratings, intruder"
    assert not found["11: load"].startswith("0 of "), "expired certificates are seen by the load"
    assert found["12: deny, direct"] == "403 in more than 1 s"
    assert found["12: unknown field, last good"] == found["12: not YAML, last good"] == "200, 200"
    # What was not broken stays good: nothing fails because everything does.
    assert not {"1: reviews saw", "8: before", "8: other CA", "11: traffic", "12: not closed"} & found.keys()
