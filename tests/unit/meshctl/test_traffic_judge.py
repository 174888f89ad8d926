"""What pods say, as rows of `meshctl check --traffic`; no cluster."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from meshctl.checks.rows import Row, Status
from meshctl.traffic import judge
from meshctl.traffic.judge import Place, is_hopeless, is_settled
from meshctl.traffic.plan import CLIENTS, INJECTED, Plan, Role, client, server
from meshctl.traffic.probe import Got
from tests.fakes.meshctl_traffic import Change, lived, plan, waiting, with_sidecar

Pod = dict[str, Any]
LOGS = "kubectl -n istio-system logs deployment/gatehouse-injector"
PLACE = Place(mesh="istio-system", injector=LOGS, kept=False)
AGENTS = "kubectl -n istio-system logs -l app.kubernetes.io/component=nodeagent"


def pod(role: Role, made: Plan, *got: Got, injected: bool = True) -> Pod:
    body = (server(made) if role is Role.SERVER else client(made, role)).body
    return lived(with_sidecar(body) if injected and role in INJECTED else body, {g.name: g for g in got})


def judged(
    *got: Got, changes: dict[Role, Change] | None = None, made: Plan | None = None, place: Place = PLACE
) -> dict[str, Row]:
    chosen = made or plan()
    pods = {role: pod(role, chosen, *got) for role in Role}
    for role, change in (changes or {}).items():
        change(pods[role])
    return {row.check: row for row in judge.rows(chosen, pods, 9.4, place)}


def status(rows: dict[str, Row]) -> dict[str, str]:
    return {name.removeprefix("traffic-"): row.status.value for name, row in rows.items()}


def text(row: Row) -> str:
    return " ".join([row.message, *row.objects])


def test_all_is_well() -> None:
    rows = judged()
    assert set(status(rows).values()) == {"ok"}
    assert list(status(rows)) == ["pods", "identity", "rules", "plaintext", "tokens", "finished"]
    assert rows["traffic-pods"].message == (
        "4 pods in gatehouse-traffic-a1b2c3, 3 of them with a sidecar (9 s)"
    )
    assert "allowed-a1b2c3" in rows["traffic-identity"].message
    assert "other-a1b2c3" in rows["traffic-rules"].message


ANSWERS = [
    (Got(name="identity", status=403, text="RBAC: access denied"), "identity", "get authorizationpolicies"),
    (Got(name="identity", status=503, text="upstream connect error"), "identity", AGENTS),
    (Got(name="identity", error="timeout", text="timed out"), "identity", AGENTS),
    (Got(name="other identity", status=200, text="a1b2c3"), "rules", AGENTS),
    (Got(name="other identity", status=403, text="another proxy"), "rules", AGENTS),
    (Got(name="plaintext", status=200, text="a1b2c3"), "plaintext", AGENTS),
    (Got(name="plaintext", error="name", text="Name not known"), "plaintext", "get networkpolicies -A"),
    (Got(name="plaintext", error="unreachable", text="refused"), "plaintext", "get networkpolicies -A"),
    (Got(name="no token", status=200, text="a1b2c3"), "tokens", AGENTS),
    (Got(name="garbage token", status=403, text="RBAC: access denied"), "tokens", "requestauthentications"),
    (Got(name="good token", status=401, text="Jwks doesn't have key"), "tokens", "requestauthentications"),
]


@pytest.mark.parametrize(("got", "row", "then"), ANSWERS, ids=[f"{g.name}: {g}" for g, _, _ in ANSWERS])
def test_an_answer_that_is_not_the_wanted_one(got: Got, row: str, then: str) -> None:
    """One row fails, and says who got what, and where to look; the others stay as they are."""
    rows = judged(got)
    assert status(rows) == {**status(judged()), row: "fail"}
    found = rows[f"traffic-{row}"]
    assert max(map(len, found.next.split("; "))) <= 84  # a command in a table is on one line, to be copied
    assert str(got) in text(found)
    assert "gatehouse-traffic-a1b2c3/" in text(found)
    assert then in found.next


def no_sidecar(item: Pod) -> None:
    item["metadata"]["annotations"] = {}


def no_node(item: Pod) -> None:
    item["spec"].pop("nodeName")
    item["status"] = {
        "phase": "Pending",
        "conditions": [{"type": "PodScheduled", "status": "False", "message": "0/2 nodes: cpu"}],
    }


def not_even_looked_at(item: Pod) -> None:
    item["spec"].pop("nodeName")
    item["status"] = {"phase": "Pending"}


def crashed(item: Pod) -> None:
    message = "Traceback\n  File x\nModuleNotFoundError: No module named 'meshctl.traffic'\n"
    item["status"]["phase"] = "Failed"
    item["status"]["containerStatuses"][0]["state"] = {"terminated": {"exitCode": 1, "message": message}}


def not_mounted(item: Pod) -> None:
    for container in ("app", "istio-proxy"):
        waiting(item, container, "ContainerCreating")


def proxy_not_ready(item: Pod) -> None:
    item["status"] = {
        "phase": "Running",
        "containerStatuses": [{"name": "istio-proxy", "ready": False, "state": {"running": {}}}],
    }


def still_asking(item: Pod) -> None:
    item["status"] = {
        "phase": "Running",
        "containerStatuses": [
            {"name": "istio-proxy", "ready": True, "state": {"running": {}}},
            {"name": "app", "ready": True, "state": {"running": {}}},
        ],
    }


def server_not_ready(item: Pod) -> None:
    item["status"]["conditions"] = []


def image(reason: str) -> Callable[[Pod], None]:
    return lambda item: waiting(item, "app", reason, "Back-off pulling image")


def crashing(item: Pod) -> None:
    crashed(item)
    status = item["status"]["containerStatuses"][0]
    status |= {"lastState": status["state"], "restartCount": 2, "ready": False}
    status["state"] = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s restarting"}}
    item["status"] |= {"phase": "Running", "conditions": []}


TROUBLES: list[tuple[str, Role, Change, str, str]] = [
    ("no sidecar", Role.OTHER, no_sidecar, "it has no sidecar", LOGS),
    ("unschedulable", Role.SERVER, no_node, "it is not scheduled: 0/2 nodes: cpu", "kubectl get nodes"),
    ("unseen", Role.OTHER, not_even_looked_at, "it is not scheduled yet", "kubectl get nodes"),
    ("crash", Role.ALLOWED, crashed, "app ended with 1: ModuleNotFoundError: No module", "--keep"),
    ("crashes", Role.SERVER, crashing, "app: CrashLoopBackOff: ModuleNotFoundError: No module", "--keep"),
    ("mount", Role.SERVER, not_mounted, "is the node agent there?", AGENTS),
    ("proxy", Role.SERVER, proxy_not_ready, "no configuration or no certificate yet", AGENTS),
    ("asking", Role.OTHER, still_asking, "it was still asking", "describe pods"),
    ("not ready", Role.SERVER, server_not_ready, "it is not ready yet", "describe pods"),
    ("image", Role.SERVER, image("ImagePullBackOff"), "gatehouse/control:0.1.0 cannot be pulled", "--image"),
    (
        "config",
        Role.OTHER,
        lambda item: waiting(item, "app", "CreateContainerConfigError", "runAsNonRoot"),
        "app: CreateContainerConfigError: runAsNonRoot",
        "describe pods",
    ),
]


@pytest.mark.parametrize(
    ("role", "change", "what", "then"), [t[1:] for t in TROUBLES], ids=[t[0] for t in TROUBLES]
)
def test_a_pod_that_does_not_work(role: Role, change: Change, what: str, then: str) -> None:
    row = judged(changes={role: change})["traffic-pods"]
    assert row.status is Status.FAIL
    assert any(name.startswith(f"gatehouse-traffic-a1b2c3/{role.value}-a1b2c3: ") for name in row.objects)
    assert what in text(row)
    assert then in row.next


def test_without_a_server_nothing_is_known_of_the_rest() -> None:
    made = plan()
    item = pod(Role.SERVER, made)
    image("ImagePullBackOff")(item)
    rows = {row.check: row for row in judge.rows(made, {Role.SERVER: item}, 5, PLACE)}
    assert status(rows) == dict.fromkeys(status(rows), "skip") | {"pods": "fail"}
    assert len({row.message for row in rows.values()}) == len(rows)
    assert "not started for that reason: allowed, other, outside" in rows["traffic-pods"].message
    assert rows["traffic-identity"].next == "what the row about the pods says"


@pytest.mark.parametrize(
    ("own", "then"), [(True, "--traffic-namespace NAMESPACE"), (False, "create secret docker-registry pull")]
)
def test_pull_secrets_of_another_namespace(own: bool, then: str) -> None:
    """Secrets are looked for in the pod's namespace: those of the control plane do not count."""
    made = plan(pull_secrets=("pull",), own=own)
    row = judged(changes={Role.SERVER: image("ImagePullBackOff")}, made=made)["traffic-pods"]
    assert "pull Secrets of the control plane (pull) are not looked for in another namespace" in text(row)
    assert then in row.next


def test_a_sidecar_that_outlives_its_client() -> None:
    def lingers(item: Pod) -> None:
        item["status"]["phase"] = "Running"
        item["status"]["containerStatuses"][1]["state"] = {"running": {}}

    rows = judged(changes={Role.OTHER: lingers})
    assert status(rows) == {**status(judged()), "finished": "fail"}
    assert rows["traffic-finished"].objects == ["gatehouse-traffic-a1b2c3/other-a1b2c3"]
    assert AGENTS in rows["traffic-finished"].next


def test_kept_pods_are_named_in_the_next_step() -> None:
    kept = Place(mesh="istio-system", injector=LOGS, kept=True)
    rows = judged(Got(name="other identity", status=200), place=kept)
    assert (
        "kubectl -n gatehouse-traffic-a1b2c3 logs server-a1b2c3 -c istio-proxy" in rows["traffic-rules"].next
    )


def test_what_is_waited_for() -> None:
    made = plan()
    pods = {role: pod(role, made) for role in Role}
    assert all(is_settled(role, item) for role, item in pods.items())
    assert not any(is_hopeless(role, item) for role, item in pods.items())
    for role in Role:
        fresh = pod(role, made)
        fresh["status"] = {"phase": "Pending"}
        assert not is_settled(role, fresh)
        image("ErrImagePull")(fresh)
        assert not is_hopeless(role, fresh)  # it may be the first of several tries
        for reason in ("ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName"):
            image(reason)(fresh)
            assert is_hopeless(role, fresh)
        assert is_hopeless(role, pod(role, made, injected=False)) is (role in INJECTED)
    crashing(pods[Role.SERVER])
    assert is_hopeless(Role.SERVER, pods[Role.SERVER])
    for role in CLIENTS:
        crashed(pods[role])
        assert is_hopeless(role, pods[role])


def test_a_report_of_another_version_is_not_judged() -> None:
    def other(item: Pod) -> None:
        state = item["status"]["containerStatuses"][0]["state"]
        state["terminated"]["message"] = '{"good":true,"rounds":1,"seconds":1,"got":[]}'

    row = judged(changes={Role.OTHER: other})["traffic-rules"]
    assert (row.status, "another version" in row.message) == (Status.SKIP, True)
