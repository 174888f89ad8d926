"""The whole path when parts of it go away, come back, or are given something wrong. Real parts only."""

from __future__ import annotations

import contextlib
import io
import json
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric import rsa

from examples.demo import layout as at
from examples.demo.harness import LEAF_SECONDS, Demo
from examples.demo.issuer import USERS, Issuer, user_claims, workload_token, write_atomically
from examples.demo.layout import WORKLOADS, Layout, claim_block
from examples.demo.load import Load, Tally
from examples.demo.plain import bearer, call
from examples.demo.processes import wait_for
from examples.demo.report import Report
from examples.demo.svid import Watch
from examples.demo.tls import TlsConnection, client_context

pytestmark = [
    pytest.mark.envoy,
    pytest.mark.slow,
    pytest.mark.timeout(180),
    pytest.mark.xdist_group("demo"),
]


@pytest.fixture(scope="module")
def demo() -> Iterator[Demo]:
    with (
        tempfile.TemporaryDirectory(prefix="gh", dir="/tmp") as directory,
        claim_block() as block,
        Demo(Layout(block, Path(directory)), Report(io.StringIO())) as running,
    ):
        running.start()
        yield running


@pytest.fixture
def load(demo: Demo) -> Iterator[Load]:
    running = Load(demo.layout, demo.watches)
    running.start()
    yield running
    running.stop()


def wait_renewed(demo: Demo, names: tuple[str, ...] = WORKLOADS) -> None:
    before = {name: len(demo.watches[name].history) for name in names}
    wait_for(
        f"renewals of {', '.join(names)}",
        lambda: all(len(demo.watches[name].history) > before[name] for name in names),
        seconds=LEAF_SECONDS * 4,
    )


def more_requests(load: Load, count: int = 200) -> Tally:
    start = load.tally().requests
    wait_for("requests", lambda: load.tally().requests >= start + count, seconds=40)
    return load.tally()


def test_load_sees_failures(demo: Demo) -> None:
    """The control: `0 failed` means something only if a failure would be seen."""
    load = Load(demo.layout, demo.watches)
    load.start()
    try:
        more_requests(load)
        assert load.tally().failures == 0
        demo.envoys["ratings"].kill()
        wait_for("failures", lambda: load.tally().failures > 0, seconds=40)
        assert any("database" in message for message in load.tally().messages)
    finally:
        load.stop()
        demo.envoys["ratings"].start()
    target = demo.egress("reviews", at.EGRESS_RATINGS)
    wait_for("ratings to be back", lambda: call(target, "/ratings/2").status == 200, seconds=40)


def test_an_envoy_that_starts_again_is_configured_at_once(demo: Demo) -> None:
    """It gets the SVID at hand: nobody asks the authority for another."""
    issued = demo.workload_status("reviews")["issued"]
    demo.envoys["reviews"].kill()
    demo.envoys["reviews"].start()
    web, intruder = (demo.egress(name, at.EGRESS_REVIEWS) for name in ("web", "intruder"))
    wait_for("reviews to be back", lambda: call(web, "/reviews/2").status == 200, seconds=40)
    assert call(intruder, "/reviews/2").short == "403 RBAC: access denied"
    assert demo.workload_status("reviews")["issued"] <= issued + 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
def test_the_agent_goes_away_and_comes_back_under_load(
    demo: Demo, load: Load, number: signal.Signals
) -> None:
    more_requests(load)
    target = demo.egress("web", at.EGRESS_REVIEWS)
    assert call(target, "/open").status == 200
    demo.agent.signal(number)
    demo.agent.reap(5)
    more_requests(load)
    assert call(demo.egress("intruder", at.EGRESS_REVIEWS), "/reviews/2").status == 403
    text = demo.policy("live.yaml")
    with demo.edited("live.yaml", text.replace("[/closed]", "[/closed, /open]")):
        assert call(target, "/open").status == 200, "nobody was there to read the edit"
        demo.agent.start()
        wait_for("the edit to hold", lambda: call(target, "/open").status == 403, seconds=40)
    wait_for("the edit to be taken back", lambda: call(target, "/open").status == 200, seconds=40)
    wait_renewed(demo)
    tally = more_requests(load)
    assert tally.failures == 0, tally.messages


def test_a_deleted_policy_no_longer_holds_and_comes_back(demo: Demo) -> None:
    path = demo.layout.policies / "live.yaml"
    text = path.read_text()
    target = demo.egress("web", at.EGRESS_REVIEWS)
    assert call(target, "/closed").status == 403
    path.unlink()
    wait_for("the policy to be gone", lambda: call(target, "/closed").status == 200, seconds=40)
    path.write_text(text)  # not in one step: as an editor does it
    wait_for("the policy to be back", lambda: call(target, "/closed").status == 403, seconds=40)


def test_p33_an_issuer_rotates_its_key(demo: Demo) -> None:
    """P-33: one key, both, the other, and at once back to the first; nothing is restarted.

    The old token was seen before by the proxy, which remembers good ones: it must be refused all the same.
    """
    successor = Issuer(USERS, rsa.generate_private_key(public_exponent=65537, key_size=2048), "user-key-2")
    first, second = demo.users.key_set(), successor.key_set()
    both = {"keys": [*first["keys"], *second["keys"]]}
    old, new = (bearer(issuer.sign(user_claims())) for issuer in (demo.users, successor))
    pids = (demo.agent.pid, demo.envoys["reviews"].pid)
    with TlsConnection(demo.layout.proxy("reviews"), client_context(demo.watches["web"].current)) as kept:

        def ask(token: dict[str, str]) -> tuple[int, str]:
            status, body = kept.request("GET", "/account", dict(token))
            return status, body if status != 200 else ""

        def publish(keys: dict[str, object], wanted: tuple[int, int]) -> None:
            write_atomically(demo.layout.keys / "users.json", json.dumps(keys))
            found: list[tuple[int, int]] = []

            def arrived() -> bool:
                # What is about to be refused is asked first: refused, the other must be good already.
                order = (old, new) if wanted[0] == 401 else (new, old)
                answers = [ask(token)[0] for token in order]
                found.append((answers[0], answers[1]) if order[0] is old else (answers[1], answers[0]))
                return found[-1] == wanted

            wait_for(f"the answers {wanted}", arrived, seconds=40, every=0.001)
            assert (401, 401) not in found

        no_key = (401, "Jwks doesn't have key to match kid or alg from Jwt")
        assert (ask(old), ask(new)) == ((200, ""), no_key)
        publish(both, (200, 200))
        publish(second, (401, 200))
        assert (ask(old), ask(new)) == (no_key, (200, ""))
        publish(first, (200, 401))
        assert (ask(old), ask(new)) == ((200, ""), no_key)
    assert pids == (demo.agent.pid, demo.envoys["reviews"].pid)


@contextlib.contextmanager
def late_workload(demo: Demo, token: str) -> Iterator[Watch]:
    """A fifth workload, declared while everything runs, with that token."""
    layout = demo.layout
    host = layout.host("impostor")
    write_atomically(layout.tokens / "late.jwt", token)
    document = {
        "apiVersion": "gatehouse.dev/v1alpha1",
        "kind": "Workload",
        "metadata": {"namespace": at.NAMESPACE, "name": "late", "labels": {"app": "late"}},
        "spec": {
            "serviceAccount": "late",
            "tokenFile": "../tokens/late.jwt",
            "address": host,
            "ports": [{"number": 9080, "protocol": "HTTP", "app": f"{host}:19080"}],
        },
    }
    file = layout.mesh / "late.yaml"
    write_atomically(file, yaml.safe_dump(document))
    watch = Watch("late", layout.socket("late"))
    watch.start()
    try:
        yield watch
    finally:
        file.unlink()
        wait_for("its socket to be gone", lambda: not layout.socket("late").parent.exists(), seconds=40)
        watch.stop()


def test_a_workload_is_added_and_removed_while_running(demo: Demo) -> None:
    with late_workload(demo, workload_token(demo.cluster, "late")) as watch:
        identity = wait_for("an SVID of the new workload", lambda: watch.current, seconds=40)
        assert identity.spiffe_id == at.spiffe_id("late")
    assert {w["workload"] for w in demo.status()["workloads"]} == {f"demo/{name}" for name in WORKLOADS}


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda demo: "not a token", "ca_token_file"),
        (lambda demo: workload_token(demo.users, "late"), "ca_unauthenticated"),
        (lambda demo: workload_token(demo.cluster, "web"), "ca_invalid_request"),
    ],
    ids=["garbage", "wrong-issuer", "token-of-another-workload"],
)
def test_a_wrong_token_brings_no_identity_until_it_is_right(
    demo: Demo, make: Callable[[Demo], str], code: str
) -> None:
    """Above all, somebody else's token must not bring somebody else's identity."""

    def refused() -> bool:
        found = [w for w in demo.status()["workloads"] if w["workload"] == "demo/late"]
        return bool(found) and found[0]["code"] == code

    with late_workload(demo, make(demo)) as watch:
        wait_for(f"the refusal {code}", refused, seconds=40)
        assert watch.history == []
        write_atomically(demo.layout.tokens / "late.jwt", workload_token(demo.cluster, "late"))
        # The file is looked at on each tick of the clock, which is 15 s.
        identity = wait_for("an SVID with the right token", lambda: watch.current, seconds=40)
        assert identity.spiffe_id == at.spiffe_id("late")
        assert {e.spiffe_id for e in watch.history} == {at.spiffe_id("late")}
