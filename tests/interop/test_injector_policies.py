"""The validating webhook as a process: the same server as for pods, real TLS, hostile requests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import injector_reviews as pods
from tests.fakes.injector_running import Webhook, running, wait_for
from tests.fakes.kube_api import FakeKube
from tests.fakes.policy_reviews import body, review, stored, when

PATH = "/validate?timeout=5s"
AUTHZ = "AuthorizationPolicy"
BROKEN = stored(AUTHZ, when("request.headers", "source.nonsense"))
LIMIT = 6 * 1024 * 1024


@pytest.fixture(scope="module")
def webhook(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Webhook]:
    limits = {"header_wait": "1s", "body_wait": "1500ms", "threads": 4}
    with (
        FakeKube() as kube,
        running(tmp_path_factory.mktemp("policies"), kube, {"limits": limits}) as webhook,
    ):
        yield webhook


def validate(webhook: Webhook, data: bytes) -> dict[str, Any]:
    status, answer = webhook.ask(data, path=PATH)
    assert status == 200, answer
    found: dict[str, Any] = json.loads(answer)
    assert (found["apiVersion"], found["kind"]) == ("admission.k8s.io/v1", "AdmissionReview")
    response: dict[str, Any] = found["response"]
    return response


def test_a_policy_is_judged_and_it_is_told(webhook: Webhook) -> None:
    assert validate(webhook, body(stored(AUTHZ)))["allowed"] is True
    denied = validate(webhook, body(BROKEN))
    assert denied["allowed"] is False
    for field in ("spec.rules[0].when[0].key", "spec.rules[0].when[1].key"):
        assert field in denied["status"]["message"]
    name = "gatehouse_injector_policy_admissions_total"
    assert webhook.metric(f'{name}{{outcome="denied",reason="policy_bad_condition_key"}}') == 1
    (said,) = [line for line in webhook.said("policy admission") if line["outcome"] == "denied"]
    assert (said["kind"], said["namespace"], said["policy"]) == (AUTHZ, "shop", "probe")
    assert (said["reason"], said["problems"]) == ("policy_bad_condition_key", 2)


def test_pods_and_policies_do_not_mix(webhook: Webhook) -> None:
    """A configuration with a wrong path lets everything through, and says so in the audit log."""
    assert validate(webhook, pods.body())["auditAnnotations"] == {"reason": "not_applicable"}
    assert webhook.review(body(BROKEN))["auditAnnotations"]["reason"] == "not_applicable"


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"])
def test_only_post_is_answered(webhook: Webhook, method: str) -> None:
    assert webhook.ask(b"", path=PATH, method=method)[0] == 405


@pytest.mark.parametrize(
    ("data", "headers", "status", "code"),
    [
        pytest.param(b"", {}, 400, "review_empty", id="empty"),
        pytest.param(b"{", {}, 400, "review_not_json", id="not-json"),
        pytest.param(b"[" * 100_000, {}, 400, "review_not_json", id="deep"),
        pytest.param(body(BROKEN), {"Content_Type": "application/yaml"}, 415, "review_media_type", id="yaml"),
        pytest.param(b"\x1f\x8b", {"Content_Encoding": "gzip"}, 415, "review_content_encoding", id="gzip"),
        pytest.param(
            json.dumps({**review(BROKEN), "request": None}).encode(), {}, 400, "review_request", id="null"
        ),
        pytest.param(
            body(BROKEN).replace(b"admission.k8s.io/v1", b"admission.k8s.io/v1beta1"),
            {},
            400,
            "review_version",
            id="v1beta1",
        ),
        pytest.param(body(BROKEN, uid=None), {}, 400, "review_uid", id="no-uid"),
        pytest.param(body(BROKEN, namespace="../x"), {}, 400, "review_request", id="namespace"),
    ],
)
def test_malformed_reviews_have_a_status_and_a_code(
    webhook: Webhook, data: bytes, headers: dict[str, str], status: int, code: str
) -> None:
    found, text = webhook.ask(data, path=PATH, **headers)
    assert (found, code in text.decode()) == (status, True), text


def test_more_than_six_mebibytes_are_refused(webhook: Webhook) -> None:
    head = b"POST /validate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    with webhook.connect() as tls:
        tls.sendall(head + b"Content-Length: %d\r\n\r\n" % (LIMIT + 1))
        assert tls.recv(65536).startswith(b"HTTP/1.1 413")


def test_a_body_that_trickles_is_given_up(webhook: Webhook) -> None:
    head = (
        b"POST /validate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n"
    )
    before = webhook.metric("gatehouse_injector_policy_admissions_total")
    with webhook.connect() as tls:
        tls.sendall(head + b"{")
        assert tls.recv(65536).startswith(b"HTTP/1.1 408")
    wait_for(
        lambda: webhook.metric("gatehouse_injector_policy_admissions_total") > before,
        "the failure is counted",
    )


def test_the_largest_policy_is_answered_in_time(webhook: Webhook) -> None:
    """About what an etcd takes: every value is looked at, and the API server waits five seconds."""
    values = [f"cluster.local/ns/shop/sa/{'a' * 24}{n}" for n in range(4096)]
    rules = [{"from": [{"source": {"principals": values}}]} for _ in range(4)]
    found = validate(webhook, body(stored(AUTHZ, {"rules": rules})))
    assert found["allowed"] is True


def test_it_is_as_good_without_an_api_server(tmp_path: Path) -> None:
    """Everything that is judged comes with the request."""
    with FakeKube() as kube, running(tmp_path, kube) as webhook:
        kube.stop()
        assert validate(webhook, body(stored(AUTHZ)))["allowed"] is True
        assert validate(webhook, body(BROKEN))["allowed"] is False
