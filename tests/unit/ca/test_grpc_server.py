"""Parts of the gRPC server that need no socket: statuses, metadata of refusals, watching slow calls."""

from __future__ import annotations

import datetime as dt
import threading
from typing import Any

import pytest
from google.protobuf import struct_pb2

from ca.authn import AuthnCode, AuthnError
from ca.core.lint import LintCode, LintError
from ca.grpc_calls import peer_certificates
from ca.grpc_refusals import STATUS, public_text, refusal_metadata
from ca.grpc_server import ServerOptions, parse_request
from ca.grpc_watch import Watch
from ca.limits import LimitCode, LimitError
from ca.requests import RequestCode, RequestError
from mesh._proto import istio_ca_pb2
from mesh.errors import Category
from tests.fakes.ca_running import Answer


@pytest.mark.parametrize("category", Category)
def test_every_category_has_its_status(category: Category) -> None:
    assert STATUS[category].name == category.name


def answer(error: Any) -> Answer:
    return Answer(STATUS[error.category], public_text(error), trailers=dict(refusal_metadata(error)))


def test_refusals_carry_their_code() -> None:
    found = answer(RequestError(RequestCode.METADATA, "text"))
    assert (found.reason, found.text, found.retry_seconds) == ("request_metadata", "text", 0)
    assert "grpc-retry-pushback-ms" not in found.trailers


def test_limits_carry_the_time_to_wait() -> None:
    found = answer(LimitError(LimitCode.CALLER_RATE, "slow down", dt.timedelta(seconds=1.5)))
    assert (found.reason, found.retry_seconds) == ("limit_caller_rate", 1.5)
    assert found.trailers["grpc-retry-pushback-ms"] == "1500"


def test_unauthenticated_callers_learn_nothing() -> None:
    assert refusal_metadata(AuthnError(AuthnCode.TOKEN_EXPIRED, "private")) == ()


def test_faults_of_ours_are_opaque() -> None:
    error = LintError(next(iter(LintCode)), "the template is wrong", category=Category.INTERNAL)
    assert refusal_metadata(error) == ()
    assert public_text(error) == "internal error; try again later"


def test_every_kind_of_struct_value() -> None:
    struct = struct_pb2.Struct()
    struct.update({"t": "x", "n": 1, "b": True, "l": [1], "o": {"a": 1}, "z": None})
    struct.fields["unset"].CopyFrom(struct_pb2.Value())
    request = istio_ca_pb2.IstioCertificateRequest(csr="c", validity_duration=7, metadata=struct)
    found = parse_request(request.SerializeToString())
    assert (found.csr_pem, found.validity_seconds) == ("c", 7)
    assert found.metadata == {
        "t": "x", "n": 1.0, "b": True, "l": ["..."], "o": {"...": "..."}, "z": None, "unset": None,
    }  # fmt: skip


def test_a_request_that_cannot_be_read() -> None:
    with pytest.raises(RequestError, match="no istio") as error:
        parse_request(b"\xff")
    assert error.value.code is RequestCode.MALFORMED


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        pytest.param({}, (), id="token port"),
        pytest.param({"x509_pem_cert": [b"L\n"]}, (b"L\n",), id="leaf only"),
        pytest.param(
            {"x509_pem_cert": [b"L\n"], "x509_pem_cert_chain": [b"I\n"]}, (b"L\n", b"I\n"), id="rest"
        ),
        pytest.param(
            {"x509_pem_cert": [b"L\n"], "x509_pem_cert_chain": [b"L\nI\n"]}, (b"L\n", b"I\n"), id="whole"
        ),
        pytest.param(
            {"x509_pem_cert": [b"L\n"], "x509_pem_cert_chain": [b"L\n"]}, (b"L\n",), id="leaf twice"
        ),
    ],
)
def test_client_certificates_come_leaf_first(facts: dict[str, Any], expected: tuple[bytes, ...]) -> None:
    assert peer_certificates(facts) == expected


def test_watch_cancels_what_is_late_and_nothing_else() -> None:
    watch, cancelled = Watch(dt.timedelta(seconds=60)), []
    with watch.guard(lambda: cancelled.append("late")):
        watch.sweep(0)
        assert cancelled == []
        watch.sweep(float("inf"))
    assert cancelled == ["late"]
    watch.sweep(float("inf"))
    assert cancelled == ["late"], "it has ended"


def test_watch_runs_by_itself() -> None:
    watch, done = Watch(dt.timedelta(0)), threading.Event()
    watch.start()
    with watch.guard(done.set):
        assert done.wait(30)
    watch.stop()
    watch.stop()


def test_bounds_of_the_transport() -> None:
    found = dict(ServerOptions(tokens="x", share_ports=True).channel_arguments())
    assert found["grpc.max_receive_message_length"] == 64 << 10
    assert found["grpc.max_metadata_size"] == found["grpc.absolute_max_metadata_size"] == 16 << 10
    assert (found["grpc.so_reuseport"], found["grpc.max_concurrent_streams"]) == (1, 100)
    assert dict(ServerOptions(tokens="x").channel_arguments())["grpc.so_reuseport"] == 0
