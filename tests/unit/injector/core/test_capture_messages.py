"""Lines between the capture agent and its worker: round trips, and what is refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from injector.core.capture import CaptureConfig, CaptureError, PortRange
from injector.core.capture_messages import MAX_LINE, Answer, MessageCode, MessageError, Request

UID = "0b7d1e5c-3f2a-4c7e-9a41-6d5b8f0e2c11"


def test_a_request_comes_back() -> None:
    request = Request(UID, CaptureConfig(exclude_inbound=(PortRange(1, 2),), proxy_uid=7))
    assert Request.of_line(request.to_line()) == request
    assert Request.of_line(Request(None, CaptureConfig()).to_line()).uid is None


texts = st.text(max_size=50)


@given(st.builds(Answer, code=texts, message=texts, network=texts, backend=texts))
def test_an_answer_comes_back(answer: Answer) -> None:
    assert Answer.of_line(answer.to_line()) == answer
    assert answer.to_line().count(b"\n") == 1


def test_answers_are_bounded() -> None:
    assert len(Answer(message="x" * 100_000).to_line()) < 2000


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"", "not JSON"),
        (b"[]", "not a JSON object"),
        (b"[" * 60_000, "not JSON"),
        (b" " * (MAX_LINE + 1), "at most"),
        (b'{"uid":"x"}', "a uid and a config"),
        (json.dumps({"uid": UID, "config": {}}).encode(), "both texts"),
        (json.dumps({"uid": UID, "config": "{}", "command": "sh"}).encode(), "a uid and a config"),
        (json.dumps({"uid": "../1", "config": "{}"}).encode(), "not that of a pod"),
        (json.dumps({"uid": UID + "\n", "config": "{}"}).encode(), "not that of a pod"),
        (b"\xff{}", "not JSON"),
    ],
    ids=["empty", "list", "nested", "long", "half", "object", "more", "path", "newline", "bytes"],
)
def test_bad_requests(line: bytes, said: str) -> None:
    with pytest.raises(MessageError, match=said) as caught:
        Request.of_line(line)
    assert caught.value.code is MessageCode.REQUEST


def test_what_is_to_be_captured_is_checked_again() -> None:
    line = json.dumps({"uid": UID, "config": '{"exclude_interfaces":["eth0; flush ruleset"]}'}).encode()
    with pytest.raises(CaptureError, match="not an interface name"):
        Request.of_line(line)


@pytest.mark.parametrize("line", [b"", b"{}", b'{"code":1,"message":"","network":"","backend":""}'])
def test_bad_answers(line: bytes) -> None:
    with pytest.raises(MessageError) as caught:
        Answer.of_line(line)
    assert caught.value.code is MessageCode.ANSWER
