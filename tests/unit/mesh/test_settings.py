"""Settings: precedence, types, and errors that name the place and the way out."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import Category
from mesh.settings import SettingsCode, SettingsError, describe, load, setting
from mesh.settings_values import Bounds, allowed_text, format_duration, format_value, parse_duration, show
from mesh.spiffe import TrustDomain

FILE, UNKNOWN, TYPE, VALUE, MISSING = SettingsCode  # in the order of their declaration


class Mode(enum.Enum):
    STRICT = "strict"
    LAX = "lax"


@dataclass(frozen=True, slots=True, kw_only=True)
class Issuer:
    url: str = setting("Issuer as in the token.")
    audiences: tuple[str, ...] = setting("Accepted audiences.", default=())


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    cert_file: Path | None = setting("PEM file.", default=None)
    mode: Mode = setting("How strict.", default=Mode.STRICT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    listen: str = setting("Address.")
    workers: int = setting("Threads.", default=4, minimum=1, maximum=64)
    lifetime: timedelta = setting("Lifetime.", default=timedelta(hours=24), minimum=timedelta(minutes=5))
    ratio: float = setting("Share.", default=0.5, maximum=1.0)
    debug: bool = setting("More output.", default=False)
    tls: Tls = setting("Serving certificate.", default_factory=Tls)
    issuers: tuple[Issuer, ...] = setting("Token issuers.", default=())
    numbers: tuple[int, ...] = setting("Numbers.", default_factory=lambda: (1, 2))
    domain: TrustDomain = setting("Trust domain.", default=TrustDomain("cluster.local"), parse=TrustDomain)
    domains: tuple[TrustDomain, ...] = setting("More of them.", default=(), parse=TrustDomain)
    pin: int | None = setting("A secret number.", default=None, secret=True)

    def __post_init__(self) -> None:
        if self.workers == 13:
            raise ValueError("13 workers bring bad luck")


def get(
    text: str | None = None,
    *,
    env: Mapping[str, str] | None = None,
    options: Mapping[str, object] | None = None,
    path: Path | None = None,
) -> Example:
    if text is not None:
        assert path is not None
        path.write_text(text)
    base = {"X_LISTEN": "here"} if text is None else {}
    return load(Example, file=path, env={**base, **(env or {})}, env_prefix="X_", overrides=options or {})


def problems(error: SettingsError) -> list[str]:
    return [str(problem) for problem in error.problems]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "ca.yaml"


def test_defaults() -> None:
    assert get() == Example(listen="here")


def test_precedence_is_option_environment_file_default(file: Path) -> None:
    text = "listen: file\nworkers: 5\nratio: 0.25\n"
    settings = get(
        text,
        path=file,
        env={"X_WORKERS": "6", "X_LISTEN": "env"},
        options={"listen": "option", "ratio": None},
    )
    assert (settings.listen, settings.workers, settings.ratio) == ("option", 6, 0.25)


def test_every_type_from_a_file(file: Path) -> None:
    text = """
listen: "0.0.0.0:1"
workers: 64
lifetime: 1h30m
ratio: 1
debug: on
tls: {cert_file: /etc/tls.crt, mode: lax}
issuers:
  - url: https://a
    audiences: [x, y]
  - {url: https://b}
numbers: [3]
domain: example.org
domains: [a.org, b.org]
pin: 7
"""
    assert get(text, path=file) == Example(
        listen="0.0.0.0:1",
        workers=64,
        lifetime=timedelta(minutes=90),
        ratio=1.0,
        debug=True,
        tls=Tls(cert_file=Path("/etc/tls.crt"), mode=Mode.LAX),
        issuers=(Issuer(url="https://a", audiences=("x", "y")), Issuer(url="https://b")),
        numbers=(3,),
        domain=TrustDomain("example.org"),
        domains=(TrustDomain("a.org"), TrustDomain("b.org")),
        pin=7,
    )


def test_every_type_from_the_environment() -> None:
    env = {
        "X_WORKERS": "8",
        "X_LIFETIME": "10m",
        "X_RATIO": "0.1",
        "X_DEBUG": "Yes",
        "X_TLS__CERT_FILE": "a/b",
        "X_TLS__MODE": "LAX",
        "X_NUMBERS": "4, 5",
        "X_DOMAIN": "example.org",
        "X_DOMAINS": "",
        "X_PIN": "none",
        "OTHER": "ignored",
    }
    settings = get(env=env)
    assert settings == Example(
        listen="here",
        workers=8,
        lifetime=timedelta(minutes=10),
        ratio=0.1,
        debug=True,
        tls=Tls(cert_file=Path("a/b"), mode=Mode.LAX),
        numbers=(4, 5),
        domain=TrustDomain("example.org"),
    )


def test_options_are_text_or_typed() -> None:
    options = {
        "workers": 3,
        "tls.cert_file": Path("/x"),
        "domain": TrustDomain("b"),
        "numbers": [9],
        "debug": "0",
    }
    settings = get(options=options)
    assert (settings.workers, settings.tls.cert_file, settings.domain) == (3, Path("/x"), TrustDomain("b"))
    assert (settings.numbers, settings.debug) == ((9,), False)


def test_an_empty_file_and_an_empty_section_mean_the_defaults(file: Path) -> None:
    assert get("", path=file, env={"X_LISTEN": "here"}) == Example(listen="here")
    assert get("listen: here\ntls:\n", path=file) == Example(listen="here")


FILE_CASES = {
    "typo": ("listn: a", UNKNOWN, ":1: listn", "did you mean 'listen'?"),
    "nested-typo": ("\ntls:\n  mod: lax", UNKNOWN, ":3: tls.mod", "did you mean 'mode'?"),
    "unlike-any": ("zzzzzz: a", UNKNOWN, ":1: zzzzzz", "known are debug, domain,"),
    "in-list": ("issuers: [{url: a, ul: b}]", UNKNOWN, ":1: issuers[0].ul", "'url'"),
    "list-missing": ("issuers: [{}]", MISSING, "issuers[0].url", "required; set it in the file"),
    "list-of-number": ("issuers: [3]", TYPE, ":1: issuers[0]", "must be a mapping"),
    "no-list": ("issuers: 3", TYPE, ":1: issuers", "found the number 3; allowed is a list of mappings"),
    "quoted-int": ("workers: '4'", TYPE, ":1: workers", "found '4'; allowed is an integer, 1 to 64"),
    "bool-for-int": ("workers: yes", TYPE, ":1: workers", "found the boolean true"),
    "float-for-int": ("workers: 1.5", TYPE, ":1: workers", "found the number 1.5"),
    "too-many": ("workers: 65", VALUE, ":1: workers", "found the number 65"),
    "too-few": ("workers: 0", VALUE, ":1: workers", "1 to 64"),
    "null-for-int": ("workers:", TYPE, ":1: workers", "found nothing"),
    "bool-for-float": ("ratio: yes", TYPE, ":1: ratio", "allowed is a number, at most 1.0"),
    "int-for-bool": ("debug: 1", TYPE, ":1: debug", "allowed is true or false"),
    "list-for-bool": ("debug: [a]", TYPE, ":1: debug", "found a list"),
    "map-for-text": ("listen: {a: 1}", TYPE, ":1: listen", "found a mapping; allowed is text"),
    "bare-number": ("lifetime: 90", TYPE, ":1: lifetime", "24h, 90s or 1h30m, at least 5m"),
    "unknown-unit": ("lifetime: 1w", VALUE, ":1: lifetime", "is written like 24h"),
    "endless": ("lifetime: 999999999d999999999d", VALUE, ":1: lifetime", "is too long"),
    "below-the-floor": ("lifetime: 4m", VALUE, ":1: lifetime", "at least 5m"),
    "enum-bool": ("tls: {mode: off}", TYPE, ":1: tls.mode", "boolean false; allowed is one of strict, lax"),
    "enum": ("tls: {mode: loose}", TYPE, ":1: tls.mode", "found 'loose'; allowed is one of"),
    "section": ("tls: 3", TYPE, ":1: tls", "must be a mapping of settings"),
    "empty-path": ("tls: {cert_file: ''}", VALUE, ":1: tls.cert_file", "must not be empty"),
    "scalar-for-list": ("numbers: 3", TYPE, ":1: numbers", "allowed is a list of: an integer"),
    "list-item": ("numbers: [1, a]", TYPE, ":1: numbers[1]", "found 'a'; allowed is an integer"),
    "parser": ("domain: A", VALUE, ":1: domain", "allowed are 1 to 255"),
    "number-for-parser": ("domain: 3", TYPE, ":1: domain", "allowed is TrustDomain"),
    "parser-in-list": ("domains: [a, A]", VALUE, ":1: domains[1]", "'A'"),
    "cross-check": ("workers: 13", VALUE, "", "13 workers bring bad luck"),
    "list-file": ("- a", TYPE, ":1", "must be a mapping of settings"),
    "syntax": ("a: [", FILE, ":2", "not YAML"),
    "two-documents": ("{}\n---\n{}", FILE, ":3", "one document is allowed"),
    "twice": ("listen: a\nlisten: b", FILE, ":2", "written twice"),
}


@pytest.mark.parametrize(("text", "code", "place", "message"), FILE_CASES.values(), ids=FILE_CASES.keys())
def test_file_refusals(file: Path, text: str, code: SettingsCode, place: str, message: str) -> None:
    env = {} if text.startswith("listen") else {"X_LISTEN": "here"}
    with pytest.raises(SettingsError) as caught:
        get(text, path=file, env=env)
    (first, *rest) = caught.value.problems
    assert (first.code, caught.value.code) == (code, code)
    assert place in str(first)
    assert message in first.message
    assert not rest
    assert caught.value.category is Category.FAILED_PRECONDITION


OTHER_CASES = {
    "env-typo": (
        {"X_LISTN": "a"},
        {},
        UNKNOWN,
        "environment X_LISTN: no such setting; did you mean 'X_LISTEN'?",
    ),
    "env-int": (
        {"X_WORKERS": "4.0"},
        {},
        TYPE,
        "environment X_WORKERS: workers: found '4.0'; allowed is an integer",
    ),
    "env-other-digits": ({"X_WORKERS": "\uff14"}, {}, TYPE, "allowed is an integer"),
    "env-nan": ({"X_RATIO": "nan"}, {}, TYPE, "allowed is a number"),
    "env-float": ({"X_RATIO": "x"}, {}, TYPE, "allowed is a number"),
    "env-bool": ({"X_DEBUG": "maybe"}, {}, TYPE, "allowed is true or false"),
    "env-mappings": ({"X_ISSUERS": "a"}, {}, TYPE, "allowed is a list of mappings, in the file"),
    "env-gap": ({"X_NUMBERS": "1,,2"}, {}, TYPE, "numbers[1]: found ''"),
    "env-nul": ({"X_TLS__CERT_FILE": "a\0b"}, {}, VALUE, "a path"),
    "secret": (
        {"X_PIN": "hunter2"},
        {},
        TYPE,
        "found a value that is not shown; allowed is an integer, or none",
    ),
    "option-typo": (
        {},
        {"tls.mdoe": "a"},
        UNKNOWN,
        "option: tls.mdoe: no such setting; did you mean 'tls.mode'?",
    ),
    "option-bool": ({}, {"workers": True}, TYPE, "option: workers: found the boolean true"),
    "option-int": ({}, {"debug": 1}, TYPE, "option: debug"),
}


@pytest.mark.parametrize(("env", "options", "code", "message"), OTHER_CASES.values(), ids=OTHER_CASES.keys())
def test_other_refusals(
    env: dict[str, str], options: dict[str, object], code: SettingsCode, message: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        get(env=env, options=options)
    assert [problem.code for problem in caught.value.problems] == [code]
    assert message in caught.value.public
    assert "hunter2" not in caught.value.public + caught.value.private


def test_all_problems_are_reported_at_once(file: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        get("workers: x\nlistn: a\n", path=file, env={"X_DEBGU": "1"}, options={"ratio": "2"})
    assert problems(caught.value) == [
        f"{file}:2: listn: no such setting; did you mean 'listen'?",
        "environment X_DEBGU: no such setting; did you mean 'X_DEBUG'?",
        "listen: required; set it in the file or by X_LISTEN",
        f"{file}:1: workers: found 'x'; allowed is an integer, 1 to 64",
        "option: ratio: found '2'; allowed is a number, at most 1.0",
    ]
    assert caught.value.public.startswith("5 problems in the settings:\n  ")


@pytest.mark.parametrize(
    "name",
    [
        "X_SERVICE_HOST",
        "X_SERVICE_PORT",
        "X_SERVICE_PORT_GRPC",
        "X_PORT",
        "X_PORT_15012_TCP_ADDR",
        "X_PORT_1_UDP",
    ],
)
def test_what_the_kubelet_adds_for_a_service_is_no_typo(name: str) -> None:
    assert get(env={name: "tcp://10.0.0.1:15012"}) == Example(listen="here")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda path: None, "cannot be read: No such file", id="missing"),
        pytest.param(lambda path: path.mkdir(), "cannot be read: Is a directory", id="directory"),
        pytest.param(lambda path: path.write_bytes(b"\xff\xfe"), "is not UTF-8 text", id="not-utf8"),
        pytest.param(lambda path: path.write_text("#" * 2**20 + "x"), "longer than 1048576", id="large"),
    ],
)
def test_files_that_cannot_be_used(file: Path, make: Any, message: str) -> None:
    make(file)
    with pytest.raises(SettingsError, match=message) as caught:
        get(path=file)
    assert caught.value.code is SettingsCode.FILE
    assert str(file) in caught.value.public


def test_a_refusal_of_the_class_itself_keeps_its_sentence() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Inner:
        name: str = setting("Name.", default="")

        def __post_init__(self) -> None:
            TrustDomain(self.name)

    globals()["Inner"] = Inner

    @dataclass(frozen=True, kw_only=True)
    class Outer:
        inner: Inner = setting("Inner.", default_factory=lambda: None)
        plain: int = 3  # made without `setting`

    with pytest.raises(SettingsError, match="inner: trust domain 'A': allowed") as caught:
        load(Outer, file=None, env={}, env_prefix="X_", overrides={"inner.name": "A"})
    assert caught.value.code is SettingsCode.VALUE


def test_a_program_must_give_a_prefix() -> None:
    with pytest.raises(ValueError, match="env_prefix"):
        load(Tls, file=None, env={}, env_prefix="", overrides={})


def test_describe_has_a_row_for_every_setting() -> None:
    rows = {row.path: row for row in describe(Example, "X_")}
    assert list(rows)[:7] == ["listen", "workers", "lifetime", "ratio", "debug", "tls.cert_file", "tls.mode"]
    assert (rows["listen"].default, rows["listen"].type, rows["listen"].env) == (None, "text", "X_LISTEN")
    assert (rows["lifetime"].default, rows["lifetime"].doc) == ("24h", "Lifetime.")
    assert rows["lifetime"].type == "a duration such as 24h, 90s or 1h30m, at least 5m"
    assert (rows["tls.cert_file"].env, rows["tls.cert_file"].type) == ("X_TLS__CERT_FILE", "a path, or none")
    assert (rows["tls.mode"].default, rows["tls.mode"].type) == ("strict", "one of strict, lax")
    assert (rows["issuers"].env, rows["issuers"].type) == ("", "a list of mappings")
    assert rows["issuers[].url"].env == ""
    assert (rows["numbers"].default, rows["numbers"].type) == ("[1, 2]", "a list of: an integer")
    assert rows["domains"].type == "a list of: TrustDomain"
    assert all(row.doc for row in rows.values())


@given(st.integers(-(10**12), 10**12))
def test_durations_are_read_as_they_are_written(millis: int) -> None:
    value = timedelta(milliseconds=abs(millis))
    assert parse_duration(format_duration(value)) == value
    assert format_duration(timedelta(milliseconds=-abs(millis))).startswith("-" if millis else "0s")


@pytest.mark.parametrize("text", ["", "1", "h", "1 h", "1h ", "-1h", "1H", "1h\n", "1..5s", ".5s", "٣s"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="written like 24h"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "none"), (True, "true"), (Mode.LAX, "lax"), ("", '""'), ((), "[]"), (3, "3")],
    ids=str,
)
def test_format_value(value: object, text: str) -> None:
    assert format_value(value) == text


@pytest.mark.parametrize(
    ("hint", "bounds", "text"),
    [
        (int, Bounds(1, None), "an integer, at least 1"),
        (int | str, Bounds(), "int | str"),
        (tuple[int, str], Bounds(), "tuple"),
        (timedelta, Bounds(None, timedelta(days=2)), "a duration such as 24h, 90s or 1h30m, at most 48h"),
    ],
    ids=str,
)
def test_allowed_text(hint: Any, bounds: Bounds, text: str) -> None:
    assert allowed_text(hint, bounds) == text


def test_shown_values_are_short_and_on_one_line() -> None:
    assert show("a\nb") == "'a\\nb'"
    assert len(show("x" * 5000)) < 100
