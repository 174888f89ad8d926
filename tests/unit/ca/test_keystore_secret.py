"""Keys in a Secret: one root whatever happens (G-04, G-05), renewal by one, reload by all."""

from __future__ import annotations

import base64
import datetime as dt
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from ca.core.authority import Authority
from ca.core.profile import Profile
from ca.keystore import KeyStoreCode, KeyStoreConfig, KeyStoreError
from ca.keystore_secret import SecretKeyStore, SecretPlace, look
from mesh.kube.api import KubeCode, KubeError
from tests.fakes.ca_factory import DAY, NOW, TRUST_DOMAIN, key_pem, new_key
from tests.fakes.kube_api import FakeKube

PLACE = SecretPlace(namespace="istio-system")
CONFIG = KeyStoreConfig(trust_domain=TRUST_DOMAIN, state_dir=Path("/never"))
SECRETS = "/api/v1/namespaces/istio-system/secrets"


@pytest.fixture
def kube() -> Iterator[FakeKube]:
    with FakeKube() as server:
        server.add({"kind": "Namespace", "metadata": {"name": "istio-system"}})
        yield server


def _open(
    kube: FakeKube,
    now: dt.datetime = NOW,
    *,
    place: SecretPlace = PLACE,
    config: KeyStoreConfig = CONFIG,
    leads: bool = True,
) -> SecretKeyStore:
    return SecretKeyStore.open(kube.api(), place, config, now, may_renew=lambda: leads)


def _secret(kube: FakeKube) -> dict[str, Any]:
    found = kube.find("Secret", "gatehouse-ca", "istio-system")
    assert found is not None
    return dict(found)


def _edit(kube: FakeKube, **files: str | None) -> None:
    secret = _secret(kube)
    data = dict(secret["data"])
    for name, text in files.items():
        file = name.replace("_", "-") + ".pem"
        data.pop(file, None)
        if text is not None:
            data[file] = base64.b64encode(text.encode()).decode()
    kube.add({**secret, "kind": "Secret", "data": data})


def test_first_start_makes_and_records(kube: FakeKube) -> None:
    store = _open(kube)
    Authority(store.issuer(NOW), Profile())
    secret = _secret(kube)
    assert secret["type"] == "gatehouse.dev/ca-root"
    assert set(secret["data"]) == {"root-cert.pem", "root-key.pem", "ca-cert.pem", "ca-key.pem"}
    record = kube.find("ConfigMap", "gatehouse-ca", "istio-system")
    assert record is not None
    assert len(record["data"]["root-sha256"]) == 64
    assert (len(store.roots), store.last_error) == (1, None)


def test_second_start_uses_what_is_there(kube: FakeKube) -> None:
    one = _open(kube)
    version = _secret(kube)["metadata"]["resourceVersion"]
    two = _open(kube, NOW + DAY)
    assert one.issuer(NOW).certificate.der == two.issuer(NOW).certificate.der
    assert _secret(kube)["metadata"]["resourceVersion"] == version
    assert len(kube.asked("POST", f"{SECRETS}.*")) == 1


def _race(kube: FakeKube) -> list[SecretKeyStore | BaseException]:
    barrier = threading.Barrier(5)
    ends: list[SecretKeyStore | BaseException] = []

    def go() -> None:
        barrier.wait()
        try:
            ends.append(_open(kube))
        except MeshErrors as e:
            ends.append(e)

    threads = [threading.Thread(target=go) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return ends


MeshErrors = (KeyStoreError, KubeError)


@pytest.mark.parametrize("attempt", range(5))
@pytest.mark.parametrize("empty", [False, True], ids=["G-04-absent", "G-04-empty"])
def test_five_at_once_have_one_root(kube: FakeKube, empty: bool, attempt: int) -> None:
    if empty:
        kube.add({"kind": "Secret", "metadata": {"name": "gatehouse-ca", "namespace": "istio-system"}})
    ends = _race(kube)
    stores = [e for e in ends if isinstance(e, SecretKeyStore)]
    assert len(stores) == 5, ends
    assert len({s.roots for s in stores}) == 1
    assert len({s.issuer(NOW).certificate.der for s in stores}) == 1


def test_lost_answer_of_the_creation_is_looked_for(kube: FakeKube) -> None:
    """The Secret was made, but the connection died before the answer: not made twice."""
    real = kube.store.create

    def create(resource: Any, namespace: str, body: Any, **options: Any) -> Any:
        made = real(resource, namespace, body, **options)
        if resource.plural == "secrets":
            kube.store.create = real
            kube._server.cut_all()
        return made

    kube.store.create = create
    store = _open(kube)
    files = _secret(kube)["data"]["root-cert.pem"]
    root = x509.load_pem_x509_certificate(base64.b64decode(files))
    assert [x509.load_der_x509_certificate(r) for r in store.roots] == [root]


def test_secret_of_a_chart_keeps_its_metadata(kube: FakeKube) -> None:
    meta = {"name": "gatehouse-ca", "namespace": "istio-system", "labels": {"chart": "x"}}
    kube.add({"kind": "Secret", "metadata": meta, "type": "Opaque"})
    _open(kube)
    assert _secret(kube)["metadata"]["labels"] == {"chart": "x"}
    assert _secret(kube)["type"] == "Opaque"


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("gatehouse-ca", {"root-sha256": "00"}),
        ("istio-ca-root-cert", {"root-cert.pem": "-----BEGIN"}),
    ],
    ids=["G-05-record", "G-05-root-config-map"],
)
def test_no_second_root_beside_traces_of_a_first(kube: FakeKube, name: str, data: dict[str, str]) -> None:
    kube.add({"kind": "ConfigMap", "metadata": {"name": name, "namespace": "istio-system"}, "data": data})
    with pytest.raises(KeyStoreError, match=f"ConfigMap istio-system/{name} says that there was a root") as e:
        _open(kube)
    assert e.value.code is KeyStoreCode.ROOT_LOST
    assert kube.all("Secret") == []
    with pytest.raises(KeyStoreError, match="restore the Secret"):
        look(kube.api(), PLACE, CONFIG, NOW)
    store = _open(kube, place=replace(PLACE, force_new_root=True))
    assert len(store.roots) == 1
    assert len(_open(kube).roots) == 1  # and from now on without force


def test_empty_traces_are_none(kube: FakeKube) -> None:
    for name in ("gatehouse-ca", "istio-ca-root-cert"):
        kube.add({"kind": "ConfigMap", "metadata": {"name": name, "namespace": "istio-system"}, "data": None})
    assert look(kube.api(), PLACE, CONFIG, NOW) is None
    assert len(_open(kube).roots) == 1


def test_secret_that_appears_with_its_record_is_used(kube: FakeKube) -> None:
    """Looked for the Secret, then another replica made it and its record: no false alarm."""
    path = f"{SECRETS}/gatehouse-ca"
    other = FakeKube()
    other.add({"kind": "Namespace", "metadata": {"name": "istio-system"}})
    with other:
        _open(other)
        made = _secret(other)
        record = other.find("ConfigMap", "gatehouse-ca", "istio-system")
    looks: list[str] = []

    def get(_request: Any) -> tuple[int, Any]:
        looks.append("x")
        if len(looks) == 1:
            kube.add({**(record or {}), "kind": "ConfigMap"})
            return 404, {"reason": "NotFound"}
        return 200, made

    kube.routes["GET", path] = get
    assert len(_open(kube).roots) == 1
    assert len(looks) == 2


@pytest.mark.parametrize("status", [403, 500, 429])
def test_start_without_an_answer_makes_nothing(kube: FakeKube, status: int) -> None:
    kube.fail(status, path=f"{SECRETS}/.*")
    with pytest.raises(KubeError, match=f"HTTP {status}"):
        _open(kube)
    assert kube.all("Secret") == []


def test_creation_that_is_forbidden(kube: FakeKube) -> None:
    kube.fail(403, method="POST", path=SECRETS)
    with pytest.raises(KubeError, match="HTTP 403"):
        _open(kube)


def test_secret_that_others_change_all_the_time(kube: FakeKube) -> None:
    kube.add({"kind": "Secret", "metadata": {"name": "gatehouse-ca", "namespace": "istio-system"}})
    kube.fail(409, method="PUT", times=100)
    with pytest.raises(KeyStoreError, match="changed by others all the time") as e:
        _open(kube)
    assert e.value.code is KeyStoreCode.LOCK


def test_record_is_kept_up_to_date(kube: FakeKube) -> None:
    _open(kube)
    record = {"kind": "ConfigMap", "metadata": {"name": "gatehouse-ca", "namespace": "istio-system"}}
    kube.add({**record, "data": {"root-sha256": "other"}})
    _open(kube)
    assert (kube.find("ConfigMap", "gatehouse-ca", "istio-system") or {})["data"]["root-sha256"] != "other"
    kube.add({**record, "data": {}})
    kube.fail(409, method="PUT")
    _open(kube)  # another replica was faster
    kube.fail(403, method="PUT")
    with pytest.raises(KubeError):
        _open(kube)


@pytest.mark.parametrize(
    ("files", "code", "words"),
    [
        ({"ca_key": None}, KeyStoreCode.INCOMPLETE, "has no ca-key.pem"),
        ({"root_cert": "", "ca_cert": None}, KeyStoreCode.INCOMPLETE, "root-cert.pem, ca-cert.pem"),
        ({"ca_key": key_pem(new_key())}, KeyStoreCode.KEY_MISMATCH, "not the one in the certificate"),
        ({"ca_key": "no key"}, KeyStoreCode.KEY, "no private key in PEM"),
        ({"ca_cert": "ä"}, KeyStoreCode.FILE, "is not a PEM text"),
        ({"root_cert": "-----BEGIN"}, KeyStoreCode.FILE, "root-cert.pem"),
        ({"ca_cert": "x" * (1 << 20) + "y"}, KeyStoreCode.FILE, "has over"),
    ],
    ids=["missing", "two-missing", "other-key", "no-key", "not-ascii", "no-pem", "huge"],
)
def test_secret_with_faults(
    kube: FakeKube, files: dict[str, str | None], code: KeyStoreCode, words: str
) -> None:
    store = _open(kube)
    _edit(kube, **files)
    result = store.reload(NOW)
    assert result.error is not None
    assert (result.changed, result.error.code, store.last_error) == (False, code, result.error)
    assert words in result.error.public
    Authority(store.issuer(NOW), Profile())  # what was good stays
    with pytest.raises(KeyStoreError) as e:
        _open(kube)
    assert e.value.code is code


def test_data_that_is_no_base64(kube: FakeKube) -> None:
    _open(kube)
    secret = _secret(kube)
    kube.add({**secret, "kind": "Secret", "data": {**secret["data"], "ca-cert.pem": "*"}})
    with pytest.raises(KeyStoreError, match="not a PEM text"):
        _open(kube)


def test_other_root_is_not_taken_over(kube: FakeKube) -> None:
    store = _open(kube)
    held = store.roots
    with FakeKube() as elsewhere:
        elsewhere.add({"kind": "Namespace", "metadata": {"name": "istio-system"}})
        _open(elsewhere)
        kube.add({**_secret(elsewhere), "kind": "Secret"})
    result = store.reload(NOW)
    assert result.error is not None
    assert result.error.code is KeyStoreCode.ROOT_CHANGED
    assert store.roots == held


def test_deleted_secret_is_reported_and_memory_serves_on(kube: FakeKube) -> None:
    """G-05 while running."""
    store = _open(kube)
    kube.remove("Secret", "gatehouse-ca", "istio-system")
    result = store.reload(NOW)
    assert result.error is not None
    assert (result.error.code, result.changed) == (KeyStoreCode.ROOT_LOST, False)
    assert "restore it before the authority restarts" in result.error.public
    Authority(store.issuer(NOW), Profile())
    with pytest.raises(KeyStoreError, match="there was a root"):
        _open(kube)


def _empty(kube: FakeKube, *, record: bool = True) -> None:
    """What `helm upgrade --force` does: the chart's objects, without data, in place of the live ones."""
    secret = _secret(kube)
    kube.add(
        {
            "kind": "Secret",
            "metadata": {**secret["metadata"], "resourceVersion": None},
            "type": secret["type"],
        }
    )
    if record:
        kube.add({"kind": "ConfigMap", "metadata": {"name": "gatehouse-ca", "namespace": "istio-system"}})


def test_an_emptied_secret_is_filled_again_by_who_has_it(kube: FakeKube) -> None:
    one, two = _open(kube), _open(kube, leads=False)
    before = _secret(kube)["data"]
    kube.add(
        {
            "kind": "ConfigMap",
            "metadata": {"name": "istio-ca-root-cert", "namespace": "istio-system"},
            "data": {"root-cert.pem": "-----BEGIN"},
        }
    )
    _empty(kube)
    with pytest.raises(KeyStoreError, match="istio-ca-root-cert says that there was a root") as e:
        _open(kube)  # a replica that starts in this moment waits
    assert e.value.code is KeyStoreCode.ROOT_LOST
    result = two.reload(NOW)
    assert (result.changed, result.error) == (False, None), "for nobody anything changes"
    assert _secret(kube)["data"] == before
    assert (kube.find("ConfigMap", "gatehouse-ca", "istio-system") or {})["data"]["root-sha256"]
    version = _secret(kube)["metadata"]["resourceVersion"]
    assert one.reload(NOW).error is None
    assert _secret(kube)["metadata"]["resourceVersion"] == version, "once is enough"
    assert _open(kube).roots == one.roots


def test_what_is_put_back_is_the_newest(kube: FakeKube) -> None:
    """After a renewal by another replica: not what this one began with."""
    leader, other = _open(kube), _open(kube, leads=False)
    due = NOW + 250 * DAY
    leader.reload(due)
    other.reload(due)
    newest = _secret(kube)["data"]
    _empty(kube, record=False)
    assert other.reload(due).error is None
    assert _secret(kube)["data"] == newest


def test_of_two_that_put_it_back_one_wins_and_the_other_says_nothing_wrong(kube: FakeKube) -> None:
    store = _open(kube)
    before = _secret(kube)["data"]
    _empty(kube)
    kube.fail(409, method="PUT")
    assert store.reload(NOW).error is not None, "somebody was faster; the next look tells"
    assert store.reload(NOW).error is None
    assert _secret(kube)["data"] == before


def test_api_server_away(kube: FakeKube) -> None:
    """G-01."""
    store = _open(kube)
    kube.fail(500)
    result = store.reload(NOW)
    assert result.error is not None
    assert isinstance(store.last_error, KubeError)
    assert store.last_error.code is KubeCode.SERVER
    assert store.reload(NOW).error is None
    assert store.last_error is None


def test_leader_renews_and_the_others_reload(kube: FakeKube) -> None:
    leader, other = _open(kube), _open(kube, leads=False)
    early = NOW + 200 * DAY
    assert not leader.reload(early).changed
    due = NOW + 250 * DAY  # a third of a year is left
    before = leader.issuer(due)
    assert not other.reload(due).changed
    assert leader.reload(due).changed
    assert leader.issuer(due).not_after > before.not_after
    assert leader.roots == before.roots
    assert other.reload(due).changed
    assert other.issuer(due).certificate.der == leader.issuer(due).certificate.der
    assert not other.reload(due).changed
    Authority(other.issuer(due), Profile())


def test_two_that_renew_at_once_end_with_the_same(kube: FakeKube) -> None:
    """A leader that lost the Lease without knowing: compare-and-swap decides."""
    one, two = _open(kube), _open(kube)
    due = NOW + 250 * DAY
    barrier = threading.Barrier(2)

    def go(store: SecretKeyStore) -> None:
        barrier.wait()
        store.reload(due)

    threads = [threading.Thread(target=go, args=(s,)) for s in (one, two)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    for store in (one, two):
        store.reload(due + dt.timedelta(minutes=2))
    assert one.issuer(due).certificate.der == two.issuer(due).certificate.der
    assert one.issuer(due).not_after > due + 300 * DAY


def test_renewal_that_fails_is_tried_again_after_a_minute(kube: FakeKube) -> None:
    store = _open(kube)
    due = NOW + 250 * DAY
    kube.fail(409, method="PUT")
    assert store.reload(due).error is not None
    assert not store.reload(due + dt.timedelta(seconds=30)).changed
    assert store.reload(due + dt.timedelta(seconds=61)).changed


def test_intermediate_that_ends_with_its_root_is_not_renewed(kube: FakeKube) -> None:
    config = replace(CONFIG, root_lifetime=730 * DAY)
    store = _open(kube, config=config)
    assert store.reload(NOW + 300 * DAY).changed
    assert store.reload(NOW + 600 * DAY).changed
    assert not store.reload(NOW + 725 * DAY).changed
    assert store.issuer(NOW).not_after == NOW + 730 * DAY


def test_start_after_the_intermediate_has_ended(kube: FakeKube) -> None:
    """Nothing ran for a year: whoever starts makes a new one, under the same root."""
    before = _open(kube)
    late = NOW + 400 * DAY
    one, two = _open(kube, late, leads=False), _open(kube, late, leads=False)
    assert one.issuer(late).certificate.der == two.issuer(late).certificate.der
    assert one.roots == before.roots
    Authority(one.issuer(late), Profile())


def test_start_that_loses_the_race_for_a_new_intermediate(kube: FakeKube) -> None:
    _open(kube)
    late = NOW + 400 * DAY
    kube.fail(409, method="PUT")
    with pytest.raises(KeyStoreError, match="expired"):
        _open(kube, late)  # the winner has not written yet: a restart tries again
    kube.fail(403, method="PUT")
    with pytest.raises(KubeError, match="HTTP 403"):
        _open(kube, late)


def test_renewal_needs_a_good_root_key(kube: FakeKube) -> None:
    store = _open(kube)
    _edit(kube, root_key=key_pem(new_key()))
    result = store.reload(NOW + 250 * DAY)
    assert result.error is not None
    assert result.error.code is KeyStoreCode.KEY_MISMATCH
    Authority(store.issuer(NOW), Profile())


def test_keys_are_not_in_messages_or_reprs(kube: FakeKube) -> None:
    store = _open(kube)
    assert "PRIVATE" not in repr(store.issuer(NOW))
    store.record_issued(NOW)
    assert "gatehouse-ca" not in repr(store)
