"""The audit trail: the quick line of an issued certificate hides and bounds what the careful one does."""

from __future__ import annotations

import datetime as dt
import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ca.audit import Audit
from ca.core.authority import IssuedSvid
from ca.core.csr import KeyKind, ProvenKey
from mesh.errors import Category, Code, MeshError
from mesh.obs import logs
from mesh.spiffe import SpiffeId

AT = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
WEB = SpiffeId.parse("spiffe://cluster.local/ns/shop/sa/web")
KEY = ProvenKey(b"spki", KeyKind.P256, bytes(range(20)))
SVID = IssuedSvid(b"der", "pem", (), (), "0a", AT, AT + dt.timedelta(days=1), WEB)
TOKEN = jwt.encode({"sub": "web"}, "k" * 32)
PRIVATE = "-----BEGIN PRIVATE " + "KEY-----\nMIGHAgEAMBMGByqGSM49\n-----END PRIVATE " + "KEY-----\n"


class AuditCode(Code):
    BAD = "bad_request"


@pytest.fixture(autouse=True)
def put_logging_back() -> Iterator[None]:
    """`configure` changes the whole process."""
    loggers = [logging.getLogger(name) for name in ("", "ca", "mesh", "nodeagent", "injector", "meshctl")]
    before = [(logger, logger.level, list(logger.handlers)) for logger in loggers]
    yield
    for logger, level, handlers in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers


def lines_of(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def configured(level: str = "info") -> io.StringIO:
    stream = io.StringIO()
    logs.configure(service="ca", level=level, json=True, stream=stream)
    return stream


def issued(who: dict[str, str], *, key: ProvenKey = KEY, level: str = "info") -> list[dict[str, Any]]:
    stream = configured(level)
    Audit().issued(key, SVID, key_reused=True, who=who)
    return lines_of(stream)


def test_who_got_what_for_which_key() -> None:
    (line,) = issued({"identity": str(WEB), "method": "jwt", "pod": "web-1", "peer": "10.0.0.7:4711"})
    line.pop("ts")
    assert line == {
        "level": "info",
        "service": "ca",
        "logger": "ca.audit",
        "msg": "certificate issued",
        "decision": "issued",
        "serial": "0a",
        "not_before": "2026-01-02T03:04:05+00:00",
        "not_after": "2026-01-03T03:04:05+00:00",
        "key_kind": str(KeyKind.P256),
        "key_id": bytes(range(20)).hex(),
        "key_reused": True,
        "identity": str(WEB),
        "method": "jwt",
        "pod": "web-1",
        "peer": "10.0.0.7:4711",
    }


def test_granted_names_of_a_server_are_written() -> None:
    assert issued({}, key=KEY._replace(dns=("ca.istio-system.svc",)))[0]["dns"] == ["ca.istio-system.svc"]


FROM_OUTSIDE = st.text(max_size=40) | st.builds(
    "".join,
    st.tuples(st.text(max_size=9), st.sampled_from([TOKEN, PRIVATE, "x" * 9000]), st.text(max_size=9)),
)


@given(st.dictionaries(st.sampled_from(["identity", "method", "pod", "peer", "msg"]), FROM_OUTSIDE))
def test_the_quick_line_is_the_one_of_the_careful_path(who: dict[str, str]) -> None:
    (quick,) = issued(who)
    stream = configured()
    logs.logger("ca.audit").info(
        "certificate issued",
        decision="issued",
        serial=SVID.serial,
        not_before=SVID.not_before,
        not_after=SVID.not_after,
        key_kind=KEY.kind,
        key_id=KEY.key_id.hex(),
        key_reused=True,
        **who,
    )
    (careful,) = lines_of(stream)
    assert quick | {"ts": ""} == careful | {"ts": ""}
    assert TOKEN.rpartition(".")[2] not in json.dumps(quick)
    assert "MIGHAgEAMBMGByqGSM49" not in json.dumps(quick)


def test_a_level_that_leaves_issuing_out_still_tells_of_attacks() -> None:
    assert issued({}, level="warning") == []
    stream = configured("warning")
    audit = Audit()
    error = MeshError(AuditCode.BAD, "no", category=Category.INVALID_ARGUMENT, private=f"sent {TOKEN}")
    audit.refused(error, hostile=False, who={"peer": "10.0.0.7:1"})
    audit.refused(error, hostile=True, who={"peer": "10.0.0.8:1"})
    (line,) = lines_of(stream)
    assert (line["decision"], line["code"], line["hostile"]) == ("refused", "bad_request", True)
    assert (line["peer"], line["detail"]) == ("10.0.0.8:1", "sent [redacted token]")
