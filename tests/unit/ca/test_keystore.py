"""The self-signed root and its intermediate: made once, kept, renewed; G-04, G-05, G-11, G-16."""

from __future__ import annotations

import datetime as dt
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from ca.core.authority import Authority
from ca.core.profile import Profile
from ca.keystore import KeyStore, KeyStoreCode, KeyStoreConfig, KeyStoreError
from ca.keystore_files import locked
from mesh.errors import Category
from mesh.spiffe import TrustDomain
from mesh.x509 import pem
from mesh.x509.certs import KeyKind, read_certificate
from tests.fakes.ca_factory import DAY, NOW, TRUST_DOMAIN, make_hierarchy

HOUR = dt.timedelta(hours=1)


@pytest.fixture
def state(tmp_path):
    return tmp_path / "state"


def config(state, **kw):
    return KeyStoreConfig(trust_domain=TRUST_DOMAIN, state_dir=state, **kw)


def refused(code, words, act):
    with pytest.raises(KeyStoreError) as e:
        act()
    assert e.value.code is code
    assert words in e.value.public
    assert e.value.category is Category.FAILED_PRECONDITION
    return e.value


def test_first_start_makes_a_root_and_an_intermediate_that_issue(state):
    store = KeyStore.open(config(state), NOW)
    issuer = store.issuer(NOW)
    assert Authority(issuer, Profile()).issuer is store.issuer(NOW + DAY), "the same object until it changes"
    root, issuing = read_certificate(store.roots[0]), issuer.certificate
    assert (root.key.kind, issuing.key.kind) == (KeyKind.P256, KeyKind.P256)
    assert (root.not_after, issuing.not_after) == (NOW + 3650 * DAY, NOW + 365 * DAY)
    assert (root.path_length, issuing.path_length) == (None, 0), "X-25"
    assert root.spiffe_id() == issuing.spiffe_id() == TRUST_DOMAIN.id, "X-22, X-23"
    assert issuing.key_usage.key_cert_sign, "X-20"
    assert issuer.chain == (issuing,)
    assert pem.decode_certificates((state / "root-cert.pem").read_text()) == store.roots


def test_keys_are_private_and_nothing_temporary_stays(state):
    KeyStore.open(config(state), NOW)
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    for name in ("root/ca-key.pem", "issuing/ca-key.pem", "lock"):
        assert stat.S_IMODE((state / name).stat().st_mode) == 0o600, name
    assert not list(state.rglob("*.tmp"))
    assert len(list(state.glob("issuing.*"))) == 1


def test_no_key_bytes_leave_through_the_api(state):
    store = KeyStore.open(config(state), NOW)
    secret = (state / "issuing" / "ca-key.pem").read_text().splitlines()[1]
    assert secret not in repr(vars(store))
    assert not [n for n in dir(store.issuer(NOW).signer) if "private" in n or "bytes" in n]


def test_a_second_start_loads_the_same(state):
    first = KeyStore.open(config(state), NOW)
    second = KeyStore.open(config(state), NOW + DAY)
    assert second.roots == first.roots
    assert second.issuer(NOW).certificate == first.issuer(NOW).certificate


def test_other_curve(state):
    store = KeyStore.open(config(state, curve=KeyKind.P384), NOW)
    assert {read_certificate(store.roots[0]).key.kind, store.issuer(NOW).certificate.key.kind} == {
        KeyKind.P384
    }
    Authority(store.issuer(NOW), Profile())


STARTER = """
import sys, datetime as dt
from pathlib import Path
from ca.keystore import KeyStore, KeyStoreConfig
from mesh.spiffe import TrustDomain
sys.stdin.readline()
now = dt.datetime.fromisoformat(sys.argv[2])
config = KeyStoreConfig(trust_domain=TrustDomain("cluster.local"), state_dir=Path(sys.argv[1]))
store = KeyStore.open(config, now)
print(store.roots[0].hex(), store.issuer(now).certificate.serial)
"""


def test_g04_five_starters_at_once_end_with_one_root(state):
    repo = Path(__file__).parents[3]
    argv = [sys.executable, "-c", STARTER, str(state), NOW.isoformat()]
    starters = [
        subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=repo)
        for _ in range(5)
    ]
    for p in starters:
        p.stdin.write("go\n")
        p.stdin.flush()
    answers = {p.communicate(timeout=50)[0] for p in starters}
    assert [p.returncode for p in starters] == [0] * 5
    assert len(answers) == 1
    assert answers.pop().split()[0] == KeyStore.open(config(state), NOW).roots[0].hex()


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda s: (s / "root").resolve().joinpath("ca-key.pem").unlink(), id="key-gone"),
        pytest.param(lambda s: shutil.rmtree((s / "root").resolve()), id="dangling-link"),
        pytest.param(lambda s: (s / "root").unlink(), id="link-gone"),
        pytest.param(
            lambda s: [
                shutil.rmtree(p) if p.is_dir() and not p.is_symlink() else p.unlink()
                for p in s.iterdir()
                if p.name != "root-cert.pem"
            ],
            id="only-the-public-root-left",
        ),
    ],
)
def test_g05_no_second_root_beside_traces_of_a_first(state, damage):
    KeyStore.open(config(state), NOW)
    damage(state)
    error = refused(
        KeyStoreCode.ROOT_LOST,
        "restore them, or delete the whole directory",
        lambda: KeyStore.open(config(state), NOW),
    )
    assert "root-cert.pem" in error.public


def test_g05_a_wiped_directory_is_a_new_beginning_on_purpose(state):
    first = KeyStore.open(config(state), NOW).roots
    shutil.rmtree(state)
    assert KeyStore.open(config(state), NOW).roots != first


def test_g05_a_changed_public_root_is_found(state):
    KeyStore.open(config(state), NOW)
    (state / "root-cert.pem").write_text(make_hierarchy().roots_pem)
    refused(KeyStoreCode.ROOT_CHANGED, "is another root", lambda: KeyStore.open(config(state), NOW))


def test_a_crash_while_the_root_was_made_is_cleaned_up(state):
    (state / "root.1234").mkdir(parents=True, mode=0o700)
    state.chmod(0o700)
    (state / "root.1234" / "ca-cert.pem").write_text("half")
    KeyStore.open(config(state), NOW)
    assert not (state / "root.1234").exists()


def test_a_lost_intermediate_is_made_again_under_the_same_root(state):
    first = KeyStore.open(config(state), NOW)
    shutil.rmtree((state / "issuing").resolve())
    second = KeyStore.open(config(state), NOW)
    assert second.roots == first.roots
    assert second.issuer(NOW).certificate != first.issuer(NOW).certificate


class TestRenewal:
    def test_the_intermediate_is_renewed_when_a_third_is_left(self, state):
        store = KeyStore.open(config(state), NOW)
        old = store.issuer(NOW)
        assert store.issuer(NOW + 240 * DAY) is old
        at = NOW + 250 * DAY
        new = store.issuer(at)
        assert new is not old
        assert new.certificate.spki != old.certificate.spki
        assert new.not_after == at + 365 * DAY
        assert new.roots == old.roots
        Authority(new, Profile())
        assert KeyStore.open(config(state), at).issuer(at).certificate == new.certificate
        assert len(list(state.glob("issuing.*"))) == 1

    def test_another_process_finds_the_renewed_one(self, state):
        one, two = (KeyStore.open(config(state), NOW) for _ in range(2))
        at = NOW + 250 * DAY
        assert one.issuer(at).certificate == two.issuer(at).certificate

    def test_it_never_outlives_the_root_and_is_not_renewed_in_vain(self, state):
        store = KeyStore.open(config(state, root_lifetime=800 * DAY), NOW)
        at = NOW + 600 * DAY
        last = store.issuer(at)
        assert last.not_after == NOW + 800 * DAY
        assert store.issuer(NOW + 790 * DAY) is last

    def test_a_renewal_that_fails_keeps_the_old_one_and_is_tried_again(self, state):
        store = KeyStore.open(config(state), NOW)
        old = store.issuer(NOW)
        key = (state / "root").resolve() / "ca-key.pem"
        text = key.read_text()
        key.unlink()
        at = NOW + 250 * DAY
        assert store.issuer(at) is old
        assert store.last_error.code is KeyStoreCode.ROOT_LOST
        key.write_text(text)
        key.chmod(0o600)
        assert store.issuer(at + dt.timedelta(seconds=59)) is old, "tried again after a minute"
        assert store.issuer(at + dt.timedelta(seconds=60)) is not old
        assert store.last_error is None


class TestClock:
    def test_g11_refuses_a_clock_before_the_newest_record(self, state):
        store = KeyStore.open(config(state), NOW)
        store.record_issued(NOW + DAY)
        refused(KeyStoreCode.CLOCK, "set the clock right", lambda: KeyStore.open(config(state), NOW + HOUR))
        assert KeyStore.open(config(state), NOW + DAY)

    def test_the_mark_is_written_once_a_minute_and_only_forward(self, state):
        store, other = (KeyStore.open(config(state), NOW) for _ in range(2))
        mark = state / "newest-issued"
        store.record_issued(NOW + HOUR)
        written = mark.read_text()
        store.record_issued(NOW + HOUR + dt.timedelta(seconds=59))
        other.record_issued(NOW + dt.timedelta(minutes=5))
        assert mark.read_text() == written
        store.record_issued(NOW + HOUR + dt.timedelta(seconds=60))
        assert mark.read_text() != written

    def test_g07_a_mark_that_cannot_be_written_does_not_stop_issuance(self, state):
        store = KeyStore.open(config(state), NOW)
        (state / "newest-issued").mkdir()
        store.record_issued(NOW)
        assert store.last_error.code is KeyStoreCode.FILE

    @pytest.mark.parametrize("text", ["yesterday", "2026-06-01T12:00:00", ""])
    def test_an_unreadable_mark_is_a_refusal(self, state, text):
        KeyStore.open(config(state), NOW)
        (state / "newest-issued").write_text(text)
        refused(KeyStoreCode.FILE, "does not hold a time", lambda: KeyStore.open(config(state), NOW))

    def test_a_clock_before_the_root_itself_is_refused(self, state):
        KeyStore.open(config(state), NOW)
        refused(KeyStoreCode.EXPIRED, "starts at", lambda: KeyStore.open(config(state), NOW - DAY))


class TestRefusals:
    def test_state_directory_that_others_may_write(self, state):
        state.mkdir(mode=0o777)
        state.chmod(0o777)
        refused(KeyStoreCode.STATE_DIR, "others may write", lambda: KeyStore.open(config(state), NOW))

    def test_state_directory_that_is_a_file(self, state):
        state.write_text("")
        refused(KeyStoreCode.STATE_DIR, "File exists", lambda: KeyStore.open(config(state), NOW))

    def test_key_file_that_others_may_read(self, state):
        KeyStore.open(config(state), NOW)
        (state / "issuing" / "ca-key.pem").chmod(0o640)
        refused(KeyStoreCode.KEY, "mode 0640", lambda: KeyStore.open(config(state), NOW))

    def test_another_trust_domain(self, state):
        KeyStore.open(config(state), NOW)
        other = KeyStoreConfig(trust_domain=TrustDomain("other"), state_dir=state)
        refused(KeyStoreCode.TRUST_DOMAIN, "configured is other", lambda: KeyStore.open(other, NOW))

    def test_lock_that_is_never_released(self, state):
        state.mkdir(mode=0o700)
        with locked(state):
            refused(
                KeyStoreCode.LOCK, "held by another process", lambda: locked(state, seconds=0.05).__enter__()
            )
        with locked(state, seconds=0.05):
            assert (state / "lock").exists()

    def test_lock_that_is_a_symbolic_link(self, state):
        state.mkdir(mode=0o700)
        (state / "lock").symlink_to("/dev/null")
        refused(KeyStoreCode.LOCK, "symbolic links", lambda: KeyStore.open(config(state), NOW))

    def test_disk_error_is_a_refusal(self, state):
        KeyStore.open(config(state), NOW)
        shutil.rmtree((state / "issuing").resolve())
        (state / f".issuing.{os.getpid()}.tmp").mkdir()
        refused(KeyStoreCode.FILE, "cannot be used", lambda: KeyStore.open(config(state), NOW))

    @pytest.mark.parametrize(
        ("change", "code", "words"),
        [
            ({"curve": KeyKind.RSA}, KeyStoreCode.KEY, "make P-256 or P-384"),
            ({"issuing_lifetime": 5 * DAY}, KeyStoreCode.EXPIRED, "at least three times"),
            ({"root_lifetime": 400 * DAY}, KeyStoreCode.EXPIRED, "twice the intermediate's"),
        ],
    )
    def test_configuration(self, state, change, code, words):
        refused(code, words, lambda: config(state, **change))
