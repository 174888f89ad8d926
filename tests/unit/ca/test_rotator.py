"""The leader rotates, answers people once, and says where things stand."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from ca.audit import Audit
from ca.core.rotation import RotationCode, RotationSettings
from ca.keystore import KeyStore, KeyStoreCode, KeyStoreConfig
from ca.keystore_secret import SecretKeyStore, SecretPlace
from ca.metrics import CaMetrics
from ca.rotator import STATUS_EVERY, Rotator
from ca.secret_record import digest
from mesh.ca_status import AgentCounts, CaStatus, Phase, RootRole, Step, decode
from mesh.kube.api import KubeCode
from mesh.x509.bundles import bundle_digest
from tests.fakes.ca_factory import DAY, NOW, TRUST_DOMAIN, key_pem, make_hierarchy, new_key
from tests.fakes.ca_running import audit_lines
from tests.fakes.kube_api import FakeKube

ASK = "gatehouse.dev/ca-request"
HOUR = dt.timedelta(hours=1)
SECOND = dt.timedelta(seconds=1)
PLACE = SecretPlace(namespace="istio-system")
MAP = "/api/v1/namespaces/istio-system/configmaps/gatehouse-ca"
READY = AgentCounts(expected=2, reported=2, acked=2)


@pytest.fixture
def kube() -> Iterator[FakeKube]:
    with FakeKube() as server:
        server.add({"kind": "Namespace", "metadata": {"name": "istio-system"}})
        yield server


class Replica:
    """One replica's part in it; the upkeep of a worker is `tick`."""

    def __init__(self, kube: FakeKube, name: str = "ca-0", *, directory: Path | None = None, **settings: Any):
        config = KeyStoreConfig(
            trust_domain=TRUST_DOMAIN,
            state_dir=(directory or Path("/never")) / "state",
            plugged_dir=directory / "cacerts" if directory is not None else None,
        )
        self.leads = True
        api = kube.api()
        self.keystore: SecretKeyStore | KeyStore
        if directory is None:
            self.keystore = SecretKeyStore.open(api, PLACE, config, NOW, may_renew=lambda: self.leads)
        else:
            self.keystore = KeyStore.open(config, NOW)
        self.counts = AgentCounts()
        self.unpublished: tuple[str, ...] | None = ()
        self.asked: list[tuple[str, int]] = []
        self.registry = CollectorRegistry()
        self.rotator = Rotator(
            api,
            PLACE,
            self.keystore,
            RotationSettings(**settings),
            counts=self._counts,
            unpublished=lambda: self.unpublished,
            leading=lambda: self.leads,
            writer=name,
            metrics=CaMetrics(self.registry),
            audit=Audit(),
        )

    def _counts(self, bundle: str, epoch: int, now: dt.datetime) -> AgentCounts:
        self.asked.append((bundle, epoch))
        return self.counts

    def tick(self, now: dt.datetime = NOW) -> bool:
        self.keystore.reload(now)
        return self.rotator.tick(now)

    def steps(self, step: str, result: str) -> float:
        labels = {"step": step, "result": result}
        return self.registry.get_sample_value("gatehouse_ca_rotation_steps_total", labels) or 0

    @property
    def phase(self) -> Phase:
        assert isinstance(self.keystore, SecretKeyStore)
        return self.keystore.rotation.phase


def _map(kube: FakeKube) -> dict[str, Any]:
    return dict(kube.find("ConfigMap", "gatehouse-ca", "istio-system") or {})


def _status(kube: FakeKube) -> CaStatus:
    return decode(_map(kube)["data"]["status.json"])


def _ask(kube: FakeKube, step: str, **others: str) -> None:
    annotations = {ASK: step, **{f"{ASK}-{name}": text for name, text in others.items()}, "mine": "stays"}
    found = _map(kube)
    kube.add({**found, "kind": "ConfigMap", "metadata": {**found["metadata"], "annotations": annotations}})


def _annotations(kube: FakeKube) -> dict[str, str]:
    return dict(_map(kube)["metadata"].get("annotations") or {})


def test_a_young_root_is_left_alone_and_told(kube: FakeKube) -> None:
    one = Replica(kube)
    assert not one.tick()
    status = _status(kube)
    assert (status.phase, status.generation, status.epoch) == (Phase.STABLE, 1, 1)
    assert (status.next_step, status.next_at) == (Step.PREPARE, NOW + 3620 * DAY)
    assert (status.automatic, status.writer, status.answer, status.updated) == (True, "ca-0", None, NOW)
    (root,) = status.roots
    assert (root.role, root.sha256) == (RootRole.SIGNING, digest(one.keystore.roots[0]))
    assert root.subject.startswith("CN=Gatehouse root ")
    assert status.bundle_digest == bundle_digest(one.keystore.roots)
    assert one.asked[-1] == (status.bundle_digest, 1)
    assert status.issuer_serial == one.keystore.issuer(NOW).certificate.serial
    assert _map(kube)["data"]["root-sha256"] == root.sha256


def test_the_whole_rotation_by_itself(kube: FakeKube) -> None:
    one = Replica(kube)
    one.counts = READY
    due = NOW + 3620 * DAY + SECOND
    with audit_lines() as lines:
        one.keystore.reload(due)
        assert one.tick(due)
        status = _status(kube)
        assert (status.phase, status.next_step, status.next_at) == (
            Phase.PREPARED,
            Step.ACTIVATE,
            status.since + HOUR,
        )
        assert [r.role for r in status.roots] == [RootRole.SIGNING, RootRole.NEXT]
        assert one.asked[-1] == (bundle_digest(one.keystore.roots), 1), "counts are of the new bundle"
        assert not one.tick(due + HOUR)
        one.unpublished = ("demo",)
        assert not one.tick(due + HOUR + SECOND)
        (waiting,) = _status(kube).waiting
        assert (waiting.code, waiting.text) == (
            RotationCode.UNPUBLISHED,
            "1 namespaces do not have the roots: demo",
        )
        one.unpublished = ()
        active = due + HOUR + 2 * SECOND
        assert one.tick(active)
        status = _status(kube)
        assert (status.phase, status.epoch, status.waiting) == (Phase.ACTIVE, 2, ())
        assert [r.role for r in status.roots] == [RootRole.SIGNING, RootRole.RETIRING]
        assert status.next_at == active + 2 * DAY + 10 * 60 * SECOND
        one.counts = AgentCounts(expected=2, reported=1, outdated=3, missing=("n-1: no report",))
        assert not one.tick(active + 3 * DAY)
        assert [w.code for w in _status(kube).waiting] == [RotationCode.AGENTS, RotationCode.OUTDATED]
        one.counts = READY
        assert one.tick(active + 3 * DAY)
    status = _status(kube)
    assert (status.phase, status.generation, status.epoch, len(status.roots)) == (Phase.STABLE, 3, 2, 1)
    assert status.answer is None, "nobody had asked"
    assert [(x["decision"], x["step"], x["forced"], x["asked"]) for x in lines] == [
        ("rotated", step, False, False) for step in ("prepare", "activate", "retire")
    ]
    assert [one.steps(step, "done") for step in Step] == [1, 1, 0, 1, 0]
    assert _map(kube)["data"]["root-sha256"] == digest(one.keystore.roots[0])


def test_people_ask_and_are_answered_once(kube: FakeKube) -> None:
    one = Replica(kube)
    one.tick()
    _ask(kube, "prepare", id="r-1")
    assert one.tick()
    answer = _status(kube).answer
    assert answer is not None
    assert (answer.step, answer.id, answer.done, answer.code, answer.at) == (
        Step.PREPARE,
        "r-1",
        True,
        "",
        NOW,
    )
    assert answer.text == "prepare is done"
    assert _annotations(kube) == {"mine": "stays"}
    assert not one.tick(NOW + SECOND)
    assert _status(kube).answer == answer, "it stays there"
    one.counts = AgentCounts(expected=2, acked=1)
    _ask(kube, "activate", id="r-2")
    with audit_lines() as lines:
        assert not one.tick(NOW + SECOND)
    answer = _status(kube).answer
    assert answer is not None
    assert (answer.id, answer.done, answer.code) == ("r-2", False, RotationCode.HOLD)
    assert [(x["decision"], x["step"], x["code"], x["request_id"]) for x in lines] == [
        ("refused", "activate", "rotation_hold", "r-2")
    ]
    _ask(kube, "activate", id="r-3", force="true")
    with audit_lines() as lines:
        assert one.tick(NOW + 2 * SECOND)
    answer = _status(kube).answer
    assert answer is not None
    assert (answer.id, answer.done, answer.text) == ("r-3", True, "activate is done, by force")
    assert [(x["decision"], x["forced"], x["asked"], x["request_id"]) for x in lines] == [
        ("rotated", True, True, "r-3")
    ]
    _ask(kube, "taint", id="r-4", within="60")
    assert one.tick(NOW + 3 * SECOND)
    assert isinstance(one.keystore, SecretKeyStore)
    assert one.keystore.rotation.renew_within(NOW + 3 * SECOND) == 60 * SECOND
    assert (one.steps("activate", "refused"), one.steps("activate", "forced")) == (1, 1)
    assert _annotations(kube) == {"mine": "stays"}


@pytest.mark.parametrize(
    ("step", "others", "wanted", "code"),
    [
        ("jump", {}, None, RotationCode.STEP),
        ("taint", {"within": "0"}, Step.TAINT, RotationCode.WITHIN),
        ("prepare", {"force": "maybe"}, Step.PREPARE, RotationCode.FORCE),
        ("retire", {"force": "true"}, Step.RETIRE, RotationCode.PHASE),
        ("abort", {}, Step.ABORT, RotationCode.PHASE),
    ],
)
def test_requests_that_make_no_sense_are_answered(
    kube: FakeKube, step: str, others: dict[str, str], wanted: Step | None, code: RotationCode
) -> None:
    one = Replica(kube)
    one.tick()
    _ask(kube, step, id="r-1", **others)
    assert not one.tick()
    answer = _status(kube).answer
    assert answer is not None
    assert (answer.step, answer.id, answer.done, answer.code) == (wanted, "r-1", False, code)
    assert one.steps(wanted or "unknown", "refused") == 1
    assert _annotations(kube) == {"mine": "stays"}
    assert one.phase is Phase.STABLE


@pytest.mark.parametrize("request_id", ["r-1", ""], ids=["with-id", "without-id"])
def test_a_leader_that_dies_between_step_and_answer(kube: FakeKube, request_id: str) -> None:
    one, two = Replica(kube), Replica(kube, "ca-1")
    one.tick()
    _ask(kube, "prepare", **({"id": request_id} if request_id else {}))
    kube.fail(500, method="PUT", path=MAP)
    assert one.tick(), "the step is taken, and the worker must know"
    assert one.phase is Phase.PREPARED
    assert one.rotator.problem is not None
    assert one.rotator.problem.code is KubeCode.SERVER
    assert ASK in _annotations(kube)
    assert not two.tick(NOW + SECOND)
    status = _status(kube)
    assert status.answer is not None
    assert (status.answer.done, status.answer.id, status.answer.at) == (True, request_id, NOW)
    assert (status.writer, status.phase, status.generation) == ("ca-1", Phase.PREPARED, 2)
    assert _annotations(kube) == {"mine": "stays"}
    assert two.steps("prepare", "done") == two.steps("prepare", "refused") == 0


def test_a_request_that_comes_while_another_is_answered_is_not_lost(kube: FakeKube) -> None:
    one = Replica(kube)
    one.tick()
    _ask(kube, "prepare", id="r-1")
    kube.fail(409, method="PUT", path=MAP)
    assert one.tick(), "the step is taken"
    _ask(kube, "abort", id="r-2")
    assert one.tick(NOW + SECOND)
    answer = _status(kube).answer
    assert answer is not None
    assert (answer.step, answer.id, answer.done) == (Step.ABORT, "r-2", True)
    assert one.phase is Phase.STABLE


def test_of_two_that_believe_to_lead_one_takes_the_step(kube: FakeKube) -> None:
    one, two = Replica(kube), Replica(kube, "ca-1")
    one.tick()
    _ask(kube, "prepare", id="r-1")
    kube.fail(500, method="PUT", path=MAP)
    one.rotator.tick(NOW)  # neither reads the Secret before it acts
    assert not two.rotator.tick(NOW)
    assert two.steps("prepare", "conflict") == 1
    assert two.rotator.problem is not None
    assert two.rotator.problem.code is KeyStoreCode.CHANGED
    assert not two.tick(NOW)
    assert two.rotator.problem is None
    assert (two.phase, _status(kube).generation) == (Phase.PREPARED, 2)


def test_who_does_not_lead_does_nothing(kube: FakeKube) -> None:
    one = Replica(kube)
    one.leads = False
    before = _map(kube)
    _ask(kube, "prepare")
    kube.requests.clear()
    assert not one.rotator.tick(NOW)
    assert kube.asked() == []
    assert "status.json" not in before["data"]


def test_api_server_away(kube: FakeKube) -> None:
    """G-01: nothing happens, and what was asked for happens later."""
    one = Replica(kube)
    one.tick()
    _ask(kube, "prepare", id="r-1")
    kube.fail(500, times=3)
    assert not one.rotator.tick(NOW)
    assert one.rotator.problem is not None
    assert one.rotator.problem.code is KubeCode.SERVER
    kube.faults.clear()
    kube.fail(503, method="PUT", path=".*secrets.*")
    assert not one.rotator.tick(NOW)
    assert one.steps("prepare", "failed") == 1
    assert _annotations(kube)[ASK] == "prepare"
    assert one.rotator.tick(NOW)
    assert one.phase is Phase.PREPARED


def test_keys_that_cannot_be_used_are_an_answer(kube: FakeKube) -> None:
    import base64

    one = Replica(kube)
    secret = dict(kube.find("Secret", "gatehouse-ca", "istio-system") or {})
    bad = base64.b64encode(key_pem(new_key()).encode()).decode()
    kube.add({**secret, "kind": "Secret", "data": {**secret["data"], "root-key.pem": bad}})
    one.tick()
    _ask(kube, "prepare", id="r-1")
    assert not one.tick()
    answer = _status(kube).answer
    assert answer is not None
    assert (answer.done, answer.code) == (False, KeyStoreCode.KEY_MISMATCH)
    assert one.steps("prepare", "failed") == 1
    assert "PRIVATE" not in _map(kube)["data"]["status.json"]


def test_the_status_is_written_when_something_changes_and_every_so_often(kube: FakeKube) -> None:
    one = Replica(kube)

    def writes() -> int:
        return len(kube.asked("PUT", MAP))

    one.tick()
    first = writes()
    for seconds in (5, 100, 599):
        one.tick(NOW + seconds * SECOND)
    assert writes() == first
    one.tick(NOW + STATUS_EVERY)
    assert writes() == first + 1
    one.counts = READY
    one.tick(NOW + STATUS_EVERY + SECOND)
    assert (writes(), _status(kube).agents) == (first + 2, READY)
    one.tick(NOW)  # a clock that was set back
    assert writes() == first + 3


def test_a_status_that_somebody_broke_is_written_anew(kube: FakeKube) -> None:
    one = Replica(kube)
    found = _map(kube)
    kube.add({**found, "kind": "ConfigMap", "data": {"status.json": "{", "other": "x"}})
    one.tick()
    assert _status(kube).phase is Phase.STABLE
    assert _map(kube)["data"]["other"] == "x"
    kube.remove("ConfigMap", "gatehouse-ca", "istio-system")
    one.tick()
    assert _status(kube).phase is Phase.STABLE
    assert _map(kube)["data"]["root-sha256"] == digest(one.keystore.roots[0]), "the trace of the root, too"


def test_a_restored_older_copy_gets_numbers_that_nobody_has_seen(kube: FakeKube) -> None:
    one = Replica(kube)
    backup = dict(kube.find("Secret", "gatehouse-ca", "istio-system") or {})
    one.tick()
    for number, (step, force) in enumerate([("prepare", "false"), ("activate", "true"), ("retire", "true")]):
        _ask(kube, step, id=f"r-{number}", force=force)
        one.tick()
    assert (_status(kube).generation, _status(kube).epoch) == (3, 2)
    kube.add({**backup, "kind": "Secret", "metadata": {**backup["metadata"], "resourceVersion": None}})
    again = Replica(kube)  # nobody ran when it was restored
    assert again.keystore.issuer(NOW).generation == 1
    assert again.tick()
    status = _status(kube)
    assert (status.generation, status.epoch, status.phase) == (4, 3, Phase.STABLE)
    assert not again.tick()
    assert Replica(kube).keystore.issuer(NOW).generation == 4


def test_when_nothing_is_automatic(kube: FakeKube) -> None:
    one = Replica(kube, automatic=False)
    assert not one.tick(NOW + 3640 * DAY)
    status = _status(kube)
    assert (status.automatic, status.next_step) == (False, None)


def test_a_plugged_in_ca_is_told_of_and_not_rotated(kube: FakeKube, tmp_path: Path) -> None:
    hierarchy, extra = make_hierarchy(), make_hierarchy()
    hierarchy.write_cacerts(tmp_path / "cacerts")
    (tmp_path / "cacerts" / "root-cert.pem").write_text(hierarchy.roots_pem + extra.roots_pem)
    one = Replica(kube, directory=tmp_path)
    one.counts = READY
    assert not one.tick()
    status = _status(kube)
    assert (status.phase, status.generation, status.epoch) == (Phase.PLUGGED, 0, 0)
    assert (status.agents, status.automatic, status.next_step) == (READY, False, None)
    assert {(r.role, r.sha256) for r in status.roots} == {
        (RootRole.SIGNING, digest(hierarchy.root_der)),
        (RootRole.TRUSTED, digest(extra.root_der)),
    }
    assert "root-sha256" not in _map(kube)["data"], "no trace of a root of ours"
    _ask(kube, "prepare", id="r-1", force="true")
    assert not one.tick(NOW + HOUR)
    answer = _status(kube).answer
    assert answer is not None
    assert (answer.done, answer.code) == (False, RotationCode.PLUGGED)
    assert _status(kube).since == NOW, "as long as somebody was there to say so"
    assert kube.all("Secret") == []


def test_gauges(kube: FakeKube) -> None:
    one, two = Replica(kube), Replica(kube, "ca-1")
    two.leads = False
    one.counts = AgentCounts(expected=5, reported=4, acked=3, outdated=7)
    _ask(kube, "prepare")
    one.tick()
    two.tick()
    later = NOW + HOUR
    for replica, agents in ((one, (5, 3, 7)), (two, (0, 0, 0))):
        replica.rotator.refresh_gauges(later)

        def value(name: str, registry: CollectorRegistry = replica.registry, **labels: str) -> float | None:
            return registry.get_sample_value(f"gatehouse_ca_{name}", labels)

        assert {p: value("rotation_phase", phase=p) for p in Phase} == {
            p: float(p is Phase.PREPARED) for p in Phase
        }
        assert value("rotation_phase_seconds") == 3600
        assert (value("bundle_generation"), value("issuer_epoch")) == (2, 1)
        names = ("agents_expected", "agents_acked", "agents_outdated_workloads")
        assert tuple(value(name) for name in names) == agents
