"""The client against a scripted API server: errors, dead connections, time-outs, tokens."""

from __future__ import annotations

import concurrent.futures
import datetime as dt
import socket
import threading
from collections.abc import Iterator

import pytest

from mesh.errors import Category
from mesh.kube.access import Access
from mesh.kube.api import KubeCode, KubeError, PatchType
from mesh.kube.client import KubeClient
from tests.fakes.kube_api import FakeKube

MAPS = "/api/v1/namespaces/default/configmaps"
SILENCE = dt.timedelta(seconds=5)


@pytest.fixture
def kube() -> Iterator[FakeKube]:
    with FakeKube() as server:
        yield server


def _map(name: str, **data: str) -> dict[str, object]:
    return {"metadata": {"name": name}, "data": data}


@pytest.mark.parametrize(
    ("status", "reason", "code", "category"),
    [
        (400, "BadRequest", KubeCode.INVALID, Category.INVALID_ARGUMENT),
        (401, "Unauthorized", KubeCode.UNAUTHORIZED, Category.UNAUTHENTICATED),
        (403, "Forbidden", KubeCode.FORBIDDEN, Category.PERMISSION_DENIED),
        (404, "NotFound", KubeCode.NOT_FOUND, Category.NOT_FOUND),
        (409, "Conflict", KubeCode.CONFLICT, Category.UNAVAILABLE),
        (409, "AlreadyExists", KubeCode.ALREADY_EXISTS, Category.FAILED_PRECONDITION),
        (410, "Gone", KubeCode.GONE, Category.UNAVAILABLE),
        (500, "Expired", KubeCode.GONE, Category.UNAVAILABLE),
        (422, "Invalid", KubeCode.INVALID, Category.INVALID_ARGUMENT),
        (429, "TooManyRequests", KubeCode.THROTTLED, Category.UNAVAILABLE),
        (500, "InternalError", KubeCode.SERVER, Category.UNAVAILABLE),
        (503, "", KubeCode.SERVER, Category.UNAVAILABLE),
    ],
)
def test_status_becomes_a_code(
    kube: FakeKube, status: int, reason: str, code: KubeCode, category: Category
) -> None:
    kube.fail(status, reason=reason, retry_after="7")
    with pytest.raises(KubeError, match=f"HTTP {status} scripted") as e:
        kube.api().get(MAPS)
    assert (e.value.code, e.value.category, e.value.status) == (code, category, status)
    assert e.value.retry_after == dt.timedelta(seconds=7)


@pytest.mark.parametrize(
    ("header", "body", "seconds"),
    [
        pytest.param(None, {}, None, id="none"),
        pytest.param("12", {}, 12, id="header"),
        pytest.param(None, {"details": {"retryAfterSeconds": 3}}, 3, id="body"),
        pytest.param("9" * 9, {}, 3600, id="bounded"),
        pytest.param("9" * 400, {}, None, id="absurd"),
        pytest.param("Wed, 21 Oct 2026 07:28:00 GMT", {}, None, id="date"),
        pytest.param("-1", {"details": {"retryAfterSeconds": "x"}}, None, id="garbage"),
        pytest.param("0", {"details": "x"}, None, id="zero"),
    ],
)
def test_retry_after_is_bounded(header: str | None, body: object, seconds: int | None) -> None:
    error = KubeError.of_status(429, "GET /", body, header)
    assert error.retry_after == (None if seconds is None else dt.timedelta(seconds=seconds))


def test_error_body_that_is_no_json(kube: FakeKube) -> None:
    kube.routes["GET", MAPS] = lambda _r: (502, b"<html>bad gateway</html>")
    with pytest.raises(KubeError, match="HTTP 502") as e:
        kube.api().get(MAPS)
    assert e.value.code is KubeCode.SERVER


def test_answer_that_is_no_json(kube: FakeKube) -> None:
    kube.garbage()
    with pytest.raises(KubeError, match="not JSON") as e:
        kube.api().get(MAPS)
    assert e.value.code is KubeCode.RESPONSE


def test_verbs(kube: FakeKube) -> None:
    api = kube.api("who-i-am")
    made = api.create(MAPS, _map("one", a="1"))
    with pytest.raises(KubeError) as taken:
        api.create(MAPS, _map("one"))
    assert taken.value.code is KubeCode.ALREADY_EXISTS
    changed = api.replace(f"{MAPS}/one", {**made, "data": {"a": "2"}})
    with pytest.raises(KubeError) as conflict:
        api.replace(f"{MAPS}/one", {**made, "data": {"a": "3"}})
    assert conflict.value.code is KubeCode.CONFLICT
    api.patch(f"{MAPS}/one", {"data": {"b": "3"}}, PatchType.MERGE)
    api.patch(f"{MAPS}/one", [{"op": "remove", "path": "/data/a"}], PatchType.JSON)
    apply = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "one"}, "data": {"c": "4"}}
    api.patch(f"{MAPS}/one", apply, PatchType.APPLY, fieldManager="test", force="true")
    assert api.get(f"{MAPS}/one")["data"] == {"b": "3", "c": "4"}
    assert changed["metadata"]["resourceVersion"] != made["metadata"]["resourceVersion"]
    api.delete(f"{MAPS}/one")
    with pytest.raises(KubeError) as gone:
        api.get(f"{MAPS}/one")
    assert gone.value.code is KubeCode.NOT_FOUND
    sent = kube.requests[0].headers
    assert (sent["user-agent"], sent["authorization"]) == ("who-i-am", "Bearer test-token")


def test_path_and_query_are_escaped(kube: FakeKube) -> None:
    with pytest.raises(KubeError):
        kube.api().get(f"{MAPS}/a b?watch=true#x", labelSelector="a in (b,c)&limit=1")
    request = kube.requests[-1]
    assert request.path == f"{MAPS}/a%20b%3Fwatch=true%23x"
    assert request.query == {"labelSelector": "a in (b,c)&limit=1"}


def test_one_connection_serves_many_requests_and_threads(kube: FakeKube) -> None:
    api = kube.api()
    api.get(MAPS)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _n: api.get(MAPS), range(20)))
    assert len(kube._server.connections) <= 2


def test_connection_that_was_closed_while_idle_is_replaced(kube: FakeKube) -> None:
    """A stale keep-alive connection is noticed before it is used: nothing is sent twice."""
    api = kube.api()
    api.get(MAPS)
    kube._server.cut_all()
    kube.wait_connections(0)
    api.create(MAPS, _map("after"))
    assert [r.method for r in kube.requests] == ["GET", "POST"]


def test_dead_connection_read_again_write_not(kube: FakeKube) -> None:
    """The server dies while it works on a request: only a read may be repeated."""
    api = kube.api()
    api.get(MAPS)
    kube.cut()
    assert api.get(MAPS)["items"] == []
    kube.cut(method="POST")
    with pytest.raises(KubeError, match="no answer from the API server") as e:
        api.create(MAPS, _map("one"))
    assert e.value.code is KubeCode.UNREACHABLE
    assert len(kube.asked("POST")) == 1
    kube.cut(method="GET")  # on a new connection it is no stale one
    with pytest.raises(KubeError, match="no answer"):
        api.get(MAPS)
    assert api.get(MAPS)["items"] == []


def test_silent_server_times_out_once(kube: FakeKube) -> None:
    """After a time-out nothing is sent again: it would double the load of a slow server."""
    api = kube.api(timeout=2.0)
    api.get(MAPS)
    kube.silence()
    with pytest.raises(KubeError, match="TimeoutError") as e:
        api.get(MAPS)
    assert e.value.code is KubeCode.UNREACHABLE
    assert len(kube.asked("GET")) == 2


def test_trickling_answer_times_out() -> None:
    """A server that sends a byte now and then keeps no thread for ever."""
    with FakeKube() as kube:
        kube.trickle = threading.Event()
        kube.routes["GET", "/slow"] = lambda _r: (200, kube.trickling(b"[" + b"1," * 400))
        with pytest.raises(KubeError, match=r"no answer|did not end"):
            kube.api(timeout=0.5).get("/slow")
        kube.trickle.set()


def test_truncated_answer_is_no_answer(kube: FakeKube) -> None:
    kube.routes["GET", "/short"] = lambda _r: (200, kube.truncated(b'{"a": 1}'))
    with pytest.raises(KubeError, match=r"IncompleteRead|no answer") as e:
        kube.api().get("/short")
    assert e.value.code is KubeCode.UNREACHABLE


def test_answer_over_the_limit(kube: FakeKube, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mesh.kube.client._MAX_BODY", 1000)
    kube.routes["GET", "/big"] = lambda _r: (200, b"[" + b"1," * 5000 + b"1]")
    api = kube.api()
    with pytest.raises(KubeError, match="answer is over") as e:
        api.get("/big")
    assert e.value.code is KubeCode.RESPONSE
    assert api.get(MAPS)["items"] == []  # what was left unread harms nobody


def test_refused_and_untrusted() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    client = KubeClient(Access("127.0.0.1", port, token="x"), user_agent="t")
    with pytest.raises(KubeError, match="ConnectionRefusedError") as refused:
        client.get(MAPS)
    assert refused.value.code is KubeCode.UNREACHABLE
    with FakeKube() as kube:
        stranger = KubeClient(Access("127.0.0.1", kube.port, token="x"), user_agent="t")
        with pytest.raises(KubeError, match="SSLCertVerificationError"):
            stranger.get(MAPS)
        assert kube.requests == []


def test_server_name_is_checked_instead_of_the_host(kube: FakeKube) -> None:
    def client(name: str) -> KubeClient:
        access = Access("127.0.0.1", kube.port, ca_pem=kube.ca_pem, token="t", server_name=name)
        return KubeClient(access, user_agent="t")

    good = client("localhost")
    assert good.get(MAPS)["items"] == []
    good.close()
    with pytest.raises(KubeError, match="Hostname mismatch"):
        client("other.test").get(MAPS)


def test_prefix_goes_before_every_path(kube: FakeKube) -> None:
    kube.documents["/k8s/clusters/c-1/version"] = {"major": "1"}
    access = Access("127.0.0.1", kube.port, ca_pem=kube.ca_pem, prefix="/k8s/clusters/c-1")
    client = KubeClient(access, user_agent="t")
    assert client.get("/version") == {"major": "1"}
    client.close()


def test_credentials_that_cannot_be_used(tmp_path: object) -> None:
    access = Access("127.0.0.1", 1, ca_pem="no certificate")
    with pytest.raises(KubeError, match="cannot be used") as e:
        KubeClient(access, user_agent="t").get("/version")
    assert e.value.code is KubeCode.CONFIG


def test_watch_delivers_events(kube: FakeKube) -> None:
    api = kube.api()
    kube.add({"kind": "ConfigMap", "metadata": {"name": "old"}})
    with api.watch(MAPS, silence=SILENCE, resourceVersion="0") as events:
        assert next(events)["type"] == "ADDED"
        kube.add({"kind": "ConfigMap", "metadata": {"name": "old"}, "data": {"a": "b"}})
        event = next(events)
        assert (event["type"], event["object"]["data"]) == ("MODIFIED", {"a": "b"})
        kube.end_watches()
        assert list(events) == []


@pytest.mark.parametrize(
    ("line", "message", "code"),
    [
        (b"{not json\n", "not JSON", KubeCode.RESPONSE),
        (b'["a"]\n', "not a watch event", KubeCode.RESPONSE),
        (b'{"type": "ADDED"}\n', "not a watch event", KubeCode.RESPONSE),
        (b"x" * 4000 + b"\n", "event is over", KubeCode.RESPONSE),
    ],
    ids=["garbage", "array", "no-object", "huge"],
)
def test_watch_with_bad_lines(
    kube: FakeKube, monkeypatch: pytest.MonkeyPatch, line: bytes, message: str, code: KubeCode
) -> None:
    monkeypatch.setattr("mesh.kube.client._MAX_EVENT", 2000)
    with kube.api().watch(MAPS, silence=SILENCE) as events:
        kube.wait_watchers(1)
        kube.watch_garbage(line)
        with pytest.raises(KubeError, match=message) as e:
            next(events)
    assert e.value.code is code


def test_watch_cut_in_the_middle_of_a_line(kube: FakeKube) -> None:
    with kube.api().watch(MAPS, silence=SILENCE) as events:
        kube.wait_watchers(1)
        kube.watch_garbage(b'{"type": "ADDED", "obj')
        kube.cut_watches()
        with pytest.raises(KubeError, match="no answer") as e:
            next(events)
    assert e.value.code is KubeCode.UNREACHABLE


def test_watch_refused(kube: FakeKube) -> None:
    kube.fail(403, watch=True)
    with pytest.raises(KubeError, match="HTTP 403"), kube.api().watch(MAPS, silence=SILENCE):
        pass


def test_watch_of_a_silent_server(kube: FakeKube) -> None:
    """Half-open TCP: the time-out of the start and that of the stream are two."""
    kube.silence(watch=True)
    with (
        pytest.raises(KubeError, match="TimeoutError"),
        kube.api(timeout=0.2).watch(MAPS, silence=dt.timedelta(hours=1)),
    ):
        pass
    with (
        kube.api().watch(MAPS, silence=dt.timedelta(seconds=0.2)) as events,
        pytest.raises(KubeError, match="TimeoutError"),
    ):
        next(events)


def test_close_ends_the_wait_of_a_watch(kube: FakeKube) -> None:
    api = kube.api()
    seen: list[str] = []

    def read() -> None:
        try:
            with api.watch(MAPS, silence=dt.timedelta(hours=1)) as events:
                list(events)
        except KubeError as e:
            seen.append(e.code)
        else:
            seen.append("ended")

    thread = threading.Thread(target=read)
    thread.start()
    kube.wait_watchers(1)
    api.close()
    thread.join(30)
    assert not thread.is_alive()
    assert seen in ([KubeCode.UNREACHABLE], ["ended"])
    with pytest.raises(KubeError, match="client was closed"), api.watch(MAPS, silence=SILENCE):
        pass


def test_connection_that_grew_old_is_replaced(kube: FakeKube, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mesh.kube.client._IDLE_SECONDS", 0.0)
    api = kube.api()
    for _ in range(3):
        api.get(MAPS)
    kube.wait_connections(1)


def test_no_more_connections_are_kept_than_the_limit(kube: FakeKube, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mesh.kube.client._MAX_IDLE", 0)
    kube.api().get(MAPS)
    kube.wait_connections(0)


def test_server_that_closes_after_each_answer(kube: FakeKube) -> None:
    """As HTTP/1.0 proxies do; for a watch too."""
    kube.close_after_answer = True
    api = kube.api()
    assert [api.get(MAPS)["items"] for _ in range(2)] == [[], []]
    with api.watch(MAPS, silence=SILENCE) as events:
        kube.wait_watchers(1)
        kube.end_watches()
        assert list(events) == []
