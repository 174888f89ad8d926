"""The webhook's requests: hostile ones and good ones, over real TLS sockets."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import ssl
import time
from collections.abc import Iterator

import jsonpatch
import pytest

from injector import config as configuration
from injector.core.inject import inject
from injector.core.settings import ClusterFeatures
from tests.fakes import injector_reviews as reviews
from tests.fakes.injector_pki import NAMES
from tests.fakes.injector_running import Webhook, running, shop, wait_for
from tests.fakes.kube_api import FakeKube
from tests.fakes.rights import compare

LIMIT = 6 * 1024 * 1024
JSON = b"POST /inject/v1 HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def kube() -> Iterator[FakeKube]:
    with FakeKube() as kube:
        shop(kube, **{"istio-injection": "enabled"})
        yield kube


@pytest.fixture(scope="module")
def webhook(kube: FakeKube, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Webhook]:
    limits = {"header_wait": "1s", "body_wait": "1500ms", "threads": 4}
    with running(tmp_path_factory.mktemp("webhook"), kube, {"limits": limits}) as webhook:
        yield webhook


def test_failures_are_shown_before_the_first(webhook: Webhook) -> None:
    """Over all workers; alerts ask for increases, and what begins with 1 has none."""
    page = webhook.get("/metrics")[1]
    for metric in ("admissions", "policy_admissions"):
        assert f'gatehouse_injector_{metric}_total{{outcome="failed",reason="review_internal"}} 0.0' in page


# --- e.2 (7): malformed requests ---


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"])
def test_d1_only_post_is_answered(webhook: Webhook, method: str) -> None:
    status, _ = webhook.ask(b"", method=method)
    assert status == 405


@pytest.mark.parametrize(
    ("body", "headers", "status", "code"),
    [
        pytest.param(b"", {}, 400, "review_empty", id="empty"),
        pytest.param(b"{", {}, 400, "review_not_json", id="not-json"),
        pytest.param(reviews.body(), {"Content_Type": "text/plain"}, 415, "review_media_type", id="text"),
        pytest.param(
            reviews.body(), {"Content_Type": "application/yaml"}, 415, "review_media_type", id="yaml"
        ),
        pytest.param(b"\x1f\x8b\x08\x00", {"Content_Encoding": "gzip"}, 415, "encoding", id="gzip"),
        pytest.param(
            json.dumps({**reviews.review(), "request": None}).encode(), {}, 400, "review_request", id="null"
        ),
        pytest.param(
            reviews.body().replace(b"admission.k8s.io/v1", b"admission.k8s.io/v1beta1"),
            {},
            400,
            "review_version",
            id="v1beta1",
        ),
        pytest.param(reviews.body(uid=None), {}, 400, "review_uid", id="no-uid"),
    ],
)
def test_d1_malformed_reviews_have_a_status_and_a_code(
    webhook: Webhook, body: bytes, headers: dict[str, str], status: int, code: str
) -> None:
    found, text = webhook.ask(body, **headers)
    assert (found, code in text.decode()) == (status, True), text


def test_d1_more_than_six_mebibytes_are_refused_before_they_are_sent(webhook: Webhook) -> None:
    with webhook.connect() as tls:
        tls.sendall(JSON + b"Content-Length: %d\r\n\r\n" % (LIMIT + 1))
        found = tls.recv(65536)
    assert found.startswith(b"HTTP/1.1 413"), found


def test_d1_exactly_six_mebibytes_are_read(webhook: Webhook) -> None:
    body = reviews.body()
    status, _ = webhook.ask(body + b" " * (LIMIT - len(body)))
    assert status == 200


def chunked(*parts: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in parts) + b"0\r\n\r\n"


def test_e7_a_chunked_review_is_read(webhook: Webhook) -> None:
    body = reviews.body()
    head = JSON + b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    found = webhook.raw(head + chunked(body[:10], body[10:]))
    assert found.startswith(b"HTTP/1.1 200"), found
    assert b'"allowed":true' in found


def test_e7_chunks_without_end_are_cut_at_the_limit(webhook: Webhook) -> None:
    """The cap streams: no more than the limit is ever held."""
    head = JSON + b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    with webhook.connect() as tls:
        tls.sendall(head)
        part = b"%x\r\n%s\r\n" % (65536, b" " * 65536)
        with contextlib.suppress(OSError):  # cut off while still sending: as good
            for _ in range(200):
                tls.sendall(part)
    name = 'gatehouse_injector_admissions_total{outcome="failed",reason="review_too_large"}'
    wait_for(lambda: webhook.metric(name) > 0, "it is counted")


@pytest.mark.parametrize(
    ("data", "status"),
    [
        pytest.param(b"\x00\x01\x02\r\n\r\n", b"400", id="binary"),
        pytest.param(b"GET / HTTP/9.9\r\n\r\n", b"400", id="version"),
        pytest.param(b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n\r\n", b"414", id="long-line"),
        pytest.param(
            b"GET /livez HTTP/1.1\r\n" + b"".join(b"X-%d: y\r\n" % i for i in range(100)) + b"\r\n",
            b"431",
            id="many-fields",
        ),
        pytest.param(
            JSON + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", b"400", id="smuggling"
        ),
        pytest.param(JSON + b"Content-Length: -1\r\n\r\n", b"400", id="negative-length"),
        pytest.param(
            JSON + b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\nzz\r\n", b"400", id="bad-chunk"
        ),
    ],
)
def test_e7_what_is_not_http_is_refused(webhook: Webhook, data: bytes, status: bytes) -> None:
    found = webhook.raw(data)
    assert found.partition(b" ")[2][:3] == status, found[:200]


def test_e7_a_body_that_ends_early_is_no_review(webhook: Webhook) -> None:
    tls = webhook.connect()
    try:
        tls.sendall(JSON + b"Content-Length: 1000\r\nConnection: close\r\n\r\n{")
        tls.unwrap().close()
    except (OSError, ssl.SSLError):
        tls.close()
    name = 'gatehouse_injector_admissions_total{outcome="failed",reason="review_cut"}'
    wait_for(lambda: webhook.metric(name) + webhook.metric(name.replace("cut", "slow")) > 0, "it is counted")


def test_d1_a_slow_body_gets_408_within_its_time(webhook: Webhook) -> None:
    """Slow loris: bytes that keep coming do not prolong the deadline."""
    with webhook.connect() as tls:
        tls.sendall(JSON + b"Content-Length: 1000\r\n\r\n")
        started, found = time.monotonic(), b""
        tls.settimeout(0.2)
        while not found and time.monotonic() - started < 60:
            try:
                tls.sendall(b" ")
                found = tls.recv(65536)
            except TimeoutError:
                continue
            except OSError:
                break
    assert found.startswith(b"HTTP/1.1 408"), found
    assert time.monotonic() - started < 30, "the bytes would have gone on for minutes"


def test_d1_a_slow_head_is_dropped_within_its_time(webhook: Webhook) -> None:
    with webhook.connect() as tls:
        tls.settimeout(0.2)
        started, ended = time.monotonic(), False
        while not ended and time.monotonic() - started < 60:
            try:
                tls.sendall(b"X")
                ended = tls.recv(100) == b""
            except TimeoutError:
                continue
            except OSError:
                ended = True
    assert ended
    assert time.monotonic() - started < 30, "the bytes would have gone on for minutes"


def test_d1_silent_connections_hold_no_thread(webhook: Webhook) -> None:
    """Two hundred connections that say nothing, four threads, a second for each: they would be 50 s."""
    silent = [socket.create_connection(("127.0.0.1", webhook.port)) for _ in range(200)]
    try:
        started = time.monotonic()
        assert webhook.review(reviews.body())["allowed"] is True
        assert time.monotonic() - started < 20
    finally:
        for sock in silent:
            sock.close()


def test_d1_half_handshakes_end_within_their_time(webhook: Webhook) -> None:
    with socket.create_connection(("127.0.0.1", webhook.port), timeout=60) as plain:
        plain.sendall(b"\x16\x03\x01\x02\x00\x01")
        assert plain.recv(10) == b""


def test_the_corpus_left_the_webhook_in_good_health(webhook: Webhook) -> None:
    assert webhook.ready()
    assert webhook.review(reviews.body())["allowed"] is True
    assert not webhook.said("an admission failed")


# --- TLS ---


def test_d1_tls_1_3_and_http_1_1_only(webhook: Webhook) -> None:
    with webhook.connect() as tls:
        assert (tls.version(), tls.selected_alpn_protocol()) == ("TLSv1.3", "http/1.1")
    context = webhook.context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        socket.create_connection(("127.0.0.1", webhook.port), timeout=10) as plain,
        pytest.raises(ssl.SSLError),
    ):
        context.wrap_socket(plain, server_hostname=NAMES[0])


def test_d1_plain_http_on_the_tls_port_gets_nothing(webhook: Webhook) -> None:
    with socket.create_connection(("127.0.0.1", webhook.port), timeout=10) as plain:
        plain.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):
            assert b"200" not in plain.recv(1000)


def test_d1_connections_are_kept(webhook: Webhook) -> None:
    connection = webhook.client()
    for _ in range(3):
        connection.request("POST", "/inject/v1", reviews.body(), {"Content-Type": "application/json"})
        response = connection.getresponse()
        assert (response.status, bool(response.read())) == (200, True)
        assert connection.sock is not None
    connection.close()


# --- answers ---


def test_a_skip_says_why(webhook: Webhook) -> None:
    pod = reviews.pod(labels={"sidecar.istio.io/inject": "false"})
    found = webhook.review(reviews.body(object=pod))
    assert found["allowed"] is True
    assert found["auditAnnotations"]["reason"] == "pod_opt_out"
    assert "patch" not in found


def test_an_invalid_value_is_denied_with_422(webhook: Webhook) -> None:
    pod = reviews.pod(labels={"sidecar.istio.io/inject": "maybe"})
    found = webhook.review(reviews.body(object=pod))
    assert found["allowed"] is False
    assert found["status"]["code"] == 422
    assert "invalid_inject_value" in found["status"]["message"]


def test_a_time_out_that_is_over_is_not_worked_on(webhook: Webhook) -> None:
    status, body = webhook.ask(reviews.body(), path="/inject/v1?timeout=1ms")
    assert (status, b"review_late" in body) == (503, True)


def test_events_are_written_on_the_owner_and_never_for_dry_runs(webhook: Webhook, kube: FakeKube) -> None:
    pod = reviews.pod(labels={"sidecar.istio.io/inject": "maybe"})
    pod["metadata"]["ownerReferences"][0] |= {"uid": "dry", "name": "dry-1"}
    webhook.review(reviews.body(object=pod, dryRun=True))
    pod["metadata"]["ownerReferences"][0] |= {"uid": "wet", "name": "wet-1"}
    webhook.review(reviews.body(object=pod))
    wait_for(
        lambda: any(e["involvedObject"]["name"] == "wet-1" for e in kube.all("Event")), "the Event is there"
    )
    events = kube.all("Event")
    assert not [e for e in events if e["involvedObject"]["name"] == "dry-1"]
    event = next(e for e in events if e["involvedObject"]["name"] == "wet-1")
    assert event["involvedObject"]["kind"] == "ReplicaSet"
    assert (event["reason"], event["type"]) == ("InjectionDenied", "Warning")
    assert event["message"].startswith("invalid_inject_value: ")


def test_the_webhook_only_reads_and_creates_events(webhook: Webhook, kube: FakeKube) -> None:
    """Least privilege: no write right but the creation of Events."""
    assert webhook.ready()
    asked = {(resource, verb) for _, _, resource, verb in kube.verbs()}
    assert {found for found in asked if found[1] not in {"get", "list", "watch"}} <= {("events", "create")}
    assert asked <= {
        ("namespaces", "get"),
        ("namespaces", "list"),
        ("namespaces", "watch"),
        ("mutatingwebhookconfigurations", "list"),
        ("validatingwebhookconfigurations", "list"),
        ("events", "create"),
        ("configmaps", "list"),  # of one name: the chart's Role allows no other
        ("configmaps", "watch"),
    } | {found for found in asked if found[0].startswith("/")}
    refused, unused = compare("injector", kube.requests)
    assert refused == set()
    assert unused <= {"get /namespaces", "create /events"}  # used where a test needs them, or not yet


def test_a_namespace_that_was_labelled_a_moment_ago_is_asked_for(webhook: Webhook, kube: FakeKube) -> None:
    """The cache may be behind; a pod must not stay out of the mesh for it."""
    kube.mute_watches()
    try:
        kube.add(
            {"kind": "Namespace", "metadata": {"name": "fresh", "labels": {"istio-injection": "enabled"}}}
        )
        found = webhook.review(reviews.body(namespace="fresh"))
    finally:
        kube.mute_watches(muted=False)
    assert found["auditAnnotations"]["reason"] not in {"not_selected", "namespace_disabled"}


def test_an_internal_error_is_500_and_never_half_a_patch(webhook: Webhook, kube: FakeKube) -> None:
    """d.1: internal error -> 500 -> failurePolicy. Here: an unknown namespace, no API server."""
    fault = kube.fail(500, times=10, path="/api/v1/namespaces/nowhere")
    try:
        status, body = webhook.ask(reviews.body(namespace="nowhere"))
    finally:
        if fault in kube.faults:
            kube.faults.remove(fault)
    assert (status, b"review_not_ready" in body) == (503, True)
    assert b"patch" not in body


def test_the_answer_equals_the_offline_path(webhook: Webhook) -> None:
    """Golden equality: the same `inject` for webhook and command line."""
    config = configuration.load(webhook.file, {})
    for pod in (
        reviews.pod(),
        reviews.pod(annotations={"sidecar.istio.io/proxyCPU": "50m"}),
        reviews.pod(labels={"sidecar.istio.io/inject": "true"}),
    ):
        offline = inject(
            pod,
            namespace="shop",
            namespace_labels={"istio-injection": "enabled"},
            namespace_annotations={},
            config=config.settings(),
            capabilities=ClusterFeatures(native_sidecars=False),
        )
        found = webhook.review(reviews.body(object=pod))
        patch = json.loads(base64.b64decode(found["patch"])) if "patch" in found else []
        assert patch == list(offline.patch)
        assert found.get("auditAnnotations", {}).get("reason") == offline.audit["reason"]
        jsonpatch.apply_patch(pod, patch)  # it applies to the raw object
