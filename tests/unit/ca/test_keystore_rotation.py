"""The rotation of roots in the Secret: what each step leaves there, and what other replicas take from it."""

from __future__ import annotations

import base64
import datetime as dt
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ca.core.authority import Authority
from ca.core.profile import Profile
from ca.core.rotation import INITIAL, Request, RotationError, RotationSettings
from ca.keystore import KeyStoreCode, KeyStoreConfig, KeyStoreError
from ca.keystore_secret import SecretKeyStore, SecretPlace, look
from ca.secret_record import digest
from mesh.ca_status import Phase, Step
from mesh.kube.api import KubeCode, KubeError
from mesh.x509 import pem
from mesh.x509.certs import read_certificate
from tests.fakes.ca_factory import DAY, NOW, TRUST_DOMAIN, key_pem, new_key
from tests.fakes.kube_api import FakeKube

PLACE = SecretPlace(namespace="istio-system")
CONFIG = KeyStoreConfig(trust_domain=TRUST_DOMAIN, state_dir=Path("/never"))
SETTINGS = RotationSettings()
SECRET = "/api/v1/namespaces/istio-system/secrets/gatehouse-ca"
FOUR = {"root-cert.pem", "root-key.pem", "ca-cert.pem", "ca-key.pem"}
NEXT = {"next-root-cert.pem", "next-root-key.pem", "next-ca-cert.pem", "next-ca-key.pem"}
HOUR = dt.timedelta(hours=1)


@pytest.fixture
def kube() -> Iterator[FakeKube]:
    with FakeKube() as server:
        server.add({"kind": "Namespace", "metadata": {"name": "istio-system"}})
        yield server


def _open(
    kube: FakeKube, now: dt.datetime = NOW, *, config: KeyStoreConfig = CONFIG, leads: bool = True
) -> SecretKeyStore:
    return SecretKeyStore.open(kube.api(), PLACE, config, now, may_renew=lambda: leads)


def _secret(kube: FakeKube) -> dict[str, Any]:
    return dict(kube.find("Secret", "gatehouse-ca", "istio-system") or {})


def _files(kube: FakeKube) -> dict[str, str]:
    return {name: base64.b64decode(text).decode() for name, text in _secret(kube)["data"].items()}


def _write(kube: FakeKube, files: dict[str, str | None]) -> None:
    data = dict(_secret(kube)["data"])
    for name, text in files.items():
        data.pop(name, None)
        if text is not None:
            data[name] = base64.b64encode(text.encode()).decode()
    kube.add({**_secret(kube), "kind": "Secret", "data": data})


def _step(store: SecretKeyStore, step: Step, now: dt.datetime = NOW) -> None:
    store.rotate(step, now, SETTINGS, request=Request(step=step, within=HOUR, id="r-1"))


def _to(store: SecretKeyStore, phase: Phase, now: dt.datetime = NOW) -> None:
    steps = [Step.PREPARE, Step.ACTIVATE, Step.TAINT]
    for step in steps[: [Phase.STABLE, Phase.PREPARED, Phase.ACTIVE, Phase.TAINTED].index(phase)]:
        _step(store, step, now)


def _root_digest(kube: FakeKube) -> str:
    record = kube.find("ConfigMap", "gatehouse-ca", "istio-system") or {}
    return str(record["data"]["root-sha256"])


def test_the_steps_one_after_the_other(kube: FakeKube) -> None:
    store = _open(kube)
    before = store.issuer(NOW)
    (former,) = before.roots
    assert (before.generation, before.epoch, store.rotation) == (1, 1, INITIAL)

    _step(store, Step.PREPARE)
    prepared = store.issuer(NOW)
    files = _files(kube)
    assert set(files) == FOUR | NEXT | {"cross-cert.pem", "rotation.json"}
    assert pem.decode_certificates(files["root-cert.pem"]) == prepared.roots
    assert (prepared.roots[0], prepared.certificate, prepared.chain) == (
        former,
        before.certificate,
        before.chain,
    )
    assert (prepared.generation, prepared.epoch) == (2, 1)
    (after,) = pem.decode_certificates(files["next-root-cert.pem"])
    assert prepared.roots == (former, after)
    next_files = {name.removeprefix("next-"): files[name] for name in NEXT}
    Authority(prepared, Profile())

    _step(store, Step.ACTIVATE)
    active = store.issuer(NOW)
    files = _files(kube)
    assert set(files) == FOUR | {"cross-cert.pem", "rotation.json"}, "the former root's key is gone"
    assert {name: files[name] for name in FOUR - {"root-cert.pem"}} == {
        name: text for name, text in next_files.items() if name != "root-cert.pem"
    }
    assert active.roots == pem.decode_certificates(files["root-cert.pem"]) == (after, former)
    assert (active.generation, active.epoch) == (2, 2)
    (cross,) = pem.decode_certificates(files["cross-cert.pem"])
    assert [c.der for c in active.chain] == [active.certificate.der, cross]
    assert read_certificate(cross).spki == store.root.spki
    assert not store.reload(NOW).changed
    assert _root_digest(kube) == digest(after)
    Authority(active, Profile())

    _step(store, Step.TAINT)
    assert store.issuer(NOW) is active, "nothing changes for who gets certificates"
    assert store.rotation.renew_within(NOW) == HOUR

    _step(store, Step.RETIRE)
    retired = store.issuer(NOW)
    assert set(_files(kube)) == FOUR | {"rotation.json"}
    assert (retired.roots, retired.chain) == ((after,), (active.certificate,))
    assert (retired.generation, retired.epoch) == (3, 2)
    assert store.rotation.phase is Phase.STABLE
    Authority(retired, Profile())
    assert json.loads(_files(kube)["rotation.json"])["handled"]["id"] == "r-1"


def test_abort_leads_back(kube: FakeKube) -> None:
    store = _open(kube)
    before, files = store.issuer(NOW), _files(kube)
    _step(store, Step.PREPARE)
    _step(store, Step.ABORT)
    after = store.issuer(NOW)
    assert {k: v for k, v in _files(kube).items() if k != "rotation.json"} == files
    assert (after.roots, after.chain, after.generation, after.epoch) == (before.roots, before.chain, 3, 1)
    _step(store, Step.PREPARE)
    assert store.rotation.generation == 4
    assert len(store.roots) == 2


def test_each_step_is_one_write(kube: FakeKube) -> None:
    store = _open(kube)
    for step in (Step.PREPARE, Step.ACTIVATE, Step.TAINT, Step.RETIRE):
        before = len(kube.asked("PUT", SECRET))
        _step(store, step)
        assert len(kube.asked("PUT", SECRET)) == before + 1


@pytest.mark.parametrize("missed", range(5))
def test_another_replica_takes_over_whatever_it_has_missed(kube: FakeKube, missed: int) -> None:
    leader, other = _open(kube), _open(kube, leads=False)
    for number, step in enumerate((Step.PREPARE, Step.ACTIVATE, Step.TAINT, Step.RETIRE)):
        _step(leader, step)
        if number >= missed:
            result = other.reload(NOW)
            assert (result.error, result.changed) == (None, step is not Step.TAINT or number == missed > 0)
    other.reload(NOW)
    assert other.last_error is None
    assert other.rotation == leader.rotation
    assert other.issuer(NOW).certificate.der == leader.issuer(NOW).certificate.der
    assert not other.reload(NOW).changed


def test_a_second_start_reads_every_phase(kube: FakeKube) -> None:
    store = _open(kube)
    for step in (Step.PREPARE, Step.ACTIVATE, Step.TAINT, Step.RETIRE):
        _step(store, step)
        version = _secret(kube)["metadata"]["resourceVersion"]
        again = _open(kube, leads=False)
        assert again.rotation == store.rotation
        held, found = store.issuer(NOW), again.issuer(NOW)
        assert (found.chain, found.roots, found.generation) == (held.chain, held.roots, held.generation)
        assert look(kube.api(), PLACE, CONFIG, NOW) is not None
        assert _secret(kube)["metadata"]["resourceVersion"] == version


def test_a_program_that_knows_no_rotations_reads_the_four_files(kube: FakeKube) -> None:
    """What such a one does: signing key, its root first, all roots trusted."""
    store = _open(kube)
    for step in (Step.PREPARE, Step.ACTIVATE, Step.RETIRE):
        _step(store, step)
        with FakeKube() as elsewhere:
            elsewhere.add({"kind": "Namespace", "metadata": {"name": "istio-system"}})
            elsewhere.add({**_secret(kube), "kind": "Secret"})
            gone = {name: None for name in _files(kube) if name not in FOUR}
            _write(elsewhere, dict(gone))
            old = _open(elsewhere)
            assert old.rotation == INITIAL
            assert old.roots == store.roots
            assert old.issuer(NOW).certificate.der == store.issuer(NOW).certificate.der
            Authority(old.issuer(NOW), Profile())
            _to(old, Phase.ACTIVE)  # and its successor can rotate again
            assert set(store.roots) < set(old.roots)


def test_of_two_leaders_one_takes_the_step(kube: FakeKube) -> None:
    """One lost the Lease without knowing: compare-and-swap decides, and the loser looks again."""
    one, two = _open(kube), _open(kube)
    _step(one, Step.PREPARE)
    with pytest.raises(KeyStoreError, match="look tells what is to do") as e:
        _step(two, Step.PREPARE)
    assert e.value.code is KeyStoreCode.CHANGED
    assert two.reload(NOW).changed
    assert two.rotation == one.rotation
    with pytest.raises(RotationError, match="phase prepared"):
        _step(two, Step.PREPARE)


def test_a_write_between_look_and_write(kube: FakeKube) -> None:
    store = _open(kube)
    kube.fail(409, method="PUT", path=SECRET)
    with pytest.raises(KeyStoreError) as e:
        _step(store, Step.PREPARE)
    assert e.value.code is KeyStoreCode.CHANGED
    assert (store.rotation, len(store.roots)) == (INITIAL, 1)
    assert set(_files(kube)) == FOUR


def test_a_step_whose_answer_was_lost_was_taken(kube: FakeKube) -> None:
    store = _open(kube)
    real = kube.store.update

    def update(resource: Any, *args: Any, **options: Any) -> Any:
        made = real(resource, *args, **options)
        if resource.plural == "secrets":
            kube.store.update = real
            kube._server.cut_all()
        return made

    kube.store.update = update
    with pytest.raises(KubeError) as e:
        _step(store, Step.PREPARE)
    assert e.value.code is KubeCode.UNREACHABLE
    assert store.rotation == INITIAL
    assert store.reload(NOW).changed
    assert (store.rotation.phase, store.rotation.generation) == (Phase.PREPARED, 2)


def test_the_record_follows_though_the_leader_dies_before_it_wrote_it(kube: FakeKube) -> None:
    leader, other = _open(kube), _open(kube, leads=False)
    _step(leader, Step.PREPARE)
    kube.add(
        {
            "kind": "ConfigMap",
            "metadata": {"name": "gatehouse-ca", "namespace": "istio-system", "annotations": {"a": "b"}},
            "data": {"root-sha256": _root_digest(kube), "status.json": "{}"},
        }
    )
    _step(leader, Step.ACTIVATE)
    assert _root_digest(kube) != digest(leader.roots[0])
    assert other.reload(NOW).changed
    assert _root_digest(kube) == digest(leader.roots[0])
    record = kube.find("ConfigMap", "gatehouse-ca", "istio-system") or {}
    assert record["data"]["status.json"] == "{}", "what others wrote there stays"
    assert record["metadata"]["annotations"] == {"a": "b"}


@pytest.mark.parametrize("phase", [Phase.PREPARED, Phase.ACTIVE, Phase.TAINTED])
def test_an_emptied_secret_gets_everything_back(kube: FakeKube, phase: Phase) -> None:
    store = _open(kube)
    _to(store, phase)
    before = _secret(kube)
    kube.add({"kind": "Secret", "metadata": {**before["metadata"], "resourceVersion": None}, "type": "x"})
    assert store.reload(NOW).error is None
    assert _secret(kube)["data"] == before["data"]
    assert _open(kube).rotation == store.rotation


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_an_older_copy_is_replaced_by_what_runs(kube: FakeKube, steps: int) -> None:
    """E.g. by a replica that put back what it had, and had not seen the newest step; or a backup."""
    store = _open(kube)
    older = _secret(kube)
    for step in (Step.PREPARE, Step.ACTIVATE, Step.TAINT, Step.RETIRE)[:steps]:
        _step(store, step)
    newest = _secret(kube)["data"]
    kube.add({**older, "kind": "Secret", "metadata": {**older["metadata"], "resourceVersion": None}})
    result = store.reload(NOW)
    assert (result.error, result.changed) == (None, False)
    assert _secret(kube)["data"] == newest


@pytest.mark.parametrize("ahead", [False, True], ids=["fewer-steps", "more-steps"])
def test_another_authority_is_never_taken_for_ones_own(kube: FakeKube, ahead: bool) -> None:
    """Whatever its numbers are: nor is it overwritten, for somebody may have made a new root on purpose."""
    with FakeKube() as elsewhere:
        elsewhere.add({"kind": "Namespace", "metadata": {"name": "istio-system"}})
        other = _open(elsewhere)
        store = _open(kube)
        for step in (Step.PREPARE, Step.ACTIVATE, Step.RETIRE):
            _step(other if ahead else store, step)
        held, foreign = store.issuer(NOW), _secret(elsewhere)
        kube.add({**foreign, "kind": "Secret", "metadata": {**foreign["metadata"], "resourceVersion": None}})
    result = store.reload(NOW)
    assert result.error is not None
    assert result.error.code is KeyStoreCode.ROOT_CHANGED
    assert store.issuer(NOW) is held
    assert _secret(kube)["data"] == foreign["data"]


def test_numbers_can_be_raised(kube: FakeKube) -> None:
    store = _open(kube)
    store.renumber(7, 4, NOW)
    assert (store.issuer(NOW).generation, store.issuer(NOW).epoch) == (7, 4)
    other = _open(kube)
    assert (other.rotation.generation, other.rotation.epoch) == (7, 4)
    store.renumber(3, 9, NOW)
    assert (store.rotation.generation, store.rotation.epoch) == (7, 9)


def _other_root(kube: FakeKube) -> str:
    with FakeKube() as elsewhere:
        elsewhere.add({"kind": "Namespace", "metadata": {"name": "istio-system"}})
        _open(elsewhere)
        return _files(elsewhere)["root-cert.pem"]


@pytest.mark.parametrize(
    ("phase", "changes", "code", "words"),
    [
        (Phase.STABLE, {"root-cert.pem": "+"}, KeyStoreCode.ROOT_CHANGED, "another root than the one in use"),
        (Phase.STABLE, {"rotation.json": "{}"}, KeyStoreCode.ROTATION, "has the schema 'None'"),
        (Phase.PREPARED, {"cross-cert.pem": None}, KeyStoreCode.INCOMPLETE, "has no cross-cert.pem"),
        (Phase.PREPARED, {"next-ca-key.pem": None}, KeyStoreCode.INCOMPLETE, "has no next-ca-key.pem"),
        (Phase.PREPARED, {"next-ca-key.pem": key_pem(new_key())}, KeyStoreCode.KEY_MISMATCH, "not the one"),
        (Phase.PREPARED, {"next-root-key.pem": key_pem(new_key())}, KeyStoreCode.KEY_MISMATCH, "not the one"),
        (Phase.PREPARED, {"root-cert.pem": "first"}, KeyStoreCode.CHAIN, "is not among the trusted roots"),
        (Phase.PREPARED, {"next-root-cert.pem": "other"}, KeyStoreCode.CHAIN, "is not the root"),
        (Phase.PREPARED, {"cross-cert.pem": "other"}, KeyStoreCode.CHAIN, "signed by another trusted root"),
        (Phase.PREPARED, {"root-cert.pem": "+"}, KeyStoreCode.ROOT_CHANGED, "another root"),
        (Phase.ACTIVE, {"cross-cert.pem": "other"}, KeyStoreCode.CHAIN, "signed by another trusted root"),
        (Phase.ACTIVE, {"cross-cert.pem": None}, KeyStoreCode.INCOMPLETE, "has no cross-cert.pem"),
        (Phase.ACTIVE, {"root-cert.pem": "reversed"}, KeyStoreCode.CHAIN, "the first root is not"),
    ],
)
def test_what_a_rotation_does_not_do_is_not_taken_over(
    kube: FakeKube, phase: Phase, changes: dict[str, str | None], code: KeyStoreCode, words: str
) -> None:
    store = _open(kube)
    _to(store, phase)
    held = store.issuer(NOW)
    roots = _files(kube)["root-cert.pem"]
    made = {
        "+": roots + _other_root(kube),
        "other": _other_root(kube),
        "first": pem.encode_certificates(pem.decode_certificates(roots)[:1]),
        "reversed": pem.encode_certificates(reversed(pem.decode_certificates(roots))),
    }
    _write(kube, {name: made.get(text or "", text) for name, text in changes.items()})
    result = store.reload(NOW)
    assert result.error is not None
    assert (result.error.code, result.changed) == (code, False)
    assert words in result.error.public
    assert "PRIVATE" not in str(result.error)
    assert store.issuer(NOW) is held


def test_what_could_not_be_read_is_not_written(kube: FakeKube) -> None:
    store = _open(kube)
    _write(kube, {"root-key.pem": key_pem(new_key())})
    store.reload(NOW)
    with pytest.raises(KeyStoreError) as e:
        _step(store, Step.PREPARE)
    assert e.value.code is KeyStoreCode.KEY_MISMATCH
    assert set(_files(kube)) == FOUR


# --- intermediates and times -------------------------------------------------------------------------


@pytest.mark.parametrize("phase", [Phase.PREPARED, Phase.ACTIVE, Phase.TAINTED])
def test_the_intermediate_is_renewed_in_every_phase(kube: FakeKube, phase: Phase) -> None:
    leader, other = _open(kube), _open(kube, leads=False)
    _to(leader, phase)
    other.reload(NOW)
    due = NOW + 250 * DAY
    before, files = leader.issuer(due), _files(kube)
    assert leader.reload(due).changed
    after, kept = leader.issuer(due), _files(kube)
    assert after.not_after > before.not_after
    assert (after.roots, after.cross, after.generation, after.epoch) == (
        before.roots,
        before.cross,
        before.generation,
        before.epoch,
    )
    changed = {name for name in files if files[name] != kept[name]}
    renewed_next = {"next-ca-cert.pem", "next-ca-key.pem"} if phase is Phase.PREPARED else set()
    assert changed == {"ca-cert.pem", "ca-key.pem"} | renewed_next
    assert set(files) == set(kept)
    assert other.reload(due).changed
    assert other.issuer(due).certificate.der == after.certificate.der
    Authority(after, Profile())
    if phase is Phase.PREPARED:
        _step(leader, Step.ACTIVATE, due)
        assert leader.issuer(due).not_after > due + 300 * DAY


def test_the_next_intermediate_is_renewed_though_the_current_one_is_young(kube: FakeKube) -> None:
    leader = _open(kube)
    _to(leader, Phase.PREPARED)
    due = NOW + 250 * DAY
    leader.reload(due)  # both
    _write(kube, {"ca-cert.pem": _files(kube)["ca-cert.pem"]})
    held = leader.issuer(due)
    later = NOW + 500 * DAY
    store = _open(kube, later, leads=True)
    store.reload(later)
    assert store.issuer(later).certificate.der != held.certificate.der
    files = _files(kube)
    (following,) = pem.decode_certificates(files["next-ca-cert.pem"])
    assert read_certificate(following).not_after > later + 300 * DAY


def test_a_next_intermediate_that_nobody_renewed_is_made_anew_when_it_is_used(kube: FakeKube) -> None:
    store = _open(kube)
    _to(store, Phase.PREPARED)
    late = NOW + 400 * DAY  # nothing ran for a year
    again = _open(kube, late, leads=False)
    Authority(again.issuer(late), Profile())
    _step(again, Step.ACTIVATE, late)
    Authority(again.issuer(late), Profile())
    assert again.issuer(late).not_after > late + 300 * DAY


def test_a_cross_certificate_that_would_end_before_a_leaf_is_left_out(kube: FakeKube) -> None:
    config = replace(CONFIG, root_lifetime=730 * DAY, issuing_lifetime=365 * DAY)
    store = _open(kube, config=config)
    near = NOW + 700 * DAY
    store.reload(near)
    _to(store, Phase.ACTIVE, near)
    carrying = store.issuer(near)
    assert carrying.cross is not None
    assert carrying.cross.not_after == NOW + 730 * DAY
    assert carrying.not_after == near + 365 * DAY, "it limits nothing"
    end = NOW + 728 * DAY  # the longest leaf takes 48 h
    assert store.issuer(end - HOUR) is carrying
    plain = store.issuer(end)
    assert plain is store.issuer(end + 30 * DAY)
    assert (plain.chain, plain.roots) == ((carrying.certificate,), carrying.roots)
    assert (plain.generation, plain.epoch, plain.cross) == (2, 2, None)
    Authority(plain, Profile())
    _step(store, Step.TAINT, end)
    assert store.issuer(end) is plain
    again = _open(kube, end, config=config)
    assert again.issuer(end).cross is None


def test_keys_stay_out_of_reprs(kube: FakeKube) -> None:
    store = _open(kube)
    _to(store, Phase.PREPARED)
    assert "PRIVATE" not in repr(store.issuer(NOW)) + repr(store.rotation) + repr(store._contents)
