"""Upkeep of a worker: what changes by time or by files, and what the rest sees of it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ca import check
from ca.authn import Presented
from ca.keystore import KeyStoreConfig
from ca.requests import CertificateRequest, RequestError, RequestHead
from ca.runtime import Runtime, keystore_config
from mesh.errors import Category, MeshError
from tests.fakes import ca_tokens
from tests.fakes.ca_factory import make_hierarchy, new_key
from tests.fakes.ca_running import audit_lines, load, make_csr
from tests.fakes.clock import FakeClock

DAY = dt.timedelta(days=1)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def runtime(state: Path, clock: FakeClock) -> Iterator[Runtime]:
    made = Runtime(load(state, issue__default_lifetime="1h", issue__max_lifetime="1h"), clock)
    yield made
    made.stop()


def issue(runtime: Runtime, csr: str | None = None, **changes: Any) -> Any:
    now = runtime.clock.now()
    token = ca_tokens.token(now, **changes)
    head = RequestHead(presented=Presented(authorization=[f"Bearer {token}"]), peer="test")
    request = CertificateRequest(csr_pem=csr or make_csr(new_key()))
    return runtime.service.issue(head, lambda: request, now)


def value(metric: Any) -> float:
    return float(metric._value.get())


def check_named(runtime: Runtime, name: str) -> tuple[bool, str]:
    (found,) = [c for c in runtime.health.ready().checks if c.name == name]
    return found.ok, found.detail


def test_failures_and_attacks_are_counted_from_0_on(runtime: Runtime) -> None:
    """A series that begins with 1 has no increase, and an alert on increases would miss it."""
    seen = {
        sample.labels["code"]: sample.value
        for metric in (runtime.metrics.hostile, runtime.metrics.sign_errors)
        for sample in next(iter(metric.collect())).samples
        if sample.name.endswith("_total")
    }
    assert {"spoof_attempt", "issuer_expiring", "lint_validity", "internal"} <= set(seen)
    assert set(seen.values()) == {0}


def test_its_memory_is_shown(runtime: Runtime) -> None:
    memory = runtime.registry.get_sample_value("process_resident_memory_bytes")
    assert memory is not None
    assert memory > 1 << 20


def test_issues_and_counts(runtime: Runtime) -> None:
    issued = issue(runtime)
    assert len(issued.chain()) == 3
    assert value(runtime.metrics.issued.labels(key_kind="P-256")) == 1
    assert value(runtime.metrics.authenticated.labels(method="token")) == 1
    runtime.refresh_gauges()
    assert value(runtime.metrics.token_keys) == 2
    assert value(runtime.metrics.bundle_roots) == 1
    assert value(runtime.metrics.chain_left) == pytest.approx(365 * 86400)
    assert value(runtime.metrics.root_left) == pytest.approx(3650 * 86400)
    assert value(runtime.metrics.serving_left) == pytest.approx(86400)
    backdate = 120
    assert value(runtime.metrics.serving_life) == pytest.approx(86400 + backdate)
    assert value(runtime.metrics.chain_life) == pytest.approx(365 * 86400 + backdate, abs=600)


def test_the_intermediate_is_renewed_in_time(runtime: Runtime, clock: FakeClock) -> None:
    before = runtime.authority()
    clock.advance(250 * DAY)
    assert issue(runtime).svid.roots_pem
    assert runtime.authority().issuer is not before.issuer
    held = runtime.serving.current
    runtime.tick(clock.now())
    assert runtime.serving.current.issuer is runtime.authority().issuer
    assert runtime.serving.current is not held
    assert runtime.bundle.document is not None


def test_the_serving_certificate_is_renewed_half_way(runtime: Runtime, clock: FakeClock) -> None:
    held = runtime.serving.current
    clock.advance(DAY / 4)
    runtime.tick(clock.now())
    assert runtime.serving.current is held
    clock.advance(DAY / 4)
    runtime.tick(clock.now())
    assert runtime.serving.current is not held


def test_token_keys_come_later(state: Path, clock: FakeClock) -> None:
    config = load(state)
    keys = config.token.jwks_file.read_bytes()
    config.token.jwks_file.unlink()
    runtime = Runtime(config, clock)
    try:
        ok, detail = check_named(runtime, "token_keys")
        assert not ok
        assert "jwks.json cannot be read" in detail
        with pytest.raises(MeshError) as error:
            issue(runtime)
        assert error.value.category is Category.UNAVAILABLE
        clock.advance(1)  # a token with an unknown key makes us look again, at most once a second
        config.token.jwks_file.write_bytes(keys)
        assert issue(runtime)
        runtime.tick(clock.now())
        assert check_named(runtime, "token_keys") == (True, "")
        assert value(runtime.metrics.reloads.labels(part="token_keys", result="failed")) == 1
    finally:
        runtime.stop()


def test_g16_broken_ca_files_leave_what_was_good(state: Path, clock: FakeClock) -> None:
    plugged = state / "cacerts"
    plugged.mkdir()
    hierarchy = make_hierarchy(now=clock.now())
    hierarchy.write_cacerts(plugged)
    runtime = Runtime(load(state, ca_dir=str(plugged)), clock)
    try:
        key = (plugged / "ca-key.pem").read_text()
        (plugged / "ca-key.pem").write_text("garbage")
        runtime.tick(clock.now())
        ok, detail = check_named(runtime, "keys")
        assert ok, "what was loaded works on"
        assert "ca-key.pem" in detail
        assert issue(runtime)
        (plugged / "ca-key.pem").write_text(key)
        runtime.tick(clock.now())
        assert check_named(runtime, "keys") == (True, "")
        assert value(runtime.metrics.reloads.labels(part="keys", result="failed")) == 1
    finally:
        runtime.stop()


def test_f22_a_signer_that_ends_is_not_ready(state: Path, clock: FakeClock) -> None:
    plugged = state / "cacerts"
    plugged.mkdir()
    make_hierarchy(now=clock.now(), issuing_lifetime=2 * DAY).write_cacerts(plugged)
    runtime = Runtime(load(state, ca_dir=str(plugged)), clock)
    try:
        clock.advance(2 * DAY - dt.timedelta(minutes=3))
        with pytest.raises(MeshError) as error:
            issue(runtime)
        assert (error.value.code, error.value.category) == ("issuer_expiring", Category.UNAVAILABLE)
        runtime.tick(clock.now())
        ok, detail = check_named(runtime, "keys")
        assert not ok
        assert "the signing certificate ends" in detail
    finally:
        runtime.stop()


def test_f16_the_key_of_the_serving_certificate(runtime: Runtime) -> None:
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    key: Any = load_pem_private_key(runtime.serving.current.key_pem, None)
    with audit_lines() as lines, pytest.raises(RequestError) as error:
        issue(runtime, make_csr(key))
    assert (error.value.code, error.value.category) == ("key_of_authority", Category.INVALID_ARGUMENT)
    assert lines[0]["hostile"] is True


def test_a_fault_of_ours_is_audited_and_counted(runtime: Runtime) -> None:
    def broken() -> Any:
        raise ZeroDivisionError

    runtime.service._authority = broken
    with audit_lines() as lines, pytest.raises(ZeroDivisionError):
        issue(runtime)
    assert (str(lines[0]["code"]), lines[0]["detail"]) == ("internal", "ZeroDivisionError")
    assert value(runtime.metrics.sign_errors.labels(code="internal")) == 1
    assert runtime.limiter.in_flight == 0


def test_the_message_is_read_only_for_callers_that_are_known(runtime: Runtime) -> None:
    """F-29: nobody else can make the authority wait."""

    def never() -> CertificateRequest:
        raise AssertionError("read")

    with pytest.raises(MeshError, match="not authenticated"):
        runtime.service.issue(RequestHead(presented=Presented()), never, runtime.clock.now())


def test_no_secret_in_the_audit_trail(runtime: Runtime) -> None:
    with audit_lines() as lines:
        issue(runtime)
        with pytest.raises(MeshError):
            issue(runtime, "-----BEGIN CERTIFICATE REQUEST-----\nxx")
    text = repr(lines)
    assert "eyJ" not in text
    assert "BEGIN" not in text


def test_upkeep_survives_its_own_faults(
    state: Path, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    runtime = Runtime(load(state, reload_interval="100ms"), clock)
    calls: list[bool] = []

    def broken(_now: dt.datetime, *, force: bool = False) -> None:
        calls.append(force)
        if len(calls) >= 3:
            runtime._stopping.set()
        raise ZeroDivisionError

    runtime.tick = broken  # type: ignore[method-assign] # a fault for the loop to survive
    runtime.reload()
    runtime._run()
    assert calls == [True, False, False]
    assert caplog.text.count("upkeep failed") == 3
    runtime.stop()


def test_keystore_config(state: Path) -> None:
    config = load(state)
    found = keystore_config(config)
    assert isinstance(found, KeyStoreConfig)
    assert (found.state_dir, found.leaf_lifetime) == (state / "state", dt.timedelta(hours=48))


# --- check ------------------------------------------------------------------------------------------------


def test_check_before_and_after_the_first_start(state: Path, clock: FakeClock) -> None:
    lines, good = check.describe(load(state), clock.now())
    assert good
    assert any("will be made" in line for line in lines)
    assert not (state / "state").exists()
    Runtime(load(state), clock).stop()
    lines, good = check.describe(load(state), clock.now())
    assert good
    assert any("P-256, ends in 365 days, 1 root(s)" in line for line in lines)
    assert any("k1 (RS256), e1 (ES256)" in line for line in lines)


def test_check_says_what_is_wrong(state: Path, clock: FakeClock) -> None:
    (state / "empty").mkdir()
    config = load(state, ca_dir=str(state / "empty"))
    config.token.jwks_file.write_text("{}")
    lines, good = check.describe(config, clock.now())
    assert not good
    assert sum("PROBLEM" in line for line in lines) == 2
    plugged = state / "cacerts"
    plugged.mkdir()
    make_hierarchy(now=clock.now()).write_cacerts(plugged)
    lines, _ = check.describe(load(state, ca_dir=str(plugged)), clock.now())
    assert any("signing key     P-256" in line for line in lines)
