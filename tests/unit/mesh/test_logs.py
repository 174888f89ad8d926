"""Logs: one form for everything, no secrets, no forged lines."""

from __future__ import annotations

import datetime as dt
import enum
import io
import json
import logging
import logging.config
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import Code, MeshError
from mesh.obs import logs, redact
from mesh.obs.redact import REDACTED, clean, clean_fields, is_secret_name

KEY = ec.derive_private_key(0x1F0F, ec.SECP256R1())
PEM = KEY.private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
).decode()
TOKEN = jwt.encode({"sub": "web", "aud": ["ca"]}, KEY, algorithm="ES256", headers={"kid": "k1"})
TOKEN_HEAD = TOKEN.split(".")[0]


@pytest.fixture(autouse=True)
def put_logging_back() -> Iterator[None]:
    """`configure` changes the whole process."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    own = {
        name: logging.getLogger(name).level
        for name in ("ca", "mesh", "nodeagent", "examples", "injector", "meshctl")
    }
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, before in own.items():
        logging.getLogger(name).setLevel(before)


@pytest.fixture
def out() -> io.StringIO:
    stream = io.StringIO()
    logs.configure(service="ca", level="debug", stream=stream)
    return stream


def lines(out: io.StringIO) -> list[dict[str, Any]]:
    assert out.getvalue() == "" or out.getvalue().endswith("\n")
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_a_line_is_one_json_object_with_time_level_and_fields(out: io.StringIO) -> None:
    logs.logger("ca.service").info("certificate issued", serial="0a", lifetime=dt.timedelta(hours=1))
    (line,) = lines(out)
    assert dt.datetime.fromisoformat(line.pop("ts")).tzinfo is dt.UTC
    assert line == {
        "level": "info",
        "service": "ca",
        "logger": "ca.service",
        "msg": "certificate issued",
        "serial": "0a",
        "lifetime": 3600.0,
    }


def test_facts_have_the_same_form_and_obey_the_level(out: io.StringIO) -> None:
    at = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
    fields = {"serial": "0a", "until": at, "names": ("a", "b"), "msg": "taken"}
    logs.logger("ca.audit").facts("certificate issued", dict(fields))
    logs.logger("ca.audit").bind(pod="web").facts("certificate issued", dict(fields))
    straight, bound = lines(out)
    assert dt.datetime.fromisoformat(straight.pop("ts")).tzinfo is dt.UTC
    assert straight == {
        "level": "info",
        "service": "ca",
        "logger": "ca.audit",
        "msg": "certificate issued",
        "serial": "0a",
        "until": "2026-01-02T03:04:05+00:00",
        "names": ["a", "b"],
        "msg_": "taken",
    }
    bound.pop("ts")
    assert bound == straight | {"pod": "web"}
    logs.configure(service="ca", level="warning", json=True, stream=out)
    logs.logger("ca.audit").facts("certificate issued", dict(fields))
    assert len(lines(out)) == 2


def test_facts_on_a_terminal_and_beside_another_handler(caplog: pytest.LogCaptureFixture) -> None:
    stream = Terminal()
    logs.configure(service="ca", level="info", stream=stream)
    logs.logger("ca.audit").facts("certificate issued", {"serial": "0a"})
    assert "info    ca.audit: certificate issued  serial=0a" in stream.getvalue()
    logging.getLogger().addHandler(caplog.handler)
    logs.logger("ca.audit").facts("certificate issued", {"serial": "0b"})
    assert caplog.messages == ["certificate issued"]
    assert "serial=0b" in stream.getvalue()


def test_levels_and_binding(out: io.StringIO) -> None:
    log = logs.logger("ca.x").bind(pod="web", n=1)
    log.debug("a 100% %s")
    log.warning("b", n=2)
    log.error("c", msg="taken", level="taken")
    assert [(x["level"], x["msg"], x["n"]) for x in lines(out)] == [
        ("debug", "a 100% %s", 1),
        ("warning", "b", 2),
        ("error", "c", 1),
    ]
    assert (lines(out)[2]["msg_"], lines(out)[2]["level_"]) == ("taken", "taken")


def test_the_level_holds_for_our_loggers_and_libraries_speak_from_warning() -> None:
    stream = io.StringIO()
    logs.configure(service="ca", level="info", json=True, stream=stream)
    logs.logger("ca.x").debug("no")
    logging.getLogger("grpc._cython").info("no")
    logging.getLogger("werkzeug").warning("served %d %s", 200, "/livez")
    assert [(line["logger"], line["msg"]) for line in lines(stream)] == [("werkzeug", "served 200 /livez")]


def test_handlers_of_libraries_are_removed(out: io.StringIO) -> None:
    stray = io.StringIO()
    other = logging.getLogger("gunicorn.error")
    other.addHandler(logging.StreamHandler(stray))
    other.propagate = False
    logs.configure(service="ca", stream=out)
    other.warning("hello")
    assert stray.getvalue() == ""
    assert lines(out)[-1]["msg"] == "hello"


def test_gunicorn_gets_the_same_form(capsys: pytest.CaptureFixture[str]) -> None:
    logging.config.dictConfig(logs.gunicorn_config(service="ca"))
    logging.getLogger("gunicorn.access").info("GET %s", "/bundle")
    logs.logger("ca.http_server").info("bundle served")
    line, own = (json.loads(text) for text in capsys.readouterr().err.splitlines())
    assert own["msg"] == "bundle served"
    assert (line["service"], line["logger"], line["msg"]) == ("ca", "gunicorn.access", "GET /bundle")


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(ValueError, match="'loud': allowed are debug, info, warning, error"):
        logs.configure(service="ca", level="loud")


def test_a_library_with_a_wrong_format_string_is_still_heard() -> None:
    record = logging.LogRecord("grpc", logging.WARNING, "x.py", 1, "%d of %s", ("x",), None)
    assert json.loads(logs.JsonFormatter("ca").format(record))["msg"] == "%d of %s ('x',)"


def test_exceptions_have_a_traceback_without_secrets(out: io.StringIO) -> None:
    try:
        raise ValueError(f"bad token {TOKEN}")
    except ValueError:
        logs.logger("ca.x").exception("failed", attempt=2)
    (line,) = lines(out)
    assert line["level"] == "error"
    assert line["attempt"] == 2
    assert "Traceback" in line["exception"]
    assert "ValueError: bad token [redacted token]" in line["exception"]


def test_a_stream_that_fails_stops_nobody() -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    logs.configure(service="ca", stream=Full())
    logs.logger("ca.x").info("hello")
    logs.logger("ca.x").facts("hello", {})


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_people_at_a_terminal_get_a_line_they_can_read() -> None:
    stream = Terminal()
    logs.configure(service="ca", stream=stream)
    try:
        raise KeyError("x")
    except KeyError:
        logs.logger("ca.x").exception("a\nb\x1b[31m", path="/a b", n=3, deep={"a": [1]}, empty="")
    first, *rest = stream.getvalue().splitlines()
    assert first[12:] == ' error   ca.x: a\\x0ab\\x1b[31m  path="/a b"  n=3  deep={"a":[1]}  empty=""'
    assert rest[0] == "    Traceback (most recent call last):"
    assert rest[-1] == "    KeyError: 'x'"


NASTY = st.text(
    st.characters(codec="utf-8") | st.sampled_from("\n\r\x1b\x85\u2028\u202e\x9b\x00"), max_size=60
)


@given(NASTY, NASTY, NASTY)
def test_no_text_can_forge_a_line(message: str, name: str, value: str) -> None:
    for as_json in (True, False):
        stream = io.StringIO()
        logs.configure(service="ca", json=as_json, stream=stream)
        logs.logger("ca.x").info(message, **{name or "n": value})
        text = stream.getvalue()
        assert text.count("\n") == 1
        assert len(text.splitlines()) == 1
        assert not set("\x1b\x9b\u202e\r\x00") & set(text)


AROUND = st.text(st.sampled_from("abc -_.:/\n\"'{}=,"), max_size=12)


@given(AROUND, AROUND, st.dictionaries(st.text(max_size=5), st.text(max_size=20) | st.integers(), max_size=4))
def test_tokens_are_found_wherever_they_stand(before: str, after: str, claims: dict[str, Any]) -> None:
    token = jwt.encode(claims, "k" * 32)
    payload, signature = token.split(".")[1:]
    shown = clean(before + token + after)
    assert signature not in shown
    assert payload not in shown or len(payload) < 4
    assert "[redacted token]" in shown


@given(
    AROUND,
    AROUND,
    st.sampled_from(["PRIVATE KEY", "EC PRIVATE KEY", "RSA PRIVATE KEY", "ENCRYPTED PRIVATE KEY"]),
)
def test_private_keys_are_found_wherever_they_stand(before: str, after: str, label: str) -> None:
    body = PEM.splitlines()[1]
    text = PEM.replace("PRIVATE KEY", label)
    assert body not in clean(before + text + after)
    assert body not in clean(repr(before + text + after))
    assert body not in clean(before + text[: -len("-----END PRIVATE KEY-----\n")])  # cut off
    assert after.strip() in clean(text + after) or not after.strip()


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(TOKEN, id="compact"),
        pytest.param(f"Bearer {TOKEN}", id="bearer"),
        pytest.param(f"id_{TOKEN}", id="glued"),
        pytest.param(TOKEN_HEAD + ".x.", id="no-signature"),
        pytest.param(TOKEN_HEAD + ".a.b.c.d", id="encrypted"),
        pytest.param("ewogICJhbGciOiJub25lIn0.e30.", id="header-with-white-space"),
        pytest.param("eyJ9.e30.x", id="short"),
    ],
)
def test_forms_of_tokens(text: str) -> None:
    assert clean(text).endswith("[redacted token]")


@pytest.mark.parametrize(
    "text",
    [
        "reviews.demo.svc.cluster.local",
        "eyeglasses.demo.svc.cluster.local",
        "10.0.0.1:8080",
        "a.b.c",
        "v1.2.3-rc1.4",
    ],
)
def test_ordinary_names_are_left_alone(text: str) -> None:
    assert clean(text) == text


@pytest.mark.parametrize(
    "name",
    [
        "token",
        "tokens",
        "key",
        "private_key",
        "privateKey",
        "Authorization",
        "authorization_header",
        "client_secret",
        "JWT",
        "x-api-key",
        "db.password",
        "cookie",
        "credentials",
        "keyPem",
    ],
)
def test_secret_names(name: str) -> None:
    assert is_secret_name(name)
    assert clean_fields({name: "x", "n": {name: ["x"]}}) == {name: REDACTED, "n": {name: REDACTED}}


@pytest.mark.parametrize("name", ["key_id", "token_file", "secretName", "token_count", "monkey", ""])
def test_names_that_only_speak_about_secrets(name: str) -> None:
    assert not is_secret_name(name)


class Colour(enum.Enum):
    RED = "red"


class LogCode(Code):
    ONE = "one"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        pytest.param(b"\x00key", "[4 bytes]", id="bytes"),
        pytest.param(Colour.RED, "red", id="enum"),
        pytest.param(dt.datetime(2030, 1, 1, tzinfo=dt.UTC), "2030-01-01T00:00:00+00:00", id="datetime"),
        pytest.param(math.inf, "inf", id="infinite"),
        pytest.param(1.5, 1.5, id="float"),
        pytest.param(True, True, id="bool"),
        pytest.param(None, None, id="none"),
        pytest.param(2**64, hex(2**64), id="big"),
        pytest.param(
            MeshError(LogCode.ONE, "a", private="b"), {"code": "one", "detail": "b"}, id="mesh-error"
        ),
        pytest.param(ValueError("x"), "ValueError: x", id="error"),
        pytest.param(Path("/a"), "/a", id="other"),
        pytest.param({"a": {"b": {"c": {"d": 1}}}}, {"a": {"b": {"c": "[1 fields]"}}}, id="deep"),
        pytest.param([[[[1]]]], [[["[1 items]"]]], id="deep-list"),
        pytest.param(list(range(70)), [*range(64), "6 more"], id="long-list"),
        pytest.param(("a", TOKEN), ["a", "[redacted token]"], id="tuple"),
        pytest.param("x" * 9000, "x" * 8192 + "... [9000 characters]", id="long-text"),
    ],
)
def test_values(value: object, shown: object) -> None:
    assert clean_fields({"v": value}) == {"v": shown}


def test_unset_secrets_may_be_seen_to_be_unset() -> None:
    assert clean_fields({"token": None, "key": False}) == {"token": None, "key": False}


def test_the_number_of_fields_is_bounded() -> None:
    shown = clean_fields({f"f{index}": index for index in range(70)})
    assert len(shown) == redact.MAX_ITEMS + 1
    assert shown["..."] == "6 more"


def test_a_huge_text_is_cut_before_it_is_searched() -> None:
    assert clean("a." * 10_000_000).endswith("characters]")
    assert clean("PRIVATE KEY" * 100_000)
    assert clean("-----BEGIN PRIVATE KEY" * 3000) == "[redacted private key]"
