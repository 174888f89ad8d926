"""Probes and hooks redirected to the proxy, and back (b.8, prototype-cluster 7)."""

from __future__ import annotations

from typing import Any

import pytest

from injector.core.probes import Rewriting, restore
from mesh.envoy.probes import GrpcProbe, HttpProbe, Probe, TcpProbe
from tests.fakes.injector_pods import container

GRACE = 20


def rewritten(
    probe: dict[str, Any], *, slot: str = "readinessProbe", **fields: Any
) -> tuple[dict[str, Any], Rewriting]:
    rewriting = Rewriting(GRACE)
    found = rewriting.container(
        container(ports=[{"name": "http", "containerPort": 8080}], **{slot: probe}, **fields)
    )
    return found, rewriting


def served(probe: dict[str, Any]) -> Probe | None:
    rewriting = rewritten(probe)[1]
    return rewriting.probes[0] if rewriting.probes else None


def http(**fields: Any) -> HttpProbe:
    return HttpProbe(**({"path": "/app-health/web/readyz", "port": 8080, "target": "/"} | fields))


PATH = "/app-health/web/readyz"


@pytest.mark.parametrize(
    ("handler", "expected"),
    [
        ({"httpGet": {"port": 8080}}, http()),
        ({"httpGet": {"path": "/a?b=c", "port": "http"}}, http(target="/a?b=c")),
        ({"httpGet": {"path": "", "port": "8080"}}, http()),
        ({"httpGet": {"path": "/", "port": 8080, "scheme": "HTTPS"}}, http(tls=True)),
        ({"httpGet": {"port": 8080}, "timeoutSeconds": 7}, http(timeout_seconds=7)),
        ({"httpGet": {"port": 8080, "httpHeaders": [{"name": "hOsT", "value": "x"}]}}, http(host=None)),
        ({"httpGet": {"port": 8080, "httpHeaders": [{"name": "A", "value": "x"}]}}, http()),
        ({"httpGet": {"port": 8080, "host": "localhost"}}, http(loopback="127.0.0.1", host="localhost:8080")),
        ({"httpGet": {"port": 8080, "host": "127.0.0.2"}}, http(loopback="127.0.0.1", host="127.0.0.2:8080")),
        ({"httpGet": {"port": 8080, "host": "::1"}}, http(loopback="::1", host="[::1]:8080")),
        ({"tcpSocket": {"port": "http"}}, TcpProbe(path=PATH, port=8080)),
        (
            {"tcpSocket": {"port": 9, "host": "localhost"}, "timeoutSeconds": 2},
            TcpProbe(path=PATH, port=9, loopback="127.0.0.1", timeout_seconds=2),
        ),
        ({"grpc": {"port": 9000}}, GrpcProbe(path=PATH, port=9000)),
        ({"grpc": {"port": 9000, "service": "a.B"}}, GrpcProbe(path=PATH, port=9000, service="a.B")),
        ({"grpc": {"port": 9000, "service": None}}, GrpcProbe(path=PATH, port=9000)),
    ],
)
def test_kinds(handler: dict[str, Any], expected: Probe) -> None:
    assert served(handler) == expected


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        ("healthz", "/healthz"),
        ("/a b", "/a%20b"),
        ("/a%20b", "/a%20b"),
        ("/100%", "/100%25"),
        ("/ü", "/%C3%BC"),
        ("/a#b", "/a"),
        ("/a?x=1#b", "/a?x=1"),
        ("/a\r\nX-Evil: 1", "/a%0D%0AX-Evil:%201"),
        ("/a?x=\r\n", "/a?x=%0D%0A"),
        ("/a\x00", "/a%00"),
        ("//a/../b", "//a/../b"),
    ],
)
def test_paths_are_what_the_kubelet_would_send(path: str, sent: str) -> None:
    found = served({"httpGet": {"path": path, "port": 1}})
    assert isinstance(found, HttpProbe)
    assert found.target == sent


@pytest.mark.parametrize(
    ("handler", "remark"),
    [
        ({"exec": {"command": ["true"]}}, ""),
        ({}, ""),
        ({"httpGet": {"port": 15021}}, ""),
        ({"tcpSocket": {"port": 15020}}, ""),
        ({"httpGet": {"port": "nope"}}, "names port 'nope', which the container lacks"),
        ({"httpGet": {"port": 0}}, "names port 0, which"),
        ({"httpGet": {"port": "70000"}}, "names port '70000', which"),
        ({"httpGet": {"path": "/"}}, "names port None, which"),
        ({"httpGet": {}}, ""),
        ({"httpGet": {"port": True}}, "names port True, which"),
        ({"httpGet": {"port": 80, "host": "db.example"}}, "it goes to 'db.example', which is not the pod"),
        ({"tcpSocket": {"port": 80, "host": "10.0.0.1"}}, "it goes to '10.0.0.1', which is not the pod"),
        ({"grpc": {"port": 80, "service": "a\nb"}}, "is left alone"),
    ],
)
def test_what_is_left_alone(handler: dict[str, Any], remark: str) -> None:
    """Trap: an unresolvable port was rewritten and not recorded upstream: a permanent failure."""
    found, rewriting = rewritten(handler)
    assert found["readinessProbe"] == handler
    assert not rewriting.probes
    assert not rewriting.records
    assert "; ".join(rewriting.remarks).count(remark)
    assert bool(rewriting.remarks) is bool(remark)


def test_what_the_kubelet_asks_now() -> None:
    headers = [{"name": "A", "value": "b"}]
    probe = {
        "httpGet": {
            "path": "/h",
            "port": "http",
            "host": "localhost",
            "scheme": "HTTPS",
            "httpHeaders": headers,
        },
        "periodSeconds": 3,
        "successThreshold": 2,
        "terminationGracePeriodSeconds": 9,
        "future": {"x": 1},
    }
    found, rewriting = rewritten(probe)
    assert found["readinessProbe"] == {
        "httpGet": {"path": PATH, "port": 15020, "scheme": "HTTP", "httpHeaders": headers},
        "periodSeconds": 3,
        "successThreshold": 2,
        "terminationGracePeriodSeconds": 9,
        "future": {"x": 1},
    }, "trap: a host left on the probe sends the kubelet to the node"
    assert rewriting.records == {
        PATH: {"httpGet": {"path": "/h", "port": "http", "host": "localhost", "scheme": "HTTPS"}}
    }, "headers may hold credentials and stay where they are"


@pytest.mark.parametrize(
    ("probe", "threshold", "told"),
    [
        ({}, None, False),
        ({"periodSeconds": 10, "failureThreshold": 3}, 3, False),
        ({"periodSeconds": 5}, 4, True),
        ({"periodSeconds": 1, "failureThreshold": 1}, 20, True),
        ({"periodSeconds": 3, "failureThreshold": 1}, 7, True),
        ({"periodSeconds": 1, "failureThreshold": 60}, 60, False),
        ({"periodSeconds": 30, "failureThreshold": 1}, 1, False),
    ],
)
def test_a_restart_of_envoy_is_forgiven(probe: dict[str, Any], threshold: int | None, told: bool) -> None:
    """R4: with the author's threshold of 1, a proxy that restarts costs a healthy application its life."""
    full = {"httpGet": {"port": 8080}, **probe}
    found, rewriting = rewritten(full, slot="livenessProbe")
    assert found["livenessProbe"].get("failureThreshold") == threshold
    assert bool(rewriting.remarks) is told
    assert restore(found, rewriting.records, GRACE)["livenessProbe"] == full


def test_readiness_is_not_made_slower() -> None:
    found, _ = rewritten({"httpGet": {"port": 8080}, "periodSeconds": 1, "failureThreshold": 1})
    assert found["readinessProbe"]["failureThreshold"] == 1


def test_a_threshold_that_others_set_since_stays() -> None:
    found, rewriting = rewritten({"httpGet": {"port": 8080}, "periodSeconds": 1}, slot="livenessProbe")
    found["livenessProbe"]["failureThreshold"] = 50
    assert restore(found, rewriting.records, GRACE)["livenessProbe"]["failureThreshold"] == 50


def test_hooks() -> None:
    lifecycle = {
        "preStop": {"httpGet": {"path": "/bye", "port": "http"}},
        "postStart": {"exec": {"command": ["true"]}},
        "stopSignal": "SIGTERM",
    }
    rewriting = Rewriting(GRACE)
    before = container(ports=[{"name": "http", "containerPort": 8080}], lifecycle=lifecycle)
    found = rewriting.container(before)
    path = "/app-lifecycle/web/prestopz"
    assert found["lifecycle"] == {
        **lifecycle,
        "preStop": {"httpGet": {"path": path, "port": 15020, "scheme": "HTTP"}},
    }
    assert rewriting.probes == [HttpProbe(path=path, port=8080, target="/bye", timeout_seconds=0)]
    assert restore(found, rewriting.records, GRACE) == before


def test_a_tcp_hook_is_left_alone() -> None:
    """No kubelet ever implemented it."""
    before = container(lifecycle={"preStop": {"tcpSocket": {"port": 1}}})
    assert Rewriting(GRACE).container(before) is before


def test_a_container_without_probes_is_the_same_object() -> None:
    before = container(livenessProbe=None, lifecycle=None)
    assert Rewriting(GRACE).container(before) is before
    assert restore(before, {}, GRACE) is before


@pytest.mark.parametrize(
    "change",
    [
        lambda p: p["httpGet"].update(path="/own"),
        lambda p: p["httpGet"].update(port=8080),
        lambda p: (p.pop("httpGet"), p.update(exec={"command": ["true"]})),
    ],
    ids=["path", "port", "exec"],
)
def test_what_others_changed_since_is_not_restored(change: Any) -> None:
    found, rewriting = rewritten({"tcpSocket": {"port": 1}})
    change(found["readinessProbe"])
    assert restore(found, rewriting.records, GRACE) is found


@pytest.mark.parametrize("record", [{}, {"exec": {}}, {"httpGet": "x"}])
def test_a_forged_record_is_ignored(record: dict[str, Any]) -> None:
    found, _ = rewritten({"tcpSocket": {"port": 1}})
    assert restore(found, {PATH: record}, GRACE) is found


def test_a_forged_threshold_is_dropped() -> None:
    found, rewriting = rewritten({"tcpSocket": {"port": 1}, "periodSeconds": 1}, slot="livenessProbe")
    rewriting.records["/app-health/web/livez"]["failureThreshold"] = "x"
    assert "failureThreshold" not in restore(found, rewriting.records, GRACE)["livenessProbe"]
