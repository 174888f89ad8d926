"""Health: ready when every part says so, alive unless a restart would help."""

from __future__ import annotations

import threading

from mesh.obs.health import Check, Health


def test_expected_parts_must_speak_first() -> None:
    health = Health("keys", "grpc")
    assert not health.ready().ok
    assert health.ready().reasons() == ("grpc: has not started yet", "keys: has not started yet")
    assert health.live().ok
    health.set("keys", True)
    health.set("grpc", True, "on 15012")
    assert health.ready().ok
    assert health.ready().text() == "ok grpc: on 15012\nok keys\nok\n"


def test_reasons_name_each_failing_part() -> None:
    health = Health()
    health.set("b", False)
    health.set("a", False, "the disk is full")
    health.set("c", True)
    assert health.ready().reasons() == ("a: the disk is full", "b: not ok")
    assert health.ready().text() == "failed a: the disk is full\nfailed b\nok c\nnot ok\n"


def test_only_liveness_checks_kill() -> None:
    health = Health()
    health.set("ca", False, "is away")
    assert health.live().ok
    health.set("loop", False, "stuck", liveness=True)
    assert health.live().checks == (Check("loop", False, "stuck", True),)
    assert not health.live().ok


def test_a_part_can_go() -> None:
    health = Health("a")
    health.forget("a")
    health.forget("b")
    assert health.ready().ok
    assert health.ready().checks == ()


def test_threads() -> None:
    health = Health()
    threads = [threading.Thread(target=health.set, args=(f"t{index}", True)) for index in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(health.ready().checks) == 20
