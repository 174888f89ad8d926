"""Capture options: parsing, the normalised JSON form, and the rendered scripts as golden text."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from injector.core.capture import (
    MAX_ITEMS,
    CaptureCode,
    CaptureConfig,
    CaptureError,
    PortRange,
    parse_cidrs,
    parse_interfaces,
    parse_ports,
    render_nft,
)
from injector.core.capture_iptables import render_iptables

ports = st.builds(lambda a, b: PortRange(min(a, b), max(a, b)), st.integers(1, 65535), st.integers(1, 65535))
port_lists = st.lists(ports, max_size=8).map(lambda r: tuple(sorted(set(r))))
cidrs = st.one_of(
    st.ip_addresses(v=4).map(lambda a: f"{a}/32"), st.ip_addresses(v=6).map(lambda a: f"{a}/128")
)
cidr_lists = st.lists(cidrs, max_size=8).map(tuple)
names = st.lists(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,14}", fullmatch=True), max_size=4).map(tuple)
configs = st.builds(
    CaptureConfig,
    include_inbound=st.none() | port_lists,
    exclude_inbound=port_lists,
    include_outbound_cidrs=st.none() | cidr_lists,
    exclude_outbound_cidrs=cidr_lists,
    include_outbound_ports=port_lists,
    exclude_outbound_ports=port_lists,
    exclude_interfaces=names,
    reroute_interfaces=names,
    drop_invalid=st.booleans(),
)


@given(configs)
def test_json_form_round_trips(config: CaptureConfig) -> None:
    assert CaptureConfig.from_json(config.to_json()) == config


def one_table(config: CaptureConfig) -> None:
    """The scripts are one table each, with one rule a line and balanced braces."""
    script = render_nft(config)
    assert script.startswith("table inet gatehouse\ndelete table inet gatehouse\ntable inet gatehouse {\n")
    assert script.endswith("}\n")
    assert script.count("{") == script.count("}")
    assert ";" not in script.replace("policy accept;", "").replace("dstnat;", "").replace(
        "priority -100;", ""
    ).replace("priority mangle;", "")
    for version in (4, 6):
        lines = render_iptables(config, version, frozenset()).splitlines()
        assert lines[0] == "*nat"
        assert lines[-1] == "COMMIT"
        assert all(line.startswith((":GATEHOUSE_", "-A GATEHOUSE_", "-I ")) for line in lines[1:-1])


@given(configs)
def test_no_option_can_add_a_statement(config: CaptureConfig) -> None:
    one_table(config)


json_values = st.recursive(
    st.text(max_size=9).map(lambda zone: f"fe80::%{zone}/64")
    | st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=20)
    | st.from_regex(r"[0-9:%./;}\n-]{1,12}"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=6,
)
hostile = st.text(max_size=200) | st.dictionaries(
    st.sampled_from(sorted(f.name for f in fields(CaptureConfig))),
    json_values | st.lists(json_values, max_size=2),
    max_size=4,
).map(json.dumps)


@given(hostile)
def test_whatever_is_written_there_is_refused_or_becomes_rules(text: str) -> None:
    """Whoever writes a pod may write this; there is no third way out, and no way around the renderer."""
    try:
        config = CaptureConfig.from_json(text)
    except CaptureError:
        return
    assert CaptureConfig.from_json(config.to_json()) == config
    one_table(config)


def test_jumps_are_added_only_once() -> None:
    present = frozenset({"PREROUTING", "OUTPUT"})
    assert "-I " not in render_iptables(CaptureConfig(), 4, present)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("*", None),
        ("", ()),
        (" 80 , 8000-8100,80", (PortRange(80, 80), PortRange(8000, 8100))),
        ("1,65535", (PortRange(1, 1), PortRange(65535, 65535))),
    ],
    ids=["all", "none", "list", "edges"],
)
def test_ports(text: str, wanted: tuple[PortRange, ...] | None) -> None:
    assert parse_ports(text) == wanted


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0", "'0' is not a port"),
        ("65536", "'65536' is not a port"),
        ("80;flush ruleset", "is not a port"),
        ("80\n", None),
        ("\uff19\uff10", "is not a port"),
        ("90-80", "ends before it begins"),
        ("-1", "is not a port"),
        ("80-", "is not a port"),
        ("80,*", "'*' is not a port"),
    ],
    ids=[
        "zero",
        "too-large",
        "nft-statement",
        "trailing-newline",
        "unicode-digits",
        "reversed",
        "no-first",
        "no-last",
        "star",
    ],
)
def test_bad_ports(text: str, said: str | None) -> None:
    if said is None:
        assert parse_ports(text) == (PortRange(80, 80),)
        return
    with pytest.raises(CaptureError, match=said.replace("*", r"\*")) as caught:
        parse_ports(text)
    assert caught.value.code is CaptureCode.PORTS


@pytest.mark.parametrize(
    "text",
    ["10.0.0.1/8", "10.0.0.0/33", "x", "10.0.0.0/8}", "fe80::%eth0/64", "fe80::1%x} ; flush ruleset/128"],
    ids=["host-bits", "mask", "word", "brace", "zone", "statement-in-a-zone"],
)
def test_bad_cidrs(text: str) -> None:
    with pytest.raises(CaptureError, match="is not a CIDR block") as caught:
        parse_cidrs(text)
    assert caught.value.code is CaptureCode.CIDRS


@pytest.mark.parametrize("text", ["eth0;", "a" * 16, "-x", 'e"'], ids=["semicolon", "long", "dash", "quote"])
def test_bad_interfaces(text: str) -> None:
    with pytest.raises(CaptureError, match="is not an interface name") as caught:
        parse_interfaces(text)
    assert caught.value.code is CaptureCode.INTERFACES


def test_lists_are_bounded() -> None:
    with pytest.raises(CaptureError, match=f"at most {MAX_ITEMS}") as caught:
        parse_ports(",".join(["1"] * (MAX_ITEMS + 1)))
    assert caught.value.code is CaptureCode.TOO_MANY


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is not JSON"),
        ("[]", "allowed keys"),
        ('{"bogus":1}', "allowed keys"),
        ('{"proxy_uid":"1337"}', "not of type int"),
        ('{"drop_invalid":1}', "not of type bool"),
        ('{"exclude_inbound":"80"}', "expected a list of texts"),
        ('{"exclude_inbound":null}', "expected a list of texts"),
        ('{"proxy_uid":0}', "not a user from 1"),
        ('{"proxy_uid":-1}', "not a user from 1"),
        ('{"proxy_uid":4294967295}', "not a user from 1"),
        ('{"proxy_uid":true}', "not of type int"),
        (f'{{"proxy_uid":{"9" * 5000}}}', "not JSON"),
        ("[" * 60_000, "not JSON"),
        (f'{{"a":"{"x" * 65_536}"}}', "at most 65536"),
    ],
    ids=[
        *("syntax", "list", "unknown-key", "uid-text", "bool-number", "text", "null"),
        *("root", "negative", "nobody", "uid-bool", "digits", "nested", "long"),
    ],
)
def test_bad_json(text: str, said: str) -> None:
    with pytest.raises(CaptureError, match=said) as caught:
        CaptureConfig.from_json(text)
    assert caught.value.code is CaptureCode.FORMAT
