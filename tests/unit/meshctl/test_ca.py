"""`meshctl ca`: the status, and steps that a real rotator takes or refuses."""

from __future__ import annotations

import datetime as dt
import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from mesh.ca_status import REQUEST_ANNOTATION, AgentCounts, Step
from meshctl import ca
from meshctl.cluster import Cluster
from meshctl.errors import CtlCode, CtlError
from tests.fakes.ca_factory import make_hierarchy
from tests.fakes.ca_leader import NAMESPACE, Leader, leader
from tests.fakes.kube_api import FakeKube
from tests.fakes.meshctl_cli import Ran, ctl

READY = AgentCounts(expected=2, reported=2, acked=2)


@pytest.fixture
def kube() -> Iterator[FakeKube]:
    with FakeKube() as server:
        server.add({"kind": "Namespace", "metadata": {"name": NAMESPACE}})
        yield server


@pytest.fixture
def lead(kube: FakeKube) -> Iterator[Leader]:
    """An authority that leads, takes no step by itself, and waits a second before it activates."""
    with leader(kube, automatic=False, hold=dt.timedelta(0)) as found:
        found.counts = READY
        yield found


def run(kube: FakeKube, directory: Path, *words: str, stdin: str = "") -> Ran:
    return ctl("ca", *words, f"--kubeconfig={kube.kubeconfig(directory)}", stdin=stdin)


def status(kube: FakeKube, directory: Path) -> dict[str, object]:
    return dict(json.loads(run(kube, directory, "status", "-o", "json").out))


def notes_of(kube: FakeKube) -> dict[str, str]:
    found = kube.find("ConfigMap", "gatehouse-ca", NAMESPACE)
    assert found is not None
    return dict(found["metadata"].get("annotations") or {})


def test_a_whole_rotation(kube: FakeKube, lead: Leader, tmp_path: Path) -> None:
    """Each step is taken by the authority, told in three lines, and the next one is named."""
    ran = run(kube, tmp_path, "prepare")
    assert (ran.code, ran.out.splitlines()[:2]) == (
        0,
        ["prepare is done", "stable -> [prepared] -> active -> stable"],
    )
    assert run(kube, tmp_path, "activate").code == 0
    ran = run(kube, tmp_path, "taint", "--within", "2m")
    assert ran.out.splitlines()[1] == "stable -> prepared -> [tainted] -> stable"
    ran = run(kube, tmp_path, "retire")
    assert (ran.code, "[rotation_leaves]" in ran.err) == (1, True)
    assert run(kube, tmp_path, "retire", "--force", "--yes").code == 0
    found = status(kube, tmp_path)
    assert (found["phase"], found["generation"], found["epoch"]) == ("stable", 3, 2)
    assert notes_of(kube) == {}


def test_a_step_that_waits_is_refused_with_what_it_waits_for(
    kube: FakeKube, lead: Leader, tmp_path: Path
) -> None:
    assert run(kube, tmp_path, "prepare").code == 0
    lead.counts = AgentCounts(expected=2, reported=1, acked=1, missing=("node-2: no report",))
    ran = run(kube, tmp_path, "activate")
    assert ran.code == 1
    assert ran.out == ""
    assert "1 of 2 node agents have not acknowledged the roots: node-2: no report" in ran.err
    assert "[rotation_agents]" in ran.err
    assert "next: meshctl ca status" in ran.err
    ran = run(kube, tmp_path, "abort")
    assert ran.out.splitlines()[:2] == ["abort is done", "[stable] -> prepared -> active -> stable"]


def test_the_answer_for_programs(kube: FakeKube, lead: Leader, tmp_path: Path) -> None:
    found = json.loads(run(kube, tmp_path, "prepare", "-o", "json").out)
    assert (found["step"], found["done"], found["code"], found["phase"]) == ("prepare", True, "", "prepared")
    ran = run(kube, tmp_path, "prepare", "-o", "json")
    found = json.loads(ran.out)
    assert (ran.code, found["done"], found["code"]) == (1, False, "rotation_phase")


@pytest.mark.parametrize("text", ["", "0s", "h", "-1h", "1.5h", "31d", "1h30m", "1 h", "99999999s"])
def test_a_time_that_is_none_asks_for_nothing(
    kube: FakeKube, lead: Leader, tmp_path: Path, text: str
) -> None:
    ran = run(kube, tmp_path, "taint", f"--within={text}")
    assert (ran.code, "[ctl_argument]" in ran.err) == (2, True)
    assert status(kube, tmp_path)["answer"] is None


def test_times() -> None:
    assert [ca.within(t) for t in ("1s", "30m", "24h", "30d")] == [1, 1800, 86400, 2592000]


def test_force_wants_to_be_meant(kube: FakeKube, lead: Leader, tmp_path: Path) -> None:
    """Without a terminal by `--yes` only: a script that was not thought through breaks nothing."""
    run(kube, tmp_path, "prepare")
    lead.counts = AgentCounts(expected=2)
    ran = run(kube, tmp_path, "activate", "--force")
    assert (ran.code, "add --yes" in ran.err) == (2, True)
    assert "may refuse certificates of it" in ran.err
    assert status(kube, tmp_path)["phase"] == "prepared"
    ran = run(kube, tmp_path, "activate", "--force", "--yes")
    assert (ran.code, ran.out.splitlines()[0]) == (0, "activate is done, by force")


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("typed", "code"), [("activate\n", 0), ("y\n", 2), ("", 2)])
def test_force_asks_on_a_terminal(
    kube: FakeKube, lead: Leader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: str, code: int
) -> None:
    run(kube, tmp_path, "prepare")
    monkeypatch.setattr(ca.sys, "stdin", _Terminal(typed))  # type: ignore[attr-defined] # its module
    ran = run_on_terminal(kube, tmp_path, typed)
    assert ran == code
    assert status(kube, tmp_path)["phase"] == ("active" if code == 0 else "prepared")


def run_on_terminal(kube: FakeKube, directory: Path, typed: str) -> int:
    """As `run`, which replaces standard input, but with a terminal there."""
    from meshctl.__main__ import main

    try:
        return main(["ca", "activate", "--force", f"--kubeconfig={kube.kubeconfig(directory)}"])
    except SystemExit as end:
        return int(end.code or 0)


def test_nobody_leads(kube: FakeKube, tmp_path: Path) -> None:
    """The request stays for an authority that comes back; another one is not written over it."""
    with leader(kube):
        pass
    ran = run(kube, tmp_path, "prepare", "--wait", "0.3")
    assert (ran.code, "[ctl_unanswered]" in ran.err) == (3, True)
    assert notes_of(kube)[REQUEST_ANNOTATION] == "prepare"
    ran = run(kube, tmp_path, "abort")
    assert (ran.code, "somebody asked for 'prepare'" in ran.err) == (1, True)
    assert notes_of(kube)[REQUEST_ANNOTATION] == "prepare"
    ran = run(kube, tmp_path, "status")
    assert (ran.code, "somebody asked for 'prepare', and nobody has answered" in ran.out) == (1, True)
    assert "annotate configmap gatehouse-ca gatehouse.dev/ca-request-" in ran.out
    with leader(kube) as back:
        back.tick()
    assert notes_of(kube) == {}


def test_two_who_ask_at_once_do_not_take_each_other_s_place(kube: FakeKube, tmp_path: Path) -> None:
    """Between look and write somebody else has asked: the version of the ConfigMap is another one."""
    with leader(kube):
        pass
    cluster = Cluster(kube.api(), "default", NAMESPACE)
    seen = ca.read_status(cluster).version
    ca._put(cluster, Step.PREPARE, {REQUEST_ANNOTATION: "prepare"}, seen)
    with pytest.raises(CtlError) as refusal:
        ca._put(cluster, Step.ABORT, {REQUEST_ANNOTATION: "abort"}, seen)
    assert refusal.value.code is CtlCode.UNANSWERED
    assert notes_of(kube)[REQUEST_ANNOTATION] == "prepare"


def test_the_authority_writes_while_somebody_asks(kube: FakeKube, tmp_path: Path) -> None:
    with leader(kube):
        pass
    cluster = Cluster(kube.api(), "default", NAMESPACE)
    seen = ca.read_status(cluster).version
    found = kube.find("ConfigMap", "gatehouse-ca", NAMESPACE)
    assert found is not None
    kube.add({**found, "kind": "ConfigMap", "data": {**found["data"], "more": "x"}})
    ca._put(cluster, Step.PREPARE, {REQUEST_ANNOTATION: "prepare"}, seen)
    assert notes_of(kube)[REQUEST_ANNOTATION] == "prepare"


def test_it_need_not_wait(kube: FakeKube, lead: Leader, tmp_path: Path) -> None:
    ran = run(kube, tmp_path, "prepare", "--wait=0")
    assert (ran.code, ran.out, "asked for prepare" in ran.err) == (0, "", True)
    ran = run(kube, tmp_path, "prepare", "--wait=-1")
    assert (ran.code, "[ctl_argument]" in ran.err) == (2, True)


def test_without_a_status(kube: FakeKube, tmp_path: Path) -> None:
    for words in (("status",), ("prepare",)):
        ran = run(kube, tmp_path, *words)
        assert (ran.code, "[ctl_no_status]" in ran.err) == (1, True)
        assert "next: kubectl -n istio-system logs deploy/gatehouse-ca" in ran.err


def test_a_status_that_is_none(kube: FakeKube, tmp_path: Path) -> None:
    metadata = {"name": "gatehouse-ca", "namespace": NAMESPACE}
    kube.add({"kind": "ConfigMap", "metadata": metadata, "data": {"status.json": '{"phase": "odd"}'}})
    ran = run(kube, tmp_path, "status")
    assert (ran.code, "[ca_status_field]" in ran.err) == (2, True)


def test_a_ca_from_files_is_rotated_by_others(kube: FakeKube, tmp_path: Path) -> None:
    make_hierarchy(now=dt.datetime.now(dt.UTC)).write_cacerts(tmp_path / "cacerts")
    with leader(kube, tmp_path / "cacerts"):
        ran = run(kube, tmp_path, "prepare")
        assert (ran.code, "[ctl_plugged]" in ran.err) == (1, True)
        ran = run(kube, tmp_path, "status")
        assert ran.out.splitlines()[0] == "[plugged]"
        assert notes_of(kube) == {}


def test_waiting_ends_in_time_and_survives_an_api_server_that_was_away(
    kube: FakeKube, tmp_path: Path
) -> None:
    with leader(kube):
        pass
    clock = iter(range(100))
    pauses: list[float] = []
    cluster = Cluster(kube.api(), "default", NAMESPACE)
    kube.cut(times=1, method="GET", path=".*/configmaps/gatehouse-ca")
    with pytest.raises(CtlError) as refusal:
        ca._wait(cluster, "id", 5, monotonic=lambda: float(next(clock)), pause=pauses.append)
    assert refusal.value.code is CtlCode.UNANSWERED
    assert "no answer within 5 s: GET " in refusal.value.public
    assert pauses == [ca.ASK_EVERY] * 4
